"""Hostile files through every verb: each is refused in a line that names it, or worked on without a change of function.

Every job has little memory and time (`jail`), so that a bomb that goes off fails its test.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile_graphs
import numpy as np
import pytest
from hostile_graphs import Attack
from hostile_samples import HOSTILE_SAMPLES, IMAGES
from jail import Jail
from onnx import GraphProto, ModelProto, TensorProto
from onnx.helper import make_function, make_graph, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from small_models import array, small_model
from test_external_data import HOSTILE as HOSTILE_DATA_FILES
from test_external_data import W
from test_model_file import NOT_MODELS

import bnfold
from bnfold.errors import ModelError

TABLES = ("TENSORS", "NAMES", "STRUCTURE", "BOMBS", "OPERATORS", "NUMBERS")
ATTACKS: dict[str, Attack] = {}
for table in TABLES:
    ATTACKS |= getattr(hostile_graphs, table)
VERBS = ("fold", "inspect", "verify", "recalibrate", "insert")
# What a job on a file of a few kilobytes may take.
SECONDS, MEGABYTES = 8, 400
# The same for each 10,000 nodes.
NODE_SECONDS = 12
# How far outputs may be from those before `insert`, of their rms: float16's rounding, a few times over.
CHANGE = 1e-2

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def jail() -> Iterator[Jail]:
    cell = Jail()
    yield cell
    cell.close()


def orderly(result: dict[str, Any], seconds: float = SECONDS) -> None:
    """It ended as a program should: done or refused in a line, with little time and memory."""
    assert result["outcome"] in ("done", "refused"), result
    assert result["seconds"] < seconds and result["megabytes"] < MEGABYTES, result
    if result["outcome"] == "refused":
        assert result["message"].isprintable(), "one line, without escapes"


def refused(result: dict[str, Any], file: Path, message: str) -> None:
    orderly(result)
    assert result["outcome"] == "refused", result
    assert re.search(message, result["message"]), result["message"]
    assert result["message"].startswith(f"{file}: ")


def all_refuse(jail: Jail, file: Path, message: str) -> None:
    """Every verb says the same of the file, and leaves nothing beside it."""
    before = sorted(os.listdir(file.parent))
    for result in jail.run_all(dict.fromkeys(VERBS, file)).values():
        refused(result, file, message)
    assert sorted(os.listdir(file.parent)) == before


@pytest.mark.parametrize("name", ATTACKS)
def test_graphs(name: str, jail: Jail, tmp_path: Path) -> None:
    attack, path = ATTACKS[name], tmp_path / "m.onnx"
    path.write_bytes(attack.make().SerializeToString())
    if attack.refused:
        all_refuse(jail, path, attack.refused)
        return
    # A place for another BN is only where there is none; fold comes last: its output is what is looked at.
    bare = tmp_path / "bare.onnx"
    bare.write_bytes(hostile_graphs.without_bn(attack.make()).SerializeToString())
    results = jail.run_all({**dict.fromkeys(VERBS[1:], path), "insert": bare, "fold": path})
    for result in results.values():
        orderly(result)
    folded, inserted = results["fold"], results["insert"]
    assert inserted["outcome"] == "refused" or inserted["change"] < CHANGE, inserted
    assert folded["outcome"] == "done", folded
    assert attack.left in (None, folded["left"])
    if folded["gone"] and not folded["checked"]:
        verdict = jail.run("verify", path, other=str(tmp_path / "out.onnx"))
        orderly(verdict)
        assert verdict["outcome"] == "refused" or verdict["verdict"] != "different", verdict


@pytest.mark.parametrize("table", TABLES)
def test_torch(table: str, jail: Jail, tmp_path: Path) -> None:
    """The way to torch and back: what nobody has trained is the same to the byte."""
    pytest.importorskip("torch", reason="needs torch")
    path = tmp_path / "m.onnx"
    for name, attack in getattr(hostile_graphs, table).items():
        path.write_bytes(attack.make().SerializeToString())
        result = jail.run("torch", path)
        if attack.refused:
            refused(result, path, attack.refused)
        orderly(result)
        assert "internal error" not in result.get("message", ""), name
        assert result["outcome"] == "refused" or result["same"], name
    assert os.listdir(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize(("size", "finite"), [(3e38, False), (1e35, True)])
def test_weights_that_are_damaged_are_no_bug_of_ours(size: float, finite: bool, tmp_path: Path) -> None:
    """Where the model itself computes infinity, and its folded form wouldn't, the model is what is told of."""
    path = tmp_path / "m.onnx"
    path.write_bytes(hostile_graphs.values(w=size, gamma=1e-3)().SerializeToString())
    if finite:
        assert bnfold.fold(path).verification.relation is not None
        return
    with pytest.raises(ModelError, match=r"m\.onnx: value 'b': is not finite in this model .* too large") as told:
        bnfold.fold(path)
    assert "report" not in str(told.value)
    assert bnfold.fold(path, verify=False).folded


@pytest.mark.parametrize("name", hostile_graphs.SIZES)
def test_sizes(name: str, jail: Jail, tmp_path: Path) -> None:
    model = hostile_graphs.SIZES[name].make()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    result = jail.run("plan", tmp_path / "m.onnx")
    assert result["outcome"] == "done", result
    assert result["seconds"] < NODE_SECONDS * len(model.graph.node) / 10_000, result


@pytest.mark.parametrize("name", NOT_MODELS)
def test_files(name: str, jail: Jail, tmp_path: Path) -> None:
    build, message = NOT_MODELS[name]
    path = tmp_path / "m.onnx"
    build(path)
    all_refuse(jail, path, message)


