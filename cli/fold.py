"""`bnfold fold`: read, fold, prove, write, tell."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bnfold.errors import UsageError, quoted

from . import batch, many, page, render
from .request import choose_one, target


def run(
    models: Sequence[str],
    *,
    jobs: int | None,
    output: str | None,
    in_place: bool,
    force: bool,
    dry_run: bool,
    verify: str,
    no_verify: bool,
    require_verify: bool,
    keep_overridable: bool,
    no_merge: bool,
    kept: str,
    norms: bool,
    only: Sequence[str],
    skip: Sequence[str],
    plot: str | None,
    html: str | None,
    json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Do what the command line asks for (see `bnfold fold --help`); returns the exit code."""
    choose_one(("--quiet", quiet), ("--verbose", verbose))
    choose_one(("--in-place", in_place), ("--output", output is not None))
    if verify not in ("usual", "full"):
        raise UsageError(f"--verify is 'usual' or 'full', not {quoted(verify)}")
    from bnfold.fold.kept import read_kept

    chosen = read_kept(kept, "--kept")
    choose_one(("--verify full", verify == "full"), ("--no-verify", no_verify))
    choose_one(("--require-verify", require_verify), ("--no-verify", no_verify))
    if batch.is_many(models, output, jobs):
        choose_one(
            ("several models", True), ("--verbose", verbose), ("--plot", plot is not None), ("--html", html is not None)
        )
        options = many.words(
            in_place=in_place, force=force, dry_run=dry_run, verify=verify, no_verify=no_verify,
            require_verify=require_verify, keep_overridable=keep_overridable, no_merge=no_merge, kept=kept, norms=norms,
            only=only, skip=skip,
        )  # fmt: skip
        return batch.fold(
            models, options, output=output, in_place=in_place, dry_run=dry_run, jobs=jobs or 1, json=json, quiet=quiet
        )
    model = models[0]
    place = target(model, output, in_place, "folded")
    overwrite = in_place or force

    with render.progress(quiet=quiet, verbose=verbose):
        import bnfold

        page.demand(html, [place, *([plot] if plot else [])], [model])
        page.demand_plot(plot, [place], [model])
        if not dry_run and os.path.exists(model):  # soon, rather than after minutes of work
            from bnfold.atomic import check_output

            check_output(place, overwrite, [])
        result = bnfold.fold(
            model, only=only, skip=skip, verify="full" if verify == "full" else not no_verify,
            require_verify=require_verify, keep_overridable=keep_overridable, merge=not no_merge,
            kept=chosen, norms=norms,
        )  # fmt: skip
        network = page.drawn(model, html, plot)
        files = [] if dry_run else result.save(place, overwrite=overwrite)
        names = {"input": model, "output": str(place), "written": [str(file) for file in files]}
        pages: list[Path] = []
        if plot is not None and network is not None:
            pages += page.write_plot(plot, network, result.report.to_dict()["entries"], f"fold {model}")
        if html is not None and network is not None:
            from bnfold.page import for_fold

            pages += page.write(html, for_fold(names | result.to_dict(), network, page.digests(model, *files)))

    if json:
        written = {"written": [str(file) for file in (*files, *pages)]}
        render.as_json("fold", names | written | result.to_dict())
    elif not quiet:
        render.folded(
            result, Path(model), place, files, pages=pages, verbose=verbose, needs_force=not overwrite, norms=norms
        )
    return 0
