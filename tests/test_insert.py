"""What an insertion leaves as it was, and what it measures: opsets, types, names, data, the way back by a fold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import REPO
from hypothesis import given, settings
from hypothesis import strategies as st
from insertion_models import SAMPLES as SIZE
from insertion_models import Array, distance, inputs_of, net, norms, ops, run, vector, weight
from onnx import ModelProto, TensorProto, helper, numpy_helper
from recalibration_models import reference, tensors_of

import bnfold
from bnfold.errors import ModelError, UsageError

FOLDER = REPO / "sample_models"
DIGITS = str(FOLDER / "digits.npz:calib_x")
CONV = {"w": weight(4, 3, 3, 3), "b": vector(4)}
TEXT = "(float[N,3,8,8] x) => (float[N,A] y) { c = Conv(x, w, b) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) "
TEXT += "h = Gemm(f, v, d) s = Sigmoid(h) y = Gemm(s, u, e) }"
NET = {
    **CONV, "v": weight(5, 4).T.copy(), "d": vector(5, 3), "u": weight(2, 5).T.copy(), "e": vector(2, 4),
}  # fmt: skip


def small(opset: int = 17, ir_version: int = 8) -> ModelProto:
    """Conv, Relu, Gemm, Sigmoid, Gemm."""
    return net(TEXT, opset, ir_version, **NET)


def converted(model: ModelProto, kind: int) -> ModelProto:
    """The same of another element type."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = kind
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    return model


def parameters(model: ModelProto, node: onnx.NodeProto) -> list[Array]:
    """gamma, beta, mean, var."""
    have = tensors_of(model)
    return [have[name] for name in node.input[1:]]


def folded_sample(name: str) -> ModelProto:
    """A trained network without BN."""
    result: ModelProto = bnfold.fold(FOLDER / f"{name}.onnx", verify=False).model
    return result


# -- opsets and types ---------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 13, 14, 15, 17, 21, 24])
@pytest.mark.parametrize("mode", ["preserve", "fresh"])
def test_every_opset(opset: int, mode: Any) -> None:
    ir_version = 3 if opset < 9 else 8 if opset < 21 else 10
    model = small(opset, ir_version)
    feeds = inputs_of(model)
    inserted = bnfold.insert(model, feeds, mode=mode).model
    assert [one.version for one in inserted.opset_import] == [opset]
    onnx.checker.check_model(inserted, full_check=True)
    assert ops(inserted).count("BatchNormalization") == 2
    for node in norms(inserted).values():
        assert len(node.output) == 1 and {one.name for one in node.attribute} == {"epsilon"}
    if mode == "preserve":
        assert distance(run(model, feeds), run(inserted, feeds)) < 1e-6
    if ir_version == 3:  # there every initializer is an input
        assert {t.name for t in inserted.graph.initializer} <= {info.name for info in inserted.graph.input}


# gamma is rounded once: half a unit in the last place of 1, for each of two BNs.
@pytest.mark.parametrize(
    ("kind", "limit"), [(TensorProto.FLOAT16, 2**-10), (TensorProto.BFLOAT16, 2**-7), (TensorProto.DOUBLE, 1e-15)]
)
def test_other_types_keep_theirs(kind: int, limit: float) -> None:
    model = converted(small(22, 10), kind)  # the first where Conv takes bfloat16
    result = bnfold.insert(model, inputs_of(model))
    for node in norms(result.model).values():
        assert {array.dtype for array in parameters(result.model, node)} == {helper.tensor_dtype_to_np_dtype(kind)}
    onnx.checker.check_model(result.model, full_check=True)
    assert result.difference is not None and result.difference.worst < limit
    fresh = bnfold.insert(model, mode="fresh").model
    onnx.checker.check_model(fresh, full_check=True)


def test_tokens_are_measured_in_double() -> None:
    text = "(float[N,5,6] x) => (float[A,B,C] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    model = converted(net(text, w=weight(5, 6).T.copy(), v=weight(2, 5).T.copy()), TensorProto.DOUBLE)
    feeds = inputs_of(model)
    inserted = bnfold.insert(model, feeds, batch_size=50).model
    value = feeds["x"] @ weight(5, 6).T.astype(np.float64)
    assert np.abs(tensors_of(inserted)["h.bn.running_mean"] - value.mean((0, 1))).max() < 1e-12
    assert np.abs(tensors_of(inserted)["h.bn.running_var"] - value.var((0, 1))).max() < 1e-12


