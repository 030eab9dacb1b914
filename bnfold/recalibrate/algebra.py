"""Statistics that follow from others, so that a value need not be there to be measured.

    y = W x + b at each position (a 1 × 1 Conv)     mean_y = W mean_x + b     var_y = diag(W C W^T), C = cov(x)
    y = a x + b in each channel (BN behind BN)      mean_y = a mean_x + b     var_y = a² var_x

The first spares a network that widens by 1 × 1 Convs (an inverted residual, Sandler et al. 2018) its widest values:
they are normalised where they are made, and only the narrow ones in front are kept. A Conv that does not widen would
cost more multiplications for the covariance than it has itself.

Covariances are summed in float64: E[x x^T] - mean mean^T would have no digits left in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from bnfold.recalibrate.instrument import Names, constant_node
from bnfold.recalibrate.moments import Floats, Moments, Trace
from bnfold.verify.large import Model

# A covariance takes C_x² products at each position, and spares the passes over C_y values that measuring, keeping and
# normalising them takes. Up to so many products for each value that is cheaper: CPU time of exact over plain inference
# fell from 4.3 to 3.2 on mobilenetv2 and from 1.62 to 1.52 on resnet50 (8: 3.0 and 1.58; 32: 3.2 and 1.64).
PRODUCTS = 16


@dataclass(frozen=True, eq=False)
class Widening:
    """A 1 × 1 Conv: y = weight x + bias.

    Attributes:
        source: the name of x.
        weight: float64, (C_y, C_x).
        bias: float64, (C_y,).
    """

    source: str
    weight: Floats
    bias: Floats

    def moments(self, size: int, sums: Floats, products: Floats) -> tuple[int, Floats, Floats]:
        """Number of elements, mean and biased variance of y in one batch, (C_y,) each.

        Args:
            size: number of elements of x.
            sums: of x over all positions, (C_x,).
            products: the sum of x x^T, (C_x, C_x).
        """
        wide, narrow = self.weight.shape
        positions = size // narrow
        mean = sums / max(positions, 1)
        covariance = products / max(positions, 1) - np.outer(mean, mean)
        variance = np.einsum("ij,ij->i", self.weight @ covariance, self.weight)
        return positions * wide, self.weight @ mean + self.bias, np.maximum(variance, 0)


def widening(node: NodeProto | None, model: Model, tensors: Mapping[str, TensorProto]) -> Widening | None:
    """What a node is, if it is a 1 × 1 Conv in float32 or float64 that widens.

    Args:
        node: or None.
        model: that it is in.
        tensors: initializers of that, by name.
    """
    if node is None or node.op_type != "Conv" or any(name not in tensors for name in node.input[1:] if name):
        return None
    weight = tensors[node.input[1]]
    if weight.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE) or set(weight.dims[2:]) - {1}:
        return None
    settings = {one.name: one for one in node.attribute}
    strides = settings["strides"].ints if "strides" in settings else ()
    pads = settings["pads"].ints if "pads" in settings else ()
    if max(strides, default=1) > 1 or any(pads) or not _pays(weight.dims[0], weight.dims[1]):
        return None
    if "group" in settings and settings["group"].i != 1:
        return None
    matrix = model.read(weight).reshape(tuple(weight.dims[:2])).astype(np.float64)
    bias = model.read(tensors[node.input[2]]) if len(node.input) > 2 and node.input[2] else np.zeros(len(matrix))
    return Widening(node.input[0], matrix, bias.astype(np.float64))


def _pays(wide: int, narrow: int) -> bool:
    return wide >= 2 * narrow and narrow**2 <= PRODUCTS * wide


def covariance_nodes(names: Names, source: str, channels: int, opset: int) -> list[NodeProto]:
    """Nodes that sum a value up over all but its channels, in float64.

    Args:
        names: of the number of elements, of the sums, (C,), and of the products, (C, C).
        source: the value, (N, C, ...).
        channels: C.
        opset: of the model.
    """
    flat, double, rows, matrix, shape, axes, zeros = (
        f"{names[1]}.{what}" for what in ("flat", "double", "rows", "matrix", "shape", "axes", "zeros")
    )
    sums: dict[str, Any] = {"inputs": [matrix, axes]} if opset >= 13 else {"inputs": [matrix], "axes": [1]}
    return [
        constant_node(shape, np.array([0, channels, -1])),
        constant_node(axes, np.array([1])),
        constant_node(zeros, np.zeros((channels, channels))),  # before opset 11 a Gemm has to add something
        helper.make_node("Reshape", [source, shape], [flat]),
        helper.make_node("Cast", [flat], [double], to=TensorProto.DOUBLE),
        helper.make_node("Transpose", [double], [rows], perm=[1, 0, 2]),
        helper.make_node("Flatten", [rows], [matrix], axis=1),
        helper.make_node("Gemm", [matrix, matrix, zeros], [names[2]], transB=1),
        helper.make_node("ReduceSum", outputs=[names[1]], keepdims=0, **sums),
        helper.make_node("Size", [matrix], [names[0]]),
    ]


def behind(trace: Trace, gain: Floats, shift: Floats) -> Trace:
    """What is known of gain * x + shift, (C,) each, of what is known of x."""

    def moved(moments: Moments) -> Moments:
        return Moments(moments.count, gain * moments.mean + shift, gain**2 * moments.m2)

    return Trace(moved(trace.total), [moved(block) for block in trace.blocks], trace.size, trace.filled)
