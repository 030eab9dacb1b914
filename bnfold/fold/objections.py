"""What a plan must not do: ops that should stay after all, though the algebra would let them go.

They cost more ops than they save, or their removal would have values stored where their type is badly off.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from bnfold.errors import quoted
from bnfold.fold.accept import BOTH, Refusal
from bnfold.fold.account import class_keys
from bnfold.fold.kept import MUL_ADD_RANGE
from bnfold.fold.parameters import Unrepresentable, last_digit, stored, type_of
from bnfold.fold.plan import Plan
from bnfold.fold.ties import Affine, Coordinates, Ties
from bnfold.fold.union_find import Floats
from bnfold.graph import Node

# float16 reaches from 2^-24 to 65504: with scales within 2^8 of 1, activations of the usual size stay far from
# both ends.  The other types need no bound: scales of 2e24 gave errors of 2.5e-6 in float32 (exponents are free).
FLOAT16_SPREAD = 256.0

# A shift of so many times a value's own size (|mean| + standard deviation, as BN has measured them) costs others that
# read the value log2 of it in bits.  121 removed BN of 133 models stay below 3.1; nearly dead channels ask for 10^6.
LARGEST_SHIFT = 8.0


def objections(plan: Plan, largest_shift: float = LARGEST_SHIFT) -> dict[Node, Refusal]:
    """Ops that should stay after all: more Adds than removed ops, or numbers that their type would store badly."""
    return _too_many_adds(plan) | _out_of_range(plan) | _drowned(plan, largest_shift) | _unwritable(plan)


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
    keys_of = {
        op: _shift_keys(ties, ties.of(op.target)) | _shift_keys(ties, ties.of(op.source))
        for op in (plan.decision.accepted if added else ())
    }
    _claim(plan, added, set().union(*keys_of.values()))
    for op, keys in keys_of.items():
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


def _claim(plan: Plan, added: dict[int, set[Node]], claimed: set[int]) -> None:
    """A shift goes on under other unknowns, through sums and through MatMuls that need no Add themselves.

    Enter its Adds under those of the ops that it comes from.
    """
    others = added.keys() - claimed
    if not others:
        return
    rows = plan.ties.sums.shifted_rows()
    for edit in plan.linears:
        if edit.linear.bias_input is None and edit.shift.any() and edit.column_shift.any():
            rows.append(_shift_keys(plan.ties, edit.linear.rows) | _shift_keys(plan.ties, edit.linear.columns))
    for connected in _connected(rows):
        nodes = set().union(*(added[key] for key in connected & others))
        for key in connected & claimed:
            added.setdefault(key, set()).update(nodes)


def _connected(rows: list[set[int]]) -> list[set[int]]:
    """Unions of the rows that lead from one to the other by what they share."""
    union_of: dict[int, set[int]] = {}
    for row in rows:
        near = {id(union): union for key in row if (union := union_of.get(key)) is not None}
        whole = max(near.values(), key=len, default=set())  # the smaller ones go into the largest
        for part in (row, *near.values()):
            if part is not whole:
                whole |= part
                union_of.update(dict.fromkeys(part, whole))
    return list({id(union): union for union in union_of.values()}.values())


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
    return {key for kind, key in class_keys(ties, held) if kind == "shift"}


def _drowned(plan: Plan, largest: float) -> dict[Node, Refusal]:
    """Ops whose shift would drown a value: one that others read too, or one that is stored as neither x nor y.

    A nearly dead channel asks for b / a of a million, and so do two channels of nearly the same a that share a shift.
    """
    found: dict[Node, Refusal] = {}
    shared = [held.shift.ravel() for value, held in plan.ties.coordinates.items() if len(value.readers()) > 1]
    others = np.concatenate([*shared, np.zeros(0, np.int64)])
    for edit in plan.affines:
        if edit.left not in ("", "Mul"):
            continue
        sizes = _measured_sizes(plan, edit.op)
        is_read = bool(np.isin(plan.ties.of(edit.op.source).shift, others).any()) and (sizes is not None or not largest)
        with np.errstate(divide="ignore", invalid="ignore"):
            before, behind = sizes or _natural_sizes(edit.op)
            ratio = np.abs(edit.source[1]) / before
            if not is_read:
                ratio = np.minimum(ratio, np.abs(edit.target[1]) / behind)
            ratio = np.where(edit.op.a != 0, ratio, 0)
        if ratio.max() > (largest if is_read else LARGEST_SHIFT):
            sentence = (
                f"{quoted(edit.op.source.name)} {'is read by others too, and ' if is_read else ''}"
                f"would be stored with a shift {ratio.max():.3g} times its usual size: its last digits would be lost"
            )
            found[edit.op.nodes[0]] = Refusal("precision", edit.op.source.name, sentence)
    return found


def _measured_sizes(plan: Plan, op: Affine) -> tuple[Floats, Floats] | None:
    """|mean| + standard deviation per channel, of what a BN reads, as it has measured them, and of what comes out."""
    norm = op.nodes[0]
    if norm.op != "BatchNormalization":
        return None
    mean, variance = (np.asarray(plan.ties.array(norm.input(k)), np.float64).ravel() for k in (3, 4))
    mean, deviation = (part.reshape(op.steps[0][0].shape) for part in (mean, np.sqrt(np.maximum(variance, 0))))
    return np.abs(mean) + deviation, np.abs(op.a * mean + op.b) + np.abs(op.a) * deviation


def _natural_sizes(op: Affine) -> tuple[Floats, Floats]:
    """The same where nothing has been measured, if y = a x + b is b and what a brings to size one."""
    size = 1 + np.abs(op.b)
    return size / np.abs(op.a), size


def _out_of_range(plan: Plan) -> dict[Node, Refusal]:
    half = any(
        (array := plan.ties.array(edit.linear.weight)) is not None and array.dtype == np.float16
        for edit in plan.linears
    )
    if not half:
        return {}
    found: dict[Node, Refusal] = {}
    for edit in plan.affines:
        if edit.left in ("same", "all", "affine"):
            continue
        scales = np.abs(np.concatenate([np.ravel(edit.source[0]), np.ravel(edit.target[0])]))
        if scales.max() > FLOAT16_SPREAD or scales.min() < 1 / FLOAT16_SPREAD:
            found[edit.op.nodes[0]] = Refusal(
                "float16-range", None,
                f"values would be stored {scales.max():.3g} times as large: float16 has no room for that",
            )  # fmt: skip
    return found


def _unwritable(plan: Plan) -> dict[Node, Refusal]:
    """BN that can't become a Mul and an Add, since the type of their input doesn't hold the constants."""
    found: dict[Node, Refusal] = {}
    for edit in plan.affines:
        if edit.left != "affine":
            continue
        dtype, node = type_of(plan.ties, edit.op), edit.op.nodes[0]
        try:
            for constant in (edit.a, edit.b):
                stored(constant, dtype, node, partial(last_digit, edit.b, dtype))
        except Unrepresentable:
            sentence = f"as a Mul and an Add its constants would overflow or underflow {np.dtype(dtype).name}"
            found[node] = Refusal(MUL_ADD_RANGE, None, sentence)
    return found
