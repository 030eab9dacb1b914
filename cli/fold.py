"""`bnfold fold`: read, fold, prove, write, tell."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bnfold.errors import UsageError, quoted

from . import render


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
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other; choose one")
    if in_place and output is not None:
        raise UsageError("--in-place and --output contradict each other; choose one")
    if verify not in ("usual", "full"):
        raise UsageError(f"--verify is 'usual' or 'full', not {quoted(verify)}")
    if kept not in ("reduce", "keep"):
        raise UsageError(f"--kept is 'reduce' or 'keep', not {quoted(kept)}")
    if no_verify and verify == "full":
        raise UsageError("--verify full and --no-verify contradict each other; choose one")
    if require_verify and no_verify:
        raise UsageError("--require-verify and --no-verify contradict each other; choose one")
    target = Path(model) if in_place else _target(Path(model), output)
    overwrite = in_place or force

    with render.progress(quiet=quiet, verbose=verbose):
        import bnfold

        if not dry_run and os.path.exists(model):  # soon, rather than after minutes of work
            from bnfold.atomic import check_output

            check_output(target, overwrite, [])
        result = bnfold.fold(
            model, only=only, skip=skip, verify="full" if verify == "full" else not no_verify,
            require_verify=require_verify, keep_overridable=keep_overridable, merge=not no_merge,
            kept="keep" if kept == "keep" else "reduce",
        )  # fmt: skip
        files = [] if dry_run else result.save(target, overwrite=overwrite)

    if json:
        names = {"input": model, "output": str(target), "written": [str(file) for file in files]}
        render.as_json(names | result.to_dict())
    elif not quiet:
        render.folded(result, Path(model), target, files, verbose=verbose, needs_force=not overwrite)


def _target(model: Path, output: str | None) -> Path:
    """Where the result goes if not in place."""
    if output is None:
        return model.with_name((model.stem if model.suffix == ".onnx" else model.name) + ".folded.onnx")
    target = Path(output)
    if target.exists() and model.exists() and target.samefile(model):
        raise UsageError("--output is the model itself; --in-place replaces it", file=model)
    return target
