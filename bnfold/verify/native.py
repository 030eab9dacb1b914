"""Both models as they are deployed: in their own types, on a provider, for overflow and the figures that people know.

A difference of these runs is no verdict (it is rounding, amplified by no one knows how much), with two exceptions: NaN
and Inf where the other has none, which double can't see (fp16 overflows at 65504); and runs on other providers, or with
ONNX Runtime's optimiser on, which is what is asked about then. Those are judged per channel by A's own noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.constants import Array, is_floating
from bnfold.errors import quoted
from bnfold.verify.comparison import OutputReport
from bnfold.verify.criterion import SEEDS, Tally, unlike
from bnfold.verify.large import Model
from bnfold.verify.prepare import ULP, moved, weights
from bnfold.verify.runtime import Feeds, Runner, cut_model
from bnfold.verify.sides import as_double
from bnfold.verify.signature import Signature

# Units in the last place that kernels compute with: TF32 (10 bits) for float32 on CUDA and TensorRT, by default.
TF32 = 2.0**-10
# Largest r of a right pair in native runs: 218 right pairs of 15 models stayed below 11.8.
LIMIT = 16.0


class Figures:
    """The figures of one float output, over batches."""

    def __init__(self) -> None:
        self.max_abs = self.size = self.error = self.dot = self.other = self.largest = 0.0
        self.same = self.positions = 0

    def add(self, a: Array, b: Array) -> None:
        """One batch of both, of the same shape."""
        a, b = as_double(a), as_double(b)
        both = np.isfinite(a) & np.isfinite(b)
        x, y = np.where(both, a, 0.0), np.where(both, b, 0.0)
        self.max_abs = max(self.max_abs, float(np.abs(x - y).max(initial=0)))
        self.largest = max(self.largest, float(np.abs(x).max(initial=0)))
        self.error += float(np.sum((x - y) ** 2))
        self.size += float(np.sum(x**2))
        self.other += float(np.sum(y**2))
        self.dot += float(np.sum(x * y))
        axis = {2: 1, 3: 2, 4: 1, 5: 1}.get(x.ndim)
        if axis is not None and x.shape[axis] > 1 and x.size:
            self.same += int((x.argmax(axis) == y.argmax(axis)).sum())
            self.positions += x.size // x.shape[axis]

    def report(self, name: str, name_b: str) -> OutputReport:
        """All of them."""
        ratio = self.error / self.size if self.size else float(self.error > 0)
        norm = (self.size * self.other) ** 0.5
        return OutputReport(
            name, name_b,
            max_abs=self.max_abs,
            max_rel=self.max_abs / self.largest if self.largest else self.max_abs,
            rms_rel=ratio**0.5,
            sqnr_db=-10 * float(np.log10(ratio)) if ratio else None,
            cosine=min(1.0, self.dot / norm) if norm else None,
            argmax=self.same / self.positions if self.positions else None,
        )  # fmt: skip


@dataclass(frozen=True)
class NativeRun:
    """What the native runs found.

    Attributes:
        outputs: figures of the float outputs; others with the number of elements that differ.
        problems: NaN, Inf or shapes that one of them has, phrases that begin with the output.
        notes: NaN and Inf that both have, sentences.
        worst: the largest r of an output against A's own noise, if it was asked for.
    """

    outputs: tuple[OutputReport, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    worst: float = 0.0


def run_natively(
    a: Model, b: Model, signature: Signature, batches: Sequence[Feeds], providers: tuple[str, str],
    optimized: bool, judged: bool,
) -> NativeRun:  # fmt: skip
    """Run both models on every batch.

    Args:
        a: the reference, prepared.
        b: the model in question, prepared.
        signature: of both.
        batches: inputs of A.
        providers: of A and B.
        optimized: whether ONNX Runtime may optimise B.
        judged: whether to measure A's noise, too.

    Raises: CannotRun.
    """
    names, inputs = signature.output_names, signature.input_names
    runners = Runner(a, list(names), providers[0]), Runner(b, list(names.values()), providers[1], optimized)
    noisy = _Noisy(a, list(names), providers[0]) if judged else None
    figures: dict[str, Figures] = {}
    tallies: dict[str, Tally] = {}
    differing: dict[str, int] = {}
    problems: dict[str, str] = {}
    endless: dict[str, int] = {}
    for batch in batches:
        left = runners[0].run(batch)
        right = runners[1].run({inputs[name]: value for name, value in batch.items() if name in inputs})
        moved_runs = list(noisy.runs(batch)) if noisy else []
        for name, other in names.items():
            x, y = left[name], right[other]
            if not is_float(x) or not is_float(y):
                differing[name] = differing.get(name, 0) + _differing(x, y)
                continue
            if problem := unlike(as_double(x), as_double(y)):
                problems.setdefault(name, problem)
                continue
            figures.setdefault(name, Figures()).add(x, y)
            endless[name] = endless.get(name, 0) + int((~np.isfinite(as_double(x))).sum())
            if noisy:
                unit = max(float(ULP[noisy.types[name]]), *(TF32 for p in providers if p != "cpu"), 0.0) / 2
                tally = tallies.setdefault(name, Tally(unit))
                tally.add(as_double(x), as_double(y), [as_double(values[name]) for values in moved_runs])
    reports = [figures[n].report(n, names[n]) for n in names if n in figures]
    reports += [OutputReport(n, names[n], differing=count) for n, count in differing.items()]
    worst = max((tally.reading().r for tally in tallies.values()), default=0.0)
    unlikes = tuple(f"output {quoted(n)} {p}" for n, p in problems.items())
    notes = tuple(f"output {quoted(n)} has NaN or Inf in {k} places, in both" for n, k in endless.items() if k)
    return NativeRun(tuple(reports), unlikes, notes, worst)


def is_float(value: object) -> bool:
    """Whether an output is a tensor of floats."""
    return isinstance(value, np.ndarray) and is_floating(value)


def _differing(x: object, y: object) -> int:
    """Elements of values that are no floats that differ; sequences and maps count as one."""
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return int((x != y).sum()) if x.shape == y.shape else max(x.size, y.size, 1)
    return int(repr(x) != repr(y))


class _Noisy:
    """A with moved weights: its noise, as it is deployed."""

    def __init__(self, model: Model, names: list[str], provider: str) -> None:
        self.weights = weights(model)
        self.runner = Runner(cut_model(model, {}, names, self.weights), names, provider)
        self.types = {info.name: info.type.tensor_type.elem_type for info in model.graph.output}

    def runs(self, feeds: Feeds) -> Iterator[Feeds]:
        """Outputs, once for each seed."""
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            given = {name: moved(name, weight, seed) for name, weight in self.weights.items()}
            for name, value in feeds.items():
                if value.dtype.kind == "f":
                    ulp = float(np.finfo(value.dtype).eps)
                    value = np.asarray(value * (1 + ulp * rng.choice((-1.0, 1.0), value.shape)), value.dtype)
                given[name] = value
            yield self.runner.run(given)
