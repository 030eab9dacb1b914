"""Tensors kept beside the model: finding their bytes, and laying out a new data file.

ONNX lets a tensor say "my bytes are in that file, there", and the file that says so may come from
anywhere.  So a location is used only if it leads, after all links, to a regular file in the
model's own folder that belongs to nobody else, and the range it names has exactly the tensor's
size.  Otherwise a model could carry any file of the machine into its output.
Spec: https://onnx.ai/onnx/repo-docs/ExternalData.html; hard links are refused as onnx itself does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePath

from onnx import ModelProto, NodeProto, TensorProto

from bnfold.errors import ExternalDataError, not_utf8, quoted
from bnfold.mapped import LFS_POINTER, MappedFile, Refused
from bnfold.weights import LARGE, Source, Stored, Weights, describe, nbytes_of, where
from bnfold.wire import tensors

# Large tensors start at a multiple of 64 KiB, the coarsest granularity with which systems map files
# (Windows; elsewhere 4 KiB), so that a runtime can map each on its own.  Smaller ones only keep the
# 64 bytes of a cache line: aligning a thousand biases to pages would make a file of padding.
# The same values as ONNX Runtime's Graph::OffsetAlignmentInfo.
ALIGNMENT = 64 << 10
ALIGNED_FROM = 1 << 20
SMALL_ALIGNMENT = 64


class DataFolder:
    """The folder of a model, as the place where its external tensors are."""

    def __init__(self, folder: Path, weights: Weights, model: MappedFile | None) -> None:
        self._folder = Path(os.path.realpath(folder))
        self._weights = weights
        self._model = model
        self._files: dict[str, MappedFile] = {}
        self._ranges: dict[str, list[tuple[int, int, str]]] = {}

    def adopt(self, tensor: TensorProto, node: NodeProto | None) -> None:
        """Turn an external tensor into a reference.  Raises: ExternalDataError."""
        location: str | bytes = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        try:
            location, offset, length = _entries(tensor)
            file = self._files.get(location) or self._open(location)
            self._files[location] = file
            size, needed = len(file.view), nbytes_of(tensor)
            length = max(size - offset, 0) if length is None else length
            if offset + length > size:
                short = "is a Git LFS pointer: run `git lfs pull`" if _is_pointer(file) else "is it complete?"
                raise Refused(f"has {size} bytes, and {length} are wanted from byte {offset} on; {short}")
            if needed is None and tensor.data_type == TensorProto.STRING:
                raise Refused("strings can't be kept in a data file")
            if needed is not None and length != needed:
                raise Refused(f"{length} bytes are kept there, and {describe(tensor)} takes {needed}")
        except Refused as why:
            named = not_utf8(location) or quoted(location)
            raise ExternalDataError(f"data file {named}: {why}", where=where(tensor, node)) from None
        self._ranges.setdefault(str(file.path), []).append((offset, offset + length, where(tensor, node)))
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = self._weights.token(Stored(length, True, file, offset))

    def _open(self, location: str) -> MappedFile:
        real = Path(os.path.realpath(self._folder / location))
        if not real.is_relative_to(self._folder):
            raise Refused("is a link that leaves the model's folder; copy the data itself there")
        file = MappedFile.open(real, follow=False)
        if self._model and self._model.is_same(file.status):
            raise Refused("is the model itself")
        if file.status.st_nlink > 1:
            raise Refused("has another name elsewhere (a hard link); put a copy in its place")
        return next((known for known in self._files.values() if known.is_same(file.status)), file)

    def overlaps(self) -> Iterator[ExternalDataError]:
        """Two tensors may share a range (tied weights), but not overlap in part: an error for each that does."""
        for path, ranges in self._ranges.items():
            used = sorted(one for one in ranges if one[0] < one[1])
            for (start, stop, first), (next_start, next_stop, second) in pairwise(used):
                if next_start < stop and (start, stop) != (next_start, next_stop):
                    file = quoted(os.path.basename(path))
                    yield ExternalDataError(f"data file {file}: its bytes overlap those of {first}", where=second)


class NewDataFile:
    """The one data file of a model about to be written: what goes where.

    Tensors that share a source share its place in the file, so tied weights stay tied.
    """

    def __init__(self) -> None:
        self._tensors: list[TensorProto] = []
        self._places: dict[object, tuple[int, Source]] = {}
        self._end = 0

    def add(self, tensor: TensorProto, source: Source) -> None:
        """Give `tensor` its place; it refers to the file from now on."""
        same = (source.file, source.offset, source.nbytes) if isinstance(source, Stored) else source
        if same not in self._places:
            alignment = ALIGNMENT if source.nbytes >= ALIGNED_FROM else SMALL_ALIGNMENT
            self._places[same] = (-(-self._end // alignment) * alignment, source)
            self._end = self._places[same][0] + source.nbytes
        offset = self._places[same][0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", ""), ("offset", str(offset)), ("length", str(source.nbytes))):
            tensor.external_data.add(key=key, value=value)
        self._tensors.append(tensor)

    @classmethod
    def take(cls, proto: ModelProto, weights: Weights, *, all_large: bool) -> NewDataFile:
        """Move the external tensors of `proto` into a new data file, or all large ones."""
        data = cls()
        for tensor, _ in tensors(proto):
            source = weights.source(tensor)
            if source and (source.external or (all_large and source.nbytes >= LARGE)):
                data.add(tensor, source)
        return data

    def set_location(self, name: str) -> None:
        """Tell the tensors what the file is called."""
        for tensor in self._tensors:
            tensor.external_data[0].value = name

    def blocks(self) -> Iterator[memoryview]:
        """The content of the file."""
        at = 0
        for offset, source in self._places.values():
            yield memoryview(bytes(offset - at))
            yield from source.blocks()
            at = offset + source.nbytes


def locations(proto: ModelProto) -> set[str | bytes]:
    """The data files that a model refers to, as it names them (bytes: what isn't UTF-8)."""
    entries = (entry for tensor, _ in tensors(proto) for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def clear_away(unused: list[Path], prefix: str, needed: list[MappedFile]) -> list[Path]:
    """Delete the data files that a replaced model leaves behind, if their names start with `prefix`.

    Args:
        unused: files that the replaced model referred to and the new one doesn't.
        prefix: what the names of its own data files start with.
        needed: files that somebody else still uses; they stay, and nothing is said.

    Returns: those that were left because their names are not the model's.
    """
    left = []
    for path in unused:
        with contextlib.suppress(OSError):  # a leftover is no reason to fail: the output is complete
            if path.is_symlink() or any(file.is_same(path.stat()) for file in needed):
                continue
            if path.name.startswith(prefix):
                path.unlink()
            else:
                left.append(path)
    return left


def _entries(tensor: TensorProto) -> tuple[str, int, int | None]:
    """Location, offset and length (None: to the end) of an external tensor, if they are in order.

    Keys besides these are dropped: a checksum covers the file that is about to be replaced, and
    what else there is (`basepath`, a runtime's prepacked copies) is about places on another machine.
    """
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise Refused(f"{quoted(entry.key)} is given twice")
        entries[entry.key] = entry.value
    location: str | bytes = entries.get("location", "")
    if not isinstance(location, str) or not location or not location.isprintable():  # bytes: what isn't UTF-8
        raise Refused("this is no file name")
    if PurePath(location).is_absolute() or ".." in PurePath(location).parts:
        raise Refused("leads out of the model's folder")
    for key in ("offset", "length"):
        value = entries.get(key, "0")
        if not (value.isascii() and value.isdigit() and len(value) < 20):
            raise Refused(f"its {key} is {quoted(value)}, which is no number of bytes")
    return location, int(entries.get("offset", 0)), int(entries["length"]) if "length" in entries else None


def _is_pointer(file: MappedFile) -> bool:
    return bytes(file.view[: len(LFS_POINTER)]) == LFS_POINTER
