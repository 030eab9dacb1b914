"""Linear nodes with a constant weight: they take any scale, and a shift where no border is in the way.

With output map (s_o, t_o) and input map (s_i, t_i), y = W x + b becomes

    W' = diag(s_o) W diag(1/s_i)        b' = s_o * (b + t_o - W t_i)      (W t_i summed over the taps)

Affine ops that only this node feeds become part of it at once: y = a * (W x + b) + c is as linear.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from bnfold.constants import Array, is_floating
from bnfold.fold.ops.affine import read_chain
from bnfold.fold.quantised import CODE, kept_as_integers, read_bias, read_quantised, restrict
from bnfold.fold.ties import Coordinates, Linear, Ties, rule
from bnfold.graph import Node, Value

DYNAMIC = "the weight is computed while the model runs"


def add_linear(ties: Ties, linear: Linear) -> None:
    """Enter a linear node: absorb the affine ops that only it feeds, set the output's coordinates."""
    chain = read_chain(ties, linear.output, linear.rows.rank or 0, linear.row_shape)
    if is_dequantised(ties, linear.weight):
        quantised = read_quantised(ties, linear.weight)
        assert not isinstance(quantised, str)  # `weight_of` has read it
        quantised, chain = restrict(ties, linear, quantised, chain)
        linear = replace(linear, quantised=quantised)
    bias = None if linear.bias_input is None else linear.node.input(linear.bias_input)
    if bias is not None and is_dequantised(ties, bias):
        linear = replace(linear, quantised_bias=read_bias(ties, bias))
    if chain is not None:
        linear = replace(linear, chain=chain)
        ties.absorbed.update(chain.nodes)
    ties.linears.append(linear)
    held = Coordinates(
        linear.rows.scale.reshape(linear.row_shape), linear.rows.shift.reshape(linear.row_shape), linear.rows.rank
    )
    ties.set(chain.target if chain else linear.output, held)


def is_dequantised(ties: Ties, value: Value) -> bool:
    """True if a constant is kept as integers behind another op, a DequantizeLinear or one of QONNX's."""
    return ties.constants.tensor(value) is None and ties.constants.quantiser(value) is not None


def weight_of(
    ties: Ties, node: Node, index: int, *, integers: bool = False
) -> tuple[Value, tuple[int, ...]] | None:
    """A constant, floating weight and its shape; None (with the reason noted) if it is none.

    integers: whether it may be kept as integers, with a scale that can be changed.
    """
    value = node.input(index)
    if value is None:
        return None
    array = ties.array(value)
    if array is None:
        ties.refused[node] = _not_evaluated(ties, value)
        return None
    if not is_floating(array) or array.size == 0:
        return None
    if is_dequantised(ties, value):
        found = read_quantised(ties, value)
        if not integers or isinstance(found, str):
            ties.refused[node] = (CODE, found if isinstance(found, str) else kept_as_integers("weight", found.node))
            return None
    return value, tuple(array.shape)


def _not_evaluated(ties: Ties, value: Value) -> tuple[str, str]:
    """Why a weight is no constant: something in it isn't, or it is kept as integers that aren't known."""
    maker = ties.constants.quantiser(value)
    if maker is None or not all(ties.is_constant(given) for given in maker.inputs if given is not None):
        return "dynamic-weight", DYNAMIC
    found = read_quantised(ties, value)
    return CODE, found if isinstance(found, str) else "the weight is kept as more integers than are evaluated"


def constant_bias(ties: Ties, node: Node, index: int, allowed: Any, *, integers: bool = False) -> bool:
    """True if the node has no bias, or one that is constant and of an allowed shape.

    integers: whether it may be kept as integers.
    """
    value = node.input(index)
    if value is None:
        return True
    array = ties.array(value)
    if array is None:
        ties.refused[node] = ("dynamic-bias", "the bias is computed while the model runs")
        return False
    if is_dequantised(ties, value) and not integers:
        ties.refused[node] = (CODE, kept_as_integers("bias", ties.constants.quantiser(value)))
        return False
    return is_floating(array) and bool(allowed(array))


