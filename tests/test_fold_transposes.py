"""Transposes that only brought channels to a BN and back go with it; all others stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from insertion_models import Array, distance, inputs_of, net, ops, run, vector, weight

import bnfold

BN = {"s": vector(5) ** 2 + 0.5, "b": vector(5, 6), "m": vector(5, 7), "v": vector(5, 8) ** 2 + 0.5}
TENSORS = {"w": weight(5, 6).T.copy(), "u": weight(3, 5).T.copy(), "k": weight(5, 5, 1), **BN}
THERE, BACK = "Transpose<perm = [0, 2, 1]>", "Transpose<perm = [0, 2, 1]>"
NORM = "BatchNormalization({}, s, b, m, v)"
TEXT = "(float[N,7,6] x) => (float[A,B,C] y{}) {{ h = MatMul(x, w) t = " + THERE + "(h) n = " + NORM.format("t")
END = " r = Relu(a) y = MatMul(r, u) }}"

# What follows the BN, further outputs, and the ops that a fold leaves.
CASES = {
    "both go": (f" a = {BACK}(n)" + END, "", ["MatMul", "Add", "Relu", "MatMul"]),
    "not back": (" z = Relu(n) y = Conv(z, k) }}", "", ["MatMul", "Add", "Transpose", "Relu", "Conv"]),
    "seen between": (f" a = {BACK}(n)" + END, ", float[A,C,B] n",
                     ["MatMul", "Add", "Transpose", "Transpose", "Relu", "MatMul"]),
    "seen before": (f" a = {BACK}(n)" + END, ", float[A,B,C] a", ["MatMul", "Add", "Relu", "MatMul"]),
    "twice": (f" a1 = {BACK}(n) t1 = {THERE}(a1) n1 = {NORM.format('t1')} a = {BACK}(n1)" + END, "",
              ["MatMul", "Add", "Relu", "MatMul"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_transposes(name: str) -> None:
    rest, outputs, expected = CASES[name]
    model = net((TEXT + rest).format(outputs), **TENSORS)
    check(model, expected)


def test_the_next_bn_may_read_the_transpose_that_went() -> None:
    """T BN T BN T: the middle one belongs to one pair only."""
    text = f"(float[N,5,5] x) => (float[A,B,C] y) {{{{ h = MatMul(x, q) t = {THERE}(h) n = {NORM.format('t')} "
    text += f"a = {BACK}(n) p = {NORM.format('a')} z = {THERE}(p) y = MatMul(z, u) }}}}"
    check(net(text.format(), **TENSORS, q=weight(5, 5)), ["MatMul", "Add", "Transpose", "MatMul", "Add"])


def test_a_turn_is_no_way_back() -> None:
    """(0, 3, 1, 2) twice is another order of axes, of equal sizes here."""
    text = "(float[N,5,5,5] x) => (float[A,B,C,D] y) { h = MatMul(x, q) t = Transpose<perm = [0, 3, 1, 2]>(h) "
    text += f"n = {NORM.format('t')} a = Transpose<perm = [0, 3, 1, 2]>(n) r = Relu(a) y = MatMul(r, q) }}"
    check(net(text, **BN, q=weight(5, 5)), ["MatMul", "Add", "Transpose", "Transpose", "Relu", "MatMul"])


def check(model: onnx.ModelProto, expected: list[str]) -> None:
    feeds = inputs_of(model)
    folded = bnfold.fold(model).model
    assert ops(folded) == expected
    onnx.checker.check_model(folded, full_check=True)
    assert distance(run(model, feeds), run(folded, feeds)) < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gamma_that_only_undoes_the_variance_leaves_the_weight(dtype: type) -> None:
    var = (vector(5) ** 2 + 0.5).astype(dtype)
    eps = float(np.float32(1e-5))
    gamma = np.sqrt(var.astype(np.float64) + eps).astype(dtype)
    other = gamma * dtype(1 + 4 * np.finfo(dtype).eps)
    for scale, same in ((gamma, True), (other, False)):
        tensors: dict[str, Array] = {"w": weight(5, 6).T, "s": scale, "v": var, "m": vector(5)}
        tensors = {name: array.astype(dtype) for name, array in tensors.items()}
        text = "(float[N,6] x) => (float[A,B] y) { h = MatMul(x, w) y = BatchNormalization(h, s, m, m, v) }"
        folded = bnfold.fold(net(text.replace("float", "double") if dtype == np.float64 else text, **tensors)).model
        assert (ops(folded) == ["MatMul"]) is same
        assert (onnx.numpy_helper.to_array(folded.graph.initializer[0]) == tensors["w"]).all() == same
