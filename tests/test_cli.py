"""The command, run as people run it: as a process, judged by exit code, stdout, stderr and the files it leaves."""

from __future__ import annotations

import doctest
import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bnfold._version import __version__

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
MODEL = SAMPLES / "digits_cnn.onnx"
Result = subprocess.CompletedProcess[str]


def bnfold(*arguments: object, **options: Any) -> Result:
    """Run the command."""
    command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 60, **options}
    return subprocess.run(command, check=False, **options)


def ok(*arguments: object, **options: Any) -> str:
    """Run the command, which must succeed without a word on stderr; returns its stdout."""
    result = bnfold(*arguments, **options)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(result: Result, message: str, code: int = 2) -> None:
    """One line on stderr that has `message`, nothing on stdout."""
    assert result.stdout == ""
    assert re.fullmatch(r"bnfold: [^\n]+\n", result.stderr), result.stderr
    assert message in result.stderr
    assert result.returncode == code


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def batch_norms(path: Path) -> list[str]:
    return [node.name for node in onnx.load(path).graph.node if node.op_type == "BatchNormalization"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model in a folder of its own."""
    path = tmp_path / "m.onnx"
    path.write_bytes(MODEL.read_bytes())
    return path


def conv_bn(name: str = "bn", domain: str = "", overridable: bool = False) -> ModelProto:
    """x → Conv → BN → Relu → y; `domain`: of the Relu, "" for one that ONNX Runtime knows."""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 1, 1), "gamma": (4,), "beta": (4,), "mean": (4,), "var": (4,)}
    tensors = [numpy_helper.from_array(rng.random(shape).astype(np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"], name=name),
        helper.make_node("Relu", ["b"], ["y"], name="relu", domain=domain),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])]
    if overridable:
        inputs += [helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims) for tensor in tensors]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(nodes, "g", inputs, [output], tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


# -- fold: what it does -------------------------------------------------------------------------------


def test_fold_writes_beside_the_model_and_tells(model: Path) -> None:
    out = ok("fold", "m.onnx", cwd=model.parent)
    rows = {line[:9].strip(): line[9:] for line in out.splitlines()}
    assert rows["read"] == "m.onnx (285 kB)"
    assert rows["BN"] == "7 → 0"
    assert rows["ops"].startswith("7 → 0 ")
    assert rows["nodes"] == "25 → 18"
    assert re.match(r"14 new tensors, each within 0\.\d+ ulp of the exact result", rows["proof"])
    assert re.match(r"\d+ values obey v' = s\(v \+ t\); worst [\d.]+ × .*\(limit [\d.]+\)", rows["check"])
    assert re.match(r"m\.folded\.onnx \(\d+ kB\)", rows["wrote"])
    assert batch_norms(model.with_name("m.folded.onnx")) == []
    assert sorted(files(model.parent)) == ["m.folded.onnx", "m.onnx"]
    assert model.read_bytes() == MODEL.read_bytes()


def test_same_bytes_twice_whatever_the_hash_seed(model: Path) -> None:
    for name, seed in (("a.onnx", "1"), ("b.onnx", "2")):
        ok("fold", model, "-o", model.with_name(name), "--no-verify", env={**os.environ, "PYTHONHASHSEED": seed})
    assert model.with_name("a.onnx").read_bytes() == model.with_name("b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("name", "default"),
    [("m.onnx", "m.folded.onnx"), ("m.pb", "m.pb.folded.onnx"), ("m", "m.folded.onnx"), (" .onnx", " .folded.onnx")],
)
def test_default_output(tmp_path: Path, name: str, default: str) -> None:
    (tmp_path / name).write_bytes(MODEL.read_bytes())
    ok("fold", tmp_path / name, "--no-verify", "-q")
    assert sorted(files(tmp_path)) == sorted([name, default])


def test_nothing_to_fold_is_written_as_it_was(tmp_path: Path) -> None:
    plain = conv_bn()
    plain.graph.node[1].op_type = "Identity"
    del plain.graph.node[1].input[1:]
    onnx.save(plain, tmp_path / "m.onnx")
    out = ok("fold", tmp_path / "m.onnx")
    assert "BN       none\n" in out
    assert "check    not made: nothing was changed\n" in out
    assert (tmp_path / "m.folded.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_existing_output_needs_force(model: Path) -> None:
    target = model.with_name("m.folded.onnx")
    target.write_text("mine")
    refused(bnfold("fold", model), f"{target}: exists already; --force replaces it")
    assert target.read_text() == "mine"
    ok("fold", model, "--force", "--no-verify", "-q")
    assert batch_norms(target) == []


def test_in_place(model: Path) -> None:
    model.chmod(0o640)
    ok("fold", model, "--in-place", "--no-verify", "-q")
    assert list(files(model.parent)) == ["m.onnx"]
    assert batch_norms(model) == []
    assert model.stat().st_mode & 0o777 == 0o640


def test_dry_run_writes_nothing(model: Path) -> None:
    out = ok("fold", model, "--dry-run", "--no-verify")
    assert f"dry run  nothing was written; it would be {model.with_name('m.folded.onnx')}\n" in out
    assert "BN       7 → 0\n" in out
    model.with_name("m.folded.onnx").write_text("mine")
    assert "(exists: that will take --force)\n" in ok("fold", model, "--dry-run", "--no-verify")
    assert model.with_name("m.folded.onnx").read_text() == "mine"


def test_quiet_says_nothing(model: Path) -> None:
    assert ok("fold", model, "-q") == ""


def test_verbose_tells_each_batch_norm_and_its_progress(model: Path) -> None:
    result = bnfold("fold", model, "-v", "--skip", "/1/*")
    assert result.returncode == 0
    assert len(re.findall(r"^folded   '/\d+/BatchNormalization'  backward into '", result.stdout, re.MULTILINE)) == 6
    assert "kept     '/1/BatchNormalization'  not-chosen: it was left out by --only or --skip\n" in result.stdout
    assert re.fullmatch(r"(bnfold: \d+\.\d\d s: [^\n]+\n){3}", result.stderr)


def test_only_and_skip_are_repeatable_patterns(model: Path) -> None:
    out = ok("fold", model, "--only", "/1/*", "--only", "/4/*", "--only", "/8/*", "--skip", "/8/*", "--no-verify")
    left = batch_norms(model.with_name("m.folded.onnx"))
    assert "BN       7 → 5\n" in out
    assert "/8/BatchNormalization" in left and "/1/BatchNormalization" not in left
    assert "5 not-chosen: '/8/BatchNormalization', '/11/BatchNormalization', '/15/BatchNormalization' and 2 more" in out


def test_pattern_without_a_match_is_told(model: Path) -> None:
    out = ok("fold", model, "--skip", "bn\x1b[31m", "--no-verify")
    assert r"notice   skip 'bn\x1b[31m' matches the name of no BatchNormalization" in out


def test_overridable_initializers(tmp_path: Path) -> None:
    onnx.save(conv_bn(overridable=True), tmp_path / "m.onnx")
    frozen = ok("fold", tmp_path / "m.onnx", "-o", tmp_path / "frozen.onnx", "--no-verify")
    assert "BN       1 → 0\n" in frozen and "\nnotice   5 initializers were graph inputs too" in frozen
    kept = ok("fold", tmp_path / "m.onnx", "-o", tmp_path / "kept.onnx", "--no-verify", "--keep-overridable")
    assert "BN       1 → 1\n" in kept and "\nkept     1 dynamic-parameters: 'bn'\n" in kept
    assert [info.name for info in onnx.load(tmp_path / "frozen.onnx").graph.input] == ["x"]


def test_external_data_comes_along(tmp_path: Path) -> None:
    onnx.save(onnx.load(MODEL), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    (tmp_path / "out").mkdir()
    out = ok("fold", tmp_path / "m.onnx", "-o", tmp_path / "out" / "n.onnx")
    assert sorted(files(tmp_path / "out")) == ["n.onnx", "n.onnx.data"]
    assert re.search(r"^wrote    .*n\.onnx \(\d+ kB\), .*n\.onnx\.data \(\d+ kB\)$", out, re.MULTILINE)


def test_account_of_any_model_fits_a_screen(tmp_path: Path) -> None:
    """Forty BN side by side that stay for four reasons, and four patterns without a match."""
    base = conv_bn()
    arrays = {"ok": [1, 1, 1], "negative": [-1, -1, -1], "wide": [1, 1, 1, 1]}
    tensors = [numpy_helper.from_array(np.array(array, np.float32), name) for name, array in arrays.items()]
    # What four kinds of BN have as scale and variance, and whether they are in training mode.
    kinds = [("ok", "ok", 0), ("ok", "ok", 1), ("ok", "negative", 0), ("wide", "ok", 0)]
    nodes = []
    for index in range(40):
        scale, variance, training = kinds[index % 4]
        inputs = ["x", scale, "ok", "ok", variance]
        outputs = [f"b{index}", *((f"m{index}", f"v{index}") if training else ())]
        nodes += [
            helper.make_node("BatchNormalization", inputs, outputs, name=f"bn{index}", training_mode=training),
            helper.make_node("Softmax", [f"b{index}"], [f"s{index}"], name=f"softmax{index}"),
        ]
    nodes.append(helper.make_node("Sum", [f"s{index}" for index in range(40)], ["y"]))
    graph = helper.make_graph(nodes, "g", base.graph.input, base.graph.output, tensors)
    onnx.save(helper.make_model(graph, opset_imports=base.opset_import, ir_version=8), tmp_path / "m.onnx")
    out = ok("fold", tmp_path / "m.onnx", "--no-verify", *"--skip p1 --skip p2 --skip p3 --skip p4".split())
    assert out.count("\n") <= 20
    assert len(re.findall(r"^kept     10 [a-z-]+: 'bn\d+', 'bn\d+', 'bn\d+' and 7 more$", out, re.MULTILINE)) == 3
    assert "\nkept     10 for other reasons: " in out
    assert "\n         and 1 more; -v shows all\n" in out


# -- verification -------------------------------------------------------------------------------------


def test_what_onnxruntime_cant_run_is_told(tmp_path: Path) -> None:
    onnx.save(conv_bn(domain="nowhere"), tmp_path / "m.onnx")
    out = ok("fold", tmp_path / "m.onnx")
    assert "\ncheck    not made: ONNX Runtime can't load it: " in out
    (tmp_path / "m.folded.onnx").unlink()
    refused(bnfold("fold", tmp_path / "m.onnx", "--require-verify"), "required, can't be made: ONNX Runtime", code=1)
    assert list(files(tmp_path)) == ["m.onnx"]


# The command with something in it replaced; {} is the replacement.
PATCHED = "import os, sys, time, types\n{}\nfrom bnfold.cli import main\nmain()"
WRONG = """
from bnfold.verify import relation
found = types.SimpleNamespace(passed=False, worst=99.0, worst_name='relu\\x1b', limit=8.0)
relation.check = lambda *arguments: found
"""
OUT_OF_MEMORY = "import bnfold.api\ndef fail(*_): raise MemoryError\nbnfold.api.fold_model = fail"
DEFECT = "import bnfold.api\ndef fail(*_): raise ZeroDivisionError('two\\nlines')\nbnfold.api.fold_model = fail"


def patched(code: str, *arguments: object, **options: Any) -> Any:
    command = [sys.executable, "-c", PATCHED.format(code), *map(str, arguments)]
    run = options.pop("run", subprocess.run)
    return run(command, text=True, encoding="utf-8", **options)


@pytest.mark.parametrize(
    ("code", "message", "exit_code"),
    [
        (WRONG, r"value 'relu\x1b': is 99 × the model's own rounding noise off (limit 8)", 1),
        (OUT_OF_MEMORY, "there is not enough memory", 2),
        (DEFECT, r"internal error: ZeroDivisionError: two\nlines; please report it", 2),
    ],
    ids=["not equivalent", "memory", "defect"],
)
def test_failure_writes_nothing(model: Path, code: str, message: str, exit_code: int) -> None:
    refused(patched(code, "fold", model, capture_output=True), message, exit_code)
    assert list(files(model.parent)) == ["m.onnx"]


def test_traceback_on_demand(model: Path) -> None:
    result = patched(DEFECT, "fold", model, "--traceback", capture_output=True)
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert result.stderr.splitlines()[-1].startswith("bnfold: internal error: ")
    assert result.returncode == 2


# -- interruptions ------------------------------------------------------------------------------------

SLOW_DISK = "def wait(fd): print('waiting', flush=True); time.sleep(60)\nos.fsync = wait"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupted_while_writing(model: Path, name: str) -> None:
    model.with_name("m.folded.onnx").write_text("mine")
    before = files(model.parent)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = patched(SLOW_DISK, "fold", model, "--force", "--no-verify", run=subprocess.Popen, **streams)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "bnfold: interrupted\n")
    assert files(model.parent) == before


def test_reader_that_has_seen_enough(model: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    result = bnfold("inspect", model, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "")


def test_stdout_on_a_full_disk(model: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w") as full:
        result = bnfold("inspect", model, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (2, f"bnfold: {os.strerror(errno.ENOSPC)}\n")


def test_closed_stdout(model: Path) -> None:
    command = f'exec "{sys.executable}" -m bnfold fold "{model}" --no-verify >&-'
    result = subprocess.run(["sh", "-c", command], check=False, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert batch_norms(model.with_name("m.folded.onnx")) == []


# -- bad input ----------------------------------------------------------------------------------------


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
        (["fold", "m.onnx", "n.onnx"], "n.onnx"),
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


# -- what is shown ------------------------------------------------------------------------------------


def test_json_of_fold(model: Path) -> None:
    data = json.loads(ok("fold", model, "--json"))
    assert data["schema_version"] == 1
    assert data["input"] == str(model)
    assert data["output"] == str(model.with_name("m.folded.onnx"))
    assert data["written"] == [data["output"]]
    assert data["batch_norms"] == {"before": 7, "after": 0}
    assert len(data["entries"]) == 7
    entry = "name op scope outcome route into reason obstacle sentence"
    assert all(list(item) == entry.split() for item in data["entries"])
    assert sorted(data["verification"]) == ["relation", "skipped", "static"]
    assert data["verification"]["relation"]["outputs"][0]["name"] == "logits"


def test_json_of_a_dry_run_names_no_file_as_written(model: Path) -> None:
    data = json.loads(ok("fold", model, "--json", "--dry-run", "--no-verify"))
    assert data["written"] == []
    assert data["verification"]["relation"] is None


def test_inspect(model: Path) -> None:
    out = ok("inspect", "m.onnx", cwd=model.parent)
    rows = out.splitlines()
    assert rows[0] == "file     m.onnx (285 kB)"
    assert "BN       7; a fold leaves 0" in rows
    table = rows[rows.index("") + 1 :]
    assert table[0].split() == "a fold between channels min var max gain stands out BatchNorm".split()
    assert len(table) == 8
    assert re.match(r"folded, backward  Conv … Relu +24 .*'/1/BatchNormalization'$", table[1])
    assert list(files(model.parent)) == ["m.onnx"]


def test_json_of_inspect(model: Path) -> None:
    data = json.loads(ok("inspect", model, "--json"))
    assert data["model"]["file"] == str(model)
    assert [norm["fold"]["outcome"] for norm in data["batch_norms"]] == ["folded"] * 7


@pytest.mark.parametrize("verb", ["fold", "inspect"])
def test_names_from_the_file_cannot_steer_the_terminal(tmp_path: Path, verb: str) -> None:
    evil = "\x1b]0;owned\x07\n\x1b[2J[red]:smile:"
    proto = conv_bn(name=evil)
    proto.producer_name = evil
    proto.graph.node[0].name = evil
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = evil
    onnx.save(proto, tmp_path / "m.onnx")
    arguments = ["fold", "--dry-run", "--no-verify"] if verb == "fold" else ["inspect"]
    out = ok(*arguments, tmp_path / "m.onnx")
    assert "\x1b" not in out and "\x07" not in out
    assert verb == "fold" or r"'\x1b]0;owned\x07\n\x1b[2J[red]:smile:'" in out


def in_terminal(*arguments: object, **environment: str) -> str:
    """What the command shows in a terminal of 80 columns."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment}
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    shown = b""
    while True:
        try:
            block = os.read(leader, 4096)
        except OSError:  # what Linux says at the end
            break
        if not block:
            break
        shown += block
    os.close(leader)
    assert process.wait() == 0
    return shown.decode()


def test_terminal_gets_bold_labels_and_progress(model: Path) -> None:
    shown = in_terminal("fold", model, "--no-verify")
    assert "\r\x1b[Kfolding …" in shown
    assert "\x1b[1mBN" in shown


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_terminal_without_colours(model: Path, environment: dict[str, str]) -> None:
    shown = in_terminal("fold", model, "--no-verify", **environment)
    assert "\x1b[1m" not in shown
    assert "7 → 0" in shown


def test_stream_that_cannot_encode(model: Path) -> None:
    out = ok("fold", model, "--no-verify", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert r"7 \u2192 0" in out


# -- the command itself -------------------------------------------------------------------------------


def test_version() -> None:
    assert ok("--version") == f"bnfold {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []], ids=str)
def test_help_shows_verbs_examples_and_exit_codes(arguments: list[str]) -> None:
    out = ok(*arguments)
    for expected in ("fold ", "inspect ", "Examples:", "Exit codes:", "130 ", "--install-completion"):
        assert expected in out


def test_help_of_fold_names_every_option() -> None:
    out = ok("fold", "--help")
    for option in """-o --output --in-place --force --dry-run --no-verify --require-verify --keep-overridable
        --only --skip --json -q --quiet -v --verbose -h --help""".split():
        assert re.search(rf"^  (-\w, )?{option}\b", out, re.MULTILINE), option
    assert "Examples:" in out


def test_completion_script() -> None:
    env = {**os.environ, "_BNFOLD_COMPLETE": "complete_bash", "COMP_WORDS": "bnfold in", "COMP_CWORD": "1"}
    assert ok(env=env).split() == ["inspect"]


def imported(*arguments: object) -> set[str]:
    """Top-level and a few deeper modules that a run imports."""
    command = [sys.executable, "-X", "importtime", "-m", "bnfold", *map(str, arguments)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
    return {line.rpartition("|")[2].strip() for line in lines}


def test_help_imports_nothing_heavy() -> None:
    assert not imported("--help") & {"numpy", "onnx", "google.protobuf", "onnxruntime", "rich", "bnfold.fold"}


def test_fold_without_verification_imports_no_runtime(model: Path) -> None:
    modules = imported("fold", model, "--no-verify")
    assert "bnfold.fold.plan" in modules
    assert not modules & {"onnxruntime", "onnx.reference", "rich", "rich.console", "onnx_ir", "onnx_graphsurgeon"}


def test_help_is_quick() -> None:
    """About 0.07 s of processor time where this was written; people notice from 0.4 s on."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ok("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4


def test_examples_in_docstrings() -> None:
    from bnfold.cli import render

    found = doctest.testmod(render)
    assert found.attempted and not found.failed
