"""Networks whose activations are all rounded, as ONNX Runtime's quantiser writes them, folded with `--requantize`.

    python benchmarks/requantize.py [--files GLOB] [--runs 15]

Prints a markdown table, a row for each network: BatchNorm before, after a plain fold and with `--requantize`; pairs of
QuantizeLinear and DequantizeLinear that moved, and how many of them are gone; how far the first output is from that
without rounding, before and after; speed (CPU time of the result against the quantised file, one thread, medians of
alternating runs).  Networks are quantised on, and steps measured on, 32 samples of noise: the skeletons' weights are
random, so that the distances tell how rounding is passed on, and nothing about accuracy, which `quantized.py` measures.

Exit code 1 if a result is further from the output without rounding than the quantised file was.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import MODELS, files, ready, say, table

NETWORKS = """resnet18.dynamo18 mobilenetv2_050.dynamo20 mobilenetv3_small_050.legacy13 regnetx_002.legacy17
    shufflenet_v2_x0_5.legacy17 unet2d.legacy13 repvgg_a0.dynamo18 mobileone_s0_mini.legacy17 dbbnet.dynamo20""".split()
BATCHES, SAMPLES, SIZE = 8, 4, 64  # SIZE: of images, where the file leaves it open
WARM_UP = 2
WORSE = 1.05


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", help="glob of the files (default: nine skeletons of the shared models)")
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser advises on preprocessing
    chosen = files(arguments.files) if arguments.files else [MODELS / "architectures" / f"{n}.onnx" for n in NETWORKS]
    rows, worse = [], []
    with tempfile.TemporaryDirectory() as folder:
        for path in chosen:
            with ready(path, folder) as model:
                row, is_worse = _row(model, Path(folder), arguments.runs)
            rows.append([path.stem, *row])
            worse += [path.stem] if is_worse else []
            say(" | ".join(rows[-1]))
    print(table(["network", "BN", "fold", "--requantize", "pairs", "gone", "rounding", "after", "speed"], rows))
    print(f"\nfurther from the output without rounding: {', '.join(worse) or 'none'}")
    return 1 if worse else 0


def _row(model: Path, folder: Path, runs: int) -> tuple[list[str], bool]:
    import bnfold

    rounded, target = folder / "quantised.onnx", folder / "requantised.onnx"
    batches = _samples(model)
    _quantise(model, rounded, batches)
    plain = bnfold.fold(rounded, verify=False).report
    result = bnfold.fold(rounded, requantize=batches)
    result.save(target, overwrite=True)
    counts = [str(plain.before.batch_norms), str(plain.after.batch_norms), str(result.report.after.batch_norms)]
    found = result.requantization
    if found is None:
        return [*counts, "0", "0", "–", "–", "–"], False
    first = found.outputs[0]
    row = [
        *counts, str(len(found.pairs)), str(len(found.gone)), f"{first.rounding_before:.1%}",
        f"{first.rounding_after:.1%}", f"{_speed([rounded, target], batches[0], runs):.2f} ×",
    ]  # fmt: skip
    return row, first.rounding_after > WORSE * first.rounding_before


def _samples(model: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    ports = _session(model).get_inputs()
    shapes = {port.name: [size if isinstance(size, int) else (SIZE if axis else SAMPLES)
                          for axis, size in enumerate(port.shape)] for port in ports}  # fmt: skip
    return [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
            for _ in range(BATCHES)]  # fmt: skip


def _quantise(model: Path, target: Path, batches: list[dict[str, Any]]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

    quantize_static(
        model, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )  # fmt: skip


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _speed(paths: list[Path], feeds: dict[str, Any], runs: int) -> float:
    """CPU time of the first over that of the second."""
    sessions = [_session(path) for path in paths]
    ratios = []
    for number in range(runs + WARM_UP):
        taken = []
        for session in sessions:
            start = time.process_time()
            session.run(None, feeds)
            taken.append(time.process_time() - start)
        if number >= WARM_UP:
            ratios.append(taken[0] / taken[1])
    return statistics.median(ratios)


if __name__ == "__main__":
    sys.exit(main())
