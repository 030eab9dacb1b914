"""--norms: scale and bias of LayerNormalization and its kin become 1 and 0; each row beside one that may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from command import ok
from onnx import ModelProto, TensorProto, helper, numpy_helper
from oracle import assert_same_function, left, run_native
from probe_text import Probe

import bnfold

NORMS = ("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization")


class Row(NamedTuple):
    """outcome: of the first norm; reason: of a kept one; own: whether its (scale, bias) are (1, 0) afterwards."""

    text: str
    outcome: str = "folded"
    reason: str = ""
    own: tuple[bool, bool] = (True, True)
    opset: int = 17
    dtype: str = "float"


KEPT, SCALE_ONLY = (False, False), (True, False)
GAIN = "c_gain[4]"  # positive

TABLE = {
    # LayerNormalization, along the last axis
    "ln-gemm": Row("x[N,4] -> y | h = LayerNormalization(x, g[4], b[4]); y = Gemm(h, w[4,3])"),
    "ln-matmul-add": Row(
        "x[N,5,4] -> y | h = LayerNormalization(x, g[4], b[4]); p = MatMul(h, w[4,3]); y = Add(p, c[3])"),
    "ln-without-bias": Row("x[N,5,4] -> y | h = LayerNormalization(x, g[4]); y = MatMul(h, w[4,3])"),
    "ln-three-readers": Row(
        "x[N,5,4] -> y, z | h = LayerNormalization(x, g[4], b[4]); p = MatMul(h, w[4,3]); y = Add(p, c[3]); "
        "t = Transpose<perm=[0,2,1]>(h); z = Conv(t, v[3,4,1], d[3])"),
    "ln-channels-last": Row(
        "x[N,5,5,4] -> y | h = LayerNormalization(x, g[4], b[4]); t = Transpose<perm=[0,3,1,2]>(h); "
        "y = Conv(t, w[3,4,2,2])"),
    "ln-float16": Row(
        "x[N,5,4] -> y | h = LayerNormalization(x, g[4], b[4]); p = MatMul(h, w[4,3]); y = Add(p, c[3])",
        dtype="float16"),
    # an Add in every MatMul's place would cost more than the bias does
    "ln-matmul": Row("x[N,5,4] -> y | h = LayerNormalization(x, g[4], b[4]); y = MatMul(h, w[4,3])",
                     "reduced", own=SCALE_ONLY),
    "ln-output": Row("x[N,4] -> y, h | h = LayerNormalization(x, g[4], b[4]); y = Gemm(h, w[4,3])",
                     "kept", "graph-output", KEPT),
    # after the norm comes the skip: what the next norm reads may not be scaled
    "ln-post": Row(
        "x[N,4] -> y | h = LayerNormalization(x, g[4], b[4]); r = Relu(h); p = Gemm(r, w[4,4], c[4]); s = Add(p, h); "
        "y = LayerNormalization(s, k[4], l[4])", "kept", "scale-in-the-way", KEPT),
    "ln-other-axis": Row("x[N,4,4] -> y | h = LayerNormalization(x, g[4], b[4]); y = Conv(h, w[3,4,1])",
                         "kept", "fixed", KEPT),
    "ln-sigmoid": Row("x[N,4] -> y | h = LayerNormalization(x, g[4], b[4]); t = Sigmoid(h); y = Gemm(t, w[4,3])",
                      "kept", "scale-in-the-way", KEPT),
    # the norm's bias takes in that of the last MatMul, over the skip, which saves an Add
    "ln-skip": Row(
        "x[N,5,4] -> y | h = LayerNormalization(x, g[4], b[4]); q = MatMul(h, w[4,4]); o = Add(q, c[4]); "
        "r = Sigmoid(o); p = MatMul(r, v[4,4]); e = Add(p, d[4]); s = Add(e, h); y = LayerNormalization(s, k[4], l[4])",
        "kept", "no-gain", KEPT),
    # RMSNormalization has no bias
    "rms-matmuls": Row(
        "x[N,5,4] -> y, z | h = RMSNormalization(x, g[4]); y = MatMul(h, w[4,3]); z = MatMul(h, v[4,2])", opset=23),
    "rms-gate": Row(
        "x[N,5,4] -> y | h = RMSNormalization(x, g[4]); p = MatMul(h, w[4,3]); q = Sigmoid(p); r = MatMul(h, v[4,3]); "
        "y = Mul(q, r)", opset=23),
    "rms-output": Row("x[N,4] -> y, h | h = RMSNormalization(x, g[4]); y = Gemm(h, w[4,3])",
                      "kept", "graph-output", KEPT, opset=23),
    # InstanceNormalization and GroupNormalization, along the channels
    "in-conv": Row("x[N,4,5,5] -> y | h = InstanceNormalization(x, g[4], b[4]); y = Conv(h, w[3,4,3,3])"),
    "in-conv-1d": Row("x[N,4,5] -> y | h = InstanceNormalization(x, g[4], b[4]); y = Conv(h, w[3,4,3])"),
    "in-pool-gemm": Row(
        "x[N,4,5,5] -> y | h = InstanceNormalization(x, g[4], b[4]); p = GlobalAveragePool(h); f = Flatten(p); "
        "y = Gemm(f, w[4,3])"),
    "in-conv-padded": Row(
        "x[N,4,5,5] -> y | h = InstanceNormalization(x, g[4], b[4]); y = Conv<pads=[1,1,1,1]>(h, w[3,4,3,3])",
        "reduced", own=SCALE_ONLY),
    "in-relu-conv": Row(
        f"x[N,4,5,5] -> y | h = InstanceNormalization(x, {GAIN}, b[4]); r = Relu(h); y = Conv(r, w[3,4,3,3])",
        "reduced", own=SCALE_ONLY),
    "in-relu-conv-negative": Row(
        "x[N,4,5,5] -> y | h = InstanceNormalization(x, c_gamma[4], b[4]); r = Relu(h); y = Conv(r, w[3,4,3,3])",
        "kept", "sign", KEPT),
    "in-maxpool-conv": Row(
        f"x[N,4,6,6] -> y | h = InstanceNormalization(x, {GAIN}, b[4]); r = MaxPool<kernel_shape=[2,2]>(h); "
        "y = Conv(r, w[3,4,1,1])"),
    # the sign stays, and with it the scale; a maximum lets the shift through
    "in-maxpool-conv-negative": Row(
        "x[N,4,6,6] -> y | h = InstanceNormalization(x, c_gamma[4], b[4]); r = MaxPool<kernel_shape=[2,2]>(h); "
        "y = Conv(r, w[3,4,1,1])", "reduced", own=(False, True)),
    "in-skip": Row(
        "x[N,4,5,5] -> y | h = InstanceNormalization(x, g[4], b[4]); p = Conv(h, w[4,4,1,1]); s = Add(p, h); "
        "y = Conv(s, v[3,4,1,1])"),
    "gn-conv": Row("x[N,4,5,5] -> y | h = GroupNormalization<num_groups=2>(x, g[4], b[4]); y = Conv(h, w[3,4,3,3])",
                   opset=21),
    "gn-spatial": Row(
        "x[N,4,4,4] -> y | h = GroupNormalization<num_groups=2>(x, g[4], b[4]); t = Transpose<perm=[0,2,1,3]>(h); "
        "y = Conv(t, w[3,4,1,1])", "kept", "fixed", KEPT, opset=21),
    # a BatchNorm behind goes into the norm, and both go on
    "in-bn-conv": Row(
        "x[N,4,5,5] -> y | h = InstanceNormalization(x, g[4], b[4]); n = BN4(h); y = Conv(n, w[3,4,3,3])"),
}  # fmt: skip


def probe_of(name: str) -> Probe:
    row = TABLE[name]
    return Probe(f"norms-{name}", "", row.text, opset=row.opset, dtype=row.dtype)


def parameters(model: ModelProto) -> list[list[np.ndarray]]:
    """Scale and bias of every norm."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [[held[name] for name in node.input[1:]] for node in model.graph.node if node.op_type in NORMS]