def test_a_variance_that_float16_cannot_hold_is_an_error() -> None:
    model = converted(net("(float[N,3,8,8] x) => (float[N,A,B,C] y) { c = Conv(x, w, b) y = Relu(c) }", **CONV), 10)
    feeds = {name: (array * 1000).astype(np.float16) for name, array in inputs_of(model).items()}
    with pytest.raises(ModelError, match=r"node 'c': its variance of .* overflows float16"):
        bnfold.insert(model, feeds)


def test_opset_below_7() -> None:
    model = net("(float[N,3,8,8] x) => (float[N,A,B,C] y) { c = Conv(x, w, b) y = Relu(c) }", 6, 3, **CONV)
    with pytest.raises(ModelError, match=r"is of opset 6; .* takes 7: --upgrade converts the model"):
        bnfold.insert(model, mode="fresh")
    result = bnfold.insert(model, inputs_of(model), upgrade=True)
    assert result.model.opset_import[0].version == 7
    assert "converted from opset 6 to 7" in result.notices[0]
    assert distance(run(model, inputs_of(model)), run(result.model, inputs_of(model))) < 1e-6


@pytest.mark.parametrize("opset", [14, 15, 17])
@pytest.mark.parametrize("mode", ["preserve", "fresh"])
def test_training_nodes(opset: int, mode: Any) -> None:
    model = small(opset)
    feeds = inputs_of(model)
    inserted = bnfold.insert(model, feeds, mode=mode, training_nodes=True, batch_size=SIZE).model
    onnx.checker.check_model(inserted, full_check=True)
    for node in norms(inserted).values():
        assert helper.get_node_attr_value(node, "training_mode") == 1 and len(node.output) == 3
    found = run(inserted, feeds)
    if mode == "preserve":  # one batch of all that was measured on
        assert distance(run(model, feeds), found) < 2e-6
    else:
        plain = bnfold.insert(model, feeds, mode=mode, batch_size=SIZE).model
        assert distance(run(plain, feeds), found) < 1e-4


def test_training_nodes_upgrade_only_when_asked() -> None:
    model = small(13)
    with pytest.raises(ModelError, match="is of opset 13; BatchNormalization in training mode takes 14: --upgrade"):
        bnfold.insert(model, mode="fresh", training_nodes=True)
    result = bnfold.insert(model, mode="fresh", training_nodes=True, upgrade=True)
    assert result.model.opset_import[0].version == 14
    onnx.checker.check_model(result.model, full_check=True)
    assert "converted from opset 13 to 14 by onnx's version converter" in result.notices
    assert bnfold.insert(model, mode="fresh", upgrade=True).model.opset_import[0].version == 13  # not needed


# -- what is measured ---------------------------------------------------------------------------------


def test_statistics_are_those_of_the_network_as_it_is() -> None:
    model = folded_sample("digits_preact")
    x = np.load(FOLDER / "digits.npz")["calib_x"]
    result = bnfold.insert(model, x, batch_size=50)
    have = tensors_of(model)
    shown = ModelProto.FromString(model.SerializeToString())
    shown.graph.output.extend(onnx.ValueInfoProto(name=site.output) for site in result.sites)
    values = run(shown, {"input": x})
    for site, node in zip(result.sites, norms(result.model).values(), strict=True):
        gamma, beta, mean, var = (array.astype(np.float64) for array in parameters(result.model, node))
        linear = next(one for one in model.graph.node if one.name == site.node)
        bias = have[linear.input[2]].astype(np.float64) if len(linear.input) > 2 else 0.0
        value = values[site.output].astype(np.float64)
        axes = (0, *range(2, value.ndim))
        spread = np.sqrt(value.var(axes)) + 1e-6
        assert np.abs(np.sqrt(var) / spread - 1).max() < 1e-4  # dead channels included
        assert (np.abs(mean + bias - value.mean(axes)) / spread).max() < 1e-5
        assert np.abs(gamma / np.sqrt(var + 1e-5) - 1).max() < 1e-7
        assert (np.abs(beta - mean - bias) <= 1e-7 * np.abs(beta)).all()


