"""The table of ops: what each one does to coordinates, one declaration an op.

    linear       Conv, ConvTranspose, Gemm, MatMul: where scale and shift go
    einsum       Einsum with one constant operand, likewise
    embedding    Gather from a constant table
    normalization  LayerNormalization and its kin at their output
    recurrent    LSTM, GRU, RNN at their input
    affine       BatchNormalization; Mul, Add, Sub, Div by constants: what is to go
    elementwise  Relu and its kin, odd functions
    pooling      MaxPool, AveragePool, reductions, Resize
    arithmetic   Add, Mul, Max … of computed values
    fused        constants that stay with the activation that they are part of
    quantisation QuantizeLinear, DequantizeLinear of computed values
    layout       Transpose, Reshape, Expand …: every element stays, in another place or in several
    slicing      Split, Slice, Concat, Pad …: parts are taken or joined

Ops in none of them fix all that they touch.
"""

from __future__ import annotations

from bnfold.fold.ops.fused import inside_activations as inside_activations


def load() -> None:
    """Register all rules."""
    from bnfold.fold.ops import (  # noqa: F401
        affine,
        arithmetic,
        einsum,
        elementwise,
        embedding,
        layout,
        linear,
        normalization,
        pooling,
        quantisation,
        recurrent,
        slicing,
    )
