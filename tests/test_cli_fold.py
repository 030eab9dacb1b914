"""`bnfold fold`: what it writes and tells, and what is left when it fails or is interrupted."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import MODEL, batch_norms, bnfold, conv_bn, files, interruptible, ok, refused
from onnx import helper, numpy_helper

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
found = types.SimpleNamespace(passed=False, worst=99.0, worst_name='relu\\x1b', limit=8.0, overflow='')
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
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": interruptible}
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


def test_account_is_the_same_in_every_process() -> None:
    """Sets of texts have another order in each process: nodes were told in it."""
    told = [
        ok("fold", MODEL.with_name("digits_preact.onnx"), "--dry-run", "--json", "--no-verify",
           env=os.environ | {"PYTHONHASHSEED": str(seed)})
        for seed in range(4)
    ]  # fmt: skip
    assert len(set(told)) == 1