def test_fresh_statistics_are_those_of_the_new_network() -> None:
    x = np.load(FOLDER / "digits.npz")["calib_x"][:128]
    result = bnfold.insert(folded_sample("digits_cnn"), iter([x[:64], x[64:]]), mode="fresh")
    assert result.samples == 128 and result.difference is None
    expected = reference(result.model, [x[:64], x[64:]])
    for node in norms(result.model).values():
        gamma, beta, mean, var = parameters(result.model, node)
        assert (gamma == 1).all() and (beta == 0).all()
        exact_mean, exact_var = expected[node.name]
        assert np.abs(var / exact_var - 1).max() < 2e-5
        assert (np.abs(mean - exact_mean) / np.sqrt(exact_var)).max() < 2e-5


@pytest.mark.parametrize(
    ("kind", "opset", "limit"),
    [(TensorProto.BFLOAT16, 22, 2**-6), (TensorProto.DOUBLE, 9, 1e-6), (TensorProto.DOUBLE, 22, 1e-6)],
)
def test_fresh_statistics_of_other_types(kind: int, opset: int, limit: float) -> None:
    """Measured in double, whatever kernels ONNX Runtime has: those of the same network in float32."""
    given = converted(small(opset, 10 if opset > 20 else 8), kind)
    rounded = converted(small(), TensorProto.FLOAT)
    for tensor, own in zip(rounded.graph.initializer, given.graph.initializer, strict=True):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(own).astype(np.float32), tensor.name))
    feeds = inputs_of(given)
    inserted = bnfold.insert(given, feeds, mode="fresh", batch_size=SIZE).model
    onnx.checker.check_model(inserted, full_check=True)
    wide = {name: array.astype(np.float32) for name, array in feeds.items()}
    expected = bnfold.insert(rounded, wide, mode="fresh", batch_size=SIZE).model
    for name, node in norms(inserted).items():
        found = [array.astype(np.float64) for array in parameters(inserted, node)]
        gamma, beta, mean, var = (array.astype(np.float64) for array in parameters(expected, norms(expected)[name]))
        assert (found[0] == gamma).all() and (found[1] == beta).all()
        assert (np.abs(found[2] - mean) / (np.abs(mean) + np.sqrt(var))).max() < limit
        assert np.abs(found[3] / var - 1).max() < limit


def test_fresh_in_double_on_a_batch_of_one_is_refused() -> None:
    model = converted(small(), TensorProto.DOUBLE)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ModelError, match=r"takes batches of 1, too few .*; make the batch open"):
        bnfold.insert(model, inputs_of(converted(small(), TensorProto.DOUBLE)), mode="fresh")


def test_fresh_on_a_batch_of_one_is_exact() -> None:
    model = small()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    x = inputs_of(small())["x"]
    fixed = bnfold.insert(model, x, mode="fresh").model
    expected = reference(small_with(fixed), [x])
    for node in norms(fixed).values():
        assert np.abs(parameters(fixed, node)[3] / expected[node.name][1] - 1).max() < 2e-5


def small_with(model: ModelProto) -> ModelProto:
    """The same with an open batch."""
    copy = ModelProto.FromString(model.SerializeToString())
    copy.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    return copy


def test_fresh_without_data_says_so() -> None:
    result = bnfold.insert(small(), mode="fresh")
    for node in norms(result.model).values():
        assert [float(array.mean()) for array in parameters(result.model, node)] == [1, 0, 0, 1]
    assert result.samples == 0
    assert result.notices[0].startswith("the function is another one now: gamma is 1, beta 0, biases are gone")
    assert len(result.notices) == 1
    text = "(float[N,3,8,8] x) => (float[N,A,B,C] y) { c = Conv(x, w, b) r = Relu(c) e = Conv(r, v) "
    text += "y = BatchNormalization(e, s, s, s, s) }"
    partly = bnfold.insert(net(text, **CONV, v=weight(5, 4, 1, 1), s=np.ones(5, np.float32)), mode="fresh")
    assert partly.notices[1].startswith("the model's own BatchNormalizations (1) keep their statistics")


