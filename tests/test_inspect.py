"""What `inspect` tells of a model: facts, neighbours, statistics, and what a fold would do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.inspection import BatchNorm, Neighbour, Port

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"


def build(nodes: list[onnx.NodeProto], tensors: dict[str, Any], *, functions: Any = (), **info: Any) -> ModelProto:
    """A model x [n, 4, 8, 8] → y."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 8, 8]) for name in "xy")
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions, **info)


def parameters(**changes: Any) -> dict[str, Any]:
    """gamma, beta, mean, var of four channels."""
    default = {"gamma": [1, 2, 3, 4], "beta": [0] * 4, "mean": [0] * 4, "var": [1] * 4}
    return {name: np.array(values, np.float32) for name, values in (default | changes).items()}


def bn(source: str = "x", target: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [source, "gamma", "beta", "mean", "var"], [target], **attributes)


def only(model: ModelProto, **options: Any) -> BatchNorm:
    (norm,) = bnfold.inspect(model, **options).batch_norms
    return norm


# -- statistics ---------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"gamma": [0, -0.0, 1, 2]}, {"dead": 2}),
        ({"gamma": [-1, 1, -2, 0]}, {"negative": 2, "dead": 1}),
        ({"var": [2e-5, 9e-6, 0, 1e-40]}, {"small_variance": 3}),
        ({"var": [1, NAN, INF, -1]}, {"invalid": 3, "small_variance": 1}),
        ({"mean": [NAN, 0, 0, 0], "beta": [0, INF, 0, 0]}, {"invalid": 2}),
    ],
    ids=lambda value: " ".join(value) or "sound",
)
def test_statistics(changes: dict[str, Any], expected: dict[str, int]) -> None:
    found = only(build([bn()], parameters(**changes))).statistics
    assert found is not None
    counts = {"dead": 0, "negative": 0, "small_variance": 0, "invalid": 0} | expected
    assert {name: getattr(found, name) for name in counts} == counts


def test_smallest_variance_and_largest_gain() -> None:
    found = only(build([bn(epsilon=0.5)], parameters(gamma=[-6, 1, 1, 1], var=[3.5, 0.25, 8, 8]))).statistics
    assert found is not None
    assert found.min_variance == 0.25
    assert found.max_gain == pytest.approx(6 / 2, rel=1e-12)


def test_no_channel_is_sound() -> None:
    norm = only(build([bn()], parameters(var=[NAN] * 4)))
    assert norm.statistics is not None and norm.statistics.min_variance is None and norm.statistics.max_gain is None
    assert norm.fold.outcome == "kept" and norm.fold.reason == "invalid-statistics"


def test_parameters_that_are_computed_or_dont_fit() -> None:
    constants = parameters()
    del constants["gamma"]
    computed = build([helper.make_node("Abs", ["z"], ["gamma"]), bn()], constants)
    computed.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [4]))
    norm = only(computed)
    assert (norm.channels, norm.dtype, norm.statistics, norm.fold.reason) == (None, None, None, "dynamic-parameters")
    norm = only(build([bn()], parameters(var=[1, 1])))
    assert (norm.channels, norm.statistics, norm.fold.reason) == (4, None, "wrong-shape")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_type_of_parameters(dtype: str) -> None:
    model = build([bn()], {name: array.astype(dtype) for name, array in parameters().items()})
    assert only(model).dtype == dtype


def test_epsilon_as_it_was_written() -> None:
    assert only(build([bn()], parameters())).epsilon == 1e-5
    assert only(build([bn(epsilon=1.001e-3)], parameters())).epsilon == 1.001e-3


# -- neighbours ---------------------------------------------------------------------------------------


def test_neighbours() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        bn("c", "b", name="bn"),
        helper.make_node("Relu", ["b"], ["r"], name="relu"),
        helper.make_node("Add", ["b", "b"], ["a"], name="add"),
        helper.make_node("Add", ["a", "r"], ["y"], name="sum"),
    ]
    model = build(nodes, parameters() | {"w": np.ones((4, 4, 1, 1), np.float32)})
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    norm = only(model)
    assert norm.before == Neighbour("Conv", "conv")
    assert norm.behind == (Neighbour("Relu", "relu"), Neighbour("Add", "add"), Neighbour("output", "b"))


def test_between_input_and_output() -> None:
    norm = only(build([bn()], parameters()))
    assert (norm.name, norm.before, norm.behind) == ("y", Neighbour("input", "x"), (Neighbour("output", "y"),))
    assert norm.opset == 17