@pytest.mark.parametrize("name", TABLE)
def test_row(name: str) -> None:
    row, probe = TABLE[name], probe_of(name)
    model = probe.model()
    result = bnfold.fold(model, norms=True, merge=False)
    onnx.checker.check_model(result.model, full_check=True)
    assert_same_function(model, result.model, probe.batches())
    assert result.verification.relation is None or result.verification.relation.passed
    entry = result.report.norms[0]
    assert (entry.outcome, entry.reason) == (row.outcome, row.reason), entry.sentence
    assert entry.sentence
    scale, *bias = parameters(result.model)[0]
    assert ((scale == 1).all(), not np.any(bias)) == (row.own[0], row.own[1] or not bias)
    assert left(result.model).bn == 0
    assert len(result.model.graph.node) <= len(bnfold.fold(model, merge=False, verify=False).model.graph.node)


@pytest.mark.parametrize("name", TABLE)
def test_left_alone_unless_asked_for(name: str) -> None:
    model = probe_of(name).model()
    result = bnfold.fold(model, merge=False, verify=False)
    assert not result.report.norms
    if name not in ("in-bn-conv", "ln-skip"):
        assert result.model == model


def test_bias_over_a_skip_goes_into_the_norm() -> None:
    model = probe_of("ln-skip").model()
    result = bnfold.fold(model)
    assert_same_function(model, result.model, probe_of("ln-skip").batches())
    assert len(result.model.graph.node) == len(model.graph.node) - 1


