"""`bnfold insert` as a process: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import MODEL, batch_norms, bnfold, conv_bn, files, interruptible, ok, refused
from insertion_models import distance, net, ops, run, vector, weight
from onnx import ModelProto

import bnfold as library

FOLDER = MODEL.parent
CALIB = f"{FOLDER / 'digits.npz'}:calib_x"
CANCER = f"{FOLDER / 'cancer.npz'}:calib_x"


@pytest.fixture(scope="module")
def folded() -> ModelProto:
    result: ModelProto = library.fold(MODEL, verify=False).model
    return result


@pytest.fixture
def plain(tmp_path: Path, folded: ModelProto) -> Path:
    """A trained network without BN in a folder of its own."""
    path = tmp_path / "m.onnx"
    onnx.save(folded, path)
    return path


def rows(out: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w[\w ]*?) {2,}(.*)$", out.split("\n\n", maxsplit=1)[0], re.MULTILINE))


def test_account(plain: Path) -> None:
    before = plain.read_bytes()
    out = ok("insert", "m.onnx", "--data", CALIB, cwd=plain.parent)
    found = rows(out)
    assert found["data"] == f"256 samples of {CALIB}"
    assert (found["mode"], found["BN"]) == ("preserve", "7 put in")
    assert re.fullmatch(r"\de-0[78]|\d\.\de-0[78] × rms of output 'logits', on 64 samples", found["change"])
    assert found["none"] == "behind '/24/Gemm': no activation reads it (--where all takes it)"
    assert found["wrote"].startswith("m.bn.onnx (")
    table = out.split("\n\n")[1].splitlines()
    assert table[0].split() == ["behind", "channels", "bias", "before", "BatchNorm"]
    assert table[1].split() == ["Conv", "24", "moved", "'/2/Relu'", "'/0/Conv.bn'"] and len(table) == 8
    assert sorted(files(plain.parent)) == ["m.bn.onnx", "m.onnx"] and plain.read_bytes() == before
    assert len(batch_norms(plain.with_name("m.bn.onnx"))) == 7


def test_there_and_back_by_the_command(plain: Path) -> None:
    cwd = plain.parent
    ok("insert", "m.onnx", "--data", CALIB, "-q", cwd=cwd)
    assert "equal" in ok("verify", "m.onnx", "m.bn.onnx", cwd=cwd)
    ok("fold", "m.bn.onnx", "-q", cwd=cwd)
    first, last = onnx.load(plain), onnx.load(cwd / "m.bn.folded.onnx")
    images = {"input": np.load(FOLDER / "digits.npz")["test_x"]}
    assert ops(first) == ops(last) and distance(run(first, images), run(last, images)) < 1e-6


def test_fresh_without_data(plain: Path) -> None:
    found = rows(ok("insert", plain, "--mode", "fresh"))
    assert "change" not in found and "data" not in found
    assert found["notice"].startswith("the function is another one now")


def test_json(plain: Path) -> None:
    found = json.loads(ok("insert", plain, "--data", CALIB, "--json", "--only", "/0/*"))
    assert found["written"] == [str(plain.with_name("m.bn.onnx"))] and found["data"] == CALIB
    assert [site["name"] for site in found["sites"]] == ["/0/Conv.bn"] and found["left"] == []
    assert found["difference"]["worst"] < 1e-6


def test_dry_run_force_in_place(plain: Path) -> None:
    arguments = ("insert", "m.onnx", "--data", CALIB)
    out = ok(*arguments, "--dry-run", cwd=plain.parent)
    assert "nothing was written; it would be m.bn.onnx" in out and sorted(files(plain.parent)) == ["m.onnx"]
    ok(*arguments, "-q", cwd=plain.parent)
    assert "(exists: that will take --force)" in ok(*arguments, "--dry-run", cwd=plain.parent)
    refused(bnfold(*arguments, cwd=plain.parent), "m.bn.onnx: exists already; --force replaces it")
    ok(*arguments, "--force", cwd=plain.parent)
    ok(*arguments, "--in-place", cwd=plain.parent)
    assert len(batch_norms(plain)) == 7 and sorted(files(plain.parent)) == ["m.bn.onnx", "m.onnx"]


def test_training_nodes_and_upgrade(plain: Path, tmp_path: Path) -> None:
    tensors = {"w": weight(4, 3, 3, 3), "b": vector(4)}
    old = tmp_path / "old.onnx"
    onnx.save(net("(float[N,3,8,8] x) => (float[N,A,B,C] y) { c = Conv(x, w, b) y = Relu(c) }", 11, **tensors), old)
    arguments = ("insert", old, "--mode", "fresh", "--training-nodes")
    refused(bnfold(*arguments), "old.onnx: is of opset 11; BatchNormalization in training mode takes 14: --upgrade")
    assert "converted from opset 11 to 14 by onnx's version converter" in ok(*arguments, "--upgrade")
    assert onnx.load(tmp_path / "old.bn.onnx").opset_import[0].version == 14
    assert "7 training-mode" in ok("fold", *written(plain, "--training-nodes"), "--dry-run")


def written(plain: Path, *options: str) -> list[Path]:
    ok("insert", plain, "--data", CALIB, "-q", *options)
    return [plain.with_name("m.bn.onnx")]


def test_images(plain: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    folder = plain.with_name("images")
    folder.mkdir()
    pixels = (np.load(FOLDER / "digits.npz")["calib_x"][:140, 0] * 240).round().astype(np.uint8)
    for number, one in enumerate(pixels):
        image.fromarray(one).save(folder / f"{number}.png")
    out = ok("insert", plain, "--data", folder, "--scale", "1/240", "--mean", "0", "--std", "1")
    assert rows(out)["data"] == f"140 samples of {folder}"


BAD = [
    ((), "to keep the function, what the layers put out has to be measured; give --data, or --mode fresh"),
    (("--data", CALIB, "-q", "-v"), "--quiet and --verbose contradict each other"),
    (("--data", CALIB, "--in-place", "-o", "x"), "--in-place and --output contradict each other"),
    (("--data", CALIB, "-o", "m.onnx"), "--output is the model itself; --in-place replaces it"),
    (("--mode", "magic"), "there is no mode 'magic'; choose from preserve, fresh"),
    (("--mode", "fresh", "--where", "x"), "there is no place 'x'; choose from before-activation, all"),
    (("--mode", "fresh", "--only", "x"), "m.onnx: has no Conv, ConvTranspose, Gemm or MatMul with a weight (or only"),
    (("--mode", "fresh", "--provider", "x"), "'x' is no provider"),
    (("--data", str(FOLDER / "digits.npz")), "has no array 'input'; it has 'calib_x'"),
    (("--data", CANCER), "input 'input': is [64, 30] in a batch; the model takes [batch, 1, 8, 8]"),
    (("--data", "nothing.npz"), "nothing.npz: there is no such file or folder"),
    (("--data", CALIB, "--mean", "a"), "--mean takes numbers"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=range(len(BAD)))
def test_refusals_leave_nothing(plain: Path, arguments: tuple[str, ...], message: str) -> None:
    refused(bnfold("insert", "m.onnx", *arguments, cwd=plain.parent), message)
    assert sorted(files(plain.parent)) == ["m.onnx"]


def test_models_that_take_none(tmp_path: Path, model: Path) -> None:
    result = bnfold("insert", model, "--mode", "fresh")
    refused(result, "m.onnx: has no place for a BatchNormalization: it is normalized already (7 of 8 linear nodes)")
    onnx.save(conv_bn(), tmp_path / "one.onnx")
    refused(bnfold("insert", tmp_path / "one.onnx", "--mode", "fresh"), "normalized already (1 of 1 linear nodes)")
    (tmp_path / "text.onnx").write_text("no model")
    refused(bnfold("insert", tmp_path / "text.onnx", "--mode", "fresh"), "text.onnx: is not an ONNX model")
    old = net("(float[N,3,8,8] x) => (float[N,A,B,C] y) { c = Conv(x, w) y = Relu(c) }", 6, 3, w=weight(4, 3, 3, 3))
    onnx.save(old, tmp_path / "old.onnx")
    refused(bnfold("insert", tmp_path / "old.onnx", "--mode", "fresh"), "old.onnx: is of opset 6; BatchNormal")


def test_interrupted_leaves_nothing(plain: Path) -> None:
    slow = plain.with_name("slow.py")
    slow.write_text(
        "import numpy as np, sys, time\n"
        "def make():\n"
        "    while True:\n"
        "        print('on my way', file=sys.stderr, flush=True)\n"
        "        yield np.zeros((64, 1, 8, 8), np.float32)\n"
        "        time.sleep(0.05)\n"
    )
    before = plain.read_bytes()
    command = [sys.executable, "-m", "bnfold", "insert", str(plain), "--data", f"{slow}:make", "--in-place"]
    streams = {"stderr": subprocess.PIPE, "preexec_fn": interruptible}
    process = subprocess.Popen(command, text=True, **streams)
    assert process.stderr is not None
    assert process.stderr.readline() == "on my way\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err.splitlines()[-1] == "bnfold: interrupted"
    assert sorted(name for name in files(plain.parent) if name != "slow.py") == ["m.onnx"]
    assert plain.read_bytes() == before
