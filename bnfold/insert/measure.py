"""What the sites see on data, in the network as it is.

Nothing changes while it is measured, so every site can be in one pass: an observer beside each, a BN in training mode
whose own output nobody reads.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

import numpy as np
import onnx
from onnx import helper

from bnfold.graph import Graph
from bnfold.insert.double import measure_in_double, needs_double
from bnfold.insert.sites import Site
from bnfold.model_file import LoadedModel
from bnfold.recalibrate.api import CACHE_SIZE
from bnfold.recalibrate.data import SHORT, Data, fixed_batch
from bnfold.recalibrate.exact import measure_exact
from bnfold.recalibrate.instrument import Reading, moments_nodes
from bnfold.recalibrate.measure import Counting, Recipe, is_plain, measure_pooled, read_moments
from bnfold.recalibrate.moments import Moments
from bnfold.recalibrate.sites import Site as Measured
from bnfold.recalibrate.sites import find_sites as find_measurable
from bnfold.recalibrate.write import Writer, stored
from bnfold.shapes import Shapes
from bnfold.verify.runtime import Feeds


class Kept(Counting):
    """Batches of data, counted as they go by; the first is kept.

    Attributes:
        first: the first batch; empty before anything went by.
        takes_few: whether the model insists on batches too small to normalise by.
    """

    def __init__(self, data: Data | None) -> None:
        super().__init__(() if data is None else data.batches())
        self._data = data
        self.first: Feeds = {}
        batch = None if data is None else fixed_batch(data.inputs)
        self.takes_few = batch is not None and batch < SHORT

    def __iter__(self) -> Iterator[Feeds]:
        for feeds in super().__iter__():
            self.first = self.first or feeds
            yield feeds

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of the data."""
        return () if self._data is None else tuple(self._data.notices)


def measure(model: LoadedModel, sites: Sequence[Site], data: Iterable[Feeds], provider: str) -> list[Moments]:
    """The moments of every site's value, bias included, all batches together.

    Args:
        model: a copy of the one whose sites they are; it is edited.
        sites: what to measure.
        data: batches of inputs, by name.
        provider: where it runs, 'cpu', 'cuda' or 'tensorrt'.

    Raises: ModelError if the model can't be run, or a statistic is not finite.
    """
    if needs_double(sites):
        return measure_in_double(model, sites, data)
    graph = Graph(model.proto)
    observed = [as_measured(site) for site in sites]
    readings = []
    for number, (site, one) in enumerate(zip(sites, observed, strict=True)):
        new = [graph.unique_name(f"bnfold.{number}.{what}") for what in ("count", "mean", "var", "y", "x")]
        names, output, source = (new[0], new[1], new[2]), new[3], site.target.name
        if site.transposed:
            model.proto.graph.node.append(helper.make_node("Transpose", [source], new[4:], perm=site.permutation))
            source = new[4]
        model.proto.graph.node.extend(moments_nodes(source, names, output, one, plain=is_plain(provider)))
        readings.append(Reading(number, names))
    del model.proto.graph.output[:]
    model.proto.graph.output.extend(onnx.ValueInfoProto(name=name) for one in readings for name in one.names)
    return read_moments(model, observed, readings, data, provider)


def measure_fresh(model: LoadedModel, names: Container[str], data: Kept, provider: str) -> None:
    """Give BNs that were put in with gamma 1 and beta 0 the statistics of what they see then.

    Each normalises while it is measured, as in `bnfold.recalibrate`: the function is another one, so that what is
    downstream sees other values than in the network as it was.

    Args:
        model: with the BNs in it; they get the statistics.
        names: of these BNs, in the main graph.
        data: batches of inputs, by name.
        provider: where it runs.

    Raises: ModelError if the model can't be run, or a statistic is not finite.
    """
    graph = Graph(model.proto)
    shapes = Shapes(graph, model)
    sites, _ = find_measurable(graph, shapes, lambda node: node.scope is graph.main and node.name in names, False)
    writer, recipe = Writer(graph, model.weights, shapes), Recipe(unbiased=False, source_weight=None)
    if data.takes_few:
        moments = measure_exact(model, sites, data, provider, recipe, writer.types, CACHE_SIZE)
    else:
        moments = measure_pooled(model.copy(), sites, data, provider)
    for site, measured in zip(sites, moments, strict=True):
        mean, variance = (
            stored(values, dtype, site, role)
            for values, dtype, role in zip(
                recipe.statistics(site, measured, data.samples), writer.types(site), ("mean", "variance"), strict=True
            )
        )
        writer.put(site, mean, variance)
    writer.finish()


def as_measured(site: Site) -> Measured:
    """The site as `bnfold.recalibrate` knows one."""
    nothing = np.zeros(site.channels)
    return Measured((site.node,), (), nothing, nothing, site.element_type)
