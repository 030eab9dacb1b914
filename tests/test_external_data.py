"""Data files: read only where they belong, written beside the model, never lost, never foreign."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from small_models import (
    array,
    contents,
    git_lfs_pointer,
    model_with_tensors_everywhere,
    names,
    same_weights,
    small_model,
    snapshot,
    write_external,
    zeroed,
)

from bnfold.errors import ExternalDataError, quoted
from bnfold.model_file import load, save, to_proto
from bnfold.wire import tensors


def test_external_data_is_read_where_it_is(tmp_path: Path) -> None:
    weights = {"w": array(300, 20), "b": array(3), "e": array(0)}
    model = load(write_external(tmp_path / "in.onnx", **weights))
    for tensor in model.proto.graph.initializer:
        assert model.weights.is_mapped(tensor)
        assert not tensor.external_data
        assert tensor.data_location == TensorProto.DEFAULT
        np.testing.assert_array_equal(model.weights.read(tensor), weights[tensor.name])
    assert contents(to_proto(model))["w"].tolist() == weights["w"].tolist()


def test_external_data_stays_external_and_comes_along(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    weights = {"w": array(1000, 300), "b": array(3), "v": array(600, 500)}
    model = load(write_external(tmp_path / "in" / "m.onnx", "weights.bin", **weights))
    before = snapshot(tmp_path / "in")
    target = tmp_path / "out" / "n.onnx"
    assert save(model, target) == [target, tmp_path / "out" / "n.onnx.data"]
    assert same_weights(target, **weights)
    assert snapshot(tmp_path / "in") == before
    onnx.checker.check_model(str(target))
    offsets = [
        int(entry.value)
        for tensor in onnx.load(target, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert offsets == [0, 1_200_000, 19 * 65536], "the large ones start where any system can map them"
    again = load(target)
    save(again, target, overwrite=True)
    assert names(tmp_path / "out") == ["n.onnx", "n.onnx.data"], "the same data keep their file"


def test_external_tensors_in_nodes_bodies_and_functions(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    proto = model_with_tensors_everywhere()
    expected = [numpy_helper.to_array(tensor) for tensor, _ in tensors(proto)]
    with (tmp_path / "in" / "w.bin").open("wb") as file:
        for tensor, _ in tensors(proto):
            onnx.external_data_helper.set_external_data(tensor, "w.bin", file.tell(), len(tensor.raw_data))
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
    (tmp_path / "in" / "m.onnx").write_bytes(proto.SerializeToString())
    save(load(tmp_path / "in" / "m.onnx"), tmp_path / "out" / "m.onnx")
    shutil.rmtree(tmp_path / "in")
    moved = load(tmp_path / "out" / "m.onnx")
    for (tensor, _), value in zip(tensors(moved.proto), expected, strict=True):
        np.testing.assert_array_equal(moved.weights.read(tensor), value)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    path = write_external(tmp_path / "in.onnx", a=array(3000), b=array(3000))
    proto = onnx.load(path, load_external_data=False)
    del proto.graph.initializer[1].external_data[:]
    proto.graph.initializer[1].external_data.extend(proto.graph.initializer[0].external_data)
    path.write_bytes(proto.SerializeToString())
    save(load(path), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size == 12000
    assert same_weights(tmp_path / "out.onnx", a=array(3000), b=array(3000))


def test_new_large_tensors_join_the_external_ones(tmp_path: Path) -> None:
    model = load(write_external(tmp_path / "in.onnx", w=array(300)))
    zeroed(model, "w")
    for name, count in (("large", 256), ("small", 255)):
        tensor = model.proto.graph.initializer.add(name=name, dims=[count], data_type=TensorProto.FLOAT)
        model.weights.defer(tensor, lambda count=count: iter([np.ones(count, np.float32)]))
    save(model, tmp_path / "out.onnx")
    stored = {
        t.name: t.data_location for t in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    }
    assert stored == {"w": TensorProto.EXTERNAL, "large": TensorProto.EXTERNAL, "small": TensorProto.DEFAULT}
    assert same_weights(
        tmp_path / "out.onnx", w=np.zeros(300, "f4"), large=np.ones(256, "f4"), small=np.ones(255, "f4")
    )


Entries = dict[str, str]
W = array(400).tobytes()


def tied(folder: Path, entries: Entries) -> None:
    (folder / "w.bin").write_bytes(W)
    entries.update(location="w.bin", offset="0", length=str(len(W)))


def hostile(**changed: str) -> Callable[[Path, Entries], None]:
    def build(folder: Path, entries: Entries) -> None:
        tied(folder, entries)
        entries.update(changed)

    return build


def outside(folder: Path) -> Path:
    """A file that no model may read."""
    secret = folder.parent / "secret"
    secret.write_bytes(W)
    return secret


def parent_folder(folder: Path, entries: Entries) -> None:
    outside(folder)
    entries.update(location="../secret")


def absolute(folder: Path, entries: Entries) -> None:
    entries.update(location=str(outside(folder)))


def link_out(folder: Path, entries: Entries) -> None:
    (folder / "w.bin").symlink_to(outside(folder))
    entries.update(location="w.bin")


def folder_link_out(folder: Path, entries: Entries) -> None:
    outside(folder)
    (folder / "sub").symlink_to(folder.parent)
    entries.update(location="sub/secret")


def hard_link_out(folder: Path, entries: Entries) -> None:
    (folder / "w.bin").hardlink_to(outside(folder))
    entries.update(location="w.bin")


def fifo(folder: Path, entries: Entries) -> None:
    os.mkfifo(folder / "w.bin")
    entries.update(location="w.bin")


def subfolder(folder: Path, entries: Entries) -> None:
    (folder / "w.bin").mkdir()
    entries.update(location="w.bin")


def device(folder: Path, entries: Entries) -> None:
    (folder / "w.bin").symlink_to(os.devnull)
    entries.update(location="w.bin")


def short(folder: Path, entries: Entries) -> None:
    tied(folder, entries)
    (folder / "w.bin").write_bytes(W[:-1])


def pointer(folder: Path, entries: Entries) -> None:
    tied(folder, entries)
    git_lfs_pointer(folder / "w.bin")


def linked_to_the_model(folder: Path, entries: Entries) -> None:
    (folder / "w.bin").symlink_to("m.onnx")
    entries.update(location="w.bin")


def the_models_other_name(folder: Path, entries: Entries) -> None:
    (folder / "m.onnx").touch()
    (folder / "w.bin").hardlink_to(folder / "m.onnx")
    entries.update(location="w.bin")


HOSTILE: dict[str, tuple[Callable[[Path, Entries], None], str]] = {
    "parent folder": (parent_folder, "leads out of the model's folder"),
    "hidden parent folder": (hostile(location="a/../../secret"), "leads out of the model's folder"),
    "absolute path": (absolute, "leads out of the model's folder"),
    "link out": (link_out, "is a link that leaves the model's folder"),
    "link of a folder out": (folder_link_out, "is a link that leaves the model's folder"),
    "hard link out": (hard_link_out, "a hard link"),
    "missing": (lambda folder, entries: entries.update(location="w.bin"), "no such file"),
    "no location": (lambda folder, entries: None, "this is no file name"),
    "NUL": (hostile(location="w.bin\0"), "this is no file name"),
    "newline": (hostile(location="w.bin\n"), "this is no file name"),
    "FIFO": (fifo, "is a FIFO"),
    "folder": (subfolder, "is a folder"),
    "device": (device, "leaves the model's folder"),
    "the model itself": (hostile(location="m.onnx"), "is the model itself"),
    "a link to the model": (linked_to_the_model, "is the model itself"),
    "another name of the model": (the_models_other_name, "is the model itself"),
    "short": (short, "has 1599 bytes, and 1600 are wanted from byte 0 on; is it complete"),
    "Git LFS pointer": (pointer, "git lfs pull"),
    "wrong length": (hostile(length="1596"), r"1596 bytes are kept there, and FLOAT\[400\] takes 1600"),
    "offset past the end": (hostile(offset="4000"), "has 1600 bytes, and 1600 are wanted from byte 4000"),
    "offset near the end": (hostile(offset="4"), "has 1600 bytes"),
    "overflowing offset": (hostile(offset=str(2**64 - 4)), "is no number of bytes"),
    "large offset": (hostile(offset=str(2**63 - 1)), "has 1600 bytes"),
    "negative offset": (hostile(offset="-4"), "its offset is '-4', which is no number of bytes"),
    "negative length": (hostile(length="-4"), "its length is '-4', which is no number of bytes"),
    "overflowing length": (hostile(length=str(2**64 + 1600)), "is no number of bytes"),
    "length past the end": (hostile(length="1604"), "has 1600 bytes, and 1604 are wanted"),
    "length that is no number": (hostile(length="1e3"), "its length is '1e3'"),
    "Arabic digits": (hostile(offset="٠"), "is no number of bytes"),
}


@pytest.mark.parametrize(("build", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_external_data(build: Callable[[Path, Entries], None], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    entries: Entries = {}
    build(folder, entries)
    proto = small_model(w=array(400))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ExternalDataError, match=message) as caught:
        load(folder / "m.onnx")
    named = quoted(entries.get("location", ""))
    assert str(caught.value).startswith(f"{folder / 'm.onnx'}: tensor 'w': data file {named}: ")
    assert str(caught.value).isprintable()


def test_links_and_folders_inside_are_fine(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = write_external(tmp_path / "m.onnx", "w.bin", w=array(400))
    os.replace(tmp_path / "w.bin", tmp_path / "sub" / "real.bin")
    (tmp_path / "w.bin").symlink_to("sub/real.bin")
    model = load(path)
    np.testing.assert_array_equal(model.weights.read(model.proto.graph.initializer[0]), array(400))


@pytest.mark.parametrize("key", ["location", "offset", "length"])
def test_an_entry_given_twice_is_refused(key: str, tmp_path: Path) -> None:
    path = write_external(tmp_path / "m.onnx", w=array(400))
    proto = onnx.load(path, load_external_data=False)
    entries = proto.graph.initializer[0].external_data
    entries.add().CopyFrom(next(entry for entry in entries if entry.key == key))
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ExternalDataError, match=f"'{key}' is given twice"):
        load(path)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    path = write_external(tmp_path / "m.onnx", a=array(400), b=array(400))
    proto = onnx.load(path, load_external_data=False)
    next(e for e in proto.graph.initializer[1].external_data if e.key == "offset").value = "800"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ExternalDataError, match=r"tensor 'b': .* its bytes overlap those of tensor 'a'"):
        load(path)


def external(path: Path, *tensors_of: dict[str, Any]) -> Path:
    """A model beside w.bin, whose tensors are described by fields, external entries by `at`."""
    (path.parent / "w.bin").write_bytes(W)
    proto = small_model()
    for fields in tensors_of:
        entries = fields.pop("at")
        tensor = proto.graph.initializer.add(data_location=TensorProto.EXTERNAL, **fields)
        for key, value in {"location": "w.bin", **entries}.items():
            tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString())
    return path


def test_without_offset_and_length_a_tensor_is_the_whole_file(tmp_path: Path) -> None:
    model = load(external(tmp_path / "m.onnx", {"name": "w", "dims": [400], "data_type": 1, "at": {}}))
    np.testing.assert_array_equal(model.weights.read(model.proto.graph.initializer[0]), array(400))


def test_strings_are_no_external_data(tmp_path: Path) -> None:
    path = external(tmp_path / "m.onnx", {"name": "s", "dims": [4], "data_type": TensorProto.STRING, "at": {}})
    with pytest.raises(ExternalDataError, match=r"tensor 's': data file 'w.bin': strings can't be kept in a data file"):
        load(path)


def test_external_data_of_a_type_that_nobody_knows_come_along(tmp_path: Path) -> None:
    at = {"offset": 16, "length": 100}
    model = load(external(tmp_path / "m.onnx", {"name": "u", "dims": [7], "data_type": 99, "at": at}))
    assert save(model, tmp_path / "out.onnx")[1].read_bytes() == W[16:116]


def test_an_empty_tensor_overlaps_nothing(tmp_path: Path) -> None:
    empty = {"name": "e", "dims": [0], "data_type": 1, "at": {"offset": 800, "length": 0}}
    whole = {"name": "w", "dims": [400], "data_type": 1, "at": {}}
    for order in ((empty, whole), (whole, empty)):
        assert len(load(external(tmp_path / "m.onnx", *map(dict, order))).proto.graph.initializer) == 2


def test_a_link_that_comes_after_the_look_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was a file when its name was resolved is a link when it is opened."""
    path = external(tmp_path / "m.onnx", {"name": "w", "dims": [400], "data_type": 1, "at": {}})
    os.replace(tmp_path / "w.bin", tmp_path / "real.bin")
    (tmp_path / "w.bin").symlink_to("real.bin")
    assert load(path)
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)
    with pytest.raises(ExternalDataError, match=r"data file 'w.bin': can't be opened"):
        load(path)
