"""Pairs of QuantizeLinear and DequantizeLinear on activations: found, taken out of the way, put back.

While they are out of the way each of their nodes is an Identity, so that a fold passes them like any other. A mark in
the node's doc_string tells which it was, whatever is renamed around it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from bnfold.constants import DEQUANTIZE, QUANTIZE, Array, Constants, is_floating
from bnfold.fold import Options
from bnfold.fold.wiring import become, read_names, sweep
from bnfold.graph import Graph, Node, Value, remove_nodes
from bnfold.model_file import LoadedModel
from bnfold.shapes import Shapes
from bnfold.storage import add_tensor

# What ONNX Runtime takes into the kernel that rounds behind it.
CLIPS = frozenset({"Relu", "Clip"})
MARK = "bnfold pair "


@dataclass(frozen=True)
class Steps:
    """How a pair rounds: v becomes step * (clip(round(v / step) + zero_point) - zero_point).

    Attributes:
        step: the distance of two values that it lets through, a number of the values' type.
        zero_point: the integer that stands for 0, a number of the integers' type.
    """

    step: Array
    zero_point: Array

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        import ml_dtypes

        # numpy's own has no 4-bit ones
        found = ml_dtypes.iinfo(self.zero_point.dtype)  # type: ignore[no-untyped-call]
        return int(found.min), int(found.max)

    @property
    def is_symmetric(self) -> bool:
        """Whether 0 is in the middle of the integers, as some hardware wants it."""
        return int(self.zero_point) == 0 and self.limits[0] < 0

    def rounded(self, values: Array) -> Array:
        """What becomes of values, in float64."""
        step, zero = float(self.step), int(self.zero_point)
        return np.asarray((np.clip(np.rint(values / step) + zero, *self.limits) - zero) * step)

    def clipped(self, values: Array) -> Array:
        """What would become of values if nothing were rounded."""
        step, zero = float(self.step), int(self.zero_point)
        low, high = self.limits
        return np.asarray(np.clip(values, (low - zero) * step, (high - zero) * step))


@dataclass(frozen=True, eq=False)
class Pair:
    """A QuantizeLinear of computed values and the DequantizeLinears that read it, with the same constant steps.

    Attributes:
        number: which it is among the model's.
        nodes: the QuantizeLinear first.
        source: what it rounds.
        steps: how.
    """

    number: int
    nodes: tuple[Node, ...]
    source: Value
    steps: Steps

    @property
    def name(self) -> str:
        """That of the QuantizeLinear."""
        return self.nodes[0].name


def find_pairs(model: LoadedModel, options: Options) -> list[Pair]:
    """The pairs of the main graph whose integers nobody else reads, without those that `skip` names."""
    model = model.copy()  # a view sorts the nodes
    graph = Graph(model.proto)
    constants = Shapes(graph, model, options.keep_overridable).constants(graph.main)
    quantizers = [node for node in graph.main.nodes if node.op in QUANTIZE]
    read = (_read(node, number, constants) for number, node in enumerate(quantizers))
    return [pair for pair in read if pair is not None and all(options.mergeable(node) for node in pair.nodes)]


def _read(quantize: Node, number: int, constants: Constants) -> Pair | None:
    source, integers = quantize.input(0), quantize.output()
    if source is None or integers is None or not integers.is_private or constants.array(source) is not None:
        return None
    nodes = (quantize, *(node for node, index in integers.users if index == 0 and node.op in DEQUANTIZE))
    if not integers.users or len(nodes) != 1 + len(integers.users):
        return None
    step, zero = (_only([constants.array(node.input(index)) for node in nodes]) for index in (1, 2))
    if zero is None and not any(node.input(2) or node.attribute("output_dtype") for node in nodes):
        zero = np.zeros((), np.uint8)
    if step is None or zero is None or not is_floating(step) or "int" not in zero.dtype.name:
        return None
    return Pair(number, nodes, source, Steps(step, zero)) if 0 < float(step) < np.inf else None


def _only(arrays: Sequence[Array | None]) -> Array | None:
    """The number that all of them are, if they are one."""
    found = [array.reshape(()) for array in arrays if array is not None and array.size == 1]
    alike = len(found) == len(arrays) and all(one == found[0] and one.dtype == found[0].dtype for one in found)
    return found[0] if alike else None


def loosened(model: LoadedModel, pairs: Collection[Pair]) -> LoadedModel:
    """A copy with an Identity in the place of each node of these pairs."""
    copy = model.copy()
    graph = Graph(copy.proto)
    before = read_names(graph)
    marks = {node.proto.output[0]: (pair, place) for pair in pairs for place, node in enumerate(pair.nodes)}
    for node in graph.main.nodes:
        if node.proto.output and node.proto.output[0] in marks:
            pair, place = marks[node.proto.output[0]]
            become(node.proto, "Identity", [node.proto.input[0]])
            node.proto.doc_string = f"{MARK}{pair.number} {place}"
    integers = {pair.nodes[0].proto.output[0] for pair in pairs}
    _forget_types(copy.proto, integers)
    sweep(graph, before)
    return copy


def _forget_types(model: ModelProto, names: Collection[str]) -> None:
    kept = [info for info in model.graph.value_info if info.name not in names]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _mark(node: Node) -> tuple[int, int] | None:
    """Of an Identity that stands for a node of a pair, the pair's number and the node's place in it."""
    if node.op != "Identity" or not node.proto.doc_string.startswith(MARK):
        return None
    number, place = map(int, node.proto.doc_string.removeprefix(MARK).split())
    return number, place


def _marked(graph: Graph) -> Iterator[tuple[int, int, Node]]:
    """Number of the pair, place in it, the Identity that stands for it; in topological order."""
    yield from ((*mark, node) for node in graph.main.nodes if (mark := _mark(node)) is not None)


def sources(model: LoadedModel) -> dict[int, str]:
    """Names of what the pairs round, by their numbers; of those that a merge hasn't made one node of."""
    marks = _marked(Graph(model.proto))
    return {number: source.name for number, place, node in marks if place == 0 and (source := node.input(0))}


