"""Merge two networks into one by averaging their weights, and repair what that breaks (REPAIR, Jordan et al. 2022).

    python examples/repair_merged_networks.py [MNIST.npz]

Two MLPs without BatchNorm learn the same digits from different beginnings. Neuron 3 of one is not neuron 3 of the
other, so those of the second are brought into the order of the first. In the average most neurons then vary less than
in either network: what the two don't agree on cancels, layer by layer. The repair:

1. insert:       each network gets BatchNorms that change nothing. gamma and beta hold how much each neuron varies, and
                 around what.
2. average:      weights, gammas and betas.
3. recalibrate:  mean and variance of the merged network take the place of the old ones, so that each neuron varies as
                 gamma and beta say: as it did in the two.
4. fold:         the BatchNorms go, and a plain network is left.

The file has train_x, train_y, test_x and test_y (28 x 28 images of MNIST). Without one it takes the 8 x 8 digits of
sample_models: 300 of its labelled images to train on, 149 to test on.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold

DIGITS = Path(__file__).resolve().parent.parent / "sample_models" / "digits.npz"
HIDDEN, LAYERS, RATE = 32, 6, 0.05

Array = np.ndarray[Any, Any]
Layers = list[tuple[Array, Array]]  # weight (outputs, inputs) and bias of each


def trained(x: Array, y: Array, epochs: int, size: int, seed: int) -> Layers:
    """An MLP of Relus after so many epochs of SGD, batches of this size, momentum 0.9, the rate falling to 0."""
    rng = np.random.default_rng(seed)
    sizes = [x.shape[1], *[HIDDEN] * LAYERS, 10]
    layers: Layers = [
        ((rng.standard_normal((b, a)) * np.sqrt(2 / a)).astype(np.float32), np.zeros(b, np.float32))
        for a, b in pairwise(sizes)
    ]
    speed = [(0 * weight, 0 * bias) for weight, bias in layers]
    steps = epochs * (len(x) // size)
    for step in range(steps):
        if step % (len(x) // size) == 0:
            order, start = rng.permutation(len(x)), 0
        batch, start = order[start : start + size], start + size
        seen = activations(layers, x[batch])
        scores = np.exp(seen[-1] - seen[-1].max(axis=1, keepdims=True))
        gradient = (scores / scores.sum(axis=1, keepdims=True) - np.eye(10, dtype=np.float32)[y[batch]]) / size
        for k in reversed(range(len(layers))):
            (weight, bias), source = layers[k], seen[k]
            speed[k] = (0.9 * speed[k][0] + gradient.T @ source, 0.9 * speed[k][1] + gradient.sum(axis=0))
            gradient = gradient @ weight * (source > 0)
            rate = np.float32(RATE * (1 - step / steps))
            layers[k] = (weight - rate * speed[k][0], bias - rate * speed[k][1])
    return layers


def activations(layers: Layers, x: Array) -> list[Array]:
    """x, what each hidden layer makes of it, and the scores."""
    seen = [x]
    for k, (weight, bias) in enumerate(layers):
        value = seen[-1] @ weight.T + bias
        seen.append(np.maximum(value, 0) if k < len(layers) - 1 else value)
    return seen


def aligned(layers: Layers, like: Layers, x: Array) -> Layers:
    """The same network with its hidden neurons in the order of those that they correlate with, greedily."""
    result = list(layers)
    ours, theirs = activations(layers, x), activations(like, x)
    for k in range(len(layers) - 1):
        a, b = (values - values.mean(axis=0) for values in (theirs[k + 1], ours[k + 1]))
        alike = (a / (a.std(axis=0) + 1e-6)).T @ (b / (b.std(axis=0) + 1e-6))
        order = np.zeros(len(alike), int)
        for _ in order:
            mine, other = np.unravel_index(alike.argmax(), alike.shape)
            order[mine] = other
            alike[mine, :] = alike[:, other] = -np.inf
        (weight, bias), (after, kept) = result[k], result[k + 1]
        result[k], result[k + 1] = (weight[order], bias[order]), (after[:, order], kept)
    return result


def to_onnx(layers: Layers) -> ModelProto:
    """Gemm and Relu, layer by layer."""
    nodes, tensors, value = [], [], "x"
    for k, (weight, bias) in enumerate(layers):
        last = k == len(layers) - 1
        tensors += [numpy_helper.from_array(weight, f"{k}.weight"), numpy_helper.from_array(bias, f"{k}.bias")]
        output = "scores" if last else f"{k}.linear"
        nodes.append(helper.make_node("Gemm", [value, f"{k}.weight", f"{k}.bias"], [output], f"{k}", transB=1))
        if not last:
            value = f"{k}.relu"
            nodes.append(helper.make_node("Relu", [output], [value], value))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
             for name, size in (("x", layers[0][0].shape[1]), ("scores", 10))]  # fmt: skip
    graph = helper.make_graph(nodes, "mlp", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def average(a: ModelProto, b: ModelProto) -> ModelProto:
    """The first with every tensor the mean of both."""
    other = {tensor.name: numpy_helper.to_array(tensor) for tensor in b.graph.initializer}
    result = ModelProto()
    result.CopyFrom(a)
    for tensor in result.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) + other[tensor.name]) / 2, tensor.name))
    return result


def accuracy(model: ModelProto, x: Array, y: Array) -> float:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return float((session.run(None, {"x": x})[0].argmax(axis=1) == y).mean())


def load(path: str | None) -> tuple[Array, ...]:
    """Images to train on, their labels, images to test on, their labels, images to measure on."""
    with np.load(path or DIGITS) as file:
        if path is None:
            x, y, measured = file["test_x"], file["test_y"], file["calib_x"]
            x, measured = x.reshape(-1, 8 * 8), measured.reshape(-1, 8 * 8)
            return x[:300], y[:300], x[300:], y[300:], measured
        train, test = (file[f"{part}_x"].reshape(-1, 28 * 28) / np.float32(255) for part in ("train", "test"))
        return train, file["train_y"], test, file["test_y"], train[:2000]


def main() -> None:
    """Train, merge, repair, compare."""
    x, y, *test, measured = load(sys.argv[1] if len(sys.argv) > 1 else None)
    epochs, size = (60, 20) if len(x) < 1000 else (4, 100)
    first, second = (trained(x, y, epochs, size, seed) for seed in (0, 1))
    second_aligned = aligned(second, first, measured)
    a, b, b_aligned = map(to_onnx, (first, second, second_aligned))
    print(f"network A              {accuracy(a, *test):.1%}")
    print(f"network B              {accuracy(b, *test):.1%}")
    print(f"average                {accuracy(average(a, b), *test):.1%}")
    print(f"aligned and averaged   {accuracy(average(a, b_aligned), *test):.1%}")

    with_norms = [bnfold.insert(model, measured).model for model in (a, b_aligned)]
    merged = bnfold.recalibrate(average(*with_norms), measured, method="exact")
    repaired = bnfold.fold(merged.model).model
    print(f"repaired               {accuracy(repaired, *test):.1%}")
    for drift in merged.drift:
        print(f"  {drift.name}: deviations were {drift.ratio.mean():.2f} of what they are in A and B")
    same = [node.op_type for node in repaired.graph.node] == [node.op_type for node in a.graph.node]
    print(f"nodes                  {len(repaired.graph.node)}, {'the same' if same else 'others'} as before")


if __name__ == "__main__":
    main()
