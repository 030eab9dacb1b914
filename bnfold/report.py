"""What a fold did and why, as data: one entry for every BatchNormalization, counts, notices."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

# The schema of `to_dict()`; raised when a field changes its meaning or goes.
SCHEMA_VERSION = 1

# Why an op stays: stable codes, for scripts; `Entry.sentence` has the case at hand, for people.
REASONS = {
    "training-mode": "it normalises by each batch's own statistics, which no weight can stand for",
    "statistics-read": "its running or saved statistics are read as outputs",
    "dynamic-parameters": "its scale, bias, mean or variance is computed while the model runs",
    "dynamic-weight": "the node in front computes its weight while the model runs",
    "dynamic-bias": "the node in front computes its bias while the model runs",
    "shared-table": "the table of embeddings in front is read by others too, and would have to be copied",
    "quantised-weight": "a weight that is kept as integers has no scale of its own for each channel, or no negatives",
    "quantised-values": "its input is whole steps of one size: no scale of single channels passes, and no shift",
    "invalid-statistics": "var + epsilon is zero or negative, or a parameter is not finite",
    "wrong-shape": "its parameters don't fit its input",
    "wrong-type": "its parameters are no floating-point numbers",
    "unknown-rank": "the rank of its input, and so its channel axis, is unknown",
    "not-chosen": "--only or --skip left it out",
    "sign": "an op that only positive scales pass is in the way of a negative one",
    "zero-padding": "a shift would be wrong where a convolution sees the zeros of its padding",
    "scale-in-the-way": "an op that only its values' own scale passes is in the way",
    "shift-in-the-way": "an op that no such shift passes is in the way",
    "two-scales": "another removed op already asks for another scale of the same value",
    "two-shifts": "another removed op already asks for another shift of the same value",
    "dead-channel": "a channel with scale 0 is a constant that its readers can't take in",
    "fixed-input": "the node in front can't be written in other coordinates",
    "graph-input": "its input comes from outside",
    "graph-output": "what would change is seen outside",
    "fixed": "the values around it are fixed",
    "no-gain": "removing it would add more ops than it takes away",
    "precision": "a value that others read too would lose its last digits",
    "float16-range": "values would leave the range where float16 is at ease",
    "unrepresentable": "a weight or bias would overflow or underflow its type",
    "mul-add-range": "as a Mul and an Add its constants would overflow or underflow their type",
}


@dataclass(frozen=True)
class Entry:
    """What became of one BatchNormalization (or constant Mul, Add, Sub, Div that went; or norm, if these were offered).

    Attributes:
        name: the node's name (its first output where it has none).
        op: its op type.
        scope: '' for the main graph, else the body or function it is in.
        outcome: 'folded', 'reduced' (to an Add, a Mul or both) or 'kept'.
        route: how it went: 'backward' into what produces its input, 'forward' into what reads its output,
            'both ways', or 'merged' together with the branch that it is in; '' if it stayed.
        into: names of the nodes whose parameters took it in.
        reason: why it stays, a code of `REASONS`; '' if it went.
        obstacle: the node in the way, if one is.
        sentence: the same for people.
    """

    name: str
    op: str
    scope: str
    outcome: str
    route: str = ""
    into: tuple[str, ...] = ()
    reason: str = ""
    obstacle: str | None = None
    sentence: str = ""


@dataclass(frozen=True)
class Merge:
    """One linear node in place of several: parallel branches, or nodes in a row.

    Attributes:
        name: the node that is left, which was one of them.
        op: its op type.
        scope: '' for the main graph, else the body or function it is in.
        parts: names of the nodes that it stands for, its own included.
        multiply_adds: before and after.
        per_image: whether they are those of one image; else of one position of the output, since its size is unknown.
        weight_bytes: of parameters, before and after.
        nodes: before and after.
    """

    name: str
    op: str
    scope: str
    parts: tuple[str, ...]
    multiply_adds: tuple[int, int]
    per_image: bool
    weight_bytes: tuple[int, int]
    nodes: tuple[int, int]


@dataclass(frozen=True)
class Counts:
    """How many ops that only scale and shift channels a model has."""

    batch_norms: int
    arithmetic: int  # Mul, Add, Sub, Div by a constant; an Add that is a MatMul's bias too

    @property
    def per_channel_ops(self) -> int:
        """All of them."""
        return self.batch_norms + self.arithmetic


@dataclass(frozen=True)
class FoldReport:
    """Everything a fold has to tell."""

    entries: tuple[Entry, ...]
    before: Counts
    after: Counts
    nodes_before: int
    nodes_after: int
    notices: tuple[str, ...] = field(default=())
    merges: tuple[Merge, ...] = field(default=())

    @property
    def folded(self) -> tuple[Entry, ...]:
        """The BatchNormalizations that are gone (or reduced to Add or Mul)."""
        return tuple(e for e in self.entries if e.op == "BatchNormalization" and e.outcome != "kept")

    @property
    def kept(self) -> tuple[Entry, ...]:
        """The BatchNormalizations that stay, each with its reason."""
        return tuple(e for e in self.entries if e.op == "BatchNormalization" and e.outcome == "kept")

    @property
    def norms(self) -> tuple[Entry, ...]:
        """LayerNormalization and its kin, if they were to be folded: 'folded', if scale and bias are 1 and 0 now."""
        return tuple(e for e in self.entries if e.op.endswith("Normalization") and e.op != "BatchNormalization")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "batch_norms": {"before": self.before.batch_norms, "after": self.after.batch_norms},
            "per_channel_ops": {"before": self.before.per_channel_ops, "after": self.after.per_channel_ops},
            "norms": {"before": len(self.norms), "after": sum(e.outcome != "folded" for e in self.norms)},
            "nodes": {"before": self.nodes_before, "after": self.nodes_after},
            "merges": [asdict(merge) for merge in self.merges],
            "entries": [asdict(entry) | {"into": list(entry.into)} for entry in self.entries],
            "notices": list(self.notices),
        }
