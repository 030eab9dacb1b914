"""Elementwise functions that commute with a scale: f(s x) = s f(x).  All of them need t = 0 on both sides."""

from __future__ import annotations

from bnfold.fold.ties import Coordinates, Ties, rule
from bnfold.graph import Node


@rule("Relu", "LeakyRelu", "Abs")  # f(s x) = s f(x) for s > 0
def homogeneous(ties: Ties, node: Node) -> bool:
    """The same coordinates on both sides, s > 0, t = 0."""
    source = node.input(0)
    if source is None:
        return False
    held = ties.of(source)
    ties.positive(held, node)
    ties.no_shift(held, node)
    ties.set(node.output(), held)
    return True


@rule("PRelu")  # max(x, 0) + slope * min(x, 0): homogeneous if the slope does not change
def prelu(ties: Ties, node: Node) -> bool:
    """As Relu, with a constant slope of whatever shape."""
    return ties.is_constant(node.input(1)) and homogeneous(ties, node)


@rule("Clip")  # min(max(x, 0), inf) is Relu
def clip(ties: Ties, node: Node) -> bool:
    """A Clip at [0, inf) is a Relu; other bounds are points in x's own units."""
    low, high = node.attribute("min"), node.attribute("max")
    if node.opset >= 11:
        bounds = [node.input(k) for k in (1, 2)]
        arrays = [ties.array(bound) for bound in bounds]
        if any(array is None and bound is not None for array, bound in zip(arrays, bounds, strict=True)):
            return False
        low, high = (None if array is None else float(array) for array in arrays)
    return low == 0 and (high is None or high == float("inf")) and homogeneous(ties, node)


@rule("Tanh", "Erf", "Sin", "Tan", "Asin", "Atan", "Sinh", "Asinh", "Atanh", "Softsign")  # f(-x) = -f(x)
def odd(ties: Ties, node: Node) -> bool:
    """Odd functions let a sign through: s is +1 or -1, the same on both sides; t = 0."""
    source = node.input(0)
    if source is None:
        return False
    held = ties.of(source)
    ties.unit(held, node)
    ties.no_shift(held, node)
    ties.set(node.output(), held)
    return True


@rule("Neg")  # -(s (x + t)) = s (-x - t)
def negate(ties: Ties, node: Node) -> bool:
    """The same scale, the shift negated."""
    source = node.input(0)
    if source is None:
        return False
    held = ties.of(source)
    shift = ties.fresh_shift(held.shift.shape)
    ties.equal_shift(shift, held.shift, node, -1.0)
    ties.set(node.output(), Coordinates(held.scale, shift, held.rank))
    return True
