"""The graph in levels: what is measured at which, what of a level later ones read, and who gets which statistics.

A value's level is the number of the segment that computes it: one more than the last level whose statistics it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from bnfold.errors import ModelError, quoted
from bnfold.graph import Graph, Node
from bnfold.model_file import LoadedModel
from bnfold.recalibrate.algebra import Widening, behind, covariance_nodes, widening
from bnfold.recalibrate.checkpoint import Progress
from bnfold.recalibrate.instrument import Names, Reading, moments_nodes
from bnfold.recalibrate.measure import Recipe
from bnfold.recalibrate.moments import Floats, Trace, side_by_side
from bnfold.recalibrate.sites import MEAN, VARIANCE, Site, batch_norms
from bnfold.recalibrate.write import stored, to_inference
from bnfold.verify.large import Model
from bnfold.verify.prepare import prepare
from bnfold.verify.runtime import Cutter, Feeds, bodies, producers, reads

# Of a Concat whose parts are channels.
CHANNEL_AXIS = 1
# Ops that have as many channels behind them as before.
KEEPING_CHANNELS = frozenset(
    "Relu LeakyRelu Clip Sigmoid HardSwish HardSigmoid Elu Identity Dropout MaxPool AveragePool".split()
)

# A Conv that makes so many times more values than it reads, of so many products each (7 × 7 × 3, rounded up), is run
# again rather than kept. On resnet18 (5.3 times) exact took 1.40 for 1.45 × the CPU time of plain inference, and
# 319 for 373 MB; on mobilenetv2 (2.7 times) it was slower.
STEM_GROWTH = 4
STEM_PRODUCTS = 160

Types = Callable[[Site], tuple[Any, Any]]

@dataclass(frozen=True)
class Observed:
    """A value that is measured.

    Attributes:
        value: its name.
        name: of the BN that it is measured for, for messages.
        site: of that.
        channels: of the value.
        widening: the Conv that makes it, if its statistics follow from those of what that reads.
        stem: the Conv that makes it, if that is run twice: once to measure it, and again where it is read.
    """

    value: str
    name: str
    site: Site
    channels: int
    widening: Widening | None
    stem: NodeProto | None

    @property
    def source(self) -> str:
        """The value that has to be there for it."""
        if self.widening is not None:
            return self.widening.source
        return self.stem.input[0] if self.stem is not None else self.value

    @property
    def element_type(self) -> int:
        """TensorProto data type."""
        return self.site.element_type

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Of the BN."""
        return self.site.nodes

    @property
    def epsilon(self) -> float:
        """Of the BN."""
        return self.site.epsilon


