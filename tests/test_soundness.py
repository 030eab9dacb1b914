"""What is wrong with a graph is told before any verb begins, all of it at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import bnfold, conv_bn, refused
from onnx import ModelProto, TensorProto, helper

from bnfold.errors import BnfoldError, ModelError
from bnfold.frontends import open_model
from bnfold.soundness import demand_sound


def thrice_wrong() -> ModelProto:
    model = conv_bn()
    model.graph.node[0].input[0] = "nobody"
    model.graph.node[1].attribute.append(helper.make_attribute("epsilon", "small"))
    model.graph.output[0].name = "z"
    model.graph.input.append(model.graph.input[0])
    return model


def test_all_problems_at_once() -> None:
    with pytest.raises(ModelError) as caught:
        demand_sound(thrice_wrong())
    told = [str(caught.value), *caught.value.others]
    for expected in ("value 'x': is defined twice", "node 'conv': reads 'nobody'", "attribute 'epsilon'", "output 'z'"):
        assert any(expected in sentence for sentence in told), told
    assert len(caught.value.others) == 3
    assert "(and 3 more: " in str(caught.value) and str(caught.value).endswith("; …)")


def test_tensors_are_all_told(tmp_path: Path) -> None:
    model = conv_bn()
    for tensor in model.graph.initializer[:2]:
        tensor.raw_data = b"1234"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"tensor 'w': holds 4 bytes .*\(and 1 more: tensor 'gamma': holds 4"):
        open_model(path)


def test_the_command_says_it_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(thrice_wrong().SerializeToString())
    for verb in ("fold", "inspect"):
        refused(bnfold(verb, path), "(and 3 more: ")


def test_a_file_is_added_and_nothing_lost() -> None:
    error = ModelError("is wrong", where="node 'n'", others=["another"])
    moved = error.of("m.onnx")
    assert isinstance(moved, ModelError)
    assert (str(moved), moved.others) == ("m.onnx: node 'n': is wrong (and 1 more: another)", ("another",))
    assert str(BnfoldError("is wrong").of("m.onnx")) == "m.onnx: is wrong"


def in_body(model: ModelProto, name: str) -> None:
    """The Relu becomes an If whose branches read `name`."""
    out = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    bodies = [helper.make_graph([helper.make_node(op, [name], ["r"])], op, [], [out]) for op in ("Relu", "Abs")]
    node = helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    model.graph.node[2].CopyFrom(node)


def test_bodies_see_what_is_around_them() -> None:
    model = conv_bn()
    in_body(model, "b")
    demand_sound(model)
    in_body(model, "nobody")
    with pytest.raises(ModelError, match="reads 'nobody', which nothing produces"):
        demand_sound(model)


def test_functions_see_nothing_around_them() -> None:
    model = conv_bn()
    model.opset_import.append(helper.make_opsetid("f", 1))
    inner = [helper.make_node("Relu", ["b"], ["o"])]
    model.functions.append(helper.make_function("f", "act", ["i"], ["o"], inner, [helper.make_opsetid("", 17)]))
    model.graph.node[2].op_type, model.graph.node[2].domain = "act", "f"
    with pytest.raises(ModelError, match="reads 'b', which nothing produces"):
        demand_sound(model)
    model.functions[0].node[0].input[0] = "i"
    demand_sound(model)


def test_what_has_no_schema_is_left_alone() -> None:
    """Ops of other domains, ops that this opset doesn't have, attributes that nobody knows."""
    model = conv_bn(domain="somebody")
    del model.graph.node[2].input[:]
    model.graph.node[2].attribute.append(helper.make_attribute("epsilon", "text"))
    model.graph.node.append(helper.make_node("Swish9", ["b"] * 9, ["s"]))
    model.graph.node[0].attribute.append(helper.make_attribute("onnx_tool", "text"))
    demand_sound(model)


def test_an_initializer_may_be_an_input_once() -> None:
    demand_sound(conv_bn(overridable=True))
    model = conv_bn(overridable=True)
    model.graph.initializer.append(model.graph.initializer[1])
    with pytest.raises(ModelError, match="value 'gamma': is defined twice"):
        demand_sound(model)
