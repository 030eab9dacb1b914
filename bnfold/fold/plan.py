"""From a decision to a frozen plan: every unknown gets a value, every node its new parameters.

The ties leave freedom: a class that nothing made known may have any root.  The tensors of a class
vote, so that as many as possible stay as they are; ties go to the output of the removed op, since
weights then change upstream, where they would have anyway.  Shifts that only a waiting sum
determines (its slack) are not chosen but solved for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.errors import quoted
from bnfold.fold.accept import BOTH, SCALE, SHIFT, Decision, Refusal
from bnfold.fold.dead import Dead, DeadColumns, DeadRows
from bnfold.fold.ties import Affine, Coordinates, Linear, Ties
from bnfold.fold.union_find import Floats, Ids, UnionFind
from bnfold.graph import Node, Scope, Value

# Votes, in tensors: one that would stay as it is counts 1, the output of a removed op decides ties, and
# an Add that would have to be created outweighs any of them.
BIAS_VOTE, OUTPUT_VOTE = 16.0, 0.5

# float16 reaches from 2^-24 to 65504: with scales within 2^8 of 1, activations of the usual size stay far from
# both ends.  The other types need no bound: scales of 2e24 gave errors of 2.5e-6 in float32 (exponents are free).
FLOAT16_SPREAD = 256.0

# A shift of so many times a value's own size (|mean| + standard deviation, as BN has measured them) costs others that
# read the value log2 of it in bits.  121 removed BN of 133 models stay below 3.1; nearly dead channels ask for 10^6.
LARGEST_SHIFT = 32.0


@dataclass(frozen=True, eq=False)
class LinearEdit:
    """New parameters of a linear node, as float64 vectors over its rows and columns.

        y' = scale * (a * (gain W x + bias) + b + shift),   x = x' / column_scale - column_shift

    dead_rows: rows that become the constant `b + shift` alone; dead_columns: columns that become 0.
    """

    linear: Linear
    a: Floats
    b: Floats
    scale: Floats
    shift: Floats
    column_scale: Floats
    column_shift: Floats
    dead_rows: Ids
    dead_columns: Ids

    @property
    def factor(self) -> Floats:
        """What each row of W is multiplied by (0 for dead rows)."""
        factor = self.scale * self.a
        factor[self.dead_rows] = 0.0
        return factor

    @property
    def changes_weight(self) -> bool:
        """False if W stays to the bit."""
        return bool((self.factor != 1).any() or (self.column_scale != 1).any() or self.dead_columns.size)

    @property
    def changes_bias(self) -> bool:
        """False if the bias stays to the bit."""
        return bool(
            (self.factor != 1).any() or self.b.any() or self.shift.any() or self.column_shift.any()
            or self.dead_rows.size
        )  # fmt: skip

    @property
    def needs_bias(self) -> bool:
        """True if the node has to add something, whatever its bias was."""
        return bool((self.b + self.shift).any() or self.column_shift.any() or self.dead_rows.size)


@dataclass(frozen=True, eq=False)
class AffineEdit:
    """What becomes of an affine op: y' = a * x' + b in the new coordinates.

    left: '' if it is removed, 'Add' or 'Mul' if that much is left of it, 'all' if it stays with new parameters,
    'same' if it stays untouched.
    """

    op: Affine
    left: str
    a: Floats
    b: Floats
    source: tuple[Floats, Floats]  # (scale, shift) of x
    target: tuple[Floats, Floats]  # and of y

    @property
    def ops_left(self) -> tuple[str, ...]:
        """The ops that stand for this one afterwards, in order."""
        if self.left in ("", "Add", "Mul"):
            return (self.left,) if self.left else ()
        if self.left == "same" or any(node.op == "BatchNormalization" for node in self.op.nodes):
            return tuple(node.op for node in self.op.nodes) if self.left == "same" else ("BatchNormalization",)
        if (self.a == -1).all() and self.b.any():
            return ("Sub",)  # b - x
        return tuple(op for op, needed in (("Mul", (self.a != 1).any()), ("Add", self.b.any())) if needed)


@dataclass(frozen=True)
class Plan:
    """All edits of a scope, and the map of every value that has coordinates: v' = s * (v + t)."""

    scope: Scope
    linears: tuple[LinearEdit, ...]
    affines: tuple[AffineEdit, ...]
    maps: dict[str, tuple[Floats, Floats]]
    arbitrary: frozenset[str]  # values with dead channels downstream of a removed op: no relation holds there
    decision: Decision = field(repr=False)
    ties: Ties = field(repr=False)


