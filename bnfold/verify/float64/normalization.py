"""Normalisations over the axes of one sample, and ops that pick the largest."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from bnfold.verify.float64.builder import Op, Term, declares
from bnfold.verify.float64.window import FAR

# Below this a standard deviation counts as this in MeanVarianceNormalization (its definition in ONNX).
MVN_EPSILON = float(np.float32(1e-9))


@declares("InstanceNormalization")  # scale (x - mean) / sqrt(variance + epsilon) + bias, over space
def instance_normalization(op: Op) -> Term:
    """Each channel of each sample by its own mean and variance."""
    x, rank = op.input(0), op.rank(0)
    space = range(2, rank)
    centred = x - x.reduce("ReduceMean", space)
    variance = (centred * centred).reduce("ReduceMean", space)
    channel = [-1, *[1] * (rank - 2)]
    normal = centred / (variance + op.number("epsilon", 1e-5)).op("Sqrt")
    return normal * op.input(1).reshape(channel) + op.input(2).reshape(channel)


@declares("MeanVarianceNormalization")  # (x - mean) / (sqrt(variance) + 1e-9)
def mean_variance_normalization(op: Op) -> Term:
    """By mean and variance over some axes."""
    x, axes = op.input(0), op.attribute("axes", [0, 2, 3])
    centred = x - x.reduce("ReduceMean", axes)
    return centred / ((centred * centred).reduce("ReduceMean", axes).op("Sqrt") + MVN_EPSILON)


@declares("LRN")  # x / (bias + alpha / size * sum over neighbours of x^2)^beta
def lrn(op: Op) -> Term:
    """Local response normalisation: each channel by the ones around it."""
    x, rank, size = op.input(0), op.rank(0), int(op.attribute("size"))
    low = (size - 1) // 2
    border = [0] * (rank - 2)
    squares = (x * x).pad([0, low, *border], [0, size - 1 - low, *border])
    parts = [squares.slice([start], [start + 1 - size or FAR], [1], [1]) for start in range(size)]
    total = op.builder.op("Sum", *parts)
    norm: Term = op.number("bias", 1.0) + op.number("alpha", 1e-4) / size * total
    return x / norm ** op.number("beta", 0.75)


@declares("LayerNormalization")  # scale (x - mean) / sqrt(variance + epsilon) + bias, over the last axes
def layer_normalization(op: Op) -> tuple[Term, ...]:
    """By mean and variance over the last axes; its kernel gives these two as floats only."""
    x, rank = op.input(0), op.rank(0)
    axes = range(op.attribute("axis", -1) % rank, rank)
    mean = x.reduce("ReduceMean", axes)
    centred = x - mean
    inverse = 1.0 / ((centred * centred).reduce("ReduceMean", axes) + op.number("epsilon", 1e-5)).op("Sqrt")
    y, bias = centred * inverse * op.input(1), op.optional(2)
    return (y if bias is None else y + bias, mean, inverse)


@declares("Hardmax")  # 1 where the first largest element is
def hardmax(op: Op) -> Term:
    """One-hot of the largest along an axis."""
    x, axis = op.input(0), op.attribute("axis", -1)
    largest = x.op("ArgMax", axis=axis, keepdims=0)
    size = x.op("Shape").gather(axis, 0)
    values = op.builder.constant([0.0, 1.0]).cast(TensorProto.FLOAT)
    return largest.op("OneHot", size, values, axis=axis).cast(TensorProto.DOUBLE)
