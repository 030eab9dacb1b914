"""What may stand where a BN can't go whole, timed in the block where it stands, on ONNX Runtime (ORT_ENABLE_ALL).

    python benchmarks/remains.py [--runs 25] [--threads 1 2] [--batch 1] [--only NAME]

Each block is a small network with the same place three times, and each form a way to write what has to be computed
there.  The forms run in turn; a cell is the block's speed relative to the BN, by CPU time of the process: the median of
the ratios of runs next to each other.

    BN         the BatchNormalization itself
    Add        its scale has moved into the neighbours, its shift is left
    Mul, Add   both are left, written out (`--kept affine`)
    Max        relu(x + t) = max(x, -t) + t: the last t goes into the bias of the unpadded Conv or Gemm behind
    map        a shift in front of zero padding goes into the bias behind, less what the border doesn't see of it: an
               Add of a constant image, if the size is known
    Pad        the same, but the border is padded with the shift's negative (ONNX has one constant for all channels, so
               this form is right only if the scales can be chosen so that there is one; it is the least that it costs)
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import table
from networks import Builder
from onnx import TensorProto, helper

REPEATS = 3
WARM_UP = 5


class Block(Builder):
    """A stack of places where a BN can't go whole, each written in one form."""

    def __init__(self, form: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.form = form
        self.shape = shape  # of the input: batch, channels, spatial axes
        self.space = len(shape) - 2

    def affine(self, x: str, channels: int) -> str:
        """What is left of the BN, without what goes elsewhere."""
        column = (channels, *(1,) * self.space)
        if self.form == "BN":
            return self.bn(x, channels)
        if self.form == "Mul, Add":
            x = self.node("Mul", x, self.tensor(self.numbers(column)))
        return self.node("Add", x, self.tensor(self.numbers(column)))

    def affine_relu(self, x: str, channels: int) -> str:
        if self.form == "Max":
            return self.node("Max", x, self.tensor(self.numbers((channels, *(1,) * self.space))))
        return self.relu(self.affine(x, channels))

    def numbers(self, shape: tuple[int, ...]) -> Any:
        return 0.1 + 0.01 * self._rng.random(shape)

    def linear(self, x: str, inside: int, out: int, kernel: int = 1, pad: bool = True) -> str:
        """A Conv with a bias (a Gemm, where there is no space)."""
        shape = (out, inside, *(kernel,) * self.space)
        weight = self._rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        bias = self.tensor(np.zeros(out))
        if not self.space:
            return self.node("Gemm", x, self.tensor(weight), bias, transB=1)
        pads = [kernel // 2 if pad else 0] * (2 * self.space)
        return self.node("Conv", x, self.tensor(weight), bias, pads=pads, kernel_shape=[kernel] * self.space)

    def affine_padded(self, x: str, channels: int, kernel: int = 3) -> str:
        """A shift in front of a Conv that pads with zeros."""
        if self.form == "map":
            y = self.linear(x, channels, channels, kernel)
            return self.node("Add", y, self.tensor(self.numbers((channels, *self.shape[2:]))))
        if self.form == "Pad":
            around = [0, 0] + [kernel // 2] * self.space
            x = self.node("Pad", x, self.tensor_of(around * 2), self.tensor(np.float32(0.1)))
            return self.linear(x, channels, channels, kernel, pad=False)
        return self.linear(self.affine(x, channels), channels, channels, kernel)

    def tensor_of(self, integers: list[int]) -> str:
        name = self.tensor(np.zeros(1))
        self.tensors[-1] = helper.make_tensor(name, TensorProto.INT64, [len(integers)], integers)
        return name


def densenet(block: Block) -> str:
    """A dense layer: what has been concatenated, BN, Relu, 1 × 1, Relu, 3 × 3."""
    channels, growth = block.shape[1], 32
    x = block.relu(block.linear("input", channels, channels))
    for _ in range(REPEATS):
        y = block.relu(block.linear(block.affine_relu(x, channels), channels, 4 * growth))
        x, channels = block.node("Concat", x, block.linear(y, 4 * growth, growth, 3), axis=1), channels + growth
    return x


def residual(block: Block) -> str:
    """Blocks that begin with BN and Relu, on a stream that all of them read: pre-activation."""
    channels = block.shape[1]
    x = block.linear("input", channels, channels)
    for _ in range(REPEATS):
        y = block.linear(block.affine_relu(x, channels), channels, channels)
        x = block.node("Add", x, block.linear(block.relu(y), channels, channels))
    return x


def padded(block: Block) -> str:
    """Conv, Relu, BN, and the next Conv pads with zeros."""
    channels = block.shape[1]
    x = block.relu(block.linear("input", channels, channels))
    for _ in range(REPEATS):
        x = block.relu(block.affine_padded(x, channels))
    return x


RELU = ("BN", "Add", "Mul, Add", "Max")
PADDED = ("BN", "Add", "Mul, Add", "map", "Pad")
BLOCKS: dict[str, tuple[Callable[[Block], str], tuple[str, ...], tuple[int, ...]]] = {
    "densenet121, 28 × 28": (densenet, RELU, (256, 28, 28)),
    "densenet121, 14 × 14": (densenet, RELU, (512, 14, 14)),
    "12 channels, 28 × 28": (densenet, RELU, (12, 28, 28)),
    "x-vector's frames": (densenet, RELU, (512, 200)),
    "pre-activation, 28 × 28": (residual, RELU, (128, 28, 28)),
    "pre-activation MLP": (residual, RELU, (512,)),
    "padded, 56 × 56": (padded, PADDED, (64, 56, 56)),
    "padded, 14 × 14": (padded, PADDED, (256, 14, 14)),
    "padded, 20 channels": (padded, PADDED, (20, 56, 56)),
    "padded, frames": (padded, PADDED, (256, 200)),
    "padded, 3-D": (padded, PADDED, (32, 8, 28, 28)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--only", default="", help="blocks with this in their name")
    arguments = parser.parse_args()
    forms = list(dict.fromkeys((*RELU, *PADDED)))
    for threads in arguments.threads:
        print(f"\nbatch {arguments.batch}, {threads} threads\n")
        rows = []
        for name, (build, has, shape) in BLOCKS.items():
            if arguments.only not in name:
                continue
            seconds = measure(build, has, (arguments.batch, *shape), threads, arguments.runs)
            norm = seconds["BN"]
            cells = [f"{np.median(norm / seconds[form]):.2f} ×" if form in seconds else "" for form in forms[1:]]
            rows.append([name, f"{1000 * np.median(norm):.2f} ms", *cells])
            print(rows[-1], file=sys.stderr)
        print(table(["block", *forms], rows))
    return 0


def measure(
    build: Callable[[Block], str], forms: tuple[str, ...], shape: tuple[int, ...], threads: int, runs: int
) -> dict[str, Any]:
    """CPU seconds of each form in every round; they take turns, and begin in turn."""
    sessions = {form: session(build, form, shape, threads) for form in forms}
    feeds = {"input": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(runs + WARM_UP):
        order = list(forms[number % len(forms):] + forms[: number % len(forms)])
        for form in order:
            start = time.process_time()
            sessions[form].run(None, feeds)
            seconds[form].append(time.process_time() - start)
    return {form: np.array(times[WARM_UP:]) for form, times in seconds.items()}


def session(build: Callable[[Block], str], form: str, shape: tuple[int, ...], threads: int) -> Any:
    import onnxruntime

    block = Block(form, shape)
    output = build(block)
    graph = helper.make_graph(
        block.nodes, form, [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], block.tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting is no work
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    sys.exit(main())
