"""Export a Keras network with tf2onnx, and fold what it leaves.

    python examples/recipes/keras_with_tf2onnx.py

Needs tensorflow and tf2onnx. tf2onnx folds Conv + BN where it can. The BN here comes first, behind a Relu and behind a
pool, where it can't; of a Keras 3 network it is written as Mul and Add. For a saved model the same by commands:

    python -m tf2onnx.convert --saved-model DIR --output model.onnx --opset 17
    bnfold fold model.onnx
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnxruntime
import tensorflow as tf
import tf2onnx

import bnfold


def network() -> Any:
    """BN, Conv, Relu, BN, pool, BN, Dense."""
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    made = tf.keras.Sequential([
        layers.Input((16, 16, 3)), layers.BatchNormalization(), layers.Conv2D(8, 3, activation="relu"),
        layers.BatchNormalization(), layers.MaxPool2D(2), layers.Conv2D(16, 3), layers.BatchNormalization(),
        layers.ReLU(), layers.GlobalAveragePooling2D(), layers.BatchNormalization(), layers.Dense(10),
    ])  # fmt: skip
    made(np.random.default_rng(0).random((64, 16, 16, 3), np.float32), training=True)  # statistics
    return made


def main() -> None:
    made = network()
    function = tf.function(made, input_signature=[tf.TensorSpec((None, 16, 16, 3), tf.float32, name="x")])
    model, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=17)
    result = bnfold.fold(model)
    before, after = result.report.before, result.report.after
    print(f"BN {before.batch_norms} → {after.batch_norms}, "
          f"ops that only scale and shift channels {before.per_channel_ops} → {after.per_channel_ops}")  # fmt: skip
    x = np.random.default_rng(1).random((4, 16, 16, 3), np.float32)
    found = onnxruntime.InferenceSession(result.model.SerializeToString()).run(None, {"x": x})[0]
    print(f"at most {np.abs(found - made(x, training=False).numpy()).max():.1e} from Keras")


if __name__ == "__main__":
    main()
