"""Einsum with one constant operand: a linear node of any axes, written by Keras, JAX and hand-made attention.

    bsd,dhk->bshk      rows h, k; columns d                 y[.., h, k] = sum_d W[d, h, k] x[.., d]
    bgi,gio->bgo       rows g, o; columns g, i              one matrix a group, as a MatMul with heads

Labels of the constant that the result has (in the constant's order) are rows, those that x has are columns; one in all
three is both.  What the constant alone has is summed over within it.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from bnfold.fold.ops.layout import full
from bnfold.fold.ops.linear import add_linear, weight_of
from bnfold.fold.ties import Coordinates, Linear, Ties, rule
from bnfold.fold.union_find import Ids
from bnfold.graph import Node, Value

Labels = tuple[str, ...]


@rule("Einsum")
def einsum(ties: Ties, node: Node) -> bool:
    """W' = diag(s_o) W diag(1/s_i) along the labels.  No slot for a bias: an Add follows where one is needed."""
    left, right, output = node.input(0), node.input(1), node.output()
    if len(node.inputs) != 2 or left is None or right is None or output is None:
        return False
    index = 1 if ties.is_constant(right) else 0
    source = right if index == 0 else left
    if ties.is_constant(source):
        return False
    found, rank = weight_of(ties, node, index), ties.rank(source)
    if found is None or rank is None:
        return False
    weight, shape = found
    ranks = (rank, len(shape)) if index else (len(shape), rank)
    terms = read_equation(node.attribute("equation", ""), ranks)
    if terms is None:
        return False
    of_x, of_weight, of_result = terms[1 - index], terms[index], terms[2]
    rows = [axis for axis, label in enumerate(of_weight) if label in of_result]
    columns = [axis for axis, label in enumerate(of_weight) if label in of_x]
    in_order = [label for label in of_result if label in of_weight] == [of_weight[axis] for axis in rows]
    if not columns or not in_order or not set(of_x) <= {*of_weight, *of_result}:  # summed over x alone: a shift counts
        return False
    if not _sizes_agree(ties, source, of_x, dict(zip(of_weight, shape, strict=True))):
        return False
    wanted = [of_weight[axis] for axis in columns]
    sizes = [shape[axis] for axis in columns]
    count = int(np.prod([shape[axis] for axis in rows], dtype=np.int64))
    row_shape = tuple(shape[of_weight.index(label)] if label in of_weight else 1 for label in of_result)
    add_linear(
        ties,
        Linear(
            node=node, source=source, output=output, weight=weight, view=shape,
            row_axes=tuple(rows), column_axes=tuple(columns),
            rows=ties.fresh((count,), len(of_result)), columns=_columns(ties, node, source, of_x, wanted, sizes),
            row_shape=row_shape, bias_input=None,
        ),
    )  # fmt: skip
    return True


def read_equation(equation: str, ranks: tuple[int, int]) -> tuple[Labels, Labels, Labels] | None:
    """The labels of two operands and of the result, `...` spelt out; None for a diagonal, and for what is none."""
    ends, arrow, tail = equation.replace(" ", "").partition("->")
    operands = [_labels(part, rank) for part, rank in zip(ends.split(","), ranks, strict=False)]
    if ends.count(",") != 1 or any(labels is None for labels in operands):
        return None
    left, right = (labels or () for labels in operands)
    if arrow:
        dots = max((sum(label.isdigit() for label in labels) for labels in (left, right)), default=0)
        result = _labels(tail, len(tail.replace("...", "")) + dots * ("..." in tail))
    else:  # all that occur once, in the order of the alphabet, behind those of the dots
        times = Counter(left + right)
        dotted = sorted({label for label in times if label.isdigit()}, key=int, reverse=True)
        result = (*dotted, *sorted(label for label, count in times.items() if count == 1 and not label.isdigit()))
    known = {*left, *right}
    if result is None or len(set(result)) < len(result) or not set(result) <= known:
        return None
    return (left, right, result) if len({*left}) == len(left) and len({*right}) == len(right) else None


def _labels(term: str, rank: int) -> Labels | None:
    """One label an axis; those of `...` are numbers, counted from its end, since that is where shapes align."""
    if not re.fullmatch(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*", term):
        return None
    head, dots, tail = term.partition("...")
    hidden = rank - len(head) - len(tail)
    if hidden < 0 or (hidden and not dots):
        return None
    return (*head, *(str(k) for k in range(hidden, 0, -1)), *tail)


def _sizes_agree(ties: Ties, source: Value, labels: Labels, sizes: dict[str, int]) -> bool:
    """False if x may be longer along an axis where the constant has size 1 and would be repeated."""
    ones = [axis for axis, label in enumerate(labels) if sizes.get(label) == 1]
    dims = ties.dims(source) if ones else None
    return not ones or (dims is not None and all(dims[axis] == 1 for axis in ones))


def _columns(ties: Ties, node: Node, source: Value, labels: Labels, wanted: list[str], sizes: list[int]) -> Coordinates:
    """Flat coordinates of x in the order of the constant's axes, made even along all axes that it has not."""
    rank = len(labels)
    held = ties.even(ties.of(source), [axis - rank for axis in range(rank) if labels[axis] not in wanted], node)
    order = [labels.index(label) for label in wanted]
    others = [axis for axis in range(rank) if axis not in order]

    def flat(ids: Ids) -> Ids:
        wide = full(ids, rank)
        picked = wide.transpose(*order, *others).reshape([wide.shape[axis] for axis in order])
        return np.ravel(np.broadcast_to(picked, sizes))

    return Coordinates(flat(held.scale), flat(held.shift))
