"""`bnfold inspect`: what is in a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import page, render
from .request import choose_one


def run(
    models: Sequence[str],
    *,
    keep_overridable: bool,
    no_merge: bool,
    check: bool,
    jobs: int | None,
    plot: str | None,
    html: str | None,
    json: bool,
) -> int:
    """Do what the command line asks for (see `bnfold inspect --help`); returns the exit code."""
    from . import batch, many

    if batch.is_many(models, None, jobs):
        choose_one(("several models", True), ("--plot", plot is not None), ("--html", html is not None))
        options = many.words(keep_overridable=keep_overridable, no_merge=no_merge, check=check)
        return batch.inspect(models, options, check=check, jobs=jobs or 1, json=json)
    import bnfold

    model = models[0]
    page.demand(html, [plot] if plot else [], [model])
    page.demand_plot(plot, [], [model])
    with render.progress(quiet=json, verbose=False):
        found = bnfold.inspect(model, keep_overridable=keep_overridable, merge=not no_merge)
        network = page.drawn(model, html, plot)
        report = found.to_dict()
        pages: list[Path] = []
        if plot is not None and network is not None:
            entries = [norm["fold"] for norm in report["batch_norms"]]
            pages += page.write_plot(plot, network, entries, f"inspect {model}")
        if html is not None and network is not None:
            from bnfold.page import for_inspect

            pages += page.write(html, for_inspect(report, network))
    if json:
        render.as_json("inspect", report)
    else:
        render.inspected(found, pages)
    return int(check and found.after.batch_norms < found.before.batch_norms)
