"""Measure every BN in one pass over the data: the method 'pooled'.

Each BN normalises by the statistics of the batch at hand (Ioffe & Szegedy 2015, algorithm 2), so that what is
downstream sees activations as they will be, whatever the file's old statistics were; they play no part. The
statistics of all batches are merged, weighted by their counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import numpy as np

from bnfold.constants import Array
from bnfold.errors import ModelError, quoted
from bnfold.model_file import LoadedModel, save, structure
from bnfold.recalibrate.instrument import Reading, instrument
from bnfold.recalibrate.moments import Floats, Moments
from bnfold.recalibrate.sites import Site
from bnfold.verify.large import Model
from bnfold.verify.room import demand_room
from bnfold.verify.runtime import CannotRun, Feeds, Runner


class Counting:
    """Batches, counted as they go by."""

    def __init__(self, batches: Iterable[Feeds]) -> None:
        self._batches = batches
        self.samples = 0

    def __iter__(self) -> Iterator[Feeds]:
        for feeds in self._batches:
            yield feeds
            self.samples += len(next(iter(feeds.values())))


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


def measure_pooled(model: LoadedModel, sites: Sequence[Site], data: Iterable[Feeds], provider: str) -> list[Moments]:
    """The moments of every site's input, all batches together.

    Args:
        model: a copy of the one whose sites they are; it is edited.
        sites: what to measure.
        data: batches of inputs, by name.
        provider: where it runs, 'cpu', 'cuda' or 'tensorrt'.

    Raises:
        ModelError: the model can't be run, or a statistic is not finite.
        CannotRun: it would take more memory than there is.
    """
    demand_room(structure(model))
    return read_moments(model, sites, instrument(model.proto, sites, is_plain(provider)), data, provider)


def read_moments(
    model: LoadedModel, sites: Sequence[Site], readings: Sequence[Reading], data: Iterable[Feeds], provider: str
) -> list[Moments]:
    """What the readings of an instrumented model say of each site, all batches together.

    Raises: ModelError if the model can't be run, or a statistic is not finite.
    """
    # Through a file: its weights go from one file to the other, and are in memory once, where ONNX Runtime has them.
    with TemporaryDirectory(prefix="bnfold-") as folder:
        path = os.path.join(folder, "measuring.onnx")
        save(model, path)
        runner = make_runner(path, provider)
    moments = [Moments() for _ in sites]
    for number, feeds in enumerate(data):
        take_in(moments, sites, readings, run(runner, feeds), number)
    return moments


def take_in(
    moments: Sequence[Moments], sites: Sequence[Site], readings: Sequence[Reading], values: Feeds, batch: int
) -> None:
    """Merge what one run says.

    Args:
        moments: of each site, so far.
        sites: all of them.
        readings: what was run for.
        values: what the run gave for them.
        batch: its number, for messages.

    Raises: ModelError if a statistic is not finite.
    """
    for reading in readings:
        site = sites[reading.site]
        sizes, means, variances = (values[name] for name in reading.names)
        rows = zip(
            sizes.ravel(), means.reshape(-1, site.channels), variances.reshape(-1, site.channels), strict=True
        )
        for size, mean, variance in rows:
            if not size:
                continue
            demand_finite(site, mean, variance, batch)
            moments[reading.site].add(int(size) // site.channels, mean, variance)


def demand_finite(site: Site, mean: Array, variance: Array, batch: int) -> None:
    """Raises: ModelError, naming the BN, if a statistic of a batch is not finite."""
    bad = ~(np.isfinite(mean) & np.isfinite(variance))
    if bad.any():
        what = f"the input of this BatchNormalization is not finite, or too large, in batch {batch}"
        where = f"node {quoted(site.name)}, channel {int(np.flatnonzero(bad)[0])}"
        raise ModelError(f"{what}; leave that data out, or look at what is upstream", where=where)


def is_plain(provider: str) -> bool:
    """Whether a provider measures by elementary ops."""
    return provider != "cpu"


def make_runner(model: Model | str, provider: str, names: Sequence[str] = ()) -> Runner:
    """A session that is as fast as ONNX Runtime can make it.  Raises: ModelError."""
    try:
        return Runner(model, names, provider, optimized=True)
    except CannotRun as why:
        raise ModelError(str(why)) from why


def run(runner: Runner, feeds: Feeds) -> Feeds:
    """Raises: ModelError."""
    try:
        return runner.run(feeds)
    except CannotRun as why:
        raise ModelError(str(why)) from why
