"""Pooling: windows that slide over the spatial axes, and pools over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnfold.torch.ops.linear import as_torch_pads, window_pads
from bnfold.torch.ops.table import op

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def overhang(
    spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    pads: Sequence[int], ceil_mode: int,
) -> list[int]:  # fmt: skip
    """How far the last window of each axis reaches beyond the padding, if sizes are rounded up.

    A window that would start in the padding behind does not count (ONNX says so since opset 19, runtimes always did).
    """
    rank, result = len(kernel), []
    for i, size in enumerate(spatial):
        extent = (kernel[i] - 1) * dilations[i] + 1
        padded = size + pads[i] + pads[rank + i]
        if not ceil_mode:
            result.append(0)
            continue
        count = -(-(padded - extent) // strides[i]) + 1
        if (count - 1) * strides[i] >= size + pads[i]:
            count -= 1
        result.append(max((count - 1) * strides[i] + extent - padded, 0))
    return result


@op("MaxPool")
def max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Sequence[int] = (), pads: Sequence[int] = (), storage_order: int = 0, strides: Sequence[int] = (),
    outputs: int = 1,
) -> Any:  # fmt: skip
    rank = len(kernel_shape)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    pads = window_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    if not x.is_floating_point():
        exact = x.to(torch.float64)  # torch pools no 8-bit integers
        y = max_pool(exact, kernel_shape=kernel_shape, ceil_mode=ceil_mode, dilations=dilations, pads=pads,
                     storage_order=storage_order, strides=strides, outputs=outputs)  # fmt: skip
        return (y[0].to(x.dtype), y[1]) if outputs > 1 else y.to(x.dtype)
    begin, end = pads[:rank], pads[rank:]
    simple = begin == end and all(2 * p <= k for p, k in zip(begin, kernel_shape, strict=True))
    if outputs == 1 and simple:
        return _MAX[rank](x, kernel_shape, strides, begin, dilations, bool(ceil_mode))
    more = overhang(x.shape[2:], kernel_shape, strides, dilations, pads, ceil_mode)
    full = [*begin, *(e + m for e, m in zip(end, more, strict=True))]
    lowest = -math.inf
    padded = F.pad(x, as_torch_pads(full), value=lowest)
    if outputs == 1:
        return _MAX[rank](padded, kernel_shape, strides, 0, dilations)
    y, where = _MAX[rank](padded, kernel_shape, strides, 0, dilations, return_indices=True)
    return y, _in_whole_tensor(where, x.shape, padded.shape, begin, storage_order)


def _in_whole_tensor(
    where: Tensor, shape: Sequence[int], padded: Sequence[int], begin: Sequence[int], storage_order: int
) -> Tensor:
    """Torch's indices (of one padded channel) as ONNX's (of the whole tensor, without padding)."""
    rank = len(begin)
    coordinates = []
    for i in reversed(range(rank)):
        coordinates.append(where % padded[2 + i] - begin[i])
        where = where // padded[2 + i]
    coordinates.reverse()
    flat = torch.zeros_like(where)
    for i in reversed(range(rank)) if storage_order else range(rank):
        flat = flat * shape[2 + i] + coordinates[i]
    planes = torch.arange(shape[0] * shape[1], device=where.device).reshape(shape[0], shape[1], *[1] * rank)
    return flat + planes * math.prod(shape[2:])


@op("AveragePool")
def average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    count_include_pad: int = 0, dilations: Sequence[int] = (), pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    rank = len(kernel_shape)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    pads = window_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    begin, end = pads[:rank], pads[rank:]
    plain = all(d == 1 for d in dilations) and not ceil_mode
    if plain and begin == end and all(2 * p <= k for p, k in zip(begin, kernel_shape, strict=True)):
        return _AVERAGE[rank](x, kernel_shape, strides, begin, False, bool(count_include_pad))
    more = overhang(x.shape[2:], kernel_shape, strides, dilations, pads, ceil_mode)
    full = [*begin, *(e + m for e, m in zip(end, more, strict=True))]
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if count_include_pad:
        ones = F.pad(ones, as_torch_pads(pads), value=1.0)
        counted = F.pad(ones, as_torch_pads([0] * rank + more))
    else:
        counted = F.pad(ones, as_torch_pads(full))
    total = _windows_sum(F.pad(x, as_torch_pads(full)), kernel_shape, strides, dilations)
    return total / _windows_sum(counted, kernel_shape, strides, dilations)


def _windows_sum(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    rank = len(kernel)
    if all(d == 1 for d in dilations):
        return _AVERAGE[rank](x, kernel, strides) * math.prod(kernel)
    for i in range(rank):  # a sum over one axis after the other
        axis, extent = 2 + i, (kernel[i] - 1) * dilations[i] + 1
        x = x.unfold(axis, extent, strides[i])[..., :: dilations[i]].sum(-1)
    return x


@op("LpPool")
def lp_pool(
    x: Tensor, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Sequence[int] = (), p: int = 2, pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    rank = len(kernel_shape)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    pads = window_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    more = overhang(x.shape[2:], kernel_shape, strides, dilations, pads, ceil_mode)
    full = [*pads[:rank], *(e + m for e, m in zip(pads[rank:], more, strict=True))]
    powers = F.pad(x.abs() ** p, as_torch_pads(full))
    return _windows_sum(powers, kernel_shape, strides, dilations) ** (1 / p)


@op("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


@op("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    return (x.abs() ** p).sum(tuple(range(2, x.dim())), keepdim=True) ** (1 / p)


@op("MaxUnpool", kinds="tts")
def max_unpool(
    x: Tensor, indices: Tensor, output_shape: Sequence[int] | None = None, *, kernel_shape: Sequence[int],
    pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    rank = len(kernel_shape)
    strides, pads = strides or (1,) * rank, pads or (0,) * (2 * rank)
    own = [
        (x.shape[2 + i] - 1) * strides[i] + kernel_shape[i] - pads[i] - pads[rank + i] for i in range(rank)
    ]
    shape = [*x.shape[:2], *own]
    y = x.new_zeros(math.prod(shape)).scatter(0, indices.flatten(), x.flatten())
    if output_shape is not None and list(output_shape) != shape:
        # Indices are of a tensor with the wanted shape's rows.
        y = x.new_zeros(math.prod(output_shape)).scatter(0, indices.flatten(), x.flatten())
        shape = list(output_shape)
    return y.reshape(shape)
