"""What requantising did, as data: one entry for every pair, one for every output."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bnfold.requantize.pairs import Steps


@dataclass(frozen=True)
class Rounding:
    """How a pair of QuantizeLinear and DequantizeLinear rounds.

    Attributes:
        step: the distance of two values that it lets through (the scale).
        zero_point: the integer that stands for 0.
        noise: what it adds to the values, root mean square over theirs, as BatchNormalization leaves them.
    """

    step: float
    zero_point: int
    noise: float


def rounding(steps: Steps, noise: float) -> Rounding:
    """As plain numbers."""
    return Rounding(float(steps.step), int(steps.zero_point), noise)


@dataclass(frozen=True)
class Requantized:
    """A pair that a BatchNormalization went through.

    Attributes:
        name: of its QuantizeLinear.
        value: what it rounds.
        before: how it rounded.
        after: how it rounds; None if it is gone.
    """

    name: str
    value: str
    before: Rounding
    after: Rounding | None


@dataclass(frozen=True)
class OutputChange:
    """How far an output moved; each distance is a root mean square, over that of the output without rounding.

    Attributes:
        name: of the output.
        change: from the original's.
        rounding_before: the original's, from what it is without rounding of activations.
        rounding_after: the result's, from the same.
        same_class: of how many samples the largest score is that of the same class; None where it has no classes.
    """

    name: str
    change: float
    rounding_before: float
    rounding_after: float
    same_class: int | None


@dataclass(frozen=True)
class Requantization:
    """What became of the rounding that was in the way of BatchNormalization.

    Attributes:
        samples: how many the steps were measured on.
        pairs: those that changed, in the model's order.
        outputs: how far they moved.
        compared: on how many samples: the same ones, or those that were held out.
    """

    samples: int
    pairs: tuple[Requantized, ...]
    outputs: tuple[OutputChange, ...]
    compared: int

    @property
    def gone(self) -> tuple[Requantized, ...]:
        """The pairs that are gone, since what follows rounds, or since a merge took them in."""
        return tuple(pair for pair in self.pairs if pair.after is None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "samples": self.samples,
            "pairs": [asdict(pair) for pair in self.pairs],
            "outputs": [asdict(output) for output in self.outputs],
            "compared": self.compared,
        }
