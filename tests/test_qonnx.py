"""QONNX's Quant and BipolarQuant: weights behind them take BN into their scale (docs/quantization.md).

ONNX Runtime doesn't know them: what a model computes is told by ONNX's reference evaluator, and a Quant that is written
here by the tables of the operators' specification, in exact fractions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import ok
from conftest import NO_SHARED, SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from oracle import left
from probe_text import Probe
from qonnx_table import SUMS, TABLE
from quantised_table import Row

import bnfold
from bnfold.errors import NotEquivalentError
from bnfold.fold import Options, fold_model
from bnfold.graph import Graph
from bnfold.model_file import LoadedModel, wrap
from bnfold.qonnx import DOMAINS, evaluate
from bnfold.verify.runtime import CannotRun, Runner
from bnfold.verify.spelled import spelled_out
from bnfold.verify.static import prove

Array = np.ndarray[Any, Any]

DOMAIN = "onnx.brevitas"
MODES = ["ROUND", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN"]
# Of the specification: a number, and what it is in each mode.
ROUNDED = [
    (5.5, 6, 6, 5, 6, 5, 6, 5), (2.5, 2, 3, 2, 3, 2, 3, 2), (1.6, 2, 2, 1, 2, 1, 2, 2), (1.1, 1, 2, 1, 2, 1, 1, 1),
    (1.0, 1, 1, 1, 1, 1, 1, 1), (-1.0, -1, -1, -1, -1, -1, -1, -1), (-1.1, -1, -1, -2, -2, -1, -1, -1),
    (-1.6, -2, -1, -2, -2, -1, -2, -2), (-2.5, -2, -2, -3, -3, -2, -3, -2), (-5.5, -6, -5, -6, -6, -5, -6, -5),
]  # fmt: skip


def rounded(value: Fraction, mode: str) -> int:
    """One number, by the specification's words."""
    away, size = (1 if value >= 0 else -1), abs(value)
    by_size = {
        "UP": math.ceil(size), "DOWN": math.floor(size), "HALF_UP": math.floor(size + Fraction(1, 2)),
        "HALF_DOWN": math.ceil(size - Fraction(1, 2)),
    }  # fmt: skip
    if mode in by_size:
        return away * by_size[mode]
    return {"ROUND": round, "CEIL": math.ceil, "FLOOR": math.floor}[mode](value)


def integers(x: Array, scale: Array, zero: Array, bits: Array, signed: int, narrow: int, mode: str) -> Array:
    """q, element by element: of x / scale + zero in float32, as a runtime has it."""
    width = int(bits.item())
    low, high = (narrow - 2 ** (width - 1), 2 ** (width - 1) - 1) if signed else (0, 2**width - 1 - narrow)
    exact = np.asarray(x / scale + zero, np.float32)
    found = [min(max(rounded(Fraction(float(value)), mode.upper()), low), high) for value in exact.ravel()]
    return np.array(found, np.float64).reshape(exact.shape)


class Quant(OpRun):  # type: ignore[misc]
    op_domain = DOMAIN

    def _run(
        self, x: Array, scale: Array, zero: Array, bits: Array, signed: int = 1, narrow: int = 0,
        rounding_mode: str = "ROUND",
    ) -> tuple[Array]:  # fmt: skip
        whole = integers(x, scale, zero, bits, 1 if signed is None else signed, narrow or 0, rounding_mode or "ROUND")
        return (((whole - zero) * scale).astype(x.dtype),)


class BipolarQuant(OpRun):  # type: ignore[misc]
    op_domain = DOMAIN

    def _run(self, x: Array, scale: Array) -> tuple[Array]:
        return (np.where(x < 0, -scale, scale).astype(x.dtype),)


class Trunc(OpRun):  # type: ignore[misc]
    op_domain = DOMAIN

    def _run(self, x: Array, *_others: Array) -> tuple[Array]:
        return (np.floor(x),)


def outputs(model: ModelProto, feeds: dict[str, Array]) -> list[Array]:
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.opset_import[0].version = 19  # from which on the evaluator knows DequantizeLinear; all else is as in 17
    copy.ir_version = 9
    found: list[Array] = ReferenceEvaluator(copy, new_ops=[Quant, BipolarQuant, Trunc]).run(None, feeds)
    return found


