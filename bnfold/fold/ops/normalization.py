"""Norms of the sample itself: LayerNormalization and its kin end in a scale and a bias of their own.

    y = scale * N(x) + bias        N: (x - mean) / sqrt(var + epsilon), over the axes that the op normalises

So their output may be in any coordinates: scale' = s scale, bias' = s (bias + t).  Their input stays as it is: N undoes
a scale only where epsilon is 0.  That scale and bias become 1 and 0, and go into the next weights, is the offer of
`bnfold.fold.norms`.
"""

from __future__ import annotations

from bnfold.fold.ops.affine import MAX_ELEMENTS
from bnfold.fold.ops.linear import add_linear, constant_bias, weight_of
from bnfold.fold.ties import FIXED, Linear, Ties, rule
from bnfold.graph import Node

# Along the last axis, or along the channels, axis 1.
LAST = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
CHANNELS = ("InstanceNormalization", "GroupNormalization")
WITHOUT_BIAS = ("RMSNormalization", "SimplifiedLayerNormalization")
NORMS = LAST + CHANNELS


@rule(*NORMS)  # s * (scale * N(x) + bias + t) = (s scale) * N(x) + s (bias + t)
def normalization(ties: Ties, node: Node) -> bool:
    """Rows: the entries of scale and bias.  There are no columns: what goes in stays as it is."""
    source, output = node.input(0), node.output()
    found = weight_of(ties, node, 1)
    if source is None or output is None or found is None or len(found[1]) != 1 or found[1][0] > MAX_ELEMENTS:
        return False
    weight, shape = found
    rank = ties.rank(source)
    if node.op in CHANNELS and (rank is None or _per_group(node)):
        return False
    bias_input = None if node.op in WITHOUT_BIAS else 2
    if bias_input and not constant_bias(ties, node, bias_input, lambda bias: bias.shape == shape):
        return False
    ties.fix(source, node)
    add_linear(
        ties,
        Linear(
            node=node, source=None, output=output, weight=weight, view=shape, row_axes=(0,), column_axes=(),
            rows=ties.fresh(shape, rank), columns=FIXED,
            row_shape=shape if node.op in LAST else (1, *shape, *(1,) * ((rank or 2) - 2)), bias_input=bias_input,
        ),
    )  # fmt: skip
    return True


def _per_group(node: Node) -> bool:
    """Before opset 21 a GroupNormalization has one scale a group, which is none a channel."""
    return node.op == "GroupNormalization" and node.opset < 21
