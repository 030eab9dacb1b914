"""From a decision to a frozen plan: every unknown gets a value, every node its new parameters.

Nothing is changed here: a plan is data, which can be checked (`objections`), printed and carried out (`rewrite`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.constants import unit_roundoff
from bnfold.fold.accept import BOTH, SCALE, SHIFT, Decision
from bnfold.fold.dead import Dead, DeadColumns, DeadRows
from bnfold.fold.kept import MUL_ADD_RANGE
from bnfold.fold.parameters import shifted
from bnfold.fold.roots import choose_roots, rows_of
from bnfold.fold.ties import Affine, Coordinates, Linear, Step, Ties
from bnfold.fold.union_find import Floats, Ids
from bnfold.graph import Scope, Value

# A sum of shifts this small beside its terms is the rounding error of one that cancelled.
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class LinearEdit:
    """New parameters of a linear node, as float64 vectors over its rows and columns.

        y' = scale * (a * (gain W x + bias) + b + shift),   x = x' / column_scale - column_shift

    dead_rows: rows that become the constant `b + shift` alone; dead_columns: columns that become 0.
    offset: what a node without a bias would have to add, b + shift - a W column_shift; 0 where that is rounding.
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
    offset: Floats

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
    def keeps_add(self) -> bool:
        """True if the node's bias is the one Add (or Sub) behind it, and that stays as it is."""
        chain = self.linear.chain
        return bool(
            chain is not None and len(chain.nodes) == 1 and chain.nodes[0].op in ("Add", "Sub") and self.b.any()
            and self.linear.bias_input is None and not self.linear.table
            and (self.factor == 1).all() and not self.shift.any() and not self.column_shift.any()
        )  # fmt: skip

    @property
    def changes_bias(self) -> bool:
        """False if the bias stays to the bit."""
        return not self.keeps_add and bool(
            (self.factor != 1).any() or self.b.any() or self.shift.any() or self.column_shift.any()
            or self.dead_rows.size
        )  # fmt: skip

    @property
    def needs_bias(self) -> bool:
        """True if the node has to add something, whatever its bias was."""
        return bool(self.offset.any())

    @property
    def makes_add(self) -> bool:
        """True if it has to add something and has no input for that: an Add follows."""
        return self.linear.bias_input is None and not self.linear.table and self.needs_bias


@dataclass(frozen=True, eq=False)
class AffineEdit:
    """What becomes of an affine op: y' = a * x' + b in the new coordinates.

    left: '' if it is removed, 'Add' or 'Mul' if that much is left of it, 'all' if it stays with new parameters,
    'affine' if it is a BN that is written as Mul and Add, 'same' if it stays untouched.
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
        if self.left == "same":
            return tuple(node.op for node in self.op.nodes)
        if self.left == "all" and self.op.is_norm:
            return ("BatchNormalization",)
        if (self.a == -1).all() and self.b.any():
            return ("Sub",)  # b - x
        return tuple(op for op, needed in (("Mul", (self.a != 1).any()), ("Add", self.b.any())) if needed)


@dataclass(frozen=True, eq=False)
class StepEdit:
    """What a constant is multiplied by."""

    step: Step
    factor: Floats


@dataclass(frozen=True)
class Plan:
    """All edits of a scope, and the map of every value that has coordinates: v' = s * (v + t)."""

    scope: Scope
    linears: tuple[LinearEdit, ...]
    affines: tuple[AffineEdit, ...]
    steps: tuple[StepEdit, ...]
    maps: dict[str, tuple[Floats, Floats]]
    arbitrary: frozenset[str]  # values with dead channels downstream of a removed op: no relation holds there
    decision: Decision = field(repr=False)
    ties: Ties = field(repr=False)


def make_plan(ties: Ties, decision: Decision, write_out: bool = False) -> Plan:
    """Choose all roots, then read off every edit.

    Args:
        ties: of the scope.
        decision: which ops go.
        write_out: whether a BN that stays becomes a Mul and an Add.
    """
    choose_roots(ties, decision)
    values = _Values(ties)
    dead = [entry for entries in decision.dead.values() for entry in entries]
    return Plan(
        scope=ties.scope,
        linears=tuple(_linear_edit(values, ties, linear, dead) for linear in ties.linears),
        affines=tuple(_affine_edit(values, ties, op, decision, write_out) for op in ties.affines),
        steps=tuple(StepEdit(step, values.factor(step)) for step in ties.steps),
        maps={value.name: values.map(held) for value, held in ties.coordinates.items()},
        arbitrary=frozenset(_arbitrary(decision)),
        decision=decision,
        ties=ties,
    )


class _Values:
    """All unknowns, read off the solver at once."""

    def __init__(self, ties: Ties) -> None:
        self.scale = ties.scale.values(np.arange(ties.scale.count))
        self.shift = ties.shift.values(np.arange(ties.shift.count))

    def map(self, held: Coordinates) -> tuple[Floats, Floats]:
        """(s, t) in the shape of the ids."""
        return self.scale[held.scale], self.shift[held.shift]

    def factor(self, step: Step) -> Floats:
        """The scale of a value whose channels agree, or have an element of the constant each."""
        scale = self.scale[step.held.scale]
        return scale if (scale != scale.flat[0]).any() else scale.flat[:1].reshape(())


def _linear_edit(values: _Values, ties: Ties, linear: Linear, dead: list[Dead]) -> LinearEdit:
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
    dead_rows = np.concatenate(rows)
    weight = ties.array(linear.weight)
    assert weight is not None
    seen = a * shifted(linear, column_shift, weight)
    seen[dead_rows] = 0.0
    offset = b + shift - seen
    offset[np.abs(offset) <= ROUNDING * (np.abs(b) + np.abs(shift) + np.abs(seen))] = 0.0
    return LinearEdit(
        linear, a, b, scale, shift, column_scale, column_shift, dead_rows, np.concatenate(columns), offset
    )


def _affine_edit(values: _Values, ties: Ties, op: Affine, decision: Decision, write_out: bool) -> AffineEdit:
    (s_x, t_x), (s_y, t_y) = (values.map(ties.of(value)) for value in (op.source, op.target))
    # y' = s_y (a (x' / s_x - t_x) + b + t_y)
    a = s_y * op.a / s_x
    b = s_y * (op.b + t_y - op.a * t_x)
    takes_scale, takes_shift = op.absorbs
    mode = decision.accepted.get(op)
    if mode is None:  # what its ties rule out is left by rounding alone
        a, b = a if takes_scale else op.a, b if takes_shift else np.zeros_like(op.b)
    left = {BOTH: "", SCALE: "Add", SHIFT: "Mul", None: "all"}[mode]
    if left == "Mul" and np.abs(a - 1).max() < _unit(ties, op):
        left = ""  # it would be stored as 1
    if left == "all" and write_out and op.is_norm and ties.barred.get(op.nodes[0], ("",))[0] != MUL_ADD_RANGE:
        return AffineEdit(op, "affine", a, b, (s_x, t_x), (s_y, t_y))
    edit = AffineEdit(op, left, a, b, (s_x, t_x), (s_y, t_y))
    still = all((part == start).all() for part, start in ((s_x, 1), (t_x, 0), (s_y, 1), (t_y, 0)))
    if mode is None and still and len(edit.ops_left) >= len(op.nodes):
        return replace(edit, left="same")
    return edit


def _unit(ties: Ties, op: Affine) -> float:
    """Half a unit in the last place of 1, in the type of the op's constants."""
    arrays = [ties.array(value) for node in op.nodes for value in node.inputs]
    return max(unit_roundoff(array.dtype) for array in arrays if array is not None)


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