def written(text: str) -> str:
    return text.replace(" quant", f" {DOMAIN}.Quant").replace(" bipolar", f" {DOMAIN}.BipolarQuant")


def with_domain(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def probe_of(name: str, text: str, values: dict[str, Any] | None = None) -> Probe:
    return Probe(f"qonnx-{name}", "", written(text), values=values or {}, edit=with_domain)


def tensors(model: ModelProto) -> dict[str, Array]:
    """What is stored, and turned by a Transpose."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    turned = [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in found]
    return found | {node.output[0]: found[node.input[0]].T for node in turned}


def quants(model: ModelProto) -> list[NodeProto]:
    """Those of constant floats, in bodies too."""
    graphs = [model.graph]
    for graph in graphs:  # grows
        graphs += [attribute.g for node in graph.node for attribute in node.attribute if attribute.g.node]
    nodes = [node for graph in graphs for node in graph.node if node.op_type.endswith("Quant")]
    return [node for node in nodes if node.input[0] in tensors(model)]


def whole(model: ModelProto, node: NodeProto) -> Array:
    """q - zero point, of what a node rounds."""
    x, scale, *others = (tensors(model)[name] for name in node.input)
    if not others:
        return np.where(x < 0, -1.0, 1.0) * (scale != 0)
    set_to = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    mode = set_to.get("rounding_mode", b"ROUND").decode()
    return integers(x, scale, *others, set_to.get("signed", 1), set_to.get("narrow", 0), mode) - others[0]


def assert_same(before: ModelProto, after: ModelProto, probe: Probe) -> None:
    """By the reference evaluator, and by ONNX Runtime on ops of its own."""
    for feeds in probe.batches():
        runs = [] if "ConvTranspose<group" in probe.text else [[outputs(model, feeds) for model in (before, after)]]
        with suppress(CannotRun):  # twins with ops that mean nothing
            runs.append([list(Runner(spelled_out(model)).run(feeds).values()) for model in (before, after)])
        assert runs
        for one, other in ((one, other) for run in runs for one, other in zip(*run, strict=True)):
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * max(float(np.abs(one).max()), 1e-3))


def assert_integers_stay(before: ModelProto, after: ModelProto) -> None:
    """Every element is the original's, or its negative, or 0; a Transpose may have turned them."""
    old = [whole(before, node) for node in quants(before)]
    old += [q.T for q in old]
    for node in quants(after):
        found = whole(after, node)
        alike = [q for q in old if q.shape == found.shape]
        assert any(((found == q) | (found == -q) | (found == 0)).all() for q in alike), node.name


# -- folds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_batch_norm_goes_into_the_scale(name: str) -> None:
    row: Row = TABLE[name]
    probe = probe_of(name, row.good, row.values)
    model = probe.model()
    result = bnfold.fold(model)
    onnx.checker.check_model(result.model, full_check=True)
    assert not result.kept
    assert left(result.model).total == 0
    assert result.verification.relation is not None, result.verification.skipped
    assert_same(model, result.model, probe)
    assert quants(result.model), "no integers are left"
    assert_integers_stay(model, result.model)
    assert bnfold.fold(result.model).model == result.model


@pytest.mark.parametrize("name", TABLE)
def test_the_hostile_twin_stays(name: str) -> None:
    row: Row = TABLE[name]
    probe = probe_of(name, row.bad, row.values)
    model = probe.model()
    result = bnfold.fold(model, kept="reduce")
    assert left(result.model).total > 0
    entries = [entry for entry in result.report.entries if entry.outcome in ("kept", "reduced")]
    assert {e.reason or e.outcome for e in entries} == ({row.code} if row.code else set()), entries
    assert all(entry.sentence for entry in entries)
    if "dither" in row.bad or "s_var[3,1,1]" in row.bad or "[4,3])" in row.bad:  # means nothing, or isn't valid
        return
    assert_same(model, result.model, probe)


@pytest.mark.parametrize("name", SUMS)
def test_rounded_values(name: str) -> None:
    row = SUMS[name]
    probe = probe_of(name, row.text)
    model = probe.model()
    result = bnfold.fold(model)
    assert result.report.after.per_channel_ops == row.left
    ops = [node.op_type for node in result.model.graph.node]
    assert [op for op in ops if op in {*row.ops, "BatchNormalization"}] == row.ops
    stays = [entry for entry in result.report.entries if entry.outcome in ("kept", "reduced")]
    assert all(("whole steps" if "quant(" in row.text else "rank") in entry.sentence for entry in stays)
    assert_same(model, result.model, probe)


# -- what the ops mean -------------------------------------------------------------------------------


def quant_model(x: Array, scale: Array, zero: float = 0, bits: float = 4, **attributes: Any) -> ModelProto:
    """Gemm(x, Quant(weight)) → BN with negative, dead and other channels."""
    rows, columns = x.shape
    rng = np.random.default_rng(0)
    content = {"w": x, "s": scale, "z": np.array(zero), "k": np.array(bits), "b": rng.normal(0, 1, rows)}
    content |= {"g": np.resize([1, -2, 0.5], rows), "t": rng.normal(0, 1, rows), "m": rng.normal(0, 1, rows)}
    content |= {"v": rng.uniform(0.5, 2, rows)}
    nodes = [
        helper.make_node("Quant", ["w", "s", "z", "k"], ["d"], domain=DOMAIN, **attributes),
        helper.make_node("Gemm", ["x", "d", "b"], ["h"], name="gemm", transB=1),
        helper.make_node("BatchNormalization", ["h", "g", "t", "m", "v"], ["y"], name="bn"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in
             (("x", columns), ("y", rows))]  # fmt: skip
    stored = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in content.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("number", range(len(ROUNDED)))
@pytest.mark.parametrize("mode", MODES)
def test_rounding_modes(mode: str, number: int) -> None:
    """As the specification's table has them: in the fold, and in what is run."""
    value, expected = ROUNDED[number][0], ROUNDED[number][1 + MODES.index(mode)]
    model = quant_model(np.full((3, 2), value), np.array(1.0), rounding_mode=mode)
    read = Graph(model).main.values["d"].producer
    assert read is not None
    found = evaluate(read, [tensors(model)[name] for name in read.proto.input])
    assert found is not None
    assert (found == expected).all()
    feeds = {"x": np.eye(2, dtype=np.float32)}
    for rounding, result in ((True, expected), (False, value)):
        text = "x[N,2] -> y | a = Mul(x, c[]={1.0}); y = quant(a, s[]={1.0}, z[]={0.0}, k[]={8.0})"
        probe = probe_of("modes", text.replace("quant(", f'quant<rounding_mode="{mode.lower()}">('))
        (y,) = Runner(spelled_out(probe.model(), rounding)).run({"x": value * feeds["x"]}).values()
        np.testing.assert_allclose(y, result * feeds["x"], rtol=1e-6)


def test_signs_as_they_are_run() -> None:
    model = probe_of("signs", "x[N,3] -> y | y = bipolar(x, s[3]={0.5,1.0,2.0})").model()
    x = np.array([[-1, -0.0, 3], [0.25, -0.5, 0]], np.float32)
    for rounding, expected in ((True, [[-0.5, 1, 2], [0.5, -1, 2]]), (False, [[-0.5, 0, 2], [0.25, -0.5, 0]])):
        (y,) = Runner(spelled_out(model, rounding)).run({"x": x}).values()
        np.testing.assert_array_equal(y, np.array(expected, np.float32))
    (told,) = outputs(model, {"x": x})
    np.testing.assert_array_equal(told, np.array([[-0.5, 1, 2], [0.5, -1, 2]], np.float32))


NAMES = [(op, domain, "ROUND") for domain in DOMAINS for op in ("Quant", "IntQuant")]


@pytest.mark.parametrize(("op", "domain", "mode"), [*NAMES, *(("Quant", f"{DOMAIN}::", mode) for mode in MODES[1:])])
def test_every_name_and_mode(op: str, domain: str, mode: str) -> None:
    model = quant_model(np.random.default_rng(1).normal(0, 1, (6, 5)), np.array(0.3), rounding_mode=mode, narrow=1)
    expected = [whole(model, node) for node in quants(model)]
    model.graph.node[0].op_type, model.graph.node[0].domain = op, domain.removesuffix("::")
    model.opset_import[1].domain = domain.removesuffix("::") or DOMAIN
    result = bnfold.fold(model)
    assert result.report.after.per_channel_ops == 0
    assert result.verification.relation is not None, result.verification.skipped
    (node,) = quants(result.model)
    signs = np.resize([1, -1, 1], 6)[:, None]
    np.testing.assert_array_equal(whole(result.model, node), signs * expected[0])
    step = tensors(result.model)[node.input[1]]
    assert step.shape == (6, 1)
    a = tensors(model)["g"] / np.sqrt(tensors(model)["v"] + np.float32(1e-5))
    np.testing.assert_allclose(step.ravel(), np.abs(a) * np.float32(0.3), rtol=2e-7)


def test_floats_that_were_rounded_come_out_rounded() -> None:
    """So the file holds what its weights are, as Brevitas exports it."""
    model = quant_model(np.random.default_rng(1).normal(0, 1, (6, 5)), np.array(0.3), narrow=1)
    after = tensors(bnfold.fold(model).model)
    steps = after["w"].astype(np.float64) / after["s"]
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6)


@pytest.mark.parametrize(
    ("scale", "factor"),
    [("s[]={0.25}", "{2.0,2.0,-2.0,2.0}"), ("s[]={0.25}", "{2.0,0.0,-2.0,2.0}"), ("s[]={0.25}", "{0.0,0.0,0.0,0.0}"),
     ("s[1]={0.25}", "{2.0,-2.0,2.0,2.0}"), ("s[4,1,1,1]={0.25,0.25,0.25,0.25}", "{2.0,-2.0,2.0,0.0}"),
     ("s[1,3,1,1]={0.25,0.5,0.25}", "{2.0,0.0,2.0,2.0}")],
)  # fmt: skip
def test_a_scale_that_all_channels_can_share_keeps_its_shape(scale: str, factor: str) -> None:
    text = f"x[N,3,5,5] -> y | d = quant(w[4,3,1,1], {scale}, z[]={{0.0}}, k[]={{6.0}}); c = Conv(x, d, b[4]); "
    model = probe_of("shared", f"{text}y = Mul(c, m[4,1,1]={factor})").model()
    result = bnfold.fold(model)
    assert result.report.after.per_channel_ops == 0
    assert tensors(result.model)["s"].shape == tensors(model)["s"].shape


def test_a_local_function_of_that_name_means_what_it_says() -> None:
    model = quant_model(np.random.default_rng(1).normal(0, 1, (6, 5)), np.array(0.3))
    body = [helper.make_node("Mul", ["x", "s"], ["y"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function(DOMAIN, "Quant", ["x", "s", "z", "k"], ["y"], body, opsets))
    result = bnfold.fold(model)
    assert result.report.after.batch_norms == 1
    assert result.model == model


def test_types_that_are_mixed_stay() -> None:
    model = quant_model(np.random.default_rng(1).normal(0, 1, (6, 5)), np.array(0.3), narrow=1)
    for tensor in model.graph.initializer:
        if tensor.name == "s":
            tensor.CopyFrom(numpy_helper.from_array(np.array(0.3), "s"))
    report = bnfold.fold(model).report
    assert [(entry.outcome, entry.reason) for entry in report.entries] == [("kept", "quantised-weight")]


# -- the proof ---------------------------------------------------------------------------------------


def up(array: Array) -> Array:
    return (array * np.float32(1 + 2.0**-20)).astype(array.dtype)


def one_up(array: Array) -> Array:
    """Half a step and more of one element."""
    changed = array.copy()
    changed.flat[1] += np.abs(array).max()
    return changed


@pytest.mark.parametrize(("name", "change"), [("s", up), ("w", one_up), ("w", np.negative), ("z", lambda z: z + 1)])
def test_the_static_proof_sees_what_is_wrong(name: str, change: Callable[[Array], Array]) -> None:
    model = quant_model(np.random.default_rng(1).normal(0, 1, (6, 5)), np.full((6, 1), 0.3), narrow=1)
    folding = fold_model(wrap(model), Options())
    assert prove(folding.rewrite, folding.model.weights).worst_ulp <= 1
    spoil(folding.model, name, change)
    with pytest.raises(NotEquivalentError, match="please report this"):
        prove(folding.rewrite, folding.model.weights)


@pytest.mark.parametrize(("name", "value"), [("narrow", 0), ("signed", 0), ("rounding_mode", b"FLOOR"), ("k", 3.0)])
def test_the_static_proof_reads_the_node_as_it_is_written(name: str, value: Any) -> None:
    model = quant_model(
        np.random.default_rng(1).normal(0, 1, (6, 5)) - 3, np.array(0.3), narrow=1, signed=1, rounding_mode="CEIL"
    )
    folding = fold_model(wrap(model), Options())
    if name == "k":
        spoil(folding.model, "k", lambda _: np.array(value, np.float32))
    for attribute in folding.model.proto.graph.node[0].attribute:
        if attribute.name == name:
            attribute.CopyFrom(helper.make_attribute(name, value))
    proven = name == "narrow"  # nothing is at the end of the wider range
    if proven:
        prove(folding.rewrite, folding.model.weights)
        return
    with pytest.raises(NotEquivalentError, match="please report this"):
        prove(folding.rewrite, folding.model.weights)


@pytest.mark.parametrize("name", ["dead channels", "signs of dead channels"])
def test_the_static_proof_sees_a_dead_channel_that_is_not(name: str) -> None:
    model = probe_of(name, TABLE[name].good, TABLE[name].values).model()
    folding = fold_model(wrap(model), Options())
    prove(folding.rewrite, folding.model.weights)
    spoil(folding.model, "w" if name == "dead channels" else "s", lambda array: array + np.float32(0.1))
    with pytest.raises(NotEquivalentError, match="neither those of the original"):
        prove(folding.rewrite, folding.model.weights)


def spoil(model: LoadedModel, name: str, change: Callable[[Array], Array]) -> None:
    tensor = next(tensor for tensor in model.proto.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(model.weights.read(tensor))), name))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_integers_are_the_same_whatever_the_scale(data: st.DataObject) -> None:
    """Scales of all sizes, widths and modes: each integer is the original's, or its negative."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    bits, signed = data.draw(st.integers(2, 16)), data.draw(st.integers(0, 1))
    scale = rng.uniform(0.5, 2, data.draw(st.sampled_from([(), (1, 1), (6, 1), (1, 5), (6, 5)])))
    scale = (scale * 10.0 ** data.draw(st.integers(-6, 6))).astype(np.float32)
    zero = 0 if signed else 2 ** (bits - 1)
    x = rng.normal(0, 2.0 ** (bits - 3), (6, 5)).astype(np.float32) * scale
    mode = data.draw(st.sampled_from(MODES))
    model = quant_model(x, scale, zero, bits, signed=signed, narrow=1, rounding_mode=mode)
    before = whole(model, quants(model)[0])
    result = bnfold.fold(model, verify=False)
    if result.report.after.per_channel_ops:  # 0 and its kind need an integer of the type
        negated = -before[1::3]
        low, high = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (-zero, 2**bits - 2 - zero)
        assert ((negated < low) | (negated > high)).any() or (mode == "UP" and zero)
        return
    after = whole(result.model, quants(result.model)[0])
    np.testing.assert_array_equal(after, np.resize([1, -1, 1], 6)[:, None] * before)


# -- a real model ------------------------------------------------------------------------------------


def test_the_real_model_loses_all_of_its_batch_norm(tmp_path: Path) -> None:
    path = SHARED / "models" / "real" / "unsw-qonnx.onnx"
    if not path.exists():
        pytest.skip(NO_SHARED.kwargs["reason"])
    target = tmp_path / "folded.onnx"
    text = ok("fold", path, "-o", target)
    assert "BN       3 → 0" in text
    assert "ops      5 → 0" in text
    assert "notice   3 weights kept as integers took a factor in the scale" in text
    before, after = onnx.load(path), onnx.load(target)
    assert_integers_stay(before, after)
    x = np.random.default_rng(0).integers(0, 2, (400, 600)).astype(np.float32) * 2 - 1  # as many flows at once
    (one,), (other,) = (outputs(model, {"onnx::Add_0": x}) for model in (before, after))
    np.testing.assert_array_equal(other, one)
    assert {-1, 1} == set(np.unique(one)), "they are all the same: the test shows nothing"
    assert "verdict  equal" in ok("verify", path, target)
    again = ok("inspect", target)
    assert "BN       none" in again
