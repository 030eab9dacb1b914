"""`bnfold insert`: read, find the places, measure, write, tell."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import UsageError, quoted

from . import page, render
from .data import file_of, image_options, opened
from .request import choose_one, target

if TYPE_CHECKING:
    from bnfold import InsertResult
    from bnfold.insert.sites import Left
    from bnfold.recalibrate.data import Data
    from bnfold.recalibrate.images import ImageOptions

# What is shown without -v: BNs of the table, reasons, names for each, notices.
ROWS, REASONS, NAMES, NOTICES = 12, 4, 3, 5


@dataclass(frozen=True)
class Request:
    """What the command line says, but for how results are shown; see `bnfold insert --help`."""

    model: str
    data: str | None
    output: str | None
    in_place: bool
    force: bool
    dry_run: bool
    mode: str
    where: str
    training_nodes: bool
    upgrade: bool
    batch_size: int
    samples: int | None
    seed: int
    only: Sequence[str]
    skip: Sequence[str]
    provider: str
    html: str | None

    @property
    def target(self) -> Path:
        """Where the result goes."""
        return target(self.model, self.output, self.in_place, "bn")

    @property
    def overwrite(self) -> bool:
        """Whether the output may exist."""
        return self.in_place or self.force


def run(request: Request, images: dict[str, str | None], *, json: bool, quiet: bool, verbose: bool) -> None:
    """Do what the command line asks for."""
    choose_one(("--quiet", quiet), ("--verbose", verbose))
    choose_one(("--in-place", request.in_place), ("--output", request.output is not None))
    if request.data is None and request.mode == "preserve":
        what = "to keep the function, what the layers put out has to be measured"
        raise UsageError(f"{what}; give --data, or --mode fresh, which changes the function")
    options = image_options(**images)

    # What the user's code prints is no part of the result.
    with render.progress(quiet=quiet, verbose=verbose), redirect_stdout(sys.stderr):
        import bnfold

        given = "" if request.data is None else file_of(request.data)
        page.demand(request.html, [request.target], [request.model, given])
        if not request.dry_run and os.path.exists(request.model):  # soon, rather than after minutes of work
            from bnfold.atomic import check_output, demand_apart

            check_output(request.target, request.overwrite, [])
            if request.data is not None and not request.in_place:
                demand_apart([request.target], [request.model, given])
        mode: Any = request.mode
        where: Any = request.where
        result = bnfold.insert(
            request.model, _opened(request, options), mode=mode, where=where, only=request.only, skip=request.skip,
            training_nodes=request.training_nodes, upgrade=request.upgrade, provider=request.provider,
        )  # fmt: skip
        network = page.drawn(request.model, request.html)
        files = [] if request.dry_run else result.save(request.target, overwrite=request.overwrite)
        names = {"input": request.model, "output": str(request.target), "written": [str(file) for file in files]}
        report = names | {"data": request.data} | result.to_dict()
        pages: list[Path] = []
        if request.html is not None and network is not None:
            from bnfold.page import for_insert

            pages = page.write(request.html, for_insert(report, network, page.digests(request.model, *files)))

    if json:
        render.as_json("insert", report | {"written": [str(file) for file in (*files, *pages)]})
    elif not quiet:
        _show(request, result, files, pages, verbose=verbose)


def _opened(request: Request, images: ImageOptions) -> Data | None:
    """What to measure on."""
    if request.data is None:
        return None
    return opened(
        request.model, request.data, images, batch_size=request.batch_size, samples=request.samples, seed=request.seed
    )


# -- how it looks -----------------------------------------------------------------------------------


def _show(
    request: Request, result: InsertResult, files: Sequence[Path], pages: Sequence[Path], *, verbose: bool
) -> None:
    """Print what came of it; `files` is empty if no model was written."""
    rows = [("read", render.file(Path(request.model)))]
    if request.data is not None:
        rows.append(("data", f"{result.samples} samples of {request.data}"))
    rows += [("mode", result.mode), ("BN", f"{len(result.sites)} put in")]
    if result.difference is not None:
        found = result.difference
        rows.append(("change", f"{found.worst:.2g} × rms of output {quoted(found.output)}, on {found.samples} samples"))
    rows += _left(result.left, verbose=verbose)
    shown = result.notices if verbose else result.notices[:NOTICES]
    rows += [("notice", notice) for notice in shown]
    rows += render.more(len(result.notices) - len(shown))
    if files:
        rows.append(("wrote", ", ".join(map(render.file, files))))
    else:
        exists = " (exists: that will take --force)" if not request.overwrite and request.target.exists() else ""
        rows.append(("dry run", f"nothing was written; it would be {request.target}{exists}"))
    render.show([*rows, *render.page(pages)])
    print()
    sites = result.sites if verbose else result.sites[:ROWS]
    render.table([
        ("behind", "channels", "bias", "before", "BatchNorm"),
        *((one.op, str(one.channels), one.bias or "none", quoted(one.activation or "nothing"), quoted(one.name))
          for one in sites),
    ])  # fmt: skip
    if len(result.sites) > len(sites):
        print(f"and {len(result.sites) - len(sites)} more; -v shows all")


def _left(left: Sequence[Left], *, verbose: bool) -> Iterator[render.Row]:
    """Linear nodes that got none: each with -v, else by reason."""
    if verbose:
        yield from (("none", f"{quoted(one.name)}: {one.sentence}") for one in left)
        return
    counts = Counter(one.reason for one in left).most_common()
    for reason, count in counts[:REASONS]:
        group = [one for one in left if one.reason == reason]
        names = ", ".join(quoted(one.name) for one in group[:NAMES])
        more = f" and {count - NAMES} more" if count > NAMES else ""
        example = "e.g. " if len({one.sentence for one in group}) > 1 else ""
        yield "none", f"behind {names}{more}: {example}{group[0].sentence}"
    yield from render.more(sum(count for _, count in counts[REASONS:]))
