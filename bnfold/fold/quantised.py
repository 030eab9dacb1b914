"""Constants kept as integers: W = scale * (q - zero_point).

A DequantizeLinear has the integers stored; QONNX's Quant and BipolarQuant (`bnfold.qonnx`) make them of floats.  A
factor for each of W's rows goes into the scale, and the integers stay to the bit:

    f W = |f| scale * (q' - zero_point)        q' = q, or 2 zero_point - q where f < 0, or zero_point where f = 0

That is exact but for one rounding of the scale (`rescale` does it).  A scale for the whole tensor becomes one for
each row, which DequantizeLinear can express from opset 13 on; before, or where the scale lies along another axis than
the rows, one factor has to hold for all of them.  QONNX's scales lie wherever they are asked to.  No scale of single
columns fits, and a row whose integers have no negative in their type (-128 of int8) takes positive factors only.
`restrict` states all that as ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold.constants import DEQUANTIZE, Array, is_floating
from bnfold.fold.ties import IDENTITY, Affine, Coordinates, Limit, Linear, Ties
from bnfold.graph import Node, Value
from bnfold.qonnx import BIPOLAR, QUANT, Grid, grid_of

Bools = np.ndarray[Any, np.dtype[np.bool_]]

CODE = "quantised-weight"
# Opset from which on a DequantizeLinear has an axis, and so a scale for each of its entries.
PER_AXIS = 13


@dataclass(frozen=True, eq=False)
class Quantised:
    """How integers stand for a constant.

    inputs: what the node reads, as it stands in the file.
    axis, block: along which axis the scale lies, and how many neighbours share an entry of it (0: none do).
    grid: of QONNX's ops, which integers there are; their scale lies as numpy broadcasts it.
    is_stored: False where other ops make the integers of constants, as training with rounded weights leaves it.
    axes: how Transposes behind the node turn the constant; all else here is as seen behind them.
    row_axis: the tensor's axis along which each row has, or can be given, a scale of its own; None: there is none.
    """

    node: Node
    inputs: tuple[Array | None, ...]
    integers: Array
    scale: Array
    zero_point: Array | None
    axis: int = 0
    block: int = 0
    grid: Grid | None = None
    is_stored: bool = True
    axes: tuple[int, ...] = ()
    row_axis: int | None = None

    @property
    def kind(self) -> str:
        """Type of the integers, for messages."""
        return str(self.integers.dtype.name) if self.grid is None else self.grid.name

    @property
    def has_zero(self) -> bool:
        """False if no integer stands for 0: then the scale has to be 0 there."""
        return self.grid is None or self.grid.has_zero

    @property
    def is_adaptable(self) -> bool:
        """True if one scale for all can become one for each channel."""
        return self.grid is not None or self.node.op != "DequantizeLinear" or self.node.opset >= PER_AXIS

    def scales(self) -> Array:
        """The scale, broadcastable to the integers."""
        return lay_out(self.scale, self.integers.shape, self.axis, self.block)

    def zeros(self) -> Array:
        """The zero point, broadcastable to the integers, in a type that holds twice any of them."""
        if self.zero_point is None:
            return np.zeros((), wide(self.integers.dtype))
        return lay_out(self.zero_point, self.integers.shape, self.axis, self.block).astype(wide(self.integers.dtype))

    def negated(self) -> Array:
        """2 zero_point - q, exactly: what stands for -W."""
        return np.asarray(2 * self.zeros() - self.integers.astype(wide(self.integers.dtype)))

    def lacks(self, values: Array) -> Bools:
        """Which of these values the type doesn't have."""
        if self.grid is not None:
            return np.asarray((values < self.grid.low) | (values > self.grid.high))
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(values.astype(self.integers.dtype).astype(values.dtype) != values)


def lay_out(parameter: Array, shape: tuple[int, ...], axis: int = 0, block: int = 0) -> Array:
    """A scale or zero point, broadcastable to the tensor that it belongs to."""
    if block:
        return np.take(np.repeat(parameter, block, axis), range(shape[axis]), axis)
    if parameter.size == 1:
        return parameter.reshape(())
    if parameter.ndim == len(shape):
        return parameter
    return parameter.reshape([-1 if k == axis else 1 for k in range(len(shape))])


def wide(dtype: Any) -> Any:
    """A type that holds sums of a few values of an integer type (or of an 8-bit float) exactly."""
    name = np.dtype(dtype).name
    if "float" in name:
        return np.float32
    return np.int64 if name in ("int32", "uint32") else np.int32


