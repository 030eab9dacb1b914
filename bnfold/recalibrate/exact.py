"""Measure every BN with all those upstream at their final statistics: the method 'exact'.

The result is that of one batch of all data in training mode, which nobody could hold. The graph is cut into *levels*:
a value's level is the largest number of BNs on a way to it, and a BN that reads level k is measured in segment k,
when all BNs below are final. Segment k computes the values of level k alone, for every batch, from cached values of
lower levels; so each node runs once, as in a single pass over the data, and repeated passes (9 on a resnet18, 89 on
a densenet121) are not needed. What no later segment reads leaves the cache. A BN whose statistics follow from what is
known before its input is computed (see `algebra`) adds no level: its input is computed, and normalised, in the next.
So is what a cheap stem gives, which is made a second time there.

A BN that is applied several times normalises each time by what that use saw, as in training; the uses are pooled at
the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np
from onnx import helper

from bnfold.errors import ModelError, quoted
from bnfold.model_file import LoadedModel
from bnfold.recalibrate.cache import LARGE, Cache
from bnfold.recalibrate.checkpoint import Checkpoint, Journal, Progress, sum_of
from bnfold.recalibrate.data import Data
from bnfold.recalibrate.levels import Levels, Types, flattened
from bnfold.recalibrate.measure import Measured, Recipe, is_plain, make_runner, must_run, run, take_in
from bnfold.recalibrate.moments import Trace, pooled
from bnfold.recalibrate.sites import Site
from bnfold.verify.runtime import CUT, CannotRun, Feeds


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
        flat = flattened(model, sites)
    plan = Levels(flat, sites, is_plain(provider))
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
                take_in(progress.traces, plan.observed, plan.readings_at[level], plan.read(level, values), number)
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


def _segment(plan: Levels, level: int, batches: Iterable[Feeds], cache: Cache, provider: str) -> Iterator[Feeds]:
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
