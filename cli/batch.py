"""`bnfold fold` and `bnfold inspect` with many models: where each goes, a line for each, the sum.

All that can be known to be wrong with the command itself is told before any work.  After that a model that can't be
done is told and left out, and the others go on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from bnfold.errors import OutputError, UsageError, quoted

from . import many, render
from .request import target

# Widths of the first columns.
BN, KNOWN = 14, 16  # 'BN 133 → 130', 'a fold removes'

# What tells names apart on file systems that usually take 'A' and 'a' for one.
_FOLDS_CASE = os.name == "nt" or sys.platform == "darwin"


def is_many(models: Sequence[str], output: str | None, jobs: int | None) -> bool:
    """Whether OUTPUT is a folder and models get a line each: of several, with --jobs, or if OUTPUT ends in a slash."""
    return len(models) > 1 or jobs is not None or (output or "").endswith(("/", os.sep))


def fold(
    models: Sequence[str], options: Sequence[str], *, output: str | None, in_place: bool, dry_run: bool, jobs: int,
    json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Fold models; the highest of their exit codes."""
    models = many.models(models)
    targets = _targets(models, output, in_place)
    folder = None if output is None or dry_run else Path(output)
    made = folder is not None and _make(folder)
    places = [[f"--output={place}"] if output is not None else [] for place in targets]
    runs = [(model, [*options, *place]) for model, place in zip(models, places, strict=True)]
    results, told = [], _Told(json, quiet)
    try:
        with closing(many.outcomes("fold", runs, jobs)) as outcomes:
            for model, place, outcome in zip(models, targets, outcomes, strict=True):
                told.row(model, outcome, lambda data: _folded(data, str(place)))  # noqa: B023 (called at once)
                results.append((model, outcome))
    finally:
        if made and folder is not None and not os.listdir(folder):
            folder.rmdir()
    return told.end("fold", results, _fold_sum(results, dry_run))


def inspect(models: Sequence[str], options: Sequence[str], *, check: bool, jobs: int, json: bool) -> int:
    """Inspect models; the highest of their exit codes."""
    models = many.models(models)
    results, told = [], _Told(json, quiet=False)
    with closing(many.outcomes("inspect", [(model, options) for model in models], jobs)) as outcomes:
        for model, outcome in zip(models, outcomes, strict=True):
            told.row(model, outcome, lambda data: _inspected(data, check))
            results.append((model, outcome))
    return told.end("inspect", results, _inspect_sum(results))


# -- where to ---------------------------------------------------------------------------------------


def _targets(models: Sequence[str], output: str | None, in_place: bool) -> list[Path]:
    """Where each goes: into the folder under its own name, or as a single model would.

    Raises: UsageError if two would go to one place, or one over another model.
    """
    if output is None:
        targets = [target(model, None, in_place, "folded") for model in models]
    else:
        targets = [target(model, os.path.join(output, os.path.basename(model)), False, "folded") for model in models]
    taken: dict[str, str] = {}
    for model, place in zip(models, targets, strict=True):
        if (other := taken.setdefault(_same(place), model)) != model:
            what = f"{quoted(other)} and {quoted(model)} would both be written there; fold them by two commands"
            raise UsageError(what, file=place)
    read = {_same(Path(model)) for model in models}
    if not in_place and (over := next((place for place in targets if _same(place) in read), None)):
        raise UsageError("is one of the models, and would be replaced; choose another folder", file=over)
    return targets


def _same(path: Path) -> str:
    name = os.path.join(os.path.realpath(path.parent), path.name)
    return name.casefold() if _FOLDS_CASE else name


def _make(folder: Path) -> bool:
    """Make the folder, if it isn't there; whether it was made.

    Raises: OutputError.
    """
    if folder.is_dir():
        return False
    if os.path.lexists(folder):
        raise OutputError("is no folder; -o names one if there are several models", file=folder)
    try:
        folder.mkdir()
    except FileNotFoundError:
        raise OutputError(f"there is no folder {quoted(folder.parent)}; create it first", file=folder) from None
    except OSError as error:
        raise OutputError(f"can't be made: {error.strerror or error}", file=folder) from error
    return True


