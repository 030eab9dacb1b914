"""Whether `bnfold.torch` computes what ONNX Runtime computes, and what a training step costs.

    python benchmarks/torch_bridge.py models [--files GLOB]
    python benchmarks/torch_bridge.py truth [--files GLOB]
    python benchmarks/torch_bridge.py speed [--batch 32] [--runs 15]
    python benchmarks/torch_bridge.py frozen [--batch 32] [--runs 15]

`models`: every real model and every skeleton, four figures each, max|d| / max|y| of the worst output: eval mode against
ONNX Runtime; training mode against ONNX Runtime running the same file with training_mode=1; the running statistics
of that step; eval mode against ONNX Runtime again, after 20 steps of SGD and write-back. Exit code 1 if fewer than 40
skeletons keep all four limits (1e-5, 1e-4, 1e-4, 1e-5).

`truth`: whether it is rounding where the two differ: how far each is from the module in float64. Rounding is of one
size on both sides; were the module to compute something else, ONNX Runtime alone would be far from it. Exit code 1 if
two that are further apart than the limit are not within a factor of 10.

`speed`: CPU seconds of a training step (forward, backward, SGD) of networks written in torch, and of the same
networks exported to ONNX and loaded back, interleaved, one thread. Exit code 1 if a ratio is above 1.2.

`frozen`: the same for fine-tuning with frozen statistics, with BN as it is and folded on the fly; and the bytes that
autograd keeps for the backward pass.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from harness import files, one_cpu, ready, say, table
from onnx import ModelProto, helper
from torch import nn

from bnfold.torch import to_module, write_back
from bnfold.verify.inputs import drawn

LIMITS = {"eval": 1e-5, "train": 1e-4, "statistics": 1e-4, "after 20 steps": 1e-5}
WANTED = 40
STEPS = 20
HEAVY = {"starrem-decomposed": 2, "eeg-spindle": 2}
"""Models whose single step takes seconds, and how many are made."""
SLOWER = 1.2

Array = Any
Feeds = dict[str, Array]


# ------------------------------------------------------------------------------------------------ agreement
@dataclass(frozen=True)
class Agreement:
    """Errors by the names of LIMITS, None where ONNX Runtime has nothing to compare with, and a remark."""

    errors: dict[str, float | None]
    remark: str = ""

    @property
    def good(self) -> bool:
        return all(error is not None and error <= LIMITS[name] for name, error in self.errors.items())


def run(model: ModelProto, feeds: Feeds) -> dict[str, Array]:
    """ONNX Runtime's outputs, as the file is: its optimiser is off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def error(expected: Array, found: Array) -> float:
    """max|d| / max|y|."""
    a, b = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) if a.size else 0.0


def training_form(model: ModelProto) -> tuple[ModelProto, dict[str, str]]:
    """The model with every BN in training mode; and for each of its statistics the output that gives the new one."""
    copy = ModelProto()
    copy.CopyFrom(model)
    if next(one.version for one in copy.opset_import if one.domain in ("", "ai.onnx")) < 14:
        copy = onnx.version_converter.convert_version(copy, 15)
    uses = [node for node in copy.graph.node if node.op_type == "BatchNormalization"]
    results: dict[str, str] = {}
    for node in uses:
        for index in reversed(range(len(node.attribute))):
            if node.attribute[index].name == "training_mode":
                del node.attribute[index]
        node.attribute.append(helper.make_attribute("training_mode", 1))
        del node.output[1:]
        for index in (3, 4):
            node.output.append(f"{node.output[0]}//{index}")
            copy.graph.output.append(helper.make_empty_tensor_value_info(node.output[-1]))
            if sum(node.input[index] == other.input[index] for other in uses) == 1:  # used twice, it is updated twice
                results[node.input[index]] = node.output[-1]
    return copy, results


def forward(module: Any, feeds: Feeds) -> list[torch.Tensor]:
    outputs = module(*(torch.from_numpy(feeds[name].copy()) for name in module.input_names))
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def worst(expected: dict[str, Array], module: Any, feeds: Feeds) -> float:
    with torch.no_grad():
        found = forward(module, feeds)
    return max(error(expected[name], value.numpy()) for name, value in zip(module.output_names, found, strict=True))


