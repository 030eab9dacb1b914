"""Measure every BN in one pass over the data: the method 'pooled'.

Each BN normalises by the statistics of the batch at hand (Ioffe & Szegedy 2015, algorithm 2), so that what is
downstream sees activations as they will be, whatever the file's old statistics were; they play no part. The
statistics of all batches are merged, weighted by their counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np

from bnfold.constants import Array
from bnfold.errors import ModelError, quoted
from bnfold.model_file import LoadedModel, save, structure
from bnfold.recalibrate.checkpoint import Checkpoint, Journal
from bnfold.recalibrate.data import Data
from bnfold.recalibrate.instrument import Measurable, Reading, instrument
from bnfold.recalibrate.moments import Floats, Moments, Trace
from bnfold.recalibrate.sites import Site
from bnfold.verify.large import Model
from bnfold.verify.room import demand_room
from bnfold.verify.runtime import CannotRun, Feeds, Runner


@dataclass(frozen=True)
class Recipe:
    """How statistics are made of what was measured.

    Attributes:
        unbiased: whether a variance is divided by n - 1 instead of n.
        source_weight: how many samples the old statistics count for (Schneider et al. 2020); None: for nothing.
    """

    unbiased: bool
    source_weight: float | None

    def statistics(self, site: Site, moments: Moments, samples: int) -> tuple[Floats, Floats]:
        """Mean and variance, float64, (C,)."""
        mean, variance = moments.mean, moments.variance(self.unbiased)
        if self.source_weight is None:
            return mean, variance
        old = self.source_weight / (self.source_weight + samples)
        return old * site.mean + (1 - old) * mean, old * site.variance + (1 - old) * variance


@dataclass(frozen=True)
class Measured:
    """What a measurement gave.

    Attributes:
        traces: of every site.
        samples: how many were used.
        notices: what the user should know of the data.
    """

    traces: list[Trace]
    samples: int
    notices: tuple[str, ...]


class Engine(Protocol):
    """Where batches are run."""

    def run(self, model: str, provider: str, batches: Iterable[Feeds]) -> Iterator[tuple[Feeds, Feeds]]:
        """Each batch with what the model in this file says of it, in the order of the batches.

        Raises: ModelError if the model can't be run.
        """


class Here:
    """Batches are run one after the other in this process."""

    def run(self, model: str, provider: str, batches: Iterable[Feeds]) -> Iterator[tuple[Feeds, Feeds]]:
        """See `Engine`."""
        runner = make_runner(model, provider)
        return ((feeds, run(runner, feeds)) for feeds in batches)


def measure_pooled(
    model: LoadedModel, sites: Sequence[Site], data: Data, provider: str, engine: Engine, checkpoint: Checkpoint | None
) -> Measured:
    """The moments of every site's input, all batches together.

    Args:
        model: a copy of the one whose sites they are; it is edited.
        sites: what to measure.
        data: batches of inputs.
        provider: where it runs, 'cpu', 'cuda' or 'tensorrt'.
        engine: what runs the batches.
        checkpoint: where the progress is kept, if it is.

    Raises: ModelError if the model can't be run, or a statistic is not finite.
    """
    readings = instrument(model.proto, sites, is_plain(provider))
    return read_traces(model, sites, readings, data, provider, engine, checkpoint)


def read_traces(
    model: LoadedModel, sites: Sequence[Measurable], readings: Sequence[Reading], data: Data, provider: str,
    engine: Engine, checkpoint: Checkpoint | None,
) -> Measured:  # fmt: skip
    """What the readings of an instrumented model say of each site, all batches together; see `measure_pooled`."""
    with must_run():
        demand_room(structure(model))
    journal = Journal(checkpoint, len(sites))
    progress = journal.progress
    # Through a file: its weights go from one file to the other, and are in memory once, where ONNX Runtime has them.
    with TemporaryDirectory(prefix="bnfold-") as folder:
        path = os.path.join(folder, "measuring.onnx")
        save(model, path)
        results = engine.run(path, provider, journal.rest(data))
        for feeds, values in results:
            take_in(progress.traces, sites, readings, values, progress.batches)
            journal.measured(feeds)
    journal.save()
    return Measured(progress.traces, progress.samples, tuple(progress.notices))


def take_in(
    traces: Sequence[Trace], sites: Sequence[Measurable], readings: Sequence[Reading], values: Feeds, batch: int
) -> None:
    """Merge what one batch says.

    Args:
        traces: of each site, so far.
        sites: all of them.
        readings: what was run for.
        values: what the run gave for them.
        batch: its number, for messages.

    Raises: ModelError if a statistic is not finite.
    """
    seen: dict[int, Moments] = {}
    for reading in readings:
        site = sites[reading.site]
        sizes, means, variances = (values[name] for name in reading.names)
        channels = means.shape[-1]
        rows = zip(sizes.ravel(), means.reshape(-1, channels), variances.reshape(-1, channels), strict=True)
        for size, mean, variance in rows:
            if not size:
                continue
            demand_finite(site, mean, variance, batch)
            seen.setdefault(reading.site, Moments()).add(int(size) // channels, mean, variance)
    for number, moments in seen.items():
        traces[number].take(moments)


def demand_finite(site: Measurable, mean: Array, variance: Array, batch: int) -> None:
    """Raises: ModelError, naming the BN, if a statistic of a batch is not finite."""
    bad = ~(np.isfinite(mean) & np.isfinite(variance))
    if bad.any():
        what = f"the input of this BatchNormalization is not finite, or too large, in batch {batch}"
        where = f"node {quoted(site.name)}, channel {int(np.flatnonzero(bad)[0])}"
        raise ModelError(f"{what}; leave that data out, or look at what is upstream", where=where)


def is_plain(provider: str) -> bool:
    """Whether a provider measures by elementary ops."""
    return provider != "cpu"


@contextmanager
def must_run() -> Iterator[None]:
    """What can't be run is an error of the model.  Raises: ModelError."""
    try:
        yield
    except CannotRun as why:
        raise ModelError(str(why)) from why


@must_run()
def make_runner(model: Model | str, provider: str, names: Sequence[str] = ()) -> Runner:
    """A session that is as fast as ONNX Runtime can make it.  Raises: ModelError."""
    return Runner(model, names, provider, optimized=True)


@must_run()
def run(runner: Runner, feeds: Feeds) -> Feeds:
    """Raises: ModelError."""
    return runner.run(feeds)
