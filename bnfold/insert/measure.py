"""What the sites see on data, in the network as it is.

Nothing changes while it is measured, so every site can be in one pass: an observer beside each, a BN in training mode
whose own output nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from bnfold.errors import ModelError
from bnfold.graph import Graph
from bnfold.insert.double import measure_in_double, needs_double, read_in_double
from bnfold.insert.sites import Site
from bnfold.model_file import LoadedModel
from bnfold.recalibrate.api import CACHE_SIZE
from bnfold.recalibrate.data import SHORT, Data, fixed_batch
from bnfold.recalibrate.exact import measure_exact
from bnfold.recalibrate.instrument import Reading, instrument, moments_nodes
from bnfold.recalibrate.measure import Here, Measured, Recipe, is_plain, measure_pooled, read_traces
from bnfold.recalibrate.sites import Site as Measurable
from bnfold.recalibrate.sites import find_sites as find_measurable
from bnfold.recalibrate.write import Writer, stored
from bnfold.shapes import Shapes
from bnfold.verify.runtime import Feeds


@dataclass
class Remembering(Data):
    """Data that keep the first batch that was measured: some can be gone through only once.

    Attributes:
        first: that batch; empty before.
    """

    first: Feeds = field(default_factory=dict)

    def numbered(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Feeds]]:
        """See `Data`."""
        for number, feeds in super().numbered(wanted):
            self.first = self.first or feeds
            yield number, feeds


def measure(model: LoadedModel, sites: Sequence[Site], data: Data, provider: str) -> Measured:
    """The moments of every site's value, bias included, all batches together.

    Args:
        model: a copy of the one whose sites they are; it is edited.
        sites: what to measure.
        data: batches of inputs.
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
    return read_traces(model, observed, readings, data, provider, Here(), None)


def measure_fresh(model: LoadedModel, names: Container[str], data: Data, provider: str) -> Measured:
    """Give BNs that were put in with gamma 1 and beta 0 the statistics of what they see then.

    Each normalises while it is measured, as in `bnfold.recalibrate`: the function is another one, so that what is
    downstream sees other values than in the network as it was.

    Args:
        model: with the BNs in it; they get the statistics.
        names: of these BNs, in the main graph.
        data: batches of inputs.
        provider: where it runs.

    Raises: ModelError if the model can't be run, or a statistic is not finite.
    """
    graph = Graph(model.proto)
    shapes = Shapes(graph, model)
    sites, _ = find_measurable(graph, shapes, lambda node: node.scope is graph.main and node.name in names, False)
    writer, recipe = Writer(graph, model.weights, shapes), Recipe(unbiased=False, source_weight=None)
    batch = fixed_batch(data.inputs)
    short = batch is not None and batch < SHORT  # too few to normalise by
    if needs_double(sites):
        if short:
            what = f"takes batches of {batch}, too few for BatchNormalizations of its type to normalise by"
            raise ModelError(f"{what}; make the batch open")
        copy = model.copy()
        measured = read_in_double(copy, sites, instrument(copy.proto, sites), data)
    elif short:
        measured = measure_exact(model, sites, data, provider, recipe, writer.types, CACHE_SIZE, None)
    else:
        measured = measure_pooled(model.copy(), sites, data, provider, Here(), None)
    for site, trace in zip(sites, measured.traces, strict=True):
        mean, variance = (
            stored(values, dtype, site, role)
            for values, dtype, role in zip(
                recipe.statistics(site, trace.total, measured.samples), writer.types(site), ("mean", "variance"),
                strict=True,
            )
        )
        writer.put(site, mean, variance)
    writer.finish()
    return measured


def as_measured(site: Site) -> Measurable:
    """The site as `bnfold.recalibrate` knows one."""
    nothing = np.zeros(site.channels)
    return Measurable((site.node,), (), nothing, nothing, site.element_type)