def read_quantised(ties: Ties, value: Value) -> Quantised | str:
    """The integers behind a constant; or why nothing can go into their scale, as a sentence."""
    maker = ties.constants.quantiser(value)
    behind, turns = kept_as_integers("weight", maker), []
    while value.producer is not maker or maker is None:
        if value.outer is not None:
            return f"{behind} outside of this body"
        node = value.producer
        source = None if node is None or node.op not in ("Transpose", "Identity") else node.input(0)
        if node is None or source is None:
            return f"{behind}, and other ops are between"
        turns += [node.attribute("perm")] if node.op == "Transpose" else []
        value = source
    kept, arrays = maker.input(0), tuple(ties.array(given) for given in maker.inputs)
    found = interpret(maker, arrays)
    if isinstance(found, str) or kept is None:
        return found
    found = replace(found, is_stored=ties.constants.tensor(kept) is not None)
    axes = list(range(found.integers.ndim))
    for turn in reversed(turns):
        axes = [axes[axis] for axis in (turn or range(len(axes) - 1, -1, -1))]
    return found if axes == sorted(axes) else _turned(found, tuple(axes))


def _turned(found: Quantised, axes: tuple[int, ...]) -> Quantised:
    """As seen behind a Transpose: integers are stored so, and what is laid out as they are."""
    scale, zero = (
        part if part is None or part.ndim != len(axes) else part.transpose(axes)
        for part in (found.scale, found.zero_point)
    )
    assert scale is not None
    return replace(
        found, integers=found.integers.transpose(axes), scale=scale, zero_point=zero, axis=axes.index(found.axis),
        is_stored=False, axes=axes,
    )  # fmt: skip


def kept_as_integers(what: str, maker: Node | None) -> str:
    """Sentence for a weight or bias that is made of integers."""
    return f"the {what} is kept as integers behind a {'DequantizeLinear' if maker is None else maker.proto.op_type}"


def interpret(node: Node, inputs: Sequence[Array | None]) -> Quantised | str:
    """The integers that a node makes a constant of, from what it reads; or why they can't be told, as a sentence."""
    read = next(read for ops, read in READERS if node.op in ops)
    first, scale = (*inputs, None, None)[:2]
    if first is None or scale is None or not is_floating(scale) or not np.isfinite(scale.astype(np.float64)).all():
        return "the weight is kept as integers, whose scale is not finite"
    found = read(node, tuple(inputs))
    if isinstance(found, str):
        return f"the weight is kept as integers, {found}"
    try:
        for part in (found.scale,) if found.zero_point is None else (found.scale, found.zero_point):
            np.broadcast_to(lay_out(part, found.integers.shape, found.axis, found.block), found.integers.shape)
    except (ValueError, IndexError):
        return f"the weight is kept as integers, {UNFIT}"
    return found


UNFIT = "whose scale doesn't fit them"


def _dequantize_linear(node: Node, inputs: tuple[Array | None, ...]) -> Quantised | str:
    integers, scale, zero_point = (*inputs, None)[:3]
    assert integers is not None
    assert scale is not None
    found = Quantised(node, inputs, integers, scale, zero_point, 0, int(node.attribute("block_size", 0)))
    axis = int(node.attribute("axis", 1))
    axis += integers.ndim if axis < 0 else 0
    if scale.size == 1 and not found.block:
        return found
    fits = 0 <= axis < integers.ndim and found.is_adaptable
    return replace(found, axis=axis) if fits else UNFIT


def _qonnx(node: Node, inputs: tuple[Array | None, ...]) -> Quantised | str:
    floats, scale, zero_point, bits = (*inputs, None, None)[:4]
    assert floats is not None
    assert scale is not None
    grid = grid_of(node, bits)
    if isinstance(grid, str):
        return grid
    if not grid.has_zero:
        zero_point = None
    parts = [scale] if zero_point is None else [scale, zero_point]
    if floats.dtype != scale.dtype or any(part.ndim not in (0, floats.ndim) and part.size > 1 for part in parts):
        return UNFIT
    zero = np.zeros((), floats.dtype) if zero_point is None else zero_point
    integers = grid.integers(floats, lay_out(scale, floats.shape), lay_out(zero, floats.shape))
    if not (np.abs(integers) < 1 << 31).all() or (grid.has_zero and not scale.all()):
        return "which are too large or not finite"
    if not (np.rint(zero) == zero).all():
        return "whose zero point is none"
    return Quantised(node, inputs, integers.astype(np.int32), scale, zero_point, grid=grid)


