"""BN wherever graphs have it: shared, applied twice, behind expressions, in training mode, in bodies and functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from recalibration_models import CHANNELS, Array, bn, model_of, reference, samples, statistics_of, tensors_of

import bnfold
from bnfold.errors import ModelError

Node = onnx.NodeProto


def pooled(*parts: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each column of all parts together."""
    whole = np.concatenate([np.moveaxis(part, 1, -1).reshape(-1, part.shape[1]) for part in parts]).astype(float)
    return whole.mean(0), whole.var(0)


def assert_statistics(found: tuple[Array, Array], *parts: Array) -> None:
    for got, expected in zip(found, pooled(*parts), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def everything(model: ModelProto) -> dict[str, Array]:
    """Every tensor of the model by name: initializers and Constant nodes of all scopes."""
    found = tensors_of(model)

    def visit(nodes: Any) -> None:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    found[node.output[0]] = numpy_helper.to_array(attribute.t)
                elif attribute.type == onnx.AttributeProto.GRAPH:
                    found.update({t.name: numpy_helper.to_array(t) for t in attribute.g.initializer})
                    visit(attribute.g.node)

    visit(model.graph.node)
    for function in model.functions:
        visit(function.node)
    return found


def checked(model: ModelProto) -> ModelProto:
    """The model, which has to load."""
    onnxruntime.InferenceSession(model.SerializeToString())
    return model


# -- where the statistics are -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pooled", "exact"])
@pytest.mark.parametrize("form", ["Identity", "Constant", "expression", "value_floats", "input"])
def test_statistics_that_are_no_plain_initializer(form: str, method: Any) -> None:
    node, tensors = bn("x", "y", "bn")
    mean = numpy_helper.to_array(tensors[2])
    nodes: list[Node] = []
    if form == "Identity":
        nodes = [helper.make_node("Identity", ["bn.mean"], ["m"])]
    elif form == "Constant":
        nodes = [helper.make_node("Constant", [], ["m"], value=tensors.pop(2))]
    elif form == "value_floats":
        del tensors[2]
        nodes = [helper.make_node("Constant", [], ["m"], value_floats=[float(v) for v in mean])]
    elif form == "expression":
        two = numpy_helper.from_array(np.float32(2), "two")
        tensors.append(two)
        nodes = [helper.make_node("Mul", ["bn.mean", "two"], ["m"])]
    if form != "input":
        node.input[3] = "m"
    model = model_of([*nodes, node], tensors, (None, CHANNELS))
    if form == "input":  # a default that a caller may override
        model.graph.input.append(helper.make_tensor_value_info("bn.mean", TensorProto.FLOAT, [CHANNELS]))
    x = samples(64, CHANNELS)
    result = checked(bnfold.recalibrate(model, x, method=method).model)
    last = result.graph.node[-1]
    have = everything(result)
    assert_statistics((have[last.input[3]], have[last.input[4]]), x)
    assert len(result.graph.input) == len(model.graph.input)
    # what nobody reads any more is gone
    read = {name for one in result.graph.node for name in one.input}
    assert have.keys() <= read
    assert len(result.graph.node) == (2 if form == "Constant" else 1)


@pytest.mark.parametrize("opset", [8, 17])
def test_statistics_that_others_read_stay_for_them(opset: int) -> None:
    node, tensors = bn("x", "n", "bn")
    other = helper.make_node("Add", ["n", "bn.var"], ["y"])
    model = model_of([node, other], tensors, (None, CHANNELS), opset)
    x = samples(64, CHANNELS)
    result = checked(bnfold.recalibrate(model, x).model)
    assert_statistics(statistics_of(result)["bn"], x)
    assert result.graph.node[1] == model.graph.node[1]
    assert np.array_equal(tensors_of(result)["bn.var"], tensors_of(model)["bn.var"])
    assert result.graph.node[0].input[3] == "bn.mean" and result.graph.node[0].input[4] != "bn.var"


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_two_norms_of_the_same_statistics_get_their_own(method: Any) -> None:
    """Exporters store equal tensors once: a net that was never trained has one mean and one variance for all."""
    first, tensors = bn("x", "n", "first")
    second, more = bn("n", "y", "second")
    second.input[3:] = first.input[3:]
    model = model_of([first, second], [*tensors, *more[:2]], (None, CHANNELS))
    x = samples(64, CHANNELS)
    result = bnfold.recalibrate(model, x, method=method, batch_size=64)
    found = statistics_of(checked(result.model))
    expected = reference(model, [x])
    for name in ("first", "second"):
        np.testing.assert_allclose(found[name][0], expected[name][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[name][1], expected[name][1], rtol=1e-4)
    assert not result.notices or not any("applied" in notice for notice in result.notices)


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_norms_that_were_never_trained_are_not_one(method: Any) -> None:
    """They share all four tensors in a file, where equal tensors are stored once."""
    first, _ = bn("x", "a", "first", parameters="both")
    scale = helper.make_node("Mul", ["a", "three"], ["b"])
    second, _ = bn("b", "y", "second", parameters="both")
    values = {"scale": 1, "bias": 0, "mean": 0, "var": 1}
    tensors = [numpy_helper.from_array(np.full(CHANNELS, v, np.float32), f"both.{k}") for k, v in values.items()]
    three = numpy_helper.from_array(np.float32(3), "three")
    model = model_of([first, scale, second], [*tensors, three], (None, CHANNELS))
    x = samples(64, CHANNELS, std=10)
    found = statistics_of(checked(bnfold.recalibrate(model, x, method=method).model))
    assert_statistics(found["first"], x)
    np.testing.assert_allclose(found["second"][1], 9, rtol=1e-4)


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_a_norm_that_is_applied_twice_sees_both(method: Any) -> None:
    shift = numpy_helper.from_array(np.float32(5), "five")
    one, tensors = bn("x", "a", "one", parameters="shared")
    two, _ = bn("s", "b", "two", parameters="shared")
    nodes = [helper.make_node("Add", ["x", "five"], ["s"]), one, two, helper.make_node("Add", ["a", "b"], ["y"])]
    model = model_of(nodes, [*tensors, shift], (None, CHANNELS, 3))
    x = samples(64, CHANNELS, 3)
    result = bnfold.recalibrate(model, x, method=method)
    assert len(result.drift) == 1 and result.drift[0].count == 2 * 64 * 3
    assert any("applied 2 times" in notice for notice in result.notices)
    found = statistics_of(checked(result.model))
    assert_statistics(found["one"], x, x + np.float32(5))
    assert result.model.graph.node[1].input == model.graph.node[1].input


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_a_norm_that_is_applied_to_its_own_output(method: Any) -> None:
    one, tensors = bn("x", "a", "one", parameters="shared")
    two, _ = bn("a", "y", "two", parameters="shared")
    model = model_of([one, two], tensors, (None, CHANNELS))
    x = samples(64, CHANNELS)
    result = bnfold.recalibrate(model, x, batch_size=64, method=method)
    expected = reference(model, [x])
    both = np.mean([expected["one"][0], expected["two"][0]], axis=0)
    np.testing.assert_allclose(statistics_of(result.model)["one"][0], both, rtol=1e-4, atol=1e-5)


def test_a_norm_that_is_applied_at_two_depths() -> None:
    one, tensors = bn("x", "a", "one", parameters="shared")
    first, more = bn("x", "b", "first")
    two, _ = bn("b", "c", "two", parameters="shared")
    model = model_of([one, first, two, helper.make_node("Add", ["a", "c"], ["y"])], [*tensors, *more], (None, CHANNELS))
    x = samples(64, CHANNELS)
    found = statistics_of(bnfold.recalibrate(model, x, method="exact").model)
    expected = reference(model, [x])
    mean = np.mean([expected["one"][0], expected["two"][0]], axis=0)
    np.testing.assert_allclose(found["two"][0], mean, rtol=1e-4, atol=1e-5)


# -- training mode ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_freeze(method: Any) -> None:
    node, tensors = bn("x", "n", "bn", training_mode=1)
    node.output.extend(["m", "v"])
    second, more = bn("n", "y", "second")
    model = model_of([node, second], [*tensors, *more], (None, CHANNELS))
    x = samples(64, CHANNELS)
    result = bnfold.recalibrate(model, x, method=method, batch_size=64)
    assert [drift.name for drift in result.drift] == ["second"]
    assert result.unmeasured[0].name == "bn" and "--freeze" in result.unmeasured[0].why
    assert result.model.graph.node[0] == model.graph.node[0]

    frozen = bnfold.recalibrate(model, x, method=method, batch_size=64, freeze=True)
    assert [drift.name for drift in frozen.drift] == ["bn", "second"]
    assert_statistics(statistics_of(checked(frozen.model))["bn"], x)
    assert not frozen.model.graph.node[0].attribute
    assert all(entry.outcome != "kept" or entry.reason != "training-mode" for entry in bnfold.fold(frozen.model).kept)
    # in inference it does now what it did to the batch as a whole
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (result.model, frozen.model)
    )
    np.testing.assert_allclose(before, after, rtol=1e-3, atol=1e-4)


def test_nothing_but_training_mode() -> None:
    node, tensors = bn("x", "y", "bn", training_mode=1)
    with pytest.raises(ModelError, match=r"node 'bn': .*--freeze"):
        bnfold.recalibrate(model_of([node], tensors, (None, CHANNELS)), samples(64, CHANNELS))


def test_statistics_that_are_outputs_stay() -> None:
    node, tensors = bn("x", "y", "bn", training_mode=1)
    node.output.extend(["m", "v"])
    model = model_of([node], tensors, (None, CHANNELS))
    model.graph.output.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, [CHANNELS]))
    with pytest.raises(ModelError, match="read as outputs"):
        bnfold.recalibrate(model, samples(64, CHANNELS), freeze=True)


