"""A few hundred cases of each fuzz target; `fuzz/run.py` goes on for as long as one likes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import REPO

# The cases of every run are the same: a failure here is one that a change brought.
CASES = {"model": 100, "layout": 100, "samples": 150}


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
@pytest.mark.parametrize("target", CASES)
def test_mutations_are_refused_or_read(target: str) -> None:
    command = [sys.executable, REPO / "fuzz" / "run.py", "--target", target, "--cases", str(CASES[target])]
    done = subprocess.run([*command, "--minutes", "5"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {line.split(" ", 1)[1]: int(line.split(" ", 1)[0]) for line in done.stdout.strip().split(", ")}
    assert sum(counts.values()) == CASES[target]
    assert f"{target} refused" in counts
    assert {f"{target} read", f"{target} folded"} & set(counts), "nothing got through: the seeds are no good"
