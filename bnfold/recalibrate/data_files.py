"""Samples in files: .npy and .npz, or folders of them, and folders of images.

Arrays are mapped, not read, so that memory doesn't grow with them: a .npy as it is, and what an .npz holds
uncompressed (`np.savez`) too, at its place in the archive. What is compressed is unpacked once into an anonymous
temporary file. Nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import struct
import tempfile
import tokenize
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from bnfold.constants import Array
from bnfold.errors import CalibrationDataError, quoted
from bnfold.inspection import Port
from bnfold.mapped import Refused, open_regular
from bnfold.recalibrate.images import SUFFIXES, ImageFolder, ImageOptions, open_folder

NPY, ZIP = b"\x93NUMPY", b"PK"
# Of a member's local header, the fixed part, and where the lengths of its name and extra field are in it.
LOCAL_HEADER, LENGTHS = 30, 26
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
NAMES = 8
# The labels of images that are sorted into folders.
FOLDERS = "folders"
BLOCK = 1 << 16
# What reading a damaged file raises; an array's header is text of Python, so that may be anything (RecursionError).
DAMAGED = (
    ValueError, TypeError, LookupError, EOFError, OverflowError, NotImplementedError, RuntimeError, SyntaxError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """An array in memory, or at a place in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    source: Any
    offset: int = 0
    order: Any = "C"

    def open(self) -> Array:
        """The array itself, mapped."""
        if isinstance(self.source, np.ndarray):
            return self.source.reshape(self.shape)
        if 0 in self.shape:  # an empty file can't be mapped
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.source, self.dtype, "r", self.offset, self.shape, self.order)


class ArrayRows:
    """Samples along the first axis of arrays; an input may have several, one behind the other.

    Args:
        parts: of each input, arrays that are alike but for their length.
        files: where each part is from, None for memory.
    """

    def __init__(self, parts: Mapping[str, Sequence[Part]], files: Sequence[str | None]) -> None:
        self._parts, self._files = parts, files
        self._ends = np.cumsum(_lengths(parts, files))

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self._ends[-1])

    def take(self, rows: Array) -> dict[str, Array]:
        """These samples of each input."""
        numbers = np.searchsorted(self._ends, rows, side="right")
        taken = {}
        for name, parts in self._parts.items():
            first = parts[0]
            taken[name] = np.empty((len(rows), *first.shape[1:]), first.dtype.newbyteorder("="))
            for number in np.unique(numbers):
                mine = numbers == number
                taken[name][mine] = parts[number].open()[rows[mine] - self._start(number)]
        return taken

    def place(self, row: int) -> tuple[str | None, str]:
        """File and number of a sample."""
        number = min(int(np.searchsorted(self._ends, row, side="right")), len(self._files) - 1)
        return self._files[number], f"sample {row - self._start(number)}"

    def _start(self, number: int) -> int:
        return int(self._ends[number - 1]) if number else 0


def open_path(
    path: str, key: str | None, inputs: Sequence[Port], images: ImageOptions, labels: str | None
) -> tuple[ArrayRows | ImageFolder, Array | None]:
    """The samples in a file or a folder, and their labels.

    Raises: CalibrationDataError.
    """
    if not os.path.isdir(path):
        return _open_arrays([path], key, inputs, labels)
    arrays = sorted(entry.path for entry in os.scandir(path) if entry.name.endswith((".npy", ".npz")))
    pictures = list(_images(path))
    if arrays and pictures:
        raise CalibrationDataError("has both arrays (.npy, .npz) and images; give a folder of one kind", file=path)
    if arrays:
        return _open_arrays(arrays, key, inputs, labels)
    if not pictures:
        raise CalibrationDataError("has no .npy, .npz or image files", file=path)
    if key is not None:
        raise CalibrationDataError("names of arrays are for .npz files; these are images", file=path)
    return open_folder(path, pictures, inputs, images), _by_folder(path, pictures, labels)


def _by_folder(path: str, pictures: Sequence[str], labels: str | None) -> Array | None:
    """The class of each image: the folder that it is in, in the order of their names."""
    if labels is None:
        return None
    if labels != FOLDERS:
        what = f"labels of images are {quoted(FOLDERS)} (each a class), or an .npy of integers"
        raise CalibrationDataError(what, file=path)
    names = [picture.split(os.sep)[0] if os.sep in picture else "" for picture in pictures]
    if "" in names:
        what = f"is in no folder that could be its class; labels {quoted(FOLDERS)} need one for each"
        raise CalibrationDataError(what, file=os.path.join(path, pictures[names.index("")]))
    classes: Array = np.unique(names, return_inverse=True)[1]
    return classes


