"""Arithmetic between computed values: sums tie scales and add shifts, products multiply scales."""

from __future__ import annotations

import numpy as np

from bnfold.fold.ties import FIXED, Coordinates, Ties, rule
from bnfold.graph import Node, Value


def computed(ties: Ties, node: Node) -> bool:
    """Add, Sub, Mul, Div of two values that are both computed (called by the affine rule)."""
    values = [value for value in node.inputs if value is not None]
    if len(values) != 2 or node.opset < 7 or any(ties.is_constant(value) for value in values):
        return False
    left, right = (ties.of(value) for value in values)
    if left is FIXED and right is FIXED:
        return False
    if node.op in ("Add", "Sub"):
        return _sum(ties, node, [left, right], [1.0, 1.0 if node.op == "Add" else -1.0])
    return _gate(ties, node, left, right, 1 if node.op == "Mul" else -1)


@rule("Sum", "Mean")  # y = w sum x_k:  s equal, t_y = w sum t_k
def sum_of_many(ties: Ties, node: Node) -> bool:
    """Sum and Mean of computed values."""
    values = [value for value in node.inputs if value is not None]
    if not values or len(values) != len(node.inputs) or any(ties.is_constant(value) for value in values):
        return False
    weight = 1.0 if node.op == "Sum" else 1.0 / len(values)
    return _sum(ties, node, [ties.of(value) for value in values], [weight] * len(values))


def _sum(ties: Ties, node: Node, parts: list[Coordinates], weights: list[float]) -> bool:
    """y = sum w_k x_k: the scales are all equal, t_y = sum w_k t_k."""
    try:
        shape = np.broadcast_shapes(*(part.scale.shape for part in parts))
        shift_shape = np.broadcast_shapes(*(part.shift.shape for part in parts))
    except ValueError:
        return False
    scale = max((part.scale for part in parts), key=lambda ids: ids.size)
    scale = np.broadcast_to(scale, shape)
    for part in parts:
        if part.scale is not scale:
            ties.equal_scale(np.broadcast_to(part.scale, shape), scale, node)
    shift = ties.fresh_shift(shift_shape)
    ties.sums.add([shift, *(part.shift for part in parts)], [-1.0, *weights], node.index)
    ranks = [part.rank for part in parts]
    rank = max((r for r in ranks if r is not None), default=None) if None not in ranks else None
    ties.set(node.output(), Coordinates(scale, shift, rank))
    return True


def _gate(ties: Ties, node: Node, left: Coordinates, right: Coordinates, power: int) -> bool:
    """y = u * g, y = u / g: s_y = s_u * s_g^±1, all t = 0."""
    try:
        shape = np.broadcast_shapes(left.scale.shape, right.scale.shape)
    except ValueError:
        return False
    ties.no_shift(left, node)
    ties.no_shift(right, node)
    result = Coordinates(ties.fresh_scale(shape), np.zeros((), np.int64))
    if node.inputs[0] is node.inputs[1]:  # a square
        ties.unit(left, node, sign=1)
    ties.gates.append((node, left, right, result, power))
    ties.set(node.output(), result)
    return True


@rule("Max", "Min")  # max(s (x + t), s (y + t)) = s (max(x, y) + t) for s > 0
def extremum(ties: Ties, node: Node) -> bool:
    """Order is kept by s > 0, with the same s and t on all sides; max(x, 0) is a Relu."""
    values = [value for value in node.inputs if value is not None]
    constants = [value for value in values if ties.is_constant(value)]
    if len(values) == 2 and len(constants) == 1 and _is_zero(ties, constants[0]):
        from bnfold.fold.ops.elementwise import homogeneous

        other = values[0] if constants[0] is values[1] else values[1]
        if other is node.input(0) and node.op == "Max" and homogeneous(ties, node):
            held = ties.of(other)
            ties.set(node.output(), Coordinates(held.scale, held.shift))  # the zero may add axes in front
            return True
    if not values or constants:
        return False
    parts = [ties.of(value) for value in values]
    try:
        shapes = [np.broadcast_shapes(*(ids.shape for ids in kind)) for kind in
                  ([p.scale for p in parts], [p.shift for p in parts])]  # fmt: skip
    except ValueError:
        return False
    first = Coordinates(np.broadcast_to(parts[0].scale, shapes[0]), np.broadcast_to(parts[0].shift, shapes[1]))
    for part in parts[1:]:
        ties.equal_scale(np.broadcast_to(part.scale, shapes[0]), first.scale, node)
        ties.equal_shift(np.broadcast_to(part.shift, shapes[1]), first.shift, node)
    ties.positive(first, node)
    ties.set(node.output(), first)
    return True


def _is_zero(ties: Ties, value: Value) -> bool:
    array = ties.array(value)
    return array is not None and array.size == 1 and float(np.ravel(array)[0]) == 0.0