def test_computed_statistics_stay() -> None:
    node, tensors = bn("x", "y", "bn")
    mean = helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=0)
    node.input[3] = "m"
    with pytest.raises(ModelError, match="computed while the model runs"):
        bnfold.recalibrate(model_of([mean, node], tensors, (None, CHANNELS)), samples(64, CHANNELS))


def test_computed_scale_and_shift_do_not_matter() -> None:
    """A conditional BN: its scale comes from the network, its statistics from a file."""
    node, tensors = bn("x", "y", "bn")
    scale = helper.make_node("ReduceMax", ["x"], ["s"], axes=[0], keepdims=0)
    node.input[1] = "s"
    x = samples(64, CHANNELS)
    model = model_of([scale, node], tensors, (None, CHANNELS))
    for method in ("pooled", "exact"):
        assert_statistics(statistics_of(checked(bnfold.recalibrate(model, x, method=method).model))["bn"], x)


# -- bodies and functions -----------------------------------------------------------------------------


def body(name: str, nodes: list[Node], outputs: list[str], inputs: Any = (), tensors: Any = ()) -> onnx.GraphProto:
    shown = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
    return helper.make_graph(nodes, name, list(inputs), shown, list(tensors))


def test_the_branches_of_an_if() -> None:
    """Batches whose sum is positive go through one BN, the others through another."""
    then, then_tensors = bn("x", "t", "then")
    other, other_tensors = bn("x", "e", "else")
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["y"], "if",
            then_branch=body("then", [then], ["t"], tensors=then_tensors),
            else_branch=body("else", [other], ["e"]),
        ),
    ]  # fmt: skip
    zero = numpy_helper.from_array(np.float32(0), "zero")
    model = model_of(nodes, [*other_tensors, zero], (None, CHANNELS))
    high, low = samples(64, CHANNELS, mean=5), samples(64, CHANNELS, mean=-5)
    result = bnfold.recalibrate(model, iter([high, low, high + 1]), batch_size=64)
    have = everything(checked(result.model))
    assert_statistics((have["then.mean"], have["then.var"]), high, high + 1)
    assert_statistics((have["else.mean"], have["else.var"]), low)
    # a branch that is never taken
    result = bnfold.recalibrate(model, high)
    assert [drift.name for drift in result.drift] == ["then"]
    assert any("'else' was never reached" in notice for notice in result.notices)
    with pytest.raises(ModelError, match="use the method pooled"):
        bnfold.recalibrate(model, high, method="exact")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    result = bnfold.recalibrate(model, high)
    assert result.method == "pooled" and any("4 samples at a time" in notice for notice in result.notices)


