"""Operators that move values around: shapes, slices, gathers, and tensors made from sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnfold.torch.ops.table import op


@op("Reshape", since=5, kinds="ts")
def reshape(x: Tensor, target: Sequence[int], *, allowzero: int = 0) -> Tensor:
    if not allowzero and 0 in target:
        target = [x.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return x.reshape(target)


@op("Reshape", since=1)
def reshape_1(x: Tensor, *, shape: Sequence[int]) -> Tensor:
    return reshape(x, shape)


@op("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    if axis == 1 and x.dim() > 1:
        return x.flatten(1)
    axis = axis % x.dim() if axis != x.dim() else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(perm if perm is not None else tuple(reversed(range(x.dim()))))


@op("Squeeze", since=13, kinds="ts")
def squeeze(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    if axes is None:
        return x.squeeze()
    return x.squeeze(tuple(axes)) if axes else x


@op("Squeeze", since=1)
def squeeze_1(x: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    return squeeze(x, axes)


@op("Unsqueeze", since=13, kinds="ts")
def unsqueeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@op("Unsqueeze", since=1)
def unsqueeze_1(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    return unsqueeze(x, axes)


@op("Concat", since=1)
def concat(*tensors: Tensor, axis: int = 1) -> Tensor:
    return torch.cat(tensors, axis)


@op("Split", since=13, kinds="ts")
def split(
    x: Tensor, sizes: Sequence[int] | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int
) -> tuple[Tensor, ...]:
    if sizes is None:
        each = -(-x.shape[axis] // (num_outputs or outputs))
        sizes = [each] * outputs
        sizes[-1] = x.shape[axis] - each * (outputs - 1)
    return torch.split(x, list(sizes), axis)


@op("Split", since=2)
def split_2(x: Tensor, *, axis: int = 0, split: Sequence[int] | None = None, outputs: int) -> tuple[Tensor, ...]:
    sizes = split if split is not None else [x.shape[axis] // outputs] * outputs
    return torch.split(x, list(sizes), axis)


@op("Slice", since=10, kinds="tssss")
def slice_(
    x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        step = steps[i] if steps is not None else 1
        size = x.shape[axis]
        if step > 0:
            start, end = _clamped(starts[i], size, size), _clamped(ends[i], size, size)
            if start == 0 and end == size and step == 1:
                continue
            index = [slice(None)] * (axis % x.dim()) + [slice(start, max(start, end), step)]
            x = x[tuple(index)]
        else:  # torch has no negative steps
            start, end = _clamped(starts[i], size, size - 1), _clamped(ends[i], size, size - 1, -1)
            x = x.index_select(axis, torch.arange(start, end, step, device=x.device))
    return x


def _clamped(position: int, size: int, highest: int, lowest: int = 0) -> int:
    """A position counted from either end, within bounds."""
    if position < 0:
        position = position + size
    return lowest if position < lowest else min(position, highest)


@op("Slice", since=1)
def slice_1(x: Tensor, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None) -> Tensor:
    return slice_(x, starts, ends, axes)


@op("Gather", kinds="ti")
def gather(x: Tensor, index: Any, *, axis: int = 0) -> Tensor:
    if isinstance(index, int):
        return x.select(axis, index)
    if not isinstance(index, Tensor):
        index = torch.tensor(index, device=x.device)
    axis = axis % x.dim()
    if axis == 0 and x.dim() == 2 and x.is_floating_point():
        return F.embedding(_from_front(index, x.shape[0]), x)
    taken = x.index_select(axis, _from_front(index, x.shape[axis]).flatten())
    return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _from_front(index: Tensor, size: int) -> Tensor:
    """Indices counted from the end, counted from the beginning."""
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


@op("GatherElements")
def gather_elements(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, _from_front(index, x.shape[axis]))


@op("GatherND")
def gather_nd(x: Tensor, index: Tensor, *, batch_dims: int = 0) -> Tensor:
    index = index.to(torch.int64)
    batch = [
        torch.arange(size, device=x.device).reshape([-1 if i == j else 1 for j in range(index.dim() - 1)])
        for i, size in enumerate(x.shape[:batch_dims])
    ]
    return x[tuple(batch) + index.unbind(-1)]


def _combine(x: Tensor, where: tuple[Any, ...], updates: Tensor, reduction: str) -> Tensor:
    """A copy of x with updates at places that may be named several times."""
    if reduction == "none":
        return x.index_put(where, updates)
    if reduction == "add":
        return x.index_put(where, updates, accumulate=True)
    flat = torch.arange(x.numel(), device=x.device).reshape(x.shape)[where].flatten()
    how = {"mul": "prod", "max": "amax", "min": "amin"}[reduction]
    result = x.flatten().scatter_reduce(0, flat, updates.flatten().to(x.dtype), how)
    return result.reshape(x.shape)


@op("ScatterND")
def scatter_nd(x: Tensor, index: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    return _combine(x, index.to(torch.int64).unbind(-1), updates, reduction)


@op("ScatterElements Scatter")
def scatter_elements(
    x: Tensor, index: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    index = _from_front(index, x.shape[axis])
    where = [
        torch.arange(n, device=x.device).reshape([-1 if i == j else 1 for j in range(x.dim())]).expand(index.shape)
        for i, n in enumerate(index.shape)
    ]
    where[axis % x.dim()] = index
    return _combine(x, tuple(where), updates, reduction)


@op("Expand", kinds="ts")
def expand(x: Tensor, target: Sequence[int]) -> Tensor:
    missing = len(target) - x.dim()
    if missing < 0:
        target, missing = [*(1,) * -missing, *target], 0
    return x.expand([
        size if i < missing or x.shape[i - missing] == 1 else x.shape[i - missing] for i, size in enumerate(target)
    ])


@op("Tile", since=6, kinds="ts")
def tile(x: Tensor, repeats: Sequence[int]) -> Tensor:
    return x.repeat(tuple(repeats))


@op("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    parts = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, c // blocksize**2, h * blocksize, w * blocksize)


@op("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    order = (0, 1, 3, 5, 2, 4) if mode == "CRD" else (0, 3, 5, 1, 2, 4)
    return parts.permute(order).reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


@op("Pad", since=11, kinds="tsks")
def pad(
    x: Tensor, pads: Sequence[int], value: Any = None, axes: Sequence[int] | None = None, *, mode: str = "constant"
) -> Tensor:
    rank, some = x.dim(), len(pads) // 2
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(axes if axes is not None else range(some)):
        begin[axis], end[axis] = pads[i], pads[some + i]
    if mode == "constant":
        both = [size for axis in reversed(range(rank)) for size in (begin[axis], end[axis])]
        return F.pad(x, both, value=value or 0)
    for axis in range(rank):
        if begin[axis] or end[axis]:
            x = x.index_select(axis, _mirrored(x.shape[axis], begin[axis], end[axis], mode, x.device))
    return x


def _mirrored(size: int, begin: int, end: int, mode: str, device: Any) -> Tensor:
    """Which element stands at each place of an axis that is padded by its own elements."""
    places = torch.arange(-begin, size + end, device=device)
    if mode == "wrap":
        return places % size
    if mode == "edge":
        return places.clamp(0, size - 1)
    period = max(2 * (size - 1), 1)
    places = places % period
    return torch.where(places < size, places, period - places)


@op("Pad", since=2)
def pad_2(x: Tensor, *, pads: Sequence[int], value: float = 0.0, mode: str = "constant") -> Tensor:
    return pad(x, pads, value, mode=mode)


@op("Pad", since=1)
def pad_1(x: Tensor, *, paddings: Sequence[int], value: float = 0.0, mode: str = "constant") -> Tensor:
    return pad(x, paddings, value, mode=mode)


@op("CenterCropPad", kinds="ts")
def center_crop_pad(x: Tensor, target: Sequence[int], *, axes: Sequence[int] | None = None) -> Tensor:
    for axis, wanted in zip(axes if axes is not None else range(x.dim()), target, strict=True):
        have = x.shape[axis]
        if wanted < have:
            x = x.narrow(axis, (have - wanted) // 2, wanted)
        elif wanted > have:
            front = (wanted - have) // 2
            x = pad(x, [front, wanted - have - front], axes=[axis])
    return x


@op("ReverseSequence")
def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    size = x.shape[time_axis]
    places = torch.arange(size, device=x.device).unsqueeze(1)
    source = torch.where(places < lengths, lengths - 1 - places, places)  # (time, batch)
    source = source if time_axis < batch_axis else source.t()
    view = [1] * x.dim()
    view[time_axis], view[batch_axis] = x.shape[time_axis], x.shape[batch_axis]
    return torch.gather(x, time_axis, source.reshape(view).expand(x.shape))


@op("Trilu", kinds="tk")
def trilu(x: Tensor, k: int = 0, *, upper: int = 1) -> Tensor:
    return torch.triu(x, k) if upper else torch.tril(x, k)


@op("NonZero")
def non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).t() if x.dim() else torch.zeros((0, int(bool(x))), dtype=torch.int64)


@op("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    if axis is None:
        x, axis = x.flatten(), 0
    return x.index_select(axis, torch.nonzero(condition).flatten())


@op("Unique")
def unique(x: Tensor, *, axis: int | None = None, sorted: int = 1, outputs: int = 1) -> Any:  # noqa: A002
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    length = inverse.numel()
    places = torch.arange(length, device=x.device)
    first = places.new_full((counts.numel(),), length).scatter_reduce(0, inverse.flatten(), places, "amin")
    if not sorted:
        order = torch.argsort(first)
        values = values.index_select(axis or 0, order)
        first, counts, inverse = first[order], counts[order], torch.argsort(order)[inverse]
    every = (values, first, inverse.flatten(), counts)
    return every[:outputs] if outputs > 1 else values


@op("OneHot", kinds="tkt")
def one_hot(index: Tensor, depth: int, values: Tensor, *, axis: int = -1) -> Tensor:
    places = torch.arange(int(depth), device=index.device)
    where = _from_front(index, int(depth)).unsqueeze(-1) == places
    return torch.where(where, values[1], values[0]).movedim(-1, axis)
