"""Bad input and bad usage: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import MODEL, bnfold, conv_bn, files, refused
from onnx import ModelProto, TensorProto


def _edited(edit: Callable[[ModelProto], object]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        proto = conv_bn()
        edit(proto)
        path.write_bytes(proto.SerializeToString())

    return make


def _content(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _external(location: str, length: int = 16) -> Callable[[Path], None]:
    def edit(proto: ModelProto) -> None:
        tensor = proto.graph.initializer[1]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        tensor.external_data.add(key="length", value=str(length))

    return _edited(edit)


def _reads(name: str) -> Callable[[Path], None]:
    """The first node reads `name`."""
    return _edited(lambda proto: proto.graph.node[0].input.__setitem__(0, name))


def _gamma_has(size: int) -> Callable[[Path], None]:
    """The tensor of gamma says that it has `size` elements."""
    return _edited(lambda proto: proto.graph.initializer[1].dims.__setitem__(0, size))


BAD_INPUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "folder": (Path.mkdir, "is a folder, not a file"),
    "fifo": (lambda path: os.mkfifo(path), "is a FIFO, not a file"),
    "empty": (_content(b""), "it is empty"),
    "noise": (_content(np.random.default_rng(0).bytes(5000)), "is not an ONNX model"),
    "cut short": (_content(MODEL.read_bytes()[:100_000]), "is not an ONNX model, or not all of one"),
    "json": (_content(b'{"layers": []}'), "is JSON"),
    "zip": (_content(b"PK\x03\x04" + bytes(100)), "is a zip archive"),
    "gzip": (_content(b"\x1f\x8b" + bytes(100)), "is compressed with gzip"),
    "pickle": (_content(b"\x80\x02}q\x00." + bytes(100)), "is a Python pickle"),
    "hdf5": (_content(b"\x89HDF\r\n\x1a\n" + bytes(100)), "is an HDF5 file"),
    "html": (_content(b"<!DOCTYPE html><html></html>"), "is an HTML page"),
    "lfs pointer": (_content(b"version https://git-lfs.github.com/spec/v1\n"), "run `git lfs pull`"),
    "no graph": (_edited(lambda proto: proto.ClearField("graph")), "it holds no graph"),
    "unknown value": (_reads("a\x1b]0;\x07"), r"node 'conv': reads 'a\x1b]0;\x07', which nothing produces"),
    "cycle": (_reads("y"), "is part of a cycle"),
    "short tensor": (_gamma_has(5), "tensor 'gamma': holds"),
    "negative size": (_gamma_has(-4), "negative dimension"),
    "negative and short": (
        _edited(lambda proto: [proto.graph.initializer[i].dims.__setitem__(0, size) for i, size in ((1, -4), (2, 9))]),
        "negative dimension (and 1 more: tensor 'beta': holds 16 bytes",
    ),
    "twice": (_edited(lambda proto: proto.graph.input.append(proto.graph.input[0])), "value 'x': is defined twice"),
    "future opset": (_edited(lambda proto: setattr(proto.opset_import[0], "version", 9999)), "uses opset 9999"),
    "epsilon as text": (
        _edited(lambda proto: proto.graph.node[1].attribute.add(name="epsilon", type=3, s=b"\x1b[31m")),
        "node 'bn': attribute 'epsilon' is of type STRING",
    ),
    "no data file": (_external("gone.bin"), "data file 'gone.bin': no such file"),
    "data file elsewhere": (_external("../secret"), "leads out of the model's folder"),
    "data file absolute": (_external("/etc/passwd"), "leads out of the model's folder"),
    "data file is the model": (_external("bad.onnx"), "is the model itself"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(tmp_path: Path, case: str) -> None:
    make, message = BAD_INPUT[case]
    path = tmp_path / "bad.onnx"
    make(path)
    before = sorted(os.listdir(tmp_path))
    result = bnfold("fold" if len(case) % 2 else "inspect", path)
    refused(result, message)
    assert result.stderr.startswith(f"bnfold: {path}: ")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fold"], "Missing argument 'MODEL'"),
        (["fold", "m.onnx", "--nope"], "--nope"),
        (["recalibrate", "m.onnx", "n.onnx"], "n.onnx"),
        (["fold", "m.onnx", "-o"], "-o"),
        (["unfold", "m.onnx"], "unfold"),
        (["fold", "m.onnx", "-q", "-v"], "contradict"),
        (["fold", "m.onnx", "-o", "n.onnx", "--in-place"], "contradict"),
        (["fold", "m.onnx", "--no-verify", "--require-verify"], "contradict"),
        (["fold", "m.onnx", "-o", "./m.onnx", "--force"], "--in-place replaces it"),
        (["fold", "m.onnx", "-o", "gone/n.onnx"], "there is no folder 'gone'"),
        (["fold", "m.onnx", "-o", "."], "is a folder"),
        (["fold", "m.onnx", "-o", "/dev/null", "--force"], "is a device"),
        (["inspect"], "Missing argument 'MODEL'"),
    ],
    ids=" ".join,
)
def test_usage(model: Path, arguments: list[str], message: str) -> None:
    refused(bnfold(*arguments, cwd=model.parent), message)
    assert list(files(model.parent)) == ["m.onnx"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read anything")
def test_no_permission(model: Path) -> None:
    model.parent.chmod(0o500)
    refused(bnfold("fold", model, "--no-verify"), "can't be written: Permission denied; nothing was changed")
    model.parent.chmod(0o700)
    model.chmod(0)
    refused(bnfold("fold", model), "can't be opened: Permission denied")
