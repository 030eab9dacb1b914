"""Trains, exports and evaluates the sample networks.

    python sample_models/train.py               # make the data and the models again (torch and scikit-learn)
    python sample_models/train.py --evaluate    # measure what is there (onnxruntime), print the table of README.md

Every seed is fixed and one thread does the arithmetic: the same versions on the same kind of processor make the same
files; elsewhere the last bits differ, and with them perhaps an image or two.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

if TYPE_CHECKING:
    from torch import nn

HERE = Path(__file__).resolve().parent
SEED = 2024
BATCH = 64
CALIBRATION_SAMPLES = 256


@dataclass(frozen=True)
class Sample:
    """One network of the folder: what it is, what it learns from, and how it was exported."""

    name: str
    net: str
    data: str
    epochs: int
    dynamo: bool
    opset: int


SAMPLES = [
    Sample("digits_cnn", "plain CNN", "digits", epochs=30, dynamo=False, opset=17),
    Sample("digits_mobile", "inverted residuals, depthwise, ReLU6", "digits", epochs=60, dynamo=True, opset=18),
    Sample("digits_preact", "pre-activation residual", "digits", epochs=30, dynamo=False, opset=13),
    Sample("tabular_mlp", "MLP, BN on the input and behind an activation", "cancer", epochs=40, dynamo=False, opset=17),
]


def raw_data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """All of a data set, preprocessed: float32 inputs (N, ...) and int64 labels (N,)."""
    from sklearn.datasets import load_breast_cancer, load_digits

    x, y = (load_digits if name == "digits" else load_breast_cancer)(return_X_y=True)
    if name == "digits":
        x = x.reshape(-1, 1, 8, 8) / 16  # grey levels 0..16 -> 0..1; the features of `cancer` stay as they are
    return x.astype(np.float32), y.astype(np.int64)


def split(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test part, three quarters and one quarter of the data in random order."""
    x, y = raw_data(name)
    order = np.random.default_rng(SEED).permutation(len(x))
    test, train = np.split(order, [len(x) // 4])
    return x[train], y[train], x[test], y[test]


def trained(sample: Sample, x: np.ndarray, y: np.ndarray) -> nn.Module:
    """The network after `sample.epochs` of AdamW, the learning rate falling along a cosine."""
    import networks
    import torch

    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model: nn.Module = getattr(networks, sample.name)()
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, sample.epochs)
    for _ in range(sample.epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for batch in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
            images = inputs[batch]
            if sample.data == "digits":
                images = networks.shifted(images, generator)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def export(sample: Sample, model: nn.Module, x: np.ndarray) -> None:
    """Write `NAME.onnx` with its BN as they are and a batch of any size.

    The two exporters of torch write the same network differently; both kinds are in the folder.
    """
    import torch

    path, example = HERE / f"{sample.name}.onnx", (torch.from_numpy(x[:2]),)
    names = {"input_names": ["input"], "output_names": ["logits"]}
    if sample.dynamo:
        batch = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(
            model, example, dynamo=True, optimize=False, dynamic_shapes=batch, opset_version=sample.opset, **names
        )
        proto = program.model_proto
    else:
        torch.onnx.export(
            model,
            example,
            path,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=sample.opset,
            **names,
        )
        proto = onnx.load(path)
    path.write_bytes(without_traces(proto).SerializeToString(deterministic=True))


def without_traces(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model less what exporters note about the machine: stack traces, module paths, doc strings."""
    graph = proto.graph
    graph.doc_string = ""
    for item in [proto, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    return proto


def train_all() -> None:
    """Make every file of the folder again."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    for data in sorted({sample.data for sample in SAMPLES}):
        x, y, test_x, test_y = split(data)
        np.savez_compressed(HERE / f"{data}.npz", calib_x=x[:CALIBRATION_SAMPLES], test_x=test_x, test_y=test_y)
        for sample in SAMPLES:
            if sample.data == data:
                export(sample, trained(sample, x, y), x)
                print(f"trained {sample.name}", file=sys.stderr)


def evaluate(sample: Sample) -> str:
    """The sample's row of the table, measured: accuracy on ONNX Runtime, its BN, the signs of gamma, its size."""
    import onnxruntime

    path = HERE / f"{sample.name}.onnx"
    data = np.load(HERE / f"{sample.data}.npz")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": data["test_x"]})
    right, total = int((logits.argmax(1) == data["test_y"]).sum()), len(logits)

    graph = onnx.load(path).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    gammas = [weights[node.input[1]] for node in graph.node if node.op_type == "BatchNormalization"]
    negative, channels = sum(int((gamma < 0).sum()) for gamma in gammas), sum(gamma.size for gamma in gammas)
    return (
        f"| `{path.name}` | {sample.net} | `{sample.data}.npz` | {right} of {total} = {100 * right / total:.1f} % "
        f"| {len(gammas)} | {negative} of {channels} | {path.stat().st_size / 1e3:.0f} kB |"
    )


def main() -> None:
    """Train and evaluate, or evaluate only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluate", action="store_true", help="measure the files that are there; needs no torch")
    if not parser.parse_args().evaluate:
        train_all()
    print("| file | network | data | right on the test part (ONNX Runtime) | BN | gamma < 0 | size |")
    print("|---|---|---|---|---|---|---|")
    for sample in SAMPLES:
        print(evaluate(sample))


if __name__ == "__main__":
    main()
