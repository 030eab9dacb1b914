"""Dead channels: a = 0, y = b whatever x is.  No scale of x or y can express that, but weights can.

    backward   the producer's row becomes 0 and its bias what y is: if only this BN reads it
    forward    the readers' columns become 0 and W b goes into their biases: if all are linear,
               possibly behind a Relu (its constant is relu(b)); what is stored then is arbitrary

Affine ops that only one linear node feeds never come here: they are part of that node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnfold.fold.ties import FIXED, Affine, Linear, Ties
from bnfold.fold.union_find import Floats, Ids
from bnfold.graph import Node, Value

# Ops that hand a channel on as it is, and so a constant too.  (AveragePool: unless padding is counted.)
HANDED_ON = frozenset(
    """Identity Dropout Cast Transpose Reshape Flatten Squeeze Unsqueeze MaxPool GlobalMaxPool
    GlobalAveragePool Expand""".split()
)


@dataclass(frozen=True, eq=False)
class DeadRows:
    """Rows of a linear node that turn into the constant that y is, in y's coordinates."""

    linear: Linear
    rows: Ids  # row numbers
    scale: Ids  # of y, for each row
    shift: Ids
    constant: Floats  # y


@dataclass(frozen=True, eq=False)
class DeadColumns:
    """Columns of a linear node whose input is a constant, whatever is stored."""

    linear: Linear
    columns: Ids  # column numbers
    constant: Floats


Dead = DeadRows | DeadColumns


def resolve(ties: Ties, op: Affine) -> tuple[list[Dead], Node | None]:
    """What to do about the dead channels of an op; or the node in the way."""
    held, behind = ties.of(op.source), ties.of(op.target)
    shape = np.broadcast_shapes(held.scale.shape, behind.scale.shape, behind.shift.shape, op.a.shape, op.b.shape)
    dead = np.broadcast_to(op.a == 0, shape)
    constants = np.broadcast_to(op.b, shape)[dead]
    scale, shift = (np.broadcast_to(ids, shape)[dead] for ids in (behind.scale, behind.shift))
    found, obstacle = _forward(ties, op.target, dict(zip(scale.tolist(), constants.tolist(), strict=True)))
    if obstacle is None:
        return found, None
    before = np.broadcast_to(held.scale, shape)
    if np.isin(before[~dead], before[dead]).any():  # a channel that is dead in some places only
        return [], obstacle
    rows = _backward(ties, op, before[dead], scale, shift, constants)
    return ([rows], None) if rows is not None else ([], obstacle)


def _forward(ties: Ties, value: Value, constants: dict[int, float]) -> tuple[list[Dead], Node | None]:
    """Follow dead ids down to linear readers."""
    found: list[Dead] = []
    by_source: dict[Value, list[Linear]] = {}
    for linear in ties.linears:
        if linear.source is not None:
            by_source.setdefault(linear.source, []).append(linear)
    pending = [(value, constants)]
    while pending:
        value, constants = pending.pop()
        readers = [node for node, _ in value.readers()]
        if value.is_output or value.captured:
            return [], value.producer
        for node in readers:
            output = node.output()
            reading = [row for row in by_source.get(value, ()) if row.node is node]
            if reading:
                linear = reading[0]
                ids = linear.columns.scale
                if readers.count(node) > 1 or not _all_handed_on(ties, value, ids):
                    return [], node
                columns = np.flatnonzero(np.isin(ids, np.fromiter(constants, np.int64)))
                content = np.array([constants[int(i)] for i in ids[columns]])
                if linear.padded and content.any():
                    return [], node
                found.append(DeadColumns(linear, columns, content))
            elif output is not None and node.op in HANDED_ON and _all_handed_on(ties, value, ties.of(output).scale):
                pending.append((output, constants))
            elif output is not None and node.op in ("Relu", "LeakyRelu"):
                slope = 0.0 if node.op == "Relu" else float(node.attribute("alpha", 0.01))
                pending.append((output, {i: max(c, 0.0) + slope * min(c, 0.0) for i, c in constants.items()}))
            else:
                return [], node
    return found, None


def _all_handed_on(ties: Ties, value: Value, ids: Ids) -> bool:
    """True if a node has handed on all ids of its input, and not fixed them or made one stand for several."""
    return bool(np.isin(ties.of(value).scale, ids).all())


def _backward(
    ties: Ties, op: Affine, ids: Ids, scale: Ids, shift: Ids, constants: Floats
) -> DeadRows | None:
    """The rows that feed the dead channels, if the way from a linear node to this op is private."""
    linear = _private_producer(ties, op.source)
    if linear is None:
        return None
    chosen: dict[int, tuple[int, int, float]] = {}
    for i, s, t, c in zip(ids.tolist(), scale.tolist(), shift.tolist(), constants.tolist(), strict=True):
        if chosen.setdefault(i, (s, t, c)) != (s, t, c):
            return None
    rows = np.flatnonzero(np.isin(linear.rows.scale, ids))
    if not rows.size:
        return None
    picked = [chosen[int(i)] for i in linear.rows.scale[rows]]
    return DeadRows(
        linear, rows, np.array([p[0] for p in picked]), np.array([p[1] for p in picked]),
        np.array([p[2] for p in picked]),
    )  # fmt: skip


def _private_producer(ties: Ties, value: Value | None) -> Linear | None:
    """The linear node that feeds a value by a way that nobody else reads from."""
    while value is not None and value.is_private and len(value.readers()) == 1 and value.producer is not None:
        linear = next((row for row in ties.linears if (row.chain.target if row.chain else row.output) is value), None)
        if linear is not None or value.producer.op not in HANDED_ON:
            return linear if linear is not None and linear.rows is not FIXED else None
        above = value.producer.input(0)
        if above is None or not _all_handed_on(ties, above, ties.of(value).scale):
            return None
        value = above
    return None
