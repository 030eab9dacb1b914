"""Elementwise functions, from Exp, Log, Sin, Cos, Tanh, Max and Min.

None of the formulas overflows where the function doesn't, and where a function is flat its formula is exactly flat.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev
from onnx import TensorProto

from bnfold.verify.float64.builder import Op, Term, declares


@declares("LeakyRelu")  # max(x, 0) + alpha min(x, 0)
def leaky_relu(op: Op) -> Term:
    """x above 0, alpha x below."""
    x = op.input(0)
    return x.op("Relu") + op.number("alpha", 0.01) * x.below(0.0)


@declares("PRelu")  # max(x, 0) + slope min(x, 0)
def prelu(op: Op) -> Term:
    """x above 0, slope x below, with a slope per channel or element."""
    x = op.input(0)
    return x.op("Relu") + op.input(1) * x.below(0.0)


@declares("ThresholdedRelu")  # x if x > alpha else 0
def thresholded_relu(op: Op) -> Term:
    """x above alpha, 0 below."""
    x, builder = op.input(0), op.builder
    over = x.op("Greater", builder.constant(op.number("alpha", 1.0)))
    return over.op("Where", x, builder.constant(0.0))


@declares("Elu")  # max(x, 0) + alpha (exp(min(x, 0)) - 1)
def elu(op: Op) -> Term:
    """x above 0, an exponential that ends at -alpha below."""
    x = op.input(0)
    return x.op("Relu") + op.number("alpha", 1.0) * _expm1(x.below(0.0))


@declares("Selu")  # gamma (max(x, 0) + alpha (exp(min(x, 0)) - 1))
def selu(op: Op) -> Term:
    """Elu, scaled."""
    x = op.input(0)
    alpha, gamma = op.number("alpha", 1.67326319217681884765625), op.number("gamma", 1.05070102214813232421875)
    return gamma * (x.op("Relu") + alpha * _expm1(x.below(0.0)))


@declares("Celu")  # max(x, 0) + alpha (exp(min(x, 0) / alpha) - 1)
def celu(op: Op) -> Term:
    """Elu with a continuous derivative."""
    x, alpha = op.input(0), op.number("alpha", 1.0)
    bend = x.below(0.0) if alpha > 0 else x.above(0.0)
    line = x.op("Relu") if alpha > 0 else x.below(0.0)
    return line + alpha * _expm1(bend / alpha)


def _expm1(x: Term) -> Term:
    return x.op("Exp") - 1.0


@declares("HardSigmoid")  # min(max(alpha x + beta, 0), 1)
def hard_sigmoid(op: Op) -> Term:
    """A line between 0 and 1."""
    return (op.number("alpha", 0.2) * op.input(0) + op.number("beta", 0.5)).above(0.0).below(1.0)


# HardSwish is defined by HardSigmoid, whose alpha is a float.
SIXTH = float(np.float32(1 / 6))


@declares("HardSwish")  # x min(max(x / 6 + 1/2, 0), 1)
def hard_swish(op: Op) -> Term:
    """x times a line between 0 and 1."""
    x = op.input(0)
    return x * (SIXTH * x + 0.5).above(0.0).below(1.0)


@declares("Softplus")  # log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))
def softplus(op: Op) -> Term:
    """A smooth Relu."""
    return _softplus(op.input(0))


def _softplus(x: Term) -> Term:
    return x.op("Relu") + (1.0 + (-abs(x)).op("Exp")).op("Log")


@declares("Mish")  # x tanh(softplus(x))
def mish(op: Op) -> Term:
    """x times the Tanh of its Softplus."""
    x = op.input(0)
    return x * _softplus(x).op("Tanh")


@declares("Softsign")  # x / (1 + |x|)
def softsign(op: Op) -> Term:
    """A slow Tanh."""
    x = op.input(0)
    return x / (1.0 + abs(x))


@declares("Swish")  # x sigmoid(alpha x)
def swish(op: Op) -> Term:
    """x times its Sigmoid."""
    x = op.input(0)
    return x * (op.number("alpha", 1.0) * x).op("Sigmoid")


@declares("Erf")  # sign(x) (1 - exp(-x^2) erfcx(|x|))
def erf(op: Op) -> Term:
    """The error function."""
    return _erf(op.input(0))


@declares("Gelu")  # x / 2 (1 + erf(x / sqrt 2)), or x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
def gelu(op: Op) -> Term:
    """x times the normal distribution function, or its well-known approximation."""
    return (tanh_gelu if op.attribute("approximate", "none") == "tanh" else normal_gelu)(op.input(0))


def normal_gelu(x: Term) -> Term:
    """x times the normal distribution function."""
    return 0.5 * x * (1.0 + _erf(x * math.sqrt(0.5)))


def tanh_gelu(x: Term) -> Term:
    """Its approximation."""
    return 0.5 * x * (1.0 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)).op("Tanh"))


# From here on erf is 1 in double.
ERF_END = 6.0
# w = 1 / (1 + ERF_BEND z), shifted and scaled to [-1, 1]: in it exp(z^2) erfc(z) is nearly straight.  Degree 16 gives
# erf to 1e-14 (other bends need more).
ERF_BEND, ERF_DEGREE = 0.35, 16
ERF_LEAST = 1 / (1 + ERF_END * ERF_BEND)
ERF_MIDDLE, ERF_HALF = (1 + ERF_LEAST) / 2, (1 - ERF_LEAST) / 2


@lru_cache(maxsize=1)
def _erfcx_polynomial() -> list[float]:
    """Coefficients of exp(z^2) erfc(z) for 0 <= z <= ERF_END as a polynomial of w, highest power first."""

    def erfcx(w: Any) -> Any:
        points = ((1 / (ERF_MIDDLE + ERF_HALF * w) - 1) / ERF_BEND).clip(0).tolist()
        return np.array([math.exp(z * z) * math.erfc(z) for z in points])

    return [float(c) for c in chebyshev.cheb2poly(chebyshev.chebinterpolate(erfcx, ERF_DEGREE))[::-1]]


def _erf(x: Term) -> Term:
    z = abs(x).below(ERF_END)
    w = (1.0 / ERF_HALF) / (1.0 + ERF_BEND * z) - ERF_MIDDLE / ERF_HALF
    highest, *rest = _erfcx_polynomial()
    value = highest * w + rest[0]
    for coefficient in rest[1:]:
        value = value * w + coefficient
    return x.op("Sign") * (1.0 - (-(z * z)).op("Exp") * value)


@declares("Mean")  # (x1 + ... + xn) / n
def mean(op: Op) -> Term:
    """Elementwise mean of the inputs."""
    terms = [op.input(k) for k in range(len(op.proto.input))]
    return op.builder.op("Sum", *terms) / float(len(terms))


@declares("NonZero")  # of x != 0, which loses nothing
def non_zero(op: Op) -> Term:
    """Where x isn't 0."""
    return op.input(0).cast(TensorProto.BOOL).op("NonZero")


@declares("OneHot")  # by the kernel for floats: the two values of the original are floats
def one_hot(op: Op) -> Term:
    """One of two values, by index."""
    whole = TensorProto.INT64
    index, depth, values = op.input(0).cast(whole), op.input(1).cast(whole), op.input(2).cast(TensorProto.FLOAT)
    return index.op("OneHot", depth, values, axis=op.attribute("axis", -1)).cast(TensorProto.DOUBLE)
