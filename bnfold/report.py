"""What a fold did and why, as data: one entry for every BatchNormalization, counts, notices."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

# The schema of `to_dict()`; raised when a field changes its meaning or goes.
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """What became of one BatchNormalization (or of one constant Mul, Add, Sub, Div that went).

    Attributes:
        name: the node's name (its first output where it has none).
        op: its op type.
        scope: '' for the main graph, else the body or function it is in.
        outcome: 'folded', 'reduced' (to an Add or a Mul) or 'kept'.
        route: how it went: 'backward' into what produces its input, 'forward' into what reads its output,
            'both ways'; '' if it stayed.
        into: names of the nodes whose parameters took it in.
        reason: a stable code for what stays, '' else.
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

    @property
    def folded(self) -> tuple[Entry, ...]:
        """The BatchNormalizations that are gone (or reduced to an Add or Mul)."""
        return tuple(e for e in self.entries if e.op == "BatchNormalization" and e.outcome != "kept")

    @property
    def kept(self) -> tuple[Entry, ...]:
        """The BatchNormalizations that stay, each with its reason."""
        return tuple(e for e in self.entries if e.op == "BatchNormalization" and e.outcome == "kept")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "batch_norms": {"before": self.before.batch_norms, "after": self.after.batch_norms},
            "per_channel_ops": {"before": self.before.per_channel_ops, "after": self.after.per_channel_ops},
            "nodes": {"before": self.nodes_before, "after": self.nodes_after},
            "entries": [asdict(entry) | {"into": list(entry.into)} for entry in self.entries],
            "notices": list(self.notices),
        }
