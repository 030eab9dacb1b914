"""Round a network's weights to 3 bits, watch its accuracy fall, and win most of it back without a gradient.

    python examples/recalibrate_quantized_weights.py

The network is the plain CNN of sample_models. What is done to its weights stands for anything that changes
activations: pruning, averaging of weights, inputs from another camera. Only means and variances are measured anew.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper

import bnfold

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
BITS = 3


def quantized(model: ModelProto) -> ModelProto:
    """The model with the weights of its convolutions rounded, one step size a tensor."""
    weights = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            array = numpy_helper.to_array(tensor)
            step = np.abs(array).max() / (2 ** (BITS - 1) - 1)
            tensor.CopyFrom(numpy_helper.from_array((np.rint(array / step) * step).astype(array.dtype), tensor.name))
    return model


def accuracy(model: ModelProto, images: np.ndarray, labels: np.ndarray) -> float:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return float((session.run(None, {"input": images})[0].argmax(axis=1) == labels).mean())


def main() -> None:
    """Damage, recalibrate, compare."""
    data = np.load(SAMPLES / "digits.npz")
    test = data["test_x"], data["test_y"]
    model = onnx.load(SAMPLES / "digits_cnn.onnx")
    print(f"trained               {accuracy(model, *test):.1%}")
    model = quantized(model)
    print(f"weights of {BITS} bits      {accuracy(model, *test):.1%}")
    # An array here; a DataLoader or any other iterable does as well, one sample or some at a time.
    result = bnfold.recalibrate(model, {"input": data["calib_x"]})
    print(f"recalibrated          {accuracy(result.model, *test):.1%}")
    for drift in sorted(result.drift, key=lambda drift: -drift.score):
        print(f"  {drift.name}: drift {drift.score:.3g}, means up to {drift.shift.max():.2g} deviations off")


if __name__ == "__main__":
    main()
