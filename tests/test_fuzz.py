"""A few hundred cases of each fuzz target; `fuzz/run.py` goes on for as long as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

# The cases of every run are the same: a failure here is one that a change brought.
CASES = {"model": 100, "layout": 100, "samples": 150, "image": 100, "undo": 100, "checkpoint": 100}


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
@pytest.mark.parametrize("target", CASES)
def test_mutations_are_refused_or_read(target: str) -> None:
    if target == "image":
        pytest.importorskip("PIL")
    command = [sys.executable, REPO / "fuzz" / "run.py", "--target", target, "--cases", str(CASES[target])]
    done = subprocess.run([*command, "--minutes", "5"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {line.split(" ", 1)[1]: int(line.split(" ", 1)[0]) for line in done.stdout.strip().split(", ")}
    assert sum(counts.values()) == CASES[target]
    assert f"{target} refused" in counts
    assert {f"{target} read", f"{target} folded"} & set(counts), "nothing got through: the seeds are no good"


def test_a_guided_run(tmp_path: Path) -> None:
    """A thousand cases where coverage leads the way, and a corpus that is there afterwards."""
    pytest.importorskip("atheris", reason="has no wheel for this machine")
    command = [sys.executable, REPO / "fuzz" / "run.py", "--atheris", "layout", "--corpus", tmp_path / "corpus"]
    done = subprocess.run([*command, "--", "-runs=1000"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Done 1000 runs" in done.stderr
    kept = {path.name for path in (tmp_path / "corpus").iterdir()}
    assert {"seed-000", "seed-001"} < kept
    assert [name for name in kept if not name.startswith("seed-")], "nothing led to a new line"
