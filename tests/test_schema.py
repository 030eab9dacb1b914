"""What scripts rely on: every verb's JSON is as `bnfold/schema.json` says, and says no more than that."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from command import conv_bn
from conftest import REPO
from onnx import numpy_helper
from test_cli_states import command

import bnfold
from bnfold import inspection, report
from bnfold.insert.api import Inserted
from bnfold.insert.difference import Difference
from bnfold.insert.sites import Left
from bnfold.verify.compare import Settings
from bnfold.verify.comparison import Comparison, OutputReport, SegmentReport
from bnfold.verify.relation import OutputDeviation, RelationCheck
from bnfold.verify.signature import Signature
from bnfold.verify.static import StaticProof

SCHEMA = json.loads((REPO / "bnfold" / "schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SAMPLES = REPO / "sample_models"
MODEL, DIGITS = str(SAMPLES / "digits_cnn.onnx"), f"{SAMPLES / 'digits.npz'}:calib_x"
METRIC = "def quality(run, *rest):\n    return 0.5\n"

# Verbs as they are used, and with the options that add to what they tell. Names are files of `world`.
COMMANDS = {
    "fold": ("fold", MODEL, "--dry-run"),
    "fold, fully verified": ("fold", "conv.onnx", "--dry-run", "--verify", "full"),
    "fold, kept": ("fold", MODEL, "--dry-run", "--no-verify", "--skip", "/1/*"),
    "fold, merged": ("fold", "branches.onnx", "--dry-run", "--no-verify"),
    "fold, many": ("fold", "conv.onnx", "none.onnx", "--dry-run", "--no-verify"),
    "inspect": ("inspect", MODEL),
    "inspect, training": ("inspect", "training.onnx"),
    "inspect, many": ("inspect", "conv.onnx", "none.onnx", "--check"),
    "verify, equal": ("verify", "conv.onnx", "folded.onnx"),
    "verify, different": ("verify", "conv.onnx", "wrong.onnx"),
    "verify, signature": ("verify", "conv.onnx", MODEL),
    "verify, optimised": ("verify", "conv.onnx", "--optimized"),
    "recalibrate": ("recalibrate", MODEL, "--data", DIGITS, "--dry-run", "--samples", "32"),
    "recalibrate, judged": (
        *("recalibrate", MODEL, "--data", f"{SAMPLES / 'digits.npz'}:test_x", "--labels", "test_y", "--samples", "64"),
        *("--metric", "metric.py:quality", "--undo", "undo.npz", "-o", "new.onnx", "--batch-size", "16"),
    ),
    "restore": ("recalibrate", "new.onnx", "--restore", "undo.npz", "--dry-run"),
    "insert": ("insert", "bare.onnx", "--data", DIGITS, "--dry-run", "--samples", "32"),
    "insert, fresh": ("insert", "folded.onnx", "--mode", "fresh", "--dry-run"),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schema")
    onnx.save(conv_bn(), folder / "conv.onnx")
    folded = bnfold.fold(conv_bn(), verify=False).model
    onnx.save(folded, folder / "folded.onnx")
    bnfold.fold(MODEL, verify=False).save(folder / "bare.onnx")
    wrong = numpy_helper.to_array(folded.graph.initializer[0]) * np.float32(1.01)
    folded.graph.initializer[0].CopyFrom(numpy_helper.from_array(wrong, folded.graph.initializer[0].name))
    onnx.save(folded, folder / "wrong.onnx")
    training = conv_bn()
    training.graph.node[1].attribute.append(onnx.helper.make_attribute("training_mode", 1))
    training.graph.node[1].input[1] = "scale"
    training.graph.input.append(onnx.helper.make_tensor_value_info("scale", 1, [4]))
    onnx.save(training, folder / "training.onnx")
    onnx.save(branches(), folder / "branches.onnx")
    (folder / "none.onnx").write_text("none")
    (folder / "metric.py").write_text(METRIC)
    return folder


def branches() -> onnx.ModelProto:
    """Two Convs of one tensor, added."""
    proto = conv_bn()
    nodes = proto.graph.node
    nodes.append(onnx.helper.make_node("Conv", ["x", "w"], ["d"], name="second"))
    nodes.append(onnx.helper.make_node("Add", ["b", "d"], ["e"], name="add"))
    nodes[2].input[0] = "e"
    ordered = [nodes[0], nodes[1], nodes[3], nodes[4], nodes[2]]
    again = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del nodes[:]
    nodes.extend(again)
    return proto


_GIVEN: dict[str, dict[str, Any]] = {}


@pytest.fixture
def given(world: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """The JSON of a command, run once."""
    monkeypatch.chdir(world)

    def run(name: str) -> dict[str, Any]:
        if name == "restore":
            run("recalibrate, judged")
        if name not in _GIVEN:
            code, out, said = command(*COMMANDS[name], "--json")
            assert code in (0, 1, 2) and out, said
            _GIVEN[name] = json.loads(out)
        return _GIVEN[name]

    return run


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", COMMANDS)
def test_output_is_as_the_schema_says(name: str, given: Callable[[str], dict[str, Any]]) -> None:
    found = given(name)
    VALIDATOR.validate(found)
    verb = name.partition(",")[0] + ("-many" if name.endswith("many") else "")
    assert found["schema"] == f"bnfold:{verb}:1"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_field_that_the_schema_does_not_know_is_refused(name: str, given: Callable[[str], dict[str, Any]]) -> None:
    """At every depth, but where names are data."""
    found = given(name)
    for path in _objects(found):
        if path and path[-1] in ("data_files", "opsets", "versions"):
            continue
        changed = copy.deepcopy(found)
        _at(changed, path)["new"] = 1
        assert not VALIDATOR.is_valid(changed), path


@pytest.mark.parametrize("name", COMMANDS)
def test_a_field_that_is_missing_is_refused(name: str, given: Callable[[str], dict[str, Any]]) -> None:
    found = given(name)
    for key in found.keys() - {"accuracy", "metric"}:
        assert not VALIDATOR.is_valid({k: value for k, value in found.items() if k != key}), key


def _objects(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all objects; of a list's alike items, the first."""
    if isinstance(data, dict):
        yield path
        for key, value in data.items():
            yield from _objects(value, (*path, key))
    elif isinstance(data, list) and data:
        yield from _objects(data[0], (*path, 0))


