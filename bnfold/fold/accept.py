"""Which affine ops go, and what each refusal ran into.

One op after the other is offered to the solver: it goes if its two equations contradict nothing,
else it stays and is a cut.  A refused offer leaves no trace.  The order matters, and none is always
the best: topological, reverse, and those first that the first order refused are tried, and each
region of the graph (ops that share unknowns) gets the order that leaves fewest of its ops.  Ops that
only one linear node feeds never compete: they became part of it when its ties were stated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.constants import DEQUANTIZE
from bnfold.errors import quoted
from bnfold.fold.dead import Dead, resolve
from bnfold.fold.kept import Kept, blocked_values, stays_blocked
from bnfold.fold.ties import FIXED, OUTPUT, Affine, Limit, Linear, Ties
from bnfold.fold.union_find import Conflict, distinct
from bnfold.graph import Node
from bnfold.qonnx import QUANT

BOTH, SCALE, SHIFT = "both", "scale", "shift"  # what of an op goes

_SLOWER = {
    SCALE: "; its scale alone could go (--kept reduce), but ONNX Runtime is slower with the Add that this leaves",
    SHIFT: "; its shift alone could go (--kept reduce), but ONNX Runtime is slower with the Mul that this leaves",
}


@dataclass(frozen=True)
class Refusal:
    """Why an op stays: a stable code, the node in the way, a sentence."""

    code: str
    obstacle: str | None
    sentence: str


@dataclass
class Decision:
    """What became of the affine ops of a scope that no linear node absorbed, and of norms if they were offered."""

    accepted: dict[Affine, str] = field(default_factory=dict)  # op -> BOTH, SCALE or SHIFT
    refused: dict[Affine, Refusal] = field(default_factory=dict)
    dead: dict[Affine, list[Dead]] = field(default_factory=dict)
    norms: dict[Linear, str] = field(default_factory=dict)  # as accepted
    norms_refused: dict[Linear, Refusal] = field(default_factory=dict)  # also where a part of it goes


def accept(ties: Ties, kept: Kept = "reduce") -> Decision:
    """Decide on all affine ops of the scope; the solver is left in the state of the decision.

    Args:
        ties: all ties of the scope.
        kept: what becomes of a BN that can't go whole.
    """
    ops = ties.affines
    trial = _Run(ties)
    trial.offer_all(ops)
    if trial.decision.refused and len(ops) > 1:
        orders = [ops, ops[::-1], sorted(ops, key=lambda op: op not in trial.decision.refused)]
        outcomes = [set(trial.decision.accepted)]
        trial.undo()
        regions = _regions(ties)
        for order in orders[1:]:
            trial = _Run(ties)
            trial.offer_all(order)
            outcomes.append(set(trial.decision.accepted))
            trial.undo()
        trial = _Run(ties)
        trial.offer_all(_best_order(regions, orders, outcomes))
    trial.offer_parts(kept)
    return trial.decision


def _best_order(regions: dict[Affine, int], orders: list[list[Affine]], outcomes: list[set[Affine]]) -> list[Affine]:
    """Each region in the order that removes most of it; the first of them where several do."""
    gain: dict[int, list[int]] = {}
    for op, region in regions.items():
        gains = gain.setdefault(region, [0] * len(orders))
        for number, accepted in enumerate(outcomes):
            gains[number] += _worth(op) * (op in accepted)
    choice = {region: gains.index(max(gains)) for region, gains in gain.items()}
    return [op for number, order in enumerate(orders) for op in order if choice[regions[op]] == number]


def _worth(op: Affine) -> int:
    """How many ops it leaves if it stays: a chain with a BN becomes one BN."""
    return 1 if op.is_norm else sum(op.absorbs)


def _regions(ties: Ties) -> dict[Affine, int]:
    """A number for each op; ops share it if a chain of shared, undecided unknowns leads from one to the other."""
    owner: dict[tuple[str, int], int] = {}
    group = list(range(len(ties.affines)))

    def top(index: int) -> int:
        while group[index] != index:
            group[index] = group[group[index]]
            index = group[index]
        return index

    for index, op in enumerate(ties.affines):
        for name, system in (("scale", ties.scale), ("shift", ties.shift)):
            for value in (op.source, op.target):
                roots = distinct(system.find(np.ravel(getattr(ties.of(value), name)))[0])
                roots = roots[np.isnan(system.known[roots])]
                for root in roots.tolist():
                    first = owner.setdefault((name, root), index)
                    group[top(index)] = top(first)
    for shared in ties.sums.linked_roots():
        owners = [top(owner[("shift", root)]) for root in shared if ("shift", root) in owner]
        for other in owners[1:]:
            group[top(other)] = top(owners[0])
    return {op: top(index) for index, op in enumerate(ties.affines)}


class _Run:
    """One order of offers, which can be undone as a whole."""

    def __init__(self, ties: Ties) -> None:
        self.ties = ties
        self.decision = Decision()
        self._marks = ties.scale.mark(), ties.shift.mark()
        self._logs: list[list[tuple[int, tuple[int, ...] | None]]] = []

    def undo(self) -> None:
        """Leave no trace."""
        self.ties.scale.rollback(self._marks[0])
        self.ties.shift.rollback(self._marks[1])
        for log in reversed(self._logs):
            self.ties.sums.undo(log)

    def offer_all(self, ops: Iterable[Affine]) -> None:
        """Offer each op whole."""
        for op in ops:
            barred = self.ties.barred.get(op.nodes[0])
            refusal = Refusal(barred[0], None, barred[1]) if barred else self._offer(op, BOTH)
            if refusal is None:
                self.decision.accepted[op] = BOTH
            else:
                self.decision.refused[op] = refusal

    def offer_parts(self, kept: Kept) -> None:
        """Where not both can go, the scale alone may (then an Add is left), or the shift (then a Mul is left)."""
        blocked = blocked_values(self.ties.scope) if kept == "auto" and self.decision.refused else set()
        for op in list(self.decision.refused):
            if op.nodes[0] in self.ties.barred or (op.a == 0).any() or op.nodes[0].opset < 7:
                continue
            if not any(op.absorbs) or not _worth_a_part(op) or (op.is_norm and kept == "keep"):
                continue
            marks = self.ties.scale.mark(), self.ties.shift.mark()
            part = next((part for part in (SCALE, SHIFT) if self._offer(op, part) is None), None)
            if part is not None and stays_blocked(op, blocked):
                self._retract(marks)
                refusal = self.decision.refused[op]
                self.decision.refused[op] = replace(refusal, sentence=refusal.sentence + _SLOWER[part])
            elif part is not None:
                self.decision.accepted[op] = part

    def _retract(self, marks: tuple[int, int]) -> None:
        """Leave no trace of the last offer, which was accepted."""
        self.ties.scale.rollback(marks[0])
        self.ties.shift.rollback(marks[1])
        self.ties.sums.undo(self._logs.pop())

    def _offer(self, op: Affine, part: str) -> Refusal | None:
        ties = self.ties
        dead: list[Dead] = []
        if part == BOTH and (op.a == 0).any():
            dead, obstacle = resolve(ties, op)
            if obstacle is not None:
                count = int((op.a == 0).sum())
                return Refusal(
                    "dead-channel", obstacle.name,
                    f"{count} of its channels are constant (scale 0), which {quoted(obstacle.name)} can't take in",
                )  # fmt: skip
        marks = ties.scale.mark(), ties.shift.mark()
        conflict, system = self._tie(op, part)
        if conflict is None:
            conflict, log = ties.sums.propagate()
            system = "shift"
            if conflict is None:
                self._logs.append(log)
                self.decision.dead[op] = dead
                return None
            ties.sums.undo(log)
        ties.scale.rollback(marks[0])
        ties.shift.rollback(marks[1])
        return explain(ties, op, conflict, system)

    def _tie(self, op: Affine, part: str) -> tuple[Conflict | None, str]:
        """s_x = a * s_y  and  t_y = a * t_x - b, on the live channels."""
        ties = self.ties
        held, behind = ties.of(op.source), ties.of(op.target)
        if part != SHIFT:
            arrays = np.broadcast_arrays(held.scale, behind.scale, op.a)
            live = arrays[2] != 0
            before, after, a = (array[live] for array in arrays)
            conflict = ties.scale.unite(before, after, a, tag=op.nodes[0].index)
            if conflict is not None:
                return conflict, "scale"
        if part != SCALE:
            arrays = np.broadcast_arrays(held.shift, behind.shift, op.a, op.b)
            live = arrays[2] != 0
            before, after, a, b = (array[live] for array in arrays)
            conflict = ties.shift.unite(after, before, a, -b, tag=op.nodes[0].index)
            if conflict is not None:
                return conflict, "shift"
        return None, ""


def _worth_a_part(op: Affine) -> bool:
    """A BN becomes one Add or Mul, a chain becomes shorter; a single Mul or Add has no other part."""
    return len(op.nodes) > 1 or op.nodes[0].op == "BatchNormalization"


def explain(ties: Ties, op: Affine, conflict: Conflict, system: str) -> Refusal:
    """A refusal in words: what is in the way in front of the op, and behind it."""
    own = {node.index for node in op.nodes}
    limit = _limit(ties, op, conflict, next(iter(_obstacles(ties, own, conflict)), None), system)
    if limit is not None:
        name = f"{limit.node.op} {quoted(limit.node.name)}"
        return Refusal(limit.code, limit.node.name, f"{name} can't take it in: {limit.sentence}")
    behind = in_the_way(ties, own, conflict, system)
    if ties.of(op.source) is not FIXED:
        return behind
    producer = op.source.producer
    if producer is None:
        sentence = f"its input {quoted(op.source.name)} comes from outside"
        return Refusal("graph-input", op.source.name, f"{sentence}; behind it {behind.sentence}")
    code, reason = ties.refused.get(producer, ("fixed-input", f"{producer.op} can't be written in other coordinates"))
    sentence = f"{producer.op} {quoted(producer.name)} in front of it can't take it in ({reason})"
    return Refusal(code, producer.name, f"{sentence}; behind it {behind.sentence}")


def _limit(ties: Ties, op: Affine, conflict: Conflict, obstacle: Node | None, system: str) -> Limit | None:
    """The integers that are in the way: right in front of an op, or if nothing else is."""
    of_kind = [limit for limit in ties.limits if limit.kind == conflict.kind]
    if op.source.producer is not None and op.source.producer.op in DEQUANTIZE | QUANT:
        return next((limit for limit in ties.limits if limit.node is op.source.producer), None)
    if system != "scale":
        return None
    if obstacle is not None or not of_kind:
        return next((limit for limit in of_kind if limit.node is obstacle), None)
    own = [np.ravel(ties.of(value).scale) for value in (op.source, op.target)]
    roots = ties.scale.find(np.concatenate(own))[0]
    roots = roots[np.isnan(ties.scale.known[roots])]
    return next((limit for limit in of_kind if np.isin(ties.scale.find(limit.scale)[0], roots).any()), None)


def in_the_way(ties: Ties, own: set[int], conflict: Conflict, system: str) -> Refusal:
    """What a conflict ran into behind nodes of these numbers."""
    obstacles = _obstacles(ties, own, conflict)
    if obstacles:
        return _refusal(ties, obstacles, conflict, system)
    if OUTPUT in conflict.tags:
        return Refusal("graph-output", None, "what would change is seen outside: an output, or a body that reads it")
    return Refusal("fixed", None, "the values around it are fixed")


def _obstacles(ties: Ties, own: set[int], conflict: Conflict) -> list[Node]:
    """The nodes that made known what a conflict ran into, but for these numbers."""
    tags = [tag for tag in dict.fromkeys(conflict.tags) if tag >= 0 and tag not in own]
    return [node for tag in tags if (node := ties.node_of(tag)) is not None]


def _refusal(ties: Ties, obstacles: list[Node], conflict: Conflict, system: str) -> Refusal:
    """The refusal for what has made both sides of the op known: padding first, since only the shift runs into it."""
    padded = {row.node for row in ties.linears} if system == "shift" else set()
    obstacle, *others = sorted(obstacles, key=lambda node: node not in padded)
    name = f"{obstacle.op} {quoted(obstacle.name)}"
    if conflict.kind == "sign":
        sentence = f"{name} lets only positive scales through, {conflict.count} channels need a negative one"
        return Refusal("sign", obstacle.name, sentence)
    if obstacle.op == "BatchNormalization" or any(obstacle in other.nodes for other in ties.affines):
        return Refusal(f"two-{system}s", obstacle.name, f"{name} already asks for another {system} of the same value")
    besides = f"; nor does one pass {others[0].op} {quoted(others[0].name)}" if others else ""
    if obstacle in padded:
        sentence = f"{name} pads with zeros: a shift would be wrong at the border{besides}"
        return Refusal("zero-padding", obstacle.name, sentence)
    return Refusal(f"{system}-in-the-way", obstacle.name, f"no such {system} passes {name}{besides}")
