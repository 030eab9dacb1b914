"""How far a value of B is from A's, in units of what rounding A's weights does to it.

    r = rms_c(B_cut - A64) / max(N_c, 0.5 median(N / s) s_c, u s_c, 2^-45 s)

c is a channel; s_c and s are the rms of A64 there and as a whole; N_c is what moving A's weights and the values fed
into the segment by one unit in the last place does to it (rms over three seeds); u is half such a unit at 1, of the
type that the value is stored in. So r is a backward error: B is A with its weights moved by r units, which needs no
tuning to a model or a type. The median keeps a channel that the seeds happen to leave alone from counting as exact; u
is what storing the value costs; 2^-45 what double itself does.

What is doubtful is measured again with more seeds, and with B's noise: N_c is then the larger one of A's and B's. B
stores its weights no better than it can, and where these are large and cancel, as a bias does that undoes a shift, one
rounding of them is more than A's weights would tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnfold.constants import Array
from bnfold.fold.union_find import Floats

# Below EQUAL lie right pairs, above DIFFERENT nothing that rounding does; between them is what other rounding of many
# weights at a time may do. Where they come from: docs/verification.md.
EQUAL, DIFFERENT = 1.5, 20.0
SEEDS = 3
# What lies between these is doubtful: three seeds miss the noise of a channel of few values by ten times, by chance.
DOUBTFUL = (0.75, 200.0)
MORE_SEEDS = 16
# B's noise counts up to so many times A's: the largest shift of a value that `bnfold fold` allows, in its usual size.
# With it r of the right fold of densenet121 with random gammas went from 2.2 to 0.66.
LESS_EXACT = 8.0
# What a kernel in the type itself may be off besides: 4 times as much (218 right pairs compared natively stayed below
# 11.8, compared in double below 2.5).
NATIVE = 4.0
# The share of a value that moves with the weights, in units of their relative movement; below it nothing is seen.
BLIND = 0.01
# Channels that are named.
NAMED = 8
PRECISION = 2.0**-45


def channel_axes(rank: int) -> tuple[int, ...]:
    """Axes along which a value is looked at: NCHW has its channels on 1, NHWC and tokens on the last."""
    return {0: (), 1: (0,), 2: (1,)}.get(rank, (1, rank - 1))


@dataclass(frozen=True)
class Reading:
    """What was measured at one pair.

    Attributes:
        r: the largest ratio.
        axis, channels: where it is above `EQUAL`: the worst first, at most `NAMED`.
        bad: how many such channels there are.
        idle, count: channels that nothing moved (all zero, and no noise), of how many.
        response: movement of the value by that of the weights, relative to both.
        problem: a difference that needs no ratio (shapes, non-finite values), a phrase; '' if there is none.
    """

    r: float
    axis: int
    channels: tuple[int, ...]
    bad: int
    idle: int
    count: int
    response: float
    problem: str = ""


class Tally:
    """Sums of squares of one pair, batch by batch.

    Args:
        unit: u.
        seeds: how many noisy runs there are.
    """

    def __init__(self, unit: float, seeds: int = SEEDS) -> None:
        self.unit = unit
        self.seeds = seeds
        self.sums: dict[int, list[Floats]] = {}  # by axis: of A64, of the error, of A's noise, of B's
        self.problem = ""

    def add(self, exact: Array, found: Array, noisy: list[Array]) -> None:
        """Values of one batch: A64, B_cut and A's noisy ones, all in A's layout."""
        if not exact.size:
            return
        self.problem = self.problem or unlike(exact, found)
        finite = np.isfinite(exact)
        if not self.problem:
            with np.errstate(invalid="ignore"):
                self._sum(0, exact, finite)
                self._sum(1, found - exact, finite)
        for value in noisy:
            self.add_noise(exact, value)

    def add_noise(self, exact: Array, noisy: Array, slope: Array | float = 1.0, of_b: bool = False) -> None:
        """A value of one batch with moved weights; in other coordinates it moves `slope` times as much.

        With `of_b` both values are B's.
        """
        if exact.size and not self.problem:
            with np.errstate(invalid="ignore"):
                self._sum(3 if of_b else 2, slope * (noisy - exact), np.isfinite(exact) & np.isfinite(noisy))

    def _sum(self, place: int, values: Array, mask: Array) -> None:
        squares = np.square(np.where(mask, values, 0.0), dtype=np.float64)
        for axis in channel_axes(values.ndim) or (-1,):
            rows = np.atleast_1d(squares.sum(axis=tuple(n for n in range(values.ndim) if n != axis)))
            sums = self.sums.setdefault(axis, [np.zeros(1)] * 4)
            if sums[place].shape not in (rows.shape, (1,)):  # batches of other sizes along this axis
                rows, sums[place] = np.array([rows.sum()]), np.array([sums[place].sum()])
            sums[place] = sums[place] + rows

    def reading(self, leniency: float = 1.0) -> Reading:
        """The ratio; `leniency` divides it."""
        if self.problem:
            return Reading(float("inf"), 1, (), 0, 0, 0, float("inf"), self.problem)
        worst = Reading(0.0, 1, (), 0, 0, 0, 0.0)
        for axis, sums in self.sums.items():
            width = max(len(rows) for rows in sums)
            sums = [rows if rows.any() else np.zeros(width) for rows in sums]
            if any(len(rows) != width for rows in sums):
                continue
            reading = self._along(axis, sums, leniency)
            if reading.r > worst.r or not worst.count:
                worst = reading
        return worst

    def _along(self, axis: int, sums: list[Floats], leniency: float) -> Reading:
        size, error = np.sqrt(sums[0]), np.sqrt(sums[1])
        noise, theirs = (np.sqrt(rows / max(self.seeds, 1)) for rows in sums[2:])
        alive = size > 0
        typical = float(np.median(noise[alive] / size[alive])) if alive.any() else 0.0
        whole = float(np.sqrt(np.mean(size**2)))
        least = np.full_like(size, PRECISION * whole)
        noise = np.maximum(noise, np.minimum(theirs, LESS_EXACT * noise))
        floor = np.maximum.reduce([noise, 0.5 * typical * size, self.unit * size, least])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(error > 0, error / floor, 0.0) / leniency
        order = np.argsort(-ratio, kind="stable")
        bad = int((ratio > EQUAL).sum())
        moved = float(np.sqrt(np.sum(noise**2)))
        total = float(np.sqrt(np.sum(size**2)))
        return Reading(
            r=float(ratio[order[0]]),
            axis=axis,
            channels=tuple(int(n) for n in order[: min(bad, NAMED)]),
            bad=bad,
            idle=int((~alive & (noise == 0)).sum()),
            count=len(size),
            response=moved / total / (2 * self.unit) if total else 0.0,
        )


def unlike(exact: Array, found: Array) -> str:
    """How two values differ that no number measures, a phrase; '' if they don't. Equal NaN and Inf are equal."""
    if exact.shape != found.shape:
        return f"has shape {list(found.shape)} instead of {list(exact.shape)}"
    if np.isfinite(exact).all() and np.isfinite(found).all():
        return ""
    for what, kind in (("NaN", np.isnan), ("+Inf", np.isposinf), ("-Inf", np.isneginf)):
        one, other = int(kind(exact).sum()), int(kind(found).sum())
        if (kind(exact) != kind(found)).any():
            return f"has {what} in {other} places, A in {one}" if one != other else f"has {what} in other places"
    return ""


def regressed(exact: Array, found: Array) -> tuple[Floats, Floats]:
    """Slope and intercept per channel (axis 1) of found = slope * exact + intercept, by every other sample.

    The others are to confirm it.
    """
    shape = [1, -1, *[1] * (exact.ndim - 2)]
    x, y = (np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)[:, ::2].astype(np.float64) for value in (exact, found))
    mean_x, mean_y = x.mean(axis=1), y.mean(axis=1)
    x, y = x - mean_x[:, None], y - mean_y[:, None]
    variance = (x * x).sum(axis=1)
    slope = np.where(variance > 0, (x * y).sum(axis=1) / np.where(variance > 0, variance, 1), 0)
    return slope.reshape(shape), (mean_y - slope * mean_x).reshape(shape)
