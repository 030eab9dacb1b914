"""Prune a trained file, and give it statistics of its own.

    python examples/recipes/prune_then_recalibrate.py

Needs nothing but bnfold. The smallest weights of the pre-activation ResNet of sample_models are set to zero. What is
left of the network is good, but its BatchNorms still normalise by the activations of the old one: `bnfold recalibrate`
measures them anew, on 256 digits without labels. Weights that were averaged (SWA, EMA, a soup) or quantised are the
same case: statistics of BN can't be averaged, and `examples/repair_merged_networks.py` shows that with two networks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper

import bnfold

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"
DIGITS = np.load(SAMPLES / "digits.npz")


def pruned(model: ModelProto, share: float) -> ModelProto:
    """The model without that share of its weights, the smallest of all layers together."""
    made = ModelProto()
    made.CopyFrom(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer if len(tensor.dims) > 1}
    limit = np.quantile(np.concatenate([np.abs(weight).ravel() for weight in weights.values()]), share)
    for tensor in made.graph.initializer:
        if tensor.name in weights:
            weight = weights[tensor.name]
            tensor.CopyFrom(numpy_helper.from_array(np.where(np.abs(weight) < limit, 0, weight), tensor.name))
    return made


def accuracy(model: ModelProto) -> str:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, {session.get_inputs()[0].name: DIGITS["test_x"]})[0]
    return f"{(found.argmax(1) == DIGITS['test_y']).mean():6.1%}"


def main() -> None:
    model = onnx.load(SAMPLES / "digits_preact.onnx")
    print(f"as it was{accuracy(model):>16}")
    for share in (0.5, 0.7, 0.8):
        small = pruned(model, share)
        again = bnfold.recalibrate(small, {small.graph.input[0].name: DIGITS["calib_x"]}).model
        folded = bnfold.fold(again)
        assert not folded.kept
        after = f"recalibrated {accuracy(again)}, folded {accuracy(folded.model)}"
        print(f"{share:.0%} pruned{accuracy(small):>15}, {after}")


if __name__ == "__main__":
    main()
