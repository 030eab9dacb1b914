"""Weights kept as integers: what goes into their scale, what doesn't, and that they stay (docs/quantization.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import NO_SHARED, SHARED
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from oracle import assert_same_function, left, run_native
from probe_text import Probe
from quantised_models import SMALL, quantised
from quantised_table import SUMS, TABLE, probe_of

import bnfold
from bnfold.errors import NotEquivalentError
from bnfold.fold import Options, fold_model
from bnfold.model_file import LoadedModel, wrap
from bnfold.verify.static import prove
from bnfold.verify.unrounded import unrounded

Array = np.ndarray

each_row = pytest.mark.parametrize("name", TABLE)


def readable(model: ModelProto) -> ModelProto:
    """For the referee, who knows DequantizeLinear from opset 19 on: nothing in the table means anything else before."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.opset_import[0].version = max(copy.opset_import[0].version, 19)
    copy.ir_version = 10
    return copy


def dequantised(model: ModelProto) -> list[NodeProto]:
    """DequantizeLinear nodes whose integers are stored, those of bodies included."""
    graphs = [model.graph]
    for graph in graphs:  # grows
        graphs += [attribute.g for node in graph.node for attribute in node.attribute if attribute.g.node]
    stored = tensors(model)
    return [n for g in graphs for n in g.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]


def tensors(model: ModelProto) -> dict[str, Array]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    return found | {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in constants}


