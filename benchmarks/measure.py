"""What is left of the per-channel operations in a model, and how far its outputs are from the original's.

    python measure.py ORIGINAL RESULT ...

prints one line of JSON per file, the original first: ``bn``, ``affine`` and ``bias`` as in tests/oracle.py's
`Left`, and ``error``, the largest difference of an output as a part of its largest value, worst output, on one
random input, both models in their own type on ONNX Runtime with its optimisations off (with them on, its own
bugs would be measured).  The original's line has ``noise`` instead: the same figure for the original against
itself with every weight moved by one ulp, which is what the error has to be compared with.  ``failed`` says why
a file could not be measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from oracle import jittered, left, run_native
from referee import ULP, Array

BATCH = 2
SIDES = (64, 32, 128, 224, 48, 1, 16)
"""Sizes tried for open dimensions other than the batch."""


def main(original: str, results: list[str]) -> None:
    model = onnx.load(original)
    feeds, expected = first_run(model)
    print(json.dumps(_counts(model) | _noise(model, feeds, expected)))
    for path in results:
        print(json.dumps(_judge(path, feeds, expected)))


def _noise(model: onnx.ModelProto, feeds: dict[str, Array], expected: dict[str, Array]) -> dict[str, Any]:
    if not expected:
        return {"failed": "ONNX Runtime can't run the original"}
    ulp = ULP[max((t.data_type for t in model.graph.initializer if t.data_type in ULP), default=onnx.TensorProto.FLOAT)]
    moved = run(jittered(model, ulp, np.random.default_rng(0)), feeds)
    return {
        "noise": max((_error(moved[name], value) for name, value in expected.items() if name in moved), default=0.0)
    }


def _judge(path: str, feeds: dict[str, Array], expected: dict[str, Array]) -> dict[str, Any]:
    if not Path(path).exists():
        return {"failed": "no output"}
    try:
        model = onnx.load(path)
    except Exception as error:  # a stranger's file: whatever is wrong with it is the result
        return {"failed": f"unreadable: {error}"}
    if not expected:
        return _counts(model)
    found = run(model, feeds)
    if not found:
        return _counts(model) | {"failed": "ONNX Runtime can't run the result"}
    if any(name not in found or found[name].shape != value.shape for name, value in expected.items()):
        return _counts(model) | {"failed": "other outputs"}
    return _counts(model) | {"error": max(_error(found[name], value) for name, value in expected.items())}


def _counts(model: onnx.ModelProto) -> dict[str, Any]:
    return dict(left(model)._asdict())


def _error(found: Array, expected: Array) -> float:
    """max|d| / max|y|; NaN at the same places is no difference."""
    if expected.dtype.kind not in "fc":
        return float(np.any(found != expected))
    if not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return float("inf")
    finite = np.isfinite(expected)
    d, y = (np.abs(a[finite].astype(float)) for a in (found.astype(float) - expected.astype(float), expected))
    return float(d.max() / (y.max() or 1.0)) if d.size else 0.0


def first_run(model: onnx.ModelProto) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs of the first shape that ONNX Runtime accepts, and the outputs for them; empty if there is none."""
    for batch in (BATCH, 1):
        for side in SIDES:
            feeds = _inputs(model, batch, side)
            outputs = run(model, feeds)
            if outputs:
                return feeds, outputs
            if all(dim.dim_value > 0 for value in model.graph.input for dim in value.type.tensor_type.shape.dim):
                return {}, {}
    return {}, {}


def _inputs(model: onnx.ModelProto, batch: int, side: int) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    fixed = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in (v for v in model.graph.input if v.name not in fixed):
        kind = value.type.tensor_type
        shape = [dim.dim_value if dim.dim_value > 0 else (side if i else batch) for i, dim in enumerate(kind.shape.dim)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feeds[value.name] = np.asarray(drawn).astype(dtype)
    return feeds


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """The outputs without optimisations; empty where ONNX Runtime can't run the model."""
    return run_native(model, feeds) or {}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
