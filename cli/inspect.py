"""`bnfold inspect`: what is in a model."""

from __future__ import annotations

from collections.abc import Sequence

from . import render


def run(
    models: Sequence[str], *, keep_overridable: bool, no_merge: bool, check: bool, jobs: int | None, json: bool
) -> int:
    """Do what the command line asks for (see `bnfold inspect --help`); returns the exit code."""
    from . import batch, many

    if batch.is_many(models, None, jobs):
        options = many.words(keep_overridable=keep_overridable, no_merge=no_merge, check=check)
        return batch.inspect(models, options, check=check, jobs=jobs or 1, json=json)
    import bnfold

    found = bnfold.inspect(models[0], keep_overridable=keep_overridable, merge=not no_merge)
    if json:
        render.as_json("inspect", found.to_dict())
    else:
        render.inspected(found)
    return int(check and found.after.batch_norms < found.before.batch_norms)
