"""Values that later segments read, batch by batch: in memory as long as they fit, then in files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from types import TracebackType
from typing import final

import numpy as np

from bnfold.constants import Array
from bnfold.verify.runtime import Feeds


@final
class Cache:
    """Arrays by batch and name; a context, at whose end its files are gone.

    >>> with Cache(limit=100) as cache:
    ...     cache.add()
    ...     cache.put(0, {"a": np.ones(10), "b": np.zeros(10)})
    ...     cache.held, [len(value) for value in cache.get(0).values()]
    (80, [10, 10])

    Args:
        limit: bytes in memory.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._batches: list[dict[str, Array | str]] = []  # arrays, or paths of those that did not fit
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batches.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def add(self) -> None:
        """Begin a batch."""
        self._batches.append({})

    def put(self, batch: int, values: Feeds) -> None:
        """Keep values of a batch."""
        for name, value in values.items():
            if self.held + value.nbytes <= self.limit:
                self.held += value.nbytes
                self._batches[batch][name] = value
            else:
                self._batches[batch][name] = self._written(value)

    def get(self, batch: int) -> Feeds:
        """All values of a batch."""
        kept = self._batches[batch].items()
        return {name: np.load(value, allow_pickle=False) if isinstance(value, str) else value for name, value in kept}

    def drop(self, batch: int, names: Iterable[str]) -> None:
        """Let go of values of a batch."""
        for name in names:
            value = self._batches[batch].pop(name)
            if isinstance(value, str):
                os.unlink(value)
            else:
                self.held -= value.nbytes

    def __len__(self) -> int:
        return len(self._batches)

    def _written(self, value: Array) -> str:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="bnfold-")
        self._count += 1
        path = os.path.join(self._folder.name, f"{self._count}.npy")
        np.save(path, value, allow_pickle=False)
        return path
