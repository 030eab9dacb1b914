"""What an edit makes of a weight or bias that is kept as integers: a new scale, and integers that stay or turn around.

The formulas are those of `quantised`.  A bias in int32 keeps to the steps that an integer kernel asks for; what is
added to it is rounded to them.  QONNX keeps floats that its op rounds to the integers: they change with the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.constants import DEQUANTIZE, Array
from bnfold.fold.parameters import Unrepresentable, spread, stored
from bnfold.fold.quantised import Quantised
from bnfold.fold.ties import Ties
from bnfold.fold.union_find import Floats
from bnfold.storage import is_packed

if TYPE_CHECKING:
    from bnfold.fold.plan import LinearEdit

# Integer kernels take a bias in steps of (input's scale) * (weight's scale); quantisers write that product as float32.
SAME_STEP = 1e-3


def row_factors(edit: LinearEdit) -> Floats:
    """What each row of W is multiplied by: its own factor over the scale of its columns."""
    linear = edit.linear
    columns = np.array(edit.column_scale)
    columns[edit.dead_columns] = np.nan
    columns = columns.reshape([linear.view[axis] for axis in linear.column_axes])
    shared = [k for k, axis in enumerate(linear.column_axes) if axis in linear.row_axes]
    others = tuple(k for k in range(columns.ndim) if k not in shared)
    with np.errstate(invalid="ignore"):
        alike = np.fmax.reduce(columns, axis=others)  # all equal but for those of dead columns
    alike = np.where(np.isnan(alike), 1.0, alike)
    alike = alike.reshape([linear.view[axis] if axis in linear.column_axes else 1 for axis in linear.row_axes])
    rows = edit.factor.reshape([linear.view[axis] for axis in linear.row_axes])
    return np.asarray((rows / alike).ravel(), np.float64)


def new_scale(quantised: Quantised, factors: Floats) -> tuple[Floats, int | None]:
    """|f| scale, exactly; and the axis along which a DequantizeLinear's lies where that is new."""
    old, sizes = quantised.scale.astype(np.float64), _sizes(factors)
    if (sizes == sizes[0]).all():
        return old * sizes[0], None
    axis = quantised.row_axis
    assert axis is not None
    if quantised.scale.size == 1 and not quantised.block:
        return old.reshape(()) * sizes, axis
    if quantised.block:
        return old * sizes.reshape([-1 if k == axis else 1 for k in range(old.ndim)]), None
    return old * sizes, None


def _sizes(factors: Floats) -> Floats:
    """|f|; where f is 0 any will do, and that of others keeps one scale for all what it is."""
    alive = np.abs(factors[factors != 0])
    return np.where(factors == 0, alive[0] if alive.size else 1.0, np.abs(factors))


def broadcast_scale(quantised: Quantised, sizes: Floats) -> Floats:
    """The scale times sizes of all elements, exactly, along as few axes as will do."""
    old = np.asarray(quantised.scales().astype(np.float64))
    full = sizes * old
    for axis in range(full.ndim):
        first = full.take([0], axis)
        if (old.ndim == 0 or old.shape[axis] == 1) and (full == first).all():
            full = first
    return full.reshape(quantised.scale.shape) if full.size == quantised.scale.size else full


def _view_factors(edit: LinearEdit, factors: Floats) -> Floats:
    """What each element is multiplied by, 0 in dead rows and columns; broadcastable to the weight's view."""
    linear = edit.linear
    alive = np.ones(edit.column_scale.size)
    alive[edit.dead_columns] = 0
    return np.asarray(spread(linear, factors, linear.row_axes) * spread(linear, alive, linear.column_axes))


def _element_sizes(edit: LinearEdit, quantised: Quantised, factors: Floats) -> Floats:
    """What each element's scale is multiplied by; any will do in dead ones, if an integer stands for 0."""
    linear = edit.linear
    dead_too = spread(linear, _sizes(factors), linear.row_axes)
    seen = dead_too if quantised.has_zero else np.abs(_view_factors(edit, factors))
    return np.asarray(np.broadcast_to(seen, linear.view).reshape(quantised.integers.shape), np.float64)


def new_integers(edit: LinearEdit, quantised: Quantised, factors: Floats) -> Array:
    """The integers with rows of negative factors negated, and dead rows and columns at the zero point."""
    view, shape = edit.linear.view, quantised.integers.shape
    factors = _view_factors(edit, factors)
    zeros = np.broadcast_to(quantised.zeros(), shape).reshape(view)
    kept = quantised.integers.astype(zeros.dtype).reshape(view)
    seen = np.where(factors < 0, 2 * zeros - kept, kept)
    result = np.where(factors == 0, zeros, seen).astype(quantised.integers.dtype)
    return np.asarray(result.reshape(shape))


@dataclass(frozen=True, eq=False)
class Change:
    """New content of an input of a DequantizeLinear; `key`: what it depends on beside the old content."""

    index: int
    role: str
    content: Array | Callable[[], Iterator[Array]]
    dims: tuple[int, ...]
    dtype: Any
    key: bytes


@dataclass(frozen=True, eq=False)
class Changes:
    """All that changes at a DequantizeLinear; `axis`: where its scale lies, if it had none or another one."""

    changes: list[Change]
    axis: int | None
    rounding: float = 0.0  # of a bias, the largest