def columns_of(ties: Ties, node: Node, value: Value, axis: int, size: int, rank: int | None) -> Coordinates | None:
    """Flat input coordinates along one axis (from the end), made even along all others."""
    held = ties.of(value)
    width = max(held.scale.ndim, held.shift.ndim, rank or 0)
    held = ties.even(held, [-k for k in range(1, width + 1) if -k != axis], node)
    flat = []
    for ids in (held.scale, held.shift):
        along = ids.shape[axis] if ids.ndim >= -axis else 1
        if along not in (1, size):
            return None
        flat.append(np.broadcast_to(np.ravel(ids) if ids.size > 1 else ids.reshape(1), (size,)))
    return Coordinates(flat[0], flat[1])


@rule("Conv")
def conv(ties: Ties, node: Node) -> bool:
    """Rows: output channels.  Columns: input channels; their shift must be 0 under zero padding.

    W is (M, C/group, kernel): seen as (group, M/group, C/group, taps).
    """
    found = weight_of(ties, node, 1, integers=True)
    source, output = node.input(0), node.output()
    if found is None or source is None or output is None or ties.is_constant(source):
        return False
    weight, shape = found
    group, rank = int(node.attribute("group", 1)), len(shape)
    if rank < 3 or group < 1 or shape[0] % group:
        return False
    channels = shape[1] * group
    if not constant_bias(ties, node, 2, lambda bias: bias.size == shape[0], integers=True):
        return False
    columns = columns_of(ties, node, source, 1 - rank, channels, rank)
    if columns is None:
        return False
    padded = _pads(node, shape[2:])
    if padded:  # the border sees taps times 0, not times t
        ties.no_shift(columns, node)
    add_linear(
        ties,
        Linear(
            node=node, source=source, output=output, weight=weight,
            view=(group, shape[0] // group, shape[1], math.prod(shape[2:])),
            row_axes=(0, 1), column_axes=(0, 2),
            rows=ties.fresh((shape[0],), rank), columns=columns,
            row_shape=(1, shape[0]) + (1,) * (rank - 2), bias_input=2, padded=padded,
        ),
    )  # fmt: skip
    return True


def _pads(node: Node, kernel: tuple[int, ...]) -> bool:
    """True if some output element may see padding."""
    mode = node.attribute("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):  # pads what the kernel overhangs
        return any(size > 1 for size in kernel)
    return mode != "VALID" and any(int(pad) != 0 for pad in node.attribute("pads", ()))


@rule("ConvTranspose")
def conv_transpose(ties: Ties, node: Node) -> bool:
    """As Conv with rows and columns exchanged in W, (C, M/group, kernel): seen as (group, C/group, M/group, taps).

    Which taps an output element sees depends on its position, unless kernel = stride = 1: else t_i = 0.
    """
    found = weight_of(ties, node, 1, integers=True)
    source, output = node.input(0), node.output()
    if found is None or source is None or output is None or ties.is_constant(source):
        return False
    weight, shape = found
    group, rank = int(node.attribute("group", 1)), len(shape)
    if rank < 3 or group < 1 or shape[0] % group:
        return False
    rows = shape[1] * group
    if not constant_bias(ties, node, 2, lambda bias: bias.size == rows, integers=True):
        return False
    columns = columns_of(ties, node, source, 1 - rank, shape[0], rank)
    if columns is None:
        return False
    ones = (*shape[2:], *node.attribute("strides", ()))
    moved = any(int(pad) for pad in (*node.attribute("pads", ()), *node.attribute("output_padding", ())))
    padded = any(int(size) != 1 for size in ones) or moved or node.attribute("output_shape") is not None
    if padded:
        ties.no_shift(columns, node)
    add_linear(
        ties,
        Linear(
            node=node, source=source, output=output, weight=weight,
            view=(group, shape[0] // group, shape[1], math.prod(shape[2:])),
            row_axes=(0, 2), column_axes=(0, 1),
            rows=ties.fresh((rows,), rank), columns=columns,
            row_shape=(1, rows) + (1,) * (rank - 2), bias_input=2, padded=padded,
        ),
    )  # fmt: skip
    return True


@rule("Gemm")
def gemm(ties: Ties, node: Node) -> bool:
    """y = alpha * A' B' + beta * C with constant B: rows are B's N, columns its K.

    C may be of any shape that broadcasts to the result, its content is any constant.
    """
    found = weight_of(ties, node, 1, integers=True)
    source, output = node.input(0), node.output()
    if found is None or source is None or output is None or ties.is_constant(source):
        return False
    weight, shape = found
    if len(shape) != 2:
        return False
    across = bool(node.attribute("transB", 0))
    rows, size = shape if across else shape[::-1]
    beta = float(node.attribute("beta", 1.0))
    if node.opset < 7 and not node.attribute("broadcast", 0) and node.input(2) is not None:
        return False  # before opset 7 an unbroadcast C has the full shape of the result

    def fits(c: Array) -> bool:
        return c.ndim <= 2 and (c.ndim == 0 or c.shape[-1] in (1, rows))

    if not constant_bias(ties, node, 2, fits, integers=True):
        return False
    columns = columns_of(ties, node, source, -2 if node.attribute("transA", 0) else -1, size, 2)
    if columns is None:
        return False
    add_linear(
        ties,
        Linear(
            node=node, source=source, output=output, weight=weight, view=shape,
            row_axes=(0,) if across else (1,), column_axes=(1,) if across else (0,),
            rows=ties.fresh((rows,), 2), columns=columns, row_shape=(1, rows), bias_input=2,
            gain=float(node.attribute("alpha", 1.0)), bias_gain=beta,
        ),
    )  # fmt: skip
    return True


@rule("MatMul")
def matmul(ties: Ties, node: Node) -> bool:
    """Constant on the right, (K, N): rows N, columns K.  Constant on the left, (M, K): rows M, columns K.

    There is no slot for a bias: an Add follows where one is needed.  A weight with batch axes (heads)
    has its own rows and columns in each of them.
    """
    left, right, output = node.input(0), node.input(1), node.output()
    if left is None or right is None or output is None:
        return False
    on_right = not ties.is_constant(left)
    source, index = (left, 1) if on_right else (right, 0)
    if not on_right and ties.is_constant(right):
        return False
    found = weight_of(ties, node, index, integers=True)
    if found is None:
        return False
    weight, shape = found
    if len(shape) < 2:
        return False
    batch, rank = shape[:-2], len(shape)
    plain = on_right and not batch
    source_rank = None if plain else ties.rank(source)
    if source_rank is None and not plain:
        return False
    vector = source_rank == 1  # its axis is gone from the result
    size, rows = shape[-2:] if on_right else shape[:-3:-1]
    axis = -1 if on_right or vector else -2
    columns = (
        _batched_columns(ties, node, source, axis, batch, size)
        if math.prod(batch) > 1
        else columns_of(ties, node, source, axis, size, None)
    )
    if columns is None:
        return False
    heads = tuple(range(len(batch)))
    row, column = (rank - 1, rank - 2) if on_right else (rank - 2, rank - 1)
    row_shape = (*batch, rows) if plain or vector else (*batch, 1, rows) if on_right else (*batch, rows, 1)
    add_linear(
        ties,
        Linear(
            node=node, source=source, output=output, weight=weight, view=shape,
            row_axes=(*heads, row), column_axes=(*heads, column),
            rows=ties.fresh((math.prod(batch) * rows,)), columns=columns,
            row_shape=row_shape, bias_input=None,
        ),
    )  # fmt: skip
    return True


def _batched_columns(
    ties: Ties, node: Node, source: Value, axis: int, batch: tuple[int, ...], size: int
) -> Coordinates | None:
    """Input coordinates that may differ from one batch entry of the weight to the next."""
    held = ties.even(ties.of(source), [-1 if axis == -2 else -2], node)
    outer = [-k for k in range(3 + len(batch), 3 + max(held.scale.ndim, held.shift.ndim))]
    held = ties.even(held, outer, node)
    shape = (*batch, 1, size) if axis == -1 else (*batch, size, 1)
    flat = []
    for ids in (held.scale, held.shift):
        ids = ids.reshape(ids.shape[-len(shape) :]) if ids.ndim > len(shape) else ids
        try:
            flat.append(np.ravel(np.broadcast_to(ids, shape)))
        except ValueError:
            return None
    return Coordinates(flat[0], flat[1])
