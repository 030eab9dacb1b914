"""Parallel branches, and linear nodes in a row, become one linear node.

A sum of linear maps of the same value is one linear map: Conv k x k + Conv 1 x 1 + BN on the skip (RepVGG, Ding et al.
2021), rows and columns of kernels (ACNet, 2019), a low-rank pair of MatMuls beside a full one.  So is one map behind
another.  Folding can't remove a BN on a skip connection; here it goes with the skip.

    terms     what a map is: source, taps, groups
    read      each op as such a map
    cost      never into more work
    find      where maps meet
    kernels   the weights, in float64
    apply     the edits

It comes before folding, since a merged node ties less: then every branch has one scale, not the sum's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from onnx import ModelProto

from bnfold.errors import quoted
from bnfold.fold.merge.apply import Applier, Merged
from bnfold.fold.merge.cost import multiply_adds, multiply_adds_of_nodes
from bnfold.fold.merge.find import find
from bnfold.fold.parameters import Unrepresentable
from bnfold.fold.ties import Ties
from bnfold.fold.wiring import freeze, read_names, sweep
from bnfold.graph import Graph, Node, Value
from bnfold.model_file import LoadedModel
from bnfold.report import Entry, Merge
from bnfold.shapes import Shapes

# A merged node may be a branch of another one; real models take one round.
MAX_ROUNDS = 8


class Spoiled(Exception):
    """A merge that the stored type can't hold: nothing may be merged into `key`."""

    def __init__(self, root: Node) -> None:
        super().__init__(root.name)
        self.key = key_of(root)


def key_of(root: Node) -> str:
    """A name for the end of a merge that is the same in every attempt."""
    return f"{root.scope.label}//{root.proto.output[0]}"


@dataclass(frozen=True, eq=False)
class Round:
    """Merges that were found at once.

    before: the model as it was, for the proof.
    """

    before: LoadedModel
    done: list[Merged]


@dataclass
class Merging:
    """What merging did to a model.

    Attributes:
        model: as it is now.
        graph, shapes: a view of it, and what is known of its shapes.
        nodes: how many there were.
        entries: one for each op that went, with the place where it stood.
        frozen: initializers that could be fed and now can't.
        added: Adds that came, for the bias of MatMuls.
    """

    model: LoadedModel
    graph: Graph
    shapes: Shapes
    nodes: int
    rounds: list[Round] = field(default_factory=list)
    entries: list[tuple[tuple[str, int], Entry]] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    added: int = 0
    _places: dict[int, tuple[str, int]] = field(default_factory=dict)
    _views: list[Graph] = field(default_factory=list)  # they keep the ids of protos valid

    def place(self, node: Node) -> tuple[str, int]:
        """The scope of a node and where it stood in the model that was given."""
        return self._places.get(id(node.proto), (node.scope.label, node.index))

    def look_again(self, keep_overridable: bool) -> None:
        """Make `graph` and `shapes` those of the model as it is now."""
        if not self._views:
            self._places = {id(node.proto): (s.label, node.index) for s in self.graph.scopes for node in s.nodes}
        self._views.append(self.graph)
        self.graph = Graph(self.model.proto)
        self.shapes = Shapes(self.graph, self.model, keep_overridable)


class Choice(Protocol):
    """What may be merged."""

    @property
    def merge(self) -> bool:
        """Whether anything may be."""

    @property
    def keep_overridable(self) -> bool:
        """Whether initializers that are graph inputs too are no constants."""

    def mergeable(self, node: Node) -> bool:
        """Whether a node may go."""

    def wanted(self, nodes: Iterable[Node]) -> bool:
        """Whether these nodes may become one."""


def merge_model(model: LoadedModel, options: Choice, spoiled: set[str]) -> Merging:
    """Merge in place whatever can be.

    Args:
        model: its proto is edited.
        options: what may be merged.
        spoiled: keys of nodes that no merge may end at.

    Raises:
        Spoiled: a bias that its type can't hold; the model is half edited then.
    """
    graph = Graph(model.proto)
    shapes = Shapes(graph, model, options.keep_overridable)
    result = Merging(model, graph, shapes, sum(len(scope.nodes) for scope in graph.scopes))
    for _ in range(MAX_ROUNDS if options.merge else 0):
        if not _round(model, options, spoiled, result):
            break
        result.look_again(options.keep_overridable)
    return result


def _round(model: LoadedModel, options: Choice, spoiled: set[str], result: Merging) -> bool:
    graph, shapes = result.graph, result.shapes
    found = []
    for scope in graph.scopes:
        ties = Ties(scope, shapes, shapes.constants(scope), options.mergeable)
        merges = find(ties, options.mergeable, lambda node: key_of(node) in spoiled)
        found += [(merge, ties) for merge in merges if options.wanted(merge.nodes)]
    if not found:
        return False
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    before, names = LoadedModel(proto, model.weights, model.path), read_names(graph)
    applier = Applier(graph, model.weights)
    done: list[Merged] = []
    used: list[Value] = []
    for merge, ties in found:
        try:
            made = applier.apply(merge, ties.constants)
        except Unrepresentable:
            raise Spoiled(merge.root) from None
        done += made
        for item in made:
            result.entries += _entries(item, result)
            result.added += item.bias is not None and item.host.op == "MatMul"
            result.merges.append(_told(item, merge.gone if item is made[0] else (), shapes, model))
            used += [value for node in item.term.nodes for value in node.inputs if value and ties.is_constant(value)]
    result.rounds.append(Round(before, done))
    sweep(graph, names)
    result.frozen += freeze(graph, used)
    return True


def _entries(item: Merged, result: Merging) -> Iterator[tuple[tuple[str, int], Entry]]:
    """An entry for each BN, and each op by a constant, that went."""
    host = item.host.name
    sentence = f"merged into {quoted(host)}"
    for node in (part.node for part in item.term.walk() if part.kind == "affine"):
        if node is not None:
            entry = Entry(node.name, node.op, node.scope.label, "folded", "merged", (host,), sentence=sentence)
            yield result.place(node), entry


def _told(item: Merged, sums: Iterable[Node], shapes: Shapes, model: LoadedModel) -> Merge:
    term, host, output = item.term, item.host, item.root.output()
    dims = None if output is None else shapes.dims(host.scope, output)
    space = (None,) if dims is None else dims[1:-1] if term.last else dims[2:]
    known = None not in space
    positions = math.prod(size or 0 for size in space) if known else 1
    held = {value for node in term.nodes for value in node.inputs if value is not None}
    before = sum(model.weights.nbytes(value.tensor) for value in held if value.tensor is not None)
    after = sum(model.weights.nbytes(tensor) for tensor in (item.weight, item.bias) if tensor is not None)
    parts = tuple(dict.fromkeys((*term.nodes, *sums)))
    return Merge(
        host.name, host.op, host.scope.label, tuple(node.name for node in parts),
        (multiply_adds_of_nodes(term) * positions, multiply_adds(term) * positions), known, (before, after),
        (len(parts), 1 + (item.bias is not None and host.op == "MatMul")),
    )  # fmt: skip