def test_the_turns_of_a_loop() -> None:
    """Each turn adds 1 to x and normalises that."""
    node, tensors = bn("moved", "out", "bn")
    inside = [
        helper.make_node("Add", ["carried", "one"], ["moved"]),
        node,
        helper.make_node("Identity", ["cond"], ["go"]),
    ]
    inputs = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
        helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
    ]
    loop_body = body("loop", inside, ["go", "moved", "out"], inputs, tensors)
    loop_body.output[0].type.tensor_type.elem_type = TensorProto.BOOL
    constants = [
        numpy_helper.from_array(np.int64(3), "turns"), numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.float32(1), "one"),
    ]  # fmt: skip
    model = model_of(
        [helper.make_node("Loop", ["turns", "yes", "x"], ["last", "y"], "loop", body=loop_body)],
        constants, (None, CHANNELS),
    )  # fmt: skip
    x = samples(64, CHANNELS)
    result = bnfold.recalibrate(model, x)
    have = everything(checked(result.model))
    assert_statistics((have["bn.mean"], have["bn.var"]), x + 1, x + 2, x + 3)
    assert result.drift[0].count == 3 * 64 and result.drift[0].scope == "loop/body"


def test_the_steps_of_a_scan() -> None:
    """A BN over each of the steps of a sequence, which lie along axis 1."""
    node, tensors = bn("step", "out", "bn")
    state = helper.make_node("Add", ["before", "step"], ["after"])
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("before", "step")]
    scan_body = body("scan", [state, node], ["after", "out"], inputs, tensors)
    first = helper.make_node("ReduceSum", ["x", "one"], ["start"], keepdims=0)
    scan = helper.make_node(
        "Scan", ["start", "x"], ["sum", "y"], "scan", body=scan_body, num_scan_inputs=1, scan_input_axes=[1],
        scan_output_axes=[1], scan_output_directions=[0],
    )  # fmt: skip
    model = model_of([first, scan], [numpy_helper.from_array(np.array([1]), "one")], (None, 5, CHANNELS))
    x = samples(64, 5, CHANNELS)
    result = bnfold.recalibrate(model, x)
    have = everything(checked(result.model))
    assert_statistics((have["bn.mean"], have["bn.var"]), x.reshape(-1, CHANNELS))