def make_plan(ties: Ties, decision: Decision) -> Plan:
    """Choose all roots, then read off every edit."""
    _choose_scales(ties, decision)
    _choose_shifts(ties, decision)
    values = _Values(ties)
    dead = [entry for entries in decision.dead.values() for entry in entries]
    return Plan(
        scope=ties.scope,
        linears=tuple(_linear_edit(values, linear, dead) for linear in ties.linears),
        affines=tuple(_affine_edit(values, ties, op, decision) for op in ties.affines),
        maps={value.name: values.map(held) for value, held in ties.coordinates.items()},
        arbitrary=frozenset(_arbitrary(decision)),
        decision=decision,
        ties=ties,
    )


# -- choice of roots --------------------------------------------------------------------------------


def _choose_scales(ties: Ties, decision: Decision) -> None:
    system = ties.scale
    system.compress()
    ids, weights = _voters(ties, decision, "scale")
    root, alpha, _ = system.find(ids)
    wanted = 1 / alpha
    decided = system.sign[root] != 0
    wanted = np.where(decided, np.abs(wanted) * system.sign[root], wanted)
    free = np.isnan(system.known[root])
    _elect(system, root[free], wanted[free], weights[free])
    undecided = ~free & ~decided  # magnitude known, sign not: odd functions
    _elect(system, root[undecided], np.sign(wanted[undecided]) * system.known[root[undecided]], weights[undecided])
    rest = np.arange(system.count)
    rest = rest[(system.parent[rest] == rest) & np.isnan(system.known[rest])]
    if rest.size:
        system.pin(rest, 1.0)
    unsigned = np.arange(system.count)
    unsigned = unsigned[(system.parent[unsigned] == unsigned) & (system.sign[unsigned] == 0)]
    if unsigned.size:
        system.pin(unsigned, sign=1)


def _choose_shifts(ties: Ties, decision: Decision) -> None:
    system = ties.shift
    system.compress()
    ids, weights = _voters(ties, decision, "shift")
    values = np.zeros(len(ids))
    extra = [
        (linear.rows.shift, -np.ravel(np.broadcast_to(rows_of(linear, linear.chain.b), (linear.rows.shift.size,))))
        for linear in ties.linears
        if linear.bias_input is None and not linear.table and linear.chain is not None
    ]
    for rows, value in extra:
        ids = np.concatenate([ids, rows])
        values = np.concatenate([values, value])
        weights = np.concatenate([weights, np.full(rows.size, BIAS_VOTE)])
    root, alpha, beta = system.find(ids)
    slack = ties.sums.slack()
    free = np.isnan(system.known[root]) & ~np.isin(root, slack)
    _elect(system, root[free], ((values - beta) / alpha)[free], weights[free])
    rest = np.arange(system.count)
    rest = rest[(system.parent[rest] == rest) & np.isnan(system.known[rest])]
    rest = rest[~np.isin(rest, slack)]
    if rest.size:
        system.pin(rest, 0.0)
    ties.sums.solve()
    rest = np.arange(system.count)
    rest = rest[(system.parent[rest] == rest) & np.isnan(system.known[rest])]
    if rest.size:
        system.pin(rest, 0.0)


def _voters(ties: Ties, decision: Decision, kind: str) -> tuple[Ids, Floats]:
    """Ids whose tensors would rather stay as they are, each with its weight."""
    ids: list[Ids] = []
    weights: list[Floats] = []

    def vote(held: Coordinates, weight: float) -> None:
        flat = np.unique(getattr(held, kind))
        ids.append(flat)
        weights.append(np.full(flat.size, weight))

    for linear in ties.linears:
        absent = linear.bias_input is None and not linear.table
        vote(linear.rows, BIAS_VOTE if kind == "shift" and absent and linear.chain is None else 1.0)
        vote(linear.columns, 1.0)
    for op in ties.affines:
        if op in decision.accepted:
            vote(ties.of(op.target), OUTPUT_VOTE)
        else:
            vote(ties.of(op.source), 1.0)
            vote(ties.of(op.target), 1.0)
    if not ids:
        return np.zeros(0, np.int64), np.zeros(0)
    return np.concatenate(ids), np.concatenate(weights)


def _elect(system: UnionFind, root: Ids, wanted: Floats, weight: Floats) -> None:
    """Give each root the value with the most votes; equal values up to rounding count together."""
    if not root.size:
        return
    key = np.round(wanted, 12 - np.floor(np.log10(np.abs(wanted).max() + 1e-300)).astype(int).clip(-12, 12))
    order = np.lexsort((key, root))
    root, wanted, weight, key = root[order], wanted[order], weight[order], key[order]
    starts = np.flatnonzero(np.r_[True, (root[1:] != root[:-1]) | (key[1:] != key[:-1])])
    votes = np.add.reduceat(weight, starts)
    best = np.lexsort((-votes, root[starts]))
    first = best[np.unique(root[starts][best], return_index=True)[1]]
    chosen = starts[first]
    if system.signed:
        system.pin(root[chosen], np.abs(wanted[chosen]), sign=np.sign(wanted[chosen]))
    else:
        system.pin(root[chosen], wanted[chosen])


