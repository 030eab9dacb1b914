"""Values that later segments read, batch by batch: in memory as long as they fit, then in files.

Memory of a value that has gone is given to the next of its size: a fresh array costs the system more than computing
what goes into it (2 s of 5.5 s on a resnet50).

With a checkpoint everything is in files, in a folder that outlives the process; a file that is dropped goes when the
checkpoint that no longer needs it is written.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import final

import numpy as np

from bnfold.constants import Array
from bnfold.errors import UsageError
from bnfold.mapped import Refused, open_regular
from bnfold.verify.runtime import Feeds

# Smaller arrays come from the allocator.
LARGE = 1 << 16


def is_own(name: str) -> bool:
    """Whether a file of that name may be one of a cache; others are never read, nor removed.

    >>> is_own("12.npy"), is_own("../12.npy"), is_own("notes.txt")
    (True, False, False)
    """
    return re.fullmatch(r"[0-9]+\.npy", name) is not None


def clear(folder: Path, known: Collection[str] = ()) -> None:
    """Remove the files of a cache, but for those that are known.  Raises: OSError."""
    for entry in list(folder.iterdir()):
        if is_own(entry.name) and entry.name not in known:
            entry.unlink()


@final
class Cache:
    """Arrays by batch and name; a context, at whose end its files are gone, unless they are of a checkpoint.

    >>> with Cache(limit=100) as cache:
    ...     cache.add()
    ...     cache.put(0, {"a": np.ones(10), "b": np.zeros(10)})
    ...     cache.held, [len(value) for value in cache.get(0).values()]
    (80, [10, 10])

    Args:
        limit: bytes in memory.
        folder: where files stay; None: in a temporary one.
        files: what is in it, batch by batch; None: nothing yet.
    """

    def __init__(self, limit: int, folder: Path | None = None, files: list[dict[str, str]] | None = None) -> None:
        self.limit = 0 if folder is not None else limit
        self.held = 0
        # Arrays, or names of files.
        self._batches: list[dict[str, Array | str]] = [dict(batch) for batch in files or ()]
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._free: dict[int, list[Array]] = {}  # by size, of those that are expected
        self._lent: dict[int, Array] = {}  # by address
        self._dropped: list[str] = []
        self._count = 0
        if folder is not None:
            folder.mkdir(exist_ok=True)
            known = {name for batch in files or () for name in batch.values()}
            clear(folder, known)  # of what was begun after the checkpoint
            self._count = max((int(name.split(".")[0]) for name in known), default=0)

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batches.clear()
        self._free.clear()
        self._lent.clear()
        if self._temporary is not None:
            self._temporary.cleanup()

    def add(self) -> None:
        """Begin a batch."""
        self._batches.append({})

    def expect(self, sizes: Iterable[int]) -> None:
        """Of the memory that gets free, keep what has one of these sizes, and let the rest go."""
        wanted = set(sizes)
        self._free = {size: self._free.get(size, []) for size in wanted}

    def room(self, like: Array) -> Array:
        """An array of the shape and type of another, content undefined, for a value that will be put."""
        free = self._free.get(like.nbytes)
        memory = free.pop() if free else np.empty(like.nbytes, np.uint8)
        array: Array = memory.view(like.dtype).reshape(like.shape)
        self._lent[array.ctypes.data] = memory
        return array

    def put(self, batch: int, values: Feeds) -> None:
        """Keep values of a batch; they belong to the cache from now on."""
        for name, value in values.items():
            if self.held + value.nbytes <= self.limit:
                self.held += value.nbytes
                self._batches[batch][name] = value
            else:
                self._batches[batch][name] = self._written(value)
                self._recycle(value)

    def get(self, batch: int) -> Feeds:
        """All values of a batch.  Raises: UsageError if a file of a checkpoint is damaged."""
        values = self._batches[batch].items()
        return {name: self._read(kept) if isinstance(kept, str) else kept for name, kept in values}

    def drop(self, batch: int, names: Iterable[str]) -> None:
        """Let go of values of a batch; nobody may use them any more."""
        for name in names:
            kept = self._batches[batch].pop(name)
            if not isinstance(kept, str):
                self.held -= kept.nbytes
                self._recycle(kept)
            elif self._folder is not None:
                self._dropped.append(kept)
            else:
                os.unlink(self._path(kept))

    def files(self) -> list[dict[str, str]]:
        """The names of the files of each batch, all of them in the folder."""
        return [{name: kept for name, kept in batch.items() if isinstance(kept, str)} for batch in self._batches]

    def sweep(self) -> None:
        """Remove files that were dropped: the checkpoint doesn't need them any more."""
        for name in self._dropped:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(name))
        self._dropped.clear()

    def __len__(self) -> int:
        return len(self._batches)

    def _recycle(self, value: Array) -> None:
        memory = self._lent.pop(value.ctypes.data, None)  # else it is the user's, or ONNX Runtime's
        if memory is not None and memory.nbytes in self._free:
            self._free[memory.nbytes].append(memory)

    def _path(self, name: str) -> str:
        if self._folder is not None:
            return os.path.join(self._folder, name)
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="bnfold-")
        return os.path.join(self._temporary.name, name)

    def _written(self, value: Array) -> str:
        self._count += 1
        name = f"{self._count}.npy"
        np.save(self._path(name), value, allow_pickle=False)
        return name

    def _read(self, name: str) -> Array:
        try:
            with open_regular(self._path(name)) as opened:
                array: Array = np.load(opened, allow_pickle=False)
            return array
        except (ValueError, EOFError, Refused) as error:
            what = "is damaged or gone; remove the checkpoint that it belongs to, and begin anew"
            raise UsageError(what, file=self._path(name)) from error
