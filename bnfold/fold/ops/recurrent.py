"""Recurrent layers take scale and shift at their input, through W (directions, gates * hidden, input).

    W' = W diag(1/s_i)        Wb' = Wb - W t_i        (Wb: the first half of B)

Their output runs through saturating functions and stays fixed.
"""

from __future__ import annotations

from bnfold.fold.ops.linear import columns_of, constant_bias, weight_of
from bnfold.fold.ties import FIXED, Linear, Ties, rule
from bnfold.graph import Node

# X is (time, batch, input) or, with layout = 1, (batch, time, input): the input size is the last axis in both.


@rule("LSTM", "GRU", "RNN")
def recurrent(ties: Ties, node: Node) -> bool:
    """The input's last axis are W's columns; other inputs and all outputs stay as they are."""
    found = weight_of(ties, node, 1)
    source, output = node.input(0), node.output(0) or node.output(1)
    if found is None or source is None or output is None or ties.is_constant(source) or len(found[1]) != 3:
        return False
    weight, shape = found
    if not constant_bias(ties, node, 3, lambda bias: bias.shape == (shape[0], 2 * shape[1])):
        return False
    columns = columns_of(ties, node, source, -1, shape[2], 3)
    if columns is None:
        return False
    for value in node.inputs[2:]:
        ties.fix(value, node)
    ties.linears.append(
        Linear(
            node=node, source=source, output=output, weight=weight, view=shape, row_axes=(0, 1), column_axes=(2,),
            rows=FIXED, columns=columns, row_shape=(), bias_input=3,
        )
    )  # fmt: skip
    return True
