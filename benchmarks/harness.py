"""What the benchmarks share: the files, the cost of a process, and what a result is worth.

This module stays within the standard library on purpose.  The peak memory of a process that is started from
here can't be told from what the starting process held at the fork, so the starting process holds nothing; all
that needs numpy or onnx happens in `measure.py`, in a process of its own.
"""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
MODELS = REPO.parent / "shared" / "models"
"""Where the real models and the network skeletons lie, beside the repository."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
"""Environment under which every tool runs; `one_cpu` sees to those that don't listen."""

TIMEOUT = 600
"""Seconds after which a tool is given up."""


class Cost(NamedTuple):
    """What one run of a process took: CPU seconds (user + system), peak MB, and its error line if it failed."""

    cpu: float
    peak: float
    error: str


def files(pattern: str | None = None) -> list[Path]:
    """The files to measure: those of ``pattern``, or every real model and every skeleton."""
    if pattern:
        return [Path(name) for name in sorted(glob.glob(pattern))]
    if not MODELS.is_dir():
        sys.exit(f"{MODELS}: no such folder; name the files with --files")
    return [*sorted((MODELS / "real").glob("*.onnx")), *sorted((MODELS / "architectures").glob("*.onnx"))]


@contextmanager
def ready(path: Path, folder: str) -> Iterator[Path]:
    """The model itself, or a skeleton with its weights filled in, in ``folder``, as long as it is needed."""
    if path.parent.name != "architectures":
        yield path
        return
    full = Path(folder) / path.name
    subprocess.run([sys.executable, MODELS / "hydrate.py", path, full], check=True, stdout=subprocess.DEVNULL)
    try:
        yield full
    finally:
        full.unlink()


def one_cpu() -> None:
    """Keep this process and all it starts on one CPU, where the system allows that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def run(command: list[str]) -> Cost:
    """Run ``command`` to its end and measure the whole process, its start and imports included."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | ONE_THREAD)
        used = _wait(process)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    error = "" if process.returncode == 0 else (lines[-1] if lines else f"exit code {process.returncode}")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, error)  # Linux counts ru_maxrss in KB


def _wait(process: subprocess.Popen[bytes]) -> Any:
    """Wait for the end of the process and give its resource usage, children included."""
    end = time.monotonic() + TIMEOUT
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return used
        if time.monotonic() > end:
            process.kill()
        time.sleep(0.005)


def measure(original: Path, results: list[Path]) -> list[dict[str, Any]]:
    """What `measure.py` says: one dict for the original, then one per result (missing files have none)."""
    command = [sys.executable, str(HERE / "measure.py"), str(original), *map(str, results)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
        return [{"failed": last}] * (1 + len(results))
    return [json.loads(line) for line in answer.stdout.splitlines()]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)
