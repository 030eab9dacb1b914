"""How computed values are distributed, counted batch by batch, and the steps that round them with the least error.

Values are counted in bins around 0 that grow twice as wide whenever a value lies outside of them, so that one pass is
enough and no batch is kept. Where a pair lets the range [low, high] through in n steps, the mean squared error is

    ((high - low) / n)^2 / 12           of what lies inside: rounding as uniform noise (Widrow 1956); none of zeros
    (v - low)^2 or (v - high)^2         of what is clipped

and sums of 1, v and v^2 up to each bin give it for many ranges at once. From the smallest to the largest value is
rarely the best: of 10^6 normal values 8 bits add a noise of 1.06 % there and of 0.93 % in the best range, of Student's
t with 3 degrees of freedom 16 % and 11 %.
"""

from __future__ import annotations

import numpy as np

from bnfold.constants import Array, finfo
from bnfold.fold.union_find import Floats
from bnfold.requantize.pairs import Steps

# On each side of 0: a step of 8 bits is some dozen of them.
BINS = 4096
# Ends of the range that are tried: parts of the smallest and of the largest value.
TRIED = 256


class Histogram:
    """Counts of values.

    Attributes:
        counts: of bins of the same width from -limit to limit.
        limit: a power of two; 0 as long as there are only zeros.
        low, high: the smallest and the largest value, or 0.
    """

    def __init__(self) -> None:
        self.counts: Floats = np.zeros(2 * BINS)
        self.limit = self.low = self.high = 0.0

    def add(self, values: Array) -> None:
        """Count finite values."""
        values = values.astype(np.promote_types(np.float32, values.dtype), copy=False)
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        self.low, self.high = min(self.low, low), max(self.high, high)
        if max(-low, high) > self.limit:
            self._widen(float(2 ** np.ceil(np.log2(max(-low, high)))))
        bounds = (-self.limit, self.limit) if self.limit else (-1, 1)
        self.counts += np.histogram(values, 2 * BINS, bounds)[0]

    def _widen(self, limit: float) -> None:
        self.limit = self.limit or limit
        while self.limit < limit:
            self.counts = np.pad(self.counts.reshape(-1, 2).sum(axis=1), BINS // 2)
            self.limit *= 2

    def best_steps(self, like: Steps) -> tuple[Steps, float]:
        """The steps with the least mean squared error, of the types of others, and symmetric if they are.

        Returns: the steps, and the root of that error over the root mean square of the values (0 if these are 0).
        """
        if not self.limit:
            return like, 0.0
        least, most = like.limits
        if like.is_symmetric:
            step = np.linspace(0, max(-self.low, self.high), TRIED + 1)[1:] / most
            zero = np.zeros_like(step)
        else:
            low, high = (grid.ravel() for grid in np.meshgrid(_parts(self.low), _parts(self.high)))
            low, high = low[high > low], high[high > low]
            step = (high - low) / (most - least)
            zero = np.clip(np.rint(least - low / step), least, most)
        error, size = self._error((least - zero) * step, (most - zero) * step, step)
        best = int(error.argmin())
        stored = np.asarray(max(step[best], finfo(like.step.dtype).smallest_normal), like.step.dtype)
        return Steps(stored, zero[best].astype(like.zero_point.dtype)), float(np.sqrt(error[best] / size))

    def _error(self, low: Floats, high: Floats, step: Floats) -> tuple[Floats, float]:
        """Sums of squared errors over each range, and the sum of squares of the values."""
        width = self.limit / BINS
        middle = (np.arange(2 * BINS) + 0.5 - BINS) * width
        sums = np.pad(np.cumsum([self.counts, self.counts * middle, self.counts * middle**2], axis=1), ((0, 0), (1, 0)))
        below, above = (np.clip(np.rint(edge / width) + BINS, 0, 2 * BINS).astype(np.int64) for edge in (low, high))
        clipped = _squares(sums[:, below], low) + _squares(sums[:, -1:] - sums[:, above], high)
        zeros = np.where(below < BINS, self.counts[BINS - 1], 0) + np.where(above > BINS, self.counts[BINS], 0)
        inside = sums[0, above] - sums[0, below] - zeros  # what a Relu leaves is exact
        return inside * step**2 / 12 + clipped, float(sums[2, -1])


def _parts(end: float) -> Floats:
    return np.linspace(0, end, TRIED + 1) if end else np.zeros(1)


def _squares(sums: Floats, edge: Floats) -> Floats:
    """Sum of (v - edge)^2, of the sums of 1, v and v^2."""
    return np.asarray(np.maximum(sums[2] - 2 * edge * sums[1] + edge**2 * sums[0], 0))
