"""`bnfold fold`: read, fold, prove, write, tell."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import UsageError, quoted

from . import batch, many, page, render
from .data import file_of, image_options, opened
from .judgement import judged
from .request import choose_one, demand_with, target

if TYPE_CHECKING:
    from bnfold import FoldResult
    from bnfold.recalibrate.data import Data


@dataclass(frozen=True)
class Request:
    """What the command line says, but for how results are shown; see `bnfold fold --help`."""

    models: Sequence[str]
    jobs: int | None
    output: str | None
    in_place: bool
    force: bool
    dry_run: bool
    verify: str
    no_verify: bool
    require_verify: bool
    keep_overridable: bool
    no_merge: bool
    kept: str
    norms: bool
    only: Sequence[str]
    skip: Sequence[str]
    requantize: str | None
    labels: str | None
    batch_size: int | None
    samples: int | None
    seed: int | None
    plot: str | None
    html: str | None

    @property
    def model(self) -> str:
        """The only one."""
        return self.models[0]

    @property
    def overwrite(self) -> bool:
        """Whether the output may exist."""
        return self.in_place or self.force

    def typed(self) -> list[str]:
        """The options of a fold as they are typed, but for what can't be had for many models."""
        return many.words(
            in_place=self.in_place, force=self.force, dry_run=self.dry_run, verify=self.verify,
            no_verify=self.no_verify, require_verify=self.require_verify, keep_overridable=self.keep_overridable,
            no_merge=self.no_merge, kept=self.kept, norms=self.norms, only=self.only, skip=self.skip,
        )  # fmt: skip


def run(request: Request, images: dict[str, str | None], *, json: bool, quiet: bool, verbose: bool) -> int:
    """Do what the command line asks for; returns the exit code."""
    choose_one(("--quiet", quiet), ("--verbose", verbose))
    _demand_sense(request, images)
    if batch.is_many(request.models, request.output, request.jobs):
        choose_one(
            ("several models", True), ("--verbose", verbose), ("--plot", request.plot is not None),
            ("--html", request.html is not None), ("--requantize", request.requantize is not None),
        )  # fmt: skip
        return batch.fold(
            request.models, request.typed(), output=request.output, in_place=request.in_place,
            dry_run=request.dry_run, jobs=request.jobs or 1, json=json, quiet=quiet,
        )  # fmt: skip
    place = target(request.model, request.output, request.in_place, "folded")

    with render.progress(quiet=quiet, verbose=verbose):
        _demand_places(request, place)
        with redirect_stdout(sys.stderr):  # what the user's code prints is no part of the result
            data = _data(request, images)
            result = _folded(request, data)
            judgements = judged(request.model, result, None if data is None else data.held_out)
        network = page.drawn(request.model, request.html, request.plot)
        files = [] if request.dry_run else result.save(place, overwrite=request.overwrite)
        names = {"input": request.model, "output": str(place), "written": [str(file) for file in files]}
        names |= {} if request.requantize is None else {"data": request.requantize}
        report = names | {key: value for one in judgements for key, value in one.to_dict().items()} | result.to_dict()
        pages: list[Path] = []
        if request.plot is not None and network is not None:
            pages += page.write_plot(request.plot, network, report["entries"], f"fold {request.model}")
        if request.html is not None and network is not None:
            from bnfold.page import for_fold

            pages += page.write(request.html, for_fold(report, network, page.digests(request.model, *files)))

    if json:
        render.as_json("fold", report | {"written": [str(file) for file in (*files, *pages)]})
    elif not quiet:
        render.folded(
            result, Path(request.model), place, files, pages=pages, judgements=judgements, verbose=verbose,
            needs_force=not request.overwrite, norms=request.norms,
        )  # fmt: skip
    return 0


def _demand_sense(request: Request, images: dict[str, str | None]) -> None:
    """Raises: UsageError if options contradict each other."""
    from bnfold.fold.kept import read_kept

    read_kept(request.kept, "--kept")
    choose_one(("--in-place", request.in_place), ("--output", request.output is not None))
    if request.verify not in ("usual", "full"):
        raise UsageError(f"--verify is 'usual' or 'full', not {quoted(request.verify)}")
    choose_one(("--verify full", request.verify == "full"), ("--no-verify", request.no_verify))
    choose_one(("--require-verify", request.require_verify), ("--no-verify", request.no_verify))
    others = {"labels": request.labels, "batch-size": request.batch_size, "samples": request.samples,
              "seed": request.seed}  # fmt: skip
    demand_with("--requantize", request.requantize is not None, {**others, **images})


def _demand_places(request: Request, place: Path) -> None:
    """Soon, rather than after minutes of work: can the files be written?"""
    read = [request.model, *([file_of(request.requantize)] if request.requantize else [])]
    page.demand(request.html, [place, *([request.plot] if request.plot else [])], read)
    page.demand_plot(request.plot, [place], read)
    if not request.dry_run and os.path.exists(request.model):
        from bnfold.atomic import check_output, demand_apart

        check_output(place, request.overwrite, [])
        if not request.in_place:
            demand_apart([place], read[1:])


def _data(request: Request, images: dict[str, str | None]) -> Data | None:
    """What steps are to be measured on, if any are."""
    if request.requantize is None:
        return None
    from bnfold.requantize import SAMPLES_AT_A_TIME

    return opened(
        request.model, request.requantize, image_options(**images), batch_size=request.batch_size or SAMPLES_AT_A_TIME,
        samples=request.samples, seed=request.seed or 0, labels=request.labels,
    )  # fmt: skip


def _folded(request: Request, data: Data | None) -> FoldResult:
    import bnfold

    kept: Any = request.kept
    verify: Any = "full" if request.verify == "full" else not request.no_verify
    return bnfold.fold(
        request.model, only=request.only, skip=request.skip, verify=verify, require_verify=request.require_verify,
        keep_overridable=request.keep_overridable, merge=not request.no_merge, kept=kept,
        norms=request.norms, requantize=data,
    )  # fmt: skip
