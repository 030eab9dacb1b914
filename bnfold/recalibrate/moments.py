"""Count, mean and centred second moment, merged without losing digits.

    n = n_a + n_b,  d = mean_b - mean_a,  mean = mean_a + d n_b / n,  M2 = M2_a + M2_b + d² n_a n_b / n

(Chan, Golub & LeVeque 1979.) Nothing is ever the difference of two large numbers, so a mean a thousand deviations
away costs nothing; and a short last batch counts for what it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def _zero() -> Floats:
    return np.zeros(())


@dataclass
class Moments:
    """What is known of each channel of one BN so far.

    >>> moments = Moments()
    >>> for batch in ([1.0, 2.0, 3.0], [10.0]):
    ...     moments.add(len(batch), np.mean(batch), np.var(batch))
    >>> float(moments.mean), float(moments.variance()), float(np.var([1, 2, 3, 10]))
    (4.0, 12.5, 12.5)
    """

    count: int = 0
    mean: Floats = field(default_factory=_zero)
    m2: Floats = field(default_factory=_zero)

    def add(self, count: int, mean: npt.ArrayLike, variance: npt.ArrayLike) -> None:
        """Take in a batch: how many values a channel had, their mean and biased variance, both (C,)."""
        mean = np.asarray(mean, np.float64)
        self.merge(Moments(count, mean, np.asarray(variance, np.float64) * count))

    def merge(self, other: Moments) -> None:
        """Take in what was measured elsewhere."""
        if not other.count:
            return
        count = self.count + other.count
        difference = other.mean - self.mean
        self.mean = self.mean + difference * (other.count / count)
        self.m2 = self.m2 + other.m2 + difference**2 * (self.count * other.count / count)
        self.count = count

    def variance(self, unbiased: bool = False) -> Floats:
        """The variance, (C,): biased as ONNX's own, or divided by count - 1."""
        return np.asarray(self.m2 / max(self.count - unbiased, 1))
