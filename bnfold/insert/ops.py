"""The ops that decide where a BN belongs: linear ones, activations, and what may lie between the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bnfold.graph import Node

# The ops that have a name of their own. SiLU, Mish, Gelu and HardSwish written out begin with one of these too, behind
# scalar Mul, Add and Div: y * Sigmoid(y), y * Tanh(Softplus(y)), y * (Erf(y / sqrt(2)) + 1) / 2, y * Clip(y + 3) / 6.
ACTIVATIONS = frozenset(
    """Relu LeakyRelu PRelu ThresholdedRelu Elu Selu Celu Clip Sigmoid HardSigmoid Tanh Softplus Softsign HardSwish
    Swish Mish Gelu Erf Shrink Max Min Sin Cos com.microsoft::Gelu com.microsoft::FastGelu
    com.microsoft::QuickGelu""".split()
)

# Ops that keep channels channels, so that what is normalised in front of them is what the activation behind sees.
PASSING = frozenset(
    """Identity Dropout Cast MaxPool AveragePool Transpose Reshape Flatten Squeeze Unsqueeze Concat Split Slice Pad
    DepthToSpace SpaceToDepth Resize Upsample""".split()
)

# Sums: through a residual Add, or a bias that the linear op has no slot for.
SUMS = frozenset({"Add", "Sub", "Sum"})

# Ops with weights inside, as bodies and calls of functions may have them: what they read is not the last layer's.
WEIGHTED = frozenset(
    """RNN GRU LSTM Einsum Attention DeformConv QLinearConv QLinearMatMul ConvInteger MatMulInteger""".split()
)

NORMALIZATIONS = frozenset(
    """BatchNormalization InstanceNormalization LayerNormalization GroupNormalization RMSNormalization
    LpNormalization MeanVarianceNormalization com.microsoft::LayerNormalization com.microsoft::GroupNorm
    SimplifiedLayerNormalization com.microsoft::SkipLayerNormalization""".split()
)


@dataclass(frozen=True)
class Linear:
    """How a linear op lies in its arrays.

    Attributes:
        weight: the input that is its weight.
        bias: the input that is its bias; None if it has no such slot.
        channels: of the shape of the weight, the number of output channels.
        axis: of the rank of its output and the node, the axis of the output that they lie along.
    """

    weight: int
    bias: int | None
    channels: Callable[[Node, tuple[int, ...]], int]
    axis: Callable[[int], int]


# Each ends in W's shape.
LINEAR: Mapping[str, Linear] = {
    "Conv": Linear(1, 2, lambda _, dims: dims[0], lambda _: 1),  # (M, C/group, kernel)
    "ConvTranspose": Linear(  # (C, M/group, kernel)
        1, 2, lambda node, dims: dims[1] * int(node.attribute("group", 1)), lambda _: 1
    ),
    "Gemm": Linear(1, 2, lambda node, dims: dims[0 if node.attribute("transB", 0) else 1], lambda _: 1),  # (K, N)
    "MatMul": Linear(1, None, lambda _, dims: dims[-1], lambda rank: rank - 1),  # (K, N)
}
# MatMul with its weight on the left, (M, K).
LEFT_MATMUL = Linear(0, None, lambda _, dims: dims[-2], lambda rank: rank - 2)
