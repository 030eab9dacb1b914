"""What a Python program calls: fold a model of any kind, get the same kind back with its account and its proof."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from bnfold.errors import ModelError, NotEquivalentError, UsageError, quoted
from bnfold.fold import Folding, Options, fold_model
from bnfold.fold.kept import Kept, read_kept
from bnfold.frontends import GiveBack, ModelResult, naming, open_model
from bnfold.model_file import LoadedModel
from bnfold.report import Entry, FoldReport

if TYPE_CHECKING:
    from bnfold.requantize import Requantization
    from bnfold.verify.comparison import Comparison
    from bnfold.verify.relation import RelationCheck
    from bnfold.verify.static import StaticProof

log = logging.getLogger("bnfold")


@dataclass(frozen=True)
class Verification:
    """How it is known that a fold changed nothing.

    Attributes:
        static: the static proof: every new tensor, recomputed in float64. It is always there.
        relation: the relation check: both models run, every value compared; None if it was not made.
        skipped: why it was not made, a sentence; '' if it was.
        comparison: what `bnfold.verify` says of the original and the result; None unless it was asked for ('full').
    """

    static: StaticProof
    relation: RelationCheck | None
    skipped: str = ""
    comparison: Comparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        relation = None
        if self.relation is not None:
            relation = asdict(self.relation) | {"passed": self.relation.passed}
        comparison = {} if self.comparison is None else {"comparison": self.comparison.to_dict()}
        return {"static": asdict(self.static), "relation": relation, "skipped": self.skipped, **comparison}


@dataclass(frozen=True)
class FoldResult(ModelResult):
    """A folded model.

    Attributes:
        report: what became of every BatchNormalization, and counts.
        verification: how it is known that nothing changed.
        requantization: what moved all the same, where rounding did because `requantize` asked for it; else None.
    """

    report: FoldReport
    verification: Verification
    _model: LoadedModel = field(repr=False)
    _give_back: GiveBack = field(repr=False)
    requantization: Requantization | None = None

    @property
    def folded(self) -> tuple[Entry, ...]:
        """The BatchNormalizations that are gone (or reduced to Add or Mul)."""
        return self.report.folded

    @property
    def kept(self) -> tuple[Entry, ...]:
        """The BatchNormalizations that stay, each with its reason."""
        return self.report.kept

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know besides, `save`'s own notices included."""
        return (*self.report.notices, *self._model.notices)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: the report, and `verification`."""
        return self.report.to_dict() | {
            "notices": list(self.notices),
            "verification": self.verification.to_dict(),
            "requantization": None if self.requantization is None else self.requantization.to_dict(),
        }


def fold(
    model: Any,
    *,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    verify: bool | Literal["full"] = True,
    require_verify: bool = False,
    keep_overridable: bool = False,
    merge: bool = True,
    kept: Kept = "auto",
    norms: bool = False,
    requantize: Any = None,
) -> FoldResult:
    """Remove BatchNormalization from a model without changing what it computes.

    >>> result = fold("sample_models/digits_cnn.onnx", verify=False)
    >>> len(result.folded), len(result.kept), result.report.nodes_before, result.report.nodes_after
    (7, 0, 25, 18)

    Args:
        model: a path, onnx.ModelProto, onnx_graphsurgeon.Graph, onnx_ir.Model or torch.onnx.ONNXProgram;
            it is not changed.
        only: patterns (`*`, `?`, `[...]`) of node names; if given, nothing else is folded.
        skip: patterns of node names that stay.
        verify: whether both models are run on ONNX Runtime and compared, beside the static proof. Where it can't run
            them, `verification.skipped` says why. 'full': the result is judged as `bnfold.verify` does, too.
        require_verify: whether that is an error.
        keep_overridable: whether initializers that are graph inputs too stay so; by default they are frozen.
        merge: whether parallel branches, and linear nodes in a row, become one node where that is no more work.
        kept: what becomes of a BN that can't go whole. 'reduce': where its scale (its shift) can go, an Add (a Mul) is
            left of it; 'keep': it stays a BN; 'auto': it is reduced, except where ONNX Runtime would be slower with the
            Add, between the Convs of images; 'affine': reduced or written as a Mul and an Add, so that no BN is left
            but those whose statistics or parameters are no constants.
        norms: whether LayerNormalization, RMSNormalization, GroupNormalization and InstanceNormalization give their
            scale and bias away, too: they become 1 and 0 where what reads them can take both.
        requantize: data (whatever `bnfold.recalibrate.data.open_data` takes) to measure the steps of rounding on that
            is in the way of BN: it moves behind BN then (`bnfold.requantize`). This changes what is rounded;
            `requantization` says by how much, and `verification` is about all the rest.

    Raises:
        UsageError: no model, arguments that contradict each other, or data that don't fit the model.
        ModelError: the model isn't sound, its data can't be read, or it overflows, so that no check is possible; or
            it can't be run on the data.
        NotEquivalentError: a check failed, or could not be made though it is required.
    """
    read_kept(kept, "kept")
    if require_verify and not verify:
        raise UsageError("the relation check can't be both required and left out; drop one of the two")
    only, skip = ((patterns,) if isinstance(patterns, str) else tuple(patterns) for patterns in (only, skip))
    options = Options(only, skip, keep_overridable, merge, kept, norms)
    return fold_with(model, options, verify, require_verify, requantize)


def fold_with(
    model: Any, options: Options, verify: bool | Literal["full"] = True, require_verify: bool = False,
    requantize: Any = None,
) -> FoldResult:  # fmt: skip
    """`fold`, with options as one."""
    original, give_back = open_model(model)
    requantization = None
    with naming(original.path):
        log.info("folding")
        if requantize is None:
            folding, verification = _fold(original, options, verify)
        else:
            folding, verification, requantization = _fold_rounded(original, options, verify, requantize)
        if require_verify and verification.skipped and _has_changed(folding):
            what = f"the relation check, which is required, can't be made: {verification.skipped}"
            raise NotEquivalentError(what)
        names = (entry.name for entry in folding.report.entries if entry.op.endswith("Normalization"))
        unmatched = options.unmatched(names, "norm" if options.norms else "BatchNormalization")
    told = (*unmatched, *_hints(folding.report, requantize is not None))
    report = replace(folding.report, notices=(*folding.report.notices, *told))
    return FoldResult(report, verification, folding.model, give_back, requantization)


def _hints(report: FoldReport, requantized: bool) -> Iterator[str]:
    """What the user could do besides."""
    behind = sum(entry.reason == "quantised-values" for entry in report.kept)
    if behind and not requantized:
        them = "BN is" if behind == 1 else "BN are"
        yield f"{behind} {them} behind rounded activations: --requantize DATA moves the rounding, which changes it"


def _fold(original: LoadedModel, options: Options, verify: bool | Literal["full"]) -> tuple[Folding, Verification]:
    """Fold and check."""
    folding = fold_model(original, options)
    if not verify:
        return folding, Verification(folding.proof, None, "it was not asked for")
    folding, verification = _checked(original, options, folding)
    if verify == "full" and _has_changed(folding):
        verification = replace(verification, comparison=_compared(original, folding))
    return folding, verification


def _fold_rounded(
    original: LoadedModel, options: Options, verify: bool | Literal["full"], given: Any
) -> tuple[Folding, Verification, Requantization | None]:
    """Fold and check with the rounding that is in the way taken out, and put it back behind BN."""
    from bnfold.recalibrate.data import open_data
    from bnfold.requantize import SAMPLES_AT_A_TIME, finish, loosen
    from bnfold.verify.inputs import ports

    data = open_data(given, ports(original.proto)[0], batch_size=SAMPLES_AT_A_TIME)
    loose = loosen(original, options, data)
    folding, verification = _fold(loose.model, options, verify)
    requantization = None
    if loose.pairs and folding.report.after.per_channel_ops >= loose.plain.after.per_channel_ops:
        folding, verification = _fold(original, options, verify)  # what was gained was lost to a check
    elif loose.pairs:
        log.info("measuring steps")
        folding, requantization = finish(original, folding, loose, data)
    notices = (*folding.report.notices, *loose.notices, *data.notices)
    return replace(folding, report=replace(folding.report, notices=notices)), verification, requantization


def _checked(original: LoadedModel, options: Options, folding: Folding) -> tuple[Folding, Verification]:
    """Check; fold once more, without shifts, if a value turns out to be too small for the shift that it got."""
    verification = _verify(original, folding)
    found = verification.relation
    if found is None or found.passed:
        return folding, verification
    log.info("folding again, without shifts of values that several read")
    careful = fold_model(original, replace(options, largest_shift=0.0))
    verification = _verify(original, careful)
    second = verification.relation
    if careful.report.entries == folding.report.entries or (second is not None and not second.passed):
        if found.overflow:
            what = "is not finite in this model itself, on random inputs, so that nothing behind it can be checked; "
            what += "look for weights that are too large (--no-verify folds it all the same)"
            raise ModelError(what, where=f"value {quoted(found.overflow)}")
        raise NotEquivalentError(
            f"is {found.worst:.3g} × the model's own rounding noise off (limit {found.limit:g}); please report this",
            where=f"value {quoted(found.worst_name)}",
        )
    notice = (
        f"value {quoted(found.worst_name)} is much smaller than the statistics of BN say, and lost digits at first "
        f"({found.worst:.3g} × the noise): no value that several read is shifted now"
    )
    report = replace(careful.report, notices=(*careful.report.notices, notice))
    return replace(careful, report=report), verification


def _verify(original: LoadedModel, folding: Folding) -> Verification:
    if not _has_changed(folding):
        return Verification(folding.proof, None, "nothing was changed")
    log.info("checking, with ONNX Runtime")
    from bnfold.verify import relation, runtime

    try:
        return Verification(folding.proof, relation.check(original, folding.model, folding.plans[0]))
    except runtime.CannotRun as why:
        return Verification(folding.proof, None, str(why))


def _compared(original: LoadedModel, folding: Folding) -> Comparison:
    """What `bnfold.verify` says; a difference is an error."""
    from bnfold.verify.compare import Settings, compare_models

    found = compare_models(original, folding.model, None, Settings())
    if found.verdict == "different":
        raise NotEquivalentError(f"{found.reason}; please report this")
    return found


def _has_changed(folding: Folding) -> bool:
    return bool(folding.rewrite.rewritten) or folding.report.nodes_before != folding.report.nodes_after
