"""Fold, then quantise, or the other way round: which keeps more accuracy?

    python benchmarks/quantization_order.py [--calibration 256]

ONNX Runtime's static quantiser (QDQ, uint8 activations, int8 weights, min and max over the calibration images) on
trained networks: the shared CIFAR-10 resnet20 (Conv + BN throughout), the shared MNIST CNN (BN in odd places), and the
pre-activation ResNet of sample_models. Four ways, each with one scale per tensor and with one per channel of a weight:

    quantise         the model with its BN
    ORT, quantise    `quant_pre_process` first: ONNX Runtime's own optimiser, which folds Conv + BN
    fold, quantise   `bnfold fold` first
    quantise, fold   the quantiser first, then `bnfold fold`

Prints top-1 on the test images and how many BN are left.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from harness import REPO, table
from recalibration import SHARED, top1

import bnfold

Array = Any
MEAN, STD = (np.array(of, np.float32)[:, None, None] for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@dataclass(frozen=True)
class Case:
    """A trained network, images to calibrate on, images to judge by."""

    model: Path
    calibration: Array
    x: Array
    y: Array


def cifar() -> Case:
    found = np.load(SHARED / "data" / "cifar10.npz")

    def prepared(images: Array) -> Array:
        return (np.moveaxis(images, -1, 1).astype(np.float32) / 255 - MEAN) / STD

    calibration = found["calib_x"][np.random.default_rng(0).permutation(len(found["calib_x"]))]
    model = SHARED / "models" / "real" / "cifar-resnet20.onnx"
    return Case(model, prepared(calibration), prepared(found["test_x"]), found["test_y"])


def mnist() -> Case:
    found = np.load(SHARED / "data" / "mnist.npz")
    x, calibration = (found[name].reshape(-1, 1, 28, 28).astype(np.float32) / 255 for name in ("test_x", "train_x"))
    return Case(SHARED / "models" / "real" / "mnist-cnn-bn.onnx", calibration, x, found["test_y"])


def digits() -> Case:
    samples = REPO / "sample_models"
    found = np.load(samples / "digits.npz")
    return Case(samples / "digits_preact.onnx", found["calib_x"], found["test_x"], found["test_y"])


NETWORKS: dict[str, Callable[[], Case]] = {
    "CIFAR-10 resnet20": cifar, "MNIST CNN": mnist, "digits, pre-activation ResNet": digits,
}  # fmt: skip
WAYS = ("quantise", "ORT, quantise", "fold, quantise", "quantise, fold")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--calibration", type=int, default=256, help="images")
    images = parser.parse_args().calibration
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = []
    for name, load in NETWORKS.items():
        case = load()
        for per_channel in (False, True):
            kind = "per channel" if per_channel else "per tensor"
            cells = [_cell(*measured(case, way, images, per_channel)) for way in WAYS]
            before = _cell(top1(case.model, case.x, case.y), count(case.model))
            rows.append([name, kind, before, *cells])
            print("; ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(["network", "scales of weights", "float", *WAYS], rows))
    return 0


def _cell(accuracy: float, norms: int) -> str:
    return f"{accuracy:.2f} % ({norms} BN)"


def measured(case: Case, way: str, images: int, per_channel: bool) -> tuple[float, int]:
    """Top-1 in per cent, and BN left."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, done = case.model, folder / "quantised.onnx"
        if way.startswith("fold"):
            model = bnfold.fold(model).save(folder / "folded.onnx")[0]
        elif way.startswith("ORT"):
            quant_pre_process(str(model), str(folder / "prepared.onnx"))
            model = folder / "prepared.onnx"
        quantise(model, done, case.calibration[:images], per_channel)
        if way.endswith("fold"):
            done = bnfold.fold(done).save(folder / "after.onnx")[0]
        return top1(done, case.x, case.y), count(done)


def quantise(model: Path, target: Path, calibration: Array, per_channel: bool) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    name = onnx.load(model, load_external_data=False).graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches: Iterator[Array] = iter(np.array_split(calibration, max(1, len(calibration) // 32)))

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self._batches, None)
            return None if batch is None else {name: batch}

    quantize_static(
        str(model), str(target), Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, per_channel=per_channel,
    )  # fmt: skip


def count(model: Path) -> int:
    return sum(node.op_type == "BatchNormalization" for node in onnx.load(model).graph.node)


if __name__ == "__main__":
    sys.exit(main())
