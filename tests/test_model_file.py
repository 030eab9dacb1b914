"""Reading: what a file holds, where it is, and files that hold something else."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from small_models import (
    array,
    contents,
    git_lfs_pointer,
    model_with_tensors_everywhere,
    names,
    same_weights,
    small_model,
    write,
    write_external,
)

from bnfold import model_file
from bnfold.errors import BnfoldError, ExternalDataError, ModelError
from bnfold.model_file import Weights, load, save, structure, to_proto, wrap
from bnfold.weights import TOKEN_SIZE
from bnfold.wire import encode_varint, tensors

HYDRATED = [
    "bn_odd_places.dynamo18", "crnn.dynamo18", "dcgan_d.legacy11", "eegnet.legacy13", "gru_bn.legacy13",
    "hand_ir3_opset9.hand9", "hand_matmul_reshape_a.hand17", "keras_mlp.tf2onnx15", "linbn_tokens_flat.legacy17",
    "mlp_pre.legacyF11", "siamese.dynamo20", "simsiam.legacy17",
]  # fmt: skip


# --- what isn't touched stays byte for byte


def test_round_trip_of_real_models(real_model: Path, tmp_path: Path) -> None:
    assert save(load(real_model), tmp_path / "out.onnx") == [tmp_path / "out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == real_model.read_bytes()


@pytest.mark.parametrize("name", HYDRATED)
def test_round_trip_of_exported_models(name: str, hydrated: Callable[[str], Path], tmp_path: Path) -> None:
    path = hydrated(name)
    save(load(path), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    assert to_proto(load(path)).SerializeToString() == path.read_bytes()


def test_tensors_everywhere(tmp_path: Path) -> None:
    original = model_with_tensors_everywhere()
    (tmp_path / "in.onnx").write_bytes(original.SerializeToString())
    model = load(tmp_path / "in.onnx")
    found = [tensor for tensor, _ in tensors(model.proto)]
    large = [tensor for tensor in found if model.weights.is_mapped(tensor)]
    assert len(large) == 22, "2 for each of 6 graphs, 2 in an attribute, 2 in each of 2 sparse tensors and 2 functions"
    assert all(len(tensor.raw_data) == TOKEN_SIZE for tensor in large)
    for tensor, (before, _) in zip(found, tensors(original), strict=True):
        np.testing.assert_array_equal(model.weights.read(tensor), numpy_helper.to_array(before))
    save(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()


def test_tokens_travel_with_their_tensors(tmp_path: Path) -> None:
    weights = {"w": array(400), "small": array(3)}
    model = load(write(tmp_path / "in.onnx", **weights))
    graph = model.proto.graph
    graph.initializer.add().CopyFrom(graph.initializer[0])
    graph.initializer[-1].name = "twin"
    graph.node.append(helper.make_node("Constant", [], ["c"], value=graph.initializer[0]))
    del graph.initializer[0]
    save(model, tmp_path / "out.onnx")
    assert same_weights(tmp_path / "out.onnx", small=weights["small"], twin=weights["w"])
    constant = onnx.load(tmp_path / "out.onnx").graph.node[-1].attribute[0].t
    np.testing.assert_array_equal(numpy_helper.to_array(constant), weights["w"])


# --- tensors as references

NUMERIC = [number for name, number in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")]


@pytest.mark.parametrize("count", [0, 1, 7, 4097])
@pytest.mark.parametrize("data_type", NUMERIC, ids=TensorProto.DataType.Name)
def test_read_gives_what_onnx_gives(data_type: int, count: int, tmp_path: Path) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    expected = np.random.default_rng(count).integers(0, 2, count).astype(dtype)
    tensor = numpy_helper.from_array(expected, "w")
    tensor.data_type = data_type
    model = small_model()
    model.graph.initializer.append(tensor)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    loaded = load(tmp_path / "m.onnx")
    reference = loaded.proto.graph.initializer[0]
    found = loaded.weights.read(reference)
    assert found.dtype == expected.dtype
    assert not found.flags.writeable
    assert found.tobytes() == expected.tobytes()  # bytes: some of these types turn 0 into NaN
    assert loaded.weights.nbytes(reference) == len(tensor.raw_data)
    assert loaded.weights.is_mapped(reference) == (len(tensor.raw_data) >= 1024)


def test_strings_and_typed_fields_are_read(tmp_path: Path) -> None:
    model = small_model()
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [2], [b"a", "ö".encode()]))
    model.graph.initializer.append(helper.make_tensor("f", TensorProto.FLOAT, [2, 300], [1.5] * 600))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    loaded = load(tmp_path / "m.onnx")
    text, floats = loaded.proto.graph.initializer
    assert loaded.weights.read(text).tolist() == ["a", "ö"]
    assert loaded.weights.nbytes(text) == 3
    assert loaded.weights.read(floats).shape == (2, 300)
    assert loaded.weights.nbytes(floats) == 2400


def test_a_deferred_tensor_is_made_when_wanted(tmp_path: Path) -> None:
    model = load(write(tmp_path / "in.onnx", w=array(30, 40), v=array(5)))
    made: list[int] = []

    def make() -> Iterator[np.ndarray[Any, Any]]:
        for row in range(30):
            made.append(row)
            yield np.full((1, 40), row, np.float32)

    first, second = model.proto.graph.initializer
    model.weights.defer(first, make)
    model.weights.defer(second, lambda: iter([np.arange(5, dtype=np.float32)]))
    assert not model.weights.is_mapped(first)
    assert model.weights.nbytes(first) == 4800
    assert not made
    expected = np.repeat(np.arange(30, dtype=np.float32), 40).reshape(30, 40)
    np.testing.assert_array_equal(model.weights.read(first), expected)
    assert len(made) == 30
    save(model, tmp_path / "out.onnx")
    assert same_weights(tmp_path / "out.onnx", w=expected, v=np.arange(5, dtype=np.float32))
    assert contents(to_proto(model))["w"].tolist() == expected.tolist()


BAD_CHUNKS: dict[str, Callable[[], Iterator[np.ndarray[Any, Any]]]] = {
    "too short": lambda: iter([np.zeros(299, np.float32)]),
    "too long": lambda: iter([np.zeros(300, np.float32), np.zeros(1, np.float32)]),
    "without end": lambda: (np.zeros(10, np.float32) for _ in iter(int, 1)),
    "another type": lambda: iter([np.zeros(150, np.float64)]),
}


@pytest.mark.parametrize("make", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
def test_a_recipe_that_breaks_its_word_is_a_bug(
    make: Callable[[], Iterator[np.ndarray[Any, Any]]], tmp_path: Path
) -> None:
    model = load(write(tmp_path / "in.onnx", w=array(300)))
    model.weights.defer(model.proto.graph.initializer[0], make)
    with pytest.raises(RuntimeError, match=r"internal error in bnfold: tensor 'w': .*please report"):
        save(model, tmp_path / "out.onnx")
    with pytest.raises(RuntimeError, match="internal error"):
        model.weights.read(model.proto.graph.initializer[0])
    assert names(tmp_path) == ["in.onnx"]


def test_bfloat16_can_be_deferred(tmp_path: Path) -> None:
    bfloat16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    model = load(write(tmp_path / "in.onnx"))
    tensor = model.proto.graph.initializer.add(name="w", dims=[700], data_type=TensorProto.BFLOAT16)
    model.weights.defer(tensor, lambda: iter([array(700).astype(bfloat16)]))
    save(model, tmp_path / "out.onnx")
    assert same_weights(tmp_path / "out.onnx", w=array(700).astype(bfloat16))


def test_a_token_in_another_model_is_a_bug(tmp_path: Path) -> None:
    one, other = (load(write(tmp_path / name, w=array(300))) for name in ("a.onnx", "b.onnx"))
    other.proto.graph.initializer[0].CopyFrom(one.proto.graph.initializer[0])
    with pytest.raises(RuntimeError, match="moved to another model"):
        save(other, tmp_path / "out.onnx")
    assert names(tmp_path) == ["a.onnx", "b.onnx"]


def test_a_token_outside_of_raw_data_is_a_bug(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.onnx", w=array(400)))
    token = model.proto.graph.initializer[0].raw_data
    model.proto.graph.initializer.add(name="s", data_type=TensorProto.STRING, dims=[1], string_data=[token])
    with pytest.raises(RuntimeError, match="a token outside of a tensor's raw_data; please report"):
        save(model, tmp_path / "out.onnx")
    assert names(tmp_path) == ["m.onnx"]


def test_more_than_a_token_in_a_tensor_is_a_bug(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.onnx", w=array(400)))
    model.proto.graph.initializer[0].raw_data += b"more"
    with pytest.raises(RuntimeError, match="part of a token in a tensor; please report it"):
        save(model, tmp_path / "out.onnx")
    assert names(tmp_path) == ["m.onnx"]


def test_structure_has_shapes_and_no_weights(real_models: list[Path]) -> None:
    for path in real_models:
        model = load(path)
        before = model.proto.SerializeToString()
        light = structure(model)
        assert [list(t.dims) for t, _ in tensors(light)] == [list(t.dims) for t, _ in tensors(model.proto)]
        assert not any(model.weights.source(tensor) for tensor, _ in tensors(light))
        assert model.proto.SerializeToString() == before


def test_a_copy_is_edited_alone(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.onnx", w=array(400)))
    copy = model.copy()
    copy.proto.graph.initializer[0].name = "v"
    assert model.proto.graph.initializer[0].name == "w" and copy.path == model.path
    np.testing.assert_array_equal(copy.weights.read(copy.proto.graph.initializer[0]), array(400))


def test_a_proto_holds_what_protobuf_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.onnx", w=array(400))
    monkeypatch.setattr(model_file, "MAX_FILE_SIZE", path.stat().st_size)
    assert to_proto(load(path)).SerializeToString() == path.read_bytes()
    monkeypatch.setattr(model_file, "MAX_FILE_SIZE", path.stat().st_size - 1)
    with pytest.raises(ModelError, match="larger than 2 GiB"):
        to_proto(wrap(ModelProto.FromString(path.read_bytes())))


@pytest.mark.parametrize("error", [EncodeError("too large"), ValueError("too large")])
def test_a_structure_that_protobuf_cannot_write(error: Exception) -> None:
    class Large:
        def SerializeToString(self) -> bytes:
            raise error

    with pytest.raises(ModelError, match=r"m\.onnx: is larger than 2 GiB in memory; save it with external data"):
        model_file._serialise(Large(), Path("m.onnx"))


@pytest.mark.parametrize(("room", "files"), [(0, 1), (-1, 2)])
def test_a_file_holds_what_protobuf_can_hold(
    room: int, files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.onnx", w=array(400))
    model = load(path)
    monkeypatch.setattr(model_file, "MAX_FILE_SIZE", path.stat().st_size + room)
    assert len(save(model, tmp_path / "out.onnx")) == files
    if room == 0:
        assert load(path)
        return
    with pytest.raises(ModelError, match="it is larger than 2 GiB"):
        load(path)


def test_structure_keeps_what_shapes_are_made_of(tmp_path: Path) -> None:
    """Small tensors are whole, wherever in the file they are: a Reshape's shape is one."""
    shapes = {f"shape{number}": np.array([2, 2]) for number in range(100)}
    found = structure(load(write(tmp_path / "m.onnx", w=array(4000), **shapes)))
    sizes = {tensor.name: len(tensor.raw_data) for tensor in found.graph.initializer}
    assert sizes == {"w": 0} | dict.fromkeys(shapes, 16)


