"""`bnfold recalibrate`: read, measure, evaluate, write, tell."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import BnfoldError, UsageError

from . import drift, page, render
from .data import file_of, image_options, opened
from .judgement import judged, named
from .request import choose_one, target

if TYPE_CHECKING:
    from bnfold import RecalibrationResult
    from bnfold.recalibrate.data import Data
    from bnfold.recalibrate.images import ImageOptions

MEGABYTE = 10**6


@dataclass(frozen=True)
class Request:
    """What the command line says, but for how results are shown; see `bnfold recalibrate --help`."""

    model: str
    data: str | None
    output: str | None
    in_place: bool
    force: bool
    dry_run: bool
    method: str
    source_weight: float | None
    unbiased: bool
    freeze: bool
    batch_size: int
    samples: int | None
    seed: int
    only: Sequence[str]
    skip: Sequence[str]
    provider: str
    cache_size: int | None
    checkpoint: str | None
    engine: str
    address: str | None
    labels: str | None
    test: str | None
    metric: str | None
    plot: str | None
    html: str | None
    only_if_better: bool
    undo: str | None
    restore: str | None

    @property
    def target(self) -> Path:
        """Where the result goes."""
        verb = "recalibrated" if self.restore is None else "restored"
        return target(self.model, self.output, self.in_place, verb)

    @property
    def overwrite(self) -> bool:
        """Whether the output may exist."""
        return self.in_place or self.force


def run(request: Request, images: dict[str, str | None], *, json: bool, quiet: bool, verbose: bool) -> None:
    """Do what the command line asks for."""
    choose_one(("--quiet", quiet), ("--verbose", verbose))
    _demand_sense(request)
    if request.restore is not None:
        _restore(request, json=json, quiet=quiet, verbose=verbose)
        return
    options = image_options(**images)

    # What the user's code prints is no part of the result.
    with render.progress(quiet=quiet, verbose=verbose), redirect_stdout(sys.stderr):
        _demand_places(request)
        data, held_out = _opened(request, options)
        result = _measured(request, data)
        judgements = judged(request.model, result, held_out, request.metric)
        worse = request.only_if_better and not all(one.better for one in judgements)
        pictures = _plotted(request, result)  # first: nothing is written if it fails
        network = page.drawn(request.model, request.html)
        files = ([] if request.dry_run or worse else _written(request, result)) + pictures
        if worse:
            result.drop_checkpoint()
        notices = list(dict.fromkeys((*result.notices, *(held_out.notices if held_out is not None else ()))))
        names = {"input": request.model, "output": str(request.target), "written": [str(file) for file in files]}
        judgement = {key: value for one in judgements for key, value in one.to_dict().items()}
        report = names | {"data": request.data} | judgement | result.to_dict() | {"notices": notices}
        if request.html is not None and network is not None:
            from bnfold.page import for_recalibrate

            files += page.write(request.html, for_recalibrate(report, network, page.digests(request.model, *files)))

    if json:
        render.as_json("recalibrate", report | {"written": [str(file) for file in files]})
    elif not quiet:
        drift.show(result, request, judgements, notices, files, verbose=verbose, worse=worse)


def _demand_sense(request: Request) -> None:
    """Raises: UsageError if options contradict each other."""
    choose_one(("--in-place", request.in_place), ("--output", request.output is not None))
    if request.restore is not None:
        if request.data is not None or request.undo is not None or request.checkpoint is not None:
            what = "leave --data, --undo and --checkpoint out"
            raise UsageError(f"--restore puts old statistics back and measures none; {what}")
        return
    if request.data is None:
        raise UsageError("what to measure on is missing; give --data")
    if request.source_weight is not None and request.method != "blend":
        raise UsageError("--source-weight is of --method blend; drop one of the two")
    if request.cache_size is not None and request.method == "pooled":
        raise UsageError("--cache-size is of --method exact and blend; pooled keeps nothing")
    if request.test is not None and request.labels is None:
        raise UsageError("--test needs --labels, the name of the array that says what is right")
    if request.only_if_better and request.labels is None and request.metric is None:
        raise UsageError("--only-if-better needs --labels or --metric, to know what is better")
    if request.metric is not None:
        named(request.metric)
    if request.address is not None and request.engine != "ray":
        raise UsageError("--address is of --engine ray; drop it, or choose that")
    _demand_different_files(request)


def _demand_different_files(request: Request) -> None:
    """Raises: UsageError if one file would be two things."""
    taken = {request.target.absolute(): "the output itself", Path(request.model).absolute(): "the model itself"}
    for option, file in {"--undo": request.undo, "--checkpoint": request.checkpoint, "--plot": request.plot,
             "--html": request.html}.items():  # fmt: skip
        if file is not None and (what := taken.setdefault(Path(file).absolute(), option)) != option:
            raise UsageError(f"{option} is {what}; choose another name", file=file)


def _demand_places(request: Request) -> None:
    """Soon, rather than after minutes of work: can the files be written?"""
    from importlib.util import find_spec

    from bnfold.atomic import check_output, demand_apart
    from bnfold.model_file import data_files

    if request.plot is not None:
        if find_spec("matplotlib") is None:
            raise UsageError("--plot needs matplotlib; pip install 'bnfold[plot]'")
        check_output(Path(request.plot), True, [])
    if not request.dry_run and os.path.exists(request.model):
        check_output(request.target, request.overwrite, [])
        if request.undo is not None:
            check_output(Path(request.undo), request.force, [])
    inputs = [file_of(given) for given in (request.data, request.test, request.metric, request.restore) if given]
    others = [name for name in (request.undo, request.plot, request.html) if name is not None]
    page.demand(request.html, [], [request.model, *inputs])
    demand_apart(others, [request.model, *inputs, *data_files([request.model])])
    if not request.in_place:
        demand_apart([request.target, *others], [request.model, *inputs])


def _opened(request: Request, images: ImageOptions) -> tuple[Data, Data | None]:
    """What to measure on, and what to evaluate on, if anything."""
    assert request.data is not None
    data = opened(
        request.model, request.data, images, batch_size=request.batch_size, samples=request.samples,
        seed=request.seed, labels=request.labels if request.test is None else None,
    )  # fmt: skip
    if request.test is None or request.labels is None:
        return data, data.held_out
    from bnfold.frontends import naming
    from bnfold.recalibrate.data import open_labelled

    with naming(Path(request.model)):
        labelled = open_labelled(
            request.test, data.inputs, request.labels, batch_size=request.batch_size, images=images
        )
    return data, labelled


def _measured(request: Request, data: Data) -> RecalibrationResult:
    import bnfold

    given: dict[str, Any] = {} if request.source_weight is None else {"source_weight": request.source_weight}
    if request.cache_size is not None:
        given["cache_size"] = request.cache_size * MEGABYTE
    method: Any = request.method
    engine: Any = request.engine
    return bnfold.recalibrate(
        request.model, data, method=method, **given, unbiased=request.unbiased, freeze=request.freeze,
        only=request.only, skip=request.skip, provider=request.provider, checkpoint=request.checkpoint,
        engine=engine, address=request.address,
    )  # fmt: skip


def _plotted(request: Request, result: RecalibrationResult) -> list[Path]:
    if request.plot is None:
        return []
    from bnfold.recalibrate.plot import plot

    plot(result.drift, request.plot, os.path.basename(request.model))
    return [Path(request.plot)]


def _written(request: Request, result: RecalibrationResult) -> list[Path]:
    """The files written; the way back first, so that the old statistics are never lost."""
    if request.undo is None:
        return result.save(request.target, overwrite=request.overwrite)
    from bnfold.recalibrate.undo import keep_old

    undo = Path(request.undo)
    new = not os.path.lexists(undo)
    keep_old(result.drift, undo, overwrite=request.force)
    try:
        return [*result.save(request.target, overwrite=request.overwrite), undo]
    except BnfoldError:
        if new:  # it leads back from where nobody went
            undo.unlink()
        raise


def _restore(request: Request, *, json: bool, quiet: bool, verbose: bool) -> None:
    with render.progress(quiet=quiet, verbose=verbose):
        _demand_places(request)
        from bnfold.model_file import save
        from bnfold.recalibrate.undo import put_back

        assert request.restore is not None
        model, count = put_back(request.model, request.restore)
        files = [] if request.dry_run else save(model, request.target, overwrite=request.overwrite)
    if json:
        names = {"input": request.model, "output": str(request.target), "written": [str(file) for file in files]}
        render.as_json("restore", {**names, "restored": count, "notices": list(model.notices)})
    elif not quiet:
        drift.show_restored(request, count, model.notices, files)
