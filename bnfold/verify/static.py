"""The static proof: every new parameter is recomputed in float64 from the original ones.

What is stored must be within one unit in the last place of its type of the exact result, finite, and
not flushed to zero where that is more than the channel's rounding noise.  This needs no data and
covers what no test input may reach.  The exact result is composed here from the parameters of the
absorbed ops, one after the other, and not taken from the plan's products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import TensorProto

from bnfold.constants import Array, finfo
from bnfold.errors import NotEquivalentError, quoted
from bnfold.fold.parameters import clip, parts, row_noise, spread
from bnfold.fold.plan import AffineEdit, LinearEdit, StepEdit
from bnfold.fold.rewrite import Rescaled, Rewrite, Rewritten
from bnfold.fold.roots import rows_of
from bnfold.fold.union_find import Floats
from bnfold.verify.rescaled import prove_bias, prove_weight
from bnfold.weights import Weights

# Bytes of weights after which pages of mapped files are let go.
RELEASE = 16 << 20

# Units in the last place that a float64 value may be off, since what it is compared with is float64 itself: each way
# rounds a few times, in another order.
DOUBLE_LIMIT = 4.0
# A bias is a sum of terms that may cancel: in float64 it is off by this share of their sizes, for sums of 2^8 terms.
CANCELLED = 2.0**-45


@dataclass(frozen=True)
class StaticProof:
    """What the static proof found.

    tensors: how many were checked; worst_ulp: the largest deviation, in units in the last place.
    """

    tensors: int
    values: int
    worst_ulp: float

    def __add__(self, other: StaticProof) -> StaticProof:
        """Both proofs as one: what was rounded twice may be off by both."""
        return StaticProof(
            self.tensors + other.tensors, self.values + other.values, max(self.worst_ulp, other.worst_ulp)
        )


def prove(done: Rewrite, weights: Weights) -> StaticProof:
    """Check every new weight and bias of linear nodes and constant of Mul and Add; a BN's parameters must be finite.

    Raises:
        NotEquivalentError: a stored value is not the exact one, rounded.
        Unrepresentable: a value that the stored type can't hold (met while it is made).
    """
    values, worst, held = 0, 0.0, 0
    for item in done.rewritten:
        if item.role == "weight" and isinstance(item.edit, LinearEdit):
            worst = max(worst, _check_weight(item, weights))
        elif item.role == "bias" and isinstance(item.edit, LinearEdit):
            worst = max(worst, _check_bias(item, weights))
        elif item.role in ("Mul", "Add", "Sub") and isinstance(item.edit, AffineEdit):
            worst = max(worst, _check_constant(item, item.edit, weights))
        elif isinstance(item.edit, StepEdit):
            assert item.source is not None
            exact = item.source.astype(np.float64) * item.edit.factor
            worst = max(worst, _worst_ulp(weights.read(item.tensor), exact, lambda: np.zeros(1), item))
        elif item.role != "integers" and not np.isfinite(np.asarray(weights.read(item.tensor), np.float64)).all():
            raise NotEquivalentError("is not finite", where=f"tensor {quoted(item.tensor.name)}")
        values += int(np.prod(item.tensor.dims, dtype=np.int64))
        held += weights.nbytes(item.tensor)
        if held > RELEASE:  # pages of mapped files would pile up
            held = 0
            for file in weights.files():
                file.forget(0, len(file.view))
    for again in done.rescaled:
        worst = max(worst, _check_rescaled(again, weights))
    return StaticProof(len(done.rewritten), values, worst)


def _check_rescaled(item: Rescaled, weights: Weights) -> float:
    """Compare what integers stand for with the exact weight or bias; returns the scale's worst deviation in ulps."""
    gain = _exact_rows(item.edit)[0]
    if item.role == "weight":
        return prove_weight(item, weights, gain)
    node = item.edit.linear.node
    exact, size = _exact_bias(Rewritten(TensorProto(), node, item.edit, "bias", item.weight, 0.0, item.bias))
    return prove_bias(item, weights, np.ravel(exact), gain, CANCELLED * np.ravel(size))


def _check_weight(item: Rewritten, weights: Weights) -> float:
    """Compare a stored weight with the exact one, part by part; returns the worst deviation in ulps."""
    edit, old = item.edit, item.source
    assert isinstance(edit, LinearEdit)
    assert old is not None
    linear = edit.linear
    viewed = old.reshape(linear.view)
    rows, extra = (spread(linear, vector, linear.row_axes) for vector in _exact_rows(edit)[:2])
    columns = np.ones(1)
    if linear.column_axes:
        columns = spread(linear, edit.column_scale, linear.column_axes)
    alive = np.ones(edit.column_scale.size)
    alive[edit.dead_columns] = 0
    alive = spread(linear, alive, linear.column_axes)
    worst = 0.0
    for part, block in zip(parts(linear.view), _stored_parts(item, weights), strict=True):
        exact = viewed[part].astype(np.float64)
        exact *= rows[clip(part, rows)]
        if linear.column_axes and (edit.column_scale != 1).any():
            exact /= columns[clip(part, columns)]
        if edit.dead_columns.size:
            exact *= alive[clip(part, alive)]
        if linear.table:
            exact += extra[clip(part, extra)]
        noise = partial(row_noise, edit, exact, old.dtype, item.noise, part)
        worst = max(worst, _worst_ulp(block.reshape(exact.shape), exact, noise, item))
    return worst


def _check_bias(item: Rewritten, weights: Weights) -> float:
    """Compare a stored bias with the exact one; returns the worst deviation in ulps."""
    stored = weights.read(item.tensor)
    exact, size = (np.reshape(values, stored.shape) for values in _exact_bias(item))  # an Add's has axes of size 1
    return _worst_ulp(stored, exact, item.noise, item, CANCELLED * size)


