"""Random sums of branches of one value: what merging should find, and what it must not touch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Rng = np.random.Generator


class Builder:
    """Collects nodes and weights of a float64 model (or of another type)."""

    def __init__(self, rng: Rng, dtype: Any = np.float64) -> None:
        self.rng = rng
        self.dtype = np.dtype(dtype)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._count = 0

    def name(self, what: str) -> str:
        self._count += 1
        return f"{what}{self._count}"

    def weight(self, shape: Sequence[int], low: float | None = None) -> str:
        array = self.rng.standard_normal(shape) if low is None else self.rng.uniform(low, 2, shape)
        return self.constant(array)

    def constant(self, array: Any) -> str:
        array = np.asarray(array)
        array = array.astype(self.dtype) if array.dtype.kind == "f" else array
        self.weights.append(numpy_helper.from_array(array, self.name("w")))
        return self.weights[-1].name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = self.name(op.lower())
        self.nodes.append(helper.make_node(op, list(inputs), [output], output + "_node", **attributes))
        return output

    def conv(self, x: str, rows: int, columns: int, kernel: Sequence[int], *, group: int = 1, bias: bool | None = None,
             **attributes: Any) -> str:  # fmt: skip
        inputs = [x, self.weight((rows, columns // group, *kernel))]
        if self.rng.integers(2) if bias is None else bias:
            inputs.append(self.weight((rows,)))
        return self.node("Conv", inputs, group=group, **attributes)

    def norm(self, x: str, channels: int) -> str:
        vectors = [self.weight((channels,)) for _ in range(3)]
        return self.node("BatchNormalization", [x, *vectors, self.weight((channels,), low=0.3)], epsilon=1e-3)

    def model(self, output: str, shape: Sequence[int | str], opset: int = 17) -> ModelProto:
        element = helper.np_dtype_to_tensor_dtype(self.dtype)
        graph = helper.make_graph(
            self.nodes, "branches", [helper.make_tensor_value_info("x", element, shape)],
            [helper.make_tensor_value_info(output, element, [None] * len(shape))], self.weights,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def pads_of(rng: Rng, kernel: Sequence[int], steps: Sequence[int], margin: Sequence[int]) -> list[int] | None:
    """Pads that give an output the wanted size, split at random; None if they would be negative."""
    low, high = [], []
    for k, d, m in zip(kernel, steps, margin, strict=True):
        total = m + d * (k - 1) + 1
        if total < 0:
            return None
        low.append(int(rng.integers(total + 1)) if rng.integers(3) == 0 else total // 2)
        high.append(total - low[-1])
    return low + high


def convolutions(rng: Rng, dtype: Any = np.float64) -> ModelProto:
    """Two to five branches of a feature map, joined at random, between a Relu and another."""
    build = Builder(rng, dtype)
    rank = int(rng.choice([1, 1, 2, 2, 2, 2, 2, 3]))
    group = int(rng.choice([1, 1, 2, 4]))
    columns = 4 * int(rng.integers(1, 3))
    rows = columns if rng.integers(3) else 4 * int(rng.integers(1, 4))
    stride = [int(rng.choice([1, 1, 2]))] * rank
    margin = [int(rng.choice([-1, -1, -1, -3, 1]))] * rank
    size = [int(rng.integers(7, 10)) for _ in range(rank)] if rank < 3 else [6] * 3
    x = build.node("Relu", ["x"]) if rng.integers(2) else "x"
    branches = [
        _branch(build, x, rows, columns, group, stride, margin, rank) for _ in range(int(rng.integers(2, 6)))
    ]
    y = _joined(build, branches)
    for _ in range(int(rng.integers(0, 2))):
        y = build.norm(y, rows)
    y = build.node("Relu", [y])
    return build.model(y, [2, columns, *size] if rng.integers(2) else ["n", columns, *(f"s{k}" for k in range(rank))])


def _branch(build: Builder, x: str, rows: int, columns: int, group: int, stride: list[int], margin: list[int],
            rank: int) -> str:  # fmt: skip
    rng = build.rng
    kind = rng.choice(["conv", "conv", "conv", "skip", "chain", "pool", "other", "depthwise"])
    plain = rows == columns and set(stride) == {1} and set(margin) == {-1}
    if kind == "skip" and plain:
        y = x
    elif kind == "chain":
        middle = int(rng.choice([2, 4, 8, 16])) * 2
        y = build.conv(x, middle, columns, [1] * rank, group=2 if rng.integers(2) else 1)
        y = _affine(build, y, middle, rank)
        y = _conv(build, y, rows, middle, 2 if rng.integers(2) else 1, stride, margin, rank)
    elif kind == "pool":
        y = build.conv(x, rows, columns, [1] * rank)
        pads = pads_of(rng, [3] * rank, [1] * rank, margin) or [1] * 2 * rank
        if rng.integers(2):
            zeros = [0, 0, *pads[:rank], 0, 0, *pads[rank:]]
            y, pads = build.node("Pad", [y, build.constant(np.array(zeros, np.int64))]), [0] * 2 * rank
        y = build.node("AveragePool", [y], kernel_shape=[3] * rank, strides=stride, pads=pads,
                       count_include_pad=int(rng.integers(4) > 0))  # fmt: skip
    elif kind == "depthwise" and rows == columns:
        y = _conv(build, x, rows, columns, columns, stride, margin, rank)
    else:
        y = _conv(build, x, rows, columns, group, stride, margin, rank)
        if kind == "other":
            y = build.node("Relu", [y])
    return _affine(build, y, rows, rank)


def _conv(build: Builder, x: str, rows: int, columns: int, group: int, stride: list[int], margin: list[int],
          rank: int) -> str:  # fmt: skip
    while True:
        kernel = [int(build.rng.choice([1, 1, 2, 3, 3, 5])) for _ in range(rank)]
        steps = [int(build.rng.choice([1, 1, 1, 2])) for _ in range(rank)]
        pads = pads_of(build.rng, kernel, steps, margin)
        if pads is not None:
            return build.conv(x, rows, columns, kernel, group=group, strides=stride, dilations=steps, pads=pads)


def _affine(build: Builder, x: str, channels: int, rank: int) -> str:
    shape = (channels, *(1,) * rank)
    for _ in range(int(build.rng.integers(0, 3))):
        op = build.rng.choice(["norm", "norm", "Mul", "Add", "Sub", "Div", "scalar", "Identity"])
        if op == "norm":
            x = build.norm(x, channels)
        elif op == "Identity":
            x = build.node("Identity", [x])
        elif op == "scalar":
            x = build.node("Mul", [build.weight(()), x])
        else:
            x = build.node(str(op), [x, build.weight(shape, low=0.5)])
    return x


def _joined(build: Builder, branches: list[str]) -> str:
    branches = list(branches)
    if len(branches) > 2 and build.rng.integers(5) == 0:
        return build.node("Sum", branches)
    while len(branches) > 1:
        pair = [branches.pop(int(build.rng.integers(len(branches)))) for _ in range(2)]
        y = build.node("Sub" if build.rng.integers(4) == 0 else "Add", pair)
        if build.rng.integers(5) == 0:
            y = build.node("Mul", [y, build.weight(())])
        branches.append(y)
    return branches[0]


def matrices(rng: Rng, dtype: Any = np.float64) -> ModelProto:
    """The same of MatMul and Gemm: low-rank pairs beside full matrices, skips, scalars."""
    build = Builder(rng, dtype)
    flat = bool(rng.integers(2))
    columns = int(rng.choice([4, 6, 8]))
    rows = columns if rng.integers(2) else int(rng.choice([4, 5, 8]))
    branches = []
    for _ in range(int(rng.integers(2, 5))):
        kind = rng.choice(["full", "full", "low", "skip", "other"])
        if kind == "skip" and rows == columns:
            y = "x"
        elif kind == "low":
            middle = int(rng.choice([1, 2, 6]))
            y = _product(build, _product(build, "x", middle, columns, flat), rows, middle, flat)
        else:
            y = _product(build, "x", rows, columns, flat)
            y = build.node("Relu", [y]) if kind == "other" else y
        for _ in range(int(rng.integers(0, 2))):
            op = str(rng.choice(["Mul", "Add", "Sub", "Div"]))
            y = build.node(op, [y, build.weight([(), (rows,), (1, rows)][int(rng.integers(3))], low=0.5)])
        branches.append(y)
    y = build.node("Relu", [_joined(build, branches)])
    return build.model(y, ["n", columns] if flat else ["n", 3, columns])


def _product(build: Builder, x: str, rows: int, columns: int, flat: bool) -> str:
    if flat and build.rng.integers(2):
        across = int(build.rng.integers(2))
        inputs = [x, build.weight((rows, columns) if across else (columns, rows))]
        if build.rng.integers(2):
            inputs.append(build.weight([(rows,), (1, rows), ()][int(build.rng.integers(3))]))
        return build.node("Gemm", inputs, transB=across, alpha=0.5, beta=float(build.rng.choice([1.0, 2.0])))
    return build.node("MatMul", [x, build.weight((columns, rows))])