def needed(model: LoadedModel) -> set[int]:
    """Numbers of the pairs without which something would be rounded no more.

    The others have only readers that round by themselves, at most behind a Relu or Clip.
    """
    marks = _marked(Graph(model.proto))
    return {number for number, place, node in marks if place and not all(map(_rounded_behind, _outputs(node)))}


def _outputs(node: Node) -> Iterator[Value]:
    yield from (value for value in node.outputs if value is not None)


def _rounded_behind(value: Value) -> bool:
    """Whether all that reads a value rounds it, at most after a clip."""
    if not value.is_private or not value.users:
        return False
    for node, index in value.users:
        output, mark = node.output(), _mark(node)
        rounds = node.op in QUANTIZE or (mark is not None and mark[1] == 0)
        clips = node.op in CLIPS and output is not None and _rounded_behind(output)
        if index or not (rounds or clips):
            return False
    return True


def put_back(model: LoadedModel, original: LoadedModel, pairs: Sequence[Pair], steps: Mapping[int, Steps]) -> None:
    """Make nodes of pairs of the Identities again, with new steps; those without steps go. The model is edited."""
    graph = Graph(model.proto)
    before = read_names(graph)
    by_number = {pair.number: pair for pair in pairs}
    names: dict[int, list[str]] = {}
    gone: list[Node] = []
    for number, place, node in _marked(graph):
        node.proto.ClearField("doc_string")
        if number not in steps:
            gone += [node] if _bypass(node) else []
            continue
        if number not in names:
            names[number] = _store(graph, by_number[number], steps[number])
        was = by_number[number].nodes[place].proto
        become(node.proto, was.op_type, [node.proto.input[0], *names[number]])
        node.proto.domain = was.domain
        if was.doc_string:
            node.proto.doc_string = was.doc_string
        node.proto.attribute.extend(was.attribute)
    remove_nodes(graph.main, gone)
    integers = {by_number[number].nodes[0].proto.output[0] for number in names}
    model.proto.graph.value_info.extend(info for info in original.proto.graph.value_info if info.name in integers)
    sweep(graph, before)


def _store(graph: Graph, pair: Pair, steps: Steps) -> list[str]:
    """Names of new initializers: those that the old ones had, where these are free."""
    names = []
    for index, what, content in ((1, "scale", steps.step), (2, "zero_point", steps.zero_point)):
        old = pair.nodes[0].input(index)
        names.append(graph.unique_name(f"{pair.source.name}_{what}" if old is None else old.name))
        add_tensor(graph, graph.main, names[-1], content)
    return names


def _bypass(node: Node) -> bool:
    """Let those that read an Identity read what it reads; False if others see its output, too."""
    output = node.output()
    if output is None or not output.is_private:
        return False
    for reader, index in output.users:
        reader.proto.input[index] = node.proto.input[0]
    return True
