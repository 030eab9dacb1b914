"""What the command shows, and the command itself: help, version, completion, imports."""

from __future__ import annotations

import doctest
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from command import conv_bn, files, ok
from conftest import REPO

from bnfold._version import __version__

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
    assert "folding … 0 s" in shown
    assert "\x1b[1mBN" in shown


@pytest.mark.parametrize(("columns", "below"), [("80", True), ("200", False)])
def test_table_fits_the_terminal_with_whole_names(columns: str, below: bool) -> None:
    path = REPO / "sample_models" / "digits_mobile.onnx"
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", in_terminal("inspect", path, COLUMNS=columns, NO_COLOR="1"))
    lines = shown.replace("\r\n", "\n").split("\n")
    assert max(len(line.rpartition("\r")[2]) for line in lines) <= int(columns)
    names = [entry["name"] for entry in json.loads(ok("inspect", path, "--json"))["batch_norms"]]
    ends = [f"    '{name}'" if below else f"  '{name}'" for name in names]
    found = [line.rstrip() for line in lines if line.startswith("    '") == below]
    assert [end for end in ends if not any(line.endswith(end) for line in found)] == []


def test_colours_say_what_became_of_it() -> None:
    shown = in_terminal("inspect", REPO / "sample_models" / "digits_cnn.onnx", COLUMNS="200")
    assert "\x1b[32mfolded, backward" in shown


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
    assert ok(env=env).split() == ["inspect", "insert"]


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
