"""Measure every BN with all those upstream at their final statistics: the method 'exact'.

The result is that of one batch of all data in training mode, which nobody could hold. The graph is cut into *levels*:
a value's level is the largest number of BNs on a way to it, and a BN that reads level k is measured in segment k,
when all BNs below are final. Segment k computes the values of level k alone, for every batch, from cached values of
lower levels; so each node runs once, as in a single pass over the data, and repeated passes (9 on a resnet18, 89 on
a densenet121) are not needed. What no later segment reads leaves the cache.

A BN that is applied several times normalises each time by what that use saw, as in training; the uses are pooled at
the end.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnfold.errors import ModelError, quoted
from bnfold.graph import Graph, Node
from bnfold.model_file import LoadedModel
from bnfold.recalibrate.cache import LARGE, Cache
from bnfold.recalibrate.checkpoint import Checkpoint, Journal, Progress, sum_of
from bnfold.recalibrate.data import Data
from bnfold.recalibrate.instrument import Reading, moments_nodes
from bnfold.recalibrate.measure import Measured, Recipe, is_plain, make_runner, must_run, run, take_in
from bnfold.recalibrate.moments import Trace, pooled, side_by_side
from bnfold.recalibrate.sites import MEAN, VARIANCE, Site
from bnfold.recalibrate.write import stored, to_inference
from bnfold.verify.large import Model
from bnfold.verify.prepare import prepare
from bnfold.verify.runtime import CUT, CannotRun, Cutter, Feeds, producers, reads

# Of a Concat whose parts are channels.
CHANNEL_AXIS = 1
# Ops that have as many channels behind them as before.
KEEPING_CHANNELS = frozenset(
    "Relu LeakyRelu Clip Sigmoid HardSwish HardSigmoid Elu Identity Dropout MaxPool AveragePool".split()
)

Types = Callable[[Site], tuple[Any, Any]]


def measure_exact(
    model: LoadedModel, sites: Sequence[Site], data: Data, provider: str, recipe: Recipe, types: Types,
    cache_size: int, checkpoint: Checkpoint | None,
) -> Measured:  # fmt: skip
    """The moments of every site's input, all batches together.

    Args:
        model: it is not changed.
        sites: of the model.
        data: batches of inputs; gone through once.
        provider: where it runs, 'cpu', 'cuda' or 'tensorrt'.
        recipe: makes statistics of moments, for those that are downstream.
        types: the dtypes that a site's mean and variance are stored in: downstream sees what the file will hold.
        cache_size: bytes of values between segments that are kept in memory; more goes to files.
        checkpoint: where the progress is kept, if it is: after each segment.

    Raises: ModelError if the model can't be run, a BN is out of reach, or a statistic is not finite.
    """
    with must_run():
        flat = prepare(model)
    plan = _Plan(flat, sites, is_plain(provider))
    journal = Journal(checkpoint, len(plan.observed))
    progress = journal.progress
    if progress.level:
        journal.demand_first(data)
    for level in range(progress.level):
        plan.settle(level, progress, recipe, types)
    folder = checkpoint.folder if checkpoint is not None else None
    with Cache(cache_size, folder, progress.cached) as cache:
        for level in range(progress.level, len(plan.readings_at)):
            batches = _received(cache, data, progress) if level == 0 else map(cache.get, range(len(cache)))
            for number, values in enumerate(_segment(plan, level, batches, cache, provider)):
                take_in(progress.traces, plan.observed, plan.readings_at[level], values, number)
            plan.settle(level, progress, recipe, types)
            progress.level, progress.cached = level + 1, cache.files()
            progress.notices = list(dict.fromkeys([*progress.notices, *data.notices]))
            journal.save()
            cache.sweep()
    uses: list[list[Trace]] = [[] for _ in sites]
    for use, (_, number) in enumerate(plan.uses):
        uses[number].append(plan.trace(use, progress.traces))
    return Measured([pooled(traces) for traces in uses], progress.samples, tuple(progress.notices))


def _received(cache: Cache, data: Data, progress: Progress) -> Iterator[Feeds]:
    for number, feeds in data.numbered(lambda number: True):
        if number == 0:
            progress.first = sum_of(feeds)
        cache.add()
        cache.put(number, dict(feeds))
        yield feeds
        progress.batches += 1
        progress.samples += len(next(iter(feeds.values())))


def _segment(plan: _Plan, level: int, batches: Iterable[Feeds], cache: Cache, provider: str) -> Iterator[Feeds]:
    """What a segment says of each batch; the cache holds what later ones read after that."""
    kept = plan.to_cache(level)
    wanted = [*(name for reading in plan.readings_at[level] for name in reading.names), *kept]
    if not wanted:
        yield from ({} for _ in batches)
        return
    runner = None
    first: tuple[object, Feeds] | None = None  # shapes of what was given, and what became of it
    for number, given in enumerate(batches):
        if runner is None:
            cuts = {name: _element_type(name, value) for name, value in given.items() if name not in plan.inputs}
            runner = make_runner(plan.cutter.cut(cuts, wanted), provider, wanted)
        feeds = {name if name in plan.inputs else CUT + name: given[name] for name in given}
        values = None
        if first is not None and first[0] == _shapes(given) and provider == "cpu":
            with suppress(CannotRun):  # shapes that depend on more than shapes
                values = runner.run_into(feeds, {name: cache.room(value) for name, value in first[1].items()})
        if values is None:
            values = run(runner, feeds)
            first = _shapes(given), {name: values[name] for name in kept if _is_large(values[name])}
            cache.expect(value.nbytes for value in first[1].values())
        cache.drop(number, [name for name in given if plan.last_read(name) <= level])
        cache.put(number, {name: values[name] for name in kept})
        yield values


def _shapes(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in feeds.items()}


def _is_large(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.nbytes >= LARGE and value.dtype.kind in "fiu"


def _element_type(name: str, value: object) -> int:
    if not isinstance(value, np.ndarray):
        raise ModelError("is no tensor, and can't be kept between segments; use the method pooled", where=quoted(name))
    return int(helper.np_dtype_to_tensor_dtype(value.dtype))


@dataclass(frozen=True)
class _Observed:
    """A value that is measured.

    Attributes:
        value: its name.
        name: of the BN that it is measured for, for messages.
        site: of that.
        channels: of the value.
    """

    value: str
    name: str
    site: Site
    channels: int

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


class _Plan:
    """The graph in levels, with observers, and statistics of its own at each use of each site.

    Attributes:
        proto: the model, flat.
        inputs: names of its inputs.
        cutter: of the model.
        uses: the BNs that are measured, each with the number of its site.
        observed: the values that are: a value that several BNs read once, and of a Concat its parts, which other BNs
            may have measured before.
        readings_at: for each level, the readings of observed values (by their number) that are measured at it.
    """

    def __init__(self, model: Model, sites: Sequence[Site], plain: bool) -> None:
        self._plain = plain
        self.proto = proto = model.proto
        self.inputs = {info.name for info in proto.graph.input}
        self._names = Graph(proto)  # nodes are in topological order from here on
        self._sites = sites
        self.uses = _uses(proto, sites)
        self._level = _levels(proto, {id(node) for node, _ in self.uses})
        self._made_by = producers(proto.graph)
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.observed: list[_Observed] = []
        self._parts = self._found_parts()
        self._level_of = [self._level.get(node.input[0], 0) for node, _ in self.uses]
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

    def trace(self, use: int, traces: Sequence[Trace]) -> Trace:
        """What was measured of a use's input, put together of its parts."""
        return side_by_side([traces[part] for part in self._parts[use]])

    def settle(self, level: int, progress: Progress, recipe: Recipe, types: Types) -> None:
        """Give the uses of a level, which are measured, their final statistics, in the types that the file has."""
        for use, (_, number) in enumerate(self.uses):
            if self._level_of[use] != level:
                continue
            site = self._sites[number]
            statistics = recipe.statistics(site, self.trace(use, progress.traces).total, progress.samples)
            roles = zip(self._statistics[use], statistics, types(site), ("mean", "variance"), strict=True)
            for tensor, content, dtype, role in roles:
                tensor.CopyFrom(numpy_helper.from_array(stored(content, dtype, site, role), tensor.name))

    def _found_parts(self) -> list[list[int]]:
        """The observed values that each use's input is made of."""
        numbers: dict[tuple[str, int], int] = {}
        found = []
        for node, number in self.uses:
            site = self._sites[number]
            parts = self._split(node.input[0])
            if parts is None or sum(channels for _, channels in parts) != site.channels:
                parts = [(node.input[0], site.channels)]
            for value, channels in parts:
                if (value, channels) not in numbers:
                    numbers[value, channels] = len(self.observed)
                    self.observed.append(_Observed(value, site.name, site, channels))
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
        for node, _ in self.uses:
            _note(last, node.input[0], self._level.get(node.input[0], 0))
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
            output = self._names.unique_name(f"bnfold.{number}.normalised")
            self.proto.graph.node.extend(moments_nodes(one.value, names, output, one, plain=self._plain))
            levels[self._level.get(one.value, 0)].append(Reading(number, names))
        return levels

    def _own(self, use: int) -> tuple[TensorProto, TensorProto]:
        """Statistics that no other BN reads, without a content yet."""
        node, number = self.uses[use]
        tensors = []
        for index in (MEAN, VARIANCE):
            tensors.append(self.proto.graph.initializer.add(name=self._names.unique_name(f"bnfold.{use}.{index}")))
            node.input[index] = tensors[-1].name
        to_inference(node, self._sites[number].nodes[0])
        return tensors[0], tensors[1]


