"""How far a measurement has come, in a file: a run that was killed goes on where it was, with the same result.

The file is an .npz of plain arrays, written anew now and then, each time beside the old one and then in its place. It
holds the moments in float64, so that what comes behind adds up to the last digit; and what it was that was measured
(a hash of the model, the settings, sums over the first and the last batch), so that moments of something else are
never mixed in. 'exact' has its values between segments in a folder beside it, see `cache`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.atomic import Publication, check_output, write_failure
from bnfold.errors import OutputError, UsageError
from bnfold.model_file import LoadedModel
from bnfold.recalibrate.cache import clear, is_own
from bnfold.recalibrate.data import Data, Feeds
from bnfold.recalibrate.data_files import DAMAGED, demand_stored, is_of_system
from bnfold.recalibrate.moments import Moments, Trace
from bnfold.weights import TOKEN_SIZE

# Of the file; raised when it changes.
VERSION = 1
# Of a setting that a message shows.
LONGEST = 32
# Writing takes at most this part of the time.
SHARE = 0.05


@dataclass
class Progress:
    """How far a measurement has come.

    Attributes:
        batches: how many were measured; of 'exact', in the first segment.
        samples: in them.
        level: of 'exact', the segments that are done.
        first, last: sums over the first batch and the last one that was measured.
        traces: what was measured, of each site (of 'exact', of each use).
        notices: what data had to tell.
        cached: of 'exact', the files of each batch's values by name.
    """

    traces: list[Trace] = field(default_factory=list)
    batches: int = 0
    samples: int = 0
    level: int = 0
    first: int = 0
    last: int = 0
    notices: list[str] = field(default_factory=list)
    cached: list[dict[str, str]] = field(default_factory=list)


class Checkpoint:
    """The file of one run.

    Args:
        path: of the file; its folder must exist.
        signature: what is measured: texts by what they are about.

    Raises: UsageError if the file is of another run, or no checkpoint; OutputError if it can't be written.
    """

    def __init__(self, path: str | os.PathLike[str], signature: Mapping[str, str]) -> None:
        self.path = Path(path)
        self._signature = dict(signature)
        check_output(self.path, True, [])
        self.found = self._read() if self.path.exists() else None
        self.resumed = self.found.batches if self.found is not None else 0
        self._next = 0.0

    @property
    def folder(self) -> Path:
        """Where values between segments are."""
        return self.path.with_name(self.path.name + ".cache")

    def due(self) -> bool:
        """Whether it is time to write."""
        return time.perf_counter() >= self._next

    def write(self, progress: Progress) -> None:
        """Replace the file.  Raises: OutputError."""
        start = time.perf_counter()
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **_arrays(progress, self._signature))
        try:
            replaced = check_output(self.path, True, [])
            with Publication(self.path.parent, replaced) as output:
                output.publish(output.write([buffer.getbuffer()]), self.path, overwrite=True)
        except OSError as error:
            raise OutputError(write_failure(error), file=self.path) from error
        now = time.perf_counter()
        self._next = now + (now - start) / SHARE

    def remove(self) -> None:
        """The run is over, and its result is safe."""
        with contextlib.suppress(OSError):  # there is none, or something else is in it, too
            clear(self.folder)
            self.folder.rmdir()
        self.path.unlink(missing_ok=True)

    def _read(self) -> Progress:
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as file:
                demand_stored(file)
                about = json.loads(str(file["about"]))
                if about["version"] != VERSION:
                    raise UsageError("is a checkpoint of another version of bnfold; remove it", file=self.path)
                self._demand_mine(about["signature"])
                return _progress(about["progress"], file)
        except (OSError, AttributeError, *DAMAGED) as error:  # AttributeError: a .npy is no archive
            if is_of_system(error):
                raise
            raise UsageError("is no file that --checkpoint wrote; choose another name", file=self.path) from error

    def _demand_mine(self, signature: Mapping[str, str]) -> None:
        for what, mine in self._signature.items():
            if signature[what] != mine:
                told = f" ({signature[what]}, now {mine})" if len(mine) < LONGEST else ""
                raise self.foreign(f"another {what}{told}")

    def foreign(self, what: str) -> UsageError:
        """The error for a checkpoint of another run."""
        return UsageError(f"is the checkpoint of {what}; remove it, or choose another name", file=self.path)


class Journal:
    """Keeps the progress of a run, in a checkpoint if there is one.

    Args:
        checkpoint: where to; None: nowhere.
        traces: how many there are.
    """

    def __init__(self, checkpoint: Checkpoint | None, traces: int) -> None:
        self._checkpoint = checkpoint
        found = checkpoint.found if checkpoint is not None else None
        self.progress = found or Progress([Trace() for _ in range(traces)])
        self._last: Feeds | None = None

    def rest(self, data: Data) -> Iterator[Feeds]:
        """The batches that are not measured yet.

        Raises: UsageError if those that are measured are others than before.
        """
        done = self.progress.batches
        seen = 0
        for number, feeds in data.numbered(lambda number: number in (0, done - 1) or number >= done):
            seen = number + 1
            if number >= done:
                yield feeds
            else:
                self._demand_same(feeds, number)
        if seen < done:
            self._refuse()
        self.progress.notices = list(dict.fromkeys([*self.progress.notices, *data.notices]))

    def demand_first(self, data: Data) -> None:
        """Raises: UsageError if the first batch is another one than before."""
        _, feeds = next(data.numbered(lambda number: number == 0))
        if sum_of(feeds) != self.progress.first:
            self._refuse()

    def measured(self, feeds: Feeds) -> None:
        """One more batch is in the traces."""
        progress = self.progress
        progress.samples += len(next(iter(feeds.values())))
        progress.batches += 1
        if self._checkpoint is not None:
            if progress.batches == 1:
                progress.first = sum_of(feeds)
            if self._checkpoint.due():
                progress.last = sum_of(feeds)
                self._checkpoint.write(progress)
            self._last = feeds

    def save(self) -> None:
        """Write the checkpoint, if there is one."""
        if self._checkpoint is not None:
            self.progress.last = sum_of(self._last) if self._last is not None else self.progress.last
            self._checkpoint.write(self.progress)

    def _demand_same(self, feeds: Feeds, number: int) -> None:
        found, progress = sum_of(feeds), self.progress
        if (number == 0 and found != progress.first) or (number == progress.batches - 1 and found != progress.last):
            self._refuse()

    def _refuse(self) -> None:
        assert self._checkpoint is not None
        raise self._checkpoint.foreign("other data")


def digest(model: LoadedModel) -> str:
    """A hash of a model with all its tensors."""
    whole, weights = hashlib.sha256(), model.weights
    serialised = model.proto.SerializeToString(deterministic=True)
    start = 0
    for at in weights.token_positions(serialised):
        whole.update(serialised[start:at])
        start = at + TOKEN_SIZE
        source = weights.resolve(serialised[at:start])
        assert source is not None
        for block in source.blocks():
            whole.update(block)
    whole.update(serialised[start:])
    return whole.hexdigest()


def sum_of(feeds: Mapping[str, np.ndarray[Any, Any]]) -> int:
    """A sum over a batch by which it is known again."""
    total = 0
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        total = zlib.crc32(repr((name, array.shape, array.dtype.name)).encode(), total)
        content = repr(array.tolist()).encode() if array.dtype.hasobject else array.reshape(-1).view(np.uint8).data
        total = zlib.crc32(content, total)
    return total


# -- arrays -----------------------------------------------------------------------------------------


def _arrays(progress: Progress, signature: Mapping[str, str]) -> dict[str, Any]:
    """Everything, as few arrays: hundreds of small ones would take long to write."""
    moments = [one for trace in progress.traces for one in (trace.total, *trace.blocks)]
    plain = {name: value for name, value in vars(progress).items() if name != "traces"}
    shape = [(len(trace.blocks), trace.size, trace.filled) for trace in progress.traces]
    about = {"version": VERSION, "signature": dict(signature), "progress": plain}
    return {
        "about": np.array(json.dumps(about)),
        "traces": np.array(shape, np.int64).reshape(-1, 3),
        "counts": np.array([one.count for one in moments], np.int64),
        "channels": np.array([one.mean.size for one in moments], np.int64),
        "means": np.concatenate([one.mean.ravel() for one in moments]) if moments else np.empty(0),
        "m2": np.concatenate([one.m2.ravel() for one in moments]) if moments else np.empty(0),
    }


def _progress(plain: dict[str, Any], file: Any) -> Progress:
    ends = np.cumsum(file["channels"])[:-1]
    parts = (np.split(file[name], ends) for name in ("means", "m2"))
    moments = iter([
        Moments(int(count), mean, m2) if count else Moments()
        for count, mean, m2 in zip(file["counts"], *parts, strict=True)
    ])  # fmt: skip
    traces = [
        Trace(next(moments), [next(moments) for _ in range(count)], int(size), int(filled))
        for count, size, filled in file["traces"]
    ]
    progress = Progress(**plain, traces=traces)
    if not all(is_own(name) for batch in progress.cached for name in batch.values()):
        raise ValueError("cached values are in files of other names than ours")
    return progress


def described(options: Sequence[tuple[str, Any]]) -> dict[str, str]:
    """Settings as texts.

    >>> described([("seed", 3)])
    {'seed': '3'}
    """
    return {name: json.dumps(value, default=str) for name, value in options}
