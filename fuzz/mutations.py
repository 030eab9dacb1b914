"""Damage: to bytes as they are, and to a model as a tree of protobuf fields."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import ModelProto

# Numbers at which sizes, offsets and types go wrong.
ODD = (0, 1, -1, 2, 7, 8, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
ODD_FLOATS = (0.0, -0.0, 1e-45, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))
# Structures are found down to here: a mutation of a weight's single numbers is left to the bytes.
LONGEST = 64


def mutated(data: bytes, rng: random.Random, others: list[bytes], *, tree: bool) -> bytes:
    """The bytes after none to four mutations; `tree`: they are a model, and half of the time treated as one."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 4))):
        data = (_in_tree(data, rng) if tree and rng.random() < 0.6 else None) or _in_bytes(data, rng, others)
    return data


def _in_bytes(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    blob = bytearray(data or b"\0")
    at = rng.randrange(len(blob))
    kind = rng.randrange(7)
    if kind == 0:
        blob[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        blob[at] = rng.randrange(256)
    elif kind == 2:
        del blob[at : at + rng.choice((1, 2, 8, 100))]
    elif kind == 3:
        blob[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 16))))
    elif kind == 4:
        del blob[at:]
    elif kind == 5:
        other = rng.choice(others)
        start = rng.randrange(len(other))
        blob[at:at] = other[start : start + rng.randrange(1, 60)]
    else:
        blob[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\x80\x80\x80", b"|-1\n", b"../x"))
    return bytes(blob)


def _in_tree(data: bytes, rng: random.Random) -> bytes | None:
    """A field less, an entry twice, another number, another name; None if it is no model any more, or an empty one."""
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return None
    places = list(_places(model))
    if not places:
        return None
    message, field = rng.choice(places)
    try:
        _damage(message, field, rng, places)
    except UnicodeDecodeError:  # half of a name that is no UTF-8
        return None
    serialised: bytes = model.SerializeToString()
    return serialised


def _places(message: Message) -> Iterator[tuple[Any, Any]]:
    """Every field that is set, with its message."""
    waiting = [message]
    while waiting:
        top = waiting.pop()
        for field, value in top.ListFields():
            yield top, field
            if field.message_type is not None:
                waiting.extend([value] if field.has_presence else list(value)[:LONGEST])


def _damage(message: Any, field: Any, rng: random.Random, places: list[tuple[Any, Any]]) -> None:
    value = getattr(message, field.name)
    if field.has_presence:
        if rng.random() < 0.4 or field.message_type is not None:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, _another(value, rng, places))
        return
    at, kind = rng.randrange(len(value)), rng.randrange(3)
    if kind == 0:
        del value[at]
    elif field.message_type is not None:
        value.add().CopyFrom(value[at])
    elif kind == 1:
        value.append(value[at])
    else:
        value[at] = _another(value[at], rng, places)


def _another(value: Any, rng: random.Random, places: list[tuple[Any, Any]]) -> Any:
    """A value of the same type: an odd one, or (of names) one that is somewhere else in the model."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return rng.choice(ODD_FLOATS)
    if isinstance(value, int):  # small ones are valid in every field, enumerations included
        return rng.choice((0, 1, 2, 3, 5, 7, 10, 11, value + 1)) if 0 <= value < 32 else rng.choice(ODD[:9])
    found = [getattr(message, field.name) for message, field in rng.choices(places, k=20)]
    names = [name for name in found if isinstance(name, str)]
    if isinstance(value, bytes):
        return value[: len(value) // 2]
    return rng.choice([*names, "", "\x1b[2J\n", value + "0"])
