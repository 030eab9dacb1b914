"""Merging: every rule with a model that it makes one node of, and hostile twins that must stay as they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import bnfold as command
from command import ok
from merge_table import HOSTILE, MERGED
from onnx import ModelProto, helper, numpy_helper
from oracle import assert_same_function, left
from probe_text import Probe
from random_branches import convolutions
from referee import run_float64

import bnfold
from bnfold.fold import Options, fold_model
from bnfold.fold.merge.read import RULES
from bnfold.model_file import to_proto, wrap
from bnfold.report import FoldReport


def folded(model: ModelProto, **options: Any) -> tuple[ModelProto, FoldReport]:
    folding = fold_model(wrap(model), Options(**options))
    result = to_proto(folding.model)
    onnx.checker.check_model(result, full_check=True)
    return result, folding.report


def linear_ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type != "Constant"]


@pytest.mark.parametrize("name", MERGED)
def test_merged_into_one_node(name: str) -> None:
    rule, text = MERGED[name]
    probe = Probe(f"merge-{name}", "", text)
    model = probe.model()
    assert rule in linear_ops(model)
    result, report = folded(model)
    assert_same_function(model, result, probe.batches())
    assert len(report.merges) == 1
    ops = linear_ops(result)
    assert ops in (["Conv"], ["Gemm"], ["MatMul"], ["MatMul", "Add"]), ops  # the Add is a MatMul's bias
    assert not report.kept
    assert left(result).total == 0


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_twin_stays(name: str) -> None:
    probe = Probe(f"hostile-{name}", "", HOSTILE[name])
    model = probe.model()
    result, report = folded(model)
    assert not report.merges
    assert_same_function(model, result, probe.batches())
    assert result == folded(model, merge=False)[0]


def test_every_rule_has_a_row() -> None:
    assert {rule for rule, _ in MERGED.values()} | {"Dropout", "Add", "BatchNormalization"} == set(RULES)


# -- what is left over, shared, inside of bodies ------------------------------------------------------------


def test_others_are_added_in_their_order() -> None:
    probe = Probe(
        "leftovers", "",
        "x[N,4,6,6] -> y | u = Relu(x); g = Sigmoid(x); a = Conv<pads=[1,1,1,1]>(x, w[4,4,3,3]); s = Sub(a, g); "
        "b = Conv(x, v[4,4,1,1]); t = Add(s, b); c = Conv(u, z[4,4,1,1]); "
        "d = Conv<pads=[1,1,1,1]>(u, q[4,4,3,3], e[4]); p = Add(c, d); y = Sub(t, p)",
    )  # fmt: skip
    model = probe.model()
    result, report = folded(model)
    assert_same_function(model, result, probe.batches())
    assert len(report.merges) == 2
    assert sorted(linear_ops(result)) == ["Add", "Conv", "Conv", "Relu", "Sigmoid", "Sub"]


def test_shared_weights_stay_shared() -> None:
    """A Siamese pair: both merged nodes read one weight."""
    probe = Probe(
        "siamese", "",
        "x[N,4,6,6] z[N,4,6,6] -> y | a = Conv<pads=[1,1,1,1]>(x, w[4,4,3,3]); b = Conv(x, v[4,4,1,1], c[4]); "
        "s = Add(a, b); d = Conv<pads=[1,1,1,1]>(z, w); e = Conv(z, v, c); t = Add(d, e); y = Mul(s, t)",
    )  # fmt: skip
    model = probe.model()
    result, report = folded(model)
    assert_same_function(model, result, probe.batches())
    assert len(report.merges) == 2
    assert len({tuple(node.input[1:]) for node in result.graph.node if node.op_type == "Conv"}) == 1
    assert len(result.graph.initializer) == 2


def test_weights_with_other_readers_stay_for_them() -> None:
    probe = Probe(
        "shared-outside", "",
        "x[N,4,6,6] -> y, z | a = Conv<pads=[1,1,1,1]>(x, w[4,4,3,3]); b = Conv(x, v[4,4,1,1]); y = Add(a, b); "
        "r = Relu(x); z = Conv(r, v)",
    )  # fmt: skip
    model = probe.model()
    result, report = folded(model)
    assert_same_function(model, result, probe.batches())
    assert len(report.merges) == 1
    assert {tensor.name for tensor in result.graph.initializer} >= {"v"}


def branch_pair(x: str, y: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", [x, "w"], ["a"], "a_node", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", [x, "g", "g", "g", "g"], ["p"], "norm"),
        helper.make_node("Add", ["a", "p"], [y], "sum"),
    ]


def pair_weights() -> list[onnx.TensorProto]:
    rng = np.random.default_rng(0)
    return [
        numpy_helper.from_array(rng.standard_normal((4, 4, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.uniform(0.5, 1, 4).astype(np.float32), "g"),
    ]


def feature_map(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 4, 5, 5])


def in_body(captured: bool = False, weights_inside: bool = True) -> ModelProto:
    """Branches of x in the bodies of an If; `captured`: the body reads a branch from outside."""
    inside = branch_pair("x", "t") if not captured else [helper.make_node("Add", ["a", "p"], ["t"])]
    then = helper.make_graph(inside, "then", [], [feature_map("t")], pair_weights() if weights_inside else [])
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["e"])], "else", [], [feature_map("e")])
    nodes = [helper.make_node("If", ["c"], ["y"], "if", then_branch=then, else_branch=other)]
    condition = helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    graph = helper.make_graph(
        [*branch_pair("x", "unused")[: 2 * captured], *nodes], "g", [feature_map("x"), condition], [feature_map("y")],
        [] if weights_inside else pair_weights(),
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("weights_inside", [True, False])
def test_in_a_body(weights_inside: bool) -> None:
    model = in_body(weights_inside=weights_inside)
    result, report = folded(model)
    assert [(merge.scope, merge.nodes) for merge in report.merges] == [("if/then_branch", (3, 1))]
    assert report.after.batch_norms == 0
    x = np.random.default_rng(1).standard_normal((2, 4, 5, 5)).astype(np.float32)
    assert_same_function(model, result, [{"x": x, "c": np.array(True)}])


def test_branches_that_a_body_captures_stay() -> None:
    model = in_body(captured=True, weights_inside=False)
    assert not folded(model)[1].merges


def in_function(op: str = "Block") -> ModelProto:
    constants = [
        helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in pair_weights()
    ]
    function = helper.make_function(
        "local", op, ["x"], ["y"], [*constants, *branch_pair("x", "y")], [helper.make_opsetid("", 17)]
    )
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], domain="local")], "g", [feature_map("x")], [feature_map("y")]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)


def test_in_a_function() -> None:
    model = in_function()
    result, report = folded(model)
    assert [merge.scope for merge in report.merges] == ["local::Block"]
    assert report.after.batch_norms == 0
    x = np.random.default_rng(1).standard_normal((2, 4, 5, 5)).astype(np.float32)
    assert_same_function(model, result, [{"x": x}])


def pair(**inputs: Any) -> ModelProto:
    """One pair of branches; with `overridable` weights, or before IR 4 (where all have to be)."""
    overridable = inputs.get("overridable", False)
    weights = pair_weights()
    declared = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights if overridable]
    graph = helper.make_graph(branch_pair("x", "y"), "g", [feature_map("x"), *declared], [feature_map("y")], weights)
    opset, ir = inputs.get("opset", 17), inputs.get("ir", 8)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


@pytest.mark.parametrize(("opset", "ir"), [(17, 8), (8, 3)])
def test_overridable_weights_are_frozen_or_left_alone(opset: int, ir: int) -> None:
    model = pair(overridable=True, opset=opset, ir=ir)
    result, report = folded(model)
    assert len(report.merges) == 1
    assert report.notices
    names = {info.name for info in result.graph.input}
    assert not names & {"w", "g"}
    x = np.random.default_rng(1).standard_normal((2, 4, 5, 5)).astype(np.float32)
    expected, found = (run_float64(m, {"x": x})["y"] for m in (model, result))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    if ir >= 4:
        kept, report = folded(model, keep_overridable=True)
        assert not report.merges
        assert kept == model


# -- options, types, the account ----------------------------------------------------------------------------


def test_options() -> None:
    model = pair()
    assert not folded(model, merge=False)[1].merges
    assert not folded(model, skip=("norm",))[1].merges
    assert not folded(model, skip=("a_*",))[1].merges
    assert not folded(model, only=("other",))[1].merges
    assert folded(model, only=("norm",))[1].merges
    bare = Probe("bare", "", MERGED["unpadded"][1]).model()
    assert folded(bare)[1].merges
    assert not folded(bare, only=("norm",))[1].merges


def test_what_float16_cannot_hold_stays() -> None:
    """40000 + 40000 is no float16, though both parts are: that pair stays, the next one goes."""
    text = (
        "x[N,4,6,6] -> y | a = Conv<pads=[1,1,1,1]>(x, w[4,4,3,3]); b = Conv<pads=[1,1,1,1]>(x, v[4,4,3,3]); "
        "s = Add(a, b); r = Relu(s); d = Conv(r, u[4,4,1,1]); e = Conv(r, t[4,4,1,1]); y = Add(d, e)"
    )
    for big in ("w", "c"):
        bias = text if big == "w" else text.replace("(x, w[4,4,3,3])", "(x, w[4,4,3,3], c[4])").replace(
            "(x, v[4,4,3,3])", "(x, v[4,4,3,3], f[4])")  # fmt: skip
        pairs = {"w": ("w", "v"), "c": ("c", "f")}[big]
        probe = Probe("float16", "", bias, dtype="float16", values=dict.fromkeys(pairs, 40000.0))
        result, report = folded(probe.model())
        assert [merge.name for merge in report.merges] == ["d"] or len(report.merges) == 1
        assert linear_ops(result) == ["Conv", "Conv", "Add", "Relu", "Conv"]


def test_report_and_inspect() -> None:
    model = pair()
    report = bnfold.fold(model).report
    (entry,) = report.folded
    assert (entry.name, entry.route, entry.into) == ("norm", "merged", ("a_node",))
    (merge,) = report.to_dict()["merges"]
    assert merge == {
        "name": "a_node", "op": "Conv", "scope": "", "parts": ("a_node", "norm", "sum"), "per_image": True,
        "multiply_adds": (4 * 4 * 9 * 25 + 4 * 25 + 4 * 25, 4 * 4 * 9 * 25),
        "weight_bytes": (4 * 4 * 9 * 4 + 16, 4 * 4 * 9 * 4 + 16),
        "nodes": (3, 1),
    }  # fmt: skip
    assert (report.before.batch_norms, report.after.batch_norms) == (1, 0)
    assert (report.nodes_before, report.nodes_after) == (3, 1)
    seen = bnfold.inspect(model)
    assert seen.batch_norms[0].fold == entry
    assert [m.name for m in seen.merges] == ["a_node"]
    assert bnfold.inspect(model, merge=False).merges == ()


def test_counts_and_order_of_entries() -> None:
    """Merged, folded and kept BN are told in the order of the nodes; Mul and Add by constants count too."""
    probe = Probe(
        "order", "",
        "x[N,4,6,6] -> y | n = BN4+(x); r = Relu(n); a = Conv<pads=[1,1,1,1]>(r, w[4,4,3,3]); p = BN4(r); "
        "q = Mul(p, m[4,1,1]); s = Add(a, q); t = BN4(s); u = Relu(t); v = Conv(u, k[4,4,1,1]); y = BN4(v)",
    )  # fmt: skip
    report = folded(probe.model())[1]
    assert [(e.name, e.op, e.route) for e in report.entries if e.op == "BatchNormalization"] == [
        ("n", "BatchNormalization", "forward"), ("p", "BatchNormalization", "merged"),
        ("t", "BatchNormalization", "backward"), ("y", "BatchNormalization", "backward"),
    ]  # fmt: skip
    assert report.before == folded(probe.model(), merge=False)[1].before
    assert report.before.batch_norms == 4
    assert report.before.arithmetic == 1


# -- the command --------------------------------------------------------------------------------------------


def test_command(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(pair(), path)
    out = command("fold", path, "-v", "-o", tmp_path / "a.onnx").stdout
    assert "\nnodes    3 → 1\n" in out
    assert "\nmerged   3 nodes → 1: 4 k → 4 k multiply-adds an image, 592 bytes → 592 bytes of weights\n" in out
    assert "\nfolded   'norm'  merged into 'a_node'\n" in out
    assert "\nmerged   Conv 'a_node'  took in 'norm', 'sum': 4 k → 4 k multiply-adds an image\n" in out
    apart = ok("fold", path, "--no-merge", "-o", tmp_path / "b.onnx")
    assert "merged" not in apart
    assert [node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node][-1] == "Add"
    told = json.loads(ok("fold", path, "--json", "--dry-run"))
    assert [merge["parts"] for merge in told["merges"]] == [["a_node", "norm", "sum"]]
    assert "\nmerged   3 nodes → 1: " in ok("inspect", path)
    assert "merged" not in ok("inspect", path, "--no-merge")


def test_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    onnx.save(convolutions(rng, np.float32), tmp_path / "m.onnx")
    for name, seed in (("a.onnx", "1"), ("b.onnx", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        ok("fold", tmp_path / "m.onnx", "-o", tmp_path / name, "--no-verify", env=environment)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "a.onnx").read_bytes() != (tmp_path / "m.onnx").read_bytes()
