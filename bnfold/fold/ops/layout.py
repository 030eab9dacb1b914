"""Layout ops keep every element and move or repeat it: they are the same numpy operation on the ids.

Ids are kept as small as they can be, (1, C, 1, 1) for a feature map.  Where an op needs true sizes
(Reshape), it runs on the shapes of each analysis (`bnfold.shapes`), and the result counts only if all
of them agree: then it holds whatever the batch size is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from bnfold.fold.ties import FIXED, Coordinates, Ties, rule
from bnfold.fold.union_find import Ids
from bnfold.graph import Node, Value

# Ids of more elements than this are not tracked through a layout op (a feature map with ids per pixel).
MAX_IDS = 1 << 20
FLOAT_TYPES = (1, 10, 11, 16)  # TensorProto: FLOAT, FLOAT16, DOUBLE, BFLOAT16


def full(ids: Ids, rank: int) -> Ids:
    """Ids with one axis for each of the value's."""
    shape = (1,) * (rank - ids.ndim) + ids.shape
    return np.reshape(ids, shape[len(shape) - rank :])


def compact(ids: Ids) -> Ids:
    """Axes along which ids don't vary shrink to size 1."""
    for axis in range(ids.ndim):
        if ids.shape[axis] > 1:
            first = np.take(ids, [0], axis=axis)
            if (ids == first).all():
                ids = first
    return ids


def moved(ties: Ties, node: Node, source: Value, function: Callable[[Ids, int], Ids | None]) -> bool:
    """Hand on the coordinates through `function(ids, rank)`; False if it can't be told where they go."""
    held = ties.of(source)
    if held.uniform:
        ties.set(node.output(), Coordinates(held.scale.reshape(()), held.shift.reshape(())))
        return True
    rank = ties.rank(source)
    if rank is None:
        return False
    scale, shift = function(full(held.scale, rank), rank), function(full(held.shift, rank), rank)
    if scale is None or shift is None:
        return False
    ties.set(node.output(), Coordinates(compact(scale), compact(shift), scale.ndim))
    return True


@rule("Identity")
def identity(ties: Ties, node: Node) -> bool:
    """y = x."""
    source = node.input(0)
    if source is None:
        return False
    ties.set(node.output(), ties.of(source))
    return True


@rule("Dropout")
def dropout(ties: Ties, node: Node) -> bool:
    """y = x at inference; refused where it may drop."""
    training = node.input(2)
    if training is not None:
        array = ties.array(training)
        if array is None or bool(np.ravel(array)[0]):
            return False
    if node.opset < 7 and not node.attribute("is_test", 0):
        return False
    return identity(ties, node)


@rule("Cast", "CastLike")
def cast(ties: Ties, node: Node) -> bool:
    """Between floating types the coordinates stay."""
    source, output = node.input(0), node.output()
    if source is None or output is None or ties.of(source) is FIXED:
        return False
    to = node.attribute("to") if node.op == "Cast" else ties.shapes.element_type(ties.scope, output)
    return to in FLOAT_TYPES and identity(ties, node)


@rule("Transpose")
def transpose(ties: Ties, node: Node) -> bool:
    """Axes are exchanged."""
    source = node.input(0)
    if source is None:
        return False
    perm = node.attribute("perm")

    def change(ids: Ids, rank: int) -> Ids | None:
        return ids.transpose(perm) if perm is None or len(perm) == rank else None

    return moved(ties, node, source, change)


@rule("Reshape", "Flatten")
def reshape(ties: Ties, node: Node) -> bool:
    """The same elements in order under another shape: a Flatten repeats ids, others merge or split axes."""
    source, output = node.input(0), node.output()
    if source is None or output is None:
        return False
    held = ties.of(source)
    if held.uniform:
        return moved(ties, node, source, lambda ids, rank: ids)
    before, after = ties.shapes.cases(ties.scope, source), ties.shapes.cases(ties.scope, output)
    results: list[list[Ids]] = []
    for old, new in zip(before, after, strict=True):
        if old is None or new is None or None in old or None in new:
            return False
        shapes = [int(d) for d in old if d is not None], [int(d) for d in new if d is not None]
        pair = [_reshaped(full(ids, len(old)), *shapes) for ids in (held.scale, held.shift)]
        if pair[0] is None or pair[1] is None:
            return False
        results.append([pair[0], pair[1]])
    first = results[0]
    for other in results[1:]:
        if any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True)):
            return False
    ties.set(output, Coordinates(first[0], first[1], first[0].ndim))
    return True