class Levels:
    """The graph in levels, with observers, and statistics of its own at each use of each site.

    Attributes:
        proto: the model, flat.
        inputs: names of its inputs.
        cutter: of the model.
        uses: the BNs that are measured, each with the number of its site.
        observed: the values that are: a value that several BNs read once, and of a Concat its parts, which other BNs
            may have measured before. What a measured BN gives is none: its statistics follow from those of its input.
        readings_at: for each level, the readings of observed values (by their number) that are measured at it.
    """

    def __init__(self, model: Model, sites: Sequence[Site], plain: bool) -> None:
        self._plain = plain
        self._model = model
        self.proto = proto = model.proto
        self.inputs = {info.name for info in proto.graph.input}
        self._names = Graph(proto)  # nodes are in topological order from here on
        self._sites = sites
        self.uses = _uses(proto, sites)
        self._made_by = producers(proto.graph)
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._before = self._found_before()
        self._origin: dict[int, tuple[int, Floats, Floats]] = {}
        self.observed: list[Observed] = []
        self._parts = self._found_parts()
        self._level, self._level_of = self._levels()
        self._last = self._last_reads()
        self.readings_at = self._readings()
        self._statistics = [self._own(use) for use in range(len(self.uses))]
        self._kept: list[list[str]] = [[] for _ in self.readings_at]
        for name, last in sorted(self._last.items()):
            level = self._level.get(name, last)
            if name in self._made_by and last > level and self._made_by[name].op_type != "Concat":
                self._kept[level].append(name)
        self.cutter = Cutter(model)

    def last_read(self, name: str) -> int:
        """The last level that reads a value; -1 if none does."""
        return self._last.get(name, -1)

    def to_cache(self, level: int) -> list[str]:
        """Values that nodes of this level compute and a later one reads."""
        return self._kept[level]

    def read(self, level: int, values: Feeds) -> Feeds:
        """What a run says of a level's readings: of each number of elements, mean and variance."""
        said = dict(values)
        for reading in self.readings_at[level]:
            widening = self.observed[reading.site].widening
            if widening is not None:
                size, sums, products = (values[name] for name in reading.names)
                found = widening.moments(int(size), sums, products)
                said.update(zip(reading.names, map(np.asarray, found), strict=True))
        return said

    def trace(self, use: int, traces: Sequence[Trace]) -> Trace:
        """What is known of a use's input: of its parts, or of what the BNs right before it make of theirs."""
        root, gain, shift = self._origin.get(use, (use, None, None))
        trace = side_by_side([traces[part] for part in self._parts[root]])
        return trace if gain is None or shift is None else behind(trace, gain, shift)

    def settle(self, level: int, progress: Progress, recipe: Recipe, types: Types) -> None:
        """Give the uses of a level, which are measured, their final statistics, in the types that the file has."""
        for use, (_, number) in enumerate(self.uses):
            if self._level_of[use] != level:
                continue
            if use in self._before:
                self._origin[use] = self._through(self._before[use])
            site = self._sites[number]
            statistics = recipe.statistics(site, self.trace(use, progress.traces).total, progress.samples)
            roles = zip(self._statistics[use], statistics, types(site), ("mean", "variance"), strict=True)
            for tensor, content, dtype, role in roles:
                tensor.CopyFrom(numpy_helper.from_array(stored(content, dtype, site, role), tensor.name))

    def _through(self, use: int) -> tuple[int, Floats, Floats]:
        """The first of the BNs in a row that end with this one, and what they all do to its input: gain * x + shift."""
        node, number = self.uses[use]
        root, before, offset = self._origin.get(use, (use, np.float64(1), np.float64(0)))
        scale, shift = (self._model.read(self._tensors[name]).astype(np.float64) for name in node.input[1:3])
        mean, variance = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in self._statistics[use])
        gain = scale / np.sqrt(variance + self._sites[number].epsilon)
        return root, gain * before, gain * (offset - mean) + shift

    def _found_before(self) -> dict[int, int]:
        """For each use that reads what another one gives: that one."""
        number = {node.output[0]: use for use, (node, _) in enumerate(self.uses)}
        return {
            use: number[node.input[0]]
            for use, (node, _) in enumerate(self.uses)
            if node.input[0] in number
            and set(self.uses[number[node.input[0]]][0].input[1:3]) <= self._tensors.keys()
        }

    def _levels(self) -> tuple[dict[str, int], list[int]]:
        """The level of each value that depends on the data, and of each use, the one at which it is measured."""
        levels = {info.name: 0 for info in self.proto.graph.input}
        numbers = {id(node): use for use, (node, _) in enumerate(self.uses)}
        later = {one.value for one in self.observed if one.source != one.value}
        measured = [0] * len(self.uses)
        for node in self.proto.graph.node:
            known = [levels[name] for name in reads(node) if name in levels]
            use = numbers.get(id(node))
            if use is not None:
                before = self._before.get(use)
                sources = [self.observed[part].source for part in self._parts[use]]
                measured[use] = max(
                    (levels.get(name, 0) for name in sources), default=0 if before is None else measured[before]
                )
                known.append(measured[use] + 1)
            if known:
                level = max(known) + (node.output[0] in later)
                levels.update((name, level) for name in node.output if name)
        return levels, measured

    def _found_parts(self) -> list[list[int]]:
        """The observed values that each use's input is made of; of one behind another use: none."""
        numbers: dict[tuple[str, int], int] = {}
        found = []
        for use, (norm, number) in enumerate(self.uses):
            site = self._sites[number]
            parts = [] if use in self._before else self._split(norm.input[0])
            if parts is None or (parts and sum(channels for _, channels in parts) != site.channels):
                parts = [(norm.input[0], site.channels)]
            for value, channels in parts:
                if (value, channels) not in numbers:
                    numbers[value, channels] = len(self.observed)
                    node = self._made_by.get(value)
                    wide = None if self._plain else widening(node, self._model, self._tensors)
                    stem = node if wide is None and _is_stem(node, self._tensors) else None
                    self.observed.append(Observed(value, site.name, site, channels, wide, stem))
            found.append([numbers[part] for part in parts])
        return found

    def _split(self, value: str) -> list[tuple[str, int]] | None:
        """A value as parts along the channels, each with their number; None where that isn't known."""
        node = self._made_by.get(value)
        if node is not None and node.op_type == "Concat" and _axis(node) == CHANNEL_AXIS:
            parts = [self._split(name) for name in node.input]
            return None if None in parts else [one for part in parts for one in part or ()]
        channels = self._channels(value)
        return None if channels is None else [(value, channels)]

    def _channels(self, value: str) -> int | None:
        """How many a value has, where a weight on the way to it tells."""
        node = self._made_by.get(value)
        while node is not None and node.op_type in KEEPING_CHANNELS:
            node = self._made_by.get(node.input[0])
        if node is None or node.op_type not in ("Conv", "BatchNormalization"):
            return None
        weight = self._tensors.get(node.input[1])
        return int(weight.dims[0]) if weight is not None and weight.dims else None

    def _last_reads(self) -> dict[str, int]:
        """Of all values that depend on the data and that a measured BN depends on."""
        last: dict[str, int] = {}
        seen: set[int] = set()
        for one in self.observed:
            _note(last, one.source, self._level.get(one.source, 0))
        waiting = [self._made_by[name] for name in last if name in self._made_by]
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            level = max((self._level.get(name, -1) for name in node.output if name), default=-1)
            for name in reads(node):
                if name in self._level:
                    _note(last, name, level)
                if name in self._made_by:
                    waiting.append(self._made_by[name])
        for node in reversed(self.proto.graph.node):  # a Concat is made again where it is read: its parts stay
            if node.op_type == "Concat" and node.output[0] in last:
                for name in node.input:
                    if name in self._level:
                        _note(last, name, last[node.output[0]])
        return last

    def _readings(self) -> list[list[Reading]]:
        """Add an observer at each observed value."""
        levels: list[list[Reading]] = [[] for _ in range(1 + max(self._level_of, default=-1))]
        for number, one in enumerate(self.observed):
            named = (self._names.unique_name(f"bnfold.{number}.{what}") for what in ("count", "mean", "var"))
            names = (next(named), next(named), next(named))
            self.proto.graph.node.extend(self._observer(one, names))
            levels[self._level.get(one.source, 0)].append(Reading(number, names))
        return levels

    def _observer(self, one: Observed, names: Names) -> list[NodeProto]:
        if one.widening is not None:
            return covariance_nodes(names, one.source, one.widening.weight.shape[1], one.nodes[0].opset)
        output = self._names.unique_name(f"{names[1]}.normalised")
        if one.stem is None:
            return moments_nodes(one.value, names, output, one, plain=self._plain)
        twin = NodeProto.FromString(one.stem.SerializeToString())
        twin.name, twin.output[0] = "", f"{names[1]}.measured"
        return [twin, *moments_nodes(twin.output[0], names, output, one, plain=self._plain)]

    def _own(self, use: int) -> tuple[TensorProto, TensorProto]:
        """Statistics that no other BN reads, without a content yet."""
        node, number = self.uses[use]
        tensors = []
        for index in (MEAN, VARIANCE):
            tensors.append(self.proto.graph.initializer.add(name=self._names.unique_name(f"bnfold.{use}.{index}")))
            node.input[index] = tensors[-1].name
        to_inference(node, self._sites[number].nodes[0])
        return tensors[0], tensors[1]