# -- what is told -----------------------------------------------------------------------------------

Results = Sequence[tuple[str, many.Outcome]]


class _Told:
    """What is shown: rows as they come, or all in one at the end, as JSON."""

    def __init__(self, json: bool, quiet: bool) -> None:
        self._json = json
        self._rows = not json and not quiet

    def row(self, model: str, outcome: many.Outcome, shown: Callable[[dict[str, Any]], str]) -> None:
        """One model; what went wrong goes to stderr, as it does of a single one."""
        if outcome.data is None and not self._json:
            print(f"bnfold: {render.clean(_named(model, outcome.error))}", file=sys.stderr, flush=True)
        elif self._rows and outcome.data is not None:
            print(render.clean(shown(outcome.data)), flush=True)

    def end(self, verb: str, results: Results, shown: Iterator[str]) -> int:
        """The sum, and the exit code."""
        code = max(outcome.code for _, outcome in results)
        if self._json:
            models = [
                {"input": model, "exit_code": outcome.code, "error": outcome.error or None, "result": outcome.data}
                for model, outcome in results
            ]
            render.as_json(f"{verb}-many", {"models": models, "exit_code": code})
        elif self._rows:
            print("; ".join(shown))
        return code


def _named(model: str, error: str) -> str:
    """An error, which names its file as a rule."""
    return error if error.startswith(model) else f"{model}: {error}"


def _folded(data: dict[str, Any], place: str) -> str:
    relation = data["verification"]["relation"]
    known = f"{relation['worst']:.2g} of {relation['limit']:g}" if relation else "not checked"
    known = known if _is_changed(data) else "unchanged"
    what = f"BN {_change(data['batch_norms'])}"
    if not data["batch_norms"]["before"] and _is_changed(data):  # BN that the exporter wrote as Mul and Add
        what = f"ops {_change(data['per_channel_ops'])}"
    return f"{what:<{BN}}{known:<{KNOWN}}{data['input']} → {place}"


def _is_changed(data: dict[str, Any]) -> bool:
    return bool(data["verification"]["static"]["tensors"]) or data["nodes"]["before"] != data["nodes"]["after"]


def _inspected(data: dict[str, Any], check: bool) -> str:
    found = f"{'a fold removes' if _has_removable(data) else 'fine':<{KNOWN}}" if check else ""
    return f"BN {_change(data['fold']['batch_norms']):<{BN - 3}}{found}{data['model']['file']}"


def _has_removable(data: dict[str, Any]) -> bool:
    norms = data["fold"]["batch_norms"]
    return bool(norms["after"] < norms["before"])


def _change(norms: dict[str, int]) -> str:
    return f"{norms['before']} → {norms['after']}" if norms["before"] else "none"


def _fold_sum(results: Results, dry_run: bool) -> Iterator[str]:
    done = [outcome.data for _, outcome in results if outcome.data is not None]
    yield f"{_models(results)}: {sum(map(_is_changed, done))} folded"
    yield from _rest(results, sum(not _is_changed(data) for data in done), "unchanged")
    yield f"BN {_sum(data['batch_norms'] for data in done)}"
    if dry_run:
        yield "dry run: nothing was written"


def _inspect_sum(results: Results) -> Iterator[str]:
    done = [outcome.data for _, outcome in results if outcome.data is not None]
    yield _models(results)
    yield from _rest(results, sum(map(_has_removable, done)), "with BN that a fold removes")
    yield f"BN {_sum(data['fold']['batch_norms'] for data in done)}"


def _rest(results: Results, count: int, what: str) -> Iterator[str]:
    if count:
        yield f"{count} {what}"
    if failed := sum(outcome.data is None for _, outcome in results):
        yield f"{failed} failed"


def _models(results: Results) -> str:
    return f"{len(results)} model" + ("s" if len(results) != 1 else "")


def _sum(norms: Iterator[dict[str, int]]) -> str:
    counts = list(norms)
    return f"{sum(each['before'] for each in counts)} → {sum(each['after'] for each in counts)}"
