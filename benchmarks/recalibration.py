"""What `bnfold recalibrate` wins back, and what it costs.

    python benchmarks/recalibration.py table [--only CONDITION,…]
    python benchmarks/recalibration.py speed MODEL [MODEL …] [--batch 16] [--samples 192] [--size 128]

`table`: a trained CIFAR-10 resnet20 whose weights or inputs are damaged in twelve ways, recalibrated through the
command line on 1,024 images; accuracy on 1,017 test images beside that of a reference that shares no code with
bnfold. Exit code 1 when a cell is more than a point off, or when the network with perturbed or with reset statistics
does not come out as the clean one, to the last digit.

`speed`: CPU seconds (user + system) of recalibration over those of plain inference, ONNX Runtime, the same file and
batches, in one process, interleaved; sessions are created within the time. And the peak memory of both, each in a
process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import REPO, one_cpu, say, table

SHARED = REPO.parent / "shared"
REFERENCE = SHARED / "reference" / "recalibration_table.py"
WEIGHTS = SHARED / "reference" / "resnet20_cifar10_weights.npz"
IMAGES = SHARED / "data" / "cifar10.npz"

# Top-1 in per cent as the reference computes it (recalibration_table.py table … --n 1024 --limit 2000): before,
# pooled, pooled on augmented images, exact.
EXPECTED = {
    "clean": (91.64, 88.10, 91.45, 88.20),
    "w4": (87.12, 86.23, 90.95, 86.23),
    "w3": (30.29, 72.17, 79.06, 72.17),
    "pruneG50": (90.56, 87.91, 92.04, 87.71),
    "pruneG70": (71.68, 81.42, 87.32, 81.81),
    "pruneL70": (59.78, 78.76, 83.68, 78.86),
    "wnoise30": (78.76, 86.63, 90.95, 86.53),
    "gnoise": (24.58, 58.90, 65.09, 58.90),
    "contrast": (39.63, 80.83, 83.28, 80.63),
    "bright": (85.64, 83.19, 89.48, 83.19),
    "bnperturb": (18.09, 88.10, 91.45, 88.20),
    "bnreset": (10.42, 88.10, 91.45, 88.20),
}
COLUMNS = ("before", "pooled", "pooled, augmented", "exact")
TOLERANCE = 1.0
CALIBRATION = 1024

Array = Any


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    of_table = verbs.add_parser("table")
    of_table.add_argument("--only", help="conditions, separated by commas")
    of_speed = verbs.add_parser("speed")
    of_speed.add_argument("models", nargs="+")
    of_speed.add_argument("--batch", type=int, default=16)
    of_speed.add_argument("--samples", type=int, default=192)
    of_speed.add_argument("--size", type=int, default=128, help="of the images")
    of_speed.add_argument("--runs", type=int, default=3)
    of_memory = verbs.add_parser("memory", help="of one form; speed calls it")
    of_memory.add_argument("form")
    of_memory.add_argument("models", nargs=1)
    for name in ("--batch", "--samples"):
        of_memory.add_argument(name, type=int)
    arguments = parser.parse_args()
    if arguments.verb == "table":
        return accuracy_table(arguments.only.split(",") if arguments.only else list(EXPECTED))
    one_cpu()
    if arguments.verb == "memory":
        print(peak(arguments.models[0], arguments.form, arguments.batch, arguments.samples))
        return 0
    return speed(arguments)


# -- accuracy -----------------------------------------------------------------------------------------


def accuracy_table(conditions: list[str]) -> int:
    import numpy as np

    if not REFERENCE.exists():
        sys.exit(f"{REFERENCE}: no such file")
    reference = module_at(REFERENCE)
    kinds = {name: (weights, shift) for name, weights, shift in reference.CONDITIONS}
    images = dict(np.load(IMAGES))
    pool = images["calib_x"] if "calib_x" in images else images["train_x"]
    chosen = pool[np.random.default_rng(20).permutation(len(pool))[:CALIBRATION]]
    rows, faults, written = [], [], dict[tuple[str, str], bytes]()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, REFERENCE, "models", WEIGHTS, folder], check=True)
        for name in conditions:
            damage, shift = kinds[name]
            model = Path(folder) / f"resnet20_{damage}.onnx"
            test = reference.shift(images["test_x"], shift, 1001)
            found = [top1(model, test, images["test_y"])]
            plain, augmented = Path(folder) / "plain.npz", Path(folder) / "augmented.npz"
            np.savez(plain, x=reference.shift(chosen, shift, 1002))
            np.savez(augmented, x=reference.shift(reference.augment(chosen), shift, 1003))
            for column, data in zip(COLUMNS[1:], (plain, augmented, plain), strict=True):
                target = Path(folder) / "out.onnx"
                method = column.split(",")[0]
                words = ["recalibrate", model, "--data", f"{data}:x", "--method", method, "-o", target, "--force", "-q"]
                subprocess.run([sys.executable, "-m", "bnfold", *map(str, words)], check=True)
                found.append(top1(target, test, images["test_y"]))
                written[name, column] = target.read_bytes()
            say(" ".join([name, *(f"{value:.2f}" for value in found)]))
            rows.append([name, *(f"{v:.2f} ({v - e:+.2f})" for v, e in zip(found, EXPECTED[name], strict=True))])
            faults += [
                f"{name}, {column}: {value:.2f}, not {expected:.2f}"
                for column, value, expected in zip(COLUMNS, found, EXPECTED[name], strict=True)
                if abs(value - expected) > TOLERANCE
            ]
    for (name, column), content in written.items():
        if name in ("bnperturb", "bnreset") and written.get(("clean", column), content) != content:
            faults.append(f"{name}, {column}: not what the clean network becomes")
    print(table(["condition", *(f"{column} (− reference)" for column in COLUMNS)], rows))
    say("\n".join(faults))
    return bool(faults)


def module_at(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def top1(model: Path, x: Array, y: Array) -> float:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model))
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: x[start : start + 250]})[0].argmax(1) for start in range(0, len(x), 250)]
    return float((np.concatenate(parts) == y).mean() * 100)


# -- cost ---------------------------------------------------------------------------------------------


def speed(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        rows = [_costs(str(_resized(model, arguments.size, folder)), arguments) for model in arguments.models]
    print(table(["model", "plain, s", "plain, MB", "pooled / plain", "memory", "exact / plain", "memory"], rows))
    return 0


def _resized(model: str, size: int, folder: str) -> Path:
    """A copy that takes images of another size."""
    import onnx

    proto = onnx.load(model)
    for info in proto.graph.input:
        for dim in info.type.tensor_type.shape.dim[2:]:
            dim.dim_value = size
    del proto.graph.value_info[:]
    target = Path(folder) / Path(model).name
    onnx.save(proto, target)
    return target


def _costs(model: str, arguments: argparse.Namespace) -> list[str]:
    forms = _forms(model, arguments.batch, arguments.samples)
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(arguments.runs):
        for form, act in forms.items():
            start = time.process_time()
            act()
            seconds[form].append(time.process_time() - start)
    settings = [f"--batch={arguments.batch}", f"--samples={arguments.samples}"]
    memory = {}
    for form in forms:
        words = [sys.executable, __file__, "memory", form, model, *settings]
        memory[form] = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    row = [Path(model).name, f"{statistics.median(seconds['plain']):.2f}", f"{memory['plain']:.0f}"]
    for form in ("pooled", "exact"):
        ratios = sorted(mine / other for mine, other in zip(seconds[form], seconds["plain"], strict=True))
        row.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        row.append(f"{memory[form] / memory['plain']:.2f}")
    say(" | ".join(row))
    return row


def peak(model: str, form: str, batch: int, samples: int) -> float:
    """Peak MB of a form over what the process held before."""
    act = _forms(model, batch, samples)[form]
    Path("/proc/self/clear_refs").write_text("5")  # the mark that a process inherits would be its parent's
    before = _high_water()
    act()
    return _high_water() - before


def _high_water() -> float:
    """MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _forms(model: str, batch: int, samples: int) -> dict[str, Callable[[], object]]:
    """What is compared, on the same random batches: made as they are asked for, once for all forms."""
    import numpy as np
    import onnxruntime

    import bnfold
    from bnfold.model_file import load
    from bnfold.verify.inputs import ports

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    rng = np.random.default_rng(0)
    shapes = {port.name: port.shape[1:] for port in ports(load(model).proto)[0]}
    data = [
        {name: rng.standard_normal((batch, *shape), np.float32) for name, shape in shapes.items()}
        for _ in range(samples // batch)
    ]

    def plain() -> None:
        session = onnxruntime.InferenceSession(model, options)
        for feeds in data:
            session.run(None, feeds)

    def measured(method: Any) -> Callable[[], object]:
        def stream() -> Iterator[dict[str, Array]]:
            yield from data

        return lambda: bnfold.recalibrate(model, stream(), method=method, batch_size=batch)

    return {"plain": plain, "pooled": measured("pooled"), "exact": measured("exact")}


if __name__ == "__main__":
    sys.exit(main())
