"""The user's own data: an .npz file, of which one batch at a time is in memory."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, overload

import numpy as np
from onnx import ModelProto

from bnfold.constants import Array
from bnfold.errors import CalibrationDataError, quoted
from bnfold.inspection import Port
from bnfold.mapped import Refused, open_regular
from bnfold.recalibrate.data_files import DAMAGED, header_of, is_of_system
from bnfold.verify.inputs import Samples, ports
from bnfold.verify.large import Model
from bnfold.verify.runtime import Feeds

# Rows that are run at a time, if the model leaves it open.
CHUNK = 8


def from_file(model: Model | ModelProto, path: str | os.PathLike[str]) -> Samples:
    """An .npz with an array for each input, samples along the first axis.

    An input whose first dimension is fixed to n is fed n rows at a time, others some. All batches have the same shape:
    the last one reaches back over rows of the one before it.

    Raises: CalibrationDataError if it isn't such a file, or doesn't fit the model.
    """
    shown = os.fspath(path)
    with _reading(shown):
        members = _members(path)
    inputs, _ = ports(model)
    if len(inputs) == len(members) == 1:
        members = {inputs[0].name: next(iter(members.values()))}
    for port in inputs:
        _check(port, members, shown)
    counts = {members[port.name].shape[0] for port in inputs}
    if len(counts) != 1 or 0 in counts:
        what = "its arrays have no, or not the same number of, samples along the first axis"
        raise CalibrationDataError(what, file=shown)
    count = counts.pop()
    sizes = {port.shape[0] for port in inputs if port.shape and isinstance(port.shape[0], int) and port.shape[0] > 0}
    step = min(sizes) if sizes else min(CHUNK, count)
    if count < step:
        raise CalibrationDataError(f"has {count} samples; the model takes {step} at a time", file=shown)
    numbers = range(-(-count // step))  # not a list: a file can claim any count
    arrays = [members[port.name] for port in inputs]
    return Samples(Rows(arrays, [port.name for port in inputs], numbers, step, count - step, shown),
                   f"{count} samples of {shown}, {step} at a time")  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One array of an .npz file, unread."""

    file: IO[bytes]
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool

    def rows(self, start: int, count: int) -> Array:
        """Some rows; the file is read from there on, which is cheap in ascending order."""
        if self.by_columns:  # Fortran's order: a row is all over the file
            self.file.seek(self.start)
            content = self.file.read(self.dtype.itemsize * math.prod(self.shape))
            whole = np.frombuffer(content, self.dtype).reshape(self.shape, order="F")
            return np.ascontiguousarray(whole[start : start + count])
        row = self.dtype.itemsize * math.prod(self.shape[1:])
        self.file.seek(self.start + start * row)
        content = self.file.read(count * row)
        if len(content) < count * row:
            raise EOFError
        return np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])


class Rows(Sequence[Feeds]):
    """Batches that are read when they are asked for."""

    def __init__(
        self, members: list[Member], names: list[str], numbers: range, step: int, last: int, file: str
    ) -> None:
        self._members, self._names, self._numbers = members, names, numbers
        self._step, self._last, self._file = step, last, file

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Feeds: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Feeds | Rows:
        if isinstance(index, slice):
            return Rows(self._members, self._names, self._numbers[index], self._step, self._last, self._file)
        start = min(self._numbers[index] * self._step, self._last)
        with _reading(self._file):
            rows = [member.rows(start, self._step) for member in self._members]
        return dict(zip(self._names, rows, strict=True))


@contextmanager
def _reading(file: str) -> Iterator[None]:
    """What numpy and zipfile raise of a damaged file, in a line; what the system raises stays as it is."""
    try:
        yield
    except (OSError, *DAMAGED) as error:
        if is_of_system(error):
            raise
        raise CalibrationDataError("is no .npz file of plain arrays, or a damaged one", file=file) from None


def _members(path: str | os.PathLike[str]) -> dict[str, Member]:
    with _regular(path) as start:
        if start.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            what = "is one array; an .npz with an array for each input is needed"
            raise CalibrationDataError(what, file=os.fspath(path))
    archive = zipfile.ZipFile(path)
    found = {}
    for name in archive.namelist():
        file = archive.open(name)
        shape, order, dtype = header_of(file)
        if min(shape, default=0) < 0:
            raise ValueError("a size below 0")
        found[name.removesuffix(".npy")] = Member(file, file.tell(), shape, dtype, order == "F" and len(shape) > 1)
    return found


def _regular(path: str | os.PathLike[str]) -> IO[bytes]:
    try:
        return open_regular(path)
    except Refused as why:
        raise CalibrationDataError(str(why), file=os.fspath(path)) from None


def _check(port: Port, members: Mapping[str, Member], file: str) -> None:
    member = members.get(port.name)
    if member is None:
        names = ", ".join(map(quoted, members)) or "none"
        raise CalibrationDataError(f"has no array for input {quoted(port.name)}; its arrays are {names}", file=file)
    if member.dtype.name != port.type:
        what = f"array {quoted(port.name)} is {member.dtype.name}; the input is {port.type}"
        raise CalibrationDataError(what, file=file)
    if not member.shape:
        what = f"array {quoted(port.name)} is one number; samples go along the first axis"
        raise CalibrationDataError(what, file=file)
    fits = port.shape is None or (
        len(port.shape) == len(member.shape)
        and all(
            not isinstance(n, int) or n < 1 or n == m for n, m in zip(port.shape[1:], member.shape[1:], strict=True)
        )
    )
    if not fits:
        wanted = ", ".join("?" if size is None else str(size) for size in port.shape or ())
        given = ", ".join(map(str, member.shape))
        raise CalibrationDataError(f"array {quoted(port.name)} is [{given}]; the input is [{wanted}]", file=file)
