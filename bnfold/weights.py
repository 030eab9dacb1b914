"""Where the bytes of tensors are: in the proto, in a mapped file, or yet to be made.

A large tensor's `raw_data` holds a *token* in the place of its bytes: 24 bytes that name one entry
of a `Weights`.  Since a token is ordinary raw_data, it goes where its TensorProto goes when the
graph is edited or the tensor copied, and an editor need not know that it is there.  Behind a token
is a range of a mapped file, `Stored`, a tensor of another library, `Held`, or a recipe, `Deferred`.
All have a size and give their bytes in blocks, which is all that writing needs; so a model is copied
without being held.
"""

from __future__ import annotations

import itertools
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from bnfold.errors import ExternalDataError, ModelError, not_utf8, quoted
from bnfold.mapped import MappedFile

# From this size on a tensor stays on disk.  It is onnx's own threshold for external data
# (`onnx.save(size_threshold=1024)`); below it a token and its header would save next to nothing.
LARGE = 1024

# Bytes handed to the system at a time.  Writing 1 GB out of a map in such blocks, letting each go
# when it is written, took 0.30 s where `cp` took 0.52 s and reading into a buffer 1.7 s (ext4).
BLOCK = 8 << 20
# Bytes of a new tensor from which on the pages that it was made from are let go: what is written has been read once.
# With 8 MB in place of 64 kB, folding inception_v3 (88 MB) held 152 MB instead of 78 MB.
RELEASE = 1 << 16

# Random, so that no file can carry a token: the bytes of a file can't point into a Weights.
_NONCE = os.urandom(16)
_IDS = itertools.count()
TOKEN_SIZE = len(_NONCE) + 4 + 4

# Types that onnx packs tighter than a byte.
_PACKED_BITS = {
    "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6,
}  # fmt: skip

_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_CONTENT_FIELDS = ("raw_data", *_TYPED_FIELDS, "external_data", "data_location")

Array = np.ndarray[Any, Any]


@cache
def bits_of(data_type: int) -> int | None:
    """Bits per element of an ONNX data type; None for strings and for types that this onnx doesn't know."""
    if data_type in (TensorProto.UNDEFINED, TensorProto.STRING) or data_type not in TensorProto.DataType.values():
        return None
    name = TensorProto.DataType.Name(data_type)
    return _PACKED_BITS.get(name) or 8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize


def elements_of(tensor: TensorProto) -> int:
    """Number of elements that its dims announce (Python's integers don't overflow)."""
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def nbytes_of(tensor: TensorProto) -> int | None:
    """Bytes that its dims and data type ask for; None where the type has no fixed size."""
    bits = bits_of(tensor.data_type)
    return None if bits is None else (elements_of(tensor) * bits + 7) // 8


def describe(tensor: TensorProto) -> str:
    """Type and shape, for messages.

    >>> describe(onnx.TensorProto(dims=[64, 3, 7, 7], data_type=onnx.TensorProto.FLOAT))
    'FLOAT[64, 3, 7, 7]'
    """
    known = tensor.data_type in TensorProto.DataType.values()
    return f"{TensorProto.DataType.Name(tensor.data_type) if known else tensor.data_type}{list(tensor.dims)}"


def where(tensor: TensorProto, node: NodeProto | None = None) -> str:
    """The tensor as a message names it: by its name, else by the node that holds it."""
    if tensor.name or node is None:
        return f"tensor {quoted(tensor.name)}"
    return f"constant of node {quoted(node.name or (node.output[0] if node.output else node.op_type))}"


@dataclass(frozen=True, eq=False)
class Source(ABC):
    """So many bytes that are elsewhere.  `external`: they belong into a data file, not into the model."""

    nbytes: int
    external: bool

    @abstractmethod
    def blocks(self) -> Iterator[memoryview]:
        """The bytes, in pieces of any size."""


@dataclass(frozen=True, eq=False)
class Stored(Source):
    """Bytes in a mapped file, the model itself or a data file."""

    file: MappedFile
    offset: int

    @property
    def view(self) -> memoryview:
        """The bytes, where they are."""
        return self.file.view[self.offset : self.offset + self.nbytes]

    def blocks(self) -> Iterator[memoryview]:
        """The bytes, BLOCK at a time; pages handed out before are let go, so copying costs no memory."""
        end = self.offset + self.nbytes
        for start in range(self.offset, end, BLOCK):
            stop = min(start + BLOCK, end)
            yield self.file.view[start:stop]
            self.file.forget(start, stop)


@dataclass(frozen=True, eq=False)
class Held(Source):
    """Bytes of a tensor that another library holds, and gives when they are asked for.

    `owner` is that tensor, for giving it back as it came.
    """

    owner: Any = field(repr=False)
    read: Callable[[], Array] = field(repr=False)

    @property
    def view(self) -> memoryview:
        """The bytes, where they are (as a rule: what isn't contiguous is copied)."""
        return np.ascontiguousarray(self.read()).reshape(-1).view(np.uint8).data

    def blocks(self) -> Iterator[memoryview]:
        """The bytes."""
        yield self.view


@dataclass(frozen=True, eq=False)
class Deferred(Source):
    """Bytes that are made when they are wanted, again each time."""

    name: str
    dtype: np.dtype[Any]
    reads: Iterable[MappedFile] = field(repr=False)
    make: Callable[[], Iterator[Array]] = field(repr=False)

    def blocks(self) -> Iterator[memoryview]:
        """The bytes, as `make` cuts them.  Raises: RuntimeError (a bug) if they aren't what was announced."""
        total = 0
        for chunk in self.make():
            if chunk.dtype != self.dtype:
                raise self._bug(f"{chunk.dtype} was made where {self.dtype} was announced")
            total += chunk.nbytes
            if total > self.nbytes:  # at once: there may be no end to it
                raise self._bug(f"more than the announced {self.nbytes} bytes were made")
            # Through uint8 because ml_dtypes' types have no buffer format of their own.
            yield np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
        if total < self.nbytes:
            raise self._bug(f"{total} bytes were made of the announced {self.nbytes}")
        if total >= RELEASE:  # what it was made from would stay mapped, tensor after tensor
            for file in self.reads:
                file.forget(0, len(file.view))

    def _bug(self, what: str) -> RuntimeError:
        return RuntimeError(f"internal error in bnfold: tensor {quoted(self.name)}: {what}; please report it")


class Weights:
    """The tensors of one model that are not in its proto.

    >>> weights = Weights()
    >>> tensor = onnx.TensorProto(name="w", dims=[2, 3], data_type=onnx.TensorProto.FLOAT)
    >>> weights.defer(tensor, lambda: iter([np.zeros(3, np.float32), np.ones(3, np.float32)]))
    >>> weights.read(tensor)
    array([[0., 0., 0.],
           [1., 1., 1.]], dtype=float32)
    """

    def __init__(self) -> None:
        self._prefix = _NONCE + next(_IDS).to_bytes(4, "little")
        self._sources: list[Source] = []
        self._files: dict[MappedFile, bool] = {}  # in the order of first use; whether it is a data file

    def token(self, source: Source) -> bytes:
        """What stands for `source` in a raw_data field."""
        if isinstance(source, Stored):
            self._files[source.file] = source.external
        self._sources.append(source)
        return self._prefix + (len(self._sources) - 1).to_bytes(4, "little")

    def resolve(self, raw_data: bytes) -> Source | None:
        """The source that `raw_data` stands for; None if it is no token."""
        if len(raw_data) != TOKEN_SIZE or not raw_data.startswith(_NONCE):
            return None
        if not raw_data.startswith(self._prefix):
            raise RuntimeError("internal error in bnfold: a tensor was moved to another model without its content")
        return self._sources[int.from_bytes(raw_data[len(self._prefix) :], "little")]

    def source(self, tensor: TensorProto) -> Source | None:
        """Where the bytes of `tensor` are; None: in the tensor itself."""
        return self.resolve(tensor.raw_data)

    def token_positions(self, serialised: bytes) -> list[int]:
        """Where tokens start in a serialised proto, in ascending order."""
        positions, at = [], serialised.find(_NONCE)
        while at >= 0:
            positions.append(at)
            at = serialised.find(_NONCE, at + TOKEN_SIZE)
        return positions

    def files(self, *, external_only: bool = False) -> list[MappedFile]:
        """The files that tensors are stored in; `external_only`: without the model itself."""
        return [file for file, external in self._files.items() if external or not external_only]

    def is_mapped(self, tensor: TensorProto) -> bool:
        """Whether the bytes of `tensor` are in a mapped file."""
        return isinstance(self.source(tensor), Stored)

    def nbytes(self, tensor: TensorProto) -> int:
        """Bytes that the content of `tensor` takes (of strings: their UTF-8)."""
        source = self.source(tensor)
        size = source.nbytes if source else nbytes_of(tensor)
        return size if size is not None else len(tensor.raw_data) + sum(map(len, tensor.string_data))

    def read(self, tensor: TensorProto) -> Array:
        """The content of `tensor`, shape `tensor.dims`, read-only.

        A stored tensor is a view of its file: nothing is read before it is used.  bfloat16 and the
        8-bit floats come as ml_dtypes' types; types that onnx packs tighter than a byte are unpacked.

        Raises: ModelError if it can't be read as what it says it is.
        """
        if tensor.data_location == TensorProto.EXTERNAL:
            raise external_unknown(tensor)
        source = self.source(tensor)
        try:
            array: Array = onnx.numpy_helper.to_array(tensor) if source is None else _as_array(tensor, source)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{describe(tensor)} can't be read: {error}", where=where(tensor)) from error
        array.flags.writeable = False
        return array

    def defer(self, tensor: TensorProto, make: Callable[[], Iterator[Array]]) -> None:
        """Let `make` produce the content of `tensor`, when it is written or read and not before.

        Args:
            tensor: with name, dims and data_type set; what it held is dropped.  It is written
                outside of the model if it was found there, or if it is new and large and others are there.
            make: gives the content as arrays of the tensor's type that follow each other in C
                order.  It is called once for each use, so it must not use itself up.
        """
        bits, nbytes = bits_of(tensor.data_type), nbytes_of(tensor)
        if bits is None or nbytes is None or bits % 8:
            raise RuntimeError(f"internal error in bnfold: {where(tensor)}: {describe(tensor)} can't be deferred")
        old = self.source(tensor)
        external = old.external if old else nbytes >= LARGE and any(self._files.values())
        for name in _CONTENT_FIELDS:
            tensor.ClearField(name)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.raw_data = self.token(Deferred(nbytes, external, tensor.name, dtype, self._files, make))


