"""The page itself: text that is safe wherever it comes from, tables, figures, and the frame around them.

Names come from files that nobody vouches for. So every text goes through `text`, all data for the script through
`embedded`, labels of figures through `label`; and the page's own policy lets it load nothing and send nothing,
whatever is in it. The figures are drawn by plotly.js, which the page carries (4.8 of its 5 MB).
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from bnfold._version import __version__
from bnfold.errors import UsageError, clean
from bnfold.plain import finite

# Nothing from anywhere but the page: no request leaves it. plotly.js writes styles and makes images of its drawings.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Cell:
    """What stands in a table.

    Attributes:
        shown: its text.
        key: the number that it is sorted by; by its text without one.
        focus: a node's position in the drawing of the network, which a click shows.
    """

    shown: str
    key: float | None = None
    focus: int | None = None


Row = Sequence[Cell | str]


def text(what: object) -> str:
    """Anything as text of a page.

    >>> text("</script><b>")
    '&lt;/script&gt;&lt;b&gt;'
    """
    return html.escape(clean(str(what)))


def label(what: object) -> str:
    """Anything as text of a figure, whose texts know tags of their own."""
    return text(what)


def embedded(data: Any) -> str:
    r"""Plain data as JSON that can stand within a script element: it can't end it, nor begin a comment.

    >>> embedded(["</script><!--", float("nan")])
    '["\\u003c/script\\u003e\\u003c!--",null]'
    """
    dumped = json.dumps(finite(data), separators=(",", ":"), allow_nan=False)
    return dumped.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def number(value: float | None, digits: int = 3) -> Cell:
    """A number, sorted as one; '–' where there is none."""
    return Cell("–", float("-inf")) if value is None or value != value else Cell(f"{value:.{digits}g}", float(value))


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Labels, each with a text."""
    return '<dl class="facts">' + "".join(f"<dt>{text(a)}</dt><dd>{text(b)}</dd>" for a, b in rows) + "</dl>"


def cards(values: Iterable[tuple[str, str]]) -> str:
    """The few numbers that matter most, large."""
    return '<div class="cards">' + "".join(
        f"<div><b>{text(value)}</b><span>{text(what)}</span></div>" for value, what in values
    ) + "</div>"  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Row]) -> str:
    """A table that can be sorted by each column and searched, without columns that are empty; '' without rows."""
    by_column = zip(head, zip(*rows, strict=True), strict=False)  # (no columns at all without rows)
    columns = [(name, column) for name, column in by_column if any(map(_shown, column))]
    if not columns:
        return ""
    head, rows = [name for name, _ in columns], list(zip(*(column for _, column in columns), strict=True))
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    kinds = ["number" if isinstance(cell, Cell) and cell.key is not None else "words" for cell in rows[0]]
    names = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{text(name)}</button></th>'
        for name, kind in zip(head, kinds, strict=True)
    )
    return f'<div class="table"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _shown(cell: Cell | str) -> str:
    return cell if isinstance(cell, str) else cell.shown


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return f"<td>{text(cell)}</td>"
    key = "" if cell.key is None else f' class="number" data-key="{json.dumps(cell.key)}"'
    if cell.focus is None:
        return f"<td{key}>{text(cell.shown)}</td>"
    return f'<td{key}><button type="button" data-focus="{cell.focus}">{text(cell.shown)}</button></td>'


def figure(name: str, traces: Sequence[dict[str, Any]], layout: dict[str, Any], described: str) -> str:
    """A figure of plotly: its data, and the place where it is drawn."""
    data = embedded({"data": traces, "layout": layout})
    return (
        f'<div class="figure" id="{name}" role="img" aria-label="{text(described)}"></div>'
        f'<script type="application/json" data-figure="{name}">{data}</script>'
    )


def section(title: str, *parts: str) -> str:
    """A section; '' if there is nothing in it."""
    inside = "".join(parts)
    return f"<section><h2>{text(title)}</h2>{inside}</section>" if inside else ""


def paragraph(what: str, kind: str = "") -> str:
    """A paragraph of text."""
    return f'<p class="{kind}">{text(what)}</p>' if kind else f"<p>{text(what)}</p>"


def details(title: str, content: str) -> str:
    """A text as it is, which opens on a click."""
    return f"<details><summary>{text(title)}</summary><pre>{html.escape(content)}</pre></details>"


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """The whole page.

    Raises: UsageError if plotly isn't installed.
    """
    demand_libraries()
    from plotly.offline import get_plotlyjs

    here = files("bnfold.page")
    style, script = (here.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    return "\n".join([
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">',
        f"<title>{text(title)} · bnfold</title>",
        f"<style>{style}</style></head><body>",
        f"<header><h1>{text(title)}</h1><p>{text(subtitle)}</p></header><main>",
        *sections,
        f"</main><footer>bnfold {text(__version__)}</footer>",
        f"<script>{get_plotlyjs()}</script>",
        f"<script>{script}</script></body></html>",
        "",
    ])  # fmt: skip


def demand_libraries() -> None:
    """Raises: UsageError if what draws a page isn't installed."""
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in ("plotly", "networkx")):
        raise UsageError("--html needs plotly and networkx; pip install 'bnfold[html]'")
