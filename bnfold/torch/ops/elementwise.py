"""Operators that work element by element: activations, arithmetic, comparisons, logic."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnfold.torch.ops.table import add_all, op

add_all({
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Cos": torch.cos, "Cosh": torch.cosh, "Det": torch.det,
    "Erf": torch.erf, "Exp": torch.exp, "IsNaN": torch.isnan, "Log": torch.log, "Neg": torch.neg,
    "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Sigmoid": torch.sigmoid,
    "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Softsign": F.softsign, "Sqrt": torch.sqrt,
    "Tan": torch.tan, "Tanh": torch.tanh, "HardSwish": F.hardswish, "Mish": F.mish,
    "BitwiseNot": torch.bitwise_not, "Round": torch.round,
})  # fmt: skip


def legacy_broadcast(a: Any, b: Any, broadcast: int, axis: int | None) -> Any:
    """Before opset 7 the second operand is laid along `axis` of the first, if `broadcast` is set."""
    if not broadcast or axis is None or not isinstance(b, Tensor):
        return b
    return b.reshape(b.shape + (1,) * (a.dim() - axis % a.dim() - b.dim()))


@op("Add", kinds="n")
def add(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return a + legacy_broadcast(a, b, broadcast, axis)


@op("Sub", kinds="n")
def subtract(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return a - legacy_broadcast(a, b, broadcast, axis)


@op("Mul", kinds="n")
def multiply(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return a * legacy_broadcast(a, b, broadcast, axis)


def is_floating(a: Any) -> bool:
    """Of a tensor or a Python number."""
    return a.is_floating_point() if isinstance(a, Tensor) else isinstance(a, float)


@op("Div", kinds="n")
def divide(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    b = legacy_broadcast(a, b, broadcast, axis)
    if is_floating(a) or is_floating(b):
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


@op("Pow", kinds="n")
def power(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    b = legacy_broadcast(a, b, broadcast, axis)
    if not isinstance(a, Tensor):
        a = torch.as_tensor(a, dtype=b.dtype, device=b.device)
    if isinstance(b, Tensor) and a.dtype != b.dtype:  # since opset 12 the result has the base's type
        wide = torch.promote_types(a.dtype, b.dtype)
        return torch.pow(a.to(wide), b.to(wide)).to(a.dtype)
    return torch.pow(a, b).to(a.dtype)


@op("Mod", kinds="n")
def modulo(a: Any, b: Any, *, fmod: int = 0) -> Any:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@op("Floor")
def floor(x: Tensor) -> Tensor:
    return torch.floor(x)


@op("Ceil")
def ceil(x: Tensor) -> Tensor:
    return torch.ceil(x)


@op("Sum")
def sum_of(*tensors: Tensor) -> Tensor:
    return functools.reduce(torch.add, tensors)


@op("Mean")
def mean_of(*tensors: Tensor) -> Tensor:
    return functools.reduce(torch.add, tensors) / len(tensors)


@op("Max")
def max_of(*tensors: Tensor) -> Tensor:
    return functools.reduce(torch.maximum, tensors)


@op("Min")
def min_of(*tensors: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, tensors)


# ---------------------------------------------------------------------------------------------- activations
@op("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@op("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@op("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


# alpha and gamma of opset 1; from opset 6 on they have more digits, which is what exporters write
@op("Selu")
def selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * F.elu(x, alpha)


@op("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, 0)


@op("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if beta == 0.5 and math.isclose(alpha, 1 / 6, rel_tol=1e-6):
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0, 1)


@op("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@op("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@op("Softplus")
def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))  # F.softplus is linear above a threshold


@op("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    low = torch.where(x < -lambd, x + bias, torch.zeros_like(x))
    return torch.where(x > lambd, x - bias, low).to(x.dtype)


@op("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    if slope.dim() == x.dim() - 1 and slope.numel() == slope.shape[0] == x.shape[1]:  # (C, 1, 1), as torch exports it
        return F.prelu(x, slope.flatten())
    return torch.where(x < 0, x * slope, x)


@op("Clip", since=6)
def clip_6(x: Tensor, *, min: float | None = None, max: float | None = None) -> Tensor:  # noqa: A002 (ONNX's names)
    return clip(x, min, max)


@op("Clip", since=1)
def clip_1(x: Tensor, *, min: float | None = None, max: float | None = None) -> Tensor:  # noqa: A002 (ONNX's names)
    return clip_6(x, min=min, max=max)


@op("Clip", since=11, kinds="Tnn")
def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    if low is None and high is None:
        return x
    if low is not None and high is not None and isinstance(low, Tensor) != isinstance(high, Tensor):
        return torch.clamp(torch.clamp(x, low), None, high)  # torch takes two of a kind
    if isinstance(low, float) and isinstance(high, float) and low <= high and x.is_floating_point():
        # What torch's ReLU6 is: the backward pass takes half of clamp's time, and at the bounds there is no gradient.
        return F.hardtanh(x, low, high)
    return torch.clamp(x, low, high)


# --------------------------------------------------------------------------------------- comparisons, logic
@op("Equal", kinds="n")
def equal(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return a == legacy_broadcast(a, b, broadcast, axis)


@op("Greater", kinds="n")
def greater(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return a > legacy_broadcast(a, b, broadcast, axis)


@op("Less", kinds="n")
def less(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return a < legacy_broadcast(a, b, broadcast, axis)


@op("GreaterOrEqual", kinds="n")
def greater_or_equal(a: Any, b: Any) -> Any:
    return a >= b


@op("LessOrEqual", kinds="n")
def less_or_equal(a: Any, b: Any) -> Any:
    return a <= b


@op("And")
def logical_and(a: Tensor, b: Tensor, *, broadcast: int = 0, axis: int | None = None) -> Tensor:
    return torch.logical_and(a, legacy_broadcast(a, b, broadcast, axis))


@op("Or")
def logical_or(a: Tensor, b: Tensor, *, broadcast: int = 0, axis: int | None = None) -> Tensor:
    return torch.logical_or(a, legacy_broadcast(a, b, broadcast, axis))


@op("Xor")
def logical_xor(a: Tensor, b: Tensor, *, broadcast: int = 0, axis: int | None = None) -> Tensor:
    return torch.logical_xor(a, legacy_broadcast(a, b, broadcast, axis))


add_all({"BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor})


@op("BitShift")
def bit_shift(x: Tensor, by: Tensor, *, direction: str) -> Tensor:
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch has no kernels of these
        wide = bit_shift(x.to(torch.int64), by.to(torch.int64), direction=direction)
        return wide.to(x.dtype)
    shift = torch.bitwise_left_shift if direction == "LEFT" else torch.bitwise_right_shift
    return shift(x, by)


@op("Where", kinds="tnn")
def where(condition: Tensor, a: Any, b: Any) -> Tensor:
    return torch.where(condition, a, b)


@op("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if detect_positive:
        return torch.isposinf(x)
    return torch.isneginf(x) if detect_negative else torch.zeros_like(x, dtype=torch.bool)