def train(module: Any, feeds: Feeds, steps: int) -> None:
    """So many steps of SGD towards outputs of 1, whatever the model is for."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, 1e-4, momentum=0.9)
    for _ in range(steps):
        floats = [y for y in forward(module, feeds) if y.is_floating_point()]
        loss = sum((y / (y.detach().abs().max() + 1e-6) - 1).pow(2).mean() for y in floats)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def agreement(model: ModelProto, steps: int = STEPS) -> Agreement:
    """All four figures of a model."""
    errors: dict[str, float | None] = dict.fromkeys(LIMITS)
    feeds = drawn(model, 0).batches[0]
    module = to_module(model)
    errors["eval"] = worst(run(model, feeds), module, feeds)
    remark = ""
    if any(node.op_type == "Dropout" for node in model.graph.node):
        remark = "dropout: training is random"
    else:
        form, results = training_form(model)
        expected = run(form, feeds)
        errors["train"] = worst(expected, module.train(), feeds)
        state = {module.names[key]: value for key, value in module.state_dict().items()}
        known = [(result, state[name]) for name, result in results.items() if name in state]
        errors["statistics"] = max((error(expected[result], value.numpy()) for result, value in known), default=0.0)
    module = to_module(model).train()
    train(module, feeds, steps)
    trained = write_back(model, module)
    errors["after 20 steps"] = worst(run(trained, feeds), module.eval(), feeds)
    return Agreement(errors, remark)


def models(pattern: str | None) -> int:
    rows, good, total = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for path in files(pattern):
            say(path.stem)
            with ready(path, folder) as full:
                try:
                    result = agreement(onnx.load(full), HEAVY.get(path.stem, STEPS))
                except Exception as trouble:  # whatever it is, the others shall be measured
                    result = Agreement(dict.fromkeys(LIMITS), str(trouble).partition("\n")[0][:110])
            cells = ["–" if value is None else f"{value:.1e}" for value in result.errors.values()]
            rows.append([path.stem, *cells, "" if result.good else result.remark or "above a limit"])
            if path.parent.name != "real":
                good, total = good + result.good, total + 1
    print(table(["model", *LIMITS, ""], rows))
    print(f"\n{good} of {total} skeletons keep all limits: {', '.join(f'{k} {v:g}' for k, v in LIMITS.items())}")
    return int(good < min(WANTED, total))


# ---------------------------------------------------------------------------------------------------- truth
def distances(model: ModelProto, training: bool) -> tuple[float, float, float]:
    """Between ONNX Runtime and the module, ONNX Runtime and the truth, the module and the truth."""
    feeds = drawn(model, 0).batches[0]
    ours, truth = (to_module(model).train(training), to_module(model).double().train(training))
    wide = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feeds.items()}
    expected = run(training_form(model)[0] if training else model, feeds)
    with torch.no_grad():
        found, true = ([y.numpy() for y in forward(*both)] for both in ((ours, feeds), (truth, wide)))
    theirs = [expected[name] for name in ours.output_names]
    a, b, c = (max(map(error, *pair)) for pair in ((theirs, found), (true, theirs), (true, found)))
    return a, b, c


def truth(pattern: str | None) -> int:
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for path in files(pattern):
            say(path.stem)
            with ready(path, folder) as full:
                model = onnx.load(full)
            random = any(node.op_type == "Dropout" for node in model.graph.node)
            for mode in ("eval",) if random else ("eval", "train"):
                between, theirs, ours = distances(model, mode == "train")
                rows.append([path.stem, mode, *(f"{value:.1e}" for value in (between, theirs, ours))])
                wrong += between > LIMITS[mode] and max(theirs, ours) > 10 * min(theirs, ours)
    print(table(["model", "mode", "apart", "ONNX Runtime from float64", "bnfold.torch from float64"], rows))
    return int(wrong > 0)


# ---------------------------------------------------------------------------------------------------- speed
def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Of a resnet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, 3, stride), nn.ReLU(), conv(outputs, outputs, 3))
        self.skip = nn.Identity() if stride == 1 and inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class Inverted(nn.Module):
    """Of a MobileNetV2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = 4 * inputs
        self.body = nn.Sequential(
            *(conv(inputs, inner, 1), nn.ReLU6()),
            *(conv(inner, inner, 3, stride, inner), nn.ReLU6()),
            conv(inner, outputs, 1),
        )
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.is_residual else self.body(x)


def chain(block: Callable[[int, int, int], nn.Module], first: int, widths: list[tuple[int, int]]) -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, first, 3), nn.ReLU()]
    for outputs, stride in widths:
        layers.append(block(first, outputs, stride))
        first = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(first, 10))


