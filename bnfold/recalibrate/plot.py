"""How far each BN had drifted, by its depth, as a picture."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np

from bnfold.atomic import write_file
from bnfold.errors import OutputError, UsageError
from bnfold.recalibrate.drift import Drift

# The middle half of the channels is shaded.
QUARTILES = (25, 50, 75)


def plot(drift: Sequence[Drift], path: str | os.PathLike[str], title: str) -> None:
    """Write a picture of the drift (.png, .svg, .pdf): shift of the mean, ratio of deviations, score.

    Raises:
        UsageError: matplotlib isn't installed.
        OutputError: it can't be written there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("a plot needs matplotlib; pip install 'bnfold[plot]'") from None

    figure = Figure(figsize=(9, 7), layout="constrained")
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
    plain = "".join(c if c.isprintable() else " " for c in title).replace("$", r"\$")  # '$' would begin a formula
    shift.set_title(f"{plain}: median channel, middle half, largest")
    kind, buffer = os.path.splitext(os.fspath(path))[1][1:].lower() or "png", io.BytesIO()
    try:
        figure.savefig(buffer, dpi=120, format=kind)
    except ValueError as error:
        raise OutputError(f"can't be written: {error}", file=os.fspath(path)) from None
    write_file(path, buffer.getbuffer(), overwrite=True)