def open_labels(file: str, count: int) -> Array:
    """The labels in an .npy file, one for each sample.  Raises: CalibrationDataError."""
    if not os.path.isfile(file):
        raise CalibrationDataError("there is no such file", file=file)
    with tempfile.TemporaryFile() as spool:
        found = _read(file, spool)
        labels = _labels(found[""], "", file) if "" in found else np.empty(0)
    if len(labels) != count:
        raise CalibrationDataError(f"has {len(labels)} labels for {count} samples", file=file)
    return labels


def _images(folder: str) -> Iterator[str]:
    """Paths of the images below a folder, relative to it, in order."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                yield os.path.relpath(os.path.join(parent, file), folder)


def _open_arrays(
    files: Sequence[str], key: str | None, inputs: Sequence[Port], labels: str | None
) -> tuple[ArrayRows, Array | None]:
    spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as what is mapped from it)
    try:
        rows, classes = _gathered(files, key, inputs, labels, spool)
    except BaseException:
        spool.close()
        raise
    weakref.finalize(rows, spool.close)
    return rows, classes


def _gathered(
    files: Sequence[str], key: str | None, inputs: Sequence[Port], labels: str | None, spool: IO[bytes]
) -> tuple[ArrayRows, Array | None]:
    parts: dict[str, list[Part]] = {port.name: [] for port in inputs}
    classes = []
    for file in files:
        found = _read(file, spool)
        if labels is not None:
            if labels not in found:
                raise CalibrationDataError(f"has no array {quoted(labels)} of labels{_has(found)}", file=file)
            classes.append(_labels(found.pop(labels), labels, file))
        chosen = choose(found, key, inputs, file)
        for name, part in chosen.items():
            parts[name].append(part)
        if labels is not None and len(classes[-1]) != next(iter(chosen.values())).shape[0]:
            what = f"has {len(classes[-1])} labels for {next(iter(chosen.values())).shape[0]} samples"
            raise CalibrationDataError(what, file=file, where=f"array {quoted(labels)}")
    rows = ArrayRows(parts, files)
    weakref.finalize(rows, spool.close)
    return rows, np.concatenate(classes) if classes else None


def choose(found: Mapping[str, Part], key: str | None, inputs: Sequence[Port], file: str | None) -> dict[str, Part]:
    """The array of each input: the one of its name, the one that `key` names, or the only one.

    Raises: CalibrationDataError if that leaves it open.
    """
    if not found:
        raise CalibrationDataError("has no arrays", file=file)
    if key is not None:
        if len(inputs) != 1:
            what = f"one array is named for {len(inputs)} inputs; give the arrays the inputs' names"
            raise CalibrationDataError(what, file=file)
        if key not in found:
            raise CalibrationDataError(f"has no array {quoted(key)}{_has(found)}", file=file)
        found = {inputs[0].name: found[key]}
    elif len(inputs) == len(found) == 1:
        found = {inputs[0].name: next(iter(found.values()))}
    chosen = {}
    for port in inputs:
        if port.name not in found:
            how = f"; name one: {file or 'FILE.npz'}:{next(iter(found))}" if len(inputs) == 1 and file else ""
            raise CalibrationDataError(f"has no array {quoted(port.name)}{_has(found)}{how}", file=file)
        part = found[port.name]
        if port.shape is not None and len(part.shape) == len(port.shape) - 1 and _is_sample(part, port):
            part = Part((1, *part.shape), part.dtype, part.source, part.offset, part.order)
        if not part.shape:
            what = f"array of input {quoted(port.name)} is a single number; samples are needed"
            raise CalibrationDataError(what, file=file)
        chosen[port.name] = part
    return chosen


def _is_sample(part: Part, port: Port) -> bool:
    """Whether an array of one axis less is one sample: grey images (N, H, W) are not."""
    assert port.shape is not None
    pairs = zip(port.shape[1:], part.shape, strict=True)
    return all(not isinstance(size, int) or size < 1 or size == found for size, found in pairs)


def _has(found: Mapping[str, Part]) -> str:
    names = list(found)
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return f"; it has {', '.join(map(quoted, names[:NAMES]))}{more}" if names else ""


def _lengths(parts: Mapping[str, Sequence[Part]], files: Sequence[str | None]) -> list[int]:
    """Samples in each part; all inputs have the same."""
    lengths = []
    for number, file in enumerate(files):
        first, *others = (arrays[number] for arrays in parts.values())
        if any(part.shape[0] != first.shape[0] for part in others):
            raise CalibrationDataError("its arrays have different numbers of samples along the first axis", file=file)
        lengths.append(first.shape[0])
        for name, arrays in parts.items():
            part = arrays[number]
            if (part.dtype, part.shape[1:]) != (arrays[0].dtype, arrays[0].shape[1:]):
                what = f"is {part.dtype} {list(part.shape)}, in {files[0]} it is {arrays[0].dtype} "
                what += f"{list(arrays[0].shape)}"
                raise CalibrationDataError(what, file=file, where=f"array of input {quoted(name)}")
    return lengths


def _labels(part: Part, name: str, file: str) -> Array:
    if len(part.shape) != 1 or part.dtype.kind not in "iu":
        what = f"is {part.dtype} {list(part.shape)}; labels are integers, one for each sample"
        raise CalibrationDataError(what, file=file, where=f"array {quoted(name)}")
    return np.array(part.open(), np.int64)


# -- files ------------------------------------------------------------------------------------------


def _read(file: str, spool: IO[bytes]) -> dict[str, Part]:
    """The arrays of a file by name; that of a .npy is ''."""
    try:
        with open_regular(file) as opened:
            magic = opened.read(len(NPY))
            opened.seek(0)
            if magic == NPY:
                shape, order, dtype = header_of(opened)
                return {"": _within(Part(shape, dtype, file, opened.tell(), order), os.fstat(opened.fileno()).st_size)}
            if magic[: len(ZIP)] == ZIP:
                with zipfile.ZipFile(opened) as archive:
                    members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
                    return {info.filename[:-4]: _member(archive, info, opened, file, spool) for info in members}
    except Refused as why:
        raise CalibrationDataError(str(why), file=file) from None
    except (OSError, *DAMAGED) as error:
        if is_of_system(error):
            raise
        what = "can't be read: it is damaged, or holds other than plain arrays"
        raise CalibrationDataError(what, file=file) from None
    hint = f"; say what to take from it: {file}:NAME" if file.endswith(".py") else ""
    raise CalibrationDataError(f"is no .npz or .npy file, nor a folder{hint}", file=file)


def is_of_system(error: Exception) -> bool:
    """Whether it isn't the file's content that is to blame (EINVAL: an archive that says to look before its start)."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def demand_stored(archive: Any) -> None:
    """Raises: ValueError if an .npz is packed: what bnfold writes never is, so none of it can unpack to a bomb."""
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.zip.infolist()):
        raise ValueError("a packed archive")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, opened: IO[bytes], file: str, spool: IO[bytes]) -> Part:
    with archive.open(info) as member:
        shape, order, dtype = header_of(member)
        header = member.tell()
        if info.compress_type != zipfile.ZIP_STORED:
            return _unpacked(member, Part(shape, dtype, spool, spool.seek(0, os.SEEK_END), order), file)
    opened.seek(info.header_offset + LENGTHS)
    name, extra = struct.unpack("<HH", opened.read(4))
    start = info.header_offset + LOCAL_HEADER + name + extra
    return _within(Part(shape, dtype, file, start + header, order), start + info.file_size)