def _function(shared: bool) -> tuple[onnx.FunctionProto, list[TensorProto]]:
    """A function of a BN whose statistics are constants in it, or its inputs."""
    node, tensors = bn("v", "w", "bn")
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors] if not shared else []
    inputs = ["v", *([t.name for t in tensors] if shared else [])]
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_function("my", "norm", inputs, ["w"], [*constants, node], opsets), tensors


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_a_function_that_is_called_twice(method: Any) -> None:
    function, _ = _function(shared=False)
    outer_nodes = [helper.make_node("norm", ["v"], ["w"], domain="my")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    outer = helper.make_function("my", "outer", ["v"], ["w"], outer_nodes, opsets)
    shift = numpy_helper.from_array(np.float32(5), "five")
    nodes = [
        helper.make_node("norm", ["x"], ["a"], domain="my"),
        helper.make_node("Add", ["x", "five"], ["s"]),
        helper.make_node("outer", ["s"], ["b"], domain="my"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    model = model_of(nodes, [shift], (None, CHANNELS), functions=[function, outer])
    x = samples(64, CHANNELS)
    result = bnfold.recalibrate(model, x, method=method)
    have = everything(checked(result.model))
    assert_statistics((have["bn.mean"], have["bn.var"]), x, x + np.float32(5))
    assert result.drift[0].scope == "my::norm" and result.drift[0].count == 2 * 64
    assert result.model.graph.node == model.graph.node


def test_exact_in_functions_sees_those_upstream_final() -> None:
    """Two functions in a row, and a function that nobody calls."""
    first, tensors = bn("v", "n", "first")
    second, more = bn("v", "n", "second")
    unused, rest = bn("v", "n", "unused")
    opsets = [helper.make_opsetid("", 17)]
    square = helper.make_node("Mul", ["n", "n"], ["w"])
    functions = [
        helper.make_function(
            "my", node.name, ["v"], ["w"],
            [*(helper.make_node("Constant", [], [t.name], value=t) for t in own), node, square], opsets,
        )
        for node, own in ((first, tensors), (second, more), (unused, rest))
    ]  # fmt: skip
    calls = [
        helper.make_node("first", ["x"], ["m"], domain="my"),
        helper.make_node("second", ["m"], ["y"], domain="my"),
    ]
    model = model_of(calls, [], (1, CHANNELS), functions=functions)
    flat = model_of(
        [bn("x", "n", "first")[0], helper.make_node("Mul", ["n", "n"], ["m"]), bn("m", "y", "second")[0]],
        [*tensors, *more], (None, CHANNELS),
    )  # fmt: skip
    x = samples(64, CHANNELS)
    result = bnfold.recalibrate(model, x)
    assert result.method == "exact" and [one.name for one in result.drift] == ["first", "second"]
    assert any("'unused' was never reached" in notice for notice in result.notices)
    have, expected = everything(result.model), reference(flat, [x])
    for name in ("first", "second"):
        np.testing.assert_allclose(have[f"{name}.mean"], expected[name][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(have[f"{name}.var"], expected[name][1], rtol=1e-5)


def test_statistics_that_a_function_is_given() -> None:
    function, tensors = _function(shared=True)
    call = helper.make_node("norm", ["x", *(t.name for t in tensors)], ["y"], domain="my")
    model = model_of([call], tensors, (None, CHANNELS), functions=[function])
    with pytest.raises(ModelError, match=r"node 'bn': .*from outside of the function"):
        bnfold.recalibrate(model, samples(64, CHANNELS))
