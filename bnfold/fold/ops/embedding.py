"""Embeddings: rows of a constant table are read, Gather(table, ids), and so the table itself takes scale and shift.

    table' = s * (table + t)        along every axis but the one that is read

Nothing is summed here, hence there is nothing a shift could be lost in.  A table that several nodes read stays one: all
of them get the same coordinates, and where one of them is no embedding (the last layer of a language model reads the
transposed table) it stays as it is, since a copy of it would be the largest tensor of the model.
"""

from __future__ import annotations

import math
from dataclasses import replace

from bnfold.fold.ops.affine import MAX_ELEMENTS
from bnfold.fold.ops.linear import add_linear, weight_of
from bnfold.fold.ops.slicing import gather_elements
from bnfold.fold.ties import FIXED, Coordinates, Linear, Ties, rule
from bnfold.graph import Node


@rule("Gather")
def gather(ties: Ties, node: Node) -> bool:
    """Rows of the table are all that it has but the axis of `ids`; a Gather from a computed value takes parts of it."""
    table, ids, output = node.input(0), node.input(1), node.output()
    if table is None or ids is None or output is None or not ties.is_constant(table):
        return gather_elements(ties, node)
    found = None if ties.is_constant(ids) else weight_of(ties, node, 0)
    if found is None:
        return False
    weight, shape = found
    axis = int(node.attribute("axis", 0)) % len(shape)
    places = 0 if axis == 0 else ties.rank(ids)  # axes in front of the row's own need not be known
    rows = (*shape[:axis], *shape[axis + 1 :])
    if len(shape) < 2 or places is None or math.prod(rows) > MAX_ELEMENTS:
        return False
    linear = Linear(
        node=node, source=None, output=output, weight=weight, view=shape,
        row_axes=tuple(k for k in range(len(shape)) if k != axis), column_axes=(),
        rows=ties.fresh((math.prod(rows),)), columns=FIXED,
        row_shape=(*shape[:axis], *(1,) * places, *shape[axis + 1 :]), bias_input=None, table=True,
    )  # fmt: skip
    seen = table.captured or table.is_output or table.outer is not None  # by others than this scope's nodes
    if not seen and len(table.readers()) == 1:
        add_linear(ties, linear)
        return True
    if seen or not all(_embeds(reader, index, axis, len(shape)) for reader, index in table.readers()):
        ties.refused[node] = ("shared-table", "the table is read by others too, which would need a copy of it")
        return False
    _add_shared(ties, linear)
    return True


def _embeds(node: Node, index: int, axis: int, rank: int) -> bool:
    return node.op == "Gather" and index == 0 and int(node.attribute("axis", 0)) % rank == axis


def _add_shared(ties: Ties, linear: Linear) -> None:
    """Enter one of several readers of a table: they share its rows, and so no op behind one is part of it."""
    first = next((row for row in ties.linears if row.table and row.weight is linear.weight), linear)
    ties.linears.append(replace(linear, rows=first.rows))
    scale, shift = (ids.reshape(linear.row_shape) for ids in (first.rows.scale, first.rows.shift))
    ties.set(linear.output, Coordinates(scale, shift))
