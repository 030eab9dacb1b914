"""How far each BN had drifted, by its depth, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from bnfold.picture import new_figure, plain, write_figure
from bnfold.recalibrate.drift import Drift

# The middle half of the channels is shaded.
QUARTILES = (25, 50, 75)


def plot(drift: Sequence[Drift], path: str | os.PathLike[str], title: str) -> None:
    """Write a picture of the drift (.png, .svg, .pdf): shift of the mean, ratio of deviations, score.

    Raises:
        UsageError: matplotlib isn't installed.
        OutputError: it can't be written there.
    """
    figure = new_figure(7)
    shift, ratio, score = figure.subplots(3, sharex=True)
    places = np.arange(len(drift))
    for axes, rows, label in (
        (shift, [one.shift for one in drift], "|Δmean| / σ"),
        (ratio, [one.ratio for one in drift], "σ new / old"),
    ):
        low, middle, high = np.array([np.percentile(row, QUARTILES) for row in rows]).T
        axes.fill_between(places, low, high, alpha=0.3, linewidth=0)
        axes.plot(places, middle, marker=".")
        axes.plot(places, [row.max() for row in rows], linestyle="", marker="_", color="tab:red")
        axes.set(ylabel=label)
    ratio.axhline(1, linewidth=0.8, color="grey")
    score.bar(places, [one.score for one in drift])
    score.set(ylabel="score", yscale="log", xlabel="BatchNorm, in the order of the nodes")
    score.xaxis.get_major_locator().set_params(integer=True)
    shift.set_title(f"{plain(title)}: median channel, middle half, largest")
    write_figure(figure, path)
