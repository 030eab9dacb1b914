"""Writing: whole or not at all, in the place of nothing else, with little memory."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO
from onnx import TensorProto
from small_models import array, names, run, same_weights, small_model, write, write_external, zeroed

from bnfold import model_file
from bnfold.atomic import demand_apart
from bnfold.errors import ModelError, OutputError
from bnfold.model_file import load, save, to_proto
from bnfold.wire import encode_varint


def test_the_data_file_of_a_replaced_output_stays_until_it_is_replaced(tmp_path: Path) -> None:
    """Outputs over each other, and in place: names alternate, nothing is left, nothing foreign goes."""
    path = write_external(tmp_path / "m.onnx", w=array(400), v=array(400, seed=1))
    model = load(path)
    zeroed(model, "w")
    assert save(model, path, overwrite=True) == [path, tmp_path / "m.onnx.1.data"]
    assert names(tmp_path) == ["m.onnx", "m.onnx.1.data"]
    assert same_weights(path, w=np.zeros(400, "f4"), v=array(400, seed=1))
    np.testing.assert_array_equal(model.weights.read(model.proto.graph.initializer[1]), array(400, seed=1))
    model = load(path)
    zeroed(model, "v")
    save(model, path, overwrite=True)
    assert names(tmp_path) == ["m.onnx", "m.onnx.data"]
    save(load(write(tmp_path / "single.onnx", w=array(400))), path, overwrite=True)
    assert names(tmp_path) == ["m.onnx", "single.onnx"]
    assert not model.notices


def test_a_data_file_of_another_name_is_left_and_reported(tmp_path: Path) -> None:
    path = write_external(tmp_path / "m.onnx", "shared.bin", w=array(400))
    model = load(path)
    zeroed(model, "w")
    save(model, path, overwrite=True)
    assert names(tmp_path) == ["m.onnx", "m.onnx.data", "shared.bin"]
    assert model.notices == [f"{tmp_path / 'shared.bin'}: no longer used by m.onnx; delete it if nothing else needs it"]


def test_the_input_keeps_its_data_when_an_output_with_the_same_data_is_replaced(tmp_path: Path) -> None:
    write_external(tmp_path / "b.onnx", w=array(400))
    shutil.copy(tmp_path / "b.onnx", tmp_path / "a.onnx")  # a copy of the model alone: both use b.onnx.data
    model = load(tmp_path / "a.onnx")
    zeroed(model, "w")
    save(model, tmp_path / "b.onnx", overwrite=True)
    assert same_weights(tmp_path / "a.onnx", w=array(400))
    assert same_weights(tmp_path / "b.onnx", w=np.zeros(400, "f4"))


def test_a_taken_name_is_never_written_over(tmp_path: Path) -> None:
    model = load(write_external(tmp_path / "in.onnx", w=array(400)))
    (tmp_path / "out.onnx.data").write_bytes(b"somebody's")
    (tmp_path / "out.onnx.1.data").symlink_to("nowhere")
    assert save(model, tmp_path / "out.onnx")[1].name == "out.onnx.2.data"
    assert (tmp_path / "out.onnx.data").read_bytes() == b"somebody's"


def test_a_model_that_outgrows_protobuf_gets_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "MAX_FILE_SIZE", 20_000)
    model = load(write(tmp_path / "in.onnx", w=array(3000), b=array(10)))
    zeroed(model, "w")
    assert len(save(model, tmp_path / "fits.onnx")) == 1
    tensor = model.proto.graph.initializer.add(name="v", dims=[3000], data_type=TensorProto.FLOAT)
    model.weights.defer(tensor, lambda: iter([np.ones(3000, np.float32)]))
    with pytest.raises(ModelError, match="save it to a file instead"):
        to_proto(model)
    assert len(save(model, tmp_path / "out.onnx")) == 2
    assert same_weights(tmp_path / "out.onnx", w=np.zeros(3000, "f4"), b=array(10), v=np.ones(3000, "f4"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.disk_usage(REPO).free < 5e9, reason="less than 5 GB of free disk")
def test_more_than_2_gib(tmp_path: Path) -> None:
    rows = 2200
    model = load(write(tmp_path / "in.onnx", b=array(300)))
    tensor = model.proto.graph.initializer.add(name="w", dims=[rows, 250_000], data_type=TensorProto.FLOAT)
    block = np.zeros((200, 250_000), np.float32)
    model.weights.defer(tensor, lambda: (block for _ in range(rows // 200)))
    try:
        files = save(model, tmp_path / "out.onnx")
        assert files[0].stat().st_size < 10_000
        assert files[1].stat().st_size >= rows * 1_000_000
        again = load(files[0])
        assert [again.weights.nbytes(tensor) for tensor in again.proto.graph.initializer] == [1200, rows * 1_000_000]
    finally:
        (tmp_path / "out.onnx.data").unlink(missing_ok=True)


OUTPUTS: dict[str, tuple[Callable[[Path], Any], bool, str]] = {
    "existing": (lambda path: path.write_text("mine"), False, "exists already; --force replaces it"),
    "an existing link": (lambda path: path.symlink_to("nowhere"), False, "exists already"),
    "a folder": (Path.mkdir, True, "is a folder; name a file"),
    "a FIFO": (os.mkfifo, True, "is a FIFO; name a file"),
    "a link to a device": (lambda path: path.symlink_to(os.devnull), True, "is a device; name a file"),
    "the input's data": (lambda path: os.rename(path.with_name("in.onnx.data"), path), True, "data file of the model"),
    "a link to the input's data": (lambda path: path.symlink_to("in.onnx.data"), True, "data file of the model"),
}


@pytest.mark.parametrize(("build", "overwrite", "message"), OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_that_are_refused(build: Callable[[Path], Any], overwrite: bool, message: str, tmp_path: Path) -> None:
    model = load(write_external(tmp_path / "in.onnx", w=array(400)))
    build(tmp_path / "out.onnx")
    before = names(tmp_path)
    with pytest.raises(OutputError, match=message):
        save(model, tmp_path / "out.onnx", overwrite=overwrite)
    assert names(tmp_path) == before


def test_an_output_folder_must_exist(tmp_path: Path) -> None:
    model = load(write(tmp_path / "in.onnx"))
    with pytest.raises(OutputError, match=r"there is no folder '.*nowhere'; create it first"):
        save(model, tmp_path / "nowhere" / "out.onnx")
    with pytest.raises(OutputError, match="there is no folder"):
        save(model, tmp_path / "in.onnx" / "out.onnx")
    with pytest.raises(OutputError, match="name too long"):
        save(model, tmp_path / ("n" * 300))


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    stored = write(tmp_path / "store" / "blob", w=array(400))
    before = stored.read_bytes()
    (tmp_path / "m.onnx").symlink_to("store/blob")
    model = load(tmp_path / "m.onnx")
    zeroed(model, "w")
    save(model, tmp_path / "m.onnx", overwrite=True)
    assert model.notices == [f"{tmp_path / 'm.onnx'}: was a link to store/blob, which is unchanged"]
    assert not (tmp_path / "m.onnx").is_symlink()
    assert stored.read_bytes() == before
    assert same_weights(tmp_path / "m.onnx", w=np.zeros(400, "f4"))


def test_outputs_apart(tmp_path: Path) -> None:
    """No output is an input, by whatever name, nor another output; what is not there yet is neither."""
    a, b, link, new = (tmp_path / name for name in ("a", "b", "link", "new"))
    a.touch()
    b.touch()
    link.symlink_to("a")
    demand_apart([b, new], [a, tmp_path / "gone"])
    for outputs, message in (
        ([b, a], "a: is an input of this very command"), ([link], "link: is an input of this very command"),
        ([new, tmp_path / "." / "new"], "new: is to be written twice"),
    ):  # fmt: skip
        with pytest.raises(OutputError, match=message):
            demand_apart(outputs, [a])


def test_a_data_file_that_has_another_name_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Its bytes are those that are wanted, but whoever holds the other name may change them."""
    model = load(write_external(tmp_path / "in.onnx", w=array(400)))
    (tmp_path / "theirs").write_bytes(array(400).tobytes())
    (tmp_path / "out.onnx.data").hardlink_to(tmp_path / "theirs")
    assert save(model, tmp_path / "out.onnx")[1].name == "out.onnx.1.data"