def demand_description(tensor: TensorProto, node: NodeProto | None) -> None:
    """Raises: ModelError where a tensor's name, shape, type or way of storage makes no sense."""
    if shown := not_utf8(tensor.name):
        raise ModelError("its name isn't UTF-8; rename it", where=f"tensor {shown}")
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"{describe(tensor)} has a negative dimension", where=where(tensor, node))
    if tensor.data_type == TensorProto.UNDEFINED:
        raise ModelError("has no data type; the model is not valid ONNX", where=where(tensor, node))
    if tensor.HasField("segment"):
        raise ModelError("is a segment of a tensor, which nobody reads any more", where=where(tensor, node))
    held = [name for name in _TYPED_FIELDS if len(getattr(tensor, name))]
    held += [name for name in ("raw_data", "external_data") if name == _storage(tensor)]
    if len(held) > 1:
        what = f"holds its values twice, as {held[0]} and as {held[1]}; which are meant is unclear"
        raise ModelError(what, where=where(tensor, node))


def _storage(tensor: TensorProto) -> str:
    """The field of bytes that a tensor's values are in, '' if they are in none."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return "external_data"
    return "raw_data" if tensor.HasField("raw_data") else ""


def demand_content(tensor: TensorProto, node: NodeProto | None, weights: Weights) -> None:
    """Raises: ModelError where the content of a tensor contradicts its shape and type."""
    needed, unit = nbytes_of(tensor), "bytes"
    is_text = tensor.data_type == TensorProto.STRING
    if tensor.HasField("raw_data"):
        if is_text:
            raise ModelError("is a tensor of strings, which can't be raw data", where=where(tensor, node))
        raw = tensor.raw_data
        source = weights.resolve(raw)
        found = source.nbytes if source else len(raw)
    elif is_text or (bits_of(tensor.data_type) or 1) % 8 == 0:
        needed, unit = elements_of(tensor), "values"
        found = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type)))
        if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
            found //= 2  # real and imaginary parts are listed one after the other
    else:
        return
    if needed is not None and found != needed:
        raise ModelError(
            f"holds {found} {unit} where {describe(tensor)} takes {needed}; the file is damaged or lacks its weights",
            where=where(tensor, node),
        )


def external_unknown(tensor: TensorProto) -> ExternalDataError:
    """The error for a tensor that a model in memory keeps in a file that nobody named the folder of."""
    return ExternalDataError(
        "is kept in a data file, and the model came without its folder; give the model's path instead",
        where=where(tensor),
    )


def _as_array(tensor: TensorProto, source: Source) -> Array:
    content: memoryview | Array
    if isinstance(source, (Stored, Held)):
        content = source.view
    else:
        content, at = np.empty(source.nbytes, np.uint8), 0
        for block in source.blocks():
            content[at : at + block.nbytes] = np.frombuffer(block, np.uint8)
            at += block.nbytes
    if (bits_of(tensor.data_type) or 1) % 8 or sys.byteorder == "big":  # to be unpacked, turned, or refused by onnx
        plain = TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=bytes(content))
        return onnx.numpy_helper.to_array(plain)
    return np.frombuffer(content, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(tuple(tensor.dims))