def assert_integers_stay(before: ModelProto, after: ModelProto) -> None:
    """Each integer is the original's, or its exact negative about the zero point, or at it; Transposes may turn all."""
    old, new = tensors(before), tensors(after)
    originals = [old[name] for name in old if old[name].dtype.kind != "f" and old[name].ndim > 1]
    originals += [array.T for array in originals]
    for node in dequantised(after):
        found = new[node.input[0]]
        if found.ndim < 2 or found.dtype.name == "int32":
            continue
        zero = new[node.input[2]] if len(node.input) > 2 else np.zeros((), np.int8)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if zero.ndim == 1 and zero.size > 1:
            zero = zero.reshape([-1 if k == axis % found.ndim else 1 for k in range(found.ndim)])
        elif zero.ndim > 1:
            zero = np.repeat(zero, found.shape[axis] // zero.shape[axis], axis)
        wide, zero = found.astype(np.float64), zero.astype(np.float64)
        alike = [w.astype(np.float64) for w in originals if w.shape == found.shape]
        if not alike:  # a QuantizeLinear had to make them
            continue
        assert any((((wide == w) | (wide == 2 * zero - w)) | (wide == zero)).all() for w in alike), node.name


def test_verify_knows_rounding_behind_values_of_unknown_rank() -> None:
    """In double, as all else: with one step neither the type nor the rank of what is rounded has to be known."""
    text = (
        "x[N,3,4,4] -> y | s = Shape(x); g = Gather(s, p:int64[]={0}); u = Unsqueeze(g, a:int64[1]={0}); "
        "o = Concat<axis=0>(u, e:int64[1]={-1}); k = Max(o, m:int64[2]={-1,-1}); r = Reshape(x, k); "
        "i = QuantizeLinear(r, t[]={0.05}, z:uint8[]={128}); d = DequantizeLinear(i, t, z); y = Gemm(d, w[48,4])"
    )
    model = Probe("quantised-unknown-rank", "", text).model()
    found = bnfold.verify(model, model)
    assert found.verdict == "equal"
    assert not [note for note in found.notes if "no float64 form" in note]


def test_the_scale_of_a_large_weight_lies_along_an_axis_of_its_own() -> None:
    """It isn't broadcast as numpy does: 600 · 60 · 600 elements would be more than are evaluated."""
    text = "x[N,60,2,2] -> y | d = DequantizeLinear<axis=0>(q:int8[600,60,1,1], s_var[600]); h = Conv(x, d); "
    text += "y = BN600(h)"
    probe = Probe("quantised-large", "", text, values={"q": np.arange(-30, 30).reshape(1, 60, 1, 1)})
    result = bnfold.fold(probe.model())
    assert left(result.model).total == 0
    assert_integers_stay(probe.model(), result.model)


@each_row
def test_batch_norm_goes_into_the_scale(name: str) -> None:
    probe = probe_of(name, TABLE[name], good=True)
    model = probe.model()
    result = bnfold.fold(model)
    onnx.checker.check_model(result.model, full_check=True)
    assert left(result.model).total == 0
    assert not result.kept
    assert_same_function(readable(model), readable(result.model), probe.batches())
    assert_integers_stay(model, result.model)
    assert dequantised(result.model), "no integers are left"


@each_row
def test_the_hostile_twin_stays(name: str) -> None:
    probe = probe_of(name, TABLE[name], good=False)
    model = probe.model()
    result = bnfold.fold(model, kept="reduce")
    assert left(result.model).total > 0
    assert_same_function(readable(model), readable(result.model), probe.batches())
    entries = [entry for entry in result.report.entries if entry.outcome in ("kept", "reduced")]
    assert {e.reason or e.outcome for e in entries} == ({TABLE[name].code} if TABLE[name].code else set()), entries
    assert all(entry.sentence for entry in entries)


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_integers_and_rounded_values(name: str) -> None:
    row = SUMS[name]
    probe = Probe(f"sums-{name}", "", row.text, opset=21)
    model = probe.model()
    result = bnfold.fold(model)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report.after.per_channel_ops == row.left
    ops = [node.op_type for node in result.model.graph.node]
    assert [op for op in ops if op in {*row.ops, "BatchNormalization"}] == row.ops
    for feeds in probe.batches():
        before, after = run_native(model, feeds), run_native(result.model, feeds)
        assert before is not None
        assert after is not None
        np.testing.assert_allclose(after["y"], before["y"], rtol=0, atol=2e-6 * np.abs(before["y"]).max())


# -- types that are packed, biases in the steps of an integer kernel ----------------------------------

# ONNX's own ops, and ONNX Runtime's in an older opset.
WHERE = [{}, {"domain": "com.microsoft", "opset": 13}]


def conv_model(
    integers: Array, kind: int, zero: int = 0, steps: Array | None = None, *, opset: int = 21, domain: str = ""
) -> ModelProto:
    """DequantizeLinear(x) → Conv(weight of `kind`, int32 bias in these steps) → BN, or with a float x without steps."""
    rows, columns = integers.shape[:2]
    rng = np.random.default_rng(1)
    nodes, tensors = [], []

    def store(name: str, array: Array, of: int = TensorProto.FLOAT) -> str:
        tensors.append(numpy_helper.from_array(np.asarray(array).astype(helper.tensor_dtype_to_np_dtype(of)), name))
        return name

    scale = rng.uniform(0.01, 0.02, rows)
    source = "x"
    if steps is not None:
        store("x_scale", np.array(0.05))
        store("x_zero", np.array(7), TensorProto.UINT8)
        nodes.append(helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_d"]))
        source = "x_d"
    names = [store("q", integers, kind), store("s", scale), store("z", np.full(rows, zero), kind)]
    nodes.append(helper.make_node("DequantizeLinear", names, ["w"], axis=0))
    bias = []
    if steps is not None:
        store("bias_q", rng.integers(-900, 900, rows), TensorProto.INT32)
        store("bias_s", np.float32(0.05) * scale.astype(np.float32) * steps)
        nodes.append(helper.make_node("DequantizeLinear", ["bias_q", "bias_s"], ["bias"], axis=0))
        bias = ["bias"]
    nodes.append(helper.make_node("Conv", [source, "w", *bias], ["h"], name="conv"))
    norm = [store(name, rng.uniform(0.5, 2, rows) * sign) for name, sign in (("g", np.resize([1, -1], rows)), ("b", 1))]
    norm += [store("m", rng.normal(0, 1, rows)), store("v", rng.uniform(0.5, 2, rows))]
    nodes.append(helper.make_node("BatchNormalization", ["h", *norm], ["y"], name="bn"))
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", columns, 6, 6]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", rows, 6, 6]),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    for node in graph.node if domain else ():
        node.domain = domain if node.op_type.endswith("izeLinear") else ""
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def native(model: ModelProto, seed: int = 0) -> Array:
    shape = [3, *(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    x = np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)
    found = run_native(model, {"x": x})
    assert found is not None
    return found["y"]


@pytest.mark.parametrize(
    ("kind", "lowest", "zero"),
    [
        ("INT4", -7, 0), ("UINT4", 1, 8), ("INT8", -127, 0), ("UINT8", 1, 128), ("INT16", -32767, 0),
        ("UINT16", 1, 32768),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", WHERE)
def test_each_type_to_the_end_of_its_range(kind: str, lowest: int, zero: int, where: dict[str, Any]) -> None:
    """The lowest integer that has a negative, in every channel; one lower, and the sign can't go."""
    integers = np.arange(4 * 3).reshape(4, 3, 1, 1) % 5 + zero
    integers[:, 0] = lowest
    model = conv_model(integers, getattr(TensorProto, kind), zero, **where)
    result = bnfold.fold(model)
    assert result.report.after.per_channel_ops == 0
    expected = native(model)
    assert np.abs(native(result.model) - expected).max() <= 1e-6 * np.abs(expected).max()
    after = tensors(result.model)["q"].astype(int)
    assert (after[0::2] == integers[0::2]).all()
    assert (after[1::2] == 2 * zero - integers[1::2]).all()
    integers[1, 0] = lowest - 1
    kept = bnfold.fold(conv_model(integers, getattr(TensorProto, kind), zero, **where)).report
    assert kept.after.per_channel_ops == 1
    assert "no negative in that type" in kept.entries[0].sentence


@pytest.mark.parametrize("where", WHERE)
def test_int32_bias_stays_one_in_the_new_steps(where: dict[str, Any]) -> None:
    integers = np.random.default_rng(0).integers(-127, 128, (6, 3, 1, 1))
    model = conv_model(integers, TensorProto.INT8, steps=np.ones(6, np.float32), **where)
    result = bnfold.fold(model)
    after, before = tensors(result.model), tensors(model)
    assert after["bias_q"].dtype == np.int32
    # scale_x * scale_w, as it was
    np.testing.assert_allclose(after["bias_s"], np.float32(0.05) * after["s"], rtol=1e-6)
    a = before["g"] / np.sqrt(before["v"] + np.float32(1e-5))
    exact = a * (before["bias_q"] * before["bias_s"] - before["m"]) + before["b"]
    rounding = np.abs(after["bias_q"] * after["bias_s"].astype(np.float64) - exact)
    assert (rounding <= 0.51 * after["bias_s"]).all()
    assert rounding.max() > 0.1 * after["bias_s"].max(), "nothing was rounded: the test shows nothing"
    change = np.abs(native(result.model) - native(model)).max(axis=(0, 2, 3))
    assert (change <= 0.52 * after["bias_s"] + 2e-6).all()
    notice = next(notice for notice in result.report.notices if "rounded" in notice)
    assert notice.startswith("1 int32 bias ")
    assert f"{rounding.max():.2g}" in notice


def test_int32_bias_of_a_gemm_with_beta() -> None:
    text = (
        "x[N,3] -> y | u = QuantizeLinear(x, k[], z:uint8[]={128}); e = DequantizeLinear(u, k, z); "
        "d = DequantizeLinear(q:int8[3,4]={1,-2,3,4,5,-6,7,8,9,10,-11,12}, s[4]); "
        "c = DequantizeLinear<axis=0>(i:int32[4]={1000,-2000,30,0}, t[4]); "
        "h = Gemm<beta=0.5>(e, d, c); y = BN4(h)"
    )
    probe = Probe("gemm-beta", "", text, opset=21, values={"k": 0.05, "s": 0.02, "t": 0.001})
    model = probe.model()
    result = bnfold.fold(model)
    after = tensors(result.model)
    assert after["i"].dtype == np.int32
    for feeds in probe.batches():
        before, behind = run_native(model, feeds), run_native(result.model, feeds)
        assert before is not None
        assert behind is not None
        assert (np.abs(behind["y"] - before["y"]) <= 0.52 * after["t"] + 2e-6).all()


def test_int32_bias_in_other_steps_becomes_floats() -> None:
    model = conv_model(np.arange(18).reshape(6, 3, 1, 1), TensorProto.INT8, steps=np.full(6, 100, np.float32))
    result = bnfold.fold(model)
    assert result.report.after.per_channel_ops == 0
    assert not any("rounded" in notice for notice in result.report.notices)
    assert "bias_q" not in tensors(result.model)
    assert np.abs(native(result.model) - native(model)).max() <= 2e-6 * np.abs(native(model)).max()


def test_int32_bias_of_a_dead_channel_becomes_floats() -> None:
    """There BN makes a constant, which no step of the bias had a part in."""
    model = conv_model(np.arange(18).reshape(6, 3, 1, 1), TensorProto.INT8, steps=np.ones(6, np.float32))
    for tensor in model.graph.initializer:
        if tensor.name == "g":
            tensor.CopyFrom(numpy_helper.from_array(np.array([1, 2, 0, 1, 1, 1], np.float32), "g"))
    result = bnfold.fold(model)
    assert result.report.after.per_channel_ops == 0
    assert not tensors(result.model)["q"][2].any()
    assert np.abs(native(result.model) - native(model)).max() <= 2e-6 * np.abs(native(model)).max()


def test_int32_bias_that_would_overflow_keeps_its_batch_norm() -> None:
    model = conv_model(np.full((6, 3, 1, 1), 1), TensorProto.INT8, steps=np.ones(6, np.float32))
    for tensor in model.graph.initializer:
        if tensor.name == "m":
            tensor.CopyFrom(numpy_helper.from_array(np.full(6, 1e7, np.float32), "m"))
    report = bnfold.fold(model).report
    assert [(entry.outcome, entry.reason) for entry in report.entries] == [("kept", "unrepresentable")]


def test_folding_twice_changes_nothing() -> None:
    model = conv_model(np.arange(18).reshape(6, 3, 1, 1) - 9, TensorProto.INT8, steps=np.ones(6, np.float32))
    once = bnfold.fold(model).model
    assert bnfold.fold(once).model == once


def test_integers_that_a_node_makes_of_floats_are_stored() -> None:
    """Else the steps of QuantizeLinear and DequantizeLinear would differ."""
    text = TABLE["floats rounded while the model runs"].good.replace("BN4", "BN4+")
    model = Probe("stored", "", text, values={"s_var": 0.01}, opset=21).model()
    result = bnfold.fold(model)
    assert [node.op_type for node in result.model.graph.node] == ["DequantizeLinear", "Conv"]
    assert "w" not in tensors(result.model)


def test_what_the_file_says_of_a_shape_stays_true() -> None:
    model = Probe("shape", "", TABLE["one scale becomes one of each channel"].good, opset=13).model()
    model.graph.value_info.append(helper.make_tensor_value_info("s_var", TensorProto.FLOAT, []))
    result = bnfold.fold(model)
    assert tensors(result.model)["s_var"].shape == (4,)
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (4, 4), (3,)])
def test_a_scale_that_fits_no_axis_stays(shape: tuple[int, ...]) -> None:
    """No valid file has one."""
    text = "x[N,4] -> y | d = DequantizeLinear<axis=1>(q:int8[4,4], s_var[4]); h = Gemm(x, d, b[4]); y = BN4(h)"
    model = Probe("fits", "", text).model()
    for tensor in model.graph.initializer:
        if tensor.name == "s_var":
            tensor.CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), tensor.name))
    report = bnfold.fold(model, verify=False).report
    assert [entry.outcome for entry in report.entries] == ["kept"]


