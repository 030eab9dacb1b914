"""The moves of `random_graphs` that only move elements about."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from random_graphs import MAX_ELEMENTS, Builder, Value


def transpose(b: Builder, x: Value) -> None:
    if not x.rank:
        return
    order = list(range(x.rank))
    for k in range(x.rank - 1, 0, -1):
        j = b.integer(0, k)
        order[k], order[j] = order[j], order[k]
    b.one("Transpose", x, perm=order)


def reshape(b: Builder, x: Value) -> None:
    """Merge two axes, split one, or flatten all but the first."""
    form = b.pick(["merge", "split", "flat", "flatten"])
    shape = list(x.shape)
    if form == "flatten":
        b.one("Flatten", x, axis=b.integer(0, x.rank))
        return
    if form == "merge" and x.rank > 1:
        k = b.integer(0, x.rank - 2)
        shape[k : k + 2] = [shape[k] * shape[k + 1]]
    elif form == "split" and x.rank:
        k = b.integer(0, x.rank - 1)
        part = b.pick([d for d in range(1, shape[k] + 1) if shape[k] % d == 0])
        shape[k : k + 1] = [part, shape[k] // part]
    elif x.rank > 1:
        shape = [shape[0], math.prod(shape[1:])]
    if shape and b.chance(2):
        shape[0 if b.chance(2) else b.integer(0, len(shape) - 1)] = -1
    b.one("Reshape", x, b.integers(shape))


def shuffle(b: Builder, x: Value) -> None:
    """ShuffleNet's: channels seen as groups, transposed."""
    if x.rank != 4 or x.shape[1] % 2:
        return
    n, c, h, w = x.shape
    y = b.one("Reshape", x, b.integers([n, 2, c // 2, h, w]))
    y = b.one("Transpose", y, perm=[0, 2, 1, 3, 4])
    b.one("Reshape", y, b.integers([n, c, h, w]))


def squeeze(b: Builder, x: Value) -> None:
    ones = [axis for axis, size in enumerate(x.shape) if size == 1]
    if ones and b.chance(2):
        axes = [b.pick(ones)]
        op = "Squeeze"
    else:
        axes, op = [b.integer(0, x.rank)], "Unsqueeze"
    if b.opset >= 11 and b.chance(2):
        axes = [axis - x.rank - (op == "Unsqueeze") for axis in axes]
    if b.opset < 13:
        b.one(op, x, axes=axes)
    else:
        b.one(op, x, b.integers(axes))


def concat(b: Builder, x: Value) -> None:
    if not x.rank:
        return
    axis = b.pick([min(1, x.rank - 1), b.integer(0, x.rank - 1)])
    near = [v for v in b.values if v.dtype == x.dtype and _beside(v.shape, x.shape, axis)]
    parts: list[Value | str] = [x, b.pick(near)]
    if b.chance(4):
        parts.append(b.weight(x.shape, x.dtype))
    if b.chance(2):
        parts.reverse()
    b.one("Concat", *parts, axis=axis - x.rank if b.opset >= 11 and b.chance(2) else axis)


def _beside(one: tuple[int, ...], other: tuple[int, ...], axis: int) -> bool:
    return len(one) == len(other) and all(p == q for k, (p, q) in enumerate(zip(one, other, strict=True)) if k != axis)


def split(b: Builder, x: Value) -> None:
    axes = [axis for axis, size in enumerate(x.shape) if size > 1]
    if not axes:
        return
    axis = b.pick([1, *axes] if 1 in axes else axes)
    first = b.integer(1, x.shape[axis] - 1)
    sizes = [first, x.shape[axis] - first]
    if b.chance(4):
        sequence = b.name("v")
        b.nodes.append(_node("SplitToSequence", [x.name, b.integers(sizes)], [sequence], axis=axis))
        for position, size in enumerate(sizes):
            part = Value(b.name("v"), tuple(size if k == axis else n for k, n in enumerate(x.shape)), x.dtype)
            b.append(_node("SequenceAt", [sequence, b.integers(position)], [part.name]), [part])
    elif b.opset < 13:
        b.node("Split", [x], 2, axis=axis, split=sizes)
    else:
        b.node("Split", [x, b.integers(sizes)], 2, axis=axis)


def _node(op: str, inputs: list[str], outputs: list[str], **attributes: int) -> object:
    from onnx import helper

    return helper.make_node(op, inputs, outputs, outputs[0], **attributes)


def slice_(b: Builder, x: Value) -> None:
    if not x.rank:
        return
    axis = b.pick([min(1, x.rank - 1), b.integer(0, x.rank - 1)])
    size = x.shape[axis]
    start = b.integer(0, size - 1)
    step = b.pick([1, 1, 2, -1, -2])
    end = b.integer(start + 1, size + 1) if step > 0 else b.pick([-size - 1, -(1 << 40), max(start - 2, 0) - size - 1])
    if b.opset < 10:
        if step == 1:
            b.one("Slice", x, starts=[start], ends=[end], axes=[axis])
        return
    b.one("Slice", x, b.integers([start]), b.integers([end]), b.integers([axis]), b.integers([step]))


def gather(b: Builder, x: Value) -> None:
    if not x.rank:
        return
    axis = b.pick([min(1, x.rank - 1), b.integer(0, x.rank - 1)])
    size = x.shape[axis]
    shape = b.pick([(), (size,), (2,), (2, 2), (1,)])
    where = b.rng.permutation(size) if shape == (size,) and b.chance(2) else b.rng.integers(-size, size, shape)
    b.one("Gather", x, b.constant(np.asarray(where, np.int64), b.name("i")), axis=axis)


def expand(b: Builder, x: Value) -> None:
    shape = [2 if size == 1 and b.chance(2) else b.pick([size, 1]) for size in x.shape]
    if b.chance(2):
        shape.insert(0, b.integer(1, 2))
    b.one("Expand", x, b.integers(shape))


def tile(b: Builder, x: Value) -> None:
    repeats = [b.pick([1, 1, 2]) for _ in x.shape]
    if x.size * math.prod(repeats) <= MAX_ELEMENTS:
        b.one("Tile", x, b.integers(repeats))


def depth(b: Builder, x: Value) -> None:
    if x.rank != 4:
        return
    if x.shape[1] % 4 == 0:
        b.one("DepthToSpace", x, blocksize=2, mode=b.pick(["DCR", "CRD"]))
    elif x.shape[2] % 2 == x.shape[3] % 2 == 0:
        b.one("SpaceToDepth", x, blocksize=2)


def pad(b: Builder, x: Value) -> None:
    if x.rank < 2:
        return
    mode = b.pick(["constant", "constant", "reflect", "edge"])
    first = 0 if mode == "constant" and b.chance(2) else min(2, x.rank - 1)
    amounts = [0 if k % x.rank < first or not b.chance(2) else 1 for k in range(2 * x.rank)]
    if mode == "reflect" and any(amount and x.shape[k % x.rank] < 2 for k, amount in enumerate(amounts)):
        return
    if b.opset < 11:
        b.one("Pad", x, pads=amounts, mode=mode)
        return
    value = [b.constant(b.pick([0.0, 0.0, 0.5]), b.name("w"), x.dtype)] if mode == "constant" and b.chance(2) else []
    b.one("Pad", x, b.integers(amounts), *value, mode=mode)


LAYOUT: list[Callable[[Builder, Value], None]] = [
    transpose, reshape, shuffle, squeeze, *[concat] * 2, split, slice_, gather, expand, tile, depth, pad,
]  # fmt: skip
