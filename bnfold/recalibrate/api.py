"""What a Python program calls: measure the statistics of a model's BNs anew, get the model back with its drift."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import ModelProto

from bnfold.errors import ModelError, UsageError, quoted
from bnfold.fold import Options
from bnfold.frontends import GiveBack, naming, open_model
from bnfold.graph import Graph
from bnfold.model_file import LoadedModel, save
from bnfold.recalibrate.data import SHORT, fixed_batch, open_data
from bnfold.recalibrate.drift import Drift
from bnfold.recalibrate.exact import measure_exact
from bnfold.recalibrate.measure import Counting, Recipe, measure_pooled
from bnfold.recalibrate.moments import Moments
from bnfold.recalibrate.sites import Site, Unmeasured, batch_norms, find_sites
from bnfold.recalibrate.write import Writer, stored
from bnfold.shapes import Shapes
from bnfold.verify.inputs import ports
from bnfold.verify.runtime import CannotRun, demand_providers

log = logging.getLogger("bnfold")

Method = Literal["pooled", "exact", "blend"]
METHODS: tuple[Method, ...] = ("pooled", "exact", "blend")

# The schema of `to_dict()`; raised when a field changes its meaning or goes.
SCHEMA_VERSION = 1
# Images that the source's statistics count for in 'blend': of 16 and 128, 16 won 1 to 3 points with 32 and 128
# images of CIFAR-10, and 128 lost 5 to 35 (docs/recalibration.md).
SOURCE_WEIGHT = 16.0
# Bytes of activations in memory: 1,024 images of 128 × 128 pixels take 1 to 2 GB at most on resnets.
CACHE_SIZE = 2 << 30


@dataclass(frozen=True)
class RecalibrationResult:
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

    @cached_property
    def model(self) -> Any:
        """The model, of the kind that was given (of a path: an onnx.ModelProto), with all its weights.

        Raises: ModelError if it is larger than 2 GiB; `save` writes it all the same.
        """
        return self._give_back(self._model)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know besides, `save`'s own notices included."""
        return (*self._notices, *self._model.notices)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write the model; weights that were in a data file go into a new one beside it.

        Args:
            path: where to; the folder must exist.
            overwrite: whether an existing file may be replaced, the given model's own included.

        Returns: the files written, the model first.

        Raises: OutputError; whatever goes wrong, the input and an earlier output stay as they were.
        """
        log.info("writing %s", quoted(path))
        return save(self._model, path, overwrite=overwrite)

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
    model: Any,
    data: Any,
    *,
    method: Method = "pooled",
    source_weight: float = SOURCE_WEIGHT,
    unbiased: bool = False,
    freeze: bool = False,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    batch_size: int = 64,
    samples: int | None = None,
    seed: int = 0,
    provider: str = "cpu",
    cache_size: int = CACHE_SIZE,
) -> RecalibrationResult:
    """Measure the mean and variance of every BatchNormalization on data, and put them in the place of the old ones.

    Nothing else of the model changes. The data have to be prepared as they were for training, augmentation
    included: plain images instead cost a healthy CIFAR-10 resnet20 3.5 points.

    >>> result = recalibrate("sample_models/digits_cnn.onnx", "sample_models/digits.npz:calib_x")
    >>> result.method, result.samples, len(result.drift), result.drift[0].count
    ('pooled', 256, 7, 16384)

    Args:
        model: a path, onnx.ModelProto, onnx_graphsurgeon.Graph, onnx_ir.Model or torch.onnx.ONNXProgram;
            it is not changed.
        data: whatever `bnfold.recalibrate.data.open_data` takes: arrays, a file or folder of them, an iterable.
        method: 'pooled': one pass, every BN normalises by its batch's statistics while measuring. 'exact': every
            BN is measured with all those upstream at their final statistics, as in one batch of everything; chosen
            by itself where the model's batch is fixed below 8. 'blend': as exact, but each statistic becomes
            (N * old + n * new) / (N + n), n samples.
        source_weight: the N of 'blend'.
        unbiased: whether variances are divided by n - 1 instead of n.
        freeze: whether a BN in training mode becomes one in inference mode with measured statistics.
        only: patterns (`*`, `?`, `[...]`) of node names; if given, nothing else is measured.
        skip: patterns of node names that keep their statistics, and normalise by them.
        batch_size: samples at a time, of a model that leaves it open.
        samples: use at most so many.
        seed: of the order of the data.
        provider: 'cpu', 'cuda' or 'tensorrt'.
        cache_size: bytes that 'exact' and 'blend' keep of values between segments in memory; more goes to files.

    Raises:
        UsageError: no model, no data, or arguments that make no sense.
        ModelError: the model isn't sound, can't be run, has nothing to measure, or a statistic is not finite.
    """
    if method not in METHODS:
        raise UsageError(f"there is no method {quoted(method)}; the methods are {', '.join(METHODS)}")
    if not (np.isfinite(source_weight) and source_weight >= 0):
        raise UsageError("source_weight is a number of samples, 0 or more")
    demand_providers(provider)
    only, skip = ((patterns,) if isinstance(patterns, str) else tuple(patterns) for patterns in (only, skip))
    original, give_back = open_model(model)
    with naming(original.path):
        work = _copy(original)
        graph = Graph(work.proto)
        shapes = Shapes(graph, work)
        sites, left = find_sites(graph, shapes, Options(only, skip).chosen, freeze)
        _demand_sites(graph, sites, left)
        inputs, _ = ports(original.proto)
        opened = open_data(data, inputs, batch_size=batch_size, samples=samples, seed=seed)
        method, why = _settled(method, fixed_batch(inputs), sites)
        batches = Counting(opened.batches())
        recipe = Recipe(unbiased, source_weight if method == "blend" else None)
        writer = Writer(graph, work.weights, shapes)
        try:
            if method == "pooled":
                moments = measure_pooled(_copy(original), sites, batches, provider)
            else:
                moments = measure_exact(original, sites, batches, provider, recipe, writer.types, cache_size)
        except CannotRun as why:
            raise ModelError(str(why)) from why
        drift = tuple(_write(writer, sites, moments, recipe, batches.samples))
    notices = (*why, *opened.notices, *_told(sites, moments, drift), *_unmatched(graph, only, skip))
    return RecalibrationResult(method, batches.samples, drift, tuple(left), notices, work, give_back)


def _copy(original: LoadedModel) -> LoadedModel:
    """To be edited; it holds no weights of its own."""
    proto = ModelProto()
    proto.CopyFrom(original.proto)
    return LoadedModel(proto, original.weights, original.path)


def _settled(method: Method, batch: int | None, sites: Sequence[Site]) -> tuple[Method, tuple[str, ...]]:
    """The method, and why it is another one than was asked for, or should be."""
    if method != "pooled" or batch is None or batch >= SHORT:
        return method, ()
    few = f"the model takes {batch} samples at a time, too few to normalise by"
    if any(site.scope.label for site in sites):  # where exact doesn't reach
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


def _write(
    writer: Writer, sites: Sequence[Site], moments: Sequence[Moments], recipe: Recipe, samples: int
) -> Iterator[Drift]:
    """Put what was measured into the model."""
    for site, measured in zip(sites, moments, strict=True):
        if not measured.count:
            continue
        statistics = recipe.statistics(site, measured, samples)
        mean, variance = (
            stored(values, dtype, site, role)
            for values, dtype, role in zip(statistics, writer.types(site), ("mean", "variance"), strict=True)
        )
        writer.put(site, mean, variance)
        yield Drift(
            site.name, site.scope.label, site.channels, site.mean, site.variance,
            mean.astype(np.float64), variance.astype(np.float64), measured.count, site.epsilon,
        )  # fmt: skip
    writer.finish()


def _told(sites: Sequence[Site], moments: Sequence[Moments], drift: Sequence[Drift]) -> Iterator[str]:
    for site, measured in zip(sites, moments, strict=True):
        if not measured.count:
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


def _unmatched(graph: Graph, only: Sequence[str], skip: Sequence[str]) -> Iterator[str]:
    """A notice for each pattern that no BatchNormalization's name matches: it is probably misspelt."""
    names = [node.name for _, node in batch_norms(graph)]
    for option, patterns in (("only", only), ("skip", skip)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                yield f"{option} {quoted(pattern)} matches the name of no BatchNormalization"
