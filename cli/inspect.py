"""`bnfold inspect`: what is in a model."""

from __future__ import annotations

from pathlib import Path

from . import page, render


def run(model: str, *, keep_overridable: bool, no_merge: bool, html: str | None, plot: str | None, json: bool) -> None:
    """Do what the command line asks for; see `bnfold inspect --help`."""
    import bnfold

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
        render.as_json(report)
    else:
        render.inspected(found, pages)