def _unpacked(member: IO[bytes], part: Part, file: str) -> Part:
    """The same part, its values behind the end of the spool now: as many bytes as its header announces, no more."""
    left, free = _nbytes(part), shutil.disk_usage(tempfile.gettempdir()).free
    if left > free:
        what = f"takes {left / 1e9:.3g} GB unpacked, and {free / 1e9:.3g} GB are free in {tempfile.gettempdir()}"
        raise CalibrationDataError(f"{what}; save it with np.savez", file=file)
    while left and (block := member.read(min(left, BLOCK))):
        part.source.write(block)
        left -= len(block)
    part.source.flush()
    return _within(part, part.source.tell())


def header_of(opened: Any) -> tuple[tuple[int, ...], str, np.dtype[Any]]:
    """Shape, order and dtype of an array, of which `opened` is at the beginning; it is at the values then."""
    version = np.lib.format.read_magic(opened)
    if version not in HEADERS:
        raise ValueError("an array of a structured dtype")
    shape, fortran, dtype = HEADERS[version](opened)
    if dtype.hasobject or dtype.names is not None:
        raise ValueError("an array of Python objects, or structured")
    return shape, "F" if fortran else "C", dtype


def _within(part: Part, end: int) -> Part:
    """The same part, which has to end before `end`."""
    if min(part.shape, default=0) < 0 or part.offset + _nbytes(part) > end:
        raise ValueError("an array that ends before its end")
    return part


def _nbytes(part: Part) -> int:
    return math.prod(part.shape) * part.dtype.itemsize