def test_a_channel_that_never_varies_stays() -> None:
    tensors = {**NET, "w": NET["w"] * np.array([1, 0, 1, 1], np.float32)[:, None, None, None]}
    model = net(TEXT, **tensors)
    feeds = inputs_of(model)
    inserted = bnfold.insert(model, feeds).model
    assert distance(run(model, feeds), run(inserted, feeds)) < 1e-6
    assert tensors_of(inserted)["c.bn.running_var"][1] < 1e-12


@pytest.mark.parametrize("ratio", [1e2, 1e4])
def test_a_large_bias_costs_no_more_than_float32_has(ratio: float) -> None:
    model = net(TEXT, **{**NET, "b": NET["b"] * np.float32(ratio)})
    feeds = inputs_of(model)
    assert distance(run(model, feeds), run(bnfold.insert(model, feeds).model, feeds)) < 1e-6


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3), size=st.integers(1, 40))
def test_whatever_the_data_are(seed: int, spread: float, shift: float, size: int) -> None:
    text = "(float[N,3,8,8] x) => (float[N,A,B,C] y) { c = Conv(x, w, b) r = Relu(c) e = Conv(r, v, d) y = Relu(e) }"
    model = net(text, **CONV, v=weight(5, 4, 1, 1, seed=3), d=vector(5, 4))  # none that saturates and blows rounding up
    feeds = {"x": (inputs_of(model, 60, seed)["x"] * spread + shift).astype(np.float32)}
    inserted = bnfold.insert(model, feeds, batch_size=size).model
    other = {"x": (inputs_of(model, 7, seed + 1)["x"] * spread + shift).astype(np.float32)}
    for one in (feeds, other):
        assert distance(run(model, one), run(inserted, one)) < 2e-6


# -- names and sharing --------------------------------------------------------------------------------


def test_names() -> None:
    model = small()
    model.graph.node[0].name = "conv"
    result = bnfold.insert(model, inputs_of(model))
    site = result.sites[0]
    assert (site.name, site.node, site.op, site.activation, site.output) == ("conv.bn", "conv", "Conv", "r", "c")
    node = norms(result.model)["c"]
    roles = ("gamma", "beta", "running_mean", "running_var")
    assert site.parameters == tuple(node.input[1:]) == tuple(f"{node.name}.{role}" for role in roles)
    assert [info.name for info in result.model.graph.output] == ["y"]
    untouched = {"w", "v", "u", "e"}
    assert {name: array.tobytes() for name, array in tensors_of(result.model).items() if name in untouched} == {
        name: array.tobytes() for name, array in tensors_of(model).items() if name in untouched
    }
    assert not {"b", "d"} & tensors_of(result.model).keys()


def test_names_that_are_taken() -> None:
    text = TEXT.replace("y = Gemm(s, u, e)", "t = Gemm(s, u, e) y = Add(t, k)")
    model = net(text, **NET, k=vector(2), **{"c.linear": vector(1), "c.bn.gamma": vector(1)})
    model.graph.node[-1].name = "c.bn"
    inserted = bnfold.insert(model, inputs_of(model)).model
    onnx.checker.check_model(inserted, full_check=True)
    node = norms(inserted)["c"]
    assert (node.name, node.input[0]) == ("c.bn_1", "c.linear_1")


def test_shared_weight_and_bias_are_left_to_the_others() -> None:
    text = "(float[N,3,8,8] x, float[N,3,8,8] z) => (float[N,A,B,C] y) "
    text += "{ c = Conv(x, w, b) e = Conv(z, w, b) f = Conv(x, w, b) r = Relu(c) s = Relu(e) y = Sum(r, s, f) }"
    model = net(text, **CONV)
    feeds = inputs_of(model)
    feeds["z"] = feeds["z"] * 3 + 1
    result = bnfold.insert(model, feeds)
    have = tensors_of(result.model)
    assert have["b"].tobytes() == CONV["b"].tobytes() and have["w"].tobytes() == CONV["w"].tobytes()
    assert [len(node.input) for node in result.model.graph.node if node.op_type == "Conv"] == [2, 2, 3]
    assert not np.allclose(have["c.bn.running_var"], have["e.bn.running_var"])
    assert distance(run(model, feeds), run(result.model, feeds)) < 1e-6
    assert ops(bnfold.fold(result.model).model) == ops(model)