# -- edits ------------------------------------------------------------------------------------------


class _Values:
    """All unknowns, read off the solver at once."""

    def __init__(self, ties: Ties) -> None:
        self.scale = ties.scale.values(np.arange(ties.scale.count))
        self.shift = ties.shift.values(np.arange(ties.shift.count))

    def map(self, held: Coordinates) -> tuple[Floats, Floats]:
        """(s, t) in the shape of the ids."""
        return self.scale[held.scale], self.shift[held.shift]


def rows_of(linear: Linear, array: Floats) -> Floats:
    """A chain's constant as a vector over rows (leading axes of size 1 beyond the rows' own are dropped)."""
    shape = linear.row_shape
    trimmed = array.reshape(array.shape[max(array.ndim - len(shape), 0) :])
    return np.array(np.broadcast_to(trimmed, shape), np.float64).ravel()


def _linear_edit(values: _Values, linear: Linear, dead: list[Dead]) -> LinearEdit:
    count = int(np.prod([linear.view[axis] for axis in linear.row_axes]))
    scale, shift = values.map(linear.rows)
    if scale.size == 1:  # an output that stays as it is
        scale, shift = np.full(count, scale.item()), np.full(count, shift.item())
    column_scale, column_shift = values.map(linear.columns)
    a = rows_of(linear, linear.chain.a) if linear.chain else np.ones(count)
    b = rows_of(linear, linear.chain.b) if linear.chain else np.zeros(count)
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for entry in dead:
        if entry.linear is not linear:
            continue
        if isinstance(entry, DeadColumns):
            columns.append(entry.columns)
            column_scale[entry.columns] = 1.0
            column_shift[entry.columns] = -entry.constant
        elif isinstance(entry, DeadRows):
            rows.append(entry.rows)
            scale[entry.rows] = values.scale[entry.scale]
            shift[entry.rows] = values.shift[entry.shift]
            b[entry.rows] = entry.constant
    return LinearEdit(
        linear, a, b, scale, shift, column_scale, column_shift, np.concatenate(rows), np.concatenate(columns)
    )


def _affine_edit(values: _Values, ties: Ties, op: Affine, decision: Decision) -> AffineEdit:
    (s_x, t_x), (s_y, t_y) = (values.map(ties.of(value)) for value in (op.source, op.target))
    # y' = s_y (a (x' / s_x - t_x) + b + t_y)
    a = s_y * op.a / s_x
    b = s_y * (op.b + t_y - op.a * t_x)
    takes_scale, takes_shift = op.absorbs
    mode = decision.accepted.get(op)
    if mode is None:  # what its ties rule out is left by rounding alone
        a, b = a if takes_scale else op.a, b if takes_shift else np.zeros_like(op.b)
    left = {BOTH: "", SCALE: "Add", SHIFT: "Mul", None: "all"}[mode]
    edit = AffineEdit(op, left, a, b, (s_x, t_x), (s_y, t_y))
    still = all((part == start).all() for part, start in ((s_x, 1), (t_x, 0), (s_y, 1), (t_y, 0)))
    if mode is None and still and len(edit.ops_left) >= len(op.nodes):
        return replace(edit, left="same")
    return edit


def _arbitrary(decision: Decision) -> set[str]:
    """Names of values that hold dead channels of removed ops."""
    names: set[str] = set()
    for op, entries in decision.dead.items():
        columns = [entry for entry in entries if isinstance(entry, DeadColumns)]
        if not entries:
            continue
        names.add(op.target.name)
        names.add(op.source.name)
        pending: list[Value] = [op.target] if columns else []
        readers = {entry.linear.node for entry in columns}
        while pending:
            for node, _ in pending.pop().readers():
                output = node.output()
                if node not in readers and output is not None and output.name not in names:
                    names.add(output.name)
                    pending.append(output)
        for entry in entries:
            if isinstance(entry, DeadRows):
                names.update(_below(entry.linear, op))
    return names


def _below(linear: Linear, op: Affine) -> set[str]:
    """Names on the private way from a linear node to an op."""
    names = set()
    value: Value | None = op.source
    while value is not None and value.producer is not None:
        names.add(value.name)
        if value.producer is linear.node or (linear.chain and value is linear.chain.target):
            break
        value = value.producer.input(0)
    return names


# -- what a plan must not do --------------------------------------------------------------------------


def objections(plan: Plan) -> dict[Node, Refusal]:
    """Ops that should stay after all: more Adds than removed ops, or values that their type would store badly."""
    return _too_many_adds(plan) | _out_of_range(plan) | _drowned(plan)


