"""bnfold's passes of onnx_ir: what they change, what stays the very same object, and how they go with others."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import conv_bn
from conftest import REPO
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.weights import Held

ir = pytest.importorskip("onnx_ir")
common = pytest.importorskip("onnx_ir.passes.common")
passes = pytest.importorskip("bnfold.passes")

SAMPLES = REPO / "sample_models"
MODEL = SAMPLES / "digits_cnn.onnx"


def batch_norms(model: Any) -> list[str]:
    return [node.name for node in model.graph if node.op_type == "BatchNormalization"]


def tensors(model: Any) -> dict[str, Any]:
    return {value.name: value.const_value for value in model.graph.initializers.values()}


def with_table(rows: int = 1000) -> onnx.ModelProto:
    """Conv → BN → Relu, and beside it an embedding table, the indices of its rows and a Constant that nobody folds."""
    proto = conv_bn()
    graph = proto.graph
    graph.initializer.append(numpy_helper.from_array(np.ones((rows, 64), np.float32), "table"))
    graph.initializer.append(numpy_helper.from_array(np.arange(3), "rows"))
    value = numpy_helper.from_array(np.ones((3, 128), np.float32), "held")
    graph.node.append(helper.make_node("Constant", [], ["held"], name="constant", value=value))
    graph.node.append(helper.make_node("Gather", ["table", "rows"], ["picked"], name="gather"))
    graph.node.append(helper.make_node("Concat", ["picked", "held"], ["z"], name="concat", axis=1))
    graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, 192]))
    return proto


# -- folding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_cnn", "digits_mobile", "digits_preact", "tabular_mlp"])
def test_fold_is_that_of_bnfold_and_leaves_the_given_model(name: str) -> None:
    given = ir.load(SAMPLES / f"{name}.onnx")
    before = ir.to_proto(given).SerializeToString()
    result = passes.FoldBatchNormalization()(given)
    assert result.modified and result.model is not given and batch_norms(result.model) == []
    assert ir.to_proto(given).SerializeToString() == before
    wanted = {t.name: numpy_helper.to_array(t) for t in bnfold.fold(SAMPLES / f"{name}.onnx").model.graph.initializer}
    found = {name: tensor.numpy() for name, tensor in tensors(result.model).items()}
    assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_untouched_tensors_are_the_same_objects() -> None:
    """Large and small ones, and those of Constants; of a tensor that changed the given one stays as it was."""
    given = ir.from_proto(with_table())
    before, weight = tensors(given), tensors(given)["w"].numpy().copy()
    result = passes.FoldBatchNormalization()(given)
    after = tensors(result.model)
    assert after["table"] is before["table"] and after["rows"] is before["rows"]
    old, new = (next(node for node in model.graph if node.name == "constant") for model in (given, result.model))
    assert new.attributes["value"].value is old.attributes["value"].value
    assert after["w"] is not before["w"] and np.array_equal(before["w"].numpy(), weight)


def test_nothing_is_copied_that_is_not_changed() -> None:
    """The static proof included; the check does, since it moves every weight by a unit in its last place."""
    rows = 1 << 17  # 32 MiB
    given = ir.from_proto(with_table())
    given.graph.initializers["table"].const_value = ir.Tensor(np.ones((rows, 64), np.float32), name="table")
    given.graph.initializers["table"].shape = ir.Shape([rows, 64])
    fold = passes.FoldBatchNormalization(verify=False)
    fold(given)  # what is imported and cached on the way
    tracemalloc.start()
    try:
        result = fold(given)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.modified and peak < 4 << 20


def test_memory_is_shared_with_what_holds_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    tensor_adapters = pytest.importorskip("onnx_ir.tensor_adapters")
    held = torch.ones(1000, 64)
    given = ir.from_proto(with_table())
    given.graph.initializers["table"].const_value = tensor_adapters.TorchTensor(held, name="table")
    model = passes.FoldBatchNormalization()(given).model
    held[0, 0] = 7
    assert tensors(model)["table"].numpy()[0, 0] == 7


def test_tied_weights_stay_tied() -> None:
    proto = with_table()
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((1000, 64), np.float32), "table2"))
    proto.graph.node.append(helper.make_node("Gather", ["table2", "rows"], ["y2"], name="gather2"))
    proto.graph.output.append(helper.make_tensor_value_info("y2", TensorProto.FLOAT, [3, 64]))
    given = ir.from_proto(proto)
    given.graph.initializers["table2"].const_value = tensors(given)["table"]
    after = tensors(passes.FoldBatchNormalization()(given).model)
    assert after["table2"] is after["table"] is tensors(given)["table"]


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN", "INT4", "BOOL", "STRING", "COMPLEX64"])
def test_tensors_of_every_type_stay_what_they_are(kind: str, tmp_path: Path) -> None:
    elements = ["a", "b"] * 2048 if kind == "STRING" else np.arange(4096) % 2
    data_type = getattr(TensorProto, kind)
    proto = conv_bn()
    proto.graph.initializer.append(helper.make_tensor("t", data_type, [4096], elements))
    proto.graph.node.append(helper.make_node("Identity", ["t"], ["z"], name="identity"))
    proto.graph.output.append(helper.make_tensor_value_info("z", data_type, [4096]))
    given = ir.from_proto(proto)
    model = passes.FoldBatchNormalization(verify=False)(given).model
    assert tensors(model)["t"] is tensors(given)["t"]
    saved = bnfold.fold(given, verify=False).save(tmp_path / "m.onnx")[0]  # its bytes can be had
    kept = next(tensor for tensor in onnx.load(saved).graph.initializer if tensor.name == "t")
    assert list(numpy_helper.to_array(kept)) == list(numpy_helper.to_array(proto.graph.initializer[-1]))


def test_weights_of_any_layout_in_memory() -> None:
    wide = np.random.default_rng(0).random((3, 4, 64, 2)).astype(np.float32)
    weight = wide.transpose(2, 0, 1, 3)[:, :, ::-1]  # (64, 3, 4, 2), not contiguous, 6 KB
    proto = conv_bn()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weight), "w"))
    for tensor in list(proto.graph.initializer)[1:]:
        tensor.CopyFrom(numpy_helper.from_array(np.linspace(0.5, 2, 64, dtype=np.float32), tensor.name))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    given = ir.from_proto(proto)
    given.graph.initializers["w"].const_value = ir.Tensor(weight, name="w")
    found = tensors(passes.FoldBatchNormalization(verify=False)(given).model)["w"].numpy()
    wanted = numpy_helper.to_array(bnfold.fold(proto, verify=False).model.graph.initializer[0])
    assert np.array_equal(found, wanted)
    every_other = np.arange(8, dtype=np.float32)[::2]
    assert bytes(Held(16, False, None, lambda: every_other).view) == every_other.tobytes()


def test_external_tensors_stay_where_they_are(tmp_path: Path) -> None:
    onnx.save(with_table(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    given = ir.load(tmp_path / "m.onnx")
    after, before = tensors(passes.FoldBatchNormalization()(given).model), tensors(given)
    assert isinstance(after["table"], ir.ExternalTensor) and not isinstance(after["rows"], ir.ExternalTensor)
    assert after["table"] is before["table"] and after["rows"] is before["rows"]
    assert not isinstance(after["w"], ir.ExternalTensor)


def bodies() -> onnx.ModelProto:
    """An If whose branch has a large tensor, and a function with one."""
    value = numpy_helper.from_array(np.ones((3, 128), np.float32), "c")
    constant = helper.make_node("Constant", [], ["c"], name="inside", value=value)
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", 1, [3, 128])])
    proto = conv_bn()
    proto.graph.input.append(helper.make_tensor_value_info("if", TensorProto.BOOL, []))
    node = helper.make_node("If", ["if"], ["z"], name="if", then_branch=branch, else_branch=branch)
    proto.graph.node.append(node)
    proto.graph.node.append(helper.make_node("F", ["z"], ["z2"], name="call", domain="mine"))
    add = helper.make_node("Add", ["a", "c"], ["s"], name="add")
    function = helper.make_function("mine", "F", ["a"], ["s"], [constant, add], [helper.make_opsetid("", 17)])
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.graph.output.append(helper.make_tensor_value_info("z2", TensorProto.FLOAT, [3, 128]))
    return proto


def test_tensors_of_bodies_and_functions() -> None:
    def inside(model: Any) -> Iterator[Any]:
        for root in (model.graph, *model.functions.values()):
            yield from (node.attributes["value"].value for node in root.all_nodes() if node.op_type == "Constant")

    given = ir.from_proto(bodies())
    result = passes.FoldBatchNormalization()(given)
    assert result.modified and len(list(inside(given))) == 3
    assert all(a is b for a, b in zip(inside(given), inside(result.model), strict=True))


def test_nothing_to_fold() -> None:
    folded = passes.FoldBatchNormalization()(ir.load(MODEL)).model
    again = passes.FoldBatchNormalization()
    result = again(folded)
    assert not result.modified and result.model is not folded and again.report.folded == ()
    assert ir.to_proto(result.model).SerializeToString() == ir.to_proto(folded).SerializeToString()


def test_options_and_report() -> None:
    fold = passes.FoldBatchNormalization(skip="/1/*", verify=False)
    assert fold.report is None
    assert batch_norms(fold(ir.load(MODEL)).model) == ["/1/BatchNormalization"]
    assert [entry.reason for entry in fold.report.kept] == ["not-chosen"]
    for wrong in ({"kept": "half"}, {"verify": False, "require_verify": True}):
        with pytest.raises(bnfold.UsageError):
            passes.FoldBatchNormalization(**wrong)


def test_unsound_models_are_refused_before_any_work() -> None:
    given = ir.load(MODEL)
    first = next(iter(given.graph))
    first.replace_input_with(0, ir.Value(name="nowhere"))
    with pytest.raises(ir.passes.PreconditionError, match="nowhere"):
        passes.FoldBatchNormalization()(given)


def test_in_a_sequence_with_passes_of_others() -> None:
    pipeline = ir.passes.PassManager(
        [
            common.CommonSubexpressionEliminationPass(),
            passes.FoldBatchNormalization(verify=False),
            common.RemoveUnusedNodesPass(),
            common.DeduplicateHashedInitializersPass(),
        ],
        steps=2,
        early_stop=True,
    )  # fmt: skip
    result = pipeline(ir.load(MODEL))
    assert result.modified and batch_norms(result.model) == []
    assert bnfold.verify(MODEL, result.model).verdict == "equal"


# -- merging and inserting ----------------------------------------------------------------------------


def branches() -> onnx.ModelProto:
    """Conv + BN, then (1x1 Conv + BN) + (BN) of one value, as in RepVGG."""
    rng = np.random.default_rng(0)
    proto = conv_bn("stem")
    graph = proto.graph
    graph.initializer.append(numpy_helper.from_array(rng.random((4, 4, 1, 1)).astype(np.float32), "w2"))
    graph.node.pop()
    parameters = ["gamma", "beta", "mean", "var"]
    graph.node.extend([
        helper.make_node("Relu", ["b"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2"], ["c2"], name="conv2"),
        helper.make_node("BatchNormalization", ["c2", *parameters], ["b2"], name="inner"),
        helper.make_node("BatchNormalization", ["r", *parameters], ["b3"], name="skip"),
        helper.make_node("Add", ["b2", "b3"], ["y"], name="add"),
    ])  # fmt: skip
    return proto


def test_merging_takes_the_branches_and_leaves_other_batch_norms() -> None:
    given = ir.from_proto(branches())
    merge = passes.MergeBranches()
    result = merge(given)
    assert result.modified and len(merge.report.merges) == 1
    assert batch_norms(result.model) == ["stem"]
    assert [node.op_type for node in result.model.graph] == ["Conv", "BatchNormalization", "Relu", "Conv"]
    assert bnfold.verify(branches(), result.model).verdict == "equal"
    assert batch_norms(passes.FoldBatchNormalization()(result.model).model) == []


@pytest.mark.parametrize(
    ("options", "left"),
    [({"skip": "skip"}, ["stem", "inner", "skip"]), ({"only": "stem"}, ["stem", "inner", "skip"])],
    ids=["skip", "only"],
)
def test_merging_goes_by_patterns(options: dict[str, str], left: list[str]) -> None:
    result = passes.MergeBranches(**options)(ir.from_proto(branches()))
    assert batch_norms(result.model) == left


def test_insertion_and_its_way_back() -> None:
    bare = passes.FoldBatchNormalization()(ir.load(MODEL)).model
    insert = passes.InsertBatchNormalization(f"{SAMPLES / 'digits.npz'}:calib_x", samples=64)
    result = insert(bare)
    assert result.modified and len(batch_norms(result.model)) == 7 == len(insert.result.sites)
    assert batch_norms(bare) == []
    assert bnfold.verify(bare, result.model).equal
    again = ir.passes.PassManager([insert], steps=3)(bare)  # until nothing changes
    assert len(batch_norms(again.model)) == 7


def test_no_place_for_a_batch_norm() -> None:
    given = ir.load(MODEL)
    result = passes.InsertBatchNormalization(mode="fresh")(given)
    assert not result.modified and result.model is not given
    assert ir.to_proto(result.model).SerializeToString() == ir.to_proto(given).SerializeToString()


# -- torch and onnxscript -----------------------------------------------------------------------------


def test_the_example_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After torch's dynamo exporter, in a sequence with another pass; then onnxscript's optimiser."""
    torch = pytest.importorskip("torch")
    optimizer = pytest.importorskip("onnxscript.optimizer")
    monkeypatch.chdir(tmp_path)
    page = (REPO / "docs" / "pipelines.md").read_text("utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "torch.onnx.export" in block)
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(8)
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    network = torch.nn.Sequential(norm, torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3), torch.nn.ReLU()).eval()
    held = torch.rand(1, 8, 9, 9)
    there = {"network": network, "inputs": (held,), "print": lambda *told: shown.append(told)}
    shown: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, there)  # it saves model.onnx
    program: Any = there["program"]
    assert shown == [(0, [])]
    np.testing.assert_allclose(program(held)[0].numpy(), network(held).detach().numpy(), rtol=1e-5, atol=1e-6)
    optimizer.optimize(program.model)
    assert bnfold.verify(tmp_path / "model.onnx", program.model).equal


def test_bnfold_needs_no_onnx_ir() -> None:
    code = "import sys, bnfold; bnfold.fold; bnfold.insert; assert 'onnx_ir' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
