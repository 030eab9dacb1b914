"""Files that appear whole or not at all, together with the files they refer to.

Everything is written under temporary names in the target folder, brought to disk, and then given
its name: first the data file, under a name that was free, then the model, in one step.  Until that
step the old model and its old data are untouched; after it the new ones are complete.  Whatever
goes wrong before (a full disk, an exception, Ctrl-C) takes the new files away again; a kill can
leave a temporary file behind, never half a model.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from bnfold.errors import OutputError, quoted
from bnfold.mapped import MappedFile, kind_of

if TYPE_CHECKING:
    from typing_extensions import Self

# Small pieces wait until there is this much to write, or as many as one call takes (POSIX's IOV_MAX on Linux).
_GATHER = 1 << 20
_MAX_PIECES = 1024


class Publication:
    """The files of one output, in one folder.

    Args:
        folder: where they appear.
        like: whose permissions (and, where allowed, owner) they get; None: what the umask says.
    """

    def __init__(self, folder: Path, like: os.stat_result | None = None) -> None:
        self._folder = folder
        self._like = like
        self._temporary: list[Path] = []
        self._added: list[tuple[Path, os.stat_result]] = []
        self._model: tuple[Path, os.stat_result] | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, blocks: Iterable[memoryview]) -> Path:
        """A new file of these bytes, on disk, under a temporary name."""
        path = self._folder / f".bnfold-{os.urandom(8).hex()}.tmp"
        self._temporary.append(path)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if self._like is not None and hasattr(os, "fchmod"):
                with contextlib.suppress(OSError):  # only root may give files away
                    os.fchown(fd, self._like.st_uid, self._like.st_gid)
                os.fchmod(fd, stat.S_IMODE(self._like.st_mode))
            _write_all(fd, blocks)
            os.fsync(fd)
        finally:
            os.close(fd)
        return path

    def add(self, temporary: Path, names: Iterable[str]) -> Path:
        """Give a written file the first of `names` that is free, or at which its very bytes are already."""
        for name in names:
            path = self._folder / name
            if _same_content(temporary, path):
                return path
            self._added.append((path, os.stat(temporary)))
            with contextlib.suppress(FileExistsError):
                _name_new(temporary, path)
                self._sync_folder()
                return path
        raise FileExistsError(f"none of the names is free in {self._folder}")

    def publish(self, temporary: Path, path: Path, *, overwrite: bool) -> None:
        """Give the model its name: the one step that makes the output the output."""
        self._model = (path, os.stat(temporary))
        if not overwrite:
            _name_new(temporary, path)
        else:
            try:
                os.replace(temporary, path)
            except OSError:
                if not _is_at(*self._model):  # else it was done, and only the answer got lost: NFS
                    raise
        self._sync_folder()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Asking the disk, not a flag: Ctrl-C can come between a system call and the line behind it.
        published = self._model is not None and _is_at(*self._model)
        for path in self._temporary:
            with contextlib.suppress(OSError):
                path.unlink()
        for path, status in self._added:
            if not published and _is_at(path, status):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _sync_folder(self) -> None:
        """Bring names to disk, so that a model never survives a power cut without its data."""
        with contextlib.suppress(OSError):  # some network file systems can't
            fd = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def check_output(path: Path, overwrite: bool, inputs: list[MappedFile]) -> os.stat_result | None:
    """The status of the file that would be replaced at `path` (behind a link: of its target), if any.

    Raises: OutputError if nothing can or may be written there, or if it is one of `inputs`.
    """
    try:
        if not stat.S_ISDIR(os.stat(path.parent).st_mode):
            raise NotADirectoryError
    except OSError:
        raise OutputError(f"there is no folder {quoted(path.parent)}; create it first", file=path) from None
    try:
        status = os.lstat(path)
        with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere
            status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(write_failure(error), file=path) from error
    is_link = stat.S_ISLNK(status.st_mode)
    if not is_link and (kind := kind_of(status.st_mode)):
        raise OutputError(f"is {kind}; name a file", file=path)
    if any(file.is_same(status) for file in inputs):
        raise OutputError("is a data file of the model itself; choose another name", file=path)
    if not overwrite:
        raise OutputError("exists already; --force replaces it", file=path)
    return None if is_link else status


def write_file(path: str | os.PathLike[str], content: bytes | memoryview, *, overwrite: bool) -> None:
    """A single file of these bytes, which appears whole or not at all.

    Raises: OutputError; an earlier file is as it was then.
    """
    target = Path(path)
    replaced = check_output(target, overwrite, [])
    try:
        with Publication(target.parent, replaced) as output:
            output.publish(output.write([memoryview(content)]), target, overwrite=overwrite)
    except FileExistsError:
        raise OutputError("exists already; --force replaces it", file=target) from None
    except OSError as error:
        raise OutputError(write_failure(error), file=target) from error


def demand_apart(outputs: Sequence[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raises: OutputError if an output is one of the inputs, by whatever name, or another output."""
    read = [os.fspath(path) for path in inputs if os.path.exists(path)]
    for place, output in enumerate(outputs):
        if os.path.exists(output) and any(os.path.samefile(output, path) for path in read):
            raise OutputError("is an input of this very command; choose another name", file=os.fspath(output))
        if any(os.path.realpath(output) == os.path.realpath(other) for other in outputs[:place]):
            raise OutputError("is to be written twice, as two outputs; choose another name", file=os.fspath(output))


