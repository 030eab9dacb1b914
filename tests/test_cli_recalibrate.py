"""`bnfold recalibrate`: what it writes and tells, and what is left when it refuses."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import MODEL, bnfold, conv_bn, files, interruptible, ok, refused
from onnx import numpy_helper

SAMPLES = MODEL.parent
DIGITS, CANCER = SAMPLES / "digits.npz", SAMPLES / "cancer.npz"
CALIB = f"{DIGITS}:calib_x"
TEST = ("--test", f"{DIGITS}:test_x", "--labels", "test_y")
TABLE = ["score", "|Δmean|/σ", "up", "to", "σ", "new/old", "±", "σ", "channels", "dead", "BatchNorm"]


def rows(out: str) -> dict[str, str]:
    return {line[:9].strip(): line[9:] for line in out.split("\n\n", 1)[0].splitlines()}


def table(out: str) -> list[list[str]]:
    return [line.split() for line in out.split("\n\n")[1].splitlines()]


def statistics(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors of mean and variance by name."""
    graph = onnx.load(path).graph
    names = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in names}


def damaged(path: Path) -> Path:
    """The same model with statistics that are worth nothing."""
    model = onnx.load(path)
    names = {node.input[4] for node in model.graph.node if node.op_type == "BatchNormalization"}
    for tensor in model.graph.initializer:
        if tensor.name in names:
            array = numpy_helper.to_array(tensor)
            wrong = (array * np.linspace(0.01, 30, array.size)).astype(array.dtype)
            tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
    onnx.save(model, path)
    return path


# -- what it does -------------------------------------------------------------------------------------


