"""The result of comparing two models, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bnfold.verify.signature import Signature

EQUAL = "equal"
ROUNDING = "rounding-scale difference"
DIFFERENT = "different"
UNKNOWN = "cannot tell"

# The schema of `to_dict()`; raised when a field changes its meaning or goes.
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SegmentReport:
    """One segment: what lies between a value and the paired values before it.

    Attributes:
        value, value_b: the value's names in A and B.
        node, op: what makes it in B.
        basis: how the pair was found: 'value', 'output', 'name', 'coordinates' (A's up to scale and shift per channel).
        r: by how much it is off, in units of A's own rounding noise.
        axis, channels, bad, count: the channels above the limit (the worst first), how many they are, of how many.
        idle: channels that nothing moved on these inputs.
        native: it was run in the models' own types, since it has no float64 form.
        problem: a difference that no number measures, a phrase.
        batch_norms: of A's part of it.
    """

    value: str
    value_b: str
    node: str
    op: str
    basis: str
    r: float
    axis: int
    channels: tuple[int, ...]
    bad: int
    count: int
    idle: int
    native: bool
    problem: str
    batch_norms: tuple[str, ...]


@dataclass(frozen=True)
class OutputReport:
    """One output, in the figures that people know, from a run of both models in their own types.

    Attributes:
        name, name_b: in A and B.
        max_abs, max_rel: largest difference, and relative to the largest value of A's.
        rms_rel: rms of the difference relative to that of A's.
        sqnr_db: the same in decibels; None if there is no difference.
        cosine: of the angle between both; None if one is zero.
        argmax: share of positions whose largest element is at the same index; None without an axis for it.
        differing, ties: of values that are no floats: elements that differ, how many of them in float64 are ties of
            the scores.
    """

    name: str
    name_b: str
    max_abs: float = 0.0
    max_rel: float = 0.0
    rms_rel: float = 0.0
    sqnr_db: float | None = None
    cosine: float | None = None
    argmax: float | None = None
    differing: int | None = None
    ties: int = 0


@dataclass(frozen=True)
class Comparison:
    """What `verify` found.

    Attributes:
        verdict: 'equal', 'rounding-scale difference', 'different' or 'cannot tell'.
        reason: why, a sentence.
        signature: inputs and outputs side by side.
        first: the first segment that differs, in the order of B's nodes; None if none does, or it isn't known.
        segments: all of them, in that order.
        outputs: the figures that people know; empty if the models couldn't be run in their own types.
        notes: what else there is to know, sentences.
        inputs: what the models were fed, a phrase.
        settings: seed, providers and versions.
    """

    verdict: str
    reason: str
    signature: Signature
    first: SegmentReport | None
    segments: tuple[SegmentReport, ...]
    outputs: tuple[OutputReport, ...]
    notes: tuple[str, ...]
    inputs: str
    settings: dict[str, Any]

    @property
    def equal(self) -> bool:
        """Whether either model may stand for the other, but for rounding."""
        return self.verdict in (EQUAL, ROUNDING)

    @property
    def worst(self) -> float:
        """The largest r; 0 if nothing was measured."""
        return max((segment.r for segment in self.segments if segment.basis != "coordinates"), default=0.0)

    def exit_code(self, strict: bool = False) -> int:
        """0 equal (or a rounding-scale difference, unless `strict`), 1 different, 3 cannot tell."""
        return {EQUAL: 0, ROUNDING: int(strict), DIFFERENT: 1, UNKNOWN: 3}[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}