def test_seen_outside_and_in_bodies() -> None:
    text = "(float[N,3,8,8] x) => (float[N,A,B,C] y, float[N,A,B,C] c) { c = Conv(x, w, b) r = Relu(c) "
    text += "m = ReduceMean<keepdims = 0>(x) z = Constant<value_float = 0.0>() k = Greater(m, z) "
    text += "y = If (k) <then_branch = g1 () => (float[N,A,B,C] t) { t = Mul(r, c) }, "
    text += "else_branch = g2 () => (float[N,A,B,C] t) { t = Conv(x, w, b) }> }"
    model = net(text, **CONV)
    x = inputs_of(model)["x"]
    result = bnfold.insert(model, x)
    assert [site.output for site in result.sites] == ["c"]
    assert [(one.reason, one.sentence) for one in result.left] == [
        ("inside", "it is in 'y/else_branch'; inline that first")
    ]
    for feeds in ({"x": x}, {"x": -x}):
        assert distance(run(model, feeds), run(result.model, feeds)) < 1e-6
    assert tensors_of(result.model)["b"].tobytes() == CONV["b"].tobytes()


@pytest.mark.parametrize("name", ["a bias that is computed", "a bias for each row"])
def test_a_bias_that_has_to_stay(name: str) -> None:
    text = "(float[8,6] x, float[8,5] z) => (float[A,B] y) "
    text += "{ k = ReduceMean<axes = [0]>(z) h = Gemm(x, w, B) y = Relu(h) }"
    table = name.endswith("row")
    given = {"b": weight(8, 5)} if table else {}
    model = net(text.replace("B)", "b)" if table else "k)"), w=weight(5, 6).T.copy(), **given)
    feeds = {"x": weight(8, 6, seed=3), "z": weight(8, 5, seed=4)}
    result = bnfold.insert(model, feeds)
    assert result.sites[0].bias == "kept" and "'h' keeps its bias" in result.notices[1]
    assert distance(run(model, feeds), run(result.model, feeds)) < 1e-6


def test_a_bias_that_was_an_input_is_none_any_more() -> None:
    model = small()
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [4]))
    result = bnfold.insert(model, inputs_of(model))
    assert [info.name for info in result.model.graph.input] == ["x"]
    assert "'b' was an input too, so a caller could override it; it is none now" in result.notices


def test_outputs_that_are_too_far_apart_are_told() -> None:
    for op in ("RandomUniformLike", "Identity"):
        text = f"c = Conv(x, w, b) r = Relu(c) n = {op}(r) y = Add(r, n)"
        model = net(f"(float[N,3,8,8] x) => (float[N,A,B,C] y) {{ {text} }}", **CONV)
        told = any("further apart" in notice for notice in bnfold.insert(model, inputs_of(model)).notices)
        assert told == (op == "RandomUniformLike")


# -- choices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, ["c", "h"]), ({"only": "c"}, ["c"]), ({"skip": ["c"]}, ["h"]), ({"only": ["[ch]"], "skip": "h"}, ["c"])],
    ids=["all", "only", "skip", "both"],
)
def test_only_and_skip(options: dict[str, Any], expected: list[str]) -> None:
    result = bnfold.insert(small(), mode="fresh", **options)
    assert [site.node for site in result.sites] == expected
    assert not any("matches the name" in notice for notice in result.notices)


def test_a_pattern_that_matches_nothing_is_told() -> None:
    assert "skip 'hed*' matches the name of no linear node" in bnfold.insert(small(), mode="fresh", skip="hed*").notices


def test_the_last_layer_is_told() -> None:
    model = net("(float[N,3,8,8] x) => (float[N,A,B,C] y) { c = Conv(x, w, b) y = Sigmoid(c) }", **CONV)
    assert any("'c' is the last linear node" in notice for notice in bnfold.insert(model, mode="fresh").notices)
    assert not any("last linear" in notice for notice in bnfold.insert(small(), mode="fresh").notices)


