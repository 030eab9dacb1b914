"""The static proof of weights and biases that are kept as integers.

The files' own words are taken: the DequantizeLinear (or QONNX's Quant) as it is written now, with the tensors that it
names.  Its integers have to be those of the original to the bit, or negated exactly about the zero point, or zero where
a channel is dead; each scale within one unit in the last place of the exact one; an int32 bias within half a step of
it.
"""

from __future__ import annotations

import numpy as np

from bnfold.constants import Array, finfo
from bnfold.errors import NotEquivalentError, quoted
from bnfold.fold.parameters import clip, parts, spread
from bnfold.fold.quantised import Quantised, interpret, wide
from bnfold.fold.rewrite import Rescaled
from bnfold.fold.union_find import Floats
from bnfold.weights import Weights

# Half a step that rounding costs, and what float32 and float64 add to it.
HALF = 0.5 + 1e-6


def prove_weight(item: Rescaled, weights: Weights, rows: Floats) -> float:
    """Compare a dequantised weight with the exact one; returns the scale's worst deviation in ulps.

    rows: what each row is to be multiplied by, the scale of its columns left aside.

    Raises: NotEquivalentError.
    """
    linear, new = item.edit.linear, _written(item, weights)
    factor = spread(linear, rows, linear.row_axes) / spread(linear, item.edit.column_scale, linear.column_axes)
    alive = np.ones(item.edit.column_scale.size)
    alive[item.edit.dead_columns] = 0
    factor = factor * spread(linear, alive, linear.column_axes)
    before, after = (_viewed(quantised, linear.view) for quantised in (item.old, new))
    worst = 0.0
    for part in parts(linear.view):
        f = np.broadcast_to(factor[clip(part, factor)], before[0][part].shape)
        (q, step, zero), (q_new, step_new, zero_new) = ([array[part] for array in side] for side in (before, after))
        dead = (f == 0) & ((q_new - zero_new) * step_new == 0)
        if not (dead | (q_new - zero_new == np.sign(f).astype(q.dtype) * (q - zero))).all():
            raise _wrong(item, "its integers are neither those of the original nor their negatives")
        exact = np.abs(f) * step
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.where(f == 0, 0.0, np.abs(step_new - exact) / np.abs(exact))
        off = np.where((exact == 0) & (step_new == 0), 0.0, off)
        worst = max(worst, float(off.max(initial=0.0)) / finfo(new.scale.dtype).eps)
        if not worst <= 1:
            raise _wrong(item, f"its scale is {worst:.3g} units in the last place from the exact one")
    return max(worst, 0.5)


def prove_bias(item: Rescaled, weights: Weights, exact: Floats, factors: Floats, slack: Floats) -> float:
    """Compare a dequantised bias with the exact one; returns its scale's worst deviation in ulps.

    slack: what the exact one may be off itself.

    Raises: NotEquivalentError.
    """
    new = _written(item, weights)
    steps, old = (np.broadcast_to(q.scales().astype(np.float64), q.integers.shape) for q in (new, item.old))
    sizes = np.abs(np.broadcast_to(factors, old.shape))
    wanted = np.where(sizes == 0, steps, sizes * old)
    worst = float((np.abs(steps - wanted) / wanted).max(initial=0.0)) / finfo(new.scale.dtype).eps
    if not worst <= 1:
        raise _wrong(item, f"its scale is {worst:.3g} units in the last place from the exact one")
    limits = finfo(new.scale.dtype)
    error = np.abs(steps * new.integers - exact) - slack - 2 * limits.eps * np.abs(exact)
    if not (error <= HALF * steps).all() or np.any(new.zeros()):
        raise _wrong(item, f"it is {float((error / steps).max()):.3g} steps from the exact one")
    return max(worst, 0.5)


def _written(item: Rescaled, weights: Weights) -> Quantised:
    """The integers as the folded model has them."""
    old, contents = item.old, []
    for index, name in enumerate(item.node.proto.input):
        tensor = item.tensors.get(name)
        if tensor is None and name:
            kept = old.node.input(index)
            if kept is None or kept.name != name:
                raise _wrong(item, f"{quoted(name)} is no tensor")
        contents.append((old.inputs[index] if name else None) if tensor is None else weights.read(tensor))
    found = interpret(item.node, contents)
    if isinstance(found, str):
        raise _wrong(item, found)
    return found


def _viewed(quantised: Quantised, view: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Integers, scale and zero point, each laid out as the linear node's weight is seen."""
    shape, kind = quantised.integers.shape, wide(quantised.integers.dtype)
    found = (quantised.integers.astype(kind), quantised.scales().astype(np.float64), quantised.zeros())
    first, second, third = (np.broadcast_to(part, shape).reshape(view) for part in found)
    return first, second, third


def _wrong(item: Rescaled, what: str) -> NotEquivalentError:
    return NotEquivalentError(f"{what}; please report this", where=f"node {quoted(item.edit.linear.node.name)}")
