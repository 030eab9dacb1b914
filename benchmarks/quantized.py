"""Quantised models: a trained ResNet-20 as ONNX Runtime's quantiser writes it, folded and compared.

    python benchmarks/quantized.py [--runs 25] [--keep FOLDER]

Prints a markdown table, a row for each way of quantising: BatchNorm before and after, Convs that ONNX Runtime runs in
integers before and after, top-1 on the CIFAR-10 test images of the shared data, how many of them get another answer,
speed (CPU time of the folded file against the original, one thread, batch 8, medians of alternating runs), and r of
the relation check.  The last row moves the rounding behind BatchNorm, in steps measured on 256 training images; beside
the table, how far its outputs are from those without rounding.  Exit code 1 if a BatchNorm is left behind rounding
where that need not be, or an answer changes by more than rounding explains (more than 2 % of the images).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from harness import MODELS, REPO, say, table

DATA = REPO.parent / "shared" / "data" / "cifar10.npz"
IMAGES = 64  # for calibration, as for the shared cifar-resnet20-qdq
MEASURED = 256  # training images for --requantize
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # as the network was trained
WAYS = {
    "int8 weights of each channel": {"per_channel": True},
    "int8 weights, one scale": {"per_channel": False},
    "uint8 weights, one scale": {"per_channel": False, "weights": "QUInt8"},
    "outputs of Conv rounded, too": {"per_channel": True, "outputs": True},
    "the same with --requantize": {"per_channel": True, "outputs": True, "requantize": True},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--keep", help="leave the models in this folder")
    arguments = parser.parse_args()
    rows, faults = [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(arguments.keep or folder)
        place.mkdir(exist_ok=True)
        for name, way in WAYS.items():
            row, fault = _row(place / f"{name.replace(' ', '-')}.onnx", dict(way), arguments.runs)
            rows.append([name, *row])
            faults += [f"{name}: {fault}"] if fault else []
            say(" | ".join(rows[-1]))
    print(table(["quantised", "BN", "left", "integer Convs", "after", "top-1", "after", "other", "speed", "r"], rows))
    print("\n".join(faults))
    return 1 if faults else 0


def _row(path: Path, way: dict[str, Any], runs: int) -> tuple[list[str], str]:
    import bnfold

    requantize = way.pop("requantize", False)
    _quantise(path, **way)
    target = path.with_suffix(".folded.onnx")
    result = bnfold.fold(path, requantize=_images("calib")[0][:MEASURED] if requantize else None)
    result.save(target)
    report, relation = result.report, result.verification.relation
    (before, whole), (after, whole_after) = (_session(file) for file in (path, target))
    x, labels = _images("test")
    name = before.get_inputs()[0].name
    answers = [session.run(None, {name: x})[0].argmax(1) for session in (before, after)]
    right = [int((answer == labels).sum()) for answer in answers]
    other = int((answers[0] != answers[1]).sum())
    speed = _speed([before, after], {name: x[:8]}, runs)
    behind = any(entry.reason == "quantised-values" for entry in report.kept)
    fault = "BN left" if behind and (requantize or not way.get("outputs")) else ""
    for moved in result.requantization.outputs if result.requantization else ():
        say(f"rms from the output without rounding: {moved.rounding_before:.2%}, then {moved.rounding_after:.2%}")
    fault = fault or ("other answers" if other > 0.02 * len(x) else "")
    row = [
        str(report.before.batch_norms), str(report.after.batch_norms), str(whole), str(whole_after),
        f"{right[0]}/{len(x)}", f"{right[1]}/{len(x)}", str(other), f"{speed:.2f} ×",
        f"{relation.worst:.2g}" if relation else "–",
    ]  # fmt: skip
    return row, fault


def _quantise(path: Path, *, per_channel: bool, weights: str = "QInt8", outputs: bool = False) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        MODELS / "real" / "cifar-resnet20.onnx", path, _Calibration(), quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "Add", "Relu"], per_channel=per_channel,
        weight_type=getattr(QuantType, weights), activation_type=QuantType.QUInt8,
        extra_options={} if outputs else {"OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"]},
    )  # fmt: skip


class _Calibration:
    """Training images, as the quantiser asks for them."""

    def __init__(self) -> None:
        images, _ = _images("calib")
        self._batches: Iterator[Any] = iter(np.split(images[:: len(images) // IMAGES][:IMAGES], 8))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


def _images(part: str) -> tuple[Any, Any]:
    with np.load(DATA) as data:
        images, labels = data[f"{part}_x"], data[f"{part}_y"]
    return ((images / 255 - MEAN) / DEVIATION).transpose(0, 3, 1, 2).astype(np.float32), labels


def _session(path: Path) -> tuple[Any, int]:
    """A session with all optimisations, and how many Convs it runs in integers."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(path.with_suffix(".optimised")).graph.node
    path.with_suffix(".optimised").unlink()
    return session, sum(node.op_type == "QLinearConv" for node in nodes)


def _speed(sessions: list[Any], feeds: dict[str, Any], runs: int) -> float:
    """CPU time of the first over that of the second."""
    times: list[list[float]] = [[], []]
    for number in range(runs + 3):
        for session, taken in zip(sessions, times, strict=True):
            start = time.process_time()
            session.run(None, feeds)
            if number >= 3:  # the first ones warm up
                taken.append(time.process_time() - start)
    before, after = (float(np.median(taken)) for taken in times)
    return before / after


if __name__ == "__main__":
    sys.exit(main())
