"""`--html`: the result of a verb as a page."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import UsageError, quoted

if TYPE_CHECKING:
    from bnfold.page.network import Network
    from bnfold.page.sections import Parts

log = logging.getLogger("bnfold")

ENDINGS = (".html", ".htm")


def demand(html: str | None, outputs: Sequence[str | os.PathLike[str]], inputs: Iterable[str]) -> None:
    """Soon, rather than after minutes of work: can the page be written, and does it replace nothing that it may not?

    Raises: UsageError, OutputError.
    """
    if html is None:
        return
    from bnfold.page.document import demand_libraries

    demand_libraries()
    if not html.lower().endswith(ENDINGS):
        raise UsageError(f"--html writes {' or '.join(ENDINGS)}, by the end of the name; {quoted(html)} has another")
    _demand_place(html, outputs, inputs)


def drawn(model: str, *wanted: str | None) -> Network | None:
    """The network of a model as it is now, before anything is written; None if nothing that shows it is `wanted`."""
    if all(one is None for one in wanted):
        return None
    from bnfold.page.network import network_of

    log.info("drawing the network")
    return network_of(model)


def write(html: str, parts: Parts) -> list[Path]:
    """Write a page of these parts; returns the file."""
    from bnfold.atomic import write_file
    from bnfold.page.document import page

    log.info("writing the page")
    write_file(html, page(*parts).encode("utf-8", "replace"), overwrite=True)
    return [Path(html)]


def demand_plot(plot: str | None, outputs: Sequence[str | os.PathLike[str]], inputs: Iterable[str]) -> None:
    """The same for `--plot` of verbs that draw the network.

    Raises: UsageError, OutputError.
    """
    if plot is None:
        return
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in ("matplotlib", "networkx")):
        raise UsageError("--plot needs matplotlib and networkx; pip install 'bnfold[plot]'")
    _demand_place(plot, outputs, inputs)


def _demand_place(file: str, outputs: Sequence[str | os.PathLike[str]], inputs: Iterable[str]) -> None:
    """A file that may be written, and is neither an input, data of one, nor another output."""
    from bnfold.atomic import check_output, demand_apart
    from bnfold.model_file import data_files

    check_output(Path(file), True, [])
    read = [name for name in inputs if os.path.exists(name)]
    demand_apart([file], [*read, *data_files(read)])
    demand_apart([file, *outputs], [])


def write_plot(plot: str, network: Network, entries: Iterable[Mapping[str, Any]], title: str) -> list[Path]:
    """Draw what became of the nodes of `entries`; returns the file."""
    from bnfold.page.plot import plot as draw
    from bnfold.page.sections import fates

    draw(network, fates(entries, network), plot, title)
    return [Path(plot)]


def digests(*files: str | os.PathLike[str]) -> dict[str, str]:
    """SHA-256 of each file that there is, by name."""
    from bnfold.verify.certificate import digest

    return {os.fspath(file): digest(file) for file in files if os.path.isfile(file)}
