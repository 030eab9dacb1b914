"""The notebook runs as it is, and prints what is stored in it (but for numbers, which depend on the processor)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

NOTEBOOKS = sorted((REPO / "examples").glob("*.ipynb"))
# Between the output of two cells.
MARK = "-- cell --"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(notebook: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    program = f"\nprint({MARK!r})\n".join(_text(cell["source"]) for cell in cells)
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=notebook.parent, check=False, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    stored = ["".join(_text(output["text"]) for output in cell["outputs"]) for cell in cells]
    found = [part.removeprefix("\n") for part in result.stdout.split(f"{MARK}\n")]
    assert list(map(_masked, found)) == list(map(_masked, stored))
    assert any("equal" in text for text in stored)


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def _masked(text: str) -> str:
    return re.sub(r"\d+ of", "# of", text)


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS
