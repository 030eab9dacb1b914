"""Fold a model in Python, look at what became of every BatchNorm, and compare the outputs.

    python examples/fold_in_a_pipeline.py [MODEL]

Without an argument it takes the pre-activation network of sample_models.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

import bnfold

SAMPLE = Path(__file__).resolve().parent.parent / "sample_models" / "digits_preact.onnx"


def main() -> None:
    """Fold, report, compare."""
    path = sys.argv[1] if len(sys.argv) > 1 else str(SAMPLE)
    result = bnfold.fold(path)  # raises bnfold.NotEquivalentError rather than return a wrong model
    before, after = result.report.before, result.report.after
    print(f"{before.batch_norms} BatchNorm -> {after.batch_norms}; per-channel ops {before.per_channel_ops} -> "
          f"{after.per_channel_ops}")  # fmt: skip
    for entry in result.report.entries:
        print(f"  {entry.name}: {entry.outcome}, {entry.sentence}")

    original = onnxruntime.InferenceSession(path)
    folded = onnxruntime.InferenceSession(result.model.SerializeToString())
    rng = np.random.default_rng(0)
    feeds = {
        port.name: rng.standard_normal([size if isinstance(size, int) else 4 for size in port.shape]).astype(np.float32)
        for port in original.get_inputs()
    }
    for expected, found in zip(original.run(None, feeds), folded.run(None, feeds), strict=True):
        print(f"largest difference {np.abs(expected - found).max():.2g} of outputs up to {np.abs(expected).max():.2g}")


if __name__ == "__main__":
    main()