REFUSALS: list[tuple[str, Callable[[], ModelProto], dict[str, Any], str]] = [
    ("no data", small, {}, "has to be measured; give data, or the mode 'fresh'"),
    ("mode", small, {"mode": "frech"}, "there is no mode 'frech'; choose from preserve, fresh"),
    ("where", small, {"mode": "fresh", "where": "some"}, "there is no place 'some'; choose from before-act"),
    ("provider", small, {"mode": "fresh", "provider": "tpu"}, "'tpu' is no provider"),
    ("shape", small, {"data": np.zeros((9, 3, 8, 9), np.float32)}, r"is \[9, 3, 8, 9\] in a batch; the model takes"),
    ("type", small, {"data": np.zeros((9, 3, 8, 8))}, "is float64; the model takes float32"),
    ("no samples", small, {"data": np.zeros((0, 3, 8, 8), np.float32)}, "has no samples"),
    ("not a number", small, {"data": np.full((9, 3, 8, 8), np.nan, np.float32)}, "has NaN"),
    ("overflow", small, {"data": np.full((9, 3, 8, 8), 3e38, np.float32)}, "node 'c', channel 0: .*finite"),
    ("nothing linear", lambda: net("(float[N] x) => (float[N] y) { y = Relu(x) }"), {"mode": "fresh"}, "has no Conv"),
    ("nothing chosen", small, {"mode": "fresh", "only": "zzz"}, "or only and skip leave none"),
    ("all have one", lambda: onnx.load(FOLDER / "digits_cnn.onnx"), {"mode": "fresh"}, "it is normalized already"),
]