def _check_constant(item: Rewritten, edit: AffineEdit, weights: Weights) -> float:
    """Compare the constant of a Mul or Add with the exact one; returns the worst deviation in ulps."""
    gain, offset, size = np.ones(()), np.zeros(()), np.zeros(())
    for a, b in edit.op.steps:
        gain, offset, size = gain * a, offset * a + b, size * np.abs(a) + np.abs(b)
    (s_x, t_x), (s_y, t_y) = edit.source, edit.target
    exact, slack = s_y * gain / s_x, np.zeros(())  # of y' = s_y (gain (x' / s_x - t_x) + offset + t_y)
    if item.role != "Mul":
        exact = s_y * (offset + t_y - gain * t_x)
        slack = CANCELLED * np.abs(s_y) * (size + np.abs(t_y) + np.abs(gain * t_x))
    stored = weights.read(item.tensor)
    if edit.op.is_norm:  # (C,) before opset 7
        stored = stored.reshape(edit.op.a.shape)
    stored, exact, slack = np.broadcast_arrays(stored, exact, slack)
    return _worst_ulp(stored, exact, item.noise, item, slack)


def _exact_bias(item: Rewritten) -> tuple[Floats, Floats]:
    """What a node adds, and the sum of the sizes of its terms: the shift of the inputs, then the absorbed ops."""
    edit, weight = item.edit, item.source
    assert isinstance(edit, LinearEdit)
    assert weight is not None
    linear = edit.linear
    through = [np.zeros(edit.scale.size)] * 2  # of the shift, and of its terms' sizes
    if linear.column_axes and edit.column_shift.any():
        viewed, axes = weight.reshape(linear.view), list(range(len(linear.view)))
        shift = edit.column_shift.reshape([linear.view[axis] for axis in linear.column_axes])
        rows, columns = list(linear.row_axes), list(linear.column_axes)
        through = [
            np.einsum(w, axes, t, columns, rows).ravel() * linear.gain
            for w, t in ((viewed, shift), (np.abs(viewed), np.abs(shift)))
        ]
    unused = item.bias is None or linear.bias_gain == 0
    bias = np.zeros(1) if unused else np.asarray(item.bias, np.float64) * linear.bias_gain
    if item.node.op in ("LSTM", "GRU", "RNN"):  # two biases a direction, that of the inputs first
        exact = np.broadcast_to(bias, (linear.view[0], 2 * linear.view[1])).copy()
        size = np.abs(exact)
        exact[:, : linear.view[1]] -= through[0].reshape(linear.view[:2])
        size[:, : linear.view[1]] += np.abs(through[1]).reshape(linear.view[:2])
        return exact, size
    if item.node.op in ("Conv", "ConvTranspose"):
        bias = bias.ravel()
    gain, added, size = _exact_rows(edit)
    return gain * (bias - through[0]) + added, np.abs(gain) * (np.abs(bias) + np.abs(through[1])) + size


def _exact_rows(edit: LinearEdit) -> tuple[Floats, Floats, Floats]:
    """What each row is multiplied by, what is added to it, and the sum of the sizes of that one's terms.

    The absorbed ops, one after the other.
    """
    gain, offset, size = np.array(edit.scale), np.zeros(edit.scale.size), np.zeros(edit.scale.size)
    for a, b in edit.linear.chain.steps if edit.linear.chain else ():
        factor, term = rows_of(edit.linear, a), rows_of(edit.linear, b)
        gain, offset, size = gain * factor, offset * factor + term, size * np.abs(factor) + np.abs(term)
    dead = edit.dead_rows
    gain[dead], offset[dead], size[dead] = 0.0, edit.b[dead], np.abs(edit.b[dead])  # which constant, the plan says
    return gain, edit.scale * (offset + edit.shift), np.abs(edit.scale) * (size + np.abs(edit.shift))


def _stored_parts(item: Rewritten, weights: Weights) -> Iterator[Array]:
    """The stored weight in the parts that `parts` cuts."""
    source = weights.source(item.tensor)
    assert item.source is not None
    if source is None:
        whole = weights.read(item.tensor)
        assert isinstance(item.edit, LinearEdit)
        view = item.edit.linear.view
        yield from (whole.reshape(view)[part] for part in parts(view))
        return
    for block in source.blocks():
        yield np.frombuffer(block, np.uint8).view(item.source.dtype)


def _worst_ulp(
    stored: Array, exact: Floats, noise: Callable[[], Floats], item: Rewritten, slack: Floats | float = 0.0
) -> float:
    """How far stored values are from the exact ones, in units of their last place; 0.5 is what rounding costs.

    slack: what the exact ones may be off themselves.
    """
    with np.errstate(over="ignore", under="ignore"):
        differs = stored != exact.astype(stored.dtype)
    if not differs.any():
        return 0.5
    limits = finfo(stored.dtype)
    error, size = np.maximum(np.abs(stored.astype(np.float64) - exact) - slack, 0.0), np.abs(exact)
    small = size < limits.smallest_normal  # flushed, or stored with fewer digits
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = float(np.where(small, 0.0, error / size).max()) / limits.eps
    limit = DOUBLE_LIMIT if stored.dtype == np.float64 else 1
    if not worst <= limit or (small & (error > noise())).any():
        raise NotEquivalentError(
            f"a stored value is {worst:.3g} units in the last place from the exact one; please report this",
            where=f"tensor {quoted(item.tensor.name)}",
        )
    return max(worst, 0.5)
