"""Where BNs are put in: a table of nets, each place with a twin that looks like one and is none.

Every row is checked whole: the function stays, in training mode too; a fold gives back the nodes and the function.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from insertion_models import Array, distance, inputs_of, net, ops, run, vector, weight
from onnx import ModelProto

import bnfold
from bnfold.errors import ModelError
from bnfold.graph import Graph
from bnfold.insert.sites import find_sites
from bnfold.model_file import wrap
from bnfold.shapes import Shapes

# x → Conv → … → y: what follows is put in the place of the dots, from c to y.
HEAD = "(float[N,3,8,8] x) => (float[N,A,B,C] y) {{ c = Conv(x, w, b) {} }}"
CONV = {"w": weight(4, 3, 3, 3), "b": vector(4)}
SKIP = {**CONV, "v": weight(4, 3, 3, 3, seed=5)}
TWO = {**CONV, "v": weight(5, 4, 1, 1, seed=3), "d": vector(5, 4)}
ROWS = "(float[N,6] x) => (float[A,B] y) {{ {} }}"
TOKENS = "(float[N,7,6] x) => (float[A,B,C] y) {{ {} }}"
DENSE = {"w": weight(5, 6).T.copy(), "b": vector(5)}


class Net(NamedTuple):
    """A net, and the tensors that are to be normalised; `left`: the reason where there are none."""

    name: str
    text: str
    tensors: dict[str, Array]
    expected: AbstractSet[str] = frozenset()
    left: str = ""
    where: Any = "before-activation"
    opset: int = 17


def after_conv(name: str, rest: str, left: str = "", opset: int = 17, **more: Array) -> Net:
    return Net(name, HEAD.format(rest), {**CONV, **more}, set() if left else {"c"}, left, opset=opset)


ACTIVATIONS = [
    after_conv(op, f"y = {op}{attributes}(c)", opset=opset)
    for op, attributes, opset in [
        ("Relu", "", 17), ("LeakyRelu", "<alpha = 0.1>", 17), ("ThresholdedRelu", "", 17), ("Elu", "", 17),
        ("Selu", "", 17), ("Celu", "", 17), ("Clip", "", 17), ("Sigmoid", "", 17), ("HardSigmoid", "", 17),
        ("Tanh", "", 17), ("Softplus", "", 17), ("Softsign", "", 17), ("HardSwish", "", 17), ("Shrink", "", 17),
        ("Mish", "", 18), ("Gelu", "", 20), ("Erf", "", 17), ("Sin", "", 17),
    ]
] + [
    after_conv("PRelu", "y = PRelu(c, s)", s=weight(4, 1, 1)),
    after_conv("microsoft gelu", "y = com.microsoft.Gelu(c)"),
    after_conv("silu", "s = Sigmoid(c) y = Mul(c, s)"),
    after_conv("silu turned", "s = Sigmoid(c) y = Mul(s, c)"),
    after_conv("quick gelu", "k = Constant<value_float = 1.702>() t = Mul(c, k) s = Sigmoid(t) y = Mul(c, s)"),
    after_conv("mish", "p = Softplus(c) t = Tanh(p) y = Mul(c, t)"),
    after_conv("gelu by erf", "d = Div(c, r) e = Erf(d) p = Add(e, o) t = Mul(c, p) y = Mul(t, h)",
               r=np.float32(2**0.5), o=np.float32(1), h=np.float32(0.5)),
    after_conv("gelu by tanh", "q = Pow(c, e) m = Mul(q, k) a = Add(c, m) s = Mul(a, r) t = Tanh(s) p = Add(t, o) "
               "u = Mul(c, p) y = Mul(u, h)", e=np.float32(3), k=np.float32(0.044715),
               r=np.float32((2 / np.pi) ** 0.5), o=np.float32(1), h=np.float32(0.5)),
    after_conv("hard swish", "a = Add(c, k) l = Clip(a, z, s) m = Mul(c, l) y = Div(m, s)",
               k=np.float32(3), z=np.float32(0), s=np.float32(6)),
    after_conv("maximum", "k = Mul(c, a) y = Max(c, k)", a=np.float32(0.1)),
]  # fmt: skip

BETWEEN = [
    after_conv("pooled", "p = MaxPool<kernel_shape = [2, 2]>(c) y = Relu(p)"),
    after_conv("averaged", "p = AveragePool<kernel_shape = [2, 2]>(c) y = Relu(p)"),
    after_conv("dropped out", "p = Dropout(c) y = Relu(p)"),
    after_conv("channels last", "p = Transpose<perm = [0, 2, 3, 1]>(c) y = Relu(p)"),
    after_conv("pixel shuffle", "p = DepthToSpace<blocksize = 2>(c) y = Relu(p)"),
    after_conv("gated linear unit", "a, g = Split<axis = 1>(c) s = Sigmoid(g) y = Mul(a, s)"),
    after_conv("a bias of its own kind", "a = Add(c, k) y = Relu(a)", k=weight(1, 4, 6, 6)),
    Net("joined", HEAD.format("e = Conv(x, v) j = Concat<axis = 1>(c, e) y = Relu(j)"), SKIP, {"c", "e"}),
    Net("residual", HEAD.format("e = Conv(x, v) s = Add(c, e) y = Relu(s)"), SKIP, {"c", "e"}),
    Net("residual of three", HEAD.format("e = Conv(x, v) s = Sum(c, e, c) y = Relu(s)"), SKIP, {"c", "e"}),
    Net("two sums", HEAD.format("e = Conv(x, v) s = Add(c, e) t = Add(s, c) y = Relu(t)"), SKIP, {"c", "e"}),
    after_conv("softmax is no activation", "y = Softmax<axis = 1>(c)", "no-activation"),
    after_conv("exp neither", "y = Exp(c)", "no-activation"),
    after_conv("nothing behind", "y = Identity(c)", "no-activation"),
    after_conv("as a slope", "y = PRelu(c, c)"),
    after_conv("gated before", "g = Mul(c, c) y = Relu(g)", "no-activation"),
    after_conv("reduced before", "g = ReduceMean<axes = [2, 3]>(c) y = Relu(g)", "no-activation"),
    after_conv("normalised by its own length", "g = Div(c, c) y = Relu(g)", "no-activation"),
]

BN = {"bs": vector(4) ** 2 + 1, "bb": vector(4, 6), "bm": vector(4, 7), "bv": vector(4, 8) ** 2 + 1}
NORM = "n = BatchNormalization({}, bs, bb, bm, bv)"
NORMALIZED = [
    after_conv("has one", NORM.format("c") + " y = Relu(n)", "normalized", **BN),
    after_conv("has one behind a pool", "p = MaxPool<kernel_shape = [2, 2]>(c) " + NORM.format("p") + " y = Relu(n)",
               "normalized", **BN),
    after_conv("has one for one reader", NORM.format("c") + " r = Relu(c) y = Add(n, r)", "normalized", **BN),
    after_conv("has one behind its activation", "r = Relu(c) " + NORM.format("r") + " y = Neg(n)", "normalized", **BN),
    after_conv("has one behind activation and pool", "r = Relu(c) p = MaxPool<kernel_shape = [2, 2]>(r) "
               + NORM.format("p") + " y = Neg(n)", "normalized", **BN),
    after_conv("has one written out", "m = Mul(c, g) a = Add(m, h) y = Relu(a)", "normalized",
               g=weight(1, 4, 1, 1), h=weight(1, 4, 1, 1)),
    after_conv("divided by a constant per channel", "m = Div(c, g) y = Relu(m)", "normalized",
               g=weight(1, 4, 1, 1) ** 2 + 1),
    after_conv("instance norm", "n = InstanceNormalization(c, s, h) y = Relu(n)", "normalized",
               s=vector(4), h=vector(4)),
    # A residual stream that is normalised further on is no normalisation of what flows into it.
    Net("the stream has one", HEAD.format("s = Add(c, x2) " + NORM.format("s") + " r = Relu(s) y = Add(n, r)").replace(
        "c = Conv", "x2 = Conv(x, v) c = Conv"), {**SKIP, **BN}, {"c", "x2"}),
]  # fmt: skip

LINEAR = [
    Net("matmul", ROWS.format("h = MatMul(x, w) y = Relu(h)"), {"w": DENSE["w"]}, {"h"}),
    Net("matmul, add", ROWS.format("h = MatMul(x, w) a = Add(h, b) y = Relu(a)"), DENSE, {"a"}),
    Net("add, matmul", ROWS.format("h = MatMul(x, w) a = Add(b, h) y = Relu(a)"), DENSE, {"a"}),
    Net("a bias that more than the add reads", ROWS.format("h = MatMul(x, w) a = Add(h, b) r = Relu(a) y = Add(r, h)"),
        DENSE, {"h"}),
    Net("seen before its bias", "(float[N,6] x) => (float[A,B] y, float[A,B] h) "
        "{ h = MatMul(x, w) a = Add(h, b) y = Relu(a) }", DENSE, {"a"}),
    Net("an add that widens is no bias", ROWS.format("h = MatMul(x, w) a = Add(h, b) y = Relu(a)"),
        {"w": weight(6, 1), "b": vector(5)}, {"h"}),
    Net("a number is no bias", ROWS.format("h = MatMul(x, w) a = Add(h, k) y = Relu(a)"),
        {**DENSE, "k": np.float32(3)}, {"h"}),
    Net("two biases", ROWS.format("h = MatMul(x, w) a = Add(h, b) e = Add(d, a) y = Relu(e)"),
        {**DENSE, "d": vector(5, 9)[None]}, {"e"}),
    Net("conv and add", HEAD.format("a = Add(c, k) y = Relu(a)"), {**CONV, "k": weight(4, 1, 1)}, {"a"}),
    Net("gemm", ROWS.format("h = Gemm(x, w, b) y = Relu(h)"), DENSE, {"h"}),
    Net("gemm, transposed, alpha, beta",
        ROWS.format("h = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, b) y = Relu(h)"),
        {"w": weight(5, 6), "b": vector(5)[None]}, {"h"}),
    Net("gemm of a number", ROWS.format("h = Gemm(x, w, b) y = Relu(h)"), {**DENSE, "b": np.float32(0.7)}, {"h"}),
    Net("gemm without bias", ROWS.format("h = Gemm(x, w) y = Relu(h)"), {"w": DENSE["w"]}, {"h"}),
    Net("gemm before opset 11", ROWS.format("h = Gemm(x, w, b) y = Relu(h)"), DENSE, {"h"}, opset=9),
    Net("up", HEAD.format("u = ConvTranspose<group = 2, strides = [2, 2]>(r, v, d) y = Relu(u)").replace(
        "c = Conv(x, w, b)", "c = Conv(x, w, b) r = Relu(c)"),
        {**CONV, "v": weight(4, 3, 2, 2), "d": vector(6)}, {"c", "u"}),
    Net("depthwise", HEAD.format("r = Relu(c) e = Conv<group = 4>(r, v) y = Relu(e)"),
        {**CONV, "v": weight(8, 1, 3, 3)}, {"c", "e"}),
    Net("in one dimension", "(float[N,3,9] x) => (float[A,B,C] y) { c = Conv(x, w, b) y = Relu(c) }",
        {"w": weight(4, 3, 3), "b": vector(4)}, {"c"}),
    Net("in three", "(float[N,3,4,4,4] x) => (float[A,B,C,D,E] y) { c = Conv(x, w, b) y = Relu(c) }",
        {"w": weight(4, 3, 3, 3, 3), "b": vector(4)}, {"c"}),
    Net("a weight behind a transpose", ROWS.format("t = Transpose<perm = [1, 0]>(w) h = MatMul(x, t) y = Relu(h)"),
        {"w": weight(5, 6)}, {"h"}),
    Net("tokens", TOKENS.format("h = MatMul(x, w) a = Add(h, b) y = Relu(a)"), DENSE, {"a"}),
    Net("a table is no bias of tokens", TOKENS.format("h = MatMul(x, w) a = Add(h, b) y = Relu(a)"),
        {**DENSE, "b": weight(7, 5)}, {"h"}),
    Net("as many tokens as channels", TOKENS.format("h = MatMul(x, w) a = Add(h, b) y = Relu(a)"),
        {"w": weight(6, 7), "b": vector(7)[:, None]}, {"h"}),
    Net("images with channels last", "(float[N,4,5,6] x) => (float[A,B,C,D] y) { h = MatMul(x, w) y = Relu(h) }",
        {"w": DENSE["w"]}, {"h"}),
    Net("from the left", "(float[N,6,7] x) => (float[A,B,C] y) { h = MatMul(w, x) a = Add(h, b) y = Relu(a) }",
        {"w": weight(5, 6), "b": vector(5)[:, None]}, {"a"}),
    Net("each head its own weight", "(float[N,2,7,6] x) => (float[A,B,C,D] y) { h = MatMul(x, w) y = Relu(h) }",
        {"w": weight(2, 6, 5)}, left="no-channels"),
    Net("a vector", "(float[6] x) => (float[A] y) { h = MatMul(x, w) y = Relu(h) }", {"w": DENSE["w"]},
        left="no-channels"),
    Net("a weight that is computed", HEAD.format("y = Relu(c)").replace("Conv(x, w, b)", "Conv(x, k)").replace(
        "c = ", "i = Constant<value_floats = [1.0, 2.0]>() k = Mul(w, j) c = ").replace(
        "(float[N,3,8,8] x)", "(float[N,3,8,8] x, float[1] j)"), {"w": CONV["w"]}, left="dynamic-weight"),
]  # fmt: skip

ALL = [
    Net("all but the last", HEAD.format("e = Conv(c, v) n = Neg(e) y = Conv(n, w2)"),
        {**TWO, "w2": weight(2, 5, 1, 1)}, {"c", "e"}, where="all"),
    Net("all but both heads", HEAD.format("e = Conv(c, v, d) f = Conv(c, v) y = Add(e, f)"), TWO, {"c"}, where="all"),
    Net("none that has one", HEAD.format(NORM.format("c") + " e = Conv(n, v) y = Conv(e, w2)"),
        {**TWO, **BN, "w2": weight(2, 5, 1, 1)}, {"e"}, where="all"),
    Net("not the last before a function", HEAD.format("y = com.microsoft.FusedMatMul(c, c)"), CONV, {"c"}, where="all"),
    Net("not the last before an einsum", HEAD.format('y = Einsum<equation = "nchw,nchw->nchw">(c, c)'), CONV, {"c"},
        where="all"),
    Net("not the last before a body", HEAD.format(
        "m = ReduceMean<keepdims = 0>(x) z = Constant<value_float = 0.0>() k = Greater(m, z) y = If (k) "
        "<then_branch = g1 () => (float[N,A,B,C] t) { t = Conv(c, v) }, "
        "else_branch = g2 () => (float[N,A,B,C] t) { t = Conv(c, v, d) }>"), TWO, {"c"}, where="all"),
    Net("the last alone", HEAD.format("y = Relu(c)"), CONV, left="last", where="all"),
]  # fmt: skip

NETS = [*ACTIVATIONS, *BETWEEN, *NORMALIZED, *LINEAR, *ALL]


def in_training_mode(model: ModelProto) -> ModelProto:
    copy = ModelProto.FromString(model.SerializeToString())
    for node in copy.graph.node:
        if node.op_type == "BatchNormalization" and node.name.endswith(".bn"):
            node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
            node.output.extend([f"{node.name}/m", f"{node.name}/v"])
    return copy


@pytest.mark.parametrize("row", NETS, ids=[row.name for row in NETS])
def test_places(row: Net) -> None:
    model = net(row.text, row.opset, **row.tensors)
    graph = Graph(model)
    sites, left = find_sites(graph, Shapes(graph, wrap(model)), row.where, lambda node: True)
    assert {site.target.name for site in sites} == row.expected
    if row.expected:
        return
    assert row.left in {one.reason for one in left}
    with pytest.raises(ModelError, match="has no place for a BatchNormalization"):
        bnfold.insert(model, inputs_of(model), where=row.where)


PLACES = [row for row in NETS if row.expected]


@pytest.mark.parametrize("row", PLACES, ids=[row.name for row in PLACES])
def test_nothing_else_changes(row: Net) -> None:
    model = net(row.text, row.opset, **row.tensors)
    before, feeds = model.SerializeToString(), inputs_of(model)
    result = bnfold.insert(model, feeds, where=row.where, batch_size=40)
    inserted = result.model
    assert model.SerializeToString() == before
    onnx.checker.check_model(inserted, full_check=True)
    assert {site.output for site in result.sites} == row.expected

    expected = run(model, feeds)
    assert distance(expected, run(inserted, feeds)) < 1e-6
    if row.opset >= 14:
        assert distance(expected, run(in_training_mode(inserted), feeds)) < 1e-5

    folded, back = bnfold.fold(model).model, bnfold.fold(inserted).model
    assert distance(expected, run(back, feeds)) < 1e-6
    assert sorted(ops(back)) == sorted(ops(folded))