def weight_changes(edit: LinearEdit, quantised: Quantised) -> Changes:
    """A weight's new scale, and the integers of rows that turn around or die.

    Raises: Unrepresentable.
    """
    factors = row_factors(edit)
    if quantised.grid is not None:
        exact = broadcast_scale(quantised, _element_sizes(edit, quantised, factors))
        return _floats_changes(edit, quantised, exact, new_integers(edit, quantised, factors))
    exact, axis = new_scale(quantised, factors)
    found = [_scale_change(edit, quantised, exact, axis)]
    if (factors <= 0).any() or edit.dead_columns.size or not quantised.is_stored:
        dtype, shape = quantised.integers.dtype, quantised.integers.shape
        laid_out = repr((edit.linear.view, quantised.axes)).encode()
        key = np.sign(factors).tobytes() + edit.dead_columns.tobytes() + laid_out

        def blocks() -> Iterator[Array]:
            yield new_integers(edit, quantised, factors)

        content = new_integers(edit, quantised, factors) if is_packed(dtype) else blocks
        found.append(Change(0, "integers", content, shape, dtype, key))
    found += _zero_changes(quantised, axis)
    if quantised.axes and quantised.scale.size > 1:
        axis = quantised.axis
    return Changes(found, axis)


def bias_changes(edit: LinearEdit, quantised: Quantised, exact: Floats) -> Changes:
    """An int32 bias in new steps, |f| times the old ones; what is added to it is rounded to them.

    Raises: Unrepresentable.
    """
    node, factors = edit.linear.node, edit.factor
    if quantised.grid is not None:  # only multiplied, or it would be floats
        whole = np.sign(factors).astype(np.int32) * quantised.integers
        return _floats_changes(edit, quantised, broadcast_scale(quantised, _sizes(factors)), whole)
    scale, axis = new_scale(replace(quantised, row_axis=0), factors)
    if axis is not None and not quantised.is_adaptable:
        sentence = f"opset {quantised.node.opset} has no scale for each entry of its int32 bias"
        raise Unrepresentable(node, sentence)
    found = _scale_change(edit, quantised, scale, axis)
    steps = np.asarray(found.content, np.float64)
    if only_scales(edit):
        whole = np.sign(factors) * quantised.integers
        exact = steps * whole
    else:
        whole = np.rint(exact / steps)
    if not (np.abs(whole) <= np.iinfo(np.int32).max).all():
        raise Unrepresentable(node, "its int32 bias would overflow")
    content = whole.astype(np.int32)
    changes = [found, *_zero_changes(quantised, axis)]
    if not np.array_equal(content, quantised.integers):
        changes.append(Change(0, "integers", content, content.shape, content.dtype, content.tobytes()))
    return Changes(changes, axis, float(np.abs(steps * whole - exact).max(initial=0.0)))


def stays_integer(ties: Ties, edit: LinearEdit) -> bool:
    """True if an int32 bias stays one: exactly, or rounded to steps that an integer kernel asks for.

    Its steps are those of the sum then, scale_x * scale_w.  Any other int32 bias that takes a shift becomes floats,
    which costs no kernel and no digit.
    """
    linear = edit.linear
    bias, weight, maker = linear.quantised_bias, linear.quantised, linear.source.producer if linear.source else None
    if bias is None or only_scales(edit):
        return bias is not None
    if bias.grid is not None or (edit.factor == 0).any():  # a dead row's is a constant, which nothing rounds in BN
        return False
    if weight is None or weight.block or maker is None or maker.op not in DEQUANTIZE:
        return False
    step = ties.array(maker.input(1))
    if step is None or step.size != 1:
        return False
    wanted = step.astype(np.float64).ravel() * weight.scale.astype(np.float64).ravel()
    fits = bias.integers.size == edit.scale.size and bias.scale.size in (1, wanted.size)
    return fits and np.allclose(bias.scale, wanted, rtol=SAME_STEP, atol=0)


def only_scales(edit: LinearEdit) -> bool:
    """True if a node's bias is multiplied, and nothing added: then its integers stay, or turn around."""
    still = not (edit.b.any() or edit.shift.any() or edit.column_shift.any() or edit.dead_rows.size)
    return still and edit.linear.bias_gain == 1


def _scale_change(edit: LinearEdit, quantised: Quantised, exact: Floats, axis: int | None) -> Change:
    dtype = quantised.scale.dtype
    content = stored(exact, dtype, edit.linear.node, lambda: np.zeros(()))  # each step counts, however small
    key = content.tobytes() + repr((axis, content.shape)).encode()
    return Change(1, "quantisation scale", content, content.shape, dtype, key)


def _floats_changes(edit: LinearEdit, quantised: Quantised, scale: Floats, integers: Array) -> Changes:
    """A new scale, and floats that round to these integers with it."""
    found, grid = _scale_change(edit, quantised, scale, None), quantised.grid
    assert grid is not None
    steps, zeros = np.asarray(found.content), quantised.zeros()
    content = grid.floats(integers, steps, zeros)
    seen = grid.integers(content, steps, zeros.astype(content.dtype))
    if not np.array_equal(np.where(steps == 0, integers, seen), integers):
        sentence = f"no {content.dtype} would be rounded to the {grid.name} that it stands for"
        raise Unrepresentable(edit.linear.node, sentence)
    stored_floats = Change(0, "floats", content, content.shape, content.dtype, content.tobytes())
    return Changes([found, stored_floats, *_zero_changes(quantised, None)], None)


def _zero_changes(quantised: Quantised, axis: int | None) -> list[Change]:
    """The zero point has the shape of the scale, and turns as it does."""
    old = quantised.zero_point
    if old is not None and quantised.axes and old.ndim == len(quantised.axes):
        content = np.ascontiguousarray(old)
        return [Change(2, "zero point", content, content.shape, old.dtype, content.tobytes())]
    if axis is None or old is None:
        return []
    size = quantised.integers.shape[axis]
    content = np.ascontiguousarray(np.broadcast_to(old.reshape(1), (size,)))
    return [Change(2, "zero point", content, (size,), old.dtype, str(size).encode())]
