"""The network by depth as a picture for reports and papers; a long one goes on in further rows."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from bnfold.page.drawings import GREY, OTHERS, Group, Mark, way
from bnfold.page.network import Network
from bnfold.picture import new_figure, plain, write_figure

# Depths in a row.
ROW = 130
# matplotlib's names of plotly's shapes.
MARKERS = {
    "circle": "o", "circle-open": "o", "triangle-right": ">", "triangle-down": "v", "diamond": "D", "square": "s",
    "hexagon": "h", "x": "X", "cross": "P", "star": "*", "star-diamond": "d", "pentagon": "p",
}  # fmt: skip


def plot(network: Network, marks: Mapping[int, Mark], path: str | os.PathLike[str], title: str) -> None:
    """Write a picture (.png, .svg, .pdf) of what became of each node; `marks` by positions in `network.places`.

    Raises:
        UsageError: matplotlib isn't installed.
        OutputError: it can't be written there.
    """
    from matplotlib.collections import LineCollection

    rows = max(math.ceil((network.depth + 1) / ROW), 1)
    figure = new_figure(0.8 + rows * min(0.9 + 0.16 * network.lanes, 3.5))
    groups: dict[Group, list[int]] = {}
    for position in range(len(network.places)):
        groups.setdefault(marks[position].group if position in marks else OTHERS, []).append(position)
    lines = [list(way(network.places[a], network.places[b])) for a, b in network.edges]
    handles = {}
    for row, axes in enumerate(figure.subplots(rows, squeeze=False)[:, 0]):
        axes.add_collection(LineCollection(lines, colors=GREY, linewidths=0.6, alpha=0.6, zorder=1))
        for group, members in sorted(groups.items(), key=lambda item: -item[0].rank):
            places = [network.places[position] for position in members]
            handles[group] = axes.scatter(
                [place.x for place in places], [place.y for place in places], s=6 if group is OTHERS else 26,
                marker=MARKERS[group.shape], color=group.colour, linewidths=0, zorder=2 if group is OTHERS else 3,
                label=plain(f"{group.name} ({len(members)})"),
            )  # fmt: skip
        axes.set_xlim(row * ROW - 1, min((row + 1) * ROW, network.depth + 1) if rows == 1 else (row + 1) * ROW)
        axes.autoscale(axis="y")
        axes.set_yticks([])
        axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_xlabel("depth")
    figure.suptitle(plain(title), fontsize=10)
    shown = [handles[group] for group in sorted(handles, key=lambda group: group.rank)]
    figure.legend(handles=shown, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    write_figure(figure, path)
