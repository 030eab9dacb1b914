"""What a Python program calls: measure the statistics of a model's BNs anew, get the model back with its drift."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import ModelProto

from bnfold.errors import ModelError, UsageError, quoted
from bnfold.fold import Options
from bnfold.frontends import GiveBack, ModelResult, naming, open_model
from bnfold.graph import Graph
from bnfold.model_file import LoadedModel
from bnfold.recalibrate.checkpoint import Checkpoint, described, digest
from bnfold.recalibrate.data import SHORT, Data, fixed_batch, open_data
from bnfold.recalibrate.drift import Drift
from bnfold.recalibrate.exact import measure_exact
from bnfold.recalibrate.images import ImageOptions
from bnfold.recalibrate.measure import Engine, Here, Measured, Recipe, measure_pooled
from bnfold.recalibrate.sites import Site, Unmeasured, batch_norms, find_sites
from bnfold.recalibrate.write import Writer, stored
from bnfold.shapes import Shapes
from bnfold.verify.inputs import ports
from bnfold.verify.runtime import demand_providers

log = logging.getLogger("bnfold")

Method = Literal["pooled", "exact", "blend"]
METHODS: tuple[Method, ...] = ("pooled", "exact", "blend")

# The schema of `to_dict()`; raised when a field changes its meaning or goes.
SCHEMA_VERSION = 1
# Images that the source's statistics count for in 'blend': of 16 and 128, 16 won 1 to 3 points with 32 and 128
# images of CIFAR-10, and 128 lost 5 to 35 (docs/recalibration.md).
SOURCE_WEIGHT = 16.0
ENGINES = ("local", "ray")
# Bytes of activations in memory: 1,024 images of 128 × 128 pixels take 1 to 2 GB at most on resnets.
CACHE_SIZE = 2 << 30


@dataclass(frozen=True)
class RecalibrationResult(ModelResult):
    """A model with new statistics.

    Attributes:
        method: 'pooled', 'exact' or 'blend': how they were measured.
        samples: how many samples were used.
        drift: old and new statistics of every BN that was measured, in the model's order.
        unmeasured: the BNs that were to be measured and could not be, each with the reason.
    """

    method: str
    samples: int
    drift: tuple[Drift, ...]
    unmeasured: tuple[Unmeasured, ...]
    _notices: tuple[str, ...] = field(repr=False)
    _model: LoadedModel = field(repr=False)
    _give_back: GiveBack = field(repr=False)
    _checkpoint: Checkpoint | None = field(default=None, repr=False)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know besides, `save`'s own notices included."""
        return (*self._notices, *self._model.notices)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """As `ModelResult.save`; a checkpoint is removed then."""
        files = super().save(path, overwrite=overwrite)
        self.drop_checkpoint()
        return files

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint, if there is one: the result is safe, or not wanted."""
        if self._checkpoint is not None:
            self._checkpoint.remove()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "method": self.method,
            "samples": self.samples,
            "batch_norms": [drift.to_dict() for drift in self.drift],
            "unmeasured": [{"name": one.name, "why": one.why} for one in self.unmeasured],
            "notices": list(self.notices),
        }


def recalibrate(
    model: Any, data: Any, *, method: Method = "pooled", source_weight: float = SOURCE_WEIGHT, unbiased: bool = False,
    freeze: bool = False, only: str | Sequence[str] = (), skip: str | Sequence[str] = (), batch_size: int = 64,
    samples: int | None = None, seed: int = 0, images: ImageOptions | None = None, provider: str = "cpu",
    cache_size: int = CACHE_SIZE, checkpoint: str | os.PathLike[str] | None = None,
    engine: Literal["local", "ray"] = "local", address: str | None = None,
) -> RecalibrationResult:  # fmt: skip
    """Measure the mean and variance of every BatchNormalization on data, and put them in the place of the old ones.

    Nothing else of the model changes. Prepare the data as for training, augmentation included.

    >>> result = recalibrate("sample_models/digits_cnn.onnx", "sample_models/digits.npz:calib_x")
    >>> result.method, result.samples, len(result.drift), result.drift[0].count
    ('pooled', 256, 7, 16384)

    Args:
        model: of any kind that `fold` takes; it is not changed.
        data: whatever `bnfold.recalibrate.data.open_data` takes: arrays, a file or folder of them, an iterable.
        method: 'pooled': one pass, every BN normalises by its batch's statistics while measuring. 'exact': every BN is
            measured with all those upstream at their final statistics, as in one batch of everything; chosen by itself
            where the model's batch is fixed below 8. 'blend': exact, but with the old ones for `source_weight` samples.
        source_weight: of 'blend', N: each statistic becomes (N * old + n * new) / (N + n), n samples.
        unbiased: whether variances are divided by n - 1 instead of n.
        freeze: whether a BN in training mode becomes one in inference mode with measured statistics.
        only: patterns (`*`, `?`, `[...]`) of node names; if given, nothing else is measured.
        skip: patterns of node names that keep their statistics, and normalise by them.
        batch_size: samples at a time, of a model that leaves it open.
        samples: use at most so many.
        seed: of the order of the data.
        images: how uint8 images become what the model takes; by default they are multiplied by 1/255.
        provider: 'cpu', 'cuda' or 'tensorrt'.
        cache_size: bytes that 'exact' and 'blend' keep of values between segments in memory; more goes to files.
        checkpoint: a file that keeps the progress: the same call after a crash goes on from there, with the same
            result. It is removed when the result is saved.
        engine: 'local', or 'ray': batches of 'pooled' go to the workers of a Ray cluster.
        address: of that cluster; None: the one that Ray finds, or else one on this machine.

    Raises:
        UsageError: no model, no data, or arguments that make no sense.
        ModelError: the model isn't sound, can't be run, has nothing to measure, or a statistic is not finite.
    """
    only, skip = ((patterns,) if isinstance(patterns, str) else tuple(patterns) for patterns in (only, skip))
    _demand_sense(method, source_weight, provider, engine, address)
    original, give_back = open_model(model)
    with naming(original.path):
        options = Options(only, skip)
        task = _Task.of(original, options, freeze)
        inputs = ports(original.proto)[0]
        opened = open_data(data, inputs, batch_size=batch_size, samples=samples, seed=seed, images=images)
        method, why = _settled(method, fixed_batch(inputs), task)
        recipe = Recipe(unbiased, source_weight if method == "blend" else None)
        kept = None if checkpoint is None else _checkpoint(checkpoint, task, opened, method, recipe, provider)
        if method == "pooled":
            measured = measure_pooled(_copy(original), task.sites, opened, provider, _engine(engine, address), kept)
        else:
            _demand_one_machine(method, engine)
            types = task.writer.types
            measured = measure_exact(original, task.sites, opened, provider, recipe, types, cache_size, kept)
        drift = tuple(_write(task, measured, recipe))
    misspelt = options.unmatched((node.name for _, node in batch_norms(task.graph)), "BatchNormalization")
    told = (*why, *_told(task, measured, drift, kept), *misspelt)
    return RecalibrationResult(method, measured.samples, drift, tuple(task.left), told, task.model, give_back, kept)


def _demand_sense(method: str, source_weight: float, provider: str, engine: str, address: str | None) -> None:
    """Raises: UsageError if an argument is none of its kind."""
    if method not in METHODS:
        raise UsageError(f"there is no method {quoted(method)}; the methods are {', '.join(METHODS)}")
    if not (np.isfinite(source_weight) and source_weight >= 0):
        raise UsageError("source_weight is a number of samples, 0 or more")
    if engine not in ENGINES:
        raise UsageError(f"there is no engine {quoted(engine)}; the engines are {', '.join(ENGINES)}")
    if address is not None and engine == "local":
        raise UsageError("an address is that of a Ray cluster; choose the engine ray")
    if engine == "local":  # with Ray, what counts is what the workers have
        demand_providers(provider)


def _demand_one_machine(method: str, engine: str) -> None:
    if engine != "local":
        what = "keeps values between its segments, and runs on one machine; use the method pooled, or the engine local"
        raise UsageError(f"the method {method} {what}")


def _engine(name: str, address: str | None) -> Engine:
    if name == "local":
        return Here()
    from bnfold.recalibrate.engine_ray import RayEngine

    return RayEngine(address)


@dataclass(frozen=True)
class _Task:
    """What is to be measured, and where it is to be written.

    Attributes:
        original: the model as it was given.
        model: the copy that gets new statistics.
        graph: its view.
        writer: puts statistics into it.
        sites: what is measured.
        left: what can't be.
    """

    original: LoadedModel
    model: LoadedModel
    graph: Graph
    writer: Writer
    sites: Sequence[Site]
    left: Sequence[Unmeasured]

    @staticmethod
    def of(original: LoadedModel, options: Options, freeze: bool) -> _Task:
        """The task that a model is.  Raises: ModelError, UsageError if there is nothing to measure."""
        work = _copy(original)
        graph = Graph(work.proto)
        shapes = Shapes(graph, work)
        sites, left = find_sites(graph, shapes, options.chosen, freeze)
        _demand_sites(graph, sites, left)
        return _Task(original, work, graph, Writer(graph, work.weights, shapes), sites, left)


def _checkpoint(
    path: str | os.PathLike[str], task: _Task, data: Data, method: str, recipe: Recipe, provider: str
) -> Checkpoint:
    """The checkpoint of this run and no other."""
    return Checkpoint(path, {"model": digest(task.original)} | described([
        ("method", method), ("unbiased", recipe.unbiased), ("source weight", recipe.source_weight),
        ("provider", provider), ("batch size", data.batch_size), ("seed", data.seed),
        ("number of samples", data.limit or data.count), ("treatment of images", vars(data.images)),
        ("choice of BatchNormalizations", [site.name for site in task.sites]),
    ]))  # fmt: skip


def _copy(original: LoadedModel) -> LoadedModel:
    """To be edited; it holds no weights of its own."""
    proto = ModelProto()
    proto.CopyFrom(original.proto)
    return LoadedModel(proto, original.weights, original.path)


def _settled(method: Method, batch: int | None, task: _Task) -> tuple[Method, tuple[str, ...]]:
    """The method, and why it is another one than was asked for, or should be."""
    if method != "pooled" or batch is None or batch >= SHORT:
        return method, ()
    few = f"the model takes {batch} samples at a time, too few to normalise by"
    with_bodies = any(scope.parent is not None for scope in task.graph.scopes)
    if with_bodies and any(site.scope.label for site in task.sites):  # some may be where exact doesn't reach
        return method, (f"{few}: its statistics are rough",)
    return "exact", (f"{few}: the method is exact, not pooled",)


def _demand_sites(graph: Graph, sites: Sequence[Site], left: Sequence[Unmeasured]) -> None:
    if sites:
        return
    if left:
        more = f" (and so on, {len(left)} in all)" if len(left) > 1 else ""
        raise ModelError(f"can't be measured: {left[0].why}{more}", where=f"node {quoted(left[0].name)}")
    if next(batch_norms(graph), None) is not None:
        raise UsageError("only and skip leave no BatchNormalization to measure")
    raise ModelError("has no BatchNormalization (folded away already?); export the model again with BN preserved")


def _write(task: _Task, measured: Measured, recipe: Recipe) -> Iterator[Drift]:
    """Put what was measured into the model."""
    writer = task.writer
    for site, trace in zip(task.sites, measured.traces, strict=True):
        if not trace.total.count:
            continue
        statistics = recipe.statistics(site, trace.total, measured.samples)
        mean, variance = (
            stored(values, dtype, site, role)
            for values, dtype, role in zip(statistics, writer.types(site), ("mean", "variance"), strict=True)
        )
        writer.put(site, mean, variance)
        yield Drift(
            site.name, site.scope.label, site.channels, site.mean, site.variance, mean.astype(np.float64),
            variance.astype(np.float64), trace.total.count, site.epsilon, trace.trust(site.epsilon),
        )  # fmt: skip
    writer.finish()


def _told(task: _Task, measured: Measured, drift: Sequence[Drift], checkpoint: Checkpoint | None) -> Iterator[str]:
    if checkpoint is not None and checkpoint.resumed:
        yield f"went on after batch {checkpoint.resumed} of the checkpoint"
    yield from measured.notices
    for site, trace in zip(task.sites, measured.traces, strict=True):
        if not trace.total.count:
            yield f"{quoted(site.name)} was never reached, and keeps its statistics"
        if len(site.nodes) > 1:
            yield f"{quoted(site.name)} is applied {len(site.nodes)} times; its statistics are those of all uses"
    dead = [one for one in drift if one.dead]
    if dead:
        count = sum(one.dead for one in dead)
        yield (
            f"{count} channels in {len(dead)} BatchNormalizations ({quoted(dead[0].name)} first) never vary in the "
            "data: they are divided by sqrt(epsilon) alone"
        )
    rough = sorted((one for one in drift if one.rough), key=lambda one: -(one.error or 0))
    if rough:
        yield (
            f"{measured.samples} samples are too few for {len(rough)} BatchNormalizations: the means of "
            f"{quoted(rough[0].name)} are known to ± {rough[0].error:.2g} standard deviations"
        )
    unsettled = sorted((one for one in drift if one.unsettled), key=lambda one: -(one.trend or 0))
    if unsettled:
        yield (
            f"{len(unsettled)} BatchNormalizations did not settle: the first and the second half of the data are "
            f"{2 * (unsettled[0].trend or 0):.2g} standard deviations apart in {quoted(unsettled[0].name)}; is the "
            "data shuffled?"
        )