@pytest.mark.parametrize("name", ["ln-matmul-add", "in-conv", "rms-matmuls"])
def test_second_fold_finds_nothing(name: str) -> None:
    once = bnfold.fold(probe_of(name).model(), norms=True)
    twice = bnfold.fold(once.model, norms=True)
    assert not twice.report.norms
    assert twice.model == once.model


def test_skip_names_a_norm() -> None:
    model = probe_of("ln-gemm").model()
    model.graph.node[0].name = "encoder.norm"
    assert not bnfold.fold(model, norms=True, skip="*norm").report.norms
    assert len(bnfold.fold(model, norms=True, only="*norm").report.norms) == 1
    assert not bnfold.fold(model, norms=True, only="*norm").notices


def test_dead_channels_keep_the_scale() -> None:
    text = "x[N,4] -> y | h = LayerNormalization(x, g[4], b[4]); y = Gemm(h, w[4,3])"
    probe = Probe("norms-dead", "", text, values={"g": [1.0, 0.0, -2.0, 3.0]})
    result = bnfold.fold(probe.model(), norms=True)
    assert_same_function(probe.model(), result.model, probe.batches())
    assert [entry.outcome for entry in result.report.norms] == ["reduced"]
    assert "scale stays: 1 of its channels" in result.report.norms[0].sentence


@pytest.mark.parametrize(("gain", "outcome"), [(1e-2, "folded"), (1e-7, "kept")])
def test_what_float16_cannot_hold_stays(gain: float, outcome: str) -> None:
    text = "x[N,4] -> y | h = LayerNormalization(x, g[4], b[4]); y = Gemm(h, w[4,3])"
    values = {"g": gain, "b": 0.0, "w": 1e-2}
    probe = Probe("norms-underflow", "", text, dtype="float16", values=values)
    result = bnfold.fold(probe.model(), norms=True, verify=False)
    assert [entry.outcome for entry in result.report.norms] == [outcome]
    assert (result.report.norms[0].reason == "unrepresentable") == (outcome == "kept")


