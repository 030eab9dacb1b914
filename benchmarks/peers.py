"""bnfold beside the existing tools, in one run, on the same files: cost, and what is left.

    python benchmarks/peers.py [--files GLOB] [--runs 3] [--tools NAME,NAME] [--json FILE]

For every file and tool: CPU seconds (user + system) and peak memory of the whole process, the BatchNorm and the
other per-channel operations left, and the largest output error.  Runs are interleaved, tool by tool, so that a
busy minute of the machine hits all of them; the median counts.  Everything runs on one CPU with one thread.
The tables go to stdout in markdown, progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from harness import Cost, files, measure, one_cpu, ready, run, say, table
from tools import TOOLS, command, installed

FLOORS = ("load+save", "cp")
"""No folders: what reading and writing a model costs at least."""

WRONG = 10**9
"""What a result that failed or is wrong counts as having left."""


def main() -> int:
    arguments = _arguments()
    names = [name for name in arguments.tools.split(",") if name] or list(TOOLS)
    for name in [name for name in names if not installed(name)]:
        say(f"{name}: not installed, skipped")
    names = [name for name in names if installed(name)]
    one_cpu()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in files(arguments.files):
            with ready(path, folder) as model:
                rows[path.name] = measure_file(model, names, arguments.runs, folder)
            say(f"{path.name}: " + ", ".join(f"{name} {_left(rows[path.name][name])}" for name in names))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1))
    print("\n\n".join(report(rows, names)))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", help="glob of the files (default: every real model and every skeleton)")
    parser.add_argument("--runs", type=int, default=3, help="runs of every tool on every file; the median counts")
    parser.add_argument("--tools", default="", help=f"comma-separated, from: {', '.join(TOOLS)}")
    parser.add_argument("--json", help="write all figures to this file, too")
    return parser.parse_args()


def measure_file(model: Path, names: list[str], runs: int, folder: str) -> dict[str, dict[str, Any]]:
    """One dict per tool (and ``""`` for the file itself): cpu, peak, what `measure.py` found, or failed."""
    targets = {name: Path(folder) / f"{i}.onnx" for i, name in enumerate(names)}
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for _ in range(runs):
        for name, target in targets.items():
            target.unlink(missing_ok=True)
            costs[name].append(run(command(name, str(model), str(target))))
    judged = measure(model, list(targets.values()))
    rows = {"": judged[0] | {"mb": model.stat().st_size / 1e6}}
    for name, verdict in zip(names, judged[1:], strict=True):
        rows[name] = verdict | {"cpu": median(c.cpu for c in costs[name]), "peak": median(c.peak for c in costs[name])}
        if costs[name][-1].error:
            rows[name]["failed"] = costs[name][-1].error
    for target in targets.values():
        target.unlink(missing_ok=True)
    return rows


# ----------------------------------------------------------------------------------------------- the report
def report(rows: dict[str, dict[str, dict[str, Any]]], names: list[str]) -> list[str]:
    """The tables and the summary."""
    folders = [name for name in names if name not in FLOORS]
    parts = [
        "## Left: BatchNorm + other per-channel operations (+ biases of MatMul)",
        table(["file", "before", *folders], [[f, *(_left(r[n]) for n in ["", *folders])] for f, r in rows.items()]),
        "## CPU seconds of the whole process / peak MB",
        table(["file (MB)", *names], [[f"{f} ({r['']['mb']:.1f})" if "mb" in r[""] else f,
                                       *(f"{r[n]['cpu']:.2f} / {r[n]['peak']:.0f}" for n in names)]
                                      for f, r in rows.items()]),
        "## Largest error: max|d| / max|y|, worst output, one random input",
        table(["file", *folders], [[f, *(_error(r[n]) for n in folders)] for f, r in rows.items()]),
    ]  # fmt: skip
    if "bnfold" in names:
        parts += ["## Summary", *_summary(rows, names)]
    return parts


def _left(row: dict[str, Any]) -> str:
    if "bn" not in row:
        return "failed"
    return f"{row['bn']} + {row['affine']}" + (f" (+ {row['bias']})" if row["bias"] else "")


def _error(row: dict[str, Any]) -> str:
    if "failed" in row:
        return str(row["failed"])[:60].replace("|", "/")
    return f"{row['error']:.0e}" if "error" in row else "not run"


def _summary(rows: dict[str, dict[str, dict[str, Any]]], names: list[str]) -> list[str]:
    others = [name for name in names if name not in (*FLOORS, "bnfold")]
    parts = []
    for what, of in (("BatchNorm", _bn), ("per-channel operations", _all)):
        better: list[str] = []
        worse: list[str] = []
        for file, row in rows.items():
            best = min((of(row[name]) for name in others), default=WRONG)
            better += [file] * (of(row["bnfold"]) < best)
            worse += [file] * (of(row["bnfold"]) > best)
        parts.append(
            f"{what} left, bnfold against the best right result of any tool: fewer on {len(better)} files, "
            f"equal on {len(rows) - len(better) - len(worse)}, more on {len(worse)}"
            + "".join(f"\n- more: {file}" for file in worse)
        )
    ratios = []
    for name in [name for name in names if name != "bnfold"]:
        both = [(r["bnfold"]["cpu"] / max(r[name]["cpu"], 0.01), r["bnfold"]["peak"] / r[name]["peak"], f)
                for f, r in rows.items() if "failed" not in r[name] or "bn" in r[name]]  # fmt: skip
        if both:
            worst = max(both)
            ratios.append([name, f"{median(b[0] for b in both):.2f}", f"{worst[0]:.2f} ({worst[2]})",
                           f"{median(b[1] for b in both):.2f}", f"{max(b[1] for b in both):.2f}"])  # fmt: skip
    head = ["bnfold relative to", "CPU, median", "CPU, worst", "peak, median", "peak, worst"]
    return [*parts, table(head, ratios)]


def _bn(row: dict[str, Any]) -> int:
    return int(row["bn"]) if _is_right(row) else WRONG


def _all(row: dict[str, Any]) -> int:
    return int(row["bn"]) + int(row["affine"]) if _is_right(row) else WRONG


def _is_right(row: dict[str, Any]) -> bool:
    # 1e-2: far above what rounding does to these models in float16, far below a wrong fold
    return "failed" not in row and row.get("error", 0.0) < 1e-2


if __name__ == "__main__":
    sys.exit(main())
