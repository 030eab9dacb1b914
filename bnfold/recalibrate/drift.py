"""How far a BN's statistics were from what its data say, as data: one `Drift` per BN.

A channel is seen as a Gaussian, the old and the new one are compared: by the shift of the mean in old standard
deviations, by the ratio of the deviations, and by the symmetric Kullback-Leibler divergence that holds both,

    J = ((v0 + d²) / v1 + (v1 + d²) / v0) / 2 - 1        v = var + eps, d = difference of the means

0 where nothing changed, 0.5 + 0.5 for a shift by one deviation. Variances count with the BN's epsilon, since that
is what it divides by: two channels that never vary do not differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.recalibrate.moments import Trust

Floats = npt.NDArray[np.float64]

# Of a deviation: a mean that is known worse than that, or two halves of the data that are further apart, are told.
TOLERABLE = 0.1
# Times what chance gives; of a steady trend it is 3.5 (16 blocks), of a step in the middle 4.
BEYOND_CHANCE = 2.0
# A deviation of this part of the mean is the rounding of float32.
CONSTANT = 2.0**-20


@dataclass(frozen=True, eq=False)
class Drift:
    """Old and new statistics of one BN.

    Attributes:
        name: the node's name; of a BN that is applied several times, that of its first use.
        scope: '' for the main graph, else the body or function that it is in.
        channels: their number, C.
        old_mean, old_var: float64, (C,): what the file had.
        new_mean, new_var: float64, (C,): what was measured, as it is stored now.
        count: values that each channel's statistics are made of.
        epsilon: what the BN adds to a variance.
        trust: how far the new statistics can be trusted; None if there was one batch alone.
    """

    name: str
    scope: str
    channels: int
    old_mean: Floats
    old_var: Floats
    new_mean: Floats
    new_var: Floats
    count: int
    epsilon: float = 1e-5
    trust: Trust | None = None

    @property
    def shift(self) -> Floats:
        """How far the mean moved, in old standard deviations: float64, (C,), >= 0."""
        with np.errstate(all="ignore"):
            return np.abs(self.new_mean - self.old_mean) / np.sqrt(self.old_var + self.epsilon)

    @property
    def ratio(self) -> Floats:
        """New standard deviation over the old one: float64, (C,)."""
        with np.errstate(all="ignore"):
            return np.sqrt((self.new_var + self.epsilon) / (self.old_var + self.epsilon))

    @property
    def divergence(self) -> Floats:
        """Symmetric Kullback-Leibler divergence of each channel: float64, (C,)."""
        with np.errstate(all="ignore"):
            old, new = self.old_var + self.epsilon, self.new_var + self.epsilon
            moved = (self.new_mean - self.old_mean) ** 2
            return 0.5 * ((old + moved) / new + (new + moved) / old) - 1

    @property
    def score(self) -> float:
        """`divergence` averaged over the channels: the larger, the staler the old statistics were."""
        return float(self.divergence.mean())

    @property
    def error(self) -> float | None:
        """Standard error of the new means in new standard deviations, root mean square over the channels."""
        return None if self.trust is None else _rms(self.trust.error)

    @property
    def rough(self) -> bool:
        """Whether the means are known badly: there were too few samples."""
        return self.error is not None and self.error > TOLERABLE

    @property
    def trend(self) -> float | None:
        """Half of what the second half of the data differs by from the first, root mean square over the channels."""
        return None if self.trust is None else _rms(self.trust.trend)

    @property
    def unsettled(self) -> bool:
        """Whether the two halves of the data differ, and by more than chance would have it."""
        if self.trust is None:
            return False
        return _rms(self.trust.trend) > max(TOLERABLE, BEYOND_CHANCE * _rms(self.trust.chance))

    @property
    def dead(self) -> int:
        """Channels that never vary in the data, but for rounding: the BN divides them by sqrt(epsilon) alone."""
        return int((self.new_var <= (CONSTANT * self.new_mean) ** 2).sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "name": self.name,
            "scope": self.scope,
            "channels": self.channels,
            "count": self.count,
            "epsilon": self.epsilon,
            "score": self.score,
            "dead": self.dead,
            "error": self.error,
            "trend": self.trend,
            "rough": self.rough,
            "unsettled": self.unsettled,
            "old_mean": self.old_mean.tolist(),
            "old_var": self.old_var.tolist(),
            "new_mean": self.new_mean.tolist(),
            "new_var": self.new_var.tolist(),
            "shift": self.shift.tolist(),
            "ratio": self.ratio.tolist(),
            "standard_error": None if self.trust is None else self.trust.error.tolist(),
        }


def _rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean()))
