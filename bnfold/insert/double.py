"""Measuring models of float64 and bfloat16, for which ONNX Runtime has few CPU kernels.

They are computed in the double form that `bnfold.verify` compares models in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from bnfold.errors import ModelError, quoted
from bnfold.insert.sites import Site
from bnfold.model_file import LoadedModel
from bnfold.recalibrate.data import Data
from bnfold.recalibrate.instrument import Measurable, Reading
from bnfold.recalibrate.measure import Measured, must_run, take_in
from bnfold.recalibrate.moments import Moments, Trace
from bnfold.verify.prepare import prepare
from bnfold.verify.runtime import Feeds, Runner
from bnfold.verify.sides import Side

WIDE = frozenset({TensorProto.DOUBLE, TensorProto.BFLOAT16})


def needs_double(sites: Sequence[Site | Measurable]) -> bool:
    """Whether a site is of a type that is measured in double."""
    return any(site.element_type in WIDE for site in sites)


def measure_in_double(model: LoadedModel, sites: Sequence[Site], data: Data) -> Measured:
    """As `bnfold.insert.measure.measure`; all values of a batch are held."""
    traces, at = [Trace() for _ in sites], {site.target.name: number for number, site in enumerate(sites)}
    samples = 0
    with must_run():
        double = _Double(model, list(at))
    for number, feeds in data.numbered(lambda number: True):
        with must_run():
            values = double.run(feeds)
        for name, value in values.items():
            site = sites[at[name]]
            if not np.isfinite(value).all():
                what = f"what it puts out is not finite in batch {number}; leave that data out"
                raise ModelError(what, where=f"node {quoted(site.name)}")
            axes = tuple(axis for axis in range(value.ndim) if axis != site.axis)
            moments = Moments()
            moments.add(value.size // site.channels, value.mean(axes), value.var(axes))
            traces[at[name]].take(moments)
        samples += len(next(iter(feeds.values())))
    return Measured(traces, samples, tuple(data.notices))


def read_in_double(
    model: LoadedModel, sites: Sequence[Measurable], readings: Sequence[Reading], data: Data
) -> Measured:
    """As `bnfold.recalibrate.measure.read_traces`: what an instrumented model says of each site."""
    traces, samples = [Trace() for _ in sites], 0
    with must_run():
        double = _Double(model, [name for reading in readings for name in reading.names])
    for number, feeds in data.numbered(lambda number: True):
        with must_run():
            values = double.run(feeds)
        take_in(traces, sites, readings, values, number)
        samples += len(next(iter(feeds.values())))
    return Measured(traces, samples, tuple(data.notices))


def outputs_in_double(model: LoadedModel, feeds: Feeds) -> Feeds:
    """The outputs of a model, computed in double.

    Raises: CannotRun.
    """
    return _Double(model, [info.name for info in model.proto.graph.output]).run(feeds)


class _Double:
    """Some values of a model, computed in double; made once for each shape of the inputs."""

    def __init__(self, model: LoadedModel, names: Sequence[str]) -> None:
        self._proto = prepare(model)
        self._names = names
        self._made: dict[tuple[object, ...], tuple[Side, Runner]] = {}

    def run(self, feeds: Feeds) -> Feeds:
        """Raises: CannotRun."""
        shapes = tuple((name, value.shape) for name, value in feeds.items())
        if shapes not in self._made:
            side = Side(self._proto, feeds)
            self._made[shapes] = side, Runner(side.model, self._names)
        side, runner = self._made[shapes]
        return runner.run(side.double_feeds(feeds))