def test_inside_of_a_body_and_of_a_function() -> None:
    """One BN reads a captured value in a branch, one is in a local function with constants of its own."""
    out = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    branch = helper.make_graph([bn("c", "t", name="inner")], "then", [], [out])
    other = helper.make_graph([helper.make_node("Identity", ["c"], ["t"])], "else", [], [out])
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
        for name, array in parameters().items()
    ]
    body = [*constants, bn("p", "q", name="own")]
    function = helper.make_function("own", "Normal", ["p"], ["q"], body, [helper.make_opsetid("", 16)])
    nodes = [
        helper.make_node("Relu", ["x"], ["c"], name="relu"),
        helper.make_node("If", ["true"], ["i"], name="if", then_branch=branch, else_branch=other),
        helper.make_node("Normal", ["i"], ["y"], domain="own", name="call"),
    ]
    model = build(nodes, parameters() | {"true": True}, functions=[function])
    found = bnfold.inspect(model)
    by_name = {norm.name: norm for norm in found.batch_norms}
    assert found.facts.scopes == 4
    assert by_name["inner"].scope == "if/then_branch"
    assert by_name["inner"].before == Neighbour("Relu", "relu")
    assert by_name["inner"].behind == (Neighbour("output", "t"),)
    assert by_name["own"].scope == "own::Normal"
    assert by_name["own"].opset == 16
    assert by_name["own"].statistics is not None and by_name["own"].statistics.max_gain is not None


# -- what a fold would do -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_cnn", "digits_mobile", "digits_preact", "tabular_mlp"])
def test_agrees_with_fold(name: str) -> None:
    path = SAMPLES / f"{name}.onnx"
    found, folded = bnfold.inspect(path), bnfold.fold(path, verify=False)
    entries = [entry for entry in folded.report.entries if entry.op == "BatchNormalization"]
    assert [norm.fold for norm in found.batch_norms] == entries
    assert [norm.name for norm in found.batch_norms] == [entry.name for entry in entries]
    assert (found.before, found.after) == (folded.report.before, folded.report.after)
    assert (found.facts.nodes, found.nodes_after) == (folded.report.nodes_before, folded.report.nodes_after)


def test_every_real_model(real_model: Path) -> None:
    found = bnfold.inspect(real_model)
    assert len(found.batch_norms) == found.before.batch_norms
    assert all(norm.name == norm.fold.name and norm.before is not None for norm in found.batch_norms)
    json.dumps(found.to_dict(), allow_nan=False)


def test_keep_overridable() -> None:
    model = build([bn()], parameters())
    model.graph.input.append(helper.make_tensor_value_info("gamma", TensorProto.FLOAT, [4]))
    assert bnfold.inspect(model).facts.overridable == 1
    norm = only(model, keep_overridable=True)
    assert (norm.statistics, norm.fold.reason) == (None, "dynamic-parameters")


# -- facts --------------------------------------------------------------------------------------------


def test_facts_of_a_file() -> None:
    facts = bnfold.inspect(SAMPLES / "digits_cnn.onnx").facts
    assert facts.file == str(SAMPLES / "digits_cnn.onnx")
    assert facts.file_bytes == (SAMPLES / "digits_cnn.onnx").stat().st_size
    assert facts.data_files == {}
    assert facts.opsets == {"": 17}
    assert facts.inputs == (Port("input", "float32", ("batch", 1, 8, 8)),)
    assert facts.outputs == (Port("logits", "float32", ("batch", 10)),)
    assert (facts.nodes, facts.scopes, facts.overridable) == (25, 1, 0)
    model = onnx.load(SAMPLES / "digits_cnn.onnx")
    assert facts.weights_bytes == sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def test_facts_of_external_data(tmp_path: Path) -> None:
    model = onnx.load(SAMPLES / "digits_cnn.onnx")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    facts = bnfold.inspect(tmp_path / "m.onnx").facts
    assert facts.data_files == {"w.bin": (tmp_path / "w.bin").stat().st_size}
    assert facts.weights_bytes == bnfold.inspect(SAMPLES / "digits_cnn.onnx").facts.weights_bytes


def test_facts_of_a_model_in_memory() -> None:
    model = build([helper.make_node("Identity", ["x"], ["y"])], {}, producer_name="me", producer_version="1")
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    del model.graph.output[:]
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    model.graph.output.extend([sequence, helper.make_tensor_value_info("y", TensorProto.BFLOAT16, None)])
    model.graph.node.append(helper.make_node("SequenceConstruct", ["x"], ["s"]))
    facts = bnfold.inspect(model).facts
    assert (facts.file, facts.file_bytes, facts.producer) == (None, None, "me 1")
    assert facts.inputs == (Port("x", "float32", (None, 4, 8, 8)),)
    assert facts.outputs == (Port("s", "sequence", None), Port("y", "bfloat16", None))


def test_to_dict_is_plain_json() -> None:
    found = bnfold.inspect(build([bn()], parameters(var=[NAN, 1, 1, 1])))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["schema_version"] == 1
    assert data["model"]["opsets"] == {"": 17, "own": 1}
    assert data["batch_norms"][0]["statistics"]["invalid"] == 1
    assert data["batch_norms"][0]["before"] == {"op": "input", "name": "x"}
    assert data["fold"]["batch_norms"] == {"before": 1, "after": 1}
