"""How far apart two models' outputs are on a batch: what insertion is to leave at rounding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import numpy as np

from bnfold.constants import is_floating
from bnfold.errors import ModelError
from bnfold.insert.double import outputs_in_double
from bnfold.model_file import LoadedModel, save
from bnfold.verify.runtime import CannotRun, Feeds, Runner


@dataclass(frozen=True)
class Difference:
    """Of outputs on one batch.

    Attributes:
        worst: rms(b - a) / rms(a), the largest over the outputs.
        output: the name of that output.
        samples: in the batch.
    """

    worst: float
    output: str
    samples: int


def difference(
    a: LoadedModel, b: LoadedModel, feeds: Feeds, provider: str = "cpu", *, double: bool = False
) -> Difference:
    """Run both on a batch, ONNX Runtime's optimisations off.

    Args:
        a: a model.
        b: one with its inputs and outputs.
        feeds: the batch.
        provider: where they run, 'cpu', 'cuda' or 'tensorrt'.
        double: whether they are computed in double, wherever they run otherwise.

    Raises: ModelError if one of them can't be run.
    """
    try:
        before, after = (
            outputs_in_double(model, feeds) if double else _outputs(model, feeds, provider) for model in (a, b)
        )
    except CannotRun as why:
        raise ModelError(str(why)) from why
    samples = len(next(iter(feeds.values())))
    compared = list(_compared(before, after))
    worst, output = max(compared, default=(0.0, ""))
    return Difference(worst, output, samples)


def _outputs(model: LoadedModel, feeds: Feeds, provider: str) -> Feeds:
    with TemporaryDirectory(prefix="bnfold-") as folder:
        path = os.path.join(folder, "model.onnx")
        save(model, path)
        return Runner(path, provider=provider).run(feeds)


def _compared(before: Feeds, after: Feeds) -> Iterator[tuple[float, str]]:
    for name, expected in before.items():
        if not hasattr(expected, "dtype") or not is_floating(expected) or not expected.size:  # sequences, integers
            continue
        a, b = expected.astype(np.float64), after[name].astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))  # infinities too
        error = np.sqrt(np.mean(np.where(same, 0.0, b - a) ** 2))
        size = np.sqrt(np.mean(np.where(np.isfinite(a), a, 0.0) ** 2))
        yield (float(error / size) if size else float(error)), name
