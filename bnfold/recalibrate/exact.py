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
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnfold.constants import Array
from bnfold.errors import ModelError, quoted
from bnfold.graph import Graph
from bnfold.model_file import LoadedModel
from bnfold.recalibrate.cache import Cache
from bnfold.recalibrate.instrument import Reading, moments_nodes
from bnfold.recalibrate.measure import Counting, Recipe, is_plain, make_runner, run, take_in
from bnfold.recalibrate.moments import Moments
from bnfold.recalibrate.sites import MEAN, VARIANCE, Site
from bnfold.recalibrate.write import stored, to_inference
from bnfold.verify.large import Model
from bnfold.verify.prepare import prepare
from bnfold.verify.runtime import CUT, Feeds, cut_model, reads

Types = Callable[[Site], tuple[Any, Any]]


def measure_exact(
    model: LoadedModel, sites: Sequence[Site], data: Counting, provider: str, recipe: Recipe, types: Types,
    cache_size: int,
) -> list[Moments]:  # fmt: skip
    """The moments of every site's input, all batches together.

    Args:
        model: it is not changed.
        sites: of the model.
        data: batches of inputs; gone through once.
        provider: where it runs, 'cpu', 'cuda' or 'tensorrt'.
        recipe: makes statistics of moments, for those that are downstream.
        types: the dtypes that a site's mean and variance are stored in: downstream sees what the file will hold.
        cache_size: bytes of values between segments that are kept in memory; more goes to files.

    Raises: ModelError if the model can't be run, a BN is out of reach, or a statistic is not finite.
    """
    plan = _Plan(prepare(model), sites, is_plain(provider))
    uses = [sites[number] for _, number in plan.uses]
    moments = [Moments() for _ in uses]
    with Cache(cache_size) as cache:
        for level, here in enumerate(plan.readings_at):
            batches = _received(cache, data) if level == 0 else map(cache.get, range(len(cache)))
            for number, values in enumerate(_segment(plan, level, batches, cache, provider)):
                take_in(moments, uses, here, values, number)
            for use in (reading.site for reading in here):
                mean, variance = recipe.statistics(uses[use], moments[use], data.samples)
                plan.put(use, mean, variance, types)
    pooled = [Moments() for _ in sites]
    for (_, number), measured in zip(plan.uses, moments, strict=True):
        pooled[number].merge(measured)
    return pooled


def _received(cache: Cache, data: Counting) -> Iterator[Feeds]:
    for feeds in data:
        cache.add()
        cache.put(len(cache) - 1, feeds)
        yield feeds


def _segment(plan: _Plan, level: int, batches: Iterable[Feeds], cache: Cache, provider: str) -> Iterator[Feeds]:
    """What a segment says of each batch; the cache holds what later ones read after that."""
    kept = plan.to_cache(level)
    wanted = [*(name for reading in plan.readings_at[level] for name in reading.names), *kept]
    runner = None
    for number, given in enumerate(batches):
        if runner is None:
            cuts = {name: _element_type(name, value) for name, value in given.items() if name not in plan.inputs}
            runner = make_runner(cut_model(plan.model, cuts, wanted), provider, wanted)
        values = run(runner, {name if name in plan.inputs else CUT + name: given[name] for name in given})
        cache.drop(number, [name for name in given if plan.last_read(name) <= level])
        cache.put(number, {name: values[name] for name in kept})
        yield values


def _element_type(name: str, value: object) -> int:
    if not isinstance(value, np.ndarray):
        raise ModelError("is no tensor, and can't be kept between segments; use the method pooled", where=quoted(name))
    return int(helper.np_dtype_to_tensor_dtype(value.dtype))


class _Plan:
    """The graph in levels, with an observer and statistics of its own at each use of each site.

    Attributes:
        model: flat, and its large weights.
        proto: of it.
        inputs: names of its inputs.
        uses: the BNs that are measured, each with the number of its site.
        readings_at: for each level, the readings of the uses (by their number) that are measured at it.
    """

    def __init__(self, model: Model, sites: Sequence[Site], plain: bool) -> None:
        self._plain = plain
        self.model, self.proto = model, (proto := model.proto)
        self.inputs = {info.name for info in proto.graph.input}
        self._names = Graph(proto)  # nodes are in topological order from here on
        self._sites = sites
        self.uses = _uses(proto, sites)
        self._level = _levels(proto, {id(node) for node, _ in self.uses})
        self._last = self._last_reads()
        self.readings_at = self._observed()
        self._statistics = [self._own(use) for use in range(len(self.uses))]

    def last_read(self, name: str) -> int:
        """The last level that reads a value; -1 if none does."""
        return self._last.get(name, -1)

    def to_cache(self, level: int) -> list[str]:
        """Values that nodes of this level compute and a later one reads."""
        produced = {name for node in self.proto.graph.node for name in node.output}
        return sorted(
            name for name, last in self._last.items()
            if name in produced and self._level.get(name) == level and last > level
        )  # fmt: skip

    def put(self, use: int, mean: Array, variance: Array, types: Types) -> None:
        """Give a use its final statistics, in the types that the file keeps them in."""
        site = self._sites[self.uses[use][1]]
        roles = zip(self._statistics[use], (mean, variance), types(site), ("mean", "variance"), strict=True)
        for tensor, content, dtype, role in roles:
            tensor.CopyFrom(numpy_helper.from_array(stored(content, dtype, site, role), tensor.name))

    def _last_reads(self) -> dict[str, int]:
        """Of all values that depend on the data and that a measured BN depends on."""
        made_by = {name: node for node in self.proto.graph.node for name in node.output if name}
        last: dict[str, int] = {}
        seen: set[int] = set()
        for node, _ in self.uses:
            _note(last, node.input[0], self._level.get(node.input[0], 0))
        waiting = [made_by[node.input[0]] for node, _ in self.uses if node.input[0] in made_by]
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            level = max((self._level.get(name, -1) for name in node.output if name), default=-1)
            for name in reads(node):
                if name in self._level:
                    _note(last, name, level)
                if name in made_by:
                    waiting.append(made_by[name])
        return last

    def _observed(self) -> list[list[Reading]]:
        """Add an observer at each use."""
        of_use = [self._level.get(node.input[0], 0) for node, _ in self.uses]
        levels: list[list[Reading]] = [[] for _ in range(1 + max(of_use, default=-1))]
        for use, (node, number) in enumerate(self.uses):
            named = (self._names.unique_name(f"bnfold.{use}.{what}") for what in ("count", "mean", "var"))
            names = (next(named), next(named), next(named))
            output = self._names.unique_name(f"bnfold.{use}.normalised")
            self.proto.graph.node.extend(
                moments_nodes(node.input[0], names, output, self._sites[number], plain=self._plain)
            )
            levels[of_use[use]].append(Reading(use, names))
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


def _note(last: dict[str, int], name: str, level: int) -> None:
    last[name] = max(last.get(name, -1), level)


def _uses(proto: ModelProto, sites: Sequence[Site]) -> list[tuple[NodeProto, int]]:
    """The nodes of the sites in a flat copy, each with the number of its site."""
    numbers: dict[str, int] = {}
    for number, site in enumerate(sites):
        if site.scope.label:
            what = f"is in {quoted(site.scope.label)}, where no segment can end; use the method pooled, or skip it"
            raise ModelError(what, where=f"node {quoted(site.name)}")
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
