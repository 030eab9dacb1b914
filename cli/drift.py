"""How a recalibration looks: what was measured on, what it brought, and how far each BN had drifted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import quoted

from . import render

if TYPE_CHECKING:
    from bnfold import RecalibrationResult
    from bnfold.recalibrate.drift import Drift

    from .judgement import Judgement
    from .recalibrate import Request

# What is shown without -v: BNs of the table, notices, BNs that could not be measured.
ROWS, NOTICES, UNMEASURED = 12, 5, 3

ADVICE = (
    "use the preprocessing and the augmentation of training: plain images cost a healthy CIFAR-10 resnet20 3.5 points"
)


def show(
    result: RecalibrationResult,
    request: Request,
    judgements: Sequence[Judgement],
    notices: Sequence[str],
    files: Sequence[Path],
    *,
    verbose: bool,
    worse: bool,
) -> None:
    """Print what came of it; `files` is empty if nothing was written."""
    rows = [
        ("read", render.file(Path(request.model))),
        ("data", f"{result.samples} samples of {request.data}"),
        ("method", result.method),
        ("BN", f"{len(result.drift)} measured" + (f", {len(result.unmeasured)} not" if result.unmeasured else "")),
    ]
    left = result.unmeasured if verbose else result.unmeasured[:UNMEASURED]
    rows += [("not", f"{quoted(one.name)}: {one.why}") for one in left]
    rows += render.more(len(result.unmeasured) - len(left))
    rows += [(one.label, one.shown) for one in judgements]
    rows.append(("advice", ADVICE))
    shown = notices if verbose else notices[:NOTICES]
    rows += [("notice", notice) for notice in shown]
    rows += render.more(len(notices) - len(shown))
    rows += _outcome(request, files, worse=worse)
    render.show(rows)
    print()
    worst = sorted(result.drift, key=lambda one: -one.score if one.score == one.score else float("-inf"))
    render.table(_drift(worst if verbose else worst[:ROWS]))
    if not verbose and len(worst) > ROWS:
        print(f"and {len(worst) - ROWS} more, with less drift; -v shows all")


def show_restored(request: Request, count: int, notices: Sequence[str], files: Sequence[Path]) -> None:
    """Print what became of a model that got its old statistics back."""
    rows = [("read", render.file(Path(request.model)))]
    rows.append(("BN", f"{count} have their statistics of {request.restore} again"))
    rows += [("notice", notice) for notice in notices]
    render.show([*rows, *_outcome(request, files, worse=False)])


def _outcome(request: Request, files: Sequence[Path], *, worse: bool) -> Iterator[render.Row]:
    """What was written; of a model, whether or not."""
    if worse:
        yield "result", "the model was not written: it is no better"
    elif request.dry_run:
        exists = " (exists: that will take --force)" if not request.overwrite and request.target.exists() else ""
        yield "dry run", f"no model was written; it would be {request.target}{exists}"
    if files:
        yield "wrote", ", ".join(map(render.file, files))


def _drift(norms: Sequence[Drift]) -> Iterator[tuple[str, ...]]:
    """One line a BN; names come last and whole, since --only and --skip want them."""
    yield "score", "|Δmean|/σ", "up to", "σ new/old", "± σ", "channels", "dead", "BatchNorm"
    for norm in norms:
        name = f"{quoted(norm.name)} in {quoted(norm.scope)}" if norm.scope else quoted(norm.name)
        yield (
            f"{norm.score:.3g}", f"{norm.shift.mean():.2g}", f"{norm.shift.max():.2g}",
            f"{norm.ratio.min():.2g} to {norm.ratio.max():.2g}",
            ("?" if norm.error is None else f"{norm.error:.2g}") + ("!" if norm.rough or norm.unsettled else ""),
            str(norm.channels), str(norm.dead or ""), name,
        )  # fmt: skip
