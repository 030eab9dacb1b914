"""Put BNs into the model: nodes, tensors, names.

The BN's output bears the name that the tensor had, so that all who read it, graph outputs and bodies included, read on.
Weights stay as they are. A bias that leaves is only not read any more: where others share it, it stays for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper

from bnfold.constants import Array
from bnfold.fold.wiring import read_names, sweep
from bnfold.graph import Graph, Node, remove_nodes
from bnfold.insert.parameters import EPSILON, ROLES, Parameters, dtype_of
from bnfold.insert.sites import Site
from bnfold.storage import add_tensor


@dataclass(frozen=True)
class Placed:
    """A BN in the model: its name, and those of its parameters in the order of `ROLES`."""

    name: str
    parameters: tuple[str, ...]


def place(graph: Graph, sites: Sequence[Site], parameters: Sequence[Parameters]) -> list[Placed]:
    """Edit the model: a BN at every site.

    Args:
        graph: the model that the sites are of.
        sites: where.
        parameters: of the BN of each.
    """
    placer, before = _Placer(graph), read_names(graph)
    placed = [placer.put(site, values) for site, values in zip(sites, parameters, strict=True)]
    placer.finish()
    sweep(graph, before)
    return placed


def to_training(model: ModelProto, placed: Sequence[Placed]) -> None:
    """Bring BNs into training mode: they normalise by the batch, and give running mean and variance out."""
    graph = Graph(model)
    by_name = {node.name: node for node in graph.main.proto.node}
    for one in placed:
        node = by_name[one.name]
        node.attribute.append(helper.make_attribute("training_mode", 1))
        node.output.extend(graph.unique_name(f"{name}.next") for name in one.parameters[2:])


class _Placer:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._names = {node.name for node in graph.main.proto.node}
        self._new: dict[int, list[NodeProto]] = {}  # by the id of the proto that they follow
        self._gone: list[Node] = []

    def put(self, site: Site, values: Parameters) -> Placed:
        """Put in one BN."""
        proto, name = site.node.proto, self._node_name(f"{site.name}.bn")
        self._drop_bias(site)
        if site.adds:  # what the node makes keeps its name and its meaning
            source = proto.output[0]
            self._gone += site.adds
        else:
            source = self._graph.unique_name(f"{site.target.name}.linear")
            proto.output[0] = source
        tensors = [self._tensor(f"{name}.{role}", values[role]) for role in ROLES]
        self._new[id(proto)] = list(self._nodes(site, name, source, tensors))
        return Placed(name, tuple(tensors))

    def finish(self) -> None:
        """New nodes, each right behind its linear node; and the Adds that were biases go."""
        entries = self._graph.main.proto.node
        for index in range(len(entries) - 1, -1, -1):
            for node in reversed(self._new.get(id(entries[index]), [])):
                entries.insert(index + 1, node)
        remove_nodes(self._graph.main, self._gone)

    def _nodes(self, site: Site, name: str, source: str, tensors: Sequence[str]) -> Iterator[NodeProto]:
        target = site.target.name
        outer = source, target
        if site.transposed:
            source, target = (self._graph.unique_name(f"{value}.channels_first") for value in outer)
            yield helper.make_node(
                "Transpose", [outer[0]], [source], self._node_name(f"{name}.transpose"), perm=site.permutation
            )
        yield helper.make_node("BatchNormalization", [source, *tensors], [target], name, epsilon=EPSILON)
        if site.transposed:
            back = [int(axis) for axis in np.argsort(site.permutation)]
            yield helper.make_node(
                "Transpose", [target], [outer[1]], self._node_name(f"{name}.transpose_back"), perm=back
            )

    def _drop_bias(self, site: Site) -> None:
        node = site.node
        if not site.drops_bias:
            return
        if node.op == "Gemm" and node.opset < 11:  # its third input is no option yet
            node.proto.input[2] = self._tensor(f"{site.name}.no_bias", np.zeros(site.channels, dtype_of(site)))
        else:
            del node.proto.input[2:]

    def _tensor(self, wanted: str, content: Array) -> str:
        name = self._graph.unique_name(wanted)
        add_tensor(self._graph, self._graph.main, name, content)
        return name

    def _node_name(self, wanted: str) -> str:
        name, count = wanted, 0
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name