@pytest.mark.parametrize(("name", "model", "options", "message"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_refusals(name: str, model: Callable[[], ModelProto], options: dict[str, Any], message: str) -> None:
    with pytest.raises((ModelError, UsageError), match=message) as caught:
        bnfold.insert(model(), **options)
    assert "\n" not in str(caught.value)


# -- whole networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_cnn", "digits_mobile", "digits_preact"])
@pytest.mark.parametrize("where", ["before-activation", "all"])
def test_there_and_back(name: str, where: Any) -> None:
    model = folded_sample(name)
    images = {"input": np.load(FOLDER / "digits.npz")["test_x"]}
    result = bnfold.insert(model, DIGITS, where=where)
    assert result.difference is not None and result.difference.worst < 1e-6
    expected = run(model, images)
    assert distance(expected, run(result.model, images)) < 2e-6
    assert bnfold.verify(model, result.model).verdict == "equal"
    back = bnfold.fold(result.model).model
    assert distance(expected, run(back, images)) < 1e-6
    assert ops(back) == ops(model)


def test_a_fold_gives_the_weights_back_to_the_bit() -> None:
    model = folded_sample("digits_cnn")
    back = tensors_of(bnfold.fold(bnfold.insert(model, DIGITS).model).model)
    weights = {name: array for name, array in tensors_of(model).items() if array.ndim > 1}
    assert len(weights) == 8
    assert all(back[name].tobytes() == array.tobytes() for name, array in weights.items())


def test_a_matmul_without_bias_gets_none() -> None:
    model = net("(float[N,6] x) => (float[N,A] y) { h = MatMul(x, w) r = Tanh(h) y = MatMul(r, v) }",
                w=weight(6, 5), v=weight(5, 3))  # fmt: skip
    assert ops(bnfold.fold(bnfold.insert(model, inputs_of(model)).model).model) == ops(model)


def test_inserting_again_finds_nothing() -> None:
    model = bnfold.insert(small(), mode="fresh").model
    with pytest.raises(ModelError, match="it is normalized already"):
        bnfold.insert(model, mode="fresh")


def test_recalibrate_measures_the_same() -> None:
    """Preserved statistics are what a later recalibration on the same data finds, but for batches' own."""
    inserted = bnfold.insert(folded_sample("digits_cnn"), DIGITS)
    drift = bnfold.recalibrate(inserted.model, DIGITS, method="exact").drift
    assert max(one.score for one in drift) < 1e-6


SLOW = {"starrem-decomposed", "eeg-spindle"}
NO_PLACE = {
    "cifar-resnet20-qdq": "its weight is kept as integers",
    "unsw-qonnx": "its weight is kept as integers",
    "jet-mlp-keras2onnx": "it is normalized already",  # and ONNX Runtime can't run it
}


def test_real_models(real_model: Path) -> None:
    if real_model.stem in SLOW:
        pytest.skip("takes 10 s and more on images and spectra of its size")
    if real_model.stem in NO_PLACE:
        with pytest.raises(ModelError, match=NO_PLACE[real_model.stem]):
            bnfold.insert(real_model, mode="fresh")
        return
    model = bnfold.fold(real_model, verify=False, kept="reduce").model
    result = bnfold.insert(model, iter(drawn_batches(model)), where="all")
    half = TensorProto.FLOAT16 in {tensor.data_type for tensor in model.graph.initializer}
    assert result.difference is not None and result.difference.worst < (5e-3 if half else 2e-6)
    back = bnfold.fold(result.model, verify=False, kept="reduce").model
    assert len(back.graph.node) <= len(model.graph.node)
    assert ops(back).count("BatchNormalization") == ops(model).count("BatchNormalization")
    feeds = drawn_batches(model)[0]
    assert distance(run(model, feeds), run(back, feeds)) < (5e-3 if half else 2e-6)


def drawn_batches(model: ModelProto) -> list[dict[str, Array]]:
    from bnfold.verify.inputs import drawn

    return [dict(batch) for batch in drawn(model, 0).batches]


# -- files and front doors ----------------------------------------------------------------------------


def test_weights_in_a_data_file_stay_there(tmp_path: Path) -> None:
    onnx.save(folded_sample("digits_cnn"), tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    result = bnfold.insert(tmp_path / "m.onnx", DIGITS)
    files = result.save(tmp_path / "out.onnx")
    assert [file.name for file in files] == ["out.onnx", "out.onnx.data"]
    assert files[0].stat().st_size < 30_000
    images = {"input": np.load(FOLDER / "digits.npz")["test_x"]}
    assert distance(run(folded_sample("digits_cnn"), images), run(onnx.load(files[0]), images)) < 1e-6


@pytest.mark.parametrize("library", ["onnx_ir", "onnx_graphsurgeon"])
def test_front_doors(library: str) -> None:
    module = pytest.importorskip(library)
    model = folded_sample("digits_cnn")
    there, back = {
        "onnx_ir": ("from_proto", "to_proto"), "onnx_graphsurgeon": ("import_onnx", "export_onnx"),
    }[library]  # fmt: skip
    given = getattr(module, there)(model)
    result = bnfold.insert(given, DIGITS).model
    assert type(result) is type(given)
    assert ops(getattr(module, back)(result)).count("BatchNormalization") == 7


def test_plain_data() -> None:
    result = bnfold.insert(folded_sample("digits_cnn"), DIGITS)
    found = json.loads(json.dumps(result.to_dict()))
    assert found["schema_version"] == 1 and found["mode"] == "preserve" and found["samples"] == 256
    assert found["difference"]["worst"] < 1e-6 and found["difference"]["samples"] == 64
    assert [(one["name"], one["op"], one["reason"]) for one in found["left"]] == [("/24/Gemm", "Gemm", "no-activation")]
    assert found["sites"][0]["parameters"][0] == "/0/Conv.bn.gamma"


def test_front_door_of_torch() -> None:
    torch, onnx_ir = pytest.importorskip("torch"), pytest.importorskip("onnx_ir")
    model = folded_sample("digits_cnn")
    program = torch.onnx.ONNXProgram(onnx_ir.from_proto(model), None)
    result = bnfold.insert(program, DIGITS)
    assert type(result.model) is type(program)
    assert ops(result.model.model_proto).count("BatchNormalization") == 7
    assert ops(program.model_proto).count("BatchNormalization") == 0
    images = {"input": np.load(FOLDER / "digits.npz")["test_x"]}
    assert distance(run(model, images), run(result.model.model_proto, images)) < 1e-6
