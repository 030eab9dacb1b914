"""`--html`: the result of a verb as a page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import UsageError, quoted

if TYPE_CHECKING:
    from bnfold.page.network import Network
    from bnfold.page.sections import Parts

ENDINGS = (".html", ".htm")


def demand(html: str | None, outputs: Sequence[str | os.PathLike[str]], inputs: Iterable[str]) -> None:
    """Soon, rather than after minutes of work: can the page be written, and does it replace nothing that it may not?

    Raises: UsageError, OutputError.
    """
    if html is None:
        return
    from bnfold.atomic import check_output, demand_apart
    from bnfold.model_file import data_files
    from bnfold.page.document import demand_libraries

    demand_libraries()
    if not html.lower().endswith(ENDINGS):
        raise UsageError(f"--html writes {' or '.join(ENDINGS)}, by the end of the name; {quoted(html)} has another")
    check_output(Path(html), True, [])
    read = [name for name in inputs if os.path.exists(name)]
    demand_apart([html], [*read, *data_files(read)])
    demand_apart([html, *outputs], [])


def drawn(html: str | None, model: str) -> Network | None:
    """The network of a model as it is now, before anything is written; None if no page is wanted."""
    if html is None:
        return None
    from bnfold.page.network import network_of

    return network_of(model)


def write(html: str, parts: Parts) -> list[Path]:
    """Write a page of these parts; returns the file."""
    from bnfold.atomic import write_file
    from bnfold.page.document import page

    write_file(html, page(*parts).encode("utf-8", "replace"), overwrite=True)
    return [Path(html)]


def digests(*files: str | os.PathLike[str]) -> dict[str, str]:
    """SHA-256 of each file that there is, by name."""
    from bnfold.verify.certificate import digest

    return {os.fspath(file): digest(file) for file in files if os.path.isfile(file)}
