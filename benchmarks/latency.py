"""Latency on ONNX Runtime: the folded file against the original, both as ORT itself optimises them (ORT_ENABLE_ALL).

    python benchmarks/latency.py [--files GLOB] [--batches 1 8] [--threads 1 2] [--runs 25] [--no-merge] [--kept HOW]
                                 [--norms]

Each file is folded, sessions of both are made, and they run in turn, so that a busy machine slows both.  Times are CPU
times of the process (all threads), medians over the runs; a ratio above 1 says how many times as fast the folded file
is: the median of the ratios of runs next to each other, of which two sessions of one file stay within 0.01 on a machine
where their medians are 0.02 apart.  Sessions are made `CREATIONS` times, alternating, too.  Each file has a process of
its own.

Exit code 1 if anything is slower than 0.98 times the original.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import files, ready, say, table

CREATIONS = 5
SLOWER_BELOW = 0.98
WARM_UP = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", help="glob of the files (default: every real model and every skeleton)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--size", type=int, default=0, help="of images, where the file leaves it open")
    parser.add_argument("--no-merge", action="store_true")
    parser.add_argument("--kept", default="auto", help="as bnfold fold has it")
    parser.add_argument("--norms", action="store_true", help="as bnfold fold has it")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(_measure(*arguments.one, arguments))
        return 0
    head = ["file", "MB", "session ms"]
    head += [f"batch {b}, {t} thread{'s' * (t > 1)}" for b in arguments.batches for t in arguments.threads]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in files(arguments.files):
            target = Path(folder) / f"folded.{path.name}"
            with ready(path, folder) as model:
                options = [word for word in sys.argv[1:] if word != "--one"]
                command = [sys.executable, __file__, *options, "--one", str(model), str(target)]
                answer = subprocess.run(command, capture_output=True, text=True, check=False)
            target.unlink(missing_ok=True)
            last = (answer.stdout or answer.stderr).strip().splitlines() or ["nothing was said"]
            rows.append([path.name, *last[-1].split("|")])
            say(" | ".join(rows[-1]))
    print(table(head, rows))
    slow = [row for row in rows if any("× " in cell and float(cell.split("×")[0]) < SLOWER_BELOW for cell in row[3:])]
    print(f"\n{len(rows)} files; slower than {SLOWER_BELOW} ×: {', '.join(row[0] for row in slow) or 'none'}")
    return 1 if slow else 0


def _measure(model: str, target: str, arguments: argparse.Namespace) -> str:
    """One row: cells joined by |."""
    import bnfold

    options = {"merge": not arguments.no_merge, "kept": arguments.kept, "norms": arguments.norms}
    bnfold.fold(model, verify=False, **options).save(target)
    sizes = " → ".join(f"{Path(path).stat().st_size / 1e6:.1f}" for path in (model, target))
    pair = (model, target)
    _creation(pair)
    cells = [sizes, " → ".join(f"{1000 * seconds:.0f}" for seconds in _creation(pair))]
    for batch in arguments.batches:
        for threads in arguments.threads:
            try:
                before, after, ratio = _latency(pair, batch, threads, arguments)
            except Exception as error:  # a batch that the file doesn't take
                cells.append(str(error).splitlines()[0][:40].replace("|", "/"))
                continue
            cells.append(f"{ratio:.2f} × ({1000 * before:.2f} → {1000 * after:.2f} ms)")
    return "|".join(cells)


def _session(path: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting is no work
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _creation(pair: tuple[str, str]) -> list[float]:
    return _alternating([lambda path=path: _session(path, 1) for path in pair], CREATIONS)[:2]


def _latency(pair: tuple[str, str], batch: int, threads: int, arguments: argparse.Namespace) -> list[float]:
    sessions = [_session(path, threads) for path in pair]
    feeds = _feeds(sessions[0], batch, arguments.size)
    calls = [lambda session=session: session.run(None, feeds) for session in sessions]
    for call in calls * WARM_UP:
        call()
    return _alternating(calls, arguments.runs)


def _alternating(calls: list[Callable[[], Any]], runs: int) -> list[float]:
    """Median CPU seconds of either call, and the median of their ratios; they take turns, and begin in turn."""
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(runs):
        order = list(enumerate(calls))
        for index, call in order if number % 2 else order[::-1]:
            start = time.process_time()
            call()
            seconds[index].append(time.process_time() - start)
    ratios = [before / after for before, after in zip(*seconds, strict=True)]
    return [*(statistics.median(row) for row in seconds), statistics.median(ratios)]


def _feeds(session: Any, batch: int, size: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs: the batch on the first open axis, images of `size` or 64."""
    rng = np.random.default_rng(0)
    feeds = {}
    for info in session.get_inputs():
        shape = [dim if isinstance(dim, int) and dim > 0 else (size or 64) if axis else batch
                 for axis, dim in enumerate(info.shape)]  # fmt: skip
        if batch > 1 and shape and shape[0] != batch:
            raise ValueError(f"batch {shape[0]} is fixed")
        kind = info.type.removeprefix("tensor(").removesuffix(")")
        dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
        if "float" in dtype:
            feeds[info.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[info.name] = rng.integers(0, 2, shape).astype(dtype)
    return feeds


if __name__ == "__main__":
    sys.exit(main())
