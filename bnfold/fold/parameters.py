"""New parameters: computed in float64 from the stored ones, rounded once to the stored type.

Weights are made block by block, when they are written, so that no more than a block is ever held in
float64.  What the stored type can't hold is refused (`Unrepresentable`), never saturated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from bnfold.constants import Array, finfo, unit_roundoff
from bnfold.fold.ties import Affine, Linear, Ties
from bnfold.fold.union_find import RESIDUE, Floats
from bnfold.graph import Node

if TYPE_CHECKING:
    from bnfold.fold.plan import LinearEdit

# Elements of a weight computed at a time, 1 MB of float64: larger blocks leave the processor's cache, and four times
# this took 1.5 times as long.
BLOCK_ELEMENTS = 1 << 17


class Unrepresentable(Exception):
    """A result that the stored type can't hold: `node` has to keep its neighbours' BN."""

    def __init__(self, node: Node, sentence: str) -> None:
        super().__init__(sentence)
        self.node = node
        self.sentence = sentence


def stored(values: Floats, dtype: Any, node: Node, noise: Callable[[], Any]) -> Array:
    """Round float64 values once to the stored type.

    Subnormal results are flushed to zero where that is below the channel's rounding noise (they made a
    VGG five times slower in one report); float16 keeps them, since its hardware does not slow down.

    Args:
        values: what to store.
        dtype: the stored type.
        node: for the refusal.
        noise: gives the absolute rounding noise of each value's channel, broadcastable to values.

    Raises:
        Unrepresentable: overflow, a value that is not finite, or an underflow above the noise.
    """
    limits = finfo(dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        result = values.astype(dtype)
    size = np.abs(values)
    if not size.max(initial=0.0) < limits.largest and not np.isfinite(result).all():
        raise Unrepresentable(node, f"a weight or bias would overflow {np.dtype(dtype).name}")
    if size.min(initial=np.inf) < limits.smallest_normal:
        small = (size < limits.smallest_normal) & (values != 0)
        if dtype != np.float16:
            result[small] = 0
        lost = np.abs(result[small].astype(np.float64) - values[small])
        if small.any() and (lost > np.broadcast_to(noise(), values.shape)[small]).any():
            raise Unrepresentable(node, f"a weight or bias would underflow {np.dtype(dtype).name}")
    return result


def last_digit(values: Floats, dtype: Any) -> float:
    """A last digit of the largest value."""
    return unit_roundoff(dtype) * float(np.abs(values).max())


def type_of(ties: Ties, op: Affine) -> Any:
    """The element type of the op's input; its own constants have it too, except beside a mixed-precision BN."""
    element_type = ties.shapes.element_type(ties.scope, op.source) if op.is_norm else 0
    if element_type:
        return helper.tensor_dtype_to_np_dtype(element_type)
    arrays = (ties.array(value) for node in op.nodes for value in node.inputs[:2])
    return next(array.dtype for array in arrays if array is not None)


def spread(linear: Linear, vector: Floats, axes: tuple[int, ...]) -> Floats:
    """A vector over rows or columns, broadcastable to the weight's view."""
    return vector.reshape([linear.view[axis] if axis in axes else 1 for axis in range(len(linear.view))])


def weight_blocks(edit: LinearEdit, weight: Array, floor: Floats) -> Callable[[], Iterator[Array]]:
    """W' = diag(s_o a) W diag(1 / s_i), block by block in the weight's own order.

    floor: rounding noise of each row's output from elsewhere, broadcastable to the weight's view.
    """
    linear = edit.linear
    viewed = weight.reshape(linear.view)
    factors = [spread(linear, edit.factor, linear.row_axes)]
    if linear.column_axes:
        inverse = 1 / edit.column_scale
        inverse[edit.dead_columns] = 0.0
        factors.append(spread(linear, inverse, linear.column_axes))
    factors = [factor for factor in factors if (factor != 1).any()]
    added = spread(linear, edit.scale * (edit.b + edit.shift), linear.row_axes) if linear.table else None

    def blocks() -> Iterator[Array]:
        for part in parts(linear.view):
            exact = viewed[part].astype(np.float64)
            for factor in factors:
                exact *= factor[clip(part, factor)]
            if added is not None:
                exact += added[clip(part, added)]
            yield stored(exact, weight.dtype, linear.node, partial(row_noise, edit, exact, weight.dtype, floor, part))

    return blocks


