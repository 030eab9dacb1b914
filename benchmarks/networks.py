"""The networks that costs are told of, at their usual widths and with random weights, as ONNX models.

    python benchmarks/networks.py resnet50 out.onnx

resnet18 and resnet50 (He et al. 2016), mobilenetv2 (Sandler et al. 2018), densenet121 (Huang et al. 2017), as
torchvision has them; weights are He-normal, BatchNorms (1, 0, 0, 1). What a network costs doesn't depend on what it
has learnt, so no trained file has to be there.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

CLASSES = 1000


class Builder:
    """Nodes one behind the other; each method gives the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self._rng = np.random.default_rng(0)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], f"{op}_{len(self.nodes)}", **attributes))
        return output

    def tensor(self, values: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(values, np.float32), f"t{len(self.tensors)}"))
        return str(self.tensors[-1].name)

    def conv(self, x: str, inside: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        shape = (out, inside // groups, kernel, kernel)
        weight = self._rng.standard_normal(shape) * np.sqrt(2 / (shape[1] * kernel * kernel))
        pads = [kernel // 2] * 4
        return self.node("Conv", x, self.tensor(weight), strides=[stride] * 2, pads=pads, group=groups,
                         kernel_shape=[kernel] * 2)  # fmt: skip

    def bn(self, x: str, channels: int) -> str:
        parameters = [np.ones(channels), np.zeros(channels), np.zeros(channels), np.ones(channels)]
        return self.node("BatchNormalization", x, *map(self.tensor, parameters), epsilon=1e-5)

    def conv_bn(self, x: str, inside: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        return self.bn(self.conv(x, inside, out, kernel, stride, groups), out)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self.tensor(0.0), self.tensor(6.0))

    def max_pool(self, x: str) -> str:
        return self.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)

    def head(self, x: str, channels: int) -> None:
        flat = self.node("Flatten", self.node("GlobalAveragePool", x))
        weight = self._rng.standard_normal((CLASSES, channels)) / np.sqrt(channels)
        self.node("Gemm", flat, self.tensor(weight), self.tensor(np.zeros(CLASSES)), transB=1)


def resnet(blocks: tuple[int, ...], bottleneck: bool) -> Builder:
    net = Builder()
    x, inside = net.max_pool(net.relu(net.conv_bn("input", 3, 64, 7, 2))), 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        out = width * (4 if bottleneck else 1)
        for block in range(count):
            stride = 2 if stage and not block else 1
            if bottleneck:
                y = net.relu(net.conv_bn(x, inside, width, 1))
                y = net.relu(net.conv_bn(y, width, width, 3, stride))
                y = net.conv_bn(y, width, out, 1)
            else:
                y = net.relu(net.conv_bn(x, inside, width, 3, stride))
                y = net.conv_bn(y, width, width, 3)
            skip = x if inside == out and stride == 1 else net.conv_bn(x, inside, out, 1, stride)
            x, inside = net.relu(net.node("Add", y, skip)), out
    net.head(x, inside)
    return net


def mobilenetv2() -> Builder:
    net = Builder()
    x, inside = net.relu6(net.conv_bn("input", 3, 32, 3, 2)), 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, out, count, first in stages:
        for block in range(count):
            stride, wide = (1 if block else first), inside * expansion
            y = x if expansion == 1 else net.relu6(net.conv_bn(x, inside, wide, 1))
            y = net.relu6(net.conv_bn(y, wide, wide, 3, stride, wide))
            y = net.conv_bn(y, wide, out, 1)
            x, inside = (net.node("Add", x, y) if stride == 1 and inside == out else y), out
    net.head(net.relu6(net.conv_bn(x, inside, 1280, 1)), 1280)
    return net


def densenet121(growth: int = 32) -> Builder:
    net = Builder()
    x, inside = net.max_pool(net.relu(net.conv_bn("input", 3, 64, 7, 2))), 64
    for stage, count in enumerate((6, 12, 24, 16)):
        for _ in range(count):
            y = net.conv(net.relu(net.bn(x, inside)), inside, 4 * growth, 1)
            y = net.conv(net.relu(net.bn(y, 4 * growth)), 4 * growth, growth, 3)
            x, inside = net.node("Concat", x, y, axis=1), inside + growth
        x = net.relu(net.bn(x, inside))
        if stage < 3:
            x = net.node("AveragePool", net.conv(x, inside, inside // 2, 1), kernel_shape=[2, 2], strides=[2, 2])
            inside //= 2
    net.head(x, inside)
    return net


NETWORKS = {
    "resnet18": lambda: resnet((2, 2, 2, 2), bottleneck=False),
    "resnet50": lambda: resnet((3, 4, 6, 3), bottleneck=True),
    "mobilenetv2": mobilenetv2,
    "densenet121": densenet121,
}


def network(name: str) -> ModelProto:
    """One of `NETWORKS`, for images of any size."""
    net = NETWORKS[name]()
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, "h", "w"])
    output = helper.make_tensor_value_info(net.nodes[-1].output[0], TensorProto.FLOAT, ["n", CLASSES])
    graph = helper.make_graph(net.nodes, name, [image], [output], net.tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    onnx.save(network(sys.argv[1]), sys.argv[2])
