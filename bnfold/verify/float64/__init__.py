"""Models of floats as models of doubles that ONNX Runtime can run.

`builder`: the language of the declarations; `lift`: ops of old opsets; the rest but `convert`, which drives it:
declarations, one per op that ONNX Runtime has no double kernel for.
"""

from __future__ import annotations

from bnfold.verify.float64 import (
    elementwise,
    fused,
    lift,
    linear,
    normalization,
    pooling,
    recurrent,
    resize,
    trigonometry,
)
from bnfold.verify.float64.builder import Unsupported
from bnfold.verify.float64.convert import Float64Form, to_float64

__all__ = [
    "Float64Form",
    "Unsupported",
    "elementwise",
    "fused",
    "lift",
    "linear",
    "normalization",
    "pooling",
    "recurrent",
    "resize",
    "to_float64",
    "trigonometry",
]