def row_noise(edit: LinearEdit, exact: Floats, dtype: Any, floor: Floats, part: tuple[slice, ...]) -> Floats:
    """Rounding noise of the rows that a part of a weight belongs to: a last digit of the largest weight, or `floor`."""
    axes = edit.linear.row_axes
    others = tuple(axis for axis in range(len(edit.linear.view)) if axis not in axes)
    own = unit_roundoff(dtype) * np.abs(exact).max(axis=others, keepdims=True)
    return np.asarray(np.maximum(own, floor[clip(part, floor)]))


def parts(view: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Consecutive parts of an array in C order, cut along its first axis that is not 1."""
    axis = next((k for k, size in enumerate(view) if size > 1), 0)
    step = max(1, BLOCK_ELEMENTS // max(1, math.prod(view[axis + 1 :])))
    for start in range(0, view[axis], step):
        yield (*(slice(None),) * axis, slice(start, start + step))


def clip(part: tuple[slice, ...], array: Floats) -> tuple[slice, ...]:
    """The same part of an array that is broadcast to the one that was cut."""
    return tuple(cut if size > 1 else slice(None) for cut, size in zip(part, array.shape, strict=False))


def shifted(linear: Linear, column_shift: Floats, weight: Array) -> Floats:
    """gain * W t_i for every row, summed over the taps."""
    total = np.zeros([linear.view[axis] for axis in range(len(linear.view)) if axis in linear.row_axes])
    if not linear.column_axes or not column_shift.any():
        return np.ravel(total)
    viewed = weight.reshape(linear.view)
    shift = spread(linear, column_shift, linear.column_axes)
    others = tuple(axis for axis in range(len(linear.view)) if axis not in linear.row_axes)
    whole = np.zeros([size if axis in linear.row_axes else 1 for axis, size in enumerate(linear.view)])
    for part in parts(linear.view):
        block = (viewed[part].astype(np.float64) * shift[clip(part, shift)]).sum(axis=others, keepdims=True)
        whole[clip(part, whole)] += block
    return linear.gain * np.ravel(whole.reshape(total.shape))


def new_bias(edit: LinearEdit, weight: Array, bias: Array | None) -> Floats:
    """s_o * (a * (bias_gain * bias - gain W t_i) + b + t_o), in the shape that the node's bias has or needs.

    Rows lie along the last axis (Conv: (M,); Gemm: whatever its C broadcasts with).
    """
    # With beta = 0 a Gemm's C counts for nothing, not even its shape.
    unused = bias is None or edit.linear.bias_gain == 0
    old = np.zeros(()) if unused else np.asarray(bias, np.float64) * edit.linear.bias_gain
    if edit.linear.node.op in ("Conv", "ConvTranspose"):
        old = old.ravel() if old.ndim else old
    through = shifted(edit.linear, edit.column_shift, weight)
    inner = edit.a * (old - through) + edit.b + edit.shift
    size = np.abs(edit.a) * (np.abs(old) + np.abs(through)) + np.abs(edit.b) + np.abs(edit.shift)
    result = np.where(np.abs(inner) <= RESIDUE * size, 0.0, edit.scale * inner)
    if edit.dead_rows.size:
        constant = edit.scale * (edit.b + edit.shift)
        result = np.where(np.isin(np.arange(len(edit.scale)), edit.dead_rows), constant, result)
    return np.asarray(result, np.float64)