def test_weights_change_rather_than_steps() -> None:
    text = (
        "x[N,3,5,5] -> y | c = Conv(x, w[4,3,1,1]); r = Relu(c); m = Mul(r, f[]={3.0}); "
        "u = QuantizeLinear(m, k_var[], z:uint8[]={0}); y = DequantizeLinear(u, k_var, z)"
    )
    model = Probe("steps", "", text).model()
    after = tensors(bnfold.fold(model).model)
    assert after["k_var"] == tensors(model)["k_var"]
    np.testing.assert_allclose(after["w"], 3 * tensors(model)["w"], rtol=1e-6)


# -- the proof ---------------------------------------------------------------------------------------


def up(array: Array) -> Array:
    return (array * np.float32(1 + 2.0**-20)).astype(array.dtype)


def one_more(array: Array) -> Array:
    changed = array.copy()
    changed.flat[1] += 1
    return changed


@pytest.mark.parametrize(
    ("name", "change"),
    [("s", up), ("q", one_more), ("z", one_more), ("bias_s", up), ("bias_q", one_more), ("q", np.negative)],
)
def test_the_static_proof_sees_what_is_wrong(name: str, change: Callable[[Array], Array]) -> None:
    integers = np.random.default_rng(0).integers(-100, 100, (6, 3, 1, 1))
    folding = fold_model(wrap(conv_model(integers, TensorProto.INT8, steps=np.ones(6, np.float32))), Options())
    assert prove(folding.rewrite, folding.model.weights).worst_ulp <= 1
    spoil(folding.model, name, change)
    with pytest.raises(NotEquivalentError, match="please report this"):
        prove(folding.rewrite, folding.model.weights)


