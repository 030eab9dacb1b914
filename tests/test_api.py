"""The Python front doors: any kind of model in, the same kind out, and the given one as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
MODEL = SAMPLES / "digits_cnn.onnx"

PUBLIC = """BnfoldError CalibrationDataError Comparison Counts Drift Entry ExternalDataError FoldReport FoldResult
ImageOptions InsertResult
Inserted Inspection ModelError NotEquivalentError OutputError RecalibrationResult
Requantization UsageError Verification __version__
fold insert inspect recalibrate verify""".split()


def batch_norms(model: ModelProto) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


def weights(model: ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


# -- kinds of models: open one, its class, its bytes --------------------------------------------------


def _proto(path: Path) -> Any:
    return onnx.load(path)


def _graphsurgeon(path: Path) -> Any:
    import onnx_graphsurgeon

    return onnx_graphsurgeon.import_onnx(onnx.load(path))


def _onnx_ir(path: Path) -> Any:
    import onnx_ir

    return onnx_ir.load(path)


def _onnx_program(path: Path) -> Any:
    torch = pytest.importorskip("torch")
    return torch.onnx.ONNXProgram(_onnx_ir(path), None)


def serialised(model: Any) -> bytes:
    """The bytes of a model of any kind."""
    if isinstance(model, ModelProto):
        return model.SerializeToString(deterministic=True)
    if type(model).__name__ == "Graph":
        import onnx_graphsurgeon

        return serialised(onnx_graphsurgeon.export_onnx(model))
    import onnx_ir

    return serialised(onnx_ir.to_proto(getattr(model, "model", model)))


KINDS = {"ModelProto": _proto, "Graph": _graphsurgeon, "Model": _onnx_ir, "ONNXProgram": _onnx_program}


@pytest.mark.parametrize("kind", KINDS)
def test_same_kind_comes_back_and_the_given_one_is_untouched(kind: str) -> None:
    given = KINDS[kind](MODEL)
    before = serialised(given)
    result = bnfold.fold(given, verify=False)
    assert type(result.model) is type(given)
    assert type(result.model).__name__ == kind
    assert serialised(given) == before
    folded = ModelProto.FromString(serialised(result.model))
    assert batch_norms(folded) == 0
    of_path = weights(bnfold.fold(MODEL, verify=False).model)
    found = weights(folded)
    assert found.keys() == of_path.keys()
    assert all(np.array_equal(found[name], array) for name, array in of_path.items())


@pytest.mark.parametrize("kind", KINDS)
def test_result_of_any_kind_can_be_saved(kind: str, tmp_path: Path) -> None:
    files = bnfold.fold(KINDS[kind](MODEL), verify=False).save(tmp_path / "out.onnx")
    assert files == [tmp_path / "out.onnx"]
    onnx.checker.check_model(onnx.load(files[0]), full_check=True)


@pytest.mark.parametrize("path", [str(MODEL), MODEL], ids=["str", "Path"])
def test_path_gives_a_model_proto_made_once(path: str | Path) -> None:
    result = bnfold.fold(path, verify=False)
    assert isinstance(result.model, ModelProto)
    assert result.model is result.model
    assert batch_norms(result.model) == 0


def test_path_and_proto_agree_to_the_byte(tmp_path: Path) -> None:
    saved = bnfold.fold(MODEL, verify=False).save(tmp_path / "of_path.onnx")[0].read_bytes()
    assert saved == bnfold.fold(onnx.load(MODEL), verify=False).save(tmp_path / "of_proto.onnx")[0].read_bytes()
    assert saved == serialised(bnfold.fold(MODEL, verify=False).model)


def test_verification_leaves_the_given_model_alone_too() -> None:
    given = onnx.load(MODEL)
    before = serialised(given)
    assert bnfold.fold(given).verification.relation is not None
    bnfold.inspect(given)
    assert serialised(given) == before


def test_unsorted_nodes_of_the_given_model_stay_unsorted() -> None:
    given = onnx.load(MODEL)
    nodes = list(given.graph.node)[::-1]
    del given.graph.node[:]
    given.graph.node.extend(nodes)
    before = serialised(given)
    assert len(bnfold.fold(given, verify=False).folded) == 7
    assert len(bnfold.inspect(given).batch_norms) == 7
    assert serialised(given) == before


def test_graphsurgeon_import_domains_are_put_back() -> None:
    graph = _graphsurgeon(MODEL)
    graph.import_domains = None
    bnfold.fold(graph, verify=False)
    assert graph.import_domains is None


@pytest.mark.parametrize("inside", [True, False], ids=["other folder", "current folder"])
def test_onnx_ir_model_with_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    import onnx_ir

    onnx.save(onnx.load(MODEL), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.chdir(tmp_path if not inside else SAMPLES)
    given = onnx_ir.load("m.onnx" if not inside else tmp_path / "m.onnx")
    result = bnfold.fold(given, verify=False)
    assert batch_norms(onnx_ir.to_proto(result.model)) == 0
    assert len(result.save(tmp_path / "out.onnx")) == 2
    assert any(isinstance(value.const_value, onnx_ir.ExternalTensor) for value in given.graph.initializers.values())


def test_external_data_out_of_reach_is_refused(tmp_path: Path) -> None:
    onnx.save(onnx.load(MODEL), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(bnfold.ExternalDataError, match="give the model's path instead"):
        bnfold.fold(onnx.load(tmp_path / "m.onnx", load_external_data=False), verify=False)


@pytest.mark.parametrize("wrong", [None, 3, b"model.onnx", object(), onnx.GraphProto(), ["model.onnx"]], ids=repr)
def test_other_things_are_refused_with_what_is_accepted(wrong: object) -> None:
    for function in (bnfold.fold, bnfold.inspect):
        with pytest.raises(bnfold.UsageError, match=r"is no model; give a path, onnx\.ModelProto, onnx_graphsurgeon"):
            function(wrong)


# -- results ------------------------------------------------------------------------------------------


def test_result_accounts_for_every_batch_norm() -> None:
    result = bnfold.fold(MODEL, skip="/1/*", verify=False)
    assert [entry.name for entry in result.kept] == ["/1/BatchNormalization"]
    assert result.kept[0].reason == "not-chosen"
    assert len(result.folded) == 6
    assert result.report.before.batch_norms == 7 and result.report.after.batch_norms == 1


@pytest.mark.parametrize("pattern", ["/1/BatchNormalization", ("/1/*",), ["/1/Batch?ormalization"]], ids=repr)
def test_patterns_are_a_string_or_several(pattern: Any) -> None:
    assert [entry.name for entry in bnfold.fold(MODEL, only=pattern, verify=False).folded] == ["/1/BatchNormalization"]


def test_pattern_without_a_match_is_told() -> None:
    result = bnfold.fold(MODEL, skip=["/1/*", "bn_9"], verify=False)
    assert result.notices == ("skip 'bn_9' matches the name of no BatchNormalization",)


def test_to_dict_is_plain_data() -> None:
    result = bnfold.fold(MODEL)
    data = json.loads(json.dumps(result.to_dict()))
    assert data["batch_norms"] == {"before": 7, "after": 0}
    assert [entry["outcome"] for entry in data["entries"]] == ["folded"] * 7
    assert data["verification"]["skipped"] == ""
    assert data["verification"]["relation"]["passed"] is True
    assert data["verification"]["static"]["worst_ulp"] <= 1


def test_save_keeps_an_existing_file(tmp_path: Path) -> None:
    result = bnfold.fold(MODEL, verify=False)
    target = tmp_path / "out.onnx"
    target.write_text("mine")
    with pytest.raises(bnfold.OutputError, match="exists already"):
        result.save(target)
    assert target.read_text() == "mine"
    result.save(target, overwrite=True)
    assert result.save(str(tmp_path / "again.onnx"))[0].read_bytes() == target.read_bytes()


# -- verification -------------------------------------------------------------------------------------


def foreign_model() -> ModelProto:
    """Conv + BN + an op that ONNX Runtime doesn't know."""
    rng = np.random.default_rng(0)
    names = {"w": (4, 3, 1, 1), "gamma": (4,), "beta": (4,), "mean": (4,), "var": (4,)}
    tensors = [numpy_helper.from_array(rng.random(shape).astype(np.float32), name) for name, shape in names.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"], name="bn"),
        helper.make_node("Mystery", ["b"], ["y"], domain="nowhere"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, 8, 8]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_relation_is_checked_by_default() -> None:
    verification = bnfold.fold(MODEL).verification
    assert verification.relation is not None and verification.relation.values > 0
    assert verification.relation.worst <= verification.relation.limit
    assert verification.skipped == ""
    assert verification.static.tensors == 14


def test_left_out_when_asked_for() -> None:
    verification = bnfold.fold(MODEL, verify=False).verification
    assert verification.relation is None and verification.skipped == "it was not asked for"


def test_what_onnxruntime_cant_run_is_told_or_an_error() -> None:
    result = bnfold.fold(foreign_model())
    assert len(result.folded) == 1
    assert result.verification.relation is None
    assert "ONNX Runtime can't load it" in result.verification.skipped
    with pytest.raises(bnfold.NotEquivalentError, match="required, can't be made"):
        bnfold.fold(foreign_model(), require_verify=True)


def test_nothing_to_verify_where_nothing_changed() -> None:
    result = bnfold.fold(MODEL, skip="*", require_verify=True)
    assert result.verification.skipped == "nothing was changed"
    assert serialised(result.model) == serialised(onnx.load(MODEL))


def test_failing_relation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.verify import relation

    found = SimpleNamespace(passed=False, worst=123.0, worst_name="x\n", limit=8.0, overflow="")
    monkeypatch.setattr(relation, "check", lambda *_: found)
    with pytest.raises(bnfold.NotEquivalentError, match=r"digits_cnn\.onnx: value 'x\\n': is 123 ×"):
        bnfold.fold(MODEL)


def test_contradicting_arguments() -> None:
    with pytest.raises(bnfold.UsageError):
        bnfold.fold(MODEL, verify=False, require_verify=True)


def test_errors_name_the_file(tmp_path: Path) -> None:
    model = onnx.load(MODEL)
    model.graph.node[3].input[0] = "gone"
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(bnfold.ModelError, match=r"broken\.onnx: node '.*': reads 'gone'"):
        bnfold.fold(tmp_path / "broken.onnx")


# -- the package --------------------------------------------------------------------------------------


def test_public_names() -> None:
    assert sorted(bnfold.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(bnfold))
    for name in PUBLIC:
        assert getattr(bnfold, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bnfold.nothing  # noqa: B018


def in_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_is_lazy() -> None:
    heavy = "{'onnx', 'numpy', 'onnxruntime', 'google.protobuf', 'rich', 'typer', 'logging'}"
    assert in_python(f"import sys, bnfold; bnfold.__version__; print({heavy} & set(sys.modules))") == "set()\n"


@pytest.mark.parametrize(
    "first",
    ["import bnfold.fold", "from bnfold.fold import fold_model", "from bnfold import fold", "import bnfold.api"],
)
def test_fold_is_the_function_whatever_is_imported_first(first: str) -> None:
    code = f"{first}\nimport bnfold\nfrom bnfold.fold import Options\nprint(bnfold.fold)"
    assert "function fold at" in in_python(code)


def test_libraries_of_other_kinds_are_not_imported() -> None:
    libraries = "{'onnx_ir', 'onnx_graphsurgeon', 'torch', 'onnxruntime', 'onnx.reference', 'rich'}"
    code = f"import sys, bnfold; bnfold.fold({str(MODEL)!r}, verify=False).model; print({libraries} & set(sys.modules))"
    assert in_python(code) == "set()\n"
