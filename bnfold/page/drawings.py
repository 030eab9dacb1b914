"""The figures, as data for plotly.js: the network with what became of its nodes, drift of BN, errors of segments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.page.document import figure, label
from bnfold.page.network import Network, Place
from bnfold.verify import criterion

Trace = dict[str, Any]

BLUE, TEAL, PURPLE, SKY, AMBER, RED, GREY = (
    "#3f83d6", "#2a9d8f", "#9a6fd0", "#4fb3d9", "#e69f00", "#d1495b", "#8a94a3",
)  # fmt: skip
REDS = (RED, "#e07b39", "#c2527f", "#b0413e", "#e2725b", "#a9744f")
SHAPES = ("x", "cross", "star", "triangle-down", "star-diamond", "pentagon")
# The middle half of the channels is shaded.
QUARTILES = (25, 50, 75)
# Where what is exactly equal is drawn, and what is infinitely off.
LOWEST, HIGHEST = 1e-3, 1e9
# Points of the bow of an edge that passes over other nodes.
BOW = np.linspace(0, 1, 9)
# An axis of a logarithmic scale.
LOGARITHMIC = {"type": "log", "exponentformat": "power", "nticks": 7}
# Of so many depths the drawing gets a strip below it to move along.
LONG = 40


@dataclass(frozen=True)
class Group:
    """Nodes that had the same thing happen to them: how they look, and their place in the legend (the first, first)."""

    name: str
    colour: str
    shape: str = "circle"
    rank: int = 0


@dataclass(frozen=True)
class Mark:
    """What became of one node, and why."""

    group: Group
    why: str


OTHERS = Group("other nodes", GREY, "circle", 99)


def network_figure(network: Network, marks: Mapping[int, Mark], described: str) -> str:
    """The network by depth; `marks` by positions in `network.places`."""
    groups: dict[Group, list[int]] = {OTHERS: []}
    for position in range(len(network.places)):
        mark = marks.get(position)
        groups.setdefault(OTHERS if mark is None else mark.group, []).append(position)
    size = min(max(1100 / (network.depth + 1), 5.0), 13.0)
    edges = _edges(network)
    heights = [*(place.y for place in network.places), *(y for y in edges["y"] if y is not None)]
    traces = [edges]
    for group, members in sorted(groups.items(), key=lambda item: -item[0].rank):  # what matters most is drawn last
        traces.append(_nodes(network, group, members, marks, max(size, 8) if group is not OTHERS else 0.6 * size))
    layout = _layout(min(320 + 26 * network.lanes, 760), "depth")
    layout |= {"hovermode": "closest", "dragmode": "pan"}
    layout["yaxis"] |= {"visible": False, "range": [min(heights, default=0.0) - 0.6, max(heights, default=0.0) + 0.6]}
    layout["xaxis"] |= {"range": [-1.5, network.depth + 1.5]}
    if network.depth > LONG:
        layout["xaxis"]["rangeslider"] = {"visible": True, "thickness": 0.09}
    if len(network.labels) > 1:
        layout["annotations"] = [
            {"x": -1, "y": lane + 1, "text": label(name or "main graph"), "showarrow": False, "xanchor": "left"}
            for name, lane in network.labels
        ]
    return figure("network", traces, layout, described)


def _edges(network: Network) -> Trace:
    xs: list[float | None] = []
    ys: list[float | None] = []
    for a, b in network.edges:
        start, end = network.places[a], network.places[b]
        for x, y in way(start, end):
            xs.append(round(x, 2))
            ys.append(round(y, 2))
        xs.append(None)
        ys.append(None)
    line = {"color": GREY, "width": 1}
    return {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "line": line, "opacity": 0.55, "hoverinfo": "skip",
            "showlegend": False}  # fmt: skip


def way(start: Place, end: Place) -> Iterator[tuple[float, float]]:
    """A line to the next depth, a bow over what lies between otherwise: above the middle, or below it."""
    span = end.x - start.x
    if span <= 1:
        yield from ((start.x, start.y), (end.x, end.y))
        return
    height = (0.35 + 0.3 * math.log2(span)) * (1 if start.y + end.y >= 0 else -1)
    for t in BOW:
        yield start.x + t * span, start.y + t * (end.y - start.y) + 4 * t * (1 - t) * height


def _nodes(network: Network, group: Group, members: list[int], marks: Mapping[int, Mark], size: float) -> Trace:
    places = [network.places[position] for position in members]
    return {
        "type": "scatter", "mode": "markers", "name": label(f"{group.name} ({len(members)})"),
        "x": [place.x for place in places], "y": [place.y for place in places], "customdata": members,
        "hoverinfo": "text", "hovertext": [_told(network.places[k], marks.get(k)) for k in members],
        "marker": {"color": group.colour, "symbol": group.shape, "size": size},
        "legendrank": 1000 + group.rank,
    }  # fmt: skip


def _told(place: Place, mark: Mark | None) -> str:
    lines = [f"<b>{label(place.op)}</b> {label(_short(place.name))}", f"depth {place.x:g}"]
    if place.scope:
        lines[1] += f", in {label(_short(place.scope))}"
    if mark is not None:
        lines.append(label(f"{mark.group.name}: {_short(mark.why)}" if mark.why else mark.group.name))
    return "<br>".join(lines)


def _short(text: str) -> str:
    """A text that a label over a figure has room for; the tables have it whole."""
    return text if len(text) <= 110 else f"{text[:50]} … {text[-50:]}"


def drift_figure(norms: Sequence[Mapping[str, Any]]) -> str:
    """The drift of every BN by depth, of the JSON's `batch_norms`: shift, ratio of deviations, score."""
    names = [label(_short(norm["name"])) for norm in norms]
    traces: list[Trace] = []
    for row, (key, colour) in enumerate((("shift", BLUE), ("ratio", TEAL)), start=1):
        low, middle, high = np.array([np.percentile(norm[key], QUARTILES) for norm in norms]).T
        largest = [max(norm[key]) for norm in norms]
        axes = {"xaxis": "x", "yaxis": f"y{row}"}
        places = list(range(len(norms)))
        traces += [
            {"type": "scatter", "mode": "lines", "x": places, "y": low.tolist(), "line": {"width": 0},
             "hoverinfo": "skip", "showlegend": False, **axes},
            {"type": "scatter", "mode": "lines", "x": places, "y": high.tolist(), "line": {"width": 0},
             "fill": "tonexty", "fillcolor": f"{colour}44", "hoverinfo": "skip", "name": "middle half of the channels",
             "showlegend": False, **axes},
            {"type": "scatter", "mode": "lines+markers", "x": places, "y": middle.tolist(), "text": names,
             "line": {"color": colour}, "name": "median channel", "hoverinfo": "text+y", "showlegend": False, **axes},
            {"type": "scatter", "mode": "markers", "x": places, "y": largest, "text": names, "hoverinfo": "text+y",
             "marker": {"symbol": "line-ew", "size": 9, "line": {"width": 2, "color": RED}}, "name": "largest channel",
             "showlegend": False, **axes},
        ]  # fmt: skip
    traces.append({"type": "bar", "x": list(range(len(norms))), "y": [norm["score"] for norm in norms], "text": names,
                   "textposition": "none", "hoverinfo": "text+y", "marker": {"color": AMBER}, "name": "score",
                   "showlegend": False, "xaxis": "x", "yaxis": "y3"})  # fmt: skip
    layout = _layout(620, "BatchNorm, in the order of the nodes")
    layout["xaxis"] |= {"anchor": "y3"}
    del layout["yaxis"]
    layout["yaxis1"] = {"domain": [0.7, 1], "title": {"text": "|Δmean| / σ"}}
    layout["yaxis2"] = {"domain": [0.36, 0.64], "title": {"text": "σ new / old"}}
    layout["yaxis3"] = {"domain": [0, 0.3], "title": {"text": "score"}, **LOGARITHMIC}
    layout["shapes"] = [_line(1, "y2")]
    return figure("drift", traces, layout, "drift of every BatchNorm by depth")