def _axis(node: NodeProto) -> int:
    return next((int(one.i) for one in node.attribute if one.name == "axis"), 0)


def _note(last: dict[str, int], name: str, level: int) -> None:
    last[name] = max(last.get(name, -1), level)


def _uses(proto: ModelProto, sites: Sequence[Site]) -> list[tuple[NodeProto, int]]:
    """The nodes of the sites in a flat copy, each with the number of its site."""
    numbers: dict[str, int] = {}
    for number, site in enumerate(sites):
        what = f"is in {quoted(site.scope.label)}, where no segment can end" if site.scope.label else ""
        if site.element_type == TensorProto.BFLOAT16:
            what = "normalises bfloat16, which ONNX Runtime gives nobody to keep between segments"
        if what:
            raise ModelError(f"{what}; use the method pooled, or skip it", where=f"node {quoted(site.name)}")
        numbers |= {node.proto.output[0]: number for node in site.nodes}
    return [(node, numbers[name]) for node in proto.graph.node for name in node.output[:1] if name in numbers]


def _levels(proto: ModelProto, measured: Container[int]) -> dict[str, int]:
    """The level of each value that depends on the data; `measured`: ids of the BNs that are."""
    levels = {info.name: 0 for info in proto.graph.input}
    for node in proto.graph.node:
        known = [levels[name] for name in reads(node) if name in levels]
        if known:
            level = max(known) + (id(node) in measured)
            levels.update((name, level) for name in node.output if name)
    return levels
