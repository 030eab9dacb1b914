"""`bnfold.verify`: do two models compute the same? A verdict with its reason, and where they part."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

from onnx import ModelProto

from bnfold._version import __version__
from bnfold.errors import TooLargeError, UsageError, quoted
from bnfold.frontends import naming, open_model
from bnfold.model_file import LoadedModel, to_proto, wrap
from bnfold.verify import comparison, criterion, native
from bnfold.verify.comparison import Comparison, OutputReport, SegmentReport
from bnfold.verify.criterion import Reading
from bnfold.verify.data import from_file
from bnfold.verify.discrete import judge_discrete
from bnfold.verify.examine import Batches, Examination, examine
from bnfold.verify.inputs import Samples, drawn
from bnfold.verify.large import Model
from bnfold.verify.prepare import prepare
from bnfold.verify.runtime import CannotRun, demand_providers, onnxruntime_module, optimised_by_runtime
from bnfold.verify.segments import Segment
from bnfold.verify.sides import Side
from bnfold.verify.signature import compare_signatures, pinned

# Outputs this near to each other (relative rms, in float32) show nothing.
HIDDEN = 1e-6

log = logging.getLogger("bnfold")


def verify(
    a: Any,
    b: Any = None,
    *,
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
    optimized: bool = False,
    provider_a: str = "cpu",
    provider_b: str = "cpu",
) -> Comparison:
    """Compare two models: a verdict that doesn't depend on a tolerance.

    Both run in float64, cut into segments at values that they share, and each segment's error is measured in units of
    the noise that rounding A's weights makes there (docs/verification.md).

    >>> found = verify("sample_models/digits_cnn.onnx", "sample_models/digits_cnn.onnx")
    >>> found.verdict, found.worst, found.equal
    ('equal', 0.0, True)

    Args:
        a: the reference: a path, onnx.ModelProto, onnx_graphsurgeon.Graph, onnx_ir.Model or torch.onnx.ONNXProgram.
        b: the model in question; it may be left out with `optimized`.
        data: an .npz with an array for each input, samples along the first axis; without it inputs are random.
        seed: of random inputs and of the noise.
        optimized: whether to judge what ONNX Runtime's optimiser makes of `b` (or of `a`), instead of `b` itself.
        provider_a: 'cpu', 'cuda' or 'tensorrt': where `a` is run in its own type.
        provider_b: where `b` is.

    Raises:
        UsageError: no model, data that doesn't fit, a provider that isn't there.
        ModelError: a model isn't sound, or its data can't be read.
    """
    settings = Settings(seed, optimized, provider_a, provider_b)
    demand_providers(provider_a, provider_b)
    if b is None and not optimized:
        raise UsageError("there is one model only; give two, or ask for what ONNX Runtime's optimiser makes of it")
    return compare_models(open_model(a)[0], open_model(a if b is None else b)[0], data, settings)


@dataclass(frozen=True)
class Settings:
    """How models are compared; see `verify`."""

    seed: int = 0
    optimized: bool = False
    provider_a: str = "cpu"
    provider_b: str = "cpu"

    def to_dict(self) -> dict[str, Any]:
        """With the constants and the versions that the result depends on."""
        limits = {"seeds_of_noise": criterion.SEEDS, "limits": [criterion.EQUAL, criterion.DIFFERENT]}
        return asdict(self) | limits | {"versions": _versions()}


def compare_models(
    a: LoadedModel, b: LoadedModel, data: str | os.PathLike[str] | None, settings: Settings
) -> Comparison:
    """`verify`, of models that are open already."""
    result = _by_signature(a.proto, b.proto, settings)
    if result.verdict == comparison.DIFFERENT and not settings.optimized:
        return result
    try:
        left = _prepared(a)
        right = _optimised(b) if settings.optimized else _prepared(b)
    except TooLargeError as error:
        name = os.path.basename(error.file) if error.file else "one of them"
        reason = f"{quoted(name)} is larger than 2 GiB, too large to be run in float64"
        return replace(result, verdict=comparison.UNKNOWN, reason=reason)
    except CannotRun as why:
        return replace(result, verdict=comparison.UNKNOWN, reason=str(why))
    result = _by_signature(left.proto, right.proto, settings)
    if result.verdict == comparison.DIFFERENT:
        return result
    signature = result.signature
    try:
        fitting = Model(pinned(left.proto, signature), left.beside)
        samples = drawn(fitting, settings.seed) if data is None else from_file(left, data)
    except CannotRun as why:
        return replace(result, reason=f"A can't be run: {why}")
    return _Judge(left, right, samples, replace(result, inputs=samples.sentence)).judge()


def _by_signature(a: ModelProto, b: ModelProto, settings: Settings) -> Comparison:
    """What is known before anything runs."""
    signature = compare_signatures(a, b)
    verdict = comparison.DIFFERENT if signature.differences else comparison.UNKNOWN
    reason = signature.differences[0] if signature.differences else ""
    return Comparison(verdict, reason, signature, None, (), (), signature.notes, "", settings.to_dict())


def _versions() -> dict[str, str]:
    import numpy
    import onnx

    modules = (onnx, onnxruntime_module(), numpy)
    return {"bnfold": __version__} | {module.__name__: module.__version__ for module in modules}


def _prepared(model: LoadedModel) -> Model:
    with naming(model.path):
        return prepare(model)


def _optimised(model: LoadedModel) -> Model:
    with naming(model.path):
        return prepare(wrap(optimised_by_runtime(to_proto(model))))


class _Judge:
    """Two prepared models with the same signature, and inputs for them."""

    def __init__(self, a: Model, b: Model, samples: Samples, result: Comparison) -> None:
        self.a, self.b, self.result = a, b, result
        self.batches = Batches(samples.batches, result.signature.input_names)
        self.notes = list(result.notes)
        self.outputs: tuple[OutputReport, ...] = ()

    def judge(self) -> Comparison:
        """The verdict."""
        problem = self._native()
        if problem and problem.startswith("B can't be run"):
            return self._end(comparison.DIFFERENT, problem)
        try:
            log.info("converting to float64")
            first = self.batches[0]
            a, b = Side(self.a, first.a), Side(self.b, first.b)
            found = examine(a, b, self.result.signature.output_names, self.batches, self._seed)
            flips = judge_discrete(a, b, self.result.signature.output_names, self.batches, found, self._seed)
        except CannotRun as why:
            if problem:
                return self._end(comparison.DIFFERENT, problem)
            return self._end(comparison.UNKNOWN, f"it can't be looked into: {why}")
        for side, which in ((a, "A"), (b, "B")):
            for name, why_not in list(side.unsupported.items())[:3]:
                self.notes.append(f"{which}'s {quoted(name)} has no float64 form, it is run in its own type: {why_not}")
        self.outputs = tuple(
            replace(report, ties=flips[report.name].ties) if report.name in flips else report for report in self.outputs
        )
        if found.overflow:
            problem = problem or f"{quoted(found.overflow)} is too large for its type in B, and no value is in A"
        flipped = [flip for flip in flips.values() if flip.counted]
        return self._verdict(b, found, problem or (flipped[0].sentence if flipped else ""))

    @property
    def _seed(self) -> int:
        return int(self.result.settings["seed"])

    def _native(self) -> str:
        """Run both in their own types; a difference that decides, a sentence."""
        settings = self.result.settings
        providers = (settings["provider_a"], settings["provider_b"])
        judged = settings["optimized"] or providers != ("cpu", "cpu")
        log.info("running both in their own types")
        try:
            found = native.run_natively(
                self.a, self.b, self.result.signature, self.batches.a, providers,
                settings["optimized"], judged,
            )  # fmt: skip
        except CannotRun as why:
            return self._not_run(why)
        self.outputs = found.outputs
        self.notes += found.notes
        if found.problems:
            return f"run in their own types, {found.problems[0]}"
        if found.worst > native.LIMIT:
            apart = f"{found.worst:.3g} × A's own noise apart (limit {native.LIMIT:g})"
            return f"run in their own types, outputs are {apart}"
        return ""

    def _not_run(self, why: CannotRun) -> str:
        """Which of both can't be run natively; it matters if it is B alone."""
        from bnfold.verify.runtime import Runner

        try:
            Runner(self.a).run(self.batches.a[0])
        except CannotRun:
            self.notes.append(f"not run in its own type, where an overflow would show: {why}")
            return ""
        return f"B can't be run, A can: {why}"

    def _verdict(self, b: Side, found: Examination, problem: str) -> Comparison:
        segments = tuple(_report(segment, reading, b) for segment, reading in found.segments)
        located = [_report(segment, reading, b) for segment, reading in found.located]
        first = located[0] if located else None
        self.notes += _notes(found)
        worst, count = found.worst, sum(segment.basis != "coordinates" for segment in segments)
        if problem and worst <= criterion.EQUAL:
            return self._end(comparison.DIFFERENT, problem, segments)
        if worst > criterion.DIFFERENT:
            assert first is not None
            if any(output.differing is None for output in self.outputs) and all(map(_hidden, self.outputs)):
                self.notes.insert(0, "the outputs don't show it on these inputs: it is hidden by what follows")
            return self._end(comparison.DIFFERENT, _off_by(first), segments, first)
        if worst > criterion.EQUAL:
            assert first is not None
            off = _off_by(replace(first, r=min(first.r, worst)))
            reason = f"{off}: more than rounding of single weights does"
            return self._end(comparison.ROUNDING, reason, segments, first)
        if found.blind:
            name = quoted(found.blind[0].pair.a)
            reason = f"{name} doesn't react to the weights before it on these inputs; give data that exercises them"
            return self._end(comparison.UNKNOWN, reason, segments)
        if not segments:
            return self._end(comparison.UNKNOWN, "there is no float value to compare")
        agrees = f", r ≤ {worst:.2g} (limit {criterion.EQUAL:g})" if worst else " exactly, in float64"
        reason = f"each of {count} segments agrees{agrees}" if count > 1 else f"its one segment agrees{agrees}"
        return self._end(comparison.EQUAL, reason, segments)

    def _end(
        self, verdict: str, reason: str, segments: tuple[SegmentReport, ...] = (), first: SegmentReport | None = None
    ) -> Comparison:
        return replace(
            self.result, verdict=verdict, reason=reason, first=first, segments=segments, outputs=self.outputs,
            notes=tuple(self.notes),
        )  # fmt: skip


