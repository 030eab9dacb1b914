"""The ratio r of every segment by its depth, as a picture."""

from __future__ import annotations

import math
import os

from bnfold.picture import new_figure, plain, write_figure
from bnfold.verify import criterion
from bnfold.verify.comparison import Comparison

# Where what is exactly equal is drawn, and what is infinitely off.
LOWEST, HIGHEST = 1e-3, 1e9
# Where the limits' names begin, in parts of the width.
EDGE = 0.005


def plot(found: Comparison, path: str | os.PathLike[str], title: str) -> None:
    """Write a picture of a verdict (.png, .svg, .pdf).

    Raises:
        UsageError: matplotlib isn't installed.
        OutputError: it can't be written there.
    """
    figure = new_figure(4)
    axes = figure.subplots()
    limits = ((0, criterion.EQUAL, "tab:green"), (criterion.EQUAL, criterion.DIFFERENT, "tab:orange"),
              (criterion.DIFFERENT, math.inf, "tab:red"))  # fmt: skip
    places = [(place, segment) for place, segment in enumerate(found.segments) if segment.basis != "coordinates"]
    for low, high, colour in limits:
        chosen = [(place, s.r) for place, s in places if low < s.r <= high or (s.r == low == 0)]
        heights = [min(max(r, LOWEST), HIGHEST) for _, r in chosen]
        axes.scatter([place for place, _ in chosen], heights, s=14, color=colour)
    along = axes.get_yaxis_transform()  # x in parts of the picture, y as it is
    for limit, label in ((criterion.EQUAL, "equal"), (criterion.DIFFERENT, "rounding scale")):
        axes.axhline(limit, linewidth=0.8, color="grey")
        axes.annotate(f"{label} ≤ {limit:g}", (EDGE, limit), xycoords=along, fontsize=8, va="bottom")
    axes.annotate(f"{LOWEST:g} or less, or exact", (EDGE, LOWEST * 1.2), xycoords=along, fontsize=8, va="bottom")
    if found.first is not None:
        place = next((p for p, s in places if s.value_b == found.first.value_b), None)
        if place is not None:
            height = min(max(found.first.r, LOWEST), HIGHEST)
            side = ("left", "center", "right")[min(3 * place // len(found.segments), 2)]
            axes.annotate(plain(found.first.value), (place, height), fontsize=8, ha=side, va="bottom")
    highest = max((min(s.r, HIGHEST) for _, s in places), default=0.0)
    axes.set(yscale="log", ylim=(LOWEST / 2, max(highest, criterion.DIFFERENT) * 5),
             xlabel="segment, in the order of B's nodes", ylabel="r, × A's own rounding noise",
             title=plain(f"{title}: {found.verdict}"))  # fmt: skip
    write_figure(figure, path)
