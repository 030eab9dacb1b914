"""A disk that is really full: a file system of a few hundred kilobytes, in a namespace of its own.

Where the system lets nobody make one, `test_saving_faults.py` has what comes next to it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import MODEL, files

import bnfold
from bnfold.recalibrate.undo import keep_old

DIGITS = MODEL.parent / "digits.npz"
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
PROBE = "mkdir -p $0/probe && mount -t tmpfs -o size=64k none $0/probe"


@pytest.fixture(scope="module", autouse=True)
def _small_disks(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("probe"))
    if not shutil.which("unshare") or subprocess.run(
        [*NAMESPACE, "sh", "-c", PROBE, folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("this system lets users mount nothing")


def on_small_disk(
    folder: Path, kilobytes: int, *arguments: object, temporary: bool = False
) -> tuple[subprocess.CompletedProcess[str], dict[str, bytes], dict[str, bytes]]:
    """Run the command where there is so much room; its result, and the files there before and after.

    `temporary`: the small disk is the one for temporary files, and the model's folder a usual one.
    """
    disk, kept = folder / "disk", folder / "kept"
    disk.mkdir()
    before = files(folder)
    command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    script = 'mount -t tmpfs -o size="$1" none "$2" && cp "$3"/*.* "$2" && cd "$4" && shift 4 && "$@"; code=$?;'
    script += ' cp -a "$DISK" "$KEPT"; exit $code'
    place = folder if temporary else disk
    environment = {**os.environ, "DISK": str(place), "KEPT": str(kept)}
    if temporary:
        environment["TMPDIR"] = str(disk)
        script = script.replace('cp "$3"/*.* "$2" && ', "")
        environment["DISK"] = str(disk)
    result = subprocess.run(
        [*NAMESPACE, "sh", "-c", script, "sh", f"{kilobytes}k", disk, folder, place, *command],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return result, before, files(kept) if not temporary else files(folder)


FULL = (MODEL.stat().st_size + 4095) // 4096 * 4  # kilobytes: the model, in pages, and nothing else
NO_ROOM = "there is no space left for it; nothing was changed"
CASES: dict[str, tuple[int, tuple[object, ...]]] = {
    "fold": (400, ("fold", "m.onnx")),
    "fold in place": (400, ("fold", "m.onnx", "--in-place")),
    "fold over an earlier output": (400, ("fold", "m.onnx", "-o", "earlier.bin", "--force")),
    "recalibrate": (400, ("recalibrate", "m.onnx", "--data", f"{DIGITS}:calib_x")),
    "recalibrate in place, with a way back": (
        400, ("recalibrate", "m.onnx", "--data", f"{DIGITS}:calib_x", "--in-place", "--undo", "u.npz")),
    "put statistics back": (400, ("recalibrate", "m.onnx", "--restore", "u.npz", "--in-place")),
    "insert": (400, ("insert", "bare.onnx", "--mode", "fresh")),
    "verify, for a build server": (FULL, ("verify", "m.onnx", "m.onnx", "--junit", "j.xml")),
    "verify": (FULL, ("verify", "m.onnx", "m.onnx", "--certificate", "c.json")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_full_disk_loses_nothing(name: str, tmp_path: Path) -> None:
    kilobytes, arguments = CASES[name]
    if name == "insert":
        bnfold.fold(MODEL, verify=False).save(tmp_path / "bare.onnx")
    else:
        (tmp_path / "m.onnx").write_bytes(MODEL.read_bytes())
    if "earlier" in name:
        (tmp_path / "earlier.bin").write_bytes(b"earlier")
    if "u.npz" in arguments and "--restore" in arguments:
        keep_old(bnfold.recalibrate(MODEL, f"{DIGITS}:calib_x").drift, tmp_path / "u.npz")
    result, before, after = on_small_disk(tmp_path, kilobytes, *arguments)
    assert result.returncode == 2, result
    assert NO_ROOM in result.stderr and result.stderr.count("\n") == 1
    assert after == before, sorted(after)


@pytest.mark.parametrize(
    "arguments",
    [
        ("recalibrate", "m.onnx", "--data", f"{DIGITS}:calib_x"), ("verify", "m.onnx", "--optimized"),
        ("recalibrate", "m.onnx", "--data", "packed.npz"),
    ],
    ids=["recalibrate", "verify", "packed samples"],
)  # fmt: skip
def test_no_room_for_temporary_files(arguments: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MODEL.read_bytes())
    if "packed.npz" in arguments:
        np.savez_compressed(tmp_path / "packed.npz", input=np.load(DIGITS)["calib_x"])
    result, before, after = on_small_disk(tmp_path, 100, *arguments, temporary=True)
    assert result.returncode in (2, 3), result
    assert result.stderr.count("\n") == (result.returncode == 2)
    assert after == before, sorted(after)


READ_ONLY = 'mount -t tmpfs none "$1" && cp "$2" "$1" && mount -o remount,ro "$1" && cd "$1" && shift 2 && "$@"'


@pytest.mark.parametrize("arguments", [("--in-place",), (), ("-o", "n.onnx")], ids=str)
def test_a_read_only_file_system(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MODEL.read_bytes())
    (tmp_path / "disk").mkdir()
    command = [sys.executable, "-m", "bnfold", "fold", "m.onnx", "--no-verify", *arguments]
    script = [*NAMESPACE, "sh", "-c", READ_ONLY, "sh", tmp_path / "disk", tmp_path / "m.onnx", *command]
    result = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert "can't be written: Read-only file system; nothing was changed" in result.stderr
    assert result.stderr.count("\n") == 1
