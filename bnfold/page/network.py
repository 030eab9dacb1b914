"""Where each node of a model is drawn: by its depth, scope under scope.

A node's depth is the number of nodes on the longest way to it from what the scope is fed (networkx's generations).
What nothing is fed to, as shapes and expressions of constants, stands right before its first reader. Constants
themselves are not drawn.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto

from bnfold.graph import Graph, Node, Scope

# Lanes between a scope and the next one.
GAP = 3.0
# Stands for all that a scope is given.
SOURCE = -1


@dataclass(frozen=True)
class Place:
    """Where a node is: `x` is its depth, `y` its lane (0 is in the middle of the first scope)."""

    scope: str
    name: str
    op: str
    outputs: tuple[str, ...]
    x: float
    y: float


@dataclass(frozen=True)
class Network:
    """A model laid out: its nodes, edges between their positions in `places`, and the lane of each scope's label."""

    places: tuple[Place, ...]
    edges: tuple[tuple[int, int], ...]
    labels: tuple[tuple[str, float], ...]

    @property
    def depth(self) -> float:
        """The largest x."""
        return max((place.x for place in self.places), default=0.0)

    @property
    def lanes(self) -> float:
        """How far the topmost lane is from the lowest."""
        lanes = [place.y for place in self.places]
        return max(lanes) - min(lanes) if lanes else 0.0


def network_of(model: str | os.PathLike[str]) -> Network:
    """The network of a file, laid out.

    >>> network = network_of("sample_models/digits_cnn.onnx")
    >>> len(network.places), network.places[0].op, network.places[1].x
    (25, 'Conv', 1.0)

    Raises: ModelError if it isn't sound.
    """
    from bnfold.model_file import load

    return lay_out(load(model).proto)


def lay_out(model: ModelProto) -> Network:
    """Give every node of every scope its place."""
    copy = ModelProto()
    copy.CopyFrom(model)  # the view may sort nodes
    places: list[Place] = []
    edges: list[tuple[int, int]] = []
    labels: list[tuple[str, float]] = []
    floor = 0.0
    for scope in Graph(copy).scopes:
        nodes = [node for node in scope.nodes if node.op != "Constant"]
        if not nodes:
            continue
        lanes = _lanes(scope, nodes)
        top = max(lane for _, lane in lanes.values())
        lift = floor - top if labels else 0.0
        start = len(places)
        for node in nodes:
            x, lane = lanes[node.index]
            outputs = tuple(value.name for value in node.outputs if value is not None)
            places.append(Place(scope.label, node.name, node.op, outputs, x, lane + lift))
        position = {node.index: start + k for k, node in enumerate(nodes)}
        edges += [(position[a], position[b]) for a, b in _edges(nodes)]
        labels.append((scope.label, top + lift))
        floor = min(place.y for place in places[start:]) - GAP
    return Network(tuple(places), tuple(edges), tuple(labels))


def _edges(nodes: list[Node]) -> Iterator[tuple[int, int]]:
    """Pairs of node indices, each once."""
    drawn = {node.index for node in nodes}
    for node in nodes:
        readers = dict.fromkeys(user.index for value in node.outputs if value is not None for user, _ in value.users)
        yield from ((node.index, reader) for reader in readers if reader in drawn)


def _lanes(scope: Scope, nodes: list[Node]) -> dict[int, tuple[float, float]]:
    """Depth and lane of every node: within a depth they stand in the order of what they read."""
    import networkx

    graph: Any = networkx.DiGraph()
    graph.add_nodes_from(node.index for node in nodes)
    graph.add_edges_from(_edges(nodes))
    depth = _depths(graph, _fed(scope, nodes))
    columns: dict[int, list[int]] = {}
    for index, x in sorted(depth.items(), key=lambda item: item[1]):
        columns.setdefault(x, []).append(index)
    first = min(columns)
    lanes: dict[int, tuple[float, float]] = {}
    for x, column in columns.items():
        height = {index: _mean([lanes[before][1] for before in graph.pred[index] if before in lanes])
                  for index in column}  # fmt: skip
        column.sort(key=lambda index: (height[index], index))
        for place, index in enumerate(column):
            lanes[index] = (float(x - first), place - (len(column) - 1) / 2)
    return lanes


def _fed(scope: Scope, nodes: list[Node]) -> list[int]:
    """Nodes that read what the scope is given: its inputs, and what it captures."""
    given = {value.name for value in scope.values.values()
             if (value.is_input or value.outer is not None) and value.tensor is None}  # fmt: skip
    return [node.index for node in nodes if any(value is not None and value.name in given for value in node.inputs)]


def _depths(graph: Any, fed: list[int]) -> dict[int, int]:
    import networkx

    graph.add_edges_from((SOURCE, index) for index in fed)
    reached = networkx.descendants(graph, SOURCE) if fed else set(graph)
    graph.remove_nodes_from([SOURCE])
    depth = {index: x for x, column in enumerate(networkx.topological_generations(graph.subgraph(reached)))
             for index in column}  # fmt: skip
    for index in reversed(list(networkx.topological_sort(graph))):
        if index not in depth:
            depth[index] = min((depth[reader] for reader in graph.succ[index]), default=1) - 1
    return depth


def _mean(lanes: list[float]) -> float:
    return sum(lanes) / len(lanes) if lanes else 0.0
