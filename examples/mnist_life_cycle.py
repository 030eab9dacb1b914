"""A network without BatchNorm gets it, is trained, and leaves without it: section 4.1 of Ioffe & Szegedy on ONNX files.

    python examples/mnist_life_cycle.py [DATA.npz] [--steps 3000] [--rate 0.1] [--out FOLDER]

DATA.npz holds train_x, train_y, test_x and test_y (MNIST, as in ../shared/data/mnist.npz). Without it the 8 x 8 digits
of sample_models are used: 256 of them to train on, which shows the way and no more. Needs torch.

What the shell can do is done there; the example prints each command before it runs it.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bnfold.torch import to_module, write_back

DIGITS = Path(__file__).resolve().parent.parent / "sample_models" / "digits.npz"


def plain_network(inputs: int) -> ModelProto:
    """Three hidden layers of 100 sigmoid units, small random weights, no BatchNorm."""
    rng, nodes, tensors, value, size = np.random.default_rng(0), [], [], "image", inputs
    for i, units in enumerate((100, 100, 100, 10)):
        weight = rng.standard_normal((size, units)).astype(np.float32) / np.float32(size**0.5)
        tensors += [numpy_helper.from_array(weight, f"fc{i}.weight")]
        tensors += [numpy_helper.from_array(np.zeros(units, np.float32), f"fc{i}.bias")]
        nodes += [helper.make_node("Gemm", [value, f"fc{i}.weight", f"fc{i}.bias"], [f"u{i}"], f"fc{i}")]
        nodes += [helper.make_node("Sigmoid", [f"u{i}"], [f"z{i}"], f"sigmoid{i}")]
        value, size = f"z{i}", units
    nodes.pop()
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("image", inputs), ("u3", 10))]
    graph = helper.make_graph(nodes, "mnist", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def train(path: Path, x: np.ndarray, labels: np.ndarray, steps: int, rate: float) -> None:
    """Train a file in place: batches of 60, SGD."""
    module = to_module(path).train()
    optimizer = torch.optim.SGD(module.parameters(), rate)
    generator = np.random.default_rng(0)
    for _ in range(steps):
        chosen = generator.integers(0, len(x), 60)
        loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(x[chosen])), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    onnx.save(write_back(path, module), path)


def bnfold(*arguments: object) -> None:
    """One command of bnfold."""
    words = [str(argument) for argument in arguments]
    print("$ bnfold", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "bnfold", *words], check=True)


def accuracy(path: Path, x: np.ndarray, labels: np.ndarray) -> float:
    """On ONNX Runtime."""
    return float((onnxruntime.InferenceSession(path).run(None, {"image": x})[0].argmax(1) == labels).mean())


def images(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test images as rows of numbers from 0 to 1, and their labels."""
    with np.load(path) as data:
        if "train_x" in data:
            parts = [data[key] for key in ("train_x", "train_y", "test_x", "test_y")]
            x, test = (part.reshape(len(part), -1).astype(np.float32) / 255 for part in parts[::2])
            return x, parts[1].astype(np.int64), test, parts[3].astype(np.int64)
        # The sample data keep no labels of the images for calibration: part of the test images is trained on instead.
        x, y = data["test_x"].reshape(len(data["test_x"]), -1), data["test_y"]
        return x[:256], y[:256], x[256:], y[256:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", default=DIGITS)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=Path("mnist_life_cycle"))
    arguments = parser.parse_args()
    if not arguments.data.exists():
        parser.error(f"{arguments.data}: no such file")
    torch.manual_seed(0)
    x, y, test_x, test_y = images(arguments.data)
    out: Path = arguments.out
    out.mkdir(exist_ok=True)
    np.savez(out / "data.npz", image=x[:2000])
    plain, normed, measured, folded = (out / f"{name}.onnx" for name in ("plain", "bn", "measured", "folded"))

    onnx.save(plain_network(x.shape[1]), plain)
    bnfold("insert", plain, "-o", normed, "--data", out / "data.npz", "--mode", "fresh", "--force")
    train(plain, x, y, arguments.steps, arguments.rate)
    train(normed, x, y, arguments.steps, arguments.rate)
    bnfold("recalibrate", normed, "-o", measured, "--data", out / "data.npz", "--force")
    bnfold("fold", measured, "-o", folded, "--force")
    bnfold("verify", measured, folded)

    print(f"\n{'':24}accuracy on {len(test_y)} test images, {arguments.steps} steps at rate {arguments.rate:g}")
    for name, path in (("without BatchNorm", plain), ("with, folded", folded)):
        nodes = len(onnx.load(path).graph.node)
        print(f"{name:24}{accuracy(path, test_x, test_y):.1%} ({nodes} nodes)")


if __name__ == "__main__":
    main()
