"""Where a BN belongs: behind which linear nodes of the main graph.

Ioffe & Szegedy 2015, section 3.2: z = g(W u + b) becomes z = g(BN(W u)). W u is nearer to a Gaussian than u, whose
distribution changes its shape as the layer before it learns; and b is left out, since the mean takes it away again and
beta does what it did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import helper

from bnfold.constants import Array, Constants, is_floating
from bnfold.errors import quoted
from bnfold.graph import Graph, Node, Value
from bnfold.insert.ops import LEFT_MATMUL, LINEAR, Linear
from bnfold.insert.readers import Readers
from bnfold.recalibrate.moments import Floats
from bnfold.shapes import Shapes

Where = Literal["before-activation", "all"]
WHERE: tuple[Where, ...] = ("before-activation", "all")

# Why a linear node gets no BN.
REASONS = {
    "normalized": "it is normalized already",
    "no-activation": "no activation reads it (--where all takes it)",
    "last": "it is the network's last",
    "inside": "it is in a body or a function",
    "quantised-weight": "its weight is kept as integers",
    "dynamic-weight": "its weight is computed while the model runs",
    "no-channels": "its output has no channel axis",
    "unknown-rank": "the rank of its output is unknown",
}


@dataclass(frozen=True, eq=False)
class Site:
    """A place for a BN.

    Attributes:
        node: the linear node.
        name: its name; where it has none that of its output, which the insertion may change.
        adds: nodes behind it that add a constant per channel: its bias, of a MatMul.
        target: the value that the BN is to make.
        channels: C.
        axis, rank: where the channels lie in it; a BN wants them on axis 1.
        bias: (C,), float64: what leaves the node and the `adds`.
        drops_bias: whether the node has a bias input that leaves.
        element_type: TensorProto data type.
        activation: the first one behind it; None if there is none.
        is_last: whether no other linear node lies behind it.
    """

    node: Node
    name: str
    adds: tuple[Node, ...]
    target: Value
    channels: int
    axis: int
    rank: int
    bias: Floats
    drops_bias: bool
    element_type: int
    activation: Node | None
    is_last: bool

    @property
    def transposed(self) -> bool:
        """Whether the channels have to be brought to axis 1 and back."""
        return self.axis != 1

    @property
    def permutation(self) -> tuple[int, ...]:
        """The axes with that of the channels in the second place."""
        others = [axis for axis in range(self.rank) if axis != self.axis]
        return (others[0], self.axis, *others[1:])


@dataclass(frozen=True)
class Left:
    """A linear node that gets no BN: its name and op, why (a code of `REASONS`), and the same for people."""

    name: str
    op: str
    reason: str
    sentence: str


def find_sites(
    graph: Graph, shapes: Shapes, where: Where, chosen: Callable[[Node], bool]
) -> tuple[list[Site], list[Left]]:
    """Every place for a BN in the main graph; and the linear nodes that get none, of those that are `chosen`."""
    finder = _Finder(graph, shapes, where)
    found = [finder.look(node) for scope in graph.scopes for node in scope.nodes if node.op in LINEAR and chosen(node)]
    return [one for one in found if isinstance(one, Site)], [one for one in found if isinstance(one, Left)]


class _Finder:
    def __init__(self, graph: Graph, shapes: Shapes, where: Where) -> None:
        self._scope = graph.main
        self._shapes = shapes
        self._constants: Constants = shapes.constants(graph.main)
        self._where = where
        self._readers = Readers(graph, self._constants)

    def look(self, node: Node) -> Site | Left | None:
        """The site behind a linear node, or why there is none; None if the node has no weight at all."""
        if node.scope is not self._scope:
            return _left(node, "inside", f"it is in {quoted(node.scope.label)}; inline that first")
        linear, weight = self._weight(node)
        output = node.output()
        if output is None or (weight is None and node.op == "MatMul"):
            return None  # of two computed values
        if weight is None:
            return _left(node, "dynamic-weight")
        if not is_floating(weight):
            return None
        if self._constants.quantiser(node.input(linear.weight)) is not None:
            return _left(node, "quantised-weight")
        rank = weight.ndim if node.op.startswith("Conv") else self._shapes.rank(self._scope, output)
        if rank is None:
            return _left(node, "unknown-rank")
        if rank < 2 or (node.op == "MatMul" and weight.ndim > 2 and weight[..., :1, :1].size > 1):
            return _left(node, "no-channels")
        site = self._site(node, linear, weight, output, rank)
        return self._refused(site) or site

    def _weight(self, node: Node) -> tuple[Linear, Array | None]:
        linear = LINEAR[node.op]
        weight = self._constants.array(node.input(linear.weight))
        if node.op == "MatMul":
            left = self._constants.array(node.input(LEFT_MATMUL.weight))
            if left is not None:
                return LEFT_MATMUL, left if weight is None else None
        return linear, weight

    def _site(self, node: Node, linear: Linear, weight: Array, output: Value, rank: int) -> Site:
        channels, axis = linear.channels(node, weight.shape), linear.axis(rank)
        own = self._own_bias(node, linear, channels)
        adds, bias, target = [], np.zeros(channels), output
        while (found := self._added(target, channels, axis, rank)) is not None:
            add, vector = found
            adds.append(add)
            bias = bias + vector
            behind = add.output()
            assert behind is not None
            target = behind
        return Site(
            node, node.name, tuple(adds), target, channels, axis, rank,
            bias if own is None else bias + own, own is not None,
            int(helper.np_dtype_to_tensor_dtype(weight.dtype)),
            self._readers.activation.get(target), target not in self._readers.before_linear,
        )  # fmt: skip

    def _own_bias(self, node: Node, linear: Linear, channels: int) -> Floats | None:
        """The bias in the node's own slot, (C,); None if there is none, or one that has to stay."""
        value = None if linear.bias is None else node.input(linear.bias)
        array = self._constants.array(value)
        if value is None or array is None or not is_floating(array) or self._constants.quantiser(value) is not None:
            return None
        gain = float(node.attribute("beta", 1.0)) if node.op == "Gemm" else 1.0
        axis, rank = (1, 2) if node.op == "Gemm" else (0, 1)
        vector = _per_channel(array, channels, axis, rank)
        return None if vector is None else gain * vector

    def _added(self, value: Value, channels: int, axis: int, rank: int) -> tuple[Node, Floats] | None:
        """The node that adds a constant per channel to a value, if no other reads it; it keeps its name and meaning."""
        if len(value.users) != 1:
            return None
        node, index = value.users[0]
        if node.op != "Add" or node.output() is None:
            return None
        array = self._constants.array(node.input(1 - index))
        if array is None or not is_floating(array) or not array.ndim:  # one number is no bias: y + 3 in a HardSwish
            return None
        vector = _per_channel(array, channels, axis, rank)
        return None if vector is None else (node, vector)

    def _refused(self, site: Site) -> Left | None:
        normalization = self._readers.normalization.get(site.target)
        if normalization is not None:
            name = f"{normalization.op} {quoted(normalization.name)}"
            return _left(site.node, "normalized", f"{name} normalizes it already")
        if self._where == "all":
            return _left(site.node, "last") if site.is_last else None
        return _left(site.node, "no-activation") if site.activation is None else None


def _per_channel(array: Array, channels: int, axis: int, rank: int) -> Floats | None:
    """A constant that broadcasts along all axes but that of the channels, as (C,), float64; else None."""
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if shape[axis] not in (1, channels) or any(size != 1 for k, size in enumerate(shape) if k != axis):
        return None
    return np.array(np.broadcast_to(np.asarray(array, np.float64).ravel(), (channels,)))


def _left(node: Node, reason: str, sentence: str = "") -> Left:
    return Left(node.name, node.op, reason, sentence or REASONS[reason])
