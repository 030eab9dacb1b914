"""Normalisations other than BatchNormalization (`bnfold.torch.batch_norm`), and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnfold.torch.ops.creation import Type
from bnfold.torch.ops.table import op


@op("InstanceNormalization")
def instance_norm(x: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    # not F's, which refuses channels of one element; ONNX gives the shift there
    return torch.instance_norm(x, scale, shift, None, None, True, 0.0, epsilon, torch.backends.cudnn.enabled)


@op("LayerNormalization")
def layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5,
    stash_type: Type = None, outputs: int = 1,
) -> Any:  # fmt: skip
    shape = x.shape[axis:]
    if outputs == 1 and scale.shape == shape and (shift is None or shift.shape == shape):
        return F.layer_norm(x, shape, scale, shift, epsilon)
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, axes, unbiased=False, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    y = y if shift is None else y + shift
    return (y, mean, inverse)[:outputs] if outputs > 1 else y


@op("RMSNormalization")
def rms_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: Type = None) -> Tensor:
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt((wide * wide).mean(axes, keepdim=True) + epsilon)).to(x.dtype) * scale


@op("GroupNormalization", since=21)
def group_norm(
    x: Tensor, scale: Tensor, shift: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: Type = None
) -> Tensor:
    return torch.group_norm(x, num_groups, scale, shift, epsilon)


@op("GroupNormalization", since=18)
def group_norm_18(x: Tensor, scale: Tensor, shift: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """One scale a group."""
    each = x.shape[1] // num_groups
    return torch.group_norm(x, num_groups, scale.repeat_interleave(each), shift.repeat_interleave(each), epsilon)


@op("LRN")
def local_response(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    squares = F.pad((x * x).transpose(1, -1), ((size - 1) // 2, size // 2)).transpose(1, -1)
    return x / (bias + alpha / size * squares.unfold(1, size, 1).sum(-1)) ** beta


@op("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    length = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(length == 0, torch.zeros_like(x), x / length)


@op("MeanVarianceNormalization")
def mean_variance(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    variance, mean = torch.var_mean(x, tuple(axes), unbiased=False, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-9)


@op("RotaryEmbedding")
def rotary_embedding(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None, *, interleaved: int = 0,
    num_heads: int = 0, rotary_embedding_dim: int = 0,
) -> Tensor:  # fmt: skip
    shape = x.shape
    if x.dim() == 3:
        x = x.reshape(shape[0], shape[1], num_heads, -1)
    else:
        x = x.transpose(1, 2)
    dim = rotary_embedding_dim or x.shape[-1]
    turned, rest = x[..., :dim], x[..., dim:]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos[..., : dim // 2].unsqueeze(2), sin[..., : dim // 2].unsqueeze(2)
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    pair = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    y = torch.cat([pair, rest], -1)
    return y.reshape(shape) if len(shape) == 3 else y.transpose(1, 2)
