"""Files as read-only memory, and only files that are safe to read.

A map costs address space, not memory: a page comes from disk when it is touched and goes when the
system wants it back.  What must not happen is that opening a path does anything else: waits at a
FIFO, wakes a device, or reads something that took a file's place between looking and opening.
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

LFS_POINTER = b"version https://git-lfs"

# What people hand over by mistake in the place of a model, by its first bytes (in lower case).
_LOOKALIKES = (
    (LFS_POINTER, "is a Git LFS pointer, not the model itself; run `git lfs pull`"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (b"bzh", "is compressed with bzip2; unpack it first"),
    (b"\xfd7zxz", "is compressed with xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it first"),
    (b"pk\x03\x04", "is a zip archive (a torch checkpoint, .npz or .keras file?); unpack it or export it to ONNX"),
    *((bytes([0x80, v]), "is a Python pickle (a torch checkpoint?); export it to ONNX first") for v in range(2, 6)),
    (b"\x89hdf", "is an HDF5 file (Keras weights?); export it to ONNX first"),
    (b"\x93numpy", "is a NumPy array, not a model"),
    (b"<!doctype html", "is an HTML page: the download brought an error or login page instead of the file"),
    (b"<html", "is an HTML page: the download brought an error or login page instead of the file"),
    (b"<?xml", "is XML (OpenVINO?), not an ONNX model"),
    (b"{", "is JSON, not an ONNX model"),
    (b"[", "is JSON, not an ONNX model"),
    (b"ir_version", "is a model in a text format; convert it to the binary one first"),
    (b"<", "is text (a model in ONNX's text format?); convert it to the binary one first"),
)


def lookalike(start: bytes) -> str | None:
    """What a file that is no model seems to be, by its first 64 bytes or so; None: no idea.

    >>> lookalike(b'  {"model": 1}')
    'is JSON, not an ONNX model'
    """
    start = start.lstrip().lower()
    return next((what for magic, what in _LOOKALIKES if start.startswith(magic)), None)


class Refused(Exception):
    """Why a file can't be used; the caller adds whose file it is."""


def kind_of(mode: int) -> str | None:
    """What a file of this mode is, in words; None for a regular file.

    >>> kind_of(os.stat(os.devnull).st_mode)
    'a device'
    """
    kinds = ((stat.S_ISREG, None), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((kind for is_kind, kind in kinds if is_kind(mode)), "a device")


def _demand_regular(status: os.stat_result) -> None:
    if kind := kind_of(status.st_mode):
        raise Refused(f"is {kind}, not a file")


def _open_regular(path: Path, follow: bool) -> int:
    """A descriptor for reading the regular file at `path`."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        # Looking first keeps us from waking a device; O_NONBLOCK from waiting at a FIFO that
        # replaced the file since; fstat from reading it.
        _demand_regular(os.stat(path))
        fd = os.open(path, flags)
        try:
            _demand_regular(os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
    except FileNotFoundError:
        raise Refused("no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise Refused(f"can't be opened: {getattr(error, 'strerror', None) or error}") from None
    return fd


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """The regular file at `path`, opened for reading.  Raises: Refused if it is something else, or can't be opened."""
    return os.fdopen(_open_regular(Path(path), True), "rb")


@dataclass(frozen=True, eq=False)
class MappedFile:
    """A regular file as read-only memory."""

    path: Path
    status: os.stat_result = field(repr=False)
    view: memoryview = field(repr=False)
    _map: mmap.mmap | None = field(repr=False)

    @classmethod
    def open(cls, path: Path, *, follow: bool = True) -> MappedFile:
        """Map the file at `path`; unless `follow`, its last part must not be a link.  Raises: Refused."""
        fd = _open_regular(path, follow)
        try:
            status = os.fstat(fd)
            if not status.st_size:  # an empty file can't be mapped
                return cls(path, status, memoryview(b""), None)
            if sys.version_info >= (3, 13):
                # A model can have a thousand data files; like this none of them keeps a descriptor.
                mapped = mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ, trackfd=False)
            else:
                mapped = mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ)
            return cls(path, status, memoryview(mapped), mapped)
        except (OSError, ValueError) as error:
            raise Refused(f"can't be mapped: {getattr(error, 'strerror', None) or error}") from None
        finally:
            os.close(fd)

    def is_same(self, status: os.stat_result) -> bool:
        """Whether `status` is of this very file, under whatever name."""
        return os.path.samestat(self.status, status)

    def has_changed(self) -> bool:
        """Whether somebody wrote into the file since; a new file under its name leaves this one as it was."""
        try:
            now = os.stat(self.path)
        except OSError:
            return False
        return self.is_same(now) and (now.st_size, now.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns)

    def forget(self, start: int, stop: int) -> None:
        """Let the system have the pages of `view[start:stop]` back; they return when touched."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            start -= start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)