def test_it_writes_beside_the_model_and_tells(model: Path) -> None:
    out = ok("recalibrate", "m.onnx", "--data", CALIB, cwd=model.parent)
    told = rows(out)
    assert told["read"] == "m.onnx (285 kB)"
    assert told["data"] == f"256 samples of {CALIB}"
    assert (told["method"], told["BN"]) == ("pooled", "7 measured")
    assert told["advice"].startswith("use the preprocessing and the augmentation of training: ")
    assert told["wrote"] == "m.recalibrated.onnx (285 kB)"
    head, *norms = table(out)
    assert head == TABLE
    scores = [float(row[0]) for row in norms]
    assert len(norms) == 7 and scores == sorted(scores, reverse=True)
    assert {row[-1] for row in norms} >= {"'/1/BatchNormalization'", "'/22/BatchNormalization'"}
    assert sorted(files(model.parent)) == ["m.onnx", "m.recalibrated.onnx"]
    old, new = statistics(model), statistics(model.with_name("m.recalibrated.onnx"))
    assert len(new) == 14 and all(not np.array_equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize(
    ("name", "data"),
    [("digits_mobile", CALIB), ("digits_preact", CALIB), ("tabular_mlp", f"{CANCER}:calib_x")],
)
@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_damaged_sample_models_come_back(tmp_path: Path, name: str, data: str, method: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes((SAMPLES / f"{name}.onnx").read_bytes())
    test = data.split(":", 1)[0]
    found = json.loads(ok("recalibrate", damaged(path), "--data", data, "--test", f"{test}:test_x", "--labels",
                          "test_y", "--method", method, "--json"))  # fmt: skip
    assert found["accuracy"]["before"] < 0.9 < 0.95 < found["accuracy"]["after"]
    assert found["method"] == method


def test_json(model: Path) -> None:
    found = json.loads(ok("recalibrate", model, "--data", CALIB, "--json", *TEST))
    assert found["written"] == [found["output"]] == [str(model.with_name("m.recalibrated.onnx"))]
    assert (found["input"], found["data"], found["samples"]) == (str(model), CALIB, 256)
    assert found["accuracy"]["before"] == 447 / 449 and found["accuracy"]["samples"] == 449
    assert len(found["batch_norms"]) == 7
    first = found["batch_norms"][0]
    assert {"name", "channels", "old_mean", "new_var", "score", "shift", "ratio"} <= set(first)
    assert len(first["new_mean"]) == first["channels"]


def test_same_bytes_for_the_same_seed(model: Path) -> None:
    written = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        target = model.with_name(f"{name}.onnx")
        ok("recalibrate", model, "--data", CALIB, "-o", target, "--seed", seed, "--samples", "128", "-q")
        written.append(target.read_bytes())
    assert written[0] == written[1] != written[2]


def test_in_place_undo_and_restore(model: Path) -> None:
    undo, restored = model.with_name("old.npz"), model.with_name("m.restored.onnx")
    out = ok("recalibrate", model, "--data", CALIB, "--in-place", "--undo", undo)
    assert rows(out)["wrote"] == f"{model} (285 kB), {undo} (9 kB)"
    assert model.read_bytes() != MODEL.read_bytes()
    refused(bnfold("recalibrate", model, "--data", CALIB, "--in-place", "--undo", undo), "exists already; --force")
    out = ok("recalibrate", model, "--restore", undo)
    assert rows(out)["BN"] == f"7 have their statistics of {undo} again"
    assert restored.read_bytes() == MODEL.read_bytes()
    ok("recalibrate", model, "--restore", undo, "--in-place", "-q")
    assert model.read_bytes() == MODEL.read_bytes()


def test_restore_refuses_what_is_not_its_own(model: Path, tmp_path: Path) -> None:
    undo = tmp_path / "old.npz"
    ok("recalibrate", SAMPLES / "digits_preact.onnx", "--data", CALIB, "-o", tmp_path / "p.onnx", "--undo", undo, "-q")
    refused(bnfold("recalibrate", model, "--restore", undo), "m.onnx: has no BatchNormalization")
    refused(bnfold("recalibrate", model, "--restore", DIGITS), "digits.npz: is no file that --undo wrote")
    refused(bnfold("recalibrate", model, "--restore", model), "m.onnx: is no file that --undo wrote")
    refused(bnfold("recalibrate", model, "--restore", tmp_path / "none"), "no such file")
    refused(bnfold("recalibrate", model, "--restore", undo, "--data", CALIB), "leave --data, --undo and --check")
    assert "m.restored.onnx" not in files(tmp_path)


def test_blend_keeps_some_of_the_old(model: Path) -> None:
    new = {}
    for name, arguments in (
        ("all", ("--source-weight", "1e9")),
        ("none", ("--source-weight", "0", "--cache-size", "0")),
    ):
        target = model.with_name(f"{name}.onnx")
        ok("recalibrate", model, "--data", CALIB, "--method", "blend", *arguments, "-o", target, "-q")
        new[name] = statistics(target)
    for name, old in statistics(model).items():
        assert np.allclose(new["all"][name], old, rtol=1e-5, atol=1e-6)
        assert not np.allclose(new["none"][name], old, rtol=1e-3)


def test_dry_run_writes_nothing(model: Path) -> None:
    out = ok("recalibrate", model, "--data", CALIB, "--dry-run", "--undo", model.with_name("u.npz"))
    assert rows(out)["dry run"] == f"no model was written; it would be {model.with_name('m.recalibrated.onnx')}"
    assert sorted(files(model.parent)) == ["m.onnx"]


def test_existing_output_needs_force(model: Path) -> None:
    target = model.with_name("m.recalibrated.onnx")
    target.write_text("mine")
    refused(bnfold("recalibrate", model, "--data", CALIB), f"{target}: exists already; --force replaces it")
    assert target.read_text() == "mine"
    ok("recalibrate", model, "--data", CALIB, "--force", "-q")
    assert len(statistics(target)) == 14


def test_only_and_skip(model: Path) -> None:
    out = ok("recalibrate", model, "--data", CALIB, "--only", "/[14]/*", "--skip", "/4/*", "--skip", "no*")
    assert [row[-1] for row in table(out)[1:]] == ["'/1/BatchNormalization'"]
    assert rows(out)["notice"] == "skip 'no*' matches the name of no BatchNormalization"
    old, new = statistics(model), statistics(model.with_name("m.recalibrated.onnx"))
    assert sum(not np.array_equal(old[name], new[name]) for name in old) == 2


# -- accuracy -----------------------------------------------------------------------------------------


def test_labels_hold_samples_out(model: Path) -> None:
    out = ok("recalibrate", damaged(model), "--data", f"{DIGITS}:test_x", "--labels", "test_y", "--samples", "300")
    pattern = r"\d+\.\d\d % \(\d+ of 149\) → (\d+\.\d\d) % \(\d+ of 149\), on samples that were not measured on"
    found = re.fullmatch(pattern, rows(out)["accuracy"])
    assert found and float(found[1]) > 95
    assert rows(out)["data"].startswith("300 samples of ")


def test_only_if_better(model: Path) -> None:
    whole = model.with_name("whole.onnx")
    whole.write_bytes(model.read_bytes())
    # Constant images make statistics that are good for nothing.
    np.save(model.with_name("grey.npy"), np.full((200, 1, 8, 8), 0.5, np.float32))
    data = ("--data", model.with_name("grey.npy"), *TEST, "--only-if-better")
    out = ok("recalibrate", whole, *data, "--undo", model.with_name("u.npz"))
    assert rows(out)["result"] == "the model was not written: it is no better"
    assert not {"whole.recalibrated.onnx", "u.npz"} & set(files(model.parent))
    assert json.loads(ok("recalibrate", whole, *data, "--json"))["written"] == []
    out = ok("recalibrate", damaged(model), "--data", CALIB, *TEST, "--only-if-better")
    assert rows(out)["wrote"].startswith(str(model.with_name("m.recalibrated.onnx")))


def test_metric(model: Path) -> None:
    script = model.with_name("judge.py")
    script.write_text(
        "import numpy as np\n"
        f"D = np.load({str(DIGITS)!r})\n"
        "def right(session):\n"
        "    found = session.run(None, {'input': D['test_x']})[0].argmax(axis=1)\n"
        "    return (found == D['test_y']).mean()\n"
        "def wrong(session):\n"
        "    return -right(session)\n"
    )
    arguments = ("recalibrate", damaged(model), "--data", CALIB, "--only-if-better", "--metric")
    out = ok(*arguments, f"{script}:wrong")
    assert rows(out)["result"] == "the model was not written: it is no better"
    found = json.loads(ok(*arguments, "judge:right", "--json", cwd=model.parent))
    assert found["metric"]["before"] < 0.9 < 0.95 < found["metric"]["after"] and len(found["written"]) == 1


def test_plot(model: Path) -> None:
    arguments = ("recalibrate", "m.onnx", "--data", CALIB, "--dry-run", "--plot", "drift.svg")
    if importlib.util.find_spec("matplotlib") is None:
        refused(bnfold(*arguments, cwd=model.parent), "--plot needs matplotlib; pip install 'bnfold[plot]'")
        return
    assert rows(ok(*arguments, cwd=model.parent))["wrote"].startswith("drift.svg (")
    assert "<svg" in model.with_name("drift.svg").read_text()


# -- sources ------------------------------------------------------------------------------------------


def test_python_source(model: Path) -> None:
    loader = model.with_name("loader.py")
    loader.write_text(
        "import numpy as np\n"
        f"X = np.load({str(DIGITS)!r})['calib_x']\n"
        "print('hello')\n"
        "def make():\n"
        "    for sample in X:\n"
        "        yield sample, 0\n"
        "class Reader:\n"
        "    def __init__(self): self.rows = iter(X)\n"
        "    def get_next(self):\n"
        "        row = next(self.rows, None)\n"
        "        return None if row is None else {'input': row[None]}\n"
    )
    written = []
    for source in (f"{loader}:make", "loader:Reader", f"{loader}:X"):
        result = bnfold("recalibrate", model, "--data", source, "--json", "--force", cwd=model.parent)
        assert (result.returncode, result.stderr) == (0, "hello\n")
        assert json.loads(result.stdout)["samples"] == 256
        written.append(statistics(model.with_name("m.recalibrated.onnx")))
    for name, array in written[0].items():
        assert np.array_equal(written[1][name], array)
        assert np.allclose(written[2][name], array, rtol=0.2, atol=0.1)  # in another order


def test_folder_of_images(model: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    folder = model.with_name("images")
    folder.mkdir()
    pixels = (np.load(DIGITS)["calib_x"][:, 0] * 240).round().astype(np.uint8)
    for number, one in enumerate(pixels):
        image.fromarray(np.kron(one, np.ones((2, 2), np.uint8))).save(folder / f"{number}.png")
    arguments = ("recalibrate", model, "--data", folder, "--resize", "8x8", "--scale", "1/240", *TEST)
    out = ok(*arguments)
    assert rows(out)["data"] == f"256 samples of {folder}"
    assert "images are only multiplied by 0.004167: no mean and std were given" in out
    assert re.search(r"→ 9[89]\.\d\d %", rows(out)["accuracy"])
    augmented = ok(*arguments, "--augment", "crop-flip:1", "--mean", "0", "--std", "1", "--force")
    assert "notice" not in rows(augmented) and table(augmented) != table(out)
    (folder / "bad.png").write_text("no image")
    refused(bnfold(*arguments, "--force"), f"{folder / 'bad.png'}: can't be decoded as an image")


def test_few_samples_are_told(model: Path) -> None:
    out = ok("recalibrate", model, "--data", CALIB, "--samples", "60")
    assert rows(out)["notice"] == "60 samples are few: from 128 on, better 256, statistics are good"


# -- what it refuses ----------------------------------------------------------------------------------

BAD_OPTIONS = [
    ((), "what to measure on is missing; give --data"),
    (("--data", CALIB, "-q", "-v"), "--quiet and --verbose contradict each other"),
    (("--data", CALIB, "--in-place", "-o", "x"), "--in-place and --output contradict each other"),
    (("--data", CALIB, "--source-weight", "3"), "--source-weight is of --method blend"),
    (("--data", CALIB, "--cache-size", "3"), "--cache-size is of --method exact and blend"),
    (("--data", CALIB, "--method", "magic"), "there is no method 'magic'"),
    (("--data", CALIB, "--provider", "magic"), "'magic' is no provider; choose from cpu, cuda, tensorrt"),
    (("--data", CALIB, "--only-if-better"), "--only-if-better needs --labels or --metric"),
    (("--data", CALIB, "--metric", "x.py"), "--metric is FILE.py:FUNCTION or MODULE:FUNCTION, not 'x.py'"),
    (("--data", CALIB, "--metric", "json:loads"), "the metric raised TypeError: the JSON object must be"),
    (("--data", CALIB, "--test", CALIB), "--test needs --labels"),
    (("--data", CALIB, "--batch-size", "0"), "see `bnfold recalibrate --help`"),
    (("--data", CALIB, "--resize", "1x2x3"), "--resize is a number of pixels or HEIGHTxWIDTH, not '1x2x3'"),
    (("--data", CALIB, "--crop", "0"), "--crop is a number of pixels or HEIGHTxWIDTH, not '0'"),
    (("--data", CALIB, "--mean", "a,b"), "--mean takes numbers, as in 0.5 or 0.485,0.456,0.406, not 'a'"),
    (("--data", CALIB, "--std", "0.1,0"), "--std takes numbers"),
    (("--data", CALIB, "--scale", "1/0"), "--scale takes numbers"),
    (("--data", CALIB, "--layout", "hwcn"), "--layout is nchw or nhwc, not 'hwcn'"),
    (("--data", CALIB, "--augment", "mixup"), "--augment is crop-flip or crop-flip:PIXELS, not 'mixup'"),
    (("--data", CALIB, "--only", "nothing"), "leave no BatchNormalization to measure"),
    (("--data", CALIB, "--undo", "m.recalibrated.onnx"), "--undo is the output itself"),
    (("--data", DIGITS), "has no array 'input'; it has 'calib_x', 'test_x', 'test_y'; name one: "),
    (("--data", f"{CANCER}:calib_x"), "input 'input': is [64, 30] in a batch; the model takes [batch, 1, 8, 8]"),
    (("--data", f"{DIGITS}:test_y"), "input 'input': is int64; the model takes float32"),
    (("--data", f"{DIGITS}:test_x", "--labels", "calib_x"), "labels are integers, one for each sample"),
    (("--data", CALIB, "--test", f"{DIGITS}:calib_x", "--labels", "test_y"), "has 449 labels for 256 samples"),
    (("--data", "nothing.npz"), "nothing.npz: there is no such file or folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_OPTIONS, ids=range(len(BAD_OPTIONS)))
def test_refusals_leave_nothing(model: Path, arguments: tuple[object, ...], message: str) -> None:
    result = bnfold("recalibrate", "m.onnx", *arguments, cwd=model.parent)
    refused(result, message)
    assert sorted(files(model.parent)) == ["m.onnx"]


def test_not_a_number_is_named_with_its_sample(model: Path) -> None:
    array = np.load(DIGITS)["calib_x"].copy()
    array[33, 0, 2, 2] = np.nan
    np.savez(model.with_name("d.npz"), input=array)
    result = bnfold("recalibrate", "m.onnx", "--data", "d.npz", "--in-place", cwd=model.parent)
    refused(result, "bnfold: d.npz: sample 33, input 'input': has NaN; leave it out")
    assert model.read_bytes() == MODEL.read_bytes()


USERS = """
import sys
import numpy as np
def fails():
    yield np.zeros((64, 1, 8, 8), np.float32)
    raise KeyError("label")  # of the user
def leaves():
    yield np.zeros((64, 1, 8, 8), np.float32)
    sys.exit(0)  # of the user
def judges(session):
    return 1 / 0  # of the user
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "user.py:fails"), "user.py:fails: sample 64: raised KeyError: 'label'; --traceback shows where"),
        (("--data", "user.py:leaves"), "user.py:leaves: sample 64: raised SystemExit: 0; --traceback shows where"),
        (("--data", CALIB, "--metric", "user.py:judges"), "m.onnx: the metric raised ZeroDivisionError: division by"),
    ],
    ids=["data", "exit", "metric"],
)
def test_code_of_the_user_that_fails(model: Path, arguments: tuple[str, ...], message: str) -> None:
    """Told as the user's, in a line; with --traceback the place in the user's file."""
    model.with_name("user.py").write_text(USERS)
    result = bnfold("recalibrate", "m.onnx", *arguments, "--traceback", cwd=model.parent)
    assert (result.returncode, result.stdout) == (2, "")
    *trace, last = result.stderr.splitlines()
    assert last.startswith(f"bnfold: {message}") and "internal error" not in result.stderr
    assert any(line.endswith("# of the user") for line in trace)
    assert sorted(files(model.parent)) == ["m.onnx", "user.py"]


def test_labels_of_another_problem(model: Path, tmp_path: Path) -> None:
    x = np.load(DIGITS)["calib_x"]
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(len(x)))
    result = bnfold("recalibrate", model, "--data", f"{tmp_path / 'd.npz'}:x", "--labels", "y")
    refused(result, "output 'logits': has 10 classes; labels go from")


def test_model_without_batch_norm(model: Path) -> None:
    ok("fold", model, "--in-place", "--no-verify", "-q")
    result = bnfold("recalibrate", model, "--data", CALIB)
    refused(result, "has no BatchNormalization (folded away already?); export the model again with BN preserved")


def test_model_with_a_fixed_batch(tmp_path: Path) -> None:
    onnx.save(conv_bn(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((150, 3, 8, 8)).astype(np.float32))
    out = ok("recalibrate", tmp_path / "m.onnx", "--data", tmp_path / "x.npy")
    assert rows(out)["method"] == "exact"
    assert rows(out)["data"].startswith("150 samples")
    assert rows(out)["notice"].startswith("the model takes 1 samples at a time")


def test_interrupted_leaves_nothing(model: Path) -> None:
    slow = model.with_name("slow.py")
    slow.write_text(
        "import numpy as np, sys, time\n"
        "def make():\n"
        "    while True:\n"
        "        print('on my way', file=sys.stderr, flush=True)\n"
        "        yield np.zeros((64, 1, 8, 8), np.float32)\n"
        "        time.sleep(0.05)\n"
    )
    command = [sys.executable, "-m", "bnfold", "recalibrate", str(model), "--data", f"{slow}:make", "--in-place"]
    streams = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "preexec_fn": interruptible}
    process = subprocess.Popen(command, text=True, **streams)
    assert process.stderr is not None
    assert process.stderr.readline() == "on my way\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "bnfold: interrupted"
    assert sorted(name for name in files(model.parent) if name != "slow.py") == ["m.onnx"]
    assert model.read_bytes() == MODEL.read_bytes()


def test_verbose_tells_its_progress(model: Path) -> None:
    slow = model.with_name("slow.py")
    slow.write_text(
        "import numpy as np, time\n"
        f"X = np.load({str(DIGITS)!r})['calib_x']\n"
        "def make():\n"
        "    for start in range(0, 256, 64):\n"
        "        time.sleep(0.4)\n"
        "        yield X[start : start + 64]\n"
    )
    result = bnfold("recalibrate", model, "--data", f"{slow}:make", "-v")
    assert result.returncode == 0
    assert re.search(r"^bnfold: \d+\.\d\d s: measuring: \d+ samples, [\d.]+ a second$", result.stderr, re.MULTILINE)
