"""Layout ops move elements about: they are the same numpy operation on the ids.

Ids are kept as small as they can be, (1, C, 1, 1) for a feature map.  Where an op needs true sizes
(Reshape), it runs on the shapes of each analysis (`bnfold.shapes`), and the result counts only if all
of them agree: then it holds whatever the batch size is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bnfold.fold.ties import FIXED, IDENTITY, Coordinates, Ties, rule
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


@rule("Concat")
def concat(ties: Ties, node: Node) -> bool:
    """Ids side by side along the axis; constants keep their own coordinates, the identity."""
    values = [value for value in node.inputs if value is not None]
    parts = [ties.of(value) for value in values]
    if not values or all(part is FIXED for part in parts):
        return False
    if all(part.uniform for part in parts) and len({(p.scale.item(), p.shift.item()) for p in parts}) == 1:
        ties.set(node.output(), Coordinates(parts[0].scale.reshape(()), parts[0].shift.reshape(())))
        return True
    rank = next((r for r in (ties.rank(value) for value in values) if r is not None), None)
    axis = int(node.attribute("axis", 1))
    if rank is None:
        return False
    axis %= rank
    sizes = [_size_along(ties, value, part, rank, axis) for value, part in zip(values, parts, strict=True)]
    if any(size is None for size in sizes):
        return _concat_even(ties, node, parts, axis - rank)
    joined = []
    for kind in ("scale", "shift"):
        pieces = [full(getattr(part, kind), rank) for part in parts]
        shape = [max(piece.shape[k] for piece in pieces) for k in range(rank)]
        if math.prod(shape) * sum(size or 0 for size in sizes) > MAX_IDS * max(shape[axis], 1):
            return False
        shape_of = [[*shape[:axis], size, *shape[axis + 1 :]] for size in sizes]
        try:
            pieces = [np.broadcast_to(piece, want) for piece, want in zip(pieces, shape_of, strict=True)]
        except ValueError:
            return False
        joined.append(compact(np.concatenate(pieces, axis=axis)))
    ties.set(node.output(), Coordinates(joined[0], joined[1], rank))
    return True


def _size_along(ties: Ties, value: Value, part: Coordinates, rank: int, axis: int) -> int | None:
    """The value's size along the axis: ids tell it where they vary, shapes elsewhere."""
    for ids in (part.scale, part.shift):
        if ids.ndim > rank - 1 - axis and full(ids, rank).shape[axis] > 1:
            return int(full(ids, rank).shape[axis])
    dims = ties.dims(value)
    return None if dims is None else dims[axis]


def _concat_even(ties: Ties, node: Node, parts: list[Coordinates], axis: int) -> bool:
    """Along an axis of unknown size all parts have to be in the same coordinates."""
    parts = [ties.even(part, [axis], node) for part in parts]
    try:
        shape = np.broadcast_shapes(*(p.scale.shape for p in parts))
        shift_shape = np.broadcast_shapes(*(p.shift.shape for p in parts))
    except ValueError:
        return False
    first = Coordinates(np.broadcast_to(parts[0].scale, shape), np.broadcast_to(parts[0].shift, shift_shape))
    for part in parts[1:]:
        ties.equal_scale(np.broadcast_to(part.scale, shape), first.scale, node)
        ties.equal_shift(np.broadcast_to(part.shift, shift_shape), first.shift, node)
    ties.set(node.output(), first)
    return True


@rule("Split", "SplitToSequence")
def split(ties: Ties, node: Node) -> bool:
    """Ids are cut along the axis; a sequence is remembered by its parts."""
    source = node.input(0)
    if source is None:
        return False
    held = ties.of(source)
    if held is FIXED:
        return False
    rank = ties.rank(source)
    if rank is None:
        return False
    axis = int(node.attribute("axis", 0)) % rank
    sizes = _split_sizes(ties, node, source, held, rank, axis)
    if sizes is None:
        return False
    edges = np.cumsum([0, *sizes])
    parts = []
    for start, stop in itertools.pairwise(edges):
        cut = [
            ids if ids.shape[axis] == 1 else np.take(ids, np.arange(start, stop), axis=axis)
            for ids in (full(held.scale, rank), full(held.shift, rank))
        ]
        parts.append(Coordinates(compact(cut[0]), compact(cut[1]), rank))
    if node.op == "SplitToSequence":
        output = node.output()
        if output is None or not node.attribute("keepdims", 1):
            return False
        ties.sequences[output] = parts
        ties.set(output, held)
        return True
    for value, part in zip(node.outputs, parts, strict=False):
        ties.set(value, part)
    return True