def _report(segment: Segment, reading: Reading, b: Side) -> SegmentReport:
    pair = segment.pair
    node = b.makers.get(pair.b)
    return SegmentReport(
        value=pair.a,
        value_b=pair.b,
        node=(node.name or pair.b) if node else "",
        op=node.op_type if node else "",
        basis=pair.basis,
        r=reading.r,
        axis=reading.axis,
        channels=reading.channels,
        bad=reading.bad,
        count=reading.count,
        idle=reading.idle,
        native=segment.native,
        problem=reading.problem,
        batch_norms=tuple(n.name or n.output[0] for n in segment.nodes_a if n.op_type == "BatchNormalization"),
    )


def _off_by(segment: SegmentReport) -> str:
    """What is wrong with a segment, a sentence."""
    if segment.problem:
        return f"{quoted(segment.value)} {segment.problem}"
    where = f", in {segment.bad} of {segment.count} channels" if segment.bad else ""
    return f"{quoted(segment.value)} is off by {segment.r:.3g} × A's own rounding noise{where}"


def _hidden(output: OutputReport) -> bool:
    """Whether an output is the same but for rounding."""
    return not output.differing and output.rms_rel < HIDDEN


def _notes(found: Examination) -> list[str]:
    notes = []
    idle = [(segment, reading) for segment, reading in found.segments if reading.idle]
    if idle:
        total = sum(reading.idle for _, reading in idle)
        example = quoted(idle[0][0].pair.a)
        channels, of = ("channels" if total > 1 else "channel"), ("values" if len(idle) > 1 else "value")
        notes.append(f"{total} {channels} of {len(idle)} {of} stayed 0 on these inputs, the first of {example}")
    moved = sum(
        reading.r <= criterion.EQUAL for segment, reading in found.segments if segment.pair.basis == "coordinates"
    )
    if moved:
        notes.append(f"B holds {moved} of A's values in other per-channel coordinates, v' = s (v + t)")
    if found.taken_back:
        notes.append(f"{found.taken_back} values look alike and are not the same; longer segments were compared there")
    return notes
