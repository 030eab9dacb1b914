"""`recalibrate` with all that it writes, and `insert`, when something fails or kills them at every single step."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from test_cli_states import command, contents, make_world
from test_saving_faults import Trip, die_at

COMMANDS = {
    "recalibrate": ("recalibrate", "e.onnx", "--undo", "undo.npz", "--checkpoint", "progress", "--method", "exact"),
    "insert": ("insert", "bare.onnx"),
}
OUTPUTS = ("out.onnx", "out.onnx.data", "undo.npz", "progress")


def world(folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    make_world(folder)
    return contents(folder)


def run(name: str, folder: Path) -> tuple[int, str, str]:
    files = [str(folder / part) if "." in part or part == "progress" else part for part in COMMANDS[name]]
    return command(*files, "--data", str(folder / "d.npz"), "-o", str(folder / "out.onnx"), "--force", "-q")


def demand_whole(name: str, folder: Path, before: dict[str, bytes], new: dict[str, bytes]) -> None:
    """Inputs are as they were, outputs old or new; a new model has its way back; and the same command gets through."""
    after = contents(folder)
    for file in before.keys() - set(OUTPUTS):
        assert after[file] == before[file], file
    assert after["out.onnx"] in (before["out.onnx"], new["out.onnx"])
    assert after["undo.npz"] in (before["undo.npz"], new["undo.npz"])
    if after["out.onnx"] == new["out.onnx"] != before["out.onnx"]:
        assert all(after[file] == content for file, content in new.items())
    code, _, said = run(name, folder)
    assert code == 0, said
    statistics = small_models.contents(onnx.load(folder / "out.onnx"))  # its data file may have another name now
    wanted = small_models.contents(onnx.load(folder.parent / "undisturbed" / "out.onnx"))
    assert statistics.keys() == wanted.keys()
    assert all(np.array_equal(statistics[key], wanted[key]) for key in wanted)


@pytest.fixture
def new(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, bytes]:
    """What the command makes if nothing is in its way."""
    world(tmp_path / "undisturbed")
    assert run(request.getfixturevalue("name"), tmp_path / "undisturbed")[::2] == (0, "")
    return {file: data for file, data in contents(tmp_path / "undisturbed").items() if file in OUTPUTS}


@pytest.mark.parametrize(
    ("error", "after"), [(OSError(errno.ENOSPC, "full"), False), (KeyboardInterrupt(), True)], ids=["full", "Ctrl-C"]
)
@pytest.mark.parametrize("name", COMMANDS)
def test_failures_at_every_step(
    name: str, error: BaseException, after: bool, new: dict[str, bytes], tmp_path: Path
) -> None:
    for at in range(1, 200):
        folder = tmp_path / str(at)
        before = world(folder)
        with pytest.MonkeyPatch.context() as patch:
            trip = Trip(patch, at, error, after)
            code, _, said = run(name, folder)
        assert code in (0, 2, 130) and said.count("\n") == (code != 0), (at, code, said)
        assert "internal error" not in said, (at, said)
        assert not list(folder.rglob("*.tmp")), at
        demand_whole(name, folder, before, new)
        if trip.calls < at:
            break
    assert code == 0
    assert at > 5


def killed(at: int, job: Callable[[], Any]) -> bool:
    """Whether a child that does the job dies at the n-th call of the system."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    die_at(at)
    try:
        job()
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", COMMANDS)
def test_kill_at_every_step(name: str, new: dict[str, bytes], tmp_path: Path) -> None:
    for at in range(1, 200):
        folder = tmp_path / str(at)
        before = world(folder)
        died = killed(at, lambda folder=folder: run(name, folder))
        demand_whole(name, folder, before, new)
        if not died:
            break
    assert not died
    assert at > 5
