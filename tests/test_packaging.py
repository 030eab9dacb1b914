"""The wheel holds all of bnfold, the command line as bnfold.cli, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bnfold._version import __version__

ROOT = Path(__file__).resolve().parent.parent
BUILD = "from setuptools.build_meta import build_wheel; build_wheel('out')"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built in a copy: setuptools leaves its build folder beside what it builds."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("bnfold", "cli", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "out").mkdir()
    subprocess.run([sys.executable, "-c", BUILD], cwd=copy, check=True, capture_output=True)
    return next((copy / "out").glob("*.whl"))


def test_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    library = {path.relative_to(ROOT).as_posix() for path in (ROOT / "bnfold").rglob("*.py")}
    command = {"bnfold/cli/" + path.relative_to(ROOT / "cli").as_posix() for path in (ROOT / "cli").rglob("*.py")}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    data = {"bnfold/py.typed", "bnfold/schema.json", "bnfold/page/page.css", "bnfold/page/page.js"}
    assert names == library | command | data


def test_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    """Straight from the archive, which comes before this checkout on the path."""
    result = subprocess.run(
        [sys.executable, "-m", "bnfold", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert __version__ in result.stdout


def test_version_stands_in_one_place() -> None:
    """What else names it is the changelog, whose sections are releases, and results that were printed once."""
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    code = (path for folder in ("bnfold", "cli") for path in (ROOT / folder).rglob("*.py"))
    places = [ROOT / "pyproject.toml", ROOT / "CITATION.cff", *code]
    assert [path.name for path in places if f'"{__version__}"' in path.read_text("utf-8")] == ["_version.py"]


def test_citation_names_the_paper() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    wanted = {"cff-version: 1.2.0", "  - name: bnfold contributors", "      - family-names: Ioffe", "    year: 2015"}
    assert wanted <= set(citation.splitlines())
