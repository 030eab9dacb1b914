"""What ONNX Runtime's optimiser fuses (domain com.microsoft), and quantisation, in plain ops.

Source: ContribOperators.md of ONNX Runtime, and the specification of QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto, helper

from bnfold.verify.float64.builder import Op, Term, Unsupported, declares
from bnfold.verify.float64.elementwise import normal_gelu, tanh_gelu
from bnfold.verify.float64.linear import conv

# Integers that values are quantised to, with the range of each.
RANGES = {
    getattr(TensorProto, kind.name.upper()): (np.iinfo(kind).min, np.iinfo(kind).max)
    for kind in map(np.dtype, ("int8", "uint8", "int16", "uint16"))
}


def _activated(x: Term, name: str, parameters: list[float]) -> Term:
    """`x` behind the activation that an attribute names."""
    if name in ("", "Relu", "Tanh", "Sigmoid"):
        return x.op(name) if name else x
    if name == "LeakyRelu":
        return x.op("Relu") + parameters[0] * x.below(0.0)
    if name == "Clip":
        return x.above(parameters[0]).below(parameters[1])
    if name == "HardSigmoid":
        return (parameters[0] * x + parameters[1]).above(0.0).below(1.0)
    raise Unsupported(f"activation {name}")


@declares("com.microsoft:FusedConv")  # activation(Conv(x, w, b) + z)
def fused_conv(op: Op) -> Term:
    """Conv, a sum, an activation."""
    total, other = conv(op), op.optional(3)
    assert isinstance(total, Term)
    total = total if other is None else total + other
    return _activated(total, op.attribute("activation", ""), op.attribute("activation_params", []))


@declares("com.microsoft:FusedGemm")  # activation(alpha A' B' + beta C)
def fused_gemm(op: Op) -> Term:
    """Gemm, an activation."""
    names = ("alpha", "beta", "transA", "transB")
    attributes = {name: op.attribute(name) for name in names if op.attribute(name) is not None}
    inputs = [op.input(0), op.input(1), *([op.input(2)] if op.optional(2) else [])]
    parameters = [op.number(f"activation_{name}", 0.0) for name in ("alpha", "beta", "gamma")]
    return _activated(op.builder.op("Gemm", *inputs, **attributes), op.attribute("activation", ""), parameters)


@declares("com.microsoft:FusedMatMul")  # alpha A' B'
def fused_matmul(op: Op) -> Term:
    """MatMul of matrices that may be transposed."""
    if op.attribute("transBatchA", 0) or op.attribute("transBatchB", 0):
        raise Unsupported("batch axes transposed")
    factors = []
    for index, name in enumerate(("transA", "transB")):
        factor = op.input(index)
        if op.attribute(name, 0) and op.rank(index) > 1:
            order = list(range(op.rank(index)))
            factor = factor.transpose([*order[:-2], order[-1], order[-2]])
        factors.append(factor)
    return op.number("alpha", 1.0) * (factors[0] @ factors[1])


@declares("com.microsoft:Gelu")  # x Phi(x)
def gelu(op: Op) -> Term:
    """x times the normal distribution function."""
    return normal_gelu(op.input(0))


@declares("com.microsoft:BiasGelu")  # (x + b) Phi(x + b)
def bias_gelu(op: Op) -> Term:
    """Gelu of a sum."""
    return normal_gelu(op.input(0) + op.input(1))


@declares("com.microsoft:FastGelu")  # z / 2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))), z = x + b
def fast_gelu(op: Op) -> Term:
    """The approximation by Tanh, of a sum."""
    x, bias = op.input(0), op.optional(1)
    return tanh_gelu(x if bias is None else x + bias)


@declares("com.microsoft:QuickGelu")  # x sigmoid(alpha x)
def quick_gelu(op: Op) -> Term:
    """The approximation by Sigmoid."""
    x = op.input(0)
    return x * (op.number("alpha", 1.702) * x).op("Sigmoid")


@declares("com.microsoft:SkipLayerNormalization")  # LayerNormalization(x + skip + bias), and that sum
def skip_layer_normalization(op: Op) -> tuple[Term, ...]:
    """A residual sum, normalised."""
    total, bias = op.input(0) + op.input(1), op.optional(4)
    total = total if bias is None else total + bias
    if op.wants(1) or op.wants(2):
        raise Unsupported("mean and variance of SkipLayerNormalization")
    centred = total - total.reduce("ReduceMean", [-1])
    variance = (centred * centred).reduce("ReduceMean", [-1])
    normal = centred / (variance + op.number("epsilon", 1e-12)).op("Sqrt") * op.input(2)
    beta = op.optional(3)
    return (normal if beta is None else normal + beta, total, total, total)


@declares("QuantizeLinear", "com.microsoft:QuantizeLinear")  # clip(round(x / scale) + zero point)
def quantize(op: Op) -> Term:
    """To integers; a half goes to the even one."""
    kind = op.attribute("output_dtype", 0) or TensorProto.UINT8
    if op.optional(2) is not None:
        kind = op.builder.types.get(op.proto.input[2], 0)
    if kind not in RANGES:
        raise Unsupported(f"quantisation to {helper.tensor_dtype_to_string(kind)}")
    scale, zero = _quantisation(op)
    whole = (op.input(0) / scale).op("Round")
    low, high = RANGES[kind]
    return (whole if zero is None else whole + zero).above(float(low)).below(float(high)).cast(kind)


@declares("DequantizeLinear", "com.microsoft:DequantizeLinear")  # scale (x - zero point)
def dequantize(op: Op) -> Term:
    """From integers."""
    kind = op.builder.types.get(op.proto.input[0], 0)
    if not kind and op.optional(2) is not None:  # inference stops at values of unknown rank
        kind = op.builder.types.get(op.proto.input[2], 0)
    if kind not in (*RANGES, TensorProto.INT32):
        raise Unsupported("dequantisation of this type")
    scale, zero = _quantisation(op)
    x = op.input(0).cast(TensorProto.DOUBLE)
    return (x if zero is None else x - zero) * scale


def _quantisation(op: Op) -> tuple[Term, Term | None]:
    """Scale and zero point, in double, as they broadcast."""
    if op.attribute("block_size", 0):
        raise Unsupported("quantisation by blocks")
    scale, zero = op.input(1), op.optional(2)
    zero = None if zero is None else zero.cast(TensorProto.DOUBLE)
    shape: list[int] = []
    if math.prod(op.shape(1)) > 1:
        shape = [1] * op.rank(0)
        shape[op.attribute("axis", 1)] = -1
    return scale.reshape(shape), None if zero is None else zero.reshape(shape)
