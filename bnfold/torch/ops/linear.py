"""Linear operators: convolutions, matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnfold.torch.ops.table import add, op

_CONV = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


def same_pads(size: int, stride: int, extent: int, upper: bool) -> tuple[int, int]:
    """Padding in front and behind with which the result has ceil(size / stride) elements."""
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    less, more = total // 2, total - total // 2
    return (less, more) if upper else (more, less)


def window_pads(
    spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    pads: Sequence[int] | None, auto_pad: str,
) -> list[int]:  # fmt: skip
    """ONNX's pads (all beginnings, then all ends), with auto_pad resolved."""
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        both = [
            same_pads(size, stride, (taps - 1) * dilation + 1, auto_pad == "SAME_UPPER")
            for size, taps, stride, dilation in zip(spatial, kernel, strides, dilations, strict=True)
        ]
        return [front for front, _ in both] + [behind for _, behind in both]
    return list(pads) if pads and auto_pad != "VALID" else [0] * (2 * len(kernel))


def as_torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX's pads in the order of F.pad: the last axis first, its beginning and its end."""
    half = len(pads) // 2
    return [pads[axis + end * half] for axis in reversed(range(half)) for end in (0, 1)]


@op("Conv")
def conv(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Sequence[int] = (),
    group: int = 1, kernel_shape: Sequence[int] = (), pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    rank = w.dim() - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    if auto_pad != "NOTSET":
        pads = window_pads(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    begin, end = pads[:rank] or (0,) * rank, pads[rank:] or (0,) * rank
    if begin != end:
        x, begin = F.pad(x, as_torch_pads(pads)), (0,) * rank
    return _CONV[rank](x, w, b, strides, begin, dilations, group)


@op("ConvTranspose")
def conv_transpose(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Sequence[int] = (),
    group: int = 1, kernel_shape: Sequence[int] = (), output_padding: Sequence[int] = (),
    output_shape: Sequence[int] = (), pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    rank = w.dim() - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    extra = list(output_padding or (0,) * rank)
    full = [
        (x.shape[2 + i] - 1) * strides[i] + (w.shape[2 + i] - 1) * dilations[i] + 1 + extra[i] for i in range(rank)
    ]
    if output_shape or auto_pad.startswith("SAME"):
        wanted = list(output_shape)[-rank:] or [x.shape[2 + i] * strides[i] for i in range(rank)]
        total = [max(have - want, 0) for have, want in zip(full, wanted, strict=True)]
        front = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
        pads = [*front, *(have - want - f for have, want, f in zip(full, wanted, front, strict=True))]
    begin, end = list(pads[:rank]) or [0] * rank, list(pads[rank:]) or [0] * rank
    # torch pads both ends alike and adds `output_padding` at the end: what ONNX cuts off there less than in front.
    extra = [e + front - behind for e, front, behind in zip(extra, begin, end, strict=True)]
    if all(0 <= e < max(strides[i], dilations[i]) for i, e in enumerate(extra)) and all(p >= 0 for p in begin):
        return _TRANSPOSED[rank](x, w, b, strides, begin, extra, group, dilations)
    y = _TRANSPOSED[rank](x, w, None, strides, 0, 0, group, dilations)
    given = list(output_padding or (0,) * rank)
    ends = [more - behind for more, behind in zip(given, end, strict=True)]
    y = F.pad(y, as_torch_pads([-front for front in begin] + ends))
    return y if b is None else y + b.reshape(-1, *[1] * rank)


@op("Gemm")
def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0,
    transA: int = 0, transB: int = 0, broadcast: int = 1,
) -> Tensor:  # fmt: skip
    if transA:
        a = a.t()
    if transB and alpha == beta == 1.0 and (c is None or (c.dim() == 1 and c.shape[0] == b.shape[0])):
        return F.linear(a, b, c)
    if transB:
        b = b.t()
    if c is not None and a.is_floating_point():
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    y = a @ b
    y = y if alpha == 1.0 else (y * alpha).to(a.dtype)
    return y if c is None else y + c * (beta if beta != 1.0 else 1)


add("MatMul", torch.matmul)


@op("MatMulInteger")
def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    wide_a, wide_b = a.to(torch.int32), b.to(torch.int32)
    if a_zero is not None:
        wide_a = wide_a - (a_zero.to(torch.int32).unsqueeze(-1) if a_zero.dim() == 1 else a_zero.to(torch.int32))
    if b_zero is not None:
        wide_b = wide_b - b_zero.to(torch.int32)
    return torch.matmul(wide_a, wide_b)


@op("ConvInteger")
def conv_integer(
    x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None, **attributes: Any
) -> Tensor:
    wide_x, wide_w = x.to(torch.float64), w.to(torch.float64)  # exact, and torch convolves no integers
    if x_zero is not None:
        wide_x = wide_x - x_zero
    if w_zero is not None:
        zero = w_zero.to(torch.float64)
        wide_w = wide_w - (zero.reshape(-1, *[1] * (w.dim() - 1)) if zero.dim() == 1 else zero)
    return conv(wide_x, wide_w, **attributes).to(torch.int32)


@op("Einsum")
def einsum(*tensors: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation.replace(" ", ""), *tensors)
