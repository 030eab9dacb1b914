"""Hostile files through every verb: each is refused in a line that names it, or worked on without a change of function.

Every job has little memory and time (`jail`), so that a bomb that goes off fails its test.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_graphs
import numpy as np
import pytest
from hostile_graphs import Attack
from hostile_samples import HOSTILE_SAMPLES, IMAGES
from jail import Jail
from small_models import array, small_model
from test_external_data import HOSTILE as HOSTILE_DATA_FILES
from test_external_data import W
from test_model_file import NOT_MODELS

TABLES = ("TENSORS", "NAMES", "STRUCTURE", "BOMBS", "OPERATORS", "NUMBERS")
ATTACKS: dict[str, Attack] = {}
for table in TABLES:
    ATTACKS |= getattr(hostile_graphs, table)
VERBS = ("fold", "inspect", "verify", "recalibrate")
# What a job on a file of a few kilobytes may take.
SECONDS, MEGABYTES = 8, 400
# The same for each 10,000 nodes.
NODE_SECONDS = 12

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


@pytest.mark.parametrize("name", ATTACKS)
def test_graphs(name: str, jail: Jail, tmp_path: Path) -> None:
    attack, path = ATTACKS[name], tmp_path / "m.onnx"
    path.write_bytes(attack.make().SerializeToString())
    if attack.refused:
        for verb in VERBS:
            refused(jail.run(verb, path), path, attack.refused)
        assert os.listdir(tmp_path) == ["m.onnx"]
        return
    for verb in VERBS[1:]:
        orderly(jail.run(verb, path))
    (tmp_path / "out.onnx").unlink(missing_ok=True)  # recalibrate's
    folded = jail.run("fold", path)
    orderly(folded)
    assert folded["outcome"] == "done", folded
    assert attack.left in (None, folded["left"])
    if folded["gone"] and not folded["checked"]:
        verdict = jail.run("verify", path, other=str(tmp_path / "out.onnx"))
        orderly(verdict)
        assert verdict["outcome"] == "refused" or verdict["verdict"] != "different", verdict


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
    before = sorted(os.listdir(tmp_path))
    for verb in VERBS:
        refused(jail.run(verb, path), path, message)
    assert sorted(os.listdir(tmp_path)) == before


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
    before = sorted(os.listdir(folder))
    for verb in VERBS:
        refused(jail.run(verb, folder / "m.onnx"), folder / "m.onnx", f"tensor 'w': .*{message}")
    assert sorted(os.listdir(folder)) == before


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
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    model.write_bytes(hostile_graphs.conv_bn().SerializeToString())
    build(data)
    before = sorted(os.listdir(tmp_path))
    refused(jail.run("recalibrate", model, data=str(data)), data, message)
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
    results = [jail.run(verb, model, **({} if verb in ("fold", "inspect") else {"data": str(data)})) for verb in VERBS]
    assert [result["outcome"] for result in results] == ["done"] * 4, results
    assert results[0]["left"] == 0 and results[2]["verdict"] == "equal" and results[3]["measured"] == 1