def spoil(model: LoadedModel, name: str, change: Callable[[Array], Array]) -> None:
    tensor = next(tensor for tensor in model.proto.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(model.weights.read(tensor))), name))


def test_the_static_proof_sees_a_wrong_axis() -> None:
    folding = fold_model(wrap(conv_model(np.arange(16).reshape(4, 4, 1, 1), TensorProto.INT8)), Options())
    node = next(node for node in folding.model.proto.graph.node if node.op_type == "DequantizeLinear")
    next(attribute for attribute in node.attribute if attribute.name == "axis").i = 1
    with pytest.raises(NotEquivalentError):
        prove(folding.rewrite, folding.model.weights)


# -- models as quantisers write them -----------------------------------------------------------------

def real(name: str) -> Path:
    path = SHARED / "models" / "real" / f"{name}.onnx"
    return path if path.exists() else pytest.skip(NO_SHARED.kwargs["reason"])


def optimised_ops(path: Path, model: ModelProto) -> Counter[str]:
    """Ops of a model as ONNX Runtime runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("per_channel", [False, True])
def test_what_onnxruntime_quantises_folds_and_runs_in_integers(per_channel: bool, tmp_path: Path) -> None:
    model = quantised(Probe("small", "", SMALL).model(), (2, 3, 8, 8), tmp_path, per_channel=per_channel, outputs=False)
    result = bnfold.fold(model)
    assert result.verification.relation is not None
    assert result.report.after.per_channel_ops == 0
    assert_integers_stay(model, result.model)
    assert "QLinearConv" not in optimised_ops(tmp_path / "before.onnx", model)
    after = optimised_ops(tmp_path / "after.onnx", result.model)
    assert after["QLinearConv"] == 2, "an integer kernel needs the bias that was added, as ONNX Runtime rounds it"


@pytest.mark.parametrize("per_channel", [False, True])
def test_batch_norm_behind_rounded_outputs_stays(per_channel: bool, tmp_path: Path) -> None:
    model = quantised(Probe("small", "", SMALL).model(), (2, 3, 8, 8), tmp_path, per_channel=per_channel, outputs=True)
    report = bnfold.fold(model).report
    assert [(entry.outcome, entry.reason) for entry in report.entries] == [("kept", "quantised-values")] * 3


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_trained_network_loses_all_of_its_batch_norm(per_channel: bool, tmp_path: Path) -> None:
    model = onnx.load(real("cifar-resnet20"))
    model = quantised(model, (2, 3, 32, 32), tmp_path, per_channel=per_channel, outputs=False)
    result = bnfold.fold(model)
    assert (result.report.before.batch_norms, result.report.after.per_channel_ops) == (19, 0)
    assert_integers_stay(model, result.model)


def test_the_quantised_real_model_keeps_all_of_its_batch_norm() -> None:
    result = bnfold.fold(real("cifar-resnet20-qdq"))
    assert {entry.reason for entry in result.kept} == {"quantised-values"}
    assert len(result.kept) == 19
    assert {entry.obstacle for entry in result.kept} >= {"/conv1/Conv_output_0_DequantizeLinear"}


@pytest.mark.parametrize(("kind", "low", "high"), [("uint8", -0.5, 12.25), ("int8", -6.9, 5.85)])
def test_without_rounding_a_pair_is_a_clip(kind: str, low: float, high: float) -> None:
    text = (
        f"x[N,8] -> y | u = QuantizeLinear(x, k[], z:{kind}[]={{10}}); d = DequantizeLinear(u, k, z); "
        "i = DequantizeLinear(u, l[], z); y = Sub(d, i)"
    )
    model = Probe("pair", "", text, values={"k": 0.05, "l": 0.1}).model()
    x = np.linspace(-20, 20, 16, dtype=np.float32).reshape(2, 8)
    found = run_native(unrounded(model), {"x": x})
    assert found is not None
    np.testing.assert_allclose(found["y"], -np.clip(x, low, high), rtol=1e-5, atol=1e-6)


def test_other_pairs_stay() -> None:
    """A scale of each channel, another zero point, a scale that is fed."""
    for text in (
        "x[N,4] -> y | u = QuantizeLinear<axis=1>(x, k[4], z:int8[4]={1,1,1,1}); y = DequantizeLinear<axis=1>(u, k, z)",
        "x[N,4] -> y | u = QuantizeLinear(x, k[], z:int8[]={1}); y = DequantizeLinear(u, k, o:int8[]={2})",
        "x[N,4] k[] -> y | u = QuantizeLinear(x, k, z:int8[]={1}); y = DequantizeLinear(u, k, z)",
    ):
        model = Probe("stays", "", text).model()
        assert unrounded(model) is model
