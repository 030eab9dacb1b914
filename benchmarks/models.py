"""Every model: fold each file, and compare what is left with what is known to be possible.

    python benchmarks/models.py [--files GLOB] [--verify]

Prints a markdown table: BatchNorm and other per-channel operations before and after, the figure of the research
prototype (`prototype.json`: BatchNorm left by its better order, without merging / with), CPU seconds of the whole
process, and the largest output error beside the model's own noise (`measure.py`).  Exit code 1 when any file
fails or is wrong, has more BatchNorm left than the prototype left, or more per-channel operations than before.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import HERE, Cost, files, measure, one_cpu, ready, run, say, table
from tools import command

WRONG_ABOVE = 100.0
"""An error of so many times the response to one ulp on the weights is no rounding (of 133 files the worst right
one has 25, the next 2; the wrong folds seen while bnfold was made began at 30,000)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", help="glob of the files (default: every real model and every skeleton)")
    parser.add_argument("--verify", action="store_true", help="let bnfold verify every result on ONNX Runtime, too")
    arguments = parser.parse_args()
    known = json.loads((HERE / "prototype.json").read_text())
    one_cpu()
    rows, faults, sums = [], [], {"before": 0, "after": 0, "ops before": 0, "ops after": 0}
    with tempfile.TemporaryDirectory() as folder:
        for path in files(arguments.files):
            target = Path(folder) / "folded" / path.name
            target.parent.mkdir(exist_ok=True)
            with ready(path, folder) as model:
                words = command("bnfold", str(model), str(target))
                cost = run([word for word in words if not (arguments.verify and word == "--no-verify")])
                before, after = measure(model, [target])
            target.unlink(missing_ok=True)
            fault = _fault(before, after, cost, known.get(path.name))
            faults += [f"{path.name}: {fault}"] if fault else []
            rows.append([path.name, *_cells(before, after, known.get(path.name)), f"{cost.cpu:.2f}", f"{cost.peak:.0f}",
                         _figure(after, "error"), _figure(before, "noise"), fault])  # fmt: skip
            for key, row in (("before", before), ("after", after)):
                sums[key] += row.get("bn", 0)
                sums[f"ops {key}"] += row.get("bn", 0) + row.get("affine", 0)
            say(" | ".join(rows[-1]))
    print(table(["file", "BN", "left", "prototype", "per-channel", "left", "CPU s", "MB", "error", "noise", ""], rows))
    print(f"\n{len(rows)} files: BN {sums['before']} -> {sums['after']}, per-channel operations "
          f"{sums['ops before']} -> {sums['ops after']}; {len(faults)} faults")  # fmt: skip
    print("\n".join(faults))
    return 1 if faults else 0


def _fault(before: dict[str, Any], after: dict[str, Any], cost: Cost, prototype: dict[str, int] | None) -> str:
    """What is wrong with this result; empty if nothing is."""
    if cost.error:
        return cost.error
    if "bn" not in after or ("failed" in after and "failed" not in before):
        return str(after["failed"])
    if after.get("error", 0.0) > WRONG_ABOVE * max(before.get("noise", 0.0), 2.0**-24):
        return "wrong: the error is no rounding"
    limit = prototype["merge"] if prototype else before["bn"]
    if after["bn"] > limit:
        return f"{after['bn']} BN left, {limit} are possible"
    if after["bn"] + after["affine"] > before["bn"] + before["affine"]:
        return "more per-channel operations than before"
    return ""


def _cells(before: dict[str, Any], after: dict[str, Any], prototype: dict[str, int] | None) -> list[str]:
    return [
        str(before.get("bn", "?")),
        str(after.get("bn", "?")),
        f"{prototype['fold']} / {prototype['merge']}" if prototype else "",
        str(before.get("bn", 0) + before.get("affine", 0)),
        str(after.get("bn", 0) + after.get("affine", 0)) + (f" + {after['bias']}" if after.get("bias") else ""),
    ]


def _figure(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.0e}" if key in row else "not run"


if __name__ == "__main__":
    sys.exit(main())