def _reshaped(ids: Ids, old: Sequence[int], new: Sequence[int]) -> Ids | None:
    """Reshape ids: axes are grouped where products meet, and groups without any variation stay of size 1."""
    if math.prod(old) != math.prod(new) or math.prod(old) == 0:
        return None
    expanded: list[int] = []
    target: list[int] = []
    i = j = 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        varies = any(ids.shape[axis] > 1 for axis in range(start_i, i))
        expanded += old[start_i:i] if varies else [1] * (i - start_i)
        target += new[start_j:j] if varies else [1] * (j - start_j)
    if math.prod(expanded) > MAX_IDS:
        return None
    return compact(np.broadcast_to(ids, expanded).reshape(target))


@rule("Squeeze", "Unsqueeze")
def squeeze(ties: Ties, node: Node) -> bool:
    """Axes of size 1 go or come."""
    source, output = node.input(0), node.output()
    if source is None or output is None:
        return False
    axes = ties.integers(node, "axes", 1)

    def change(ids: Ids, rank: int) -> Ids | None:
        if node.op == "Unsqueeze":
            if axes is None:
                return None
            wide = rank + len(axes)
            places = {axis % wide for axis in axes}
            kept = iter(ids.shape)
            return ids.reshape([1 if axis in places else next(kept) for axis in range(wide)])
        gone = {axis % rank for axis in axes} if axes is not None else _ones(ties, source)
        if gone is None or any(ids.shape[axis] > 1 for axis in gone):
            return None
        return ids.reshape([size for axis, size in enumerate(ids.shape) if axis not in gone])

    return moved(ties, node, source, change)


def _ones(ties: Ties, source: Value) -> set[int] | None:
    dims = ties.dims(source)
    if dims is None or None in dims:
        return None
    return {axis for axis, size in enumerate(dims) if size == 1}


@rule("Expand")
def expand(ties: Ties, node: Node) -> bool:
    """Broadcasting aligns axes at the end, as ids do; it may add axes in front."""
    source = node.input(0)
    if source is None:
        return False
    held = ties.of(source)
    ties.set(node.output(), Coordinates(held.scale, held.shift))
    return True


@rule("Tile")
def tile(ties: Ties, node: Node) -> bool:
    """Repeats whole axes."""
    source = node.input(0)
    repeats = ties.integers(node, "repeats", 1)
    if source is None or node.opset < 6:
        return False

    def change(ids: Ids, rank: int) -> Ids | None:
        if repeats is None or len(repeats) != rank or math.prod(ids.shape) * max(repeats) > MAX_IDS:
            return None
        return np.tile(ids, [n if size > 1 else 1 for n, size in zip(repeats, ids.shape, strict=True)])

    return moved(ties, node, source, change)


@rule("DepthToSpace", "SpaceToDepth")
def depth_space(ties: Ties, node: Node) -> bool:
    """Blocks of channels become pixels: they have to share coordinates; and back: channels repeat."""
    source = node.input(0)
    if source is None:
        return False
    held = ties.of(source)
    square = int(node.attribute("blocksize", 1)) ** 2
    mode = node.attribute("mode", "DCR")
    if held.uniform:
        return moved(ties, node, source, lambda ids, rank: ids)
    held = ties.even(held, [-1, -2, -4], node)
    result = []
    for kind, tie in (("scale", ties.equal_scale), ("shift", ties.equal_shift)):
        ids = full(getattr(held, kind), 4)
        channels = ids.shape[1]
        if channels == 1:
            result.append(ids)
        elif node.op == "SpaceToDepth":  # output channel (block position, c) comes from c
            result.append(np.tile(ids, (1, square, 1, 1)))
        else:  # DCR: input channel (block position, c); CRD: (c, block position)
            if channels % square:
                return False
            blocks = ids.reshape((square, -1) if mode == "DCR" else (-1, square))
            first = blocks[:1] if mode == "DCR" else blocks[:, :1]
            tie(np.broadcast_to(first, blocks.shape), blocks, node)
            result.append(first.reshape(1, -1, 1, 1))
    ties.set(node.output(), Coordinates(compact(result[0]), compact(result[1]), 4))
    return True