def _at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def test_samples_show_what_is_optional(given: Callable[[str], dict[str, Any]]) -> None:
    """Else the tests above would not see it."""
    assert given("fold, fully verified")["verification"]["comparison"]["verdict"] == "equal"
    assert given("fold, merged")["merges"] and given("fold, kept")["entries"][0]["reason"] == "not-chosen"
    assert given("verify, different")["first"] and given("verify, signature")["signature"]["differences"]
    assert given("recalibrate, judged").keys() > {"accuracy", "metric"}
    assert given("insert, fresh")["sites"] and given("insert")["left"]
    assert given("fold, many")["models"][1]["error"]
    assert given("inspect, training")["batch_norms"][0]["statistics"] is None


DEFS = SCHEMA["$defs"]
_VERIFY, _FOLD = DEFS["verify"]["properties"], DEFS["fold"]["properties"]["verification"]["properties"]
_INSPECT, _INSERT = DEFS["inspect"]["properties"], DEFS["insert"]["properties"]
DESCRIBED = {
    report.Entry: DEFS["entry"],
    report.Merge: DEFS["merge"],
    StaticProof: _FOLD["static"],
    OutputDeviation: _FOLD["relation"]["anyOf"][0]["properties"]["outputs"]["items"],
    RelationCheck: _FOLD["relation"]["anyOf"][0],
    inspection.ModelFacts: _INSPECT["model"],
    inspection.BatchNorm: _INSPECT["batch_norms"]["items"],
    inspection.Statistics: _INSPECT["batch_norms"]["items"]["properties"]["statistics"]["anyOf"][0],
    inspection.Neighbour: DEFS["neighbour"],
    inspection.Port: DEFS["port"],
    Comparison: DEFS["comparison"],
    SegmentReport: DEFS["segment"],
    OutputReport: _VERIFY["outputs"]["items"],
    Signature: _VERIFY["signature"],
    Settings: _VERIFY["settings"],
    Inserted: _INSERT["sites"]["items"],
    Left: _INSERT["left"]["items"],
    Difference: _INSERT["difference"]["anyOf"][0],
}
# By `to_dict`.
ADDED = {
    RelationCheck: {"passed"},
    Settings: {"seeds_of_noise", "limits", "versions"},
    Comparison: {"schema_version"},
}


@pytest.mark.parametrize("kind", DESCRIBED, ids=lambda kind: kind.__name__)
def test_every_field_is_described(kind: Any) -> None:
    """Those that no sample above has, too."""
    fields = {field.name for field in dataclasses.fields(kind)}
    assert DESCRIBED[kind]["properties"].keys() == fields | ADDED.get(kind, set())


def test_verify_and_the_comparison_in_a_fold_are_alike() -> None:
    inside = DEFS["comparison"]["properties"]
    assert {key: _VERIFY[key] for key in inside} == inside


def test_objects_are_closed() -> None:
    """Each says which fields it has, or of which type those are whose names are data."""

    def walk(part: Any) -> Iterator[dict[str, Any]]:
        if isinstance(part, dict):
            if part.get("type") == "object" and "$defs" not in part:
                yield part
            part = list(part.values())
        if isinstance(part, list):
            for each in part:
                yield from walk(each)

    found = list(walk(SCHEMA))
    assert len(found) > 30
    assert all("additionalProperties" in each and each["additionalProperties"] is not True for each in found)


def test_the_page_names_every_kind() -> None:
    page = (REPO / "docs" / "schema.md").read_text("utf-8")
    kinds = {name.split(":")[1] for name in SCHEMA["properties"]["schema"]["enum"]}
    assert kinds == set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == DEFS.keys() & kinds