def mlp() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((784, 256), (256, 256), (256, 256)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (
        lambda: chain(Block, 16, [(w, s) for w, f in ((16, 1), (32, 2), (64, 2)) for s in (f, 1, 1)]), (3, 32, 32),
    ),
    "MobileNetV2-like": (
        lambda: chain(Inverted, 16, [(w, s) for w, f in ((16, 1), (24, 2), (32, 2)) for s in (f, 1)]), (3, 32, 32),
    ),
    "MLP": (mlp, (784,)),
}  # fmt: skip


def exported(network: nn.Module, shape: tuple[int, ...]) -> ModelProto:
    """The network as torch's TorchScript exporter writes it, BN kept."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns that it is the old one
        torch.onnx.export(
            network, (torch.zeros(2, *shape),), file, dynamo=False, training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}, opset_version=17,
        )  # fmt: skip
    model = onnx.load_from_string(file.getvalue())
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":  # exported in training mode to keep it; a file has it in inference
            del node.output[1:]
            for attribute in node.attribute:
                attribute.i = 0 if attribute.name == "training_mode" else attribute.i
    return model


def stepper(module: nn.Module, shape: tuple[int, ...], batch: int) -> Callable[[], float]:
    """A function that makes a training step and gives its CPU seconds."""
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(batch, *shape, generator=generator), torch.randint(0, 10, (batch,), generator=generator)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.01, momentum=0.9)

    def step() -> float:
        start = time.process_time()
        loss = nn.functional.cross_entropy(module(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.process_time() - start

    return step


def interleaved(steps: list[Callable[[], float]], runs: int) -> list[float]:
    """The median of each; the first two rounds warm up."""
    times = [[step() for step in steps] for _ in range(runs + 2)][2:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def speed(batch: int, runs: int) -> int:
    rows, slow = [], False
    for name, (make, shape) in NETWORKS.items():
        say(name)
        torch.manual_seed(0)
        native = make().train()
        module = to_module(exported(native, shape)).train()
        ours, theirs = interleaved([stepper(module, shape, batch), stepper(native, shape, batch)], runs)
        rows.append([name, f"{theirs * 1e3:.2f}", f"{ours * 1e3:.2f}", f"{ours / theirs:.3f}"])
        slow |= ours / theirs > SLOWER
    print(table(["network", "torch, ms", "bnfold.torch, ms", "ratio"], rows))
    return int(slow)


def kept(module: nn.Module, shape: tuple[int, ...], batch: int) -> int:
    """Bytes that autograd keeps for the backward pass, parameters and the input not counted."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = module(torch.randn(batch, *shape))
    del y
    return sum(sizes.values())


class Frozen(nn.Module):
    """Fine-tuning with frozen statistics as everybody writes it: BN alone in evaluation mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.train()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)  # type: ignore[no-any-return]


def frozen(batch: int, runs: int) -> int:
    rows = []
    for name, (make, shape) in NETWORKS.items():
        say(name)
        torch.manual_seed(0)
        network = make().train()
        model = exported(network, shape)
        native, folded = Frozen(network), to_module(model, frozen_statistics=True).train()
        times = interleaved([stepper(module, shape, batch) for module in (folded, native)], runs)
        memory = [kept(module, shape, batch) for module in (folded, native)]
        figures = (f"{memory[0] / 1e6:.1f}", f"{memory[1] / 1e6:.1f}", f"{memory[0] / memory[1]:.2f}")
        rows.append([name, *(f"{t * 1e3:.2f}" for t in times), f"{times[0] / times[1]:.2f}", *figures])
    print(table(["network", "folded on the fly, ms", "BN, ms", "ratio", "kept, MB", "BN: kept, MB", "ratio"], rows))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("models", "truth"):
        verbs.add_parser(verb).add_argument("--files", metavar="GLOB")
    for verb in ("speed", "frozen"):
        of_speed = verbs.add_parser(verb)
        of_speed.add_argument("--batch", type=int, default=32)
        of_speed.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.verb in ("models", "truth"):
        return {"models": models, "truth": truth}[arguments.verb](arguments.files)
    one_cpu()
    return {"speed": speed, "frozen": frozen}[arguments.verb](arguments.batch, arguments.runs)


if __name__ == "__main__":
    sys.exit(main())
