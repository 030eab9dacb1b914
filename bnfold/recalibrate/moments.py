"""Count, mean and centred second moment, merged without losing digits.

    n = n_a + n_b,  d = mean_b - mean_a,  mean = mean_a + d n_b / n,  M2 = M2_a + M2_b + d² n_a n_b / n

(Chan, Golub & LeVeque 1979.) Nothing is ever the difference of two large numbers, so a mean a thousand deviations
away costs nothing; and a short last batch counts for what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


# Blocks that a run is divided into at most, to tell how far statistics can be trusted.
BLOCKS = 16
# Fewer say nothing of a trend: of two, the difference is the noise.
FEWEST_BLOCKS = 4


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


@dataclass(frozen=True, eq=False)
class Trust:
    """How far statistics can be trusted, by how they varied over the run: float64, (C,) each, in deviations.

    Attributes:
        error: standard error of the mean.
        trend: half of what the second half of the run differs from the first by: in the mean, or in the logarithm
            of the deviation, whichever is more.
        chance: what `trend` would be by chance alone, about.
    """

    error: Floats
    trend: Floats
    chance: Floats


@dataclass
class Trace:
    """The moments of one BN over a run: all together, and in blocks of consecutive batches.

    Values within a batch, let alone within an image, are no independent draws, so their number says little about how
    well a mean is known. What does is how means of blocks vary (batch means: Schmeiser 1982). There are `BLOCKS` of
    them at most: then each two become one, and blocks hold twice as many batches from there on.

    >>> trace = Trace()
    >>> for batch in ([1.0, 3.0], [2.0, 4.0], [0.0, 2.0], [3.0, 5.0]):
    ...     one = Moments()
    ...     one.add(len(batch), [np.mean(batch)], [np.var(batch)])
    ...     trace.take(one)
    >>> trace.total.count, float(trace.total.mean[0]), round(float(trace.trust(0.0).error[0]), 3)
    (8, 2.5, 0.43)
    """

    total: Moments = field(default_factory=Moments)
    blocks: list[Moments] = field(default_factory=list)
    size: int = 1  # batches that a block holds
    filled: int = 0  # of these, in the last block

    def take(self, batch: Moments) -> None:
        """Take in what one batch said."""
        if not batch.count:
            return
        self.total.merge(batch)
        if self.blocks and self.filled < self.size:
            self.blocks[-1].merge(batch)
            self.filled += 1
            return
        if len(self.blocks) == BLOCKS:
            for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
                first.merge(second)
            self.blocks, self.size = self.blocks[::2], 2 * self.size
        fresh = Moments()
        fresh.merge(batch)
        self.blocks.append(fresh)
        self.filled = 1

    def trust(self, epsilon: float) -> Trust | None:
        """How far the statistics can be trusted; None if fewer than two batches were seen."""
        if len(self.blocks) < 2:
            return None
        counts = np.array([block.count for block in self.blocks], np.float64)
        variance = self.total.variance() + epsilon
        with np.errstate(divide="ignore", invalid="ignore"):  # a channel that never varies, and no epsilon
            means = np.array([block.mean for block in self.blocks]) / np.sqrt(variance)
            spreads = np.log(np.array([block.variance() + epsilon for block in self.blocks])) / 2
        rows = (np.nan_to_num(values, posinf=0, neginf=0) for values in (means, spreads))
        trends, chances = zip(*(_trend(values, counts) for values in rows), strict=True)
        if len(self.blocks) < FEWEST_BLOCKS:
            trends = tuple(np.zeros_like(trend) for trend in trends)
        in_mean = np.abs(trends[0]) >= np.abs(trends[1])
        trend, chance = (np.where(in_mean, pair[0], pair[1]) for pair in (np.abs(trends), chances))
        return Trust(chances[0], trend, chance)


def _trend(rows: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Half of the difference of two halves of rows (blocks, C), and the standard error of their mean."""
    half = len(rows) // 2
    first, second = (
        np.average(part, axis=0, weights=weights)
        for part, weights in ((rows[:half], counts[:half]), (rows[half:], counts[half:]))
    )
    weights = counts / counts.sum()
    middle = weights @ rows
    error = np.sqrt((weights**2) @ (rows - middle) ** 2 * len(rows) / (len(rows) - 1))
    return (second - first) / 2, error


def side_by_side(traces: Sequence[Trace]) -> Trace:
    """The channels of several traces of the same batches, one behind the other."""
    if len(traces) == 1:
        return traces[0]
    first = traces[0]
    columns = zip(*((trace.total, *trace.blocks) for trace in traces), strict=True)
    total, *blocks = (
        Moments(ones[0].count, np.concatenate([one.mean for one in ones]), np.concatenate([one.m2 for one in ones]))
        for ones in columns
    )
    return Trace(total, blocks, first.size, first.filled)


def pooled(traces: Sequence[Trace]) -> Trace:
    """All values of several traces of the same batches: those of a BN that is applied several times, or never."""
    if len(traces) < 2:
        return traces[0] if traces else Trace()
    result = Trace(size=traces[0].size, filled=traces[0].filled)
    result.blocks = [Moments() for _ in traces[0].blocks]
    for trace in traces:
        result.total.merge(trace.total)
        for mine, other in zip(result.blocks, trace.blocks, strict=True):
            mine.merge(other)
    return result