def test_a_model_in_memory_is_used_as_it_is(tmp_path: Path) -> None:
    proto = small_model(w=array(500), b=array(3))
    model = wrap(proto)
    assert model.proto is proto
    assert model.path is None
    assert len(proto.graph.initializer[0].raw_data) == 2000
    np.testing.assert_array_equal(model.weights.read(proto.graph.initializer[0]), array(500))
    assert not structure(model).graph.initializer[0].raw_data
    save(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == proto.SerializeToString()
    assert to_proto(model) == proto


def test_external_data_of_a_model_in_memory(tmp_path: Path) -> None:
    path = write_external(tmp_path / "in.onnx", w=array(500))
    proto = onnx.load(path, load_external_data=False)
    lost = wrap(proto)
    for use in (to_proto, lambda model: save(model, tmp_path / "out.onnx")):
        with pytest.raises(ExternalDataError, match="tensor 'w': is kept in a data file"):
            use(lost)
    with pytest.raises(ExternalDataError, match="give the model's path"):
        lost.weights.read(proto.graph.initializer[0])
    np.testing.assert_array_equal(contents(to_proto(wrap(proto, tmp_path)))["w"], array(500))
    with pytest.raises(ExternalDataError, match="no such file"):
        wrap(onnx.load(path, load_external_data=False), tmp_path.parent)


def test_twenty_thousand_nodes(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], pads=[1, 1, 1, 1]) for i in range(20_000)]
    path = tmp_path / "long.onnx"
    path.write_bytes(helper.make_model(helper.make_graph(nodes, "g", [], [])).SerializeToString())
    begin = time.process_time()
    save(load(path), tmp_path / "out.onnx")
    assert time.process_time() - begin < 2, "0.25 s on the machine where this was written"
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


