"""Trigonometric and hyperbolic functions and their inverses, from Sin, Exp, Log and Sqrt."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev

from bnfold.verify.float64.builder import Op, Term, declares

# Beyond this atan is pi / 2 in double, and below it x^2 is finite.
ATAN_END = 1e150


@declares("Cos")  # sin(x + pi / 2): not every ONNX Runtime has Cos in double
def cos(op: Op) -> Term:
    """Cosine."""
    return _cos(op.input(0))


def _cos(x: Term) -> Term:
    return (x + math.pi / 2).op("Sin")


@declares("Tan")  # sin / cos
def tan(op: Op) -> Term:
    """Tangent."""
    x = op.input(0)
    return x.op("Sin") / _cos(x)


@declares("Sinh")  # (exp(x) - exp(-x)) / 2
def sinh(op: Op) -> Term:
    """Hyperbolic sine."""
    x = op.input(0)
    return 0.5 * (x.op("Exp") - (-x).op("Exp"))


@declares("Cosh")  # (exp(x) + exp(-x)) / 2
def cosh(op: Op) -> Term:
    """Hyperbolic cosine."""
    x = op.input(0)
    return 0.5 * (x.op("Exp") + (-x).op("Exp"))


@declares("Asinh")  # sign(x) log(|x| + sqrt(x^2 + 1))
def asinh(op: Op) -> Term:
    """Inverse hyperbolic sine."""
    x = op.input(0)
    return x.op("Sign") * (abs(x) + (x * x + 1.0).op("Sqrt")).op("Log")


@declares("Acosh")  # log(x + sqrt(x^2 - 1))
def acosh(op: Op) -> Term:
    """Inverse hyperbolic cosine."""
    x = op.input(0)
    return (x + (x * x - 1.0).op("Sqrt")).op("Log")


@declares("Atanh")  # log((1 + x) / (1 - x)) / 2
def atanh(op: Op) -> Term:
    """Inverse hyperbolic tangent."""
    x = op.input(0)
    return 0.5 * ((1.0 + x) / (1.0 - x)).op("Log")


@declares("Atan")  # atan(x) = 2 atan(x / (1 + sqrt(1 + x^2))), twice, then a polynomial
def atan(op: Op) -> Term:
    """Inverse tangent."""
    return _atan(op.input(0))


@declares("Asin")  # 2 atan(x / (1 + sqrt(1 - x^2)))
def asin(op: Op) -> Term:
    """Inverse sine."""
    x = op.input(0)
    return 2.0 * _atan(x / (1.0 + (1.0 - x * x).op("Sqrt")))


@declares("Acos")  # 2 atan(sqrt((1 - x) / (1 + x)))
def acos(op: Op) -> Term:
    """Inverse cosine."""
    x = op.input(0)
    return 2.0 * _atan(((1.0 - x) / (1.0 + x)).op("Sqrt"))


def _atan(x: Term) -> Term:
    t = _half(_half(x.above(-ATAN_END).below(ATAN_END)))
    highest, *rest = _atan_polynomial()
    w = (t * t) / (0.5 * ATAN_REST**2) - 1.0
    value = highest * w + rest[0]
    for coefficient in rest[1:]:
        value = value * w + coefficient
    return 4.0 * t * value


def _half(x: Term) -> Term:
    """tan(a / 2) of x = tan(a)."""
    return x / (1.0 + (1.0 + x * x).op("Sqrt"))


# Where the halving has taken every x: tan(pi / 8).
ATAN_REST = math.sqrt(2) - 1


@lru_cache(maxsize=1)
def _atan_polynomial() -> list[float]:
    """Coefficients of atan(t) / t for 0 <= t <= ATAN_REST, highest power first.

    They are of a polynomial of t^2, shifted and scaled to [-1, 1].
    """

    def ratio(w: Any) -> Any:
        t = np.sqrt((w + 1) / 2) * ATAN_REST
        return np.arctan(t) / t

    return [float(c) for c in chebyshev.cheb2poly(chebyshev.chebinterpolate(ratio, 16))[::-1]]
