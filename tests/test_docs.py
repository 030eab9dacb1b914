"""What the documents of the site say is what happens: their blocks run, their messages and images exist, it builds.

In the pages of `PAGES` every block says what it is: `sh` holds commands of bnfold and `python` a program, and both are
run here, page by page and from top to bottom; `text` is output, `console` is for people alone. A Python block that
begins with `# needs NAME` is run where that is installed.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import bnfold
from conftest import REPO

DOCS = REPO / "docs"
ALONE = "index how-folding-works how-we-know limits peers troubleshooting".split()
PAGES = sorted([
    *(DOCS / "how-to").glob("*.md"), *(DOCS / "exporters").glob("*.md"), *(DOCS / f"{name}.md" for name in ALONE),
])  # fmt: skip
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_blocks_run(page: Path, tmp_path: Path) -> None:
    shutil.copy(REPO / "sample_models" / "digits_preact.onnx", tmp_path / "model.onnx")
    shutil.copy(REPO / "sample_models" / "digits.npz", tmp_path)
    blocks = BLOCK.findall(page.read_text("utf-8"))
    assert {kind for kind, _ in blocks} <= {"sh", "python", "text", "console"}
    said = ""
    for kind, content in blocks:
        if kind == "sh":
            said = "".join(_command(line, tmp_path) for line in content.splitlines())
        elif kind == "python":
            _program(content, tmp_path)
        elif kind == "text" and said:  # what the commands in front print, among other things
            assert [line for line in content.splitlines() if line not in said] == []


def _command(line: str, folder: Path) -> str:
    program, *arguments = shlex.split(line)
    assert program == "bnfold"
    if "html" in line and any(importlib.util.find_spec(name) is None for name in ("plotly", "networkx")):
        pytest.skip("plotly and networkx draw the pages")
    result = bnfold(*arguments, cwd=folder)
    told = [text for text in result.stderr.splitlines() if not re.match(r"bnfold: [\d.]+ s: ", text)]
    assert (result.returncode, told) == (0, [])
    return result.stdout


def _program(content: str, folder: Path) -> None:
    needs = re.match(r"# needs (.*)\n", content)
    for name in needs[1].split(", ") if needs else ():
        pytest.importorskip(name)
    result = subprocess.run([sys.executable, "-c", content], cwd=folder, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_images_and_pages_are_there() -> None:
    documents = [*DOCS.rglob("*.md"), REPO / "README.md"]
    links = [(path, link) for path in documents for link in re.findall(r"\]\(([^)#:]+)[)#]", path.read_text("utf-8"))]
    assert [(path.name, link) for path, link in links if not (path.parent / link).exists()] == []
    for image in (DOCS / "images").iterdir():
        assert image.stat().st_size < 150_000
        assert any(image.name in path.read_text("utf-8") for path in documents), image.name


# -- messages -----------------------------------------------------------------------------------------


def _texts() -> list[str]:
    """Every text of the program, as it stands between what is put in."""
    found = []
    for path in [*(REPO / "bnfold").rglob("*.py"), *(REPO / "cli").rglob("*.py")]:
        tree = ast.parse(path.read_text("utf-8"))
        constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        found += [text for text in constants if isinstance(text, str)]
    return found


# Headings of the page, but for those of its parts.
HEADING = re.compile(r"^###? (?!(?:The|A|Options|recalibrate and insert)\b)(.+)$", re.MULTILINE)
MESSAGES = HEADING.findall((DOCS / "troubleshooting.md").read_text("utf-8"))


def test_every_message_of_the_page_is_one_of_the_program() -> None:
    texts = _texts()
    assert len(MESSAGES) > 35
    pieces = {message: [piece.strip() for piece in message.split("…") if piece.strip()] for message in MESSAGES}
    # A message may be made of two texts, joined by '; '.
    gone = [
        (message, piece)
        for message, parts in pieces.items()
        for part in parts
        for piece in ([part] if _within(part, texts) else part.split("; "))
        if not _within(piece, texts)
    ]
    assert gone == []


def _within(piece: str, texts: list[str]) -> bool:
    return any(piece in text for text in texts)


def test_no_message_of_the_page_is_known_by_chance() -> None:
    """Of each the longest piece is long enough to mean that message alone."""
    assert [message for message in MESSAGES if max(map(len, message.split("…"))) < 8] == []


# -- the site -----------------------------------------------------------------------------------------


def test_site_builds_and_loads_nothing(tmp_path: Path) -> None:
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="the extra docs builds the site")
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    result = subprocess.run(command, cwd=REPO, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    loaded = re.compile(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="?(https?:[^"> ]+)')
    assert {url for page in pages for url in loaded.findall(page.read_text("utf-8"))} == set()
    api = (tmp_path / "api.html").read_text("utf-8")
    assert "Remove BatchNormalization from a model" in api
    assert "<blockquote>" not in api  # examples are code
