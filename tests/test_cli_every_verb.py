"""What holds for each verb: signals at a bad moment, defects of our own, and what a child that dies leaves behind.

Each command runs in a fork of this process, which costs a tenth of a second instead of one.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from test_cli_states import contents, make_world

import bnfold.model_file
from bnfold.cli import main

# Each with the moment at which it is hit: while it reads a model, or while it brings a file to disk.
COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "fold": (("fold", "m.onnx", "--no-verify"), "fsync"),
    "fold with a check": (("fold", "e.onnx", "-o", "out.onnx", "--force"), "fsync"),
    "fold in place": (("fold", "e.onnx", "--in-place", "--no-verify"), "fsync"),
    "fold, rounding anew": (("fold", "rounded.onnx", "--requantize", "d.npz"), "fsync"),
    "inspect": (("inspect", "m.onnx", "--json"), "read"),
    "verify": (("verify", "m.onnx", "e.onnx", "--certificate", "c.json"), "fsync"),
    "verify, reading": (("verify", "m.onnx", "e.onnx", "--junit", "j.xml"), "read"),
    "recalibrate": (("recalibrate", "m.onnx", "--data", "d.npz", "--undo", "u.npz"), "fsync"),
    "restore": (("recalibrate", "out.onnx", "--restore", "undo.npz", "--in-place"), "fsync"),
    "insert": (("insert", "bare.onnx", "--data", "d.npz"), "fsync"),
}
READ, SYNC = bnfold.model_file._parse, os.fsync


class End(NamedTuple):
    """How a command ended: its exit code, negative for a signal, and what it said."""

    code: int
    out: str
    err: str


def ended(folder: Path, arguments: tuple[str, ...], moment: str, at: Callable[[], None]) -> End:
    """The command, run in a child in which `at` is called at that moment."""
    logs = [folder.parent / name for name in ("stdout", "stderr")]
    child = os.fork()
    if not child:
        try:
            os.chdir(folder)
            tempfile.tempdir = str(folder.parent)  # what a kill leaves there goes with it
            for stream, log in enumerate(logs, 1):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _hit(moment, at)
            sys.argv = ["bnfold", *arguments]
            main()
        except SystemExit as stop:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(stop.code or 0))
        finally:
            os._exit(99)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return End(code, *(log.read_text() for log in logs))


def _hit(moment: str, at: Callable[[], None]) -> None:
    def reading(*arguments: object) -> object:
        at()
        return READ(*arguments)  # type: ignore[arg-type]

    def syncing(fd: int) -> None:
        at()
        SYNC(fd)

    if moment == "read":
        bnfold.model_file._parse = reading  # type: ignore[assignment]
    else:
        os.fsync = syncing


@pytest.fixture
def world(tmp_path: Path) -> Path:
    folder = tmp_path / "world"
    folder.mkdir()
    make_world(folder)
    return folder


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", COMMANDS)
def test_interrupted_leaves_nothing(name: str, number: int, world: Path) -> None:
    before = contents(world)
    end = ended(world, *COMMANDS[name], kill(number))
    assert end == (130, "", "bnfold: interrupted\n")
    assert contents(world) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_leaves_inputs_and_earlier_outputs(name: str, world: Path) -> None:
    """A temporary file may be left, whose name says whose it is; tests/test_cli_faults.py kills at every step."""
    before = contents(world)
    assert ended(world, *COMMANDS[name], kill(signal.SIGKILL)).code == -signal.SIGKILL
    after = contents(world)
    left = {file for file in after if file.startswith(".bnfold-") and file.endswith(".tmp")}
    assert {file: data for file, data in after.items() if file not in left} == before
    assert len(left) <= 1


def defect() -> None:
    raise ZeroDivisionError("two\nlines \x1b[2J")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_defect_asks_for_a_report_and_loses_nothing(name: str, world: Path) -> None:
    before = contents(world)
    code, out, err = ended(world, *COMMANDS[name], defect)
    assert (code, out) == (2, "")
    asks = "please report it, with the output of the same command with --traceback"
    assert err == rf"bnfold: internal error: ZeroDivisionError: two\nlines \x1b[2J; {asks}" + "\n"
    assert contents(world) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_undisturbed_they_get_through(name: str, world: Path) -> None:
    """The moment comes, and what is tested above would have been done."""
    seen = world.parent / "seen"
    before = contents(world)
    code, _, err = ended(world, *COMMANDS[name], seen.touch)
    assert (code, err) == (0, "")
    assert seen.exists()
    assert (contents(world) != before) == (name != "inspect")
