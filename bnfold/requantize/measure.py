"""What data say of the pairs: which clip what the model lives on, how values are distributed, how outputs move."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

import numpy as np
from onnx import ValueInfoProto

from bnfold.constants import Array, is_floating
from bnfold.errors import ModelError, quoted
from bnfold.fold.union_find import Floats
from bnfold.model_file import LoadedModel, save
from bnfold.recalibrate.data import Data
from bnfold.recalibrate.measure import must_run
from bnfold.requantize.account import OutputChange
from bnfold.requantize.histogram import Histogram
from bnfold.requantize.pairs import Pair
from bnfold.verify.runtime import Feeds, Runner
from bnfold.verify.unrounded import unrounded

# What is done with samples, for the progress.
WATCHING, COMPARING = "watching", "comparing"

Maps = Mapping[str, tuple[Floats, Floats]]


@dataclass
class Tally:
    """Sums over the values that a pair rounds, in the coordinates that the fold stores them in.

    Attributes:
        count: of values.
        total, squares: of the values.
        rounding: squares of what the pair changes.
        clipping: squares of what its limits change.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    rounding: float = 0.0
    clipping: float = 0.0

    def add(self, pair: Pair, values: Array, scale: Floats, shift: Floats) -> None:
        """Of one batch: v' = scale * (v + shift)."""
        values = values.astype(np.float64)
        stored = scale * (values + shift)
        self.count += values.size
        self.total += float(stored.sum())
        self.squares += float(np.square(stored).sum())
        self.rounding += float(np.square(scale * (pair.steps.rounded(values) - values)).sum())
        self.clipping += float(np.square(scale * (pair.steps.clipped(values) - values)).sum())

    @property
    def noise(self) -> float:
        """Of the pair, over the root mean square of the values."""
        return float(np.sqrt(self.rounding / self.squares)) if self.squares else 0.0

    @property
    def clipped(self) -> float:
        """The part of the variance that the limits take."""
        variance = self.squares - self.total**2 / max(self.count, 1)
        return self.clipping / variance if variance > 0 else 0.0


def watch(original: LoadedModel, pairs: Sequence[Pair], maps: Maps, data: Data) -> dict[int, Tally]:
    """What each pair does to the data, by its number.

    Args:
        original: the model as it is.
        pairs: of it.
        maps: in which coordinates the fold stores what they round, v' = s * (v + t).
        data: batches of inputs.

    Raises: ModelError if the model can't be run, or a value isn't finite.
    """
    tallies = {pair.number: Tally() for pair in pairs}
    names = [pair.source.name for pair in pairs]
    for values in _runs(original, names, data):
        for pair in pairs:
            tallies[pair.number].add(pair, values[pair.source.name], *map_of(maps, pair))
    return tallies


def map_of(maps: Maps, pair: Pair) -> tuple[Floats, Floats]:
    """In which coordinates a fold stores what a pair rounds: scale and shift, 1 and 0 where it is as it was."""
    return maps.get(pair.source.name, (np.ones(()), np.zeros(())))


def count(folded: LoadedModel, names: Mapping[int, str], data: Data) -> dict[int, Histogram]:
    """How what each pair is to round is distributed, by its number.

    Raises: ModelError if the model can't be run, or a value isn't finite.
    """
    found = {number: Histogram() for number in names}
    if names:
        for values in _runs(folded, list(names.values()), data):
            for number, name in names.items():
                found[number].add(values[name])
    return found


def _runs(model: LoadedModel, names: Sequence[str], data: Data) -> Iterator[Feeds]:
    runner = _runner(model, names)
    for number, feeds in enumerate(data.batches(WATCHING)):
        with must_run():
            values = runner.run(feeds)
        for name, value in values.items():
            if not np.isfinite(value).all():
                what = f"isn't finite in batch {number}; leave that data out, or look at what is upstream"
                raise ModelError(what, where=f"value {quoted(name)}")
        yield values


def _runner(model: LoadedModel, names: Sequence[str] = ()) -> Runner:
    """A session of a model, without optimisations, that gives inner values too."""
    copy = model.copy()
    shown = {info.name for info in copy.proto.graph.output}
    copy.proto.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in shown)
    with TemporaryDirectory(prefix="bnfold-") as folder, must_run():
        path = os.path.join(folder, "model.onnx")
        save(copy, path)
        return Runner(path, list(dict.fromkeys(names)))


@dataclass
class _Distance:
    """Sums of squares over the samples of one output."""

    exact: float = 0.0
    change: float = 0.0
    before: float = 0.0
    after: float = 0.0
    same: int | None = field(default=0)

    def add(self, old: Array, new: Array, plain: Array) -> None:
        """The original's, the result's, and what it is without rounding."""
        before, after, exact = (each.astype(np.float64) for each in (old, new, plain))
        self.exact += float(np.square(exact).sum())
        self.change += float(np.square(after - before).sum())
        self.before += float(np.square(before - exact).sum())
        self.after += float(np.square(after - exact).sum())
        if self.same is not None and before.ndim == 2 and before.shape[1] > 1:
            self.same += int((before.argmax(axis=1) == after.argmax(axis=1)).sum())
        else:
            self.same = None

    def over(self, name: str) -> OutputChange:
        """As parts of the size of what it is without rounding."""
        change, before, after = (
            float(np.sqrt(part / (self.exact or 1.0))) for part in (self.change, self.before, self.after)
        )
        return OutputChange(name, change, before, after, self.same)


def compare(original: LoadedModel, result: LoadedModel, data: Data) -> tuple[int, tuple[OutputChange, ...]]:
    """Number of samples, and how far each output of floats moved on them.

    Raises: ModelError if a model can't be run.
    """
    plain = LoadedModel(unrounded(original.proto), original.weights, original.path)
    runners = [_runner(model) for model in (original, result, plain)]
    found: dict[str, _Distance] = {}
    samples = 0
    for feeds in data.batches(COMPARING):
        samples += len(next(iter(feeds.values())))
        with must_run():
            old, new, exact = (runner.run(feeds) for runner in runners)
        for name, value in old.items():
            if is_floating(value):
                found.setdefault(name, _Distance()).add(value, new[name], exact[name])
    return samples, tuple(distance.over(name) for name, distance in found.items())
