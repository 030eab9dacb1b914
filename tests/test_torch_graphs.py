"""`bnfold.torch` on whole graphs: random ones, and bodies that train; ONNX Runtime is the oracle."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import REPO
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.parser import parse_model
from torch_backend import torch

sys.path.append(str(REPO / "benchmarks"))
from torch_bridge import error, forward, run, training_form

from bnfold.torch import to_module

EPSILON = 0.1
"""Of normalisations: a small one would blow up the rounding of channels that hardly vary."""
LIMIT = 1e-4
"""max|d| / max|y|; a wrong op is off by percents."""


class Net:
    """A random graph in the making: its last value is (n, channels, length)."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 999)))
        self.opset = draw(st.sampled_from([13, 17, 21]))
        self.nodes: list[Any] = []
        self.tensors: list[TensorProto] = []
        self.channels, self.length = draw(st.integers(1, 4)), draw(st.integers(3, 6))
        self.value = "x"
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", self.channels, self.length])
        self.earlier: list[tuple[str, int, int]] = []

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def tensor(self, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        return self.constant(self.rng.uniform(low, high, shape).astype(np.float32))

    def constant(self, array: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(array), f"t{len(self.tensors)}"))
        return self.tensors[-1].name

    def node(self, op: str, *more: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """A node that reads the last value first; its first output is the last value then."""
        return self.of(op, [self.value, *more], outputs, **attributes)

    def of(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, f"n{len(self.nodes)}", **attributes))
        self.value = names[0]
        return names

    def model(self) -> ModelProto:
        self.of("Identity", [self.value])
        self.nodes[-1].output[0] = "y"
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", self.channels, self.length])
        graph = helper.make_graph(self.nodes, "g", [self.input], [output], self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def elementwise(net: Net) -> None:
    names = "Relu Sigmoid Tanh Softplus Softsign Elu Selu Celu LeakyRelu HardSigmoid Abs Neg Erf Dropout".split()
    net.node(net.pick(*names, *["HardSwish", "Mish", "Gelu"][: (net.opset - 13) // 4 + (net.opset > 17)]))


def clip(net: Net) -> None:
    net.node("Clip", net.constant(np.float32(-0.5)), *([net.constant(np.float32(0.75))] if net.pick(0, 1) else []))


def arithmetic(net: Net) -> None:
    shape = net.pick((), (1,), (net.length,), (net.channels, 1), (1, net.channels, net.length))
    op = net.pick("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu")
    other = net.tensor(*shape, low=0.5 if op == "Div" else -1.0)
    swapped = op in ("Sub", "Add", "Mul") and net.pick(False, True)
    net.of(op, [other, net.value] if swapped else [net.value, other])


def residual(net: Net) -> None:
    """With an earlier value of the same shape, or itself."""
    same = [name for name, *shape in net.earlier if shape == [net.channels, net.length]] or [net.value]
    net.node(net.pick("Add", "Sub", "Max"), net.pick(*same))


def convolution(net: Net) -> None:
    groups = net.pick(*(g for g in (1, 2, 4) if net.channels % g == 0))
    outputs, kernel, stride, dilation = groups * net.pick(1, 2), net.pick(1, 2, 3), net.pick(1, 2), net.pick(1, 2)
    pads = [net.pick(0, 1, 2), net.pick(2, 3)]
    weight = net.tensor(outputs, net.channels // groups, kernel)
    bias = [net.tensor(outputs)] if net.pick(0, 1) else []
    settings = {"strides": [stride], "dilations": [dilation], "group": groups}
    net.node("Conv", weight, *bias, pads=pads, **settings)
    net.channels, net.length = outputs, (net.length + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1


def transposed_convolution(net: Net) -> None:
    outputs, stride, pads = net.pick(1, 3), net.pick(1, 2), [0, net.pick(0, 1)]
    net.node("ConvTranspose", net.tensor(net.channels, outputs, 3), strides=[stride], pads=pads)
    net.channels, net.length = outputs, (net.length - 1) * stride + 3 - sum(pads)


def normalisation(net: Net) -> None:
    c = net.channels
    newer = ["LayerNormalization"] * (net.opset >= 17) + ["GroupNormalization"] * (net.opset >= 21)
    op = net.pick("BatchNormalization", "InstanceNormalization", *newer)
    if op == "GroupNormalization":
        net.node(op, net.tensor(c), net.tensor(c), num_groups=net.pick(1, c), epsilon=EPSILON)
    elif op == "LayerNormalization":
        net.node(op, net.tensor(net.length), net.tensor(net.length), epsilon=EPSILON)
    elif op == "InstanceNormalization":
        net.node(op, net.tensor(c), net.tensor(c), epsilon=EPSILON)
    else:
        statistics = net.tensor(c), net.tensor(c, low=0.2)
        net.node(op, net.tensor(c), net.tensor(c), *statistics, epsilon=EPSILON, momentum=net.pick(0.9, 0.5))


def pooling(net: Net) -> None:
    op = net.pick("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
    if op.startswith("Global"):
        net.node(op)
        net.length = 1
    elif net.length >= 2:
        stride, pads = net.pick(1, 2), [net.pick(0, 1), 1]
        net.node(op, kernel_shape=[2], strides=[stride], pads=pads)
        net.length = (net.length + sum(pads) - 2) // stride + 1


def product(net: Net) -> None:
    outputs = net.pick(1, 2, 5)
    net.node("MatMul", net.tensor(*net.pick((), (1,)), net.length, outputs))
    net.length = outputs


def flattened_product(net: Net) -> None:
    """Flatten, Gemm, and back by sizes that are computed."""
    batch = net.of("Shape", [net.value])[0]
    net.of("Slice", [batch, net.constant([0]), net.constant([1])])
    shape = net.of("Concat", [net.value, net.constant([2, -1])], axis=0)[0]
    net.value = net.nodes[-3].input[0]
    net.node("Flatten", axis=1)
    inputs, turned = net.channels * net.length, net.pick(0, 1)
    weight = net.tensor(*((6, inputs) if turned else (inputs, 6)))
    net.node("Gemm", weight, net.tensor(6), transB=turned, alpha=net.pick(1.0, 0.5), beta=net.pick(1.0, 2.0))
    net.node("Reshape", shape)
    net.channels, net.length = 2, 3


def layout(net: Net) -> None:
    net.node("Transpose", perm=[0, 2, 1])
    net.channels, net.length = net.length, net.channels


def joined(net: Net) -> None:
    axis = net.pick(1, 2, -1)
    net.node("Concat", net.value, axis=axis)
    net.channels, net.length = (net.channels * 2, net.length) if axis == 1 else (net.channels, net.length * 2)


def cut(net: Net) -> None:
    if net.length >= 2:
        first, step = net.pick(0, 1, -2), net.pick(1, 2)
        net.node("Slice", *(net.constant([number]) for number in (first, 2**31 - 1, 2, step)))
        net.length = len(range(net.length)[first::step])


def split(net: Net) -> None:
    if net.channels >= 2:
        sizes = [1, net.channels - 1]
        parts = net.node("Split", net.constant(sizes), outputs=2, axis=1)
        which = net.pick(0, 1)
        net.value, net.channels = parts[which], sizes[which]


def padded(net: Net) -> None:
    mode = net.pick("constant", "edge", *["reflect"] * (net.length >= 3))
    net.node("Pad", net.constant([0, 0, 1, 0, 0, 2]), mode=mode)
    net.length += 3


def over_an_axis(net: Net) -> None:
    op, axis = net.pick("Softmax", "LogSoftmax", "ReduceMean", "ReduceMax", "ReduceSum"), net.pick(1, 2, -1)
    if "Soft" in op:
        net.node(op, axis=axis)
        return
    if net.opset >= 18 or op == "ReduceSum":
        net.node(op, net.constant([axis]))
    else:
        net.node(op, axes=[axis])
    net.channels, net.length = (1, net.length) if axis == 1 else (net.channels, 1)


def gathered(net: Net) -> None:
    net.node("Gather", net.constant([0, -1, 0]), axis=1)
    net.channels = 3


def chosen(net: Net) -> None:
    mask = net.constant(net.rng.random(net.length) < 0.5)
    net.of("Where", [mask, net.value, net.tensor(1)])


STEPS = (
    elementwise, clip, arithmetic, residual, convolution, transposed_convolution, normalisation, pooling, product,
    flattened_product, layout, joined, cut, split, padded, over_an_axis, gathered, chosen,
)  # fmt: skip


@st.composite
def networks(draw: Callable[[Any], Any]) -> ModelProto:
    net = Net(draw)
    for _ in range(draw(st.integers(1, 6))):
        before = (net.value, net.channels, net.length)
        draw(st.sampled_from(STEPS))(net)
        net.earlier.append(before)
    return net.model()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(networks(), st.integers(2, 4))
def test_random_graphs_agree_with_onnx_runtime(model: ModelProto, size: int) -> None:
    """In evaluation; and in training, where that is not random, the new statistics too."""
    shape = [size, *(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    feeds = {"x": np.random.default_rng(size).normal(size=shape).astype(np.float32)}
    with torch.no_grad():
        assert error(run(model, feeds)["y"], forward(to_module(model), feeds)[0]) < LIMIT
        if any(node.op_type == "Dropout" for node in model.graph.node):
            return
        form, results = training_form(model)
        expected, module = run(form, feeds), to_module(model).train()
        assert error(expected["y"], forward(module, feeds)[0]) < LIMIT
        state = {module.names[key]: value for key, value in module.state_dict().items()}
        for name, result in results.items():
            if name in state:
                assert error(expected[result], state[name]) < LIMIT


TENSORS = """float[3] gamma = {1, 2, 0.5}, float[3] beta = {0.1, 0, -1}, float[3] mean = {0.5, 0, 1},
    float[3] var = {2, 1, 0.25}, float[3] mean2 = {0, 0, 0.5}, float[3] var2 = {1, 3, 1}"""
BODIES = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] x, bool cond) => (float[N, 3] y) <%s> {
        three = Constant<value_int: int = 3>()
        always = Constant<value = bool {1}>()
        h = Loop(three, always, x) <body = step (int64 i, bool go, float[N, 3] s) => (bool on, float[N, 3] n) {
            on = Identity(go)
            b = BatchNormalization<momentum: float = 0.7>(s, gamma, beta, mean, var)
            n = Tanh(b)
        }>
        y = If(cond) <
            then_branch = then () => (float[N, 3] a) { a = BatchNormalization(h, gamma, beta, mean2, var2) },
            else_branch = other () => (float[N, 3] c) { c = Neg(h) }
        >
    }"""
TRAINING = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] x, bool cond) => (float[N, 3] y, float[3] m, float[3] v, float[3] m2, float[3] v2) <%s> {
        three = Constant<value_int: int = 3>()
        always = Constant<value = bool {1}>()
        h, m, v = Loop(three, always, x, mean, var) <
            body = step (int64 i, bool go, float[N, 3] s, float[3] p, float[3] q)
                => (bool on, float[N, 3] n, float[3] pn, float[3] qn) {
            on = Identity(go)
            b, pn, qn = BatchNormalization<momentum: float = 0.7, training_mode: int = 1>(s, gamma, beta, p, q)
            n = Tanh(b)
        }>
        y, m2, v2 = If(cond) <
            then_branch = then () => (float[N, 3] a, float[3] pa, float[3] qa) {
                a, pa, qa = BatchNormalization<training_mode: int = 1>(h, gamma, beta, mean2, var2)
            },
            else_branch = other () => (float[N, 3] c, float[3] pc, float[3] qc) {
                c = Neg(h)
                pc = Identity(mean2)
                qc = Identity(var2)
            }
        >
    }"""


@pytest.mark.parametrize("condition", [True, False])
def test_batch_norms_in_bodies_train(condition: bool) -> None:
    """In a Loop every turn updates the statistics, in an If the branch that is taken does."""
    model, training = parse_model(BODIES % TENSORS), parse_model(TRAINING % TENSORS)
    x = np.random.default_rng(0).normal(1, 2, (6, 3)).astype(np.float32)
    feeds = {"x": x, "cond": np.array(condition)}
    module = to_module(model)
    assert error(run(model, feeds)["y"], forward(module, feeds)[0].detach()) < 1e-6
    expected = run(training, feeds)
    y = forward(module.train(), feeds)[0]
    assert error(expected["y"], y.detach()) < 1e-6
    for name, result in (("mean", "m"), ("var", "v"), ("mean2", "m2"), ("var2", "v2")):
        assert error(expected[result], module.state_dict()[name]) < 1e-6
    y.square().sum().backward()
    assert torch.isfinite(module.gamma.grad).all() and (module.gamma.grad != 0).all()