def test_a_norm_never_stands_in_the_way_of_a_batch_norm() -> None:
    """Both ask for the scale of a value that two Relus read: the BatchNorm gets it."""
    text = (
        "x[N,4,5,5] -> y | h = InstanceNormalization(x, c_gain[4], b[4]); p = Conv(x, w[4,4,1,1]); s = Add(p, h); "
        "n = BN4+(s); y = Relu(n)"
    )
    probe = Probe("norms-order", "", text)
    for norms in (False, True):
        assert left(bnfold.fold(probe.model(), norms=norms).model).total == 0


def test_one_bias_for_all_is_left_alone() -> None:
    """LayerNormalization's may be broadcast, by its definition."""
    text = "x[N,4] -> y | h = LayerNormalization(x, g[4], b[1]); y = Gemm(h, w[4,3])"
    probe = Probe("norms-one-bias", "", text)
    result = bnfold.fold(probe.model(), norms=True, verify=False)
    assert not result.report.norms
    assert result.model == probe.model()


def test_scale_per_group_is_left_alone() -> None:
    """Before opset 21 a GroupNormalization has one scale for each group."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[2,4,5,5] x) => (float[2,3,5,5] y) '
        "<float[2] g = {2, 3}, float[2] b = {1, 2}, float[3,4,1,1] w = {1,2,3,4,5,6,7,8,9,10,11,12}> "
        "{ h = GroupNormalization<num_groups=2>(x, g, b) y = Conv(h, w) }"
    )
    result = bnfold.fold(model, norms=True)
    assert result.model == model
    assert not result.report.norms


def test_shapes_behind_a_group_normalization() -> None:
    """ONNX's inference has none, and a Reshape needs one."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N,2,5,5] x) => (float[N,3] y) '
        "<float[2] g = {2, 3}, float[2] b = {1, 2}, float[2,3] w = {1,2,3,4,5,6}, int64[2] a = {2,3}, "
        "int64[2] k = {-1,2}> "
        "{ h = GroupNormalization<num_groups=2>(x, g, b) p = ReduceMean(h, a) f = Reshape(p, k) y = Gemm(f, w) }"
    )
    result = bnfold.fold(model, norms=True)
    assert [entry.outcome for entry in result.report.norms] == ["folded"]
    x = np.random.default_rng(0).normal(size=(2, 2, 5, 5)).astype(np.float32)
    before, after = run_native(model, {"x": x}), run_native(result.model, {"x": x})
    assert before is not None
    assert after is not None
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-5, atol=1e-6)


def test_simplified_layer_normalization() -> None:
    """ONNX Runtime's own name for RMSNormalization, in ONNX's domain but in no opset of it."""
    rng = np.random.default_rng(0)
    tensors = {"g": rng.normal(size=4), "w": rng.normal(size=(4, 3))}
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("SimplifiedLayerNormalization", ["x", "g"], ["h"], "n", axis=-1),
                helper.make_node("MatMul", ["h", "w"], ["y"]),
            ],
            "rms",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
            [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    result = bnfold.fold(model, norms=True)
    assert [(entry.name, entry.outcome) for entry in result.report.norms] == [("n", "folded")]
    feeds = {"x": rng.normal(size=(2, 4)).astype(np.float32)}
    before, after = run_native(model, feeds), run_native(result.model, feeds)
    assert before is not None
    assert after is not None
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-5, atol=1e-6)


def test_command(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(probe_of("ln-matmul").model(), path)
    rows = ok("fold", path, "--norms")
    assert "norms    1 → 1 that have a scale or bias of their own, 1 of them with one of the two" in rows
    found = json.loads(ok("fold", path, "--norms", "--json", "--force"))
    assert found["norms"] == {"before": 1, "after": 1}
    assert [entry["op"] for entry in found["entries"]] == ["LayerNormalization"]
    assert "equal" in ok("verify", path, tmp_path / "m.folded.onnx")
