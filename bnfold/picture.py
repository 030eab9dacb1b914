"""Pictures of results: what every plot does before it draws and after."""

from __future__ import annotations

import io
import os
from typing import Any

from bnfold.atomic import write_file
from bnfold.errors import OutputError, UsageError


def new_figure(height: float) -> Any:
    """An empty matplotlib figure, so many inches high.

    Raises: UsageError if matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("a plot needs matplotlib; pip install 'bnfold[plot]'") from None
    return Figure(figsize=(9, height), layout="constrained")


def write_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write it, whole or not at all, in the format that the name's ending tells (.png, .svg, .pdf).

    Raises: OutputError if it can't be written there.
    """
    kind, buffer = os.path.splitext(os.fspath(path))[1][1:].lower() or "png", io.BytesIO()
    try:
        figure.savefig(buffer, dpi=120, format=kind)
    except ValueError as error:
        raise OutputError(f"can't be written: {error}", file=os.fspath(path)) from None
    write_file(path, buffer.getbuffer(), overwrite=True)


def plain(text: str) -> str:
    """A text that is taken as it is: '$' would begin a formula."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")
