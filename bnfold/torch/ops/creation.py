"""Operators that make tensors or change their element type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnfold.torch.ops.table import op

# A node's element type: a torch.dtype or, for the model's floating types, a tensor of the type that
# they have in this module (`module.double()` turns FLOAT into float64).
Type = Any


def dtype_of(to: Type) -> torch.dtype:
    """The type itself."""
    return to.dtype if isinstance(to, Tensor) else to


@op("Cast")
def cast(x: Tensor, *, to: Type, saturate: int = 1, round_mode: str = "up") -> Tensor:
    target = dtype_of(to)
    if x.is_floating_point() and target in FLOAT8 and saturate:
        return _to_float8(x, target)
    return x.to(target)


@op("CastLike")
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return cast(x, to=like, saturate=saturate)


FLOAT8 = frozenset({torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz})


def _to_float8(x: Tensor, target: torch.dtype) -> Tensor:
    """What is too large becomes the largest number."""
    largest = torch.finfo(target).max
    return torch.where(torch.isnan(x), x, x.clamp(-largest, largest)).to(target)


@op("ConstantOfShape", kinds="s")
def constant_of_shape(shape: Sequence[int], *, value: Tensor | None = None, like: Tensor) -> Tensor:
    if value is None:
        value = torch.zeros((), device=like.device)
    return value.reshape(()).expand(tuple(shape))  # no memory, whatever the shape


@op("Range", kinds="n")
def arange(start: Any, limit: Any, delta: Any, *, like: Tensor) -> Tensor:
    given = [v for v in (start, limit, delta) if isinstance(v, Tensor)]
    dtype = given[0].dtype if given else like.dtype if isinstance(start, float) else torch.int64
    start, limit, delta = (v.item() if isinstance(v, Tensor) else v for v in (start, limit, delta))
    return torch.arange(start, limit, delta, dtype=dtype, device=like.device)


@op("EyeLike")
def eye_like(x: Tensor, *, dtype: Type = None, k: int = 0) -> Tensor:
    target = x.dtype if dtype is None else dtype_of(dtype)
    return torch.diag_embed(torch.ones(max(x.shape), device=x.device), k)[: x.shape[0], : x.shape[1]].to(target)


@op("Dropout", since=1, random=True)
def dropout_1(
    x: Tensor, *, ratio: float = 0.5, is_test: int = 0, training: bool, outputs: int = 1
) -> Any:
    return dropout(x, ratio, training=training, outputs=outputs)


@op("Dropout", since=12, kinds="tkk", random=True)
def dropout(
    x: Tensor, ratio: float | None = 0.5, mode: bool | None = False, *, seed: int | None = None,
    training: bool, outputs: int = 1,
) -> Any:  # fmt: skip
    """Active in training of the module, or where the node itself says so."""
    ratio = 0.5 if ratio is None else ratio
    active = bool(training or mode) and ratio > 0
    if outputs == 1:
        return F.dropout(x, ratio, active)
    mask = torch.rand_like(x, dtype=torch.float32) >= ratio if active else torch.ones_like(x, dtype=torch.bool)
    return (torch.where(mask, x / (1 - ratio), 0) if active else x), mask


@op("RandomNormalLike", random=True)
def random_normal_like(
    x: Tensor, *, dtype: Type = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Tensor:
    return torch.randn_like(x, dtype=None if dtype is None else dtype_of(dtype)) * scale + mean


@op("RandomUniformLike", random=True)
def random_uniform_like(
    x: Tensor, *, dtype: Type = None, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> Tensor:
    return torch.rand_like(x, dtype=None if dtype is None else dtype_of(dtype)) * (high - low) + low


@op("RandomNormal", random=True)
def random_normal(
    *, shape: Sequence[int], dtype: Type, mean: float = 0.0, scale: float = 1.0, seed: float | None = None,
    like: Tensor,
) -> Tensor:  # fmt: skip
    return torch.randn(tuple(shape), dtype=dtype_of(dtype), device=like.device) * scale + mean


@op("RandomUniform", random=True)
def random_uniform(
    *, shape: Sequence[int], dtype: Type, high: float = 1.0, low: float = 0.0, seed: float | None = None,
    like: Tensor,
) -> Tensor:  # fmt: skip
    return torch.rand(tuple(shape), dtype=dtype_of(dtype), device=like.device) * (high - low) + low


@op("Bernoulli", random=True)
def bernoulli(x: Tensor, *, dtype: Type = None, seed: float | None = None) -> Tensor:
    return torch.bernoulli(x).to(x.dtype if dtype is None else dtype_of(dtype))


@op("Multinomial", random=True)
def multinomial(
    x: Tensor, *, dtype: Type = torch.int32, sample_size: int = 1, seed: float | None = None
) -> Tensor:
    return torch.multinomial(x.exp(), sample_size, replacement=True).to(dtype_of(dtype))


# ------------------------------------------------------------------------------------------------ quantised
def _along(x: Tensor, scale: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point so that it broadcasts to x: one number, one per channel, or one per block."""
    if scale.dim() == 0 or scale.numel() == 1:
        return scale.reshape(())
    if block_size:
        return scale.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    view = [1] * x.dim()
    view[axis] = -1
    return scale.reshape(view)