def write_failure(error: OSError) -> str:
    """What to tell the user when writing failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "there is no space left for it; nothing was changed"
    if error.errno == errno.EFAULT:  # a page of the map has no file behind it any more
        return "the input was cut short by another program while it was being read; nothing was changed"
    return f"can't be written: {error.strerror or error}; nothing was changed"


def data_names(model: str) -> Iterator[str]:
    """The names that the data file of a model may get: ``m.onnx.data``, ``m.onnx.1.data``, ….

    >>> list(itertools.islice(data_names("m.onnx"), 3))
    ['m.onnx.data', 'm.onnx.1.data', 'm.onnx.2.data']
    """
    yield f"{model}.data"
    yield from (f"{model}.{k}.data" for k in itertools.count(1))


def _write_all(fd: int, blocks: Iterable[memoryview]) -> None:
    waiting: list[memoryview] = []
    start = size = 0
    for block in blocks:
        waiting.append(block)
        size += block.nbytes
        if size >= _GATHER or len(waiting) == _MAX_PIECES:
            _write(fd, waiting)
            if hasattr(os, "posix_fadvise"):
                # Starts bringing the range to disk while we copy on (Linux drops nothing that isn't
                # there yet): fsync then finds little to do, 0.01 s instead of 0.35 s after 1 GB.
                os.posix_fadvise(fd, start, size, os.POSIX_FADV_DONTNEED)
            waiting, start, size = [], start + size, 0
    _write(fd, waiting)


def _write(fd: int, pieces: list[memoryview]) -> None:
    """Write straight from where the bytes are.

    The system reads them, not we: should somebody cut the mapped input short at this moment, it
    answers with an error (EFAULT), where touching the bytes here would end the process (SIGBUS).
    """
    while pieces:
        written = os.writev(fd, pieces) if hasattr(os, "writev") else os.write(fd, pieces[0])
        while pieces and written >= pieces[0].nbytes:
            written -= pieces.pop(0).nbytes
        if pieces:
            pieces[0] = pieces[0][written:]


def _name_new(temporary: Path, path: Path) -> None:
    """Name a file without ever replacing another, also one that appears at this moment."""
    try:
        os.link(temporary, path)
    except OSError:
        if not os.path.lexists(path):  # a file system without hard links
            os.rename(temporary, path)
            return
        if not _is_at(path, os.stat(temporary)):  # (else the link was made, and only the answer got lost: NFS)
            raise FileExistsError(str(path)) from None
    os.unlink(temporary)


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), status)
    except OSError:
        return False


def _same_content(new: Path, old: Path) -> bool:
    """Whether `old` is a file of its own (no link) with the bytes of `new`."""
    try:
        status = os.lstat(old)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_size != os.stat(new).st_size:
            return False
        with new.open("rb") as a, old.open("rb") as b:
            while block := a.read(1 << 20):
                if block != b.read(1 << 20):
                    return False
    except OSError:
        return False
    return True
