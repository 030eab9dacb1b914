"""What BatchNorm does for the training of a network that came without: an ONNX file trained as it is, and after insert.

    python benchmarks/lifecycle.py mnist [--rates 0.1,0.3,1,3] [--seeds 3] [--steps 12000] [--data NPZ] [--plot PNG]
    python benchmarks/lifecycle.py cifar [--rates 0.03,0.1,0.3] [--seeds 3] [--steps 800] [--data NPZ] [--plot PNG]

`mnist`: section 4.1 of Ioffe & Szegedy (arXiv 1502.03167): three hidden layers of 100 sigmoid units, batch 60, SGD.
`cifar`: eight convolutions with sigmoids. In both the BN-free file is made with onnx.helper, `bnfold.insert` gives it
BN (mode 'fresh'), `bnfold.torch` trains either, and what is tested is the file: trained, statistics measured anew on
training data, folded, on ONNX Runtime. Accuracy during training is the module's in evaluation mode.

Exit code 1 if a folded file has other nodes than the BN-free original, does not verify against the unfolded one, or is
slower on ONNX Runtime than the original by more than a tenth.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from harness import MODELS, one_cpu, say, table
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch.nn.functional import cross_entropy

import bnfold
from bnfold.torch import to_module, write_back

DATA = MODELS.parent / "data"
POINTS = 12  # of a curve
CALIBRATION = 2000  # training images that statistics are measured on
SLOWER = 1.1
PAIRS = 41  # of timed runs
RUN = 0.02  # seconds that each of them takes, about

Array = Any


# ------------------------------------------------------------------------------------------------- networks
class Writer:
    """Nodes and tensors of a network in the making."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.tensors: list[TensorProto] = []
        self.value = "x"

    def layer(self, name: str, op: str, shape: tuple[int, ...], activation: str = "", **attributes: Any) -> None:
        """A linear node with weights of variance 1 / fan-in and a bias of 0, and its activation."""
        outputs = shape[1] if op == "Gemm" else shape[0]
        fan_in = shape[0] if op == "Gemm" else int(np.prod(shape[1:]))
        weight = self.rng.standard_normal(shape).astype(np.float32) / np.float32(fan_in**0.5)
        for suffix, array in (("weight", weight), ("bias", np.zeros(outputs, np.float32))):
            self.tensors.append(numpy_helper.from_array(array, f"{name}.{suffix}"))
        self.node(op, name, [f"{name}.weight", f"{name}.bias"], **attributes)
        if activation:
            self.node(activation, f"{name}.activation")

    def node(self, op: str, name: str, more: Sequence[str] = (), **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, [self.value, *more], [f"{name}.out"], name, **attributes))
        self.value = f"{name}.out"

    def model(self, shape: tuple[int, ...]) -> ModelProto:
        self.nodes[-1].output[0] = "logits"
        inputs = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])
        outputs = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])
        graph = helper.make_graph(self.nodes, "net", [inputs], [outputs], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def mnist_net(seed: int) -> ModelProto:
    """784-100-100-100-10, sigmoids."""
    net = Writer(seed)
    for i, inputs in enumerate((784, 100, 100)):
        net.layer(f"fc{i + 1}", "Gemm", (inputs, 100), "Sigmoid")
    net.layer("out", "Gemm", (100, 10))
    return net.model((784,))


def cifar_net(seed: int) -> ModelProto:
    """Eight 3 x 3 convolutions of 16, 32 and 64 channels with sigmoids, mean over space, one linear layer."""
    net = Writer(seed)
    widths = [(3, 16, 1), (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1)]
    for i, (inputs, outputs, stride) in enumerate(widths):
        net.layer(f"conv{i + 1}", "Conv", (outputs, inputs, 3, 3), "Sigmoid", pads=[1] * 4, strides=[stride] * 2)
    net.node("GlobalAveragePool", "pool")
    net.node("Flatten", "flat")
    net.layer("out", "Gemm", (64, 10))
    return net.model((3, 32, 32))


@dataclass(frozen=True)
class Images:
    """Training and test images as the network takes them, and their labels."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array


def mnist_data(path: Path) -> Images:
    with np.load(path) as data:
        x, test = (data[key].reshape(-1, 784).astype(np.float32) / 255 for key in ("train_x", "test_x"))
        return Images(x, data["train_y"].astype(np.int64), test, data["test_y"].astype(np.int64))


def cifar_data(path: Path) -> Images:
    with np.load(path) as data:
        x, test = (data[k].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1 for k in ("calib_x", "test_x"))
        return Images(x, data["calib_y"].astype(np.int64), test, data["test_y"].astype(np.int64))


@dataclass(frozen=True)
class Study:
    """What differs between the two."""

    net: Callable[[int], ModelProto]
    data: Callable[[Path], Images]
    file: str
    batch: int


STUDIES = {
    "mnist": Study(mnist_net, mnist_data, "mnist.npz", 60),
    "cifar": Study(cifar_net, cifar_data, "cifar10.npz", 50),
}


# ------------------------------------------------------------------------------------------------------ life
@dataclass(frozen=True)
class Life:
    """One training: (step, accuracy) along the way, and the accuracy of the file that comes out of it."""

    curve: tuple[tuple[int, float], ...]
    final: float
    model: ModelProto


def accuracy(model: ModelProto, images: Images) -> float:
    """Of a file, on ONNX Runtime."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    parts = [session.run(None, {"x": part})[0] for part in np.array_split(images.test_x, 20)]
    return float((np.concatenate(parts).argmax(1) == images.test_y).mean())


def train(model: ModelProto, images: Images, rate: float, steps: int, batch: int, seed: int) -> Life:
    """SGD, and its curve."""
    module = to_module(model).train()
    optimizer = torch.optim.SGD(module.parameters(), rate)
    x, y, test = (torch.from_numpy(array) for array in (images.train_x, images.train_y, images.test_x))
    order = np.random.default_rng(seed)
    marks = {round(steps * (i + 1) / POINTS) for i in range(POINTS)}
    curve = []
    for step in range(1, steps + 1):
        chosen = torch.from_numpy(order.integers(0, len(x), batch))
        loss = cross_entropy(module(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in marks:
            with torch.no_grad():
                found = torch.cat([module.eval()(part) for part in test.split(500)]).argmax(1)
            module.train()
            curve.append((step, float((found.numpy() == images.test_y).mean())))
        if not torch.isfinite(loss):
            return Life(tuple(curve), 0.1, model)  # diverged: as good as chance
    trained = write_back(model, module)
    return Life(tuple(curve), accuracy(trained, images), trained)


def finished(life: Life, images: Images, original: ModelProto) -> tuple[Life, list[str]]:
    """A network with BN, its statistics measured, folded; and what is wrong with the result."""
    measured = bnfold.recalibrate(life.model, {"x": images.train_x[:CALIBRATION]}).model
    folded = bnfold.fold(measured).model
    wrong = []
    counts = [Counter(node.op_type for node in model.graph.node) for model in (folded, original)]
    if counts[0] != counts[1]:
        wrong.append(f"nodes {dict(counts[0])}, not {dict(counts[1])}")
    verdict = bnfold.verify(measured, folded).verdict
    if verdict == "different":
        wrong.append("the folded file is another function")
    if (ratio := time_ratio(folded, original, images.test_x[:256])) > SLOWER:
        wrong.append(f"takes {ratio:.2f} times as long as the original")
    return Life(life.curve, accuracy(folded, images), folded), wrong


def time_ratio(a: ModelProto, b: ModelProto, x: Array) -> float:
    """CPU time of a over b on ONNX Runtime: the median of many ratios, each of two runs next to each other.

    Whatever else the machine does meanwhile falls on both runs of a pair; which comes first alternates.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(model.SerializeToString(), options) for model in (a, b)]
    repeats = max(1, round(RUN / _seconds(sessions[0], x, 5)))
    ratios = []
    for pair in range(PAIRS):
        times = {k: _seconds(sessions[k], x, repeats) for k in ((0, 1) if pair % 2 else (1, 0))}
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def _seconds(session: onnxruntime.InferenceSession, x: Array, repeats: int) -> float:
    """CPU time of a run."""
    start = time.process_time()
    for _ in range(repeats):
        session.run(None, {"x": x})
    return (time.process_time() - start) / repeats


# ----------------------------------------------------------------------------------------------------- report
def study(name: str, rates: list[float], seeds: int, steps: int, path: Path, plot: str | None) -> int:
    what = STUDIES[name]
    images = what.data(path)
    lives: dict[tuple[bool, float], list[Life]] = {}
    wrong: list[str] = []
    for rate in rates:
        for seed in range(seeds):
            original = what.net(seed)
            with_bn = bnfold.insert(original, {"x": images.train_x[:CALIBRATION]}, mode="fresh").model
            for has_bn, model in ((False, original), (True, with_bn)):
                life = train(model, images, rate, steps, what.batch, seed)
                if has_bn:
                    life, faults = finished(life, images, original)
                    wrong += [f"rate {rate:g}, seed {seed}: {fault}" for fault in faults]
                lives.setdefault((has_bn, rate), []).append(life)
                say(f"rate {rate:g}, seed {seed}, {'with' if has_bn else 'without'} BN: {life.final:.2%}")
    early = next(i for i in range(POINTS) if i == POINTS - 1 or (i + 1) / POINTS * steps >= 1000)
    rows = []
    for (has_bn, rate), runs in sorted(lives.items(), key=lambda item: (item[0][1], item[0][0])):
        curves = [run.curve[early][1] for run in runs if len(run.curve) > early]
        final = _spread([run.final for run in runs])
        rows.append([f"{rate:g}", "with BN, folded" if has_bn else "without", _spread(curves), final])
    mark = round(steps * (early + 1) / POINTS)
    size = len(images.train_y)
    print(f"{name}: {size} training images, batch {what.batch}, {seeds} seeds: mean (lowest to highest)\n")
    print(table(["rate", "network", f"after {mark} steps", f"the file, after {steps}"], rows))
    print("\n" + ("\n".join(wrong) or "Every folded file: the BN-free original's nodes, verified, as fast."))
    if plot:
        draw(lives, Path(plot), name)
    return int(bool(wrong))


def _spread(values: list[float]) -> str:
    if not values:
        return "diverged"
    return f"{np.mean(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def draw(lives: dict[tuple[bool, float], list[Life]], path: Path, name: str) -> None:
    """Accuracy over steps, one panel a rate, a line a seed."""
    from matplotlib.figure import Figure

    rates = sorted({rate for _, rate in lives})
    figure = Figure(figsize=(3.2 * len(rates), 3.2), layout="constrained")
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for axes, rate in zip(panels, rates, strict=True):
        for has_bn, colour in ((False, "tab:gray"), (True, "tab:blue")):
            for i, life in enumerate(lives[has_bn, rate]):
                label = ("with BN" if has_bn else "without") if i == 0 else None
                axes.plot(*zip(*((0, 0.1), *life.curve), strict=True), color=colour, label=label)
        axes.set(title=f"rate {rate:g}", xlabel="steps")
    panels[0].set(ylabel=f"{name} test accuracy")
    panels[0].legend()
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--rates")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--plot", metavar="PNG")
    arguments = parser.parse_args()
    rates, steps = {"mnist": ("0.1,0.3,1,3", 12000), "cifar": ("0.03,0.1,0.3", 800)}[arguments.study]
    path = arguments.data or DATA / STUDIES[arguments.study].file
    if not path.exists():
        parser.error(f"{path}: no such file; name one with --data")
    one_cpu()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    chosen = [float(rate) for rate in (arguments.rates or rates).split(",")]
    return study(arguments.study, chosen, arguments.seeds, arguments.steps or steps, path, arguments.plot)


if __name__ == "__main__":
    sys.exit(main())