@op("DequantizeLinear")
def dequantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0,
    output_dtype: Type = None,
) -> Tensor:  # fmt: skip
    result = x.to(torch.float32 if scale.dtype in (torch.float16, torch.bfloat16) else scale.dtype)
    if zero is not None:
        result = result - _along(x, zero, axis, block_size).to(result.dtype)
    result = result * _along(x, scale, axis, block_size).to(result.dtype)
    return result.to(scale.dtype if output_dtype is None else dtype_of(output_dtype))


@op("QuantizeLinear")
def quantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0,
    output_dtype: Type = None, saturate: int = 1, precision: Type = None,
) -> Tensor:  # fmt: skip
    target = zero.dtype if zero is not None else torch.uint8 if output_dtype is None else dtype_of(output_dtype)
    steps = x.to(torch.promote_types(x.dtype, torch.float32)) / _along(x, scale, axis, block_size)
    if target in FLOAT8:
        return cast(steps if zero is None else steps + _along(x, zero, axis, block_size).to(steps.dtype), to=target)
    steps = torch.round(steps)
    if zero is not None:
        steps = steps + _along(x, zero, axis, block_size).to(steps.dtype)
    limits = torch.iinfo(target)
    return steps.clamp(limits.min, limits.max).to(target)


@op("DynamicQuantizeLinear")
def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round((-low / scale).clamp(0, 255)).to(torch.uint8)
    return quantize(x, scale, zero), scale, zero


# ------------------------------------------------------------------------------------------------ windows
def _window(length: Any, periodic: int, like: Tensor) -> tuple[Tensor, float]:
    size = int(length)
    return torch.arange(size, device=like.device, dtype=like.dtype), float(size if periodic else size - 1)


@op("HannWindow", kinds="k")
def hann_window(length: int, *, output_datatype: int = 1, periodic: int = 1, like: Tensor) -> Tensor:
    n, size = _window(length, periodic, like)
    return torch.sin(math.pi * n / size) ** 2


@op("HammingWindow", kinds="k")
def hamming_window(length: int, *, output_datatype: int = 1, periodic: int = 1, like: Tensor) -> Tensor:
    n, size = _window(length, periodic, like)
    return 25 / 46 - 21 / 46 * torch.cos(2 * math.pi * n / size)


@op("BlackmanWindow", kinds="k")
def blackman_window(length: int, *, output_datatype: int = 1, periodic: int = 1, like: Tensor) -> Tensor:
    n, size = _window(length, periodic, like)
    return 0.42 - 0.5 * torch.cos(2 * math.pi * n / size) + 0.08 * torch.cos(4 * math.pi * n / size)
