"""Average and power pools: sums over a window, one axis after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold.constants import Array
from bnfold.verify.float64.builder import Op, Term, declares
from bnfold.verify.float64.window import FAR, Window


@declares("AveragePool")  # per axis: the sum of the window's elements / how many of them count
def average_pool(op: Op) -> Term:
    """Average over a window; what lies in the padding counts only if the node says so."""
    window = Window(op, op.attribute("kernel_shape"), pool=True)
    beyond = _beyond(op, window)
    total = op.input(0).pad([0, 0, *window.low], [0, 0, *(h + b for h, b in zip(window.high, beyond, strict=True))])
    inside = bool(op.attribute("count_include_pad", 0))
    for axis in range(window.rank):
        total = _window_sum(total, window, axis)
        if (inside or not (window.low[axis] or window.high[axis])) and not beyond[axis]:
            total = total / float(window.kernel[axis])
        else:
            counts = _counts(op.shape(0)[2 + axis], window, axis, beyond[axis], inside)
            total = total / op.builder.constant(counts.reshape(-1, *[1] * (window.rank - 1 - axis)))
    return total


@declares("LpPool")  # (sum of |x|^p)^(1/p)
def lp_pool(op: Op) -> Term:
    """p-norm over a window."""
    window, p = Window(op, op.attribute("kernel_shape"), pool=True), float(op.attribute("p", 2))
    beyond = _beyond(op, window)
    high = [h + b for h, b in zip(window.high, beyond, strict=True)]
    total = (abs(op.input(0)) ** p).pad([0, 0, *window.low], [0, 0, *high])
    for axis in range(window.rank):
        total = _window_sum(total, window, axis)
    return total ** (1.0 / p)


@declares("GlobalAveragePool")
def global_average_pool(op: Op) -> Term:
    """Mean over all spatial axes."""
    return op.input(0).reduce("ReduceMean", _spatial(op))


@declares("GlobalMaxPool")
def global_max_pool(op: Op) -> Term:
    """Maximum over all spatial axes."""
    return op.input(0).reduce("ReduceMax", _spatial(op))


@declares("GlobalLpPool")  # (sum of |x|^p)^(1/p)
def global_lp_pool(op: Op) -> Term:
    """p-norm over all spatial axes."""
    p = float(op.attribute("p", 2))
    return (abs(op.input(0)) ** p).reduce("ReduceSum", _spatial(op)) ** (1.0 / p)


def _spatial(op: Op) -> range:
    return range(2, op.rank(0))


def _beyond(op: Op, window: Window) -> list[int]:
    """How far ceil_mode's last window reaches beyond the padding, per spatial axis."""
    if not op.attribute("ceil_mode", 0) or op.attribute("auto_pad", "NOTSET").startswith("SAME"):
        return [0] * window.rank
    found = []
    for axis, (n, span, s) in enumerate(zip(op.shape(0)[2:], window.spans, window.strides, strict=True)):
        low, high = window.low[axis], window.high[axis]
        last = -(-(n + low + high - span) // s) * s
        last -= s if last >= n + low else 0  # a window must begin before the padding behind
        found.append(max(0, last + span - n - low - high))
    return found


def _window_sum(padded: Term, window: Window, axis: int) -> Term:
    """The sum over one axis of the window."""
    span, stride, dilation = window.spans[axis], window.strides[axis], window.dilations[axis]
    if span == stride == 1:
        return padded
    total: Term | None = None
    for start in range(0, span, dilation):
        left = span - 1 - start
        part = padded.slice([start], [-left if left else FAR], [2 + axis], [stride])
        total = part if total is None else total + part
    assert total is not None
    return total


def _counts(size: int, window: Window, axis: int, beyond: int, inside: bool) -> Array:
    """How many elements count at each position: those of the input, and of the padding (`inside`), never beyond it."""
    low, high, pad = window.low[axis], window.high[axis], [float(inside)]
    ones = [1.0] * size
    line = np.array([*pad * low, *ones[max(-low, 0) : size - max(-high, 0)], *pad * high, *[0.0] * beyond])
    span, stride, dilation = window.spans[axis], window.strides[axis], window.dilations[axis]
    starts: Sequence[int] = range(0, len(line) - span + 1, stride)
    return np.array([line[start : start + span : dilation].sum() for start in starts])
