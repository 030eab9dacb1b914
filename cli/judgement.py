"""Whether a model got better or worse: by the labels of samples that were held out, by a function of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import UsageError, quoted

if TYPE_CHECKING:
    from bnfold.frontends import ModelResult
    from bnfold.recalibrate.data import Data


@dataclass(frozen=True)
class Judgement:
    """How good the model was before and is after: numbers, of which more is better, and texts."""

    label: str
    before: float
    after: float
    shown: str
    samples: int | None = None

    @property
    def better(self) -> bool:
        """Whether recalibration brought something."""
        return self.after > self.before

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        found = {"before": self.before, "after": self.after}
        return {self.label: found if self.samples is None else {**found, "samples": self.samples}}


def judged(model: str, result: ModelResult, held_out: Data | None, metric: str | None = None) -> list[Judgement]:
    """How good the model is before and after, by labels and by the user's metric, if there are any."""
    return [] if held_out is None and metric is None else list(_judged(model, result, held_out, metric))


def _judged(model: str, result: ModelResult, held_out: Data | None, given: str | None) -> Iterator[Judgement]:
    from bnfold.frontends import naming
    from bnfold.model_file import load, to_proto
    from bnfold.recalibrate.accuracy import accuracy, metric
    from bnfold.recalibrate.data_python import imported

    with naming(Path(model)):
        old = to_proto(load(model))
        if held_out is not None:
            before, after = accuracy(old, held_out), accuracy(result.model, held_out)
            shown = f"{before} → {after}, on samples that were not measured on"
            yield Judgement("accuracy", before.fraction, after.fraction, shown, before.count)
        if given is not None:
            function = imported(*named(given))
            first, second = metric(old, function), metric(result.model, function)
            yield Judgement("metric", first, second, f"{first:.6g} → {second:.6g}, by {given}")


def named(metric: str) -> tuple[str, str]:
    """File or module, and name, of a metric.

    Raises: UsageError.
    """
    path, colon, name = metric.rpartition(":")
    if not colon or not path:
        raise UsageError(f"--metric is FILE.py:FUNCTION or MODULE:FUNCTION, not {quoted(metric)}")
    return path, name
