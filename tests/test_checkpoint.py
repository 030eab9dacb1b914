"""A run that is killed goes on where it was, to the last digit; and never mixes in what is not its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import MODEL, files, ok, refused
from command import bnfold as command
from recalibration_models import CHANNELS, conv_net, samples

import bnfold
from bnfold.errors import ModelError, UsageError
from bnfold.recalibrate import checkpoint, exact, measure
from bnfold.recalibrate.cache import Cache
from bnfold.recalibrate.checkpoint import Checkpoint, Progress
from bnfold.recalibrate.data import open_data
from bnfold.recalibrate.moments import Trace

X = samples(160, CHANNELS, 6, 6)


class Killed(Exception):
    pass


def batches(stop: int | None = None, x: Any = X) -> Callable[[], Iterator[Any]]:
    """A function that gives batches of 16 in order, and breaks off before one of them."""

    def make() -> Iterator[Any]:
        for number, start in enumerate(range(0, len(x), 16)):
            if number == stop:
                raise KeyboardInterrupt
            yield x[start : start + 16]

    return make


def recalibrated(data: Any, file: Path | None, **options: Any) -> bnfold.RecalibrationResult:
    return bnfold.recalibrate(conv_net(), data, batch_size=16, checkpoint=file, **options)


@pytest.mark.parametrize("stop", [1, 2, 7])
@pytest.mark.parametrize("rows", [False, True], ids=["stream", "rows"])
def test_pooled_goes_on_in_the_middle(
    tmp_path: Path, stop: int, rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.npz"
    whole = recalibrated(X if rows else batches(), None)
    ran = []
    plain = measure.run

    def run(runner: Any, feeds: Any) -> Any:
        if len(ran) == stop and not again:
            raise KeyboardInterrupt
        ran.append(feeds["x"])
        return plain(runner, feeds)

    monkeypatch.setattr(measure, "run", run)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)  # after each batch
    again = False
    with pytest.raises(KeyboardInterrupt):
        recalibrated(X if rows else batches(), file)
    assert sorted(files(tmp_path)) == ["c.npz"]
    again = True
    result = recalibrated(X if rows else batches(), file)
    assert len(ran) == 10  # nothing was measured twice
    assert result.model.SerializeToString() == whole.model.SerializeToString()
    assert result.samples == whole.samples == 160
    assert [one.to_dict() for one in result.drift] == [one.to_dict() for one in whole.drift]
    assert f"went on after batch {stop} of the checkpoint" in result.notices
    assert file.exists()
    result.save(tmp_path / "out.onnx")
    assert sorted(files(tmp_path)) == ["out.onnx"]


@pytest.mark.parametrize("method", ["exact", "blend"])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_exact_goes_on_at_the_segment(
    tmp_path: Path, method: Any, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within segment `stop`: those before it are not run again."""
    file = tmp_path / "c.npz"
    whole = recalibrated(X, None, method=method)
    levels = []
    plain = exact._segment

    def segment(plan: Any, level: int, *rest: Any) -> Iterator[Any]:
        levels.append(level)
        for number, values in enumerate(plain(plan, level, *rest)):
            if number == 3 and level == stop and len(levels) == stop + 1:
                raise KeyboardInterrupt
            yield values

    monkeypatch.setattr(exact, "_segment", segment)
    with pytest.raises(KeyboardInterrupt):
        recalibrated(X, file, method=method)
    result = recalibrated(X, file, method=method)
    assert levels == [*range(stop + 1), *range(stop, 3)]
    assert result.model.SerializeToString() == whole.model.SerializeToString()
    assert [one.to_dict() for one in result.drift] == [one.to_dict() for one in whole.drift]
    result.save(tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_a_finished_run_that_was_not_saved_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("pooled", "exact"):
        file = tmp_path / f"{method}.npz"
        first = recalibrated(X, file, method=method)
        with monkeypatch.context() as patch:
            patch.setattr(measure, "run", None)
            patch.setattr(exact, "run", None)
            second = recalibrated(X, file, method=method)
        assert first.model.SerializeToString() == second.model.SerializeToString()


def other_model() -> Any:
    model = conv_net()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[::-1]
    return model


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": other_model()}, "another model; "),
    "seed": ({"seed": 5}, r"another seed \(0, now 5\)"),
    "method": ({"method": "exact"}, "another method"),
    "batch": ({"batch_size": 20}, r"another batch size \(16, now 20\)"),
    "samples": ({"samples": 100}, r"another number of samples \(160, now 100\)"),
    "unbiased": ({"unbiased": True}, r"another unbiased \(false, now true\)"),
    "sites": ({"skip": "bn1"}, "another choice of BatchNormalizations"),
    "data": ({"data": X + 1}, "other data"),
    "less data": ({"data": X[:80]}, "another number of samples"),
    "the last batch": ({"data": np.concatenate([X[:32], X[32:] + 1])}, "other data"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_another_run_is_refused(tmp_path: Path, what: str) -> None:
    given, message = FOREIGN[what]
    file = tmp_path / "c.npz"
    recalibrated(X, file)
    before = file.read_bytes()
    options = {"model": conv_net(), "data": X, "batch_size": 16, "checkpoint": file} | given
    with pytest.raises(UsageError, match=f"c.npz: is the checkpoint of {message}"):
        bnfold.recalibrate(options.pop("model"), options.pop("data"), **options)
    assert file.read_bytes() == before


def test_a_shorter_stream_is_refused(tmp_path: Path) -> None:
    recalibrated(batches(), tmp_path / "c.npz")
    with pytest.raises(UsageError, match="is the checkpoint of other data"):
        recalibrated(batches(x=X[:80]), tmp_path / "c.npz")


def test_another_last_batch_is_refused(tmp_path: Path) -> None:
    recalibrated(batches(), tmp_path / "c.npz")
    with pytest.raises(UsageError, match="is the checkpoint of other data"):
        recalibrated(batches(x=np.concatenate([X[:-16], X[-16:] + 1])), tmp_path / "c.npz")


def test_files_that_no_checkpoint_knows_go(tmp_path: Path) -> None:
    for name in ("1.npy", "2.npy"):
        np.save(tmp_path / name, X)
    with Cache(1 << 30, tmp_path, [{"x": "1.npy"}]) as cache:
        assert np.array_equal(cache.get(0)["x"], X)
        assert sorted(files(tmp_path)) == ["1.npy"]
        cache.put(0, {"y": X + 1})
        cache.drop(0, ["x"])
        assert sorted(files(tmp_path)) == ["1.npy", "2.npy"]  # until the next checkpoint is written
        cache.sweep()
    assert sorted(files(tmp_path)) == ["2.npy"]


def test_no_file_of_others_is_read_or_removed(tmp_path: Path) -> None:
    """A cache clears away its own files alone, and a checkpoint that names others is none of ours."""
    folder = tmp_path / "c.npz.cache"
    folder.mkdir()
    np.save(tmp_path / "1.npy", X)
    for name in ("notes.txt", "x1.npy", "3.npy"):
        (folder / name).write_bytes(b"mine")
    saved = Checkpoint(tmp_path / "c.npz", {})
    for name, sound in (("../1.npy", False), ("/etc/hostname", False), ("1.npy/../../1.npy", False), ("1.npy", True)):
        saved.write(Progress([Trace()], cached=[{"x": name}]))
        if sound:
            assert Checkpoint(saved.path, {}).found is not None
            continue
        with pytest.raises(UsageError, match=r"c.npz: is no file that --checkpoint wrote"):
            Checkpoint(saved.path, {})
    with Cache(0, folder):
        assert sorted(files(folder)) == ["notes.txt", "x1.npy"]
    np.save(folder / "1.npy", X)
    saved.remove()
    assert sorted(files(folder)) == ["notes.txt", "x1.npy"]
    assert sorted(files(tmp_path)) == ["1.npy"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_value_that_is_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.npy")
    with Cache(0, tmp_path, [{"x": "1.npy"}]) as cache, pytest.raises(UsageError, match=r"1.npy: is damaged or gone"):
        cache.get(0)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.npz"
    recalibrated(X, file)
    content = file.read_bytes()
    np.savez(tmp_path / "arrays.npz", x=X)
    np.save(tmp_path / "array.npy", X)
    with np.load(file) as arrays:
        packed = {name: arrays[name] for name in arrays}
    np.savez_compressed(tmp_path / "packed.npz", **packed)
    others = [(tmp_path / name).read_bytes() for name in ("arrays.npz", "array.npy", "packed.npz")]
    for bad in (b"", b"mine", content[: len(content) // 2], *others):
        file.write_bytes(bad)
        with pytest.raises(UsageError, match=r"c.npz: is no file that --checkpoint wrote"):
            recalibrated(X, file)
        assert file.read_bytes() == bad


def test_a_damaged_value_of_exact_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.npz"
    plain = exact._segment

    def segment(plan: Any, level: int, *rest: Any) -> Iterator[Any]:
        if level == 2:
            raise ModelError("stop")
        yield from plain(plan, level, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(exact, "_segment", segment)
        with pytest.raises(ModelError, match="stop"):
            recalibrated(X, file, method="exact")
    kept = sorted((tmp_path / "c.npz.cache").iterdir())
    assert kept
    kept[0].write_bytes(b"")
    with pytest.raises(UsageError, match="is damaged or gone; remove the checkpoint"):
        recalibrated(X, file, method="exact")


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.npz"
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    with pytest.raises(KeyboardInterrupt):
        recalibrated(batches(3), file)
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(bnfold.OutputError, match="no space left"):
            recalibrated(batches(), file)
    assert files(tmp_path) == {"c.npz": before}
    assert recalibrated(batches(), file).model == recalibrated(batches(), None).model


# -- processes ----------------------------------------------------------------------------------------

SLOW = """
import sys, time
import numpy as np
X = np.load({data!r})["calib_x"]
def make():
    for start in range(0, {count}, 16):
        print(start, file=sys.stderr, flush=True)
        yield X[start % 256 : start % 256 + 16]
        time.sleep({pause})
"""


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_kill_9(model: Path, method: str) -> None:
    """A process that is killed in the middle, and one that goes on: the bytes of one that was left alone."""
    data = str(MODEL.parent / "digits.npz")
    count, pause = (256, 0.1) if method == "pooled" else (4096, 0)
    loader = model.with_name("loader.py")
    words = ["recalibrate", str(model), "--data", f"{loader}:make", "--batch-size", "16", "--method", method]
    loader.write_text(SLOW.format(data=data, pause=0, count=count))
    assert command(*words, "-q", "-o", model.with_name("whole.onnx")).returncode == 0
    loader.write_text(SLOW.format(data=data, pause=pause, count=count))
    file, target = model.with_name("c.npz"), model.with_name("out.onnx")
    words += ["--checkpoint", str(file), "-o", str(target)]
    process = subprocess.Popen([sys.executable, "-m", "bnfold", *words], stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        last = "96\n" if method == "pooled" else f"{count - 16}\n"  # in the middle of the data; at its end
        while process.stderr.readline() != last:
            pass
        while not file.exists():  # exact: the first segment is through
            assert process.poll() is None
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert file.exists() and not target.exists()
    loader.write_text(SLOW.format(data=data, pause=0, count=count))
    result = command(*words, "--json")
    assert result.returncode == 0
    assert any(notice.startswith("went on after batch") for notice in json.loads(result.stdout)["notices"])
    assert target.read_bytes() == model.with_name("whole.onnx").read_bytes()
    assert not file.exists() and not file.with_name("c.npz.cache").exists()


def test_the_command_refuses(model: Path) -> None:
    data = str(MODEL.parent / "digits.npz:calib_x")
    words = ("recalibrate", "m.onnx", "--data", data, "--checkpoint")
    cwd = {"cwd": model.parent}
    refused(command(*words, "m.onnx", **cwd), "m.onnx: --checkpoint is the model itself; choose another name")
    refused(command(*words, "c", "--undo", "c", **cwd), "c: --checkpoint is --undo; choose another name")
    refused(command(*words, "no/c", **cwd), "there is no folder")
    shutil.copy(model, model.with_name("c"))
    refused(command(*words, "c", **cwd), "c: is no file that --checkpoint wrote; choose another name")
    model.with_name("c").unlink()
    ok(*words, "c", "--dry-run", **cwd)
    assert sorted(files(model.parent)) == ["c", "m.onnx"]  # the work isn't lost
    refused(command(*words, "c", "--seed", "1", **cwd), "c: is the checkpoint of another seed (0, now 1); remove it")
    ok(*words, "c", **cwd)
    assert sorted(files(model.parent)) == ["m.onnx", "m.recalibrated.onnx"]


def test_sums_tell_batches_apart() -> None:
    feeds = {"x": X[:4]}
    others = ({"y": X[:4]}, {"x": X[:4].astype(np.float64)}, {"x": X[:4].reshape(4, -1)}, {"x": X[1:5]})
    assert checkpoint.sum_of(feeds) == checkpoint.sum_of({"x": X[:4].copy()})
    assert all(checkpoint.sum_of(feeds) != checkpoint.sum_of(other) for other in others)


def test_rows_that_were_measured_are_not_read(tmp_path: Path) -> None:
    data = open_data(X, bnfold.inspect(conv_net()).facts.inputs, batch_size=16)
    taken = []
    source: Any = data.source
    take = source.take
    source.take = lambda rows: taken.append(len(rows)) or take(rows)
    assert [number for number, _ in data.numbered(lambda number: number in (0, 7))] == [0, 7]
    assert taken == [16, 16]


def test_a_hash_of_all_weights(tmp_path: Path) -> None:
    from bnfold.model_file import load
    digest = checkpoint.digest
    onnx.save(conv_net(), tmp_path / "a.onnx")
    onnx.save(conv_net(), tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0)
    first = digest(load(tmp_path / "b.onnx"))
    content = bytearray((tmp_path / "b.data").read_bytes())
    content[5] ^= 1
    (tmp_path / "b.data").write_bytes(content)
    assert digest(load(tmp_path / "a.onnx")) == digest(load(tmp_path / "a.onnx")) != first
    assert digest(load(tmp_path / "b.onnx")) != first
