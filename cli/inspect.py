"""`bnfold inspect`: what is in a model."""

from __future__ import annotations

from . import render


def run(model: str, *, keep_overridable: bool, no_merge: bool, json: bool) -> None:
    """Do what the command line asks for; see `bnfold inspect --help`."""
    import bnfold

    found = bnfold.inspect(model, keep_overridable=keep_overridable, merge=not no_merge)
    if json:
        render.as_json(found.to_dict())
    else:
        render.inspected(found)