# --- files that are no models


def zip_file(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights", "1234")


def socket_file(path: Path) -> None:
    """Bound by its name alone: a path as long as a test's is none for a socket."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(before)


def truncated(path: Path) -> None:
    path.write_bytes(small_model(w=array(5000)).SerializeToString()[:-5000])


def deep(path: Path) -> None:
    """Bodies in bodies, 500 times; protobuf counts three messages for each."""
    blob = b""
    for _ in range(500):
        for number in (6, 5, 1):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            blob = bytes([number << 3 | 2]) + encode_varint(len(blob)) + blob
    path.write_bytes(b"\x3a" + encode_varint(len(blob)) + blob)


def wrong_raw_data(path: Path) -> None:
    model = small_model(w=array(400))
    model.graph.initializer[0].raw_data += b"\0\0\0\0"
    path.write_bytes(model.SerializeToString())


def with_tensor(**fields: Any) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        model = small_model()
        model.graph.initializer.append(TensorProto(name="w", **fields))
        path.write_bytes(model.SerializeToString())

    return build


NOT_MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "no such file"),
    "a folder": (Path.mkdir, "is a folder, not a file"),
    "a FIFO": (os.mkfifo, "is a FIFO, not a file"),
    "a link to a FIFO": (lambda p: (os.mkfifo(p.with_name("f")), p.symlink_to("f")), "is a FIFO, not a file"),
    "a socket": (socket_file, "is a socket, not a file"),
    "a device": (lambda path: path.symlink_to(os.devnull), "is a device, not a file"),
    "a loop of links": (lambda path: path.symlink_to(path.name), "can't be opened"),
    "empty": (Path.touch, "it is empty"),
    "garbage": (lambda p: p.write_bytes(bytes(range(255, 0, -1)) * 40), "is not an ONNX model, or not all of one"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "is not an ONNX model"),
    "truncated": (truncated, "cut short"),
    "another protobuf": (lambda path: path.write_bytes(b"\x0a\x03abc"), "it holds no graph"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(small_model().SerializeToString())), "compressed with gzip"),
    "zip": (zip_file, "is a zip archive"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"w": 1})), "is a Python pickle"),
    "HTML": (lambda path: path.write_text("\n<!DOCTYPE html><html>404</html>"), "is an HTML page"),
    "JSON": (lambda path: path.write_text(json.dumps({"error": "not found"})), "is JSON"),
    "text": (lambda path: path.write_text('ir_version: 8\nproducer_name: "x"\n'), "text format"),
    "Git LFS": (git_lfs_pointer, "run `git lfs pull`"),
    "nested 500 deep": (deep, "nested more than 100 deep"),
    "wrong raw_data": (wrong_raw_data, r"tensor 'w': holds 1604 bytes where FLOAT\[400\] takes 1600"),
    "no weights": (with_tensor(dims=[3], data_type=1), r"tensor 'w': holds 0 values where FLOAT\[3\] takes 3"),
    "too few values": (with_tensor(dims=[3], data_type=7, int64_data=[1, 2]), "holds 2 values where INT64"),
    "negative dims": (with_tensor(dims=[-3], data_type=1), r"tensor 'w': FLOAT\[-3\] has a negative dimension"),
    "a huge dim": (with_tensor(dims=[2**62, 2**62], data_type=1, raw_data=b"1234"), "holds 4 bytes where"),
    "raw strings": (with_tensor(dims=[1], data_type=8, raw_data=b"1234"), "is a tensor of strings"),
}


@pytest.mark.parametrize(("build", "message"), NOT_MODELS.values(), ids=NOT_MODELS)
def test_what_is_no_model_is_called_what_it_is(build: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    build(path)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_over_2_gib_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    with path.open("ab") as file:
        file.write(b"\xba\x3e" + encode_varint(2**31))  # an unknown field of 2 GiB, all hole
        file.truncate(file.tell() + 2**31)
    with pytest.raises(ModelError, match="larger than 2 GiB"):
        load(path)


FUZZED = model_with_tensors_everywhere().SerializeToString()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_models_are_refused_or_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    blob = bytearray(FUZZED)
    for _ in range(data.draw(st.integers(0, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del blob[data.draw(st.integers(0, len(blob))) :]
    path = tmp_path_factory.getbasetemp() / "fuzzed.onnx"
    path.write_bytes(blob)
    try:
        model = load(path)
    except ModelError:
        return
    save(model, path.with_name("fuzzed_out.onnx"), overwrite=True)
    rest = ModelProto.FromString(path.with_name("fuzzed_out.onnx").read_bytes())
    assert rest.SerializeToString() == ModelProto.FromString(bytes(blob)).SerializeToString()


def test_public_names() -> None:
    assert set(model_file.__all__) == {"LoadedModel", "Weights", "load", "save", "structure", "to_proto", "wrap"}
    assert issubclass(ExternalDataError, BnfoldError)
    assert isinstance(wrap(small_model()).weights, Weights)
