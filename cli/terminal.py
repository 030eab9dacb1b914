"""Rows, tables and progress: rich's in a terminal (wrapping, colour, NO_COLOR); a pipe gets plain lines, uncut.

Colour has a meaning and no other use: green is proven or gone, yellow is what stays or wants attention, red is a
difference. In a terminal nothing is cut: what is too wide goes on in the next line.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from bnfold.errors import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = tuple[str, str]
LABEL_WIDTH = 9
# Before a name that stands below its row, for want of room.
INDENT = "    "

# By the label of a row, or by the first word of a table's row or of a verdict.
MEANING = {
    "folded": "green", "merged": "green", "equal": "green",
    "kept": "yellow", "reduced": "yellow", "rounding-scale": "yellow", "cannot": "yellow", "none": "yellow",
    "not": "yellow", "notice": "yellow", "note": "yellow", "warning": "yellow",
    "differs": "red", "different": "red", "first": "red",
}  # fmt: skip


def show(rows: Iterable[Row]) -> None:
    """Print rows of a label and a text."""
    if not _is_terminal(sys.stdout):
        for label, text in rows:
            print(f"{label:<{LABEL_WIDTH}}{clean(text)}")
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=LABEL_WIDTH - 1)
    grid.add_column(overflow="fold")
    for label, text in rows:
        content = Text(clean(text))  # Text: names are taken literally
        if label == "verdict":
            verdict = text.partition(":")[0]
            content.stylize(f"bold {_meaning(verdict)}", 0, len(verdict))
        grid.add_row(Text(label, f"bold {_meaning(label)}"), content)
    _console().print(grid)


def table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows of cells in columns under the first row; names come last and whole, below if there is no room."""
    rows = [tuple(map(clean, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if not _is_terminal(sys.stdout):
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.text import Text

    console, sizes = _console(), widths[:-1]
    while sum(sizes) + 2 * len(sizes) > console.width:  # the widest gives way
        sizes[sizes.index(max(sizes))] -= 1
    room = console.width - sum(sizes) - 2 * len(sizes)
    for place, row in enumerate(rows):
        fits = len(row[-1]) <= room > 0
        cells, columns = (row, [*sizes, room]) if fits else (row[:-1], sizes)
        console.print(_line(cells, columns, bold=place == 0))
        if not fits:
            console.print(Text(f"{INDENT}{row[-1]}", "bold" if place == 0 else ""), overflow="fold")


def _line(row: Sequence[str], widths: Sequence[int], *, bold: bool) -> Table:
    """One row in columns of these widths; what is wider goes on below."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for width in widths:
        grid.add_column(width=width, overflow="fold")
    styles = ("bold",) * len(row) if bold else (_meaning(row[0]), *("",) * (len(row) - 1))
    grid.add_row(*(Text(cell, style) for cell, style in zip(row, styles, strict=True)))
    return grid


def _meaning(text: str) -> str:
    words = text.replace(",", " ").replace(":", " ").split()
    return MEANING.get(words[0], "") if words else ""


def _console() -> Console:
    from rich.console import Console

    return Console(emoji=False, highlight=False, color_system=None if "NO_COLOR" in os.environ else "auto")


# -- progress ---------------------------------------------------------------------------------------


@contextmanager
def progress(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Show on stderr what is going on: with -v as lines, in a terminal as one line that goes again."""
    transient = not verbose and not quiet and _is_terminal(sys.stderr)
    if not (verbose or transient):
        yield
        return
    log = logging.getLogger("bnfold")
    handler = _Transient() if transient else _Lines()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


class _Lines(logging.Handler):
    """A line for each step, with the time since the start."""

    def __init__(self) -> None:
        super().__init__()
        self._start = time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        print(f"bnfold: {time.perf_counter() - self._start:.2f} s: {clean(record.getMessage())}", file=sys.stderr)


class _Transient(logging.Handler):
    """One line with the step at hand, and the seconds it has taken so far, so that a long one is seen to go on."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn

        console = Console(stderr=True, emoji=False, highlight=False)
        self._progress = Progress(
            SpinnerColumn("line", style=""), TextColumn("{task.description} … {task.elapsed:.0f} s", markup=False),
            console=console, transient=True, redirect_stdout=False, redirect_stderr=False, refresh_per_second=4,
        )  # fmt: skip
        self._step = self._progress.add_task("reading")
        self._progress.start()

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.reset(self._step, description=clean(record.getMessage()))

    def close(self) -> None:
        """Clear the line."""
        self._progress.stop()
        super().close()


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