def _too_many_adds(plan: Plan) -> dict[Node, Refusal]:
    """Removed ops whose shift makes more linear nodes without a bias slot need an Add than ops go."""
    ties = plan.ties
    added: dict[int, set[Node]] = {}
    for edit in plan.linears:
        linear = edit.linear
        if linear.bias_input is not None or linear.table or not edit.needs_bias:
            continue
        if linear.chain is not None and linear.chain.b.any():
            continue  # the Add takes the place of an op of its own
        keys = _shift_keys(ties, linear.rows) if (edit.b + edit.shift).any() else set()
        keys |= _shift_keys(ties, linear.columns) if edit.column_shift.any() else set()
        for key in keys:
            added.setdefault(key, set()).add(linear.node)
    asked: dict[Affine, set[Node]] = {}
    for op in plan.decision.accepted if added else ():
        keys = _shift_keys(ties, ties.of(op.target)) | _shift_keys(ties, ties.of(op.source))
        nodes = {node for key in keys for node in added.get(key, ())}
        if nodes:
            asked[op] = nodes
    gone = {op: len(op.nodes) - (plan.decision.accepted[op] != BOTH) for op in asked}
    for group in _groups(asked):
        nodes = set().union(*(asked[op] for op in group))
        if len(nodes) <= sum(gone[op] for op in group):
            continue
        worst = max(group, key=lambda op: len(asked[op]) - gone[op])
        first = min(asked[worst], key=lambda node: node.index)
        refusal = plan.decision.refused.get(worst) or Refusal(
            "no-gain", first.name,
            f"its shift would need {len(asked[worst])} new Adds behind MatMuls that have no bias, to remove "
            f"{gone[worst]} ops",
        )  # fmt: skip
        return {worst.nodes[0]: refusal}  # one at a time: the next plan may need no more
    return {}


def _groups(asked: dict[Affine, set[Node]]) -> list[list[Affine]]:
    """Ops that ask for Adds behind the same nodes, directly or by way of others."""
    groups: list[tuple[set[Node], list[Affine]]] = []
    for op, nodes in asked.items():
        near = [group for group in groups if group[0] & nodes]
        groups = [group for group in groups if group not in near]
        groups.append((nodes.union(*(g[0] for g in near)), [op, *(other for g in near for other in g[1])]))
    return [group for _, group in groups]


def _shift_keys(ties: Ties, held: Coordinates) -> set[int]:
    """The ids of a value's shifts and their classes, but for the identity's."""
    ids = np.ravel(held.shift)
    identity = int(ties.shift.find(np.zeros(1, np.int64))[0][0])
    return set(np.concatenate([np.unique(ids), np.unique(ties.shift.find(ids)[0])]).tolist()) - {0, identity}


def _drowned(plan: Plan) -> dict[Node, Refusal]:
    """Ops whose shift would drown a value that others read too: a nearly dead channel asks for b / a of a million."""
    found: dict[Node, Refusal] = {}
    for edit in plan.affines:
        norm = edit.op.nodes[0]
        if norm.op != "BatchNormalization" or edit.left not in ("", "Mul") or len(edit.op.source.readers()) < 2:
            continue
        mean, variance = (np.asarray(plan.ties.array(norm.input(k)), np.float64).ravel() for k in (3, 4))
        usual = (np.abs(mean) + np.sqrt(np.maximum(variance, 0))).reshape(edit.op.steps[0][0].shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(edit.op.a != 0, np.abs(edit.source[1]) / usual, 0)
        if ratio.max() > LARGEST_SHIFT:
            sentence = (
                f"{quoted(edit.op.source.name)} is read by others too, and would be stored with a shift "
                f"{ratio.max():.3g} times its usual size: its last digits would be lost"
            )
            found[norm] = Refusal("precision", edit.op.source.name, sentence)
    return found


def _out_of_range(plan: Plan) -> dict[Node, Refusal]:
    half = any(
        (array := plan.ties.array(edit.linear.weight)) is not None and array.dtype == np.float16
        for edit in plan.linears
    )
    if not half:
        return {}
    found: dict[Node, Refusal] = {}
    for edit in plan.affines:
        if edit.left in ("same", "all"):
            continue
        scales = np.abs(np.concatenate([np.ravel(edit.source[0]), np.ravel(edit.target[0])]))
        if scales.max() > FLOAT16_SPREAD or scales.min() < 1 / FLOAT16_SPREAD:
            found[edit.op.nodes[0]] = Refusal(
                "float16-range", None,
                f"values would be stored {scales.max():.3g} times as large: float16 has no room for that",
            )  # fmt: skip
    return found
