"""Does OpenVINO compute the same with the folded file?

    python examples/recipes/openvino_consumer.py [MODEL.onnx …]

Needs openvino. Without arguments it takes the networks of sample_models. Inputs are random; each model is run as it is
and folded, in float32, and what the two differ by is set beside what they differ by on ONNX Runtime.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino

import bnfold

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"


def main() -> int:
    worst = 0.0
    for model in sys.argv[1:] or map(str, sorted(SAMPLES.glob("*.onnx"))):
        with tempfile.TemporaryDirectory() as folder:
            result = bnfold.fold(model)
            folded = str(result.save(Path(folder) / "folded.onnx")[0])
            feeds = inputs(model)
            apart = {run.__name__: difference(run(model, feeds), run(folded, feeds)) for run in (openvino_, ort)}
        worst = max(worst, apart["openvino_"])
        before, after = result.report.before.batch_norms, result.report.after.batch_norms
        print(f"{Path(model).stem:<20} BN {before} → {after}, relative difference: OpenVINO {apart['openvino_']:.1e}, "
              f"ONNX Runtime {apart['ort']:.1e}")  # fmt: skip
    return int(worst > 1e-4)


def inputs(model: str) -> dict[str, Any]:
    """Random ones; sizes that the model leaves open are 2."""
    rng = np.random.default_rng(0)
    graph = onnx.load(model, load_external_data=False).graph
    initial = {tensor.name for tensor in graph.initializer}
    return {
        info.name: rng.standard_normal([dim.dim_value or 2 for dim in info.type.tensor_type.shape.dim]).astype("f4")
        for info in graph.input if info.name not in initial
    }  # fmt: skip


def openvino_(model: str, feeds: dict[str, Any]) -> list[Any]:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return list(compiled(feeds).values())


def ort(model: str, feeds: dict[str, Any]) -> list[Any]:
    return list(onnxruntime.InferenceSession(model).run(None, feeds))


def difference(a: list[Any], b: list[Any]) -> float:
    """The largest, relative to the largest value of its output."""
    return max(float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30)) for x, y in zip(a, b, strict=True))


if __name__ == "__main__":
    sys.exit(main())