# Which ops make numbers of integers, and how each is read.
READERS: list[tuple[frozenset[str], Callable[[Node, tuple[Array | None, ...]], Quantised | str]]] = [
    (DEQUANTIZE, _dequantize_linear),
    (QUANT | BIPOLAR, _qonnx),
]


def read_bias(ties: Ties, value: Value) -> Quantised | None:
    """The int32 behind a bias, if it is as integer kernels have it: a vector in steps, around 0.  Or QONNX's."""
    found = read_quantised(ties, value)
    if isinstance(found, str) or found.integers.ndim != 1 or found.block:
        return None
    if found.grid is None and found.kind != "int32":
        return None
    if found.grid is not None and (not found.has_zero or found.lacks(found.negated()).any()):
        return None
    return found if (found.scale > 0).all() and not np.any(found.zeros()) else None


def _row_axis(linear: Linear, quantised: Quantised) -> int | None:
    """The tensor's axis along which each row has a scale of its own, or can be given one."""
    shape = quantised.integers.shape
    if quantised.grid is not None:  # scales lie along any axes
        return 0
    if linear.node.op == "Conv":
        axis = 0
    elif linear.node.op == "ConvTranspose":
        axis = 1
        if linear.view[0] != 1:  # the groups share an entry of axis 1
            return None
    else:
        axis = linear.row_axes[-1]
        if math.prod(linear.view[k] for k in linear.row_axes[:-1]) != 1:
            return None
    if quantised.block:
        return axis if axis != quantised.axis else None
    if quantised.scale.size == 1:
        return axis if quantised.is_adaptable or shape[axis] == 1 else None
    return axis if axis == quantised.axis else None


def restrict(ties: Ties, linear: Linear, quantised: Quantised, chain: Affine | None) -> tuple[Quantised, Affine | None]:
    """Tie rows and columns to what the scale can express; the chain is given up where it asks for more."""
    from bnfold.fold.roots import rows_of

    node, rows = linear.node, np.ravel(linear.rows.scale)
    axis = _row_axis(linear, quantised)
    stiff = _without_negative(linear, quantised)
    if chain is not None:
        a = rows_of(linear, chain.a)
        if (axis is None and (a != a[0]).any()) or (a[stiff] < 0).any():
            chain = None
    sentence = f"its {quantised.kind} weight has a scale for each output channel, and none for input channels"
    if axis is None:
        sentence = _one_factor(quantised)
        ties.equal_scale(rows, np.broadcast_to(rows[:1], rows.shape), node)
        ties.limits.append(Limit(node, "value", rows, CODE, sentence))
    columns = _grouped_columns(linear, one=axis is None)
    ties.equal_scale(columns, np.broadcast_to(columns[:, :1], columns.shape), node)
    ties.limits.append(Limit(node, "value", columns.ravel(), CODE, sentence))
    if stiff.any():
        sentence = f"its {quantised.kind} weight holds a value that has no negative in that type"
        for ids in (rows[stiff], columns.ravel()):
            ties.positive(Coordinates(ids, IDENTITY), node)
            ties.limits.append(Limit(node, "sign", ids, CODE, sentence))
    return replace(quantised, row_axis=axis), chain


def _one_factor(quantised: Quantised) -> str:
    what = f"its {quantised.kind} weight has"
    if quantised.scale.size == 1 and not quantised.is_adaptable:
        opset = quantised.node.opset
        return f"{what} one scale for all channels; one for each needs opset {PER_AXIS}, this is {opset}"
    shared = "one scale" if quantised.scale.size == 1 else "scales that output channels share"
    return f"{what} {shared}: only one factor for all of them fits"


def _grouped_columns(linear: Linear, *, one: bool) -> Array:
    """Ids of the columns' scales: a line for each group whose rows have scales of their own."""
    sizes = [linear.view[axis] for axis in linear.column_axes]
    groups = 1
    if not one:
        groups = math.prod(linear.view[axis] for axis in linear.column_axes if axis in linear.row_axes)
    assert linear.columns.scale.size == math.prod(sizes)
    return linear.columns.scale.reshape(groups, -1)  # what rows and columns have in common comes first


def _without_negative(linear: Linear, quantised: Quantised) -> Bools:
    """Rows that hold an integer whose negative the type doesn't have."""
    differs = quantised.lacks(quantised.negated())
    others = tuple(axis for axis in range(len(linear.view)) if axis not in linear.row_axes)
    result: Bools = differs.reshape(linear.view).any(axis=others).ravel()
    return result
