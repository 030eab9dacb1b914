"""Computed values that are rounded to steps: one scale for all channels passes, and goes into the size of the steps.

    QuantizeLinear     q = clip(round(x / scale) + zero_point)      x' = s x:  scale' = s scale, the same q
    DequantizeLinear   y = scale (q - zero_point)                   y' = s y:  scale' = s scale

    QONNX's Quant      y = scale (q - zero_point), of the same q

    Mul                y = c x, where c is larger: c' = s c, as the scale of a MatMulInteger's channels, c, times x's

A scale for each channel would ask for steps of each channel, which integer kernels don't have for activations; a
shift would have to be a whole number of steps, which no BatchNormalization's is.  Both are refused.
"""

from __future__ import annotations

import numpy as np

from bnfold.constants import DEQUANTIZE, QUANTIZE, is_floating
from bnfold.fold.ops.affine import MAX_ELEMENTS
from bnfold.fold.ties import IDENTITY, Coordinates, Limit, Step, Ties, rule
from bnfold.graph import Node
from bnfold.qonnx import QUANT

CODE = "quantised-values"
SENTENCE = "its values are whole steps of one size in all channels: no scale of single channels passes, and no shift"


@rule(*QUANTIZE)
def quantize(ties: Ties, node: Node) -> bool:
    """One scale for all elements, s > 0, t = 0; the integers stay."""
    source = node.input(0)
    if source is None or ties.is_constant(source) or source not in ties.coordinates:
        return False
    return _enter(ties, node, ties.of(source))


@rule(*QUANT)
def quant(ties: Ties, node: Node) -> bool:
    """As both in one: the scale that comes in goes out."""
    source = node.input(0)
    if source is None or ties.is_constant(source) or source not in ties.coordinates:
        return False
    held = ties.of(source)
    if not _enter(ties, node, held):
        return False
    ties.set(node.output(), Coordinates(np.ravel(held.scale)[:1].reshape(()), IDENTITY, held.rank))
    return True


@rule(*DEQUANTIZE)
def dequantize(ties: Ties, node: Node) -> bool:
    """One scale for all elements, s > 0, t = 0, whatever the integers are made of."""
    source, output = node.input(0), node.output()
    if source is None or output is None or ties.is_constant(source):
        return False
    held = Coordinates(ties.fresh_scale(()), IDENTITY)
    if not _enter(ties, node, held):
        return False
    ties.set(output, held)
    return True


def outer_product(ties: Ties, node: Node) -> bool:
    """A Mul by a constant that makes x larger (called by the affine rule): it can't go, but takes any scale."""
    index = next((k for k in (0, 1) if ties.is_constant(node.input(k))), None)
    if node.op != "Mul" or node.opset < 7 or index is None or ties.is_constant(node.input(1 - index)):
        return False
    array = ties.array(node.input(index))
    if array is None or not is_floating(array) or not 1 < array.size <= MAX_ELEMENTS:
        return False
    ties.fix(node.input(1 - index), node)
    held = Coordinates(ties.fresh_scale(array.shape), IDENTITY)
    ties.steps.append(Step(node, index, held))
    ties.set(node.output(), held)
    return True


def _enter(ties: Ties, node: Node, held: Coordinates) -> bool:
    """Note that a node's steps take a scale; False if they are no constant of one positive size."""
    steps = node.input(1)
    array = ties.array(steps)
    fits = array is not None and array.size == 1 and is_floating(array)
    if array is None or not fits or not 0 < float(array.ravel()[0]) < np.inf:
        ties.refused[node] = CODE, SENTENCE
        return False
    flat = np.ravel(held.scale)
    ties.equal_scale(flat, np.broadcast_to(flat[:1], flat.shape), node)
    ties.positive(held, node)
    ties.no_shift(held, node)
    ties.steps.append(Step(node, 1, held))
    for kind in ("value", "sign"):
        ties.limits.append(Limit(node, kind, flat, CODE, SENTENCE))
    return True

