"""`bnfold fold`: read, fold, prove, write, tell."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bnfold.errors import UsageError, quoted

from . import render
from .request import choose_one, target


def run(
    model: str,
    *,
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
    only: Sequence[str],
    skip: Sequence[str],
    json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Do what the command line asks for; see `bnfold fold --help`."""
    choose_one(("--quiet", quiet), ("--verbose", verbose))
    choose_one(("--in-place", in_place), ("--output", output is not None))
    if verify not in ("usual", "full"):
        raise UsageError(f"--verify is 'usual' or 'full', not {quoted(verify)}")
    choose_one(("--verify full", verify == "full"), ("--no-verify", no_verify))
    choose_one(("--require-verify", require_verify), ("--no-verify", no_verify))
    place = target(model, output, in_place, "folded")
    overwrite = in_place or force

    with render.progress(quiet=quiet, verbose=verbose):
        import bnfold
        from bnfold.fold.kept import read_kept

        chosen = read_kept(kept, "--kept")
        if not dry_run and os.path.exists(model):  # soon, rather than after minutes of work
            from bnfold.atomic import check_output

            check_output(place, overwrite, [])
        result = bnfold.fold(
            model, only=only, skip=skip, verify="full" if verify == "full" else not no_verify,
            require_verify=require_verify, keep_overridable=keep_overridable, merge=not no_merge,
            kept=chosen,
        )  # fmt: skip
        files = [] if dry_run else result.save(place, overwrite=overwrite)

    if json:
        names = {"input": model, "output": str(place), "written": [str(file) for file in files]}
        render.as_json(names | result.to_dict())
    elif not quiet:
        render.folded(result, Path(model), place, files, verbose=verbose, needs_force=not overwrite)
