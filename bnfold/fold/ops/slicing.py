"""Ops that take parts of values or join them: the ids are cut and joined alike.

Along an axis where ids don't vary any part is as good as another, so that sizes need not be known there.
What is new, the zeros of a Pad, has scales of its own.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from bnfold.fold.ops.layout import MAX_IDS, compact, full, moved
from bnfold.fold.ties import FIXED, IDENTITY, Coordinates, Ties, rule
from bnfold.fold.union_find import Ids
from bnfold.graph import Node, Value


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


def _split_sizes(ties: Ties, node: Node, source: Value, held: Coordinates, rank: int, axis: int) -> list[int] | None:
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
