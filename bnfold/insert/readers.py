"""What becomes of each value of the main graph: which activation sees it, which normalization, which linear node.

One walk against the order of the nodes: what is said of a node's inputs is known of its outputs already.
"""

from __future__ import annotations

from collections.abc import Iterable

from bnfold.constants import Constants
from bnfold.graph import Graph, Node, Value
from bnfold.insert.ops import ACTIVATIONS, LINEAR, NORMALIZATIONS, PASSING, SUMS, WEIGHTED


class Readers:
    """The first node of each kind that sees a value, through ops that keep channels channels.

    Attributes:
        activation: through sums too.
        normalization: not through sums, since what is normalised there is the sum; but behind the value's activation.
        before_linear: the values that come to a linear node, sooner or later.
    """

    def __init__(self, graph: Graph, constants: Constants) -> None:
        self._constants = constants
        self.activation: dict[Value, Node] = {}
        self.normalization: dict[Value, Node] = {}
        self.before_linear: set[Value] = set()
        self._norm_behind: dict[Value, Node] = {}  # a BN right behind: the layer has one if this is its activation
        for node in reversed(graph.main.nodes):
            for value in node.outputs:
                if value is not None:
                    self._look(value)

    def _look(self, value: Value) -> None:
        for node, index in value.users:
            if _has_weights(node) or any(output in self.before_linear for output in node.outputs):
                self.before_linear.add(value)
            if (node.op in NORMALIZATIONS and index == 0) or self._is_scaled(node, index):
                self.normalization.setdefault(value, node)
                if node.op == "BatchNormalization":
                    self._norm_behind.setdefault(value, node)
            elif node.op in ACTIVATIONS and (index == 0 or node.op in ("Max", "Min")):
                self.activation.setdefault(value, node)
                _hand_on(self.normalization, value, self._norm_behind, node.outputs)
            elif self._passes(node, index):
                _hand_on(self.activation, value, self.activation, node.outputs)
                if not self._is_residual(node, index):
                    _hand_on(self.normalization, value, self.normalization, node.outputs)
                if node.op in PASSING:
                    _hand_on(self._norm_behind, value, self._norm_behind, node.outputs)
        if value.captured:  # whatever the body does with it
            self.before_linear.add(value)

    def _passes(self, node: Node, index: int) -> bool:
        """Whether a node hands on what it reads at an input, but for a residual or a number."""
        if node.op in ("Mul", "Div"):
            other = self._other(node, index)
            return other is not None and other == 1
        return node.op in SUMS or node.op == "Concat" or (node.op in PASSING and index == 0)

    def _is_residual(self, node: Node, index: int) -> bool:
        return node.op in SUMS and not (len(node.inputs) == 2 and self._other(node, index) is not None)

    def _is_scaled(self, node: Node, index: int) -> bool:
        """Whether it is the first half of a BN that is written out: a product with a constant per channel."""
        if node.op not in ("Mul", "Div"):
            return False
        other = self._other(node, index)
        return other is not None and other > 1

    def _other(self, node: Node, index: int) -> int | None:
        """Elements of a constant that stands beside the input, None if it is none."""
        array = self._constants.array(node.input(1 - index))
        return None if array is None else array.size


def _has_weights(node: Node) -> bool:
    foreign = "::" in node.op and node.op not in ACTIVATIONS | NORMALIZATIONS  # a function, or who knows
    return node.op in LINEAR or node.op in WEIGHTED or foreign or bool(node.bodies)


def _hand_on(
    found: dict[Value, Node], value: Value, known: dict[Value, Node], outputs: Iterable[Value | None]
) -> None:
    """What is known of a node's outputs is true of its input."""
    for output in outputs:
        if output is not None and output in known:
            found.setdefault(value, known[output])
