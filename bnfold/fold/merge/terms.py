"""Linear maps as data: which node computes which of what, and where its taps lie.

Along one spatial axis, a convolution (a pool, a Pad, the identity) computes output o from inputs

    stride * o + first,  stride * o + first + step,  …  (taps of them; zeros outside)

for o < floor((size + margin) / stride) + 1.  A Conv with pads (p, q) has first = -p and
margin = p + q - dilation * (kernel - 1) - 1.  In these terms the sum of two maps is one map whose taps are the union of
theirs, and one after the other is one map whose taps are the sums of theirs.  MatMul and Gemm have no such axes.

Nothing here reads a weight: `kernels` makes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold.fold.union_find import Floats
from bnfold.graph import Node, Value


@dataclass(frozen=True)
class Axis:
    """Where the taps of a map lie along one spatial axis."""

    first: int
    taps: int = 1
    step: int = 1
    stride: int = 1
    margin: int = -1

    @property
    def last(self) -> int:
        """Where the last tap lies."""
        return self.first + (self.taps - 1) * self.step

    @property
    def pads(self) -> tuple[int, int]:
        """Zeros that are seen before and behind the input."""
        return -self.first, self.margin + 1 + self.last

    @property
    def padded(self) -> bool:
        """True if some output may see a zero beside the input."""
        return self.pads != (0, 0)

    @property
    def is_pointwise(self) -> bool:
        """True if output o sees input o and nothing else."""
        return self == POINT


POINT = Axis(0)


def union(axes: Sequence[Axis], size: int | None) -> Axis | None:
    """The axis of a sum of maps; None if their strides, or the sizes of their outputs, differ.

    Args:
        axes: one of each map.
        size: of the input, where it is known: then outputs may be of equal size though their margins differ.
    """
    stride, margin = axes[0].stride, max(axis.margin for axis in axes)
    if any(axis.stride != stride for axis in axes):
        return None
    same = all(axis.margin == margin for axis in axes)
    if not same and (size is None or len({(size + axis.margin) // stride for axis in axes}) > 1):
        return None
    first, last = min(axis.first for axis in axes), max(axis.last for axis in axes)
    step = 0
    for axis in axes:
        step = math.gcd(step, axis.first - first, axis.step if axis.taps > 1 else 0)
    return Axis(first, (last - first) // step + 1 if step else 1, step or 1, stride, margin)


def behind(outer: Axis, inner: Axis) -> Axis:
    """The axis of outer(inner(x))."""
    step = math.gcd(outer.step * inner.stride if outer.taps > 1 else 0, inner.step if inner.taps > 1 else 0)
    first, last = inner.first + inner.stride * outer.first, inner.last + inner.stride * outer.last
    margin = inner.margin + inner.stride * (outer.margin + 1)
    return Axis(first, (last - first) // step + 1 if step else 1, step or 1, inner.stride * outer.stride, margin)


@dataclass(frozen=True, eq=False)
class Term:
    """A linear map of `source`, computed by `nodes`; `value` is its result.

    kind: 'weight' (of one node), 'identity', 'average' (a pool), 'affine' (a y + b behind `parts[0]`), 'sum' of
    `parts`, 'chain' (`parts[0]` behind `parts[1]`).
    rows, columns, groups, axes: its shape; None where only what it is summed with tells (the identity fits any).
    last: channels lie along the last axis (MatMul, Gemm) and not along axis 1 (Conv).
    host: the node that can hold a merged weight; None if there is none.
    steps, node: a and b of 'affine', float64, and the op that they belong to (none: a sign).
    gains, across: alpha and beta of a Gemm, and whether its weight is transposed.
    """

    kind: str
    value: Value
    source: Value
    nodes: tuple[Node, ...] = ()
    parts: tuple[Term, ...] = ()
    rows: int | None = None
    columns: int | None = None
    groups: int | None = None
    axes: tuple[Axis, ...] | None = None
    last: bool | None = None
    host: Node | None = None
    steps: tuple[Floats, Floats] | None = None
    node: Node | None = None
    weight: Value | None = None
    bias: Value | None = None
    gains: tuple[float, float] = (1.0, 1.0)
    across: bool = False
    dtype: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its kernel: (rows, columns of a group, taps …)."""
        assert self.rows is not None
        assert self.columns is not None
        assert self.groups is not None
        assert self.axes is not None
        return self.rows, self.columns // self.groups, *(axis.taps for axis in self.axes)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for maps whose kernels are equal."""
        own = (self.kind, self.rows, self.columns, self.groups, self.axes, self.weight, self.bias, self.gains)
        steps = tuple(step.tobytes() for step in self.steps) if self.steps else ()
        return (*own, self.across, steps, tuple(part.key for part in self.parts))

    def walk(self) -> Iterator[Term]:
        """It, and all that it is made of."""
        yield self
        for part in self.parts:
            yield from part.walk()


def fitted(term: Term, channels: int, rank: int, last: bool) -> Term | None:
    """A term of unknown size beside others that are known; None if it doesn't fit.

    Args:
        term: any.
        channels: of its input, and of its output if it hands channels on.
        rank: number of spatial axes.
        last: whether channels lie along the last axis.
    """
    if term.last is not None and term.last != last:
        return None
    if term.rows is not None:
        return term if term.axes is not None and len(term.axes) == rank else None
    parts = [fitted(part, channels, rank, last) for part in term.parts]
    axes = (POINT,) * rank if term.axes is None else term.axes
    if any(part is None for part in parts) or len(axes) != rank:
        return None
    if term.steps is not None and not all(per_channel(step, channels, rank, last) for step in term.steps):
        return None
    known = tuple(part for part in parts if part is not None)
    return replace(term, parts=known, rows=channels, columns=channels, groups=channels, axes=axes, last=last)


def per_channel(array: Floats, channels: int, rank: int, last: bool) -> bool:
    """True if an array varies along the channels alone, and makes nothing larger that has them."""
    width = 1 if last else rank + 2
    place = -1 if last else -1 - rank
    along = {axis: size for axis, size in zip(range(-array.ndim, 0), array.shape, strict=True) if size > 1}
    return array.ndim <= width and along in ({}, {place: channels})


def as_rows(array: Floats, rows: int) -> Floats:
    """An array that varies along channels alone, as a vector over rows."""
    return np.broadcast_to(np.ravel(array), (rows,)).astype(np.float64)
