"""What is written goes where it was asked for, over nothing that was given, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from command import MODEL, bnfold, files, ok, refused
from small_models import array, same_weights, write_external

import bnfold as library
from bnfold.verify.runtime import TELEMETRY, onnxruntime_module

DIGITS = MODEL.parent / "digits.npz"
CALIB = ("--data", "d.npz:calib_x")
INPUT = "is an input of this very command; choose another name"
TWICE = "is to be written twice, as two outputs; choose another name"

ARGUMENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "the way back is the model": (
        ("recalibrate", "m.onnx", *CALIB, "--undo", "m.onnx", "--force"), "--undo is the model itself"),
    "the way back is the data": (("recalibrate", "m.onnx", *CALIB, "--undo", "d.npz", "--force"), f"d.npz: {INPUT}"),
    "the way back is a link to the data": (
        ("recalibrate", "m.onnx", *CALIB, "--undo", "link.npz", "--force"), f"link.npz: {INPUT}"),
    "the way back is the output": (
        ("recalibrate", "m.onnx", *CALIB, "--undo", "./m.recalibrated.onnx", "--force"), "--undo is the output itself"),
    "the output is the data": (("recalibrate", "m.onnx", *CALIB, "-o", "d.npz", "--force"), f"d.npz: {INPUT}"),
    "the output is the data that insert measures on": (
        ("insert", "b.onnx", *CALIB, "-o", "link.npz", "--force"), f"link.npz: {INPUT}"),
    "the certificate is a model": (("verify", "m.onnx", "b.onnx", "--certificate", "b.onnx"), f"b.onnx: {INPUT}"),
    "the report is the data": (
        ("verify", "m.onnx", "b.onnx", "--data", "d.npz", "--junit", "link.npz"), f"link.npz: {INPUT}"),
    "two reports in one": (("verify", "m.onnx", "b.onnx", "--certificate", "r", "--junit", "./r"), f"./r: {TWICE}"),
    "a report is a folder": (("verify", "m.onnx", "b.onnx", "--junit", "."), "is a folder"),
    "a report is a device": (("verify", "m.onnx", "b.onnx", "--junit", "/dev/null"), "is a device"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_outputs_are_no_inputs(name: str, model: Path) -> None:
    arguments, message = ARGUMENTS[name]
    folder = model.parent
    (folder / "b.onnx").write_bytes(model.read_bytes())
    (folder / "d.npz").write_bytes(DIGITS.read_bytes())
    (folder / "link.npz").symlink_to("d.npz")
    before = files(folder)
    refused(bnfold(*arguments, cwd=folder), message)
    assert files(folder) == before


def test_a_report_is_not_a_data_file_of_a_model(tmp_path: Path) -> None:
    path = write_external(tmp_path / "m.onnx", "w.bin", w=array(400))
    before = files(tmp_path)
    refused(bnfold("verify", path, path, "--certificate", "w.bin", cwd=tmp_path), f"w.bin: {INPUT}")
    assert files(tmp_path) == before


def test_two_processes_write_one_output(tmp_path: Path) -> None:
    """Whoever comes last wins, whole: model and data fit together, and nothing else is left."""
    for name, seed in (("a", 0), ("b", 1)):
        write_external(tmp_path / f"{name}.onnx", w=array(50_000, seed=seed))
    inputs = set(files(tmp_path))
    script = (
        "import sys, bnfold\n"
        "for _ in range(40):\n"
        "    bnfold.fold(sys.argv[1]).save(sys.argv[2], overwrite=True)\n"
    )
    command = [sys.executable, "-c", script]
    writers = [
        subprocess.Popen([*command, tmp_path / f"{name}.onnx", tmp_path / "out.onnx"], stderr=subprocess.PIPE)
        for name in ("a", "b")
    ]
    errors = [writer.communicate(timeout=120)[1].decode() for writer in writers]
    assert all("Error" not in error or "OutputError" in error or "ModelError" in error for error in errors), errors
    left = set(files(tmp_path)) - inputs
    assert not [name for name in left if name.endswith(".tmp")]
    onnx.checker.check_model(str(tmp_path / "out.onnx"))
    assert any(same_weights(tmp_path / "out.onnx", w=array(50_000, seed=seed)) for seed in (0, 1))
    for name, seed in (("a", 0), ("b", 1)):
        assert same_weights(tmp_path / f"{name}.onnx", w=array(50_000, seed=seed))


def test_nothing_is_left_in_the_home_directory(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    temporary = tmp_path / "temporary"
    for folder in (home, temporary):
        folder.mkdir()
    unset = {name: value for name, value in os.environ.items() if name != TELEMETRY}
    environment = {**unset, "HOME": str(home), "TMPDIR": str(temporary), "XDG_CACHE_HOME": str(home / "cache")}
    ok("fold", model, "-q", env=environment)
    ok("recalibrate", model, "--data", f"{DIGITS}:calib_x", "-q", env=environment)
    ok("verify", model, model, "-q", env=environment)
    ok("inspect", model, "--json", env=environment)
    assert not list(home.rglob("*")) and not list(temporary.rglob("*"))
    assert sorted(files(model.parent)) == ["m.folded.onnx", "m.onnx", "m.recalibrated.onnx"]


def test_the_environment_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is there while onnxruntime is imported, unless the user has decided."""
    onnxruntime_module()
    assert library.__version__
    seen = []
    script = (
        "import os, sys\n"
        "class Spy:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'), end=' ')\n"
        "sys.meta_path.insert(0, Spy())\n"
        "from bnfold.verify.runtime import onnxruntime_module\n"
        "onnxruntime_module()\n"
        "print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
    )
    for value in (None, "0"):
        monkeypatch.delenv(TELEMETRY, raising=False)
        if value is not None:
            monkeypatch.setenv(TELEMETRY, value)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        seen.append(done.stdout.split())
    assert seen == [["1", "None"], ["0", "0"]]