def residual_figure(segments: Sequence[Mapping[str, Any]], marks: Sequence[Group]) -> str:
    """The r of every segment in the order of B's nodes, of the JSON's `segments`; `marks` has the group of each."""
    traces: list[Trace] = []
    for group in sorted(set(marks), key=lambda group: group.rank):
        chosen = [k for k, mark in enumerate(marks) if mark == group]
        traces.append({
            "type": "scatter", "mode": "markers", "name": label(f"{group.name} ({len(chosen)})"), "x": chosen,
            "y": [_drawn(segments[k]["r"]) for k in chosen],
            "text": [f"{label(segments[k]['op'])} {label(_short(segments[k]['value_b']))}" for k in chosen],
            "hoverinfo": "text+y", "marker": {"color": group.colour, "symbol": group.shape, "size": 8},
        })  # fmt: skip
    layout = _layout(380, "segment, in the order of B's nodes")
    highest = max((_drawn(segment["r"]) for segment in segments), default=1.0)
    span = [math.log10(LOWEST / 2), math.log10(max(highest, criterion.DIFFERENT) * 3)]
    layout["yaxis"] |= {"range": span, **LOGARITHMIC}
    layout["yaxis"]["title"] = {"text": "r, × A's own rounding noise"}
    layout["shapes"] = [_line(limit, "y") for limit in (criterion.EQUAL, criterion.DIFFERENT)]
    return figure("residuals", traces, layout, "r of every segment")


def gain_figure(norms: Sequence[Mapping[str, Any]]) -> str:
    """The smallest variance and the largest gain of every BN by depth, of the JSON's `batch_norms`."""
    known = [(k, norm) for k, norm in enumerate(norms) if norm["statistics"] is not None]
    traces = [
        {"type": "scatter", "mode": "lines+markers", "name": name, "x": [k for k, _ in known],
         "y": [norm["statistics"][key] or None for _, norm in known],
         "text": [label(_short(norm["name"])) for _, norm in known], "hoverinfo": "text+y",
         "line": {"color": colour}}
        for key, name, colour in (("min_variance", "smallest variance", BLUE), ("max_gain", "largest gain", AMBER))
    ]  # fmt: skip
    layout = _layout(340, "BatchNorm, in the order of the nodes")
    layout["yaxis"] |= {**LOGARITHMIC}
    return figure("gain", traces, layout, "smallest variance and largest gain of every BatchNorm")


def _drawn(r: float) -> float:
    return min(max(r, LOWEST), HIGHEST)


def _line(height: float, axis: str) -> dict[str, Any]:
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": axis, "y0": height, "y1": height,
            "line": {"color": GREY, "width": 1, "dash": "dot"}}  # fmt: skip


def _layout(height: float, depth: str) -> dict[str, Any]:
    return {
        "height": height, "margin": {"l": 56, "r": 12, "t": 40, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "itemsizing": "constant"},
        "xaxis": {"title": {"text": depth}, "zeroline": False, "automargin": True},
        "yaxis": {"zeroline": False, "automargin": True},
    }  # fmt: skip