def _split_sizes(
    ties: Ties, node: Node, source: Value, held: Coordinates, rank: int, axis: int
) -> list[int] | None:
    total = _size_along(ties, source, held, rank, axis)
    sizes = ties.integers(node, "split", 1)
    if node.op == "SplitToSequence":
        array = ties.array(node.input(1))
        if total is None or (array is None and node.input(1) is not None):
            return None
        if array is None or array.ndim == 0:  # chunks of this size, the last one may be smaller
            size = 1 if array is None else int(array)
            return [min(size, total - start) for start in range(0, total, size)] if size > 0 else None
        sizes = [int(n) for n in array]
    if sizes is None:
        if node.op == "Split" and len(node.inputs) > 1 and node.input(1) is not None:
            return None
        count = int(node.attribute("num_outputs", len(node.outputs)))
        if total is None:
            # Sizes don't matter where ids don't vary along the axis.
            varies = any(full(ids, rank).shape[axis] > 1 for ids in (held.scale, held.shift))
            return None if varies else [0] * count
        size = -(-total // count)
        sizes = [min(size, total - start) for start in range(0, total, size)]
    return sizes if total is None or sum(sizes) == total else None


@rule("SequenceAt")
def sequence_at(ties: Ties, node: Node) -> bool:
    """One part of a sequence, at a constant position."""
    sequence, position = node.input(0), ties.array(node.input(1))
    if sequence is None or sequence not in ties.sequences or position is None:
        return False
    parts = ties.sequences[sequence]
    index = int(np.ravel(position)[0])
    if not -len(parts) <= index < len(parts):
        return False
    ties.set(node.output(), parts[index])
    return True


@rule("Slice")
def slice_elements(ties: Ties, node: Node) -> bool:
    """Ids are sliced where they vary; elsewhere every slice is alike."""
    source = node.input(0)
    if source is None:
        return False
    starts, ends = ties.integers(node, "starts", 1), ties.integers(node, "ends", 2)
    axes, steps = ties.integers(node, "axes", 3), ties.integers(node, "steps", 4)

    def change(ids: Ids, rank: int) -> Ids | None:
        if axes is None and node.input(3) is not None and node.opset >= 10:
            return None
        count = len(starts or ends or axes or [])
        where = [axis % rank for axis in axes] if axes is not None else list(range(count or rank))
        index: list[Any] = [slice(None)] * rank
        for k, axis in enumerate(where):
            if ids.shape[axis] == 1:
                continue
            if starts is None or ends is None or (steps is None and node.opset >= 10 and node.input(4) is not None):
                return None
            step = steps[k] if steps is not None else 1
            stop: int | None = ends[k]
            if step < 0 and ends[k] < -ids.shape[axis]:
                stop = None  # "before the beginning"
            index[axis] = slice(starts[k], stop, step)
        cut = ids[tuple(index)]
        return cut if cut.size else None

    return moved(ties, node, source, change)


def gather_elements(ties: Ties, node: Node) -> bool:
    """Gather from a computed value: ids are gathered where they vary along the axis (called by the linear rule)."""
    source, indices = node.input(0), node.input(1)
    if source is None or indices is None:
        return False
    where = ties.array(indices)

    def change(ids: Ids, rank: int) -> Ids | None:
        axis = int(node.attribute("axis", 0)) % rank
        if where is not None and ids.shape[axis] > 1:
            if where.size * (ids.size // ids.shape[axis]) > MAX_IDS:
                return None
            return np.take(ids, where.astype(np.int64), axis=axis, mode="wrap")
        places = where.ndim if where is not None else ties.rank(indices)
        if ids.shape[axis] > 1 or places is None:
            return None
        return ids.reshape((*ids.shape[:axis], *(1,) * places, *ids.shape[axis + 1 :]))

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


@rule("Pad")
def pad(ties: Ties, node: Node) -> bool:
    """Padding with zeros: t = 0 and any s; new elements of the channel axis have scales of their own.

    Reflection and edges repeat elements: any s and t, where ids don't vary along the padded axes.
    """
    source = node.input(0)
    if source is None or ties.of(source) is FIXED:
        return False
    held = ties.of(source)
    rank = ties.rank(source)
    amounts = ties.integers(node, "pads" if node.attribute("pads") is not None else "paddings", 1)
    if rank is None:
        return False
    if node.attribute("mode", "constant") != "constant":
        if max(held.scale.size, held.shift.size) > 1 and not _unpadded_where_varied(held, amounts, rank, node):
            return False
        ties.set(node.output(), held)
        return True
    if not _pads_with_zero(ties, node):
        return False
    ties.no_shift(held, node)
    scale = full(held.scale, rank)
    if amounts is None or node.input(3) is not None:
        # Amounts computed while the model runs: sound as long as the ids can't be displaced.
        if scale.size > 1 and not _spatial_only(ties, node, scale):
            return False
    elif len(amounts) == 2 * rank:
        for axis in range(rank):
            before, behind = amounts[axis], amounts[axis + rank]
            if scale.shape[axis] > 1 and (before or behind):
                if before < 0 or behind < 0:
                    return False
                size = [list(scale.shape), list(scale.shape)]
                size[0][axis], size[1][axis] = before, behind
                scale = np.concatenate([ties.fresh_scale(size[0]), scale, ties.fresh_scale(size[1])], axis=axis)
    else:
        return False
    ties.set(node.output(), Coordinates(scale, IDENTITY, rank))
    return True


def _pads_with_zero(ties: Ties, node: Node) -> bool:
    if node.opset < 11:
        return float(node.attribute("value", 0.0)) == 0.0
    value = node.input(2)
    if value is None:
        return True
    array = ties.array(value)
    return array is not None and (array.size == 0 or float(np.ravel(array)[0]) == 0.0)


def _unpadded_where_varied(held: Coordinates, amounts: list[int] | None, rank: int, node: Node) -> bool:
    if amounts is None or len(amounts) != 2 * rank or node.input(3) is not None:
        return False
    return all(
        full(ids, rank).shape[axis] == 1 or not (amounts[axis] or amounts[axis + rank])
        for ids in (held.scale, held.shift)
        for axis in range(rank)
    )


def _spatial_only(ties: Ties, node: Node, scale: Ids) -> bool:
    """True if the shapes show that the axes along which ids vary are not padded."""
    source, output = node.input(0), node.output()
    if source is None or output is None:
        return False
    before, after = ties.shapes.cases(ties.scope, source), ties.shapes.cases(ties.scope, output)
    for old, new in zip(before, after, strict=True):
        if old is None or new is None:
            return False
        if any(size > 1 and (new[axis] is None or new[axis] != size) for axis, size in enumerate(scale.shape)):
            return False
    return True
