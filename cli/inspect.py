"""`bnfold inspect`: what is in a model."""

from __future__ import annotations

from . import page, render


def run(model: str, *, keep_overridable: bool, no_merge: bool, html: str | None, json: bool) -> None:
    """Do what the command line asks for; see `bnfold inspect --help`."""
    import bnfold

    page.demand(html, [], [model])
    with render.progress(quiet=json, verbose=False):
        found = bnfold.inspect(model, keep_overridable=keep_overridable, merge=not no_merge)
        network = page.drawn(html, model)
        if html is not None and network is not None:
            from bnfold.page import for_inspect

            page.write(html, for_inspect(found.to_dict(), network))
    if json:
        render.as_json(found.to_dict())
    else:
        render.inspected(found, [html] if html else [])
