"""Protobuf's wire format, read only as far as ONNX keeps tensors.

On the wire a message is a row of fields: a tag (field number and kind), then the payload.  A
submessage is a payload with its length in front of it, so a reader that isn't interested steps
over it without looking inside.  That is all that is needed to take the weights out of a model, and
to put them back, without ever holding them: `rewrite` walks from `ModelProto` down to
`TensorProto.raw_data`, hands each payload to the caller, and adapts the lengths of the messages
around it.  Everything else is passed on as it stands, byte for byte, in slices of the input.

Where tensors can be is read off ONNX's own descriptors (`PLACES`): initializers, sparse
initializers, attributes, bodies of If/Loop/Scan, local functions, training_info, and whatever a
later ONNX adds.
Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from onnx import ModelProto, NodeProto, TensorProto

# Protobuf's readers give up at this depth of messages (C++, Java and upb agree on the default), so
# nothing deeper is a model that anyone could load.  It also bounds the work per level in `rewrite`.
MAX_DEPTH = 100

RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER

_VARINT, _FIXED64, _LENGTH, _GROUP_START, _GROUP_END, _FIXED32 = range(6)


class WireError(ValueError):
    """The bytes are not a protobuf message."""


class Piece(Protocol):
    """Something that takes up `nbytes` bytes of a file."""

    @property
    def nbytes(self) -> int:
        """Its size in the file."""


P = TypeVar("P", bound=Piece)


def _places() -> dict[str, dict[int, tuple[str, bool, str]]]:
    """Message name → {field number: (field name, repeated?, its message)}, for fields that can hold a tensor."""
    fields: dict[str, dict[int, tuple[str, bool, str]]] = {}
    todo: list[Any] = [ModelProto.DESCRIPTOR]
    for message in todo:  # grows while it is walked
        inner = [field for field in message.fields if field.message_type is not None]
        # A field with presence is a singular one (`label` says it too, but newer protobuf deprecates it).
        fields[message.name] = {f.number: (f.name, not f.has_presence, f.message_type.name) for f in inner}
        todo += {f.message_type.name: f.message_type for f in inner if f.message_type.name not in fields}.values()
        fields.update({f.message_type.name: {} for f in inner if f.message_type.name not in fields})
    holds = {"TensorProto"}
    while more := {m for m, inside in fields.items() if holds & {child for *_, child in inside.values()}} - holds:
        holds |= more
    return {m: {n: field for n, field in fields[m].items() if field[2] in holds} for m in holds}


PLACES = _places()


def tensors(model: ModelProto) -> Iterator[tuple[TensorProto, NodeProto | None]]:
    """Every TensorProto of `model`, wherever it is, with the node that it belongs to (None: an initializer)."""
    todo: list[tuple[Any, str, NodeProto | None]] = [(model, "ModelProto", None)]
    fields = {message: tuple(inside.values()) for message, inside in PLACES.items()}
    while todo:
        message, kind, node = todo.pop()
        if kind == "NodeProto":
            node = message
        for name, repeated, child in fields[kind]:
            if repeated:
                found = getattr(message, name)
            elif message.HasField(name):
                found = (getattr(message, name),)
            else:
                continue
            if child == "TensorProto":
                for tensor in found:
                    yield tensor, node
            elif found:
                todo.extend([(one, child, node) for one in reversed(found)])


def encode_varint(value: int) -> bytes:
    """A non-negative integer as protobuf writes it, 7 bits a byte, lowest first.

    >>> encode_varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The integer that starts at byte `at`, and the place behind it."""
    byte = data[at]
    at += 1
    if byte < 0x80:  # nearly all of them
        return byte, at
    value, shift = byte & 0x7F, 7
    while byte > 0x7F:
        if shift > 63:
            raise WireError(f"no protobuf field at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, at


def rewrite(
    data: memoryview, enter: Callable[[int, int], bool], replace: Callable[[int, int], P | None]
) -> list[memoryview | P]:
    """A serialised ModelProto with the `raw_data` of its tensors replaced, as the row of its pieces.

    Args:
        data: the serialised model, shape (n,), format "B".
        enter: whether the payload `data[start:stop]`, a message that can hold tensors or a
            tensor's raw_data, may be of interest.  Called with growing `start`.
        replace: what to put in the place of the raw_data `data[start:stop]` (None: leave the field out).

    Returns: slices of `data`, new headers, and what `replace` gave; laid end to end they are the
        new serialised model.  No payload is copied.

    Raises: WireError if the bytes are not a protobuf message.
    """
    try:
        return _Walk(data, enter, replace).message("ModelProto", 0, len(data), 1)
    except IndexError:
        raise WireError(f"cut short at byte {len(data)}") from None


def leading_to(positions: list[int]) -> Callable[[int, int], bool]:
    """An `enter` for `rewrite`: whether one of these positions, in ascending order, is in a payload."""

    def enter(start: int, stop: int) -> bool:
        at = bisect_left(positions, start)
        return at < len(positions) and positions[at] < stop

    return enter


@dataclass(frozen=True)
class _Walk(Generic[P]):
    data: memoryview
    enter: Callable[[int, int], bool]
    replace: Callable[[int, int], P | None]

    def message(self, kind: str, at: int, end: int, depth: int) -> list[memoryview | P]:
        """The pieces of the message of this kind in `data[at:end]`: one if nothing in it is replaced.

        Calls itself for submessages, at most MAX_DEPTH deep.
        """
        if depth > MAX_DEPTH:
            raise WireError(f"messages are nested more than {MAX_DEPTH} deep, which no protobuf reader accepts")
        data, places, raw = self.data, PLACES[kind], RAW_DATA if kind == "TensorProto" else None
        pieces: list[memoryview | P] = []
        copied, groups = at, 0  # what is put out so far ends here; how many groups are open
        while at < end:
            field = at
            tag, at = _varint(data, at)
            if tag & 7 != _LENGTH:
                at, groups = _skip(data, at, tag & 7, groups)
                continue
            length, start = _varint(data, at)
            at = start + length
            if at > end:
                raise WireError(f"cut short: byte {field} announces {length} bytes where {end - start} are left")
            number = tag >> 3
            # Inside a group (a relic that only unknown fields use) field numbers mean something else.
            if groups or (number != raw and number not in places) or not self.enter(start, at):
                continue
            inside: list[memoryview | P]
            if number == raw:
                piece = self.replace(start, at)
                inside = [] if piece is None else [piece]
            else:
                inside = self.message(places[number][2], start, at, depth + 1)
                if len(inside) == 1:  # nothing replaced: its very bytes stay, odd encodings and all
                    continue
            pieces.append(data[copied:field])
            if inside:
                pieces.append(memoryview(encode_varint(tag) + encode_varint(sum(piece.nbytes for piece in inside))))
                pieces += inside
            copied = at
        if at > end or groups:
            raise WireError(f"cut short at byte {end}")
        pieces.append(data[copied:end])
        return pieces


def _skip(data: memoryview, at: int, wire: int, groups: int) -> tuple[int, int]:
    """The place behind a field that has no length in front, and how many groups are open there."""
    if wire == _VARINT:
        return _varint(data, at)[1], groups
    if wire == _FIXED32:
        return at + 4, groups
    if wire == _FIXED64:
        return at + 8, groups
    if wire == _GROUP_START:
        return at, groups + 1
    if wire == _GROUP_END and groups:
        return at, groups - 1
    raise WireError(f"no protobuf field at byte {at - 1}")