@pytest.mark.parametrize("name", HOSTILE_DATA_FILES)
def test_external_data(name: str, jail: Jail, tmp_path: Path) -> None:
    build, message = HOSTILE_DATA_FILES[name]
    folder = tmp_path / "model"
    folder.mkdir()
    entries: dict[str, str] = {}
    build(folder, entries)
    proto = small_model(w=array(400))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    all_refuse(jail, folder / "m.onnx", f"tensor 'w': .*{message}")


PLACES: dict[str, Callable[[ModelProto, TensorProto], Any]] = {
    "Constant": lambda model, tensor: model.graph.node.append(make_node("Constant", [], ["k"], value=tensor)),
    "body": lambda model, tensor: model.graph.node.append(make_node(
        "If", ["yes"], ["k"], then_branch=holding(tensor), else_branch=holding(tensor))),
    "function": lambda model, tensor: model.functions.append(make_function(
        "f", "g", [], ["k"], [make_node("Constant", [], ["k"], value=tensor)], [make_opsetid("", 17)])),
    "sparse values": lambda model, tensor: model.graph.sparse_initializer.add().values.CopyFrom(tensor),
}  # fmt: skip


def holding(tensor: TensorProto) -> GraphProto:
    """A body that holds a tensor."""
    return make_graph([], "body", [], [make_tensor_value_info(tensor.name, 1, [400])], [tensor])


@pytest.mark.parametrize("place", PLACES)
def test_external_data_in(place: str, jail: Jail, tmp_path: Path) -> None:
    """A foreign file is as foreign to a tensor of a node, a body or a function."""
    (tmp_path / "secret").write_bytes(W)
    folder = tmp_path / "model"
    folder.mkdir()
    tensor = TensorProto(name="hidden", dims=[400], data_type=1, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    model = hostile_graphs.conv_bn()
    model.graph.initializer.append(from_array(np.array(True), "yes"))
    PLACES[place](model, tensor)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    all_refuse(jail, folder / "m.onnx", "'../secret': leads out of the model's folder")


def test_overlapping_external_data(jail: Jail, tmp_path: Path) -> None:
    model = small_model(a=array(400), b=array(400))
    for tensor, offset in zip(model.graph.initializer, ("0", "800"), strict=True):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", offset), ("length", "1600")):
            tensor.external_data.add(key=key, value=value)
    (tmp_path / "w.bin").write_bytes(bytes(2400))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    all_refuse(jail, tmp_path / "m.onnx", "tensor 'b': data file 'w.bin': its bytes overlap those of tensor 'a'")


def test_never_a_byte_of_a_foreign_file(jail: Jail, tmp_path: Path) -> None:
    """A replaced output that names a foreign data file: that is neither read, nor copied, nor deleted."""
    (tmp_path / "secret").write_bytes(W)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(hostile_graphs.conv_bn().SerializeToString())
    old = small_model(w=array(400))
    old.graph.initializer[0].data_location = 1
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "1600")):
        old.graph.initializer[0].external_data.add(key=key, value=value)
    (folder / "out.onnx").write_bytes(old.SerializeToString())
    assert jail.run("fold", folder / "m.onnx")["outcome"] == "done"
    assert sorted(os.listdir(folder)) == ["m.onnx", "out.onnx"]
    assert W[:64] not in (folder / "out.onnx").read_bytes()
    assert (tmp_path / "secret").read_bytes() == W


@pytest.mark.parametrize("name", HOSTILE_SAMPLES)
def test_samples(name: str, jail: Jail, tmp_path: Path) -> None:
    build, message = HOSTILE_SAMPLES[name]
    model, bare, data = tmp_path / "m.onnx", tmp_path / "bare.onnx", tmp_path / "d.npz"
    model.write_bytes(hostile_graphs.conv_bn().SerializeToString())
    bare.write_bytes(hostile_graphs.without_bn(hostile_graphs.conv_bn()).SerializeToString())
    build(data)
    before = sorted(os.listdir(tmp_path))
    for verb, file in (("recalibrate", model), ("insert", bare)):
        refused(jail.run(verb, file, data=str(data)), data, message)
    verified = jail.run("verify", model, data=str(data))
    if name in ("a NaN", "an infinite value"):  # to compare on, they are values like others
        assert verified["verdict"] == "equal", verified
    else:
        refused(verified, data, message)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, jail: Jail, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    build, message = IMAGES[name]
    model, folder = tmp_path / "m.onnx", tmp_path / "images"
    model.write_bytes(hostile_graphs.conv_bn().SerializeToString())
    folder.mkdir()
    build(folder / "a.png")
    refused(jail.run("recalibrate", model, data=str(folder)), folder / "a.png", message)


def test_a_good_model_and_good_samples_pass(jail: Jail, tmp_path: Path) -> None:
    """The jail itself refuses nobody."""
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    model.write_bytes(hostile_graphs.conv_bn().SerializeToString())
    np.savez(data, x=np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32))
    bare = tmp_path / "bare.onnx"
    bare.write_bytes(hostile_graphs.without_bn(hostile_graphs.conv_bn()).SerializeToString())
    given = {verb: {"data": str(data)} for verb in ("verify", "recalibrate", "insert")}
    results = [jail.run(verb, bare if verb == "insert" else model, **given.get(verb, {})) for verb in VERBS]
    assert [result["outcome"] for result in results] == ["done"] * 5, results
    assert results[0]["left"] == 0 and results[2]["verdict"] == "equal" and results[3]["measured"] == 1
    assert results[4]["put in"] == 1