def _is_stem(node: NodeProto | None, tensors: Mapping[str, TensorProto]) -> bool:
    """Whether a value is cheaper to make again than to keep."""
    if node is None or node.op_type != "Conv" or node.input[1] not in tensors:
        return False
    settings = {one.name: one for one in node.attribute}
    wide, narrow, *kernel = tensors[node.input[1]].dims
    inputs = narrow * (settings["group"].i if "group" in settings else 1)
    steps = math.prod(settings["strides"].ints) if "strides" in settings else 1
    return bool(wide >= STEM_GROWTH * inputs * steps and narrow * math.prod(kernel) <= STEM_PRODUCTS)


def _axis(node: NodeProto) -> int:
    return next((int(one.i) for one in node.attribute if one.name == "axis"), 0)


def _note(last: dict[str, int], name: str, level: int) -> None:
    last[name] = max(last.get(name, -1), level)


def flattened(model: LoadedModel, sites: Sequence[Site]) -> Model:
    """A flat copy of a model, whose BNs bear the numbers of their sites: inlining gives nodes and values new names.

    Raises: CannotRun.
    """
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    numbers = {place: number for number, site in enumerate(sites) for place in site.places}
    for scope, node in batch_norms(Graph(proto)):
        number = numbers.get((scope, node.index))
        node.proto.doc_string = "" if number is None else str(number)
    return prepare(LoadedModel(proto, model.weights, model.path))


def _uses(proto: ModelProto, sites: Sequence[Site]) -> list[tuple[NodeProto, int]]:
    """The nodes of the sites in a flat copy, each with the number of its site."""
    for site in sites:
        if site.element_type == TensorProto.BFLOAT16:
            _refuse(site, "normalises bfloat16, which ONNX Runtime gives nobody to keep between segments")
    for node in proto.graph.node:
        for inner in (inner for body in bodies(node) for inner in _within(body)):
            if inner.op_type == "BatchNormalization" and inner.doc_string:
                _refuse(sites[int(inner.doc_string)], f"is in a body of {node.op_type}, where no segment can end")
    norms = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    return [(node, int(node.doc_string)) for node in norms if node.doc_string]


def _within(body: GraphProto) -> Iterator[NodeProto]:
    for node in body.node:
        yield node
        for inner in bodies(node):
            yield from _within(inner)


def _refuse(site: Site, what: str) -> NoReturn:
    raise ModelError(f"{what}; use the method pooled, or skip it", where=f"node {quoted(site.name)}")