def test_what_others_need_stays_and_the_rest_goes(tmp_path: Path) -> None:
    """Of three data files that a replaced model leaves, the first is a link, the second another model's."""
    old = small_model(**{name: array(4) for name in "abc"})
    for tensor, file in zip(old.graph.initializer, ("1", "2", "3"), strict=True):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"m.onnx.{file}.data")
        (tmp_path / f"m.onnx.{file}.data").write_bytes(array(4).tobytes())
    (tmp_path / "m.onnx").write_bytes(old.SerializeToString())
    (tmp_path / "m.onnx.1.data").rename(tmp_path / "store")
    (tmp_path / "m.onnx.1.data").symlink_to("store")
    model = load(write_external(tmp_path / "in.onnx", "m.onnx.2.data", w=array(4)))
    zeroed(model, "w")
    save(model, tmp_path / "m.onnx", overwrite=True)
    assert names(tmp_path) == ["in.onnx", "m.onnx", "m.onnx.1.data", "m.onnx.2.data", "m.onnx.data", "store"]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux's /proc")
def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    model = load(write_external(tmp_path / "in.onnx", w=array(400)))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        save(model, tmp_path / "out.onnx", overwrite=True)
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_are_brought_to_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data, its name; the model, its name: a power cut never leaves a model without its data."""
    model = load(write_external(tmp_path / "in.onnx", w=array(400)))
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)))
    save(model, tmp_path / "out.onnx")
    assert synced == [False, True, False, True]


def test_permissions(tmp_path: Path) -> None:
    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    model = load(write_external(tmp_path / "in.onnx", w=array(400)))
    old = os.umask(0o027)
    try:
        save(model, tmp_path / "new.onnx")
        write(tmp_path / "old.onnx").chmod(0o604)
        save(model, tmp_path / "old.onnx", overwrite=True)
        save(model, tmp_path / "like.onnx", keep_mode_of=tmp_path / "old.onnx")
        os.umask(0)
        save(model, tmp_path / "open.onnx")
    finally:
        os.umask(old)
    assert (mode("new.onnx"), mode("new.onnx.data")) == (0o640, 0o640)
    assert (mode("old.onnx"), mode("old.onnx.data")) == (0o604, 0o604), "weights are no less private than the model"
    assert mode("like.onnx") == 0o604
    assert mode("open.onnx") == 0o666


def test_an_input_that_changes_meanwhile(tmp_path: Path) -> None:
    path = write(tmp_path / "in.onnx", w=array(4000))
    model = load(path)
    with path.open("r+b") as file:
        file.write(b"\x08\x09")
    with pytest.raises(ModelError, match="was changed by another program"):
        save(model, tmp_path / "out.onnx")
    assert names(tmp_path) == ["in.onnx"]


def test_an_input_that_changes_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in.onnx", w=array(4000))
    model = load(path)
    real = os.fsync

    def change(fd: int) -> None:
        with path.open("r+b") as file:
            file.write(b"\x08\x09")
        real(fd)

    monkeypatch.setattr(os, "fsync", change)
    with pytest.raises(ModelError, match="was changed by another program"):
        save(model, tmp_path / "out.onnx")
    assert names(tmp_path) == ["in.onnx"]


def test_an_input_that_is_cut_short_while_it_is_copied(tmp_path: Path) -> None:
    """Touching a page of a map without a file behind it ends a process; here it is an error like others."""
    path = write(tmp_path / "in.onnx", a=array(300), b=array(4000), c=array(600_000))
    model = load(path)

    def make() -> Iterator[np.ndarray[Any, Any]]:
        os.truncate(path, 1000)
        yield np.zeros(300, np.float32)

    model.weights.defer(model.proto.graph.initializer[0], make)
    with pytest.raises(OutputError, match="the input was cut short by another program"):
        save(model, tmp_path / "out.onnx")
    assert names(tmp_path) == ["in.onnx"]


def test_an_input_that_is_gone_by_the_time_of_writing(tmp_path: Path) -> None:
    """What is mapped stays readable, and nothing but the output is touched."""
    model = load(write_external(tmp_path / "in.onnx", w=array(400)))
    write_external(tmp_path / "out.onnx", w=array(10))
    for name in ("in.onnx", "in.onnx.data"):
        (tmp_path / name).unlink()
    save(model, tmp_path / "out.onnx", overwrite=True)
    assert names(tmp_path) == ["out.onnx", "out.onnx.1.data"]
    assert same_weights(tmp_path / "out.onnx", w=array(400))


@pytest.mark.parametrize("location", ["", ".", "..", "w\0", "/etc/hostname", "../x", "out.onnx.\n"])
def test_a_replaced_model_with_odd_data_files(location: str, tmp_path: Path) -> None:
    """What an earlier file at the output's place says about data files is not to be trusted either."""
    model = load(write_external(tmp_path / "in.onnx", w=array(400)))
    old = small_model()
    old.graph.initializer.add(name="w", data_location=TensorProto.EXTERNAL)
    old.graph.initializer[0].external_data.add(key="location", value=location)
    (tmp_path / "out.onnx").write_bytes(old.SerializeToString())
    save(model, tmp_path / "out.onnx", overwrite=True)
    assert names(tmp_path) == ["in.onnx", "in.onnx.data", "out.onnx", "out.onnx.data"]
    assert not model.notices


