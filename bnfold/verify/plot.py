"""The ratio r of every segment by its depth, as a picture."""

from __future__ import annotations

import io
import math
import os

from bnfold.atomic import write_file
from bnfold.errors import OutputError, UsageError
from bnfold.verify import criterion
from bnfold.verify.comparison import Comparison

# Where what is exactly equal is drawn, and what is infinitely off.
LOWEST, HIGHEST = 1e-3, 1e9


def plot(found: Comparison, path: str | os.PathLike[str], title: str) -> None:
    """Write a picture of a verdict (.png, .svg, .pdf).

    Raises:
        UsageError: matplotlib isn't installed.
        OutputError: it can't be written there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("a plot needs matplotlib; pip install 'bnfold[plot]'") from None

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    limits = ((0, criterion.EQUAL, "tab:green"), (criterion.EQUAL, criterion.DIFFERENT, "tab:orange"),
              (criterion.DIFFERENT, math.inf, "tab:red"))  # fmt: skip
    places = [(place, segment) for place, segment in enumerate(found.segments) if segment.basis != "coordinates"]
    for low, high, colour in limits:
        chosen = [(place, s.r) for place, s in places if low < s.r <= high or (s.r == low == 0)]
        heights = [min(max(r, LOWEST), HIGHEST) for _, r in chosen]
        axes.scatter([place for place, _ in chosen], heights, s=14, color=colour)
    for limit, label in ((criterion.EQUAL, "equal"), (criterion.DIFFERENT, "rounding scale")):
        axes.axhline(limit, linewidth=0.8, color="grey")
        axes.annotate(f"{label} ≤ {limit:g}", (0, limit), fontsize=8, va="bottom")
    axes.annotate(f"{LOWEST:g} or less, or exact", (0, LOWEST * 1.2), fontsize=8, va="bottom")
    if found.first is not None:
        place = next((p for p, s in places if s.value_b == found.first.value_b), None)
        if place is not None:
            height = min(max(found.first.r, LOWEST), HIGHEST)
            side = ("left", "center", "right")[min(3 * place // len(found.segments), 2)]
            axes.annotate(_plain(found.first.value), (place, height), fontsize=8, ha=side, va="bottom")
    axes.set(yscale="log", ylim=(LOWEST / 2, HIGHEST * 2), xlabel="segment, in the order of B's nodes",
             ylabel="r, × A's own rounding noise", title=_plain(f"{title}: {found.verdict}"))  # fmt: skip
    kind, buffer = os.path.splitext(os.fspath(path))[1][1:].lower() or "png", io.BytesIO()
    try:
        figure.savefig(buffer, dpi=120, format=kind)
    except ValueError as error:
        raise OutputError(f"can't be written: {error}", file=os.fspath(path)) from None
    write_file(path, buffer.getbuffer(), overwrite=True)


def _plain(text: str) -> str:
    """A text that is taken as it is: '$' would begin a formula."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")