MEMORY = """
    import sys
    sys.path[:0] = {path!r}
    import threading, time
    import numpy as np
    from bnfold.model_file import load, save

    def anonymous():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) // 1024

    peak, begin, done = 0, anonymous(), False
    def watch():
        global peak
        while not done:
            peak = max(peak, anonymous())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load({source!r})
    tensor = model.proto.graph.initializer[0]
    view = model.weights.read(tensor)
    if {edit!r}:
        model.weights.defer(tensor, lambda: (view[i : i + 100] * np.float32(2) for i in range(0, len(view), 100)))
    save(model, {target!r})
    done = True
    watcher.join()
    print(peak - begin)
"""


def write_hole(path: Path, *, external: bool) -> None:
    """A model with one weight of 300 MB, all zeros and none of it on disk."""
    size = 300_000_000
    tensor = TensorProto(name="w", dims=[75_000, 1000], data_type=TensorProto.FLOAT)
    if external:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.bin")
        model = small_model()
        model.graph.initializer.append(tensor)
        path.write_bytes(model.SerializeToString())
        path = path.with_name("w.bin")
    else:  # by hand, from the inside out: raw_data in tensor in graph in model, its bytes the end of the file
        start = tensor.SerializeToString() + b"\x4a" + encode_varint(size)
        for field in (b"\x2a", b"\x3a"):
            start = field + encode_varint(len(start) + size) + start
        path.write_bytes(b"\x08\x08" + start)
    with path.open("ab") as file:
        file.truncate(file.tell() + size)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("edit", [False, True], ids=["copied", "rewritten"])
@pytest.mark.parametrize("external", [False, True], ids=["single file", "data file"])
def test_memory_does_not_grow_with_the_weights(external: bool, edit: bool, tmp_path: Path) -> None:
    """300 MB of weights; what comes on top of the interpreter stays below 24 MB (blocks of 0.4 and 8 MB)."""
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    write_hole(source, external=external)
    grown = int(run(MEMORY, source=str(source), target=str(target), edit=edit))
    assert grown < 24, f"{grown} MB"
    model = load(target)
    assert model.weights.nbytes(model.proto.graph.initializer[0]) == 300_000_000
    shutil.rmtree(tmp_path)  # pytest would keep it
