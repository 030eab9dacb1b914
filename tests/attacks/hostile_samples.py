"""Samples that are none: files that hang, explode, run code, or don't fit.  Each takes the place of `d.npz`."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Build = Callable[[Path], Any]
X = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)


def content(data: bytes) -> Build:
    return lambda path: path.write_bytes(data)


def npz(**arrays: Any) -> Build:
    return lambda path: np.savez(path, **arrays)


def member(header: str, values: bytes = b"", compress: int = zipfile.ZIP_STORED, version: bytes = b"\x01\x00") -> Build:
    """An archive whose only array has such a header."""
    text = header.encode("latin1")
    size = struct.pack("<H", len(text)) if version == b"\x01\x00" else struct.pack("<I", len(text))

    def build(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compress) as archive:
            archive.writestr("x.npy", b"\x93NUMPY" + version + size + text + values)

    return build


def header(shape: str, descr: str = "'<f4'", fortran: bool = False) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


def bomb(path: Path) -> None:
    """4 GB of zeros in 4 MB, behind a header that says 16 samples; and no more of them are ever unpacked."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as out:
        out.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header("(16, 3, 8)"))) + header("(16, 3, 8)").encode())
        for _ in range(512):
            out.write(bytes(1 << 20))


def cut(path: Path) -> None:
    np.savez(path, x=X)
    path.write_bytes(path.read_bytes()[:-2000])


def with_nan(kind: float) -> np.ndarray[Any, Any]:
    array = X.copy()
    array[7, 1, 2, 3] = kind
    return array


def encrypted(path: Path) -> None:
    np.savez(path, x=X)
    data = bytearray(path.read_bytes())
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(magic) + place] |= 1
    path.write_bytes(data)


DAMAGED = "damaged"
HOSTILE_SAMPLES: dict[str, tuple[Build, str]] = {
    "missing": (lambda path: None, "no such file"),
    "a FIFO": (os.mkfifo, "is a FIFO, not a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    "empty": (content(b""), "no .npz"),
    "noise": (content(bytes(range(256)) * 8), "no .npz"),
    "a pickle": (content(pickle.dumps({"x": [1, 2]})), "no .npz"),
    "an empty archive": (content(b"PK\x05\x06" + bytes(18)), "no array"),
    "an archive of something else": (lambda path: zipfile.ZipFile(path, "w").writestr("x.txt", "1"), "no array|damaged"),
    "cut short": (cut, DAMAGED),
    "encrypted": (encrypted, DAMAGED),
    "pickled objects": (lambda path: np.savez(path, x=np.array([{"a": 1}], object), allow_pickle=True), DAMAGED),
    "records": (npz(x=np.zeros(4, [("a", "f4")])), "damaged|is .* the input"),
    "another name": (npz(y=X, z=X), "has no array"),
    "another type": (npz(x=X.astype(np.float64)), "is float64; the (input is|model takes) float32"),
    "another rank": (npz(x=X[:, 0]), r"\[16, 8, 8\]"),
    "another shape": (npz(x=X[:, :2]), r"\[16, 2, 8, 8\]"),
    "no samples": (npz(x=X[:0]), "no(,.*)? samples"),
    "one number": (npz(x=np.float32(1)), "number; samples"),
    "a NaN": (npz(x=with_nan(np.nan)), "sample 7, input 'x': has NaN"),
    "an infinite value": (npz(x=with_nan(np.inf)), "sample 7, input 'x': has an infinite value"),
    "a negative shape": (member(header("(-16, 3, 8, 8)"), bytes(100)), DAMAGED),
    "a shape of text": (member(header("'many'"), bytes(100)), DAMAGED),
    "a shape of floats": (member(header("(16.0, 3, 8, 8)"), bytes(100)), DAMAGED),
    "a type of no meaning": (member(header("(16, 3, 8, 8)", "'<q9'"), bytes(100)), DAMAGED),
    "a header that is code": (member("__import__('os').system('true')\n"), DAMAGED),
    "a header of brackets": (member("(" * 9000 + "\n"), DAMAGED),
    "a header of 60 kB": (member(" " * 60_000 + "\n"), DAMAGED),
    "a header of another version": (member(header("(1,)"), version=b"\x09\x00"), DAMAGED),
    "10^12 samples that aren't there": (member(header("(1000000000000, 3, 8, 8)"), bytes(100)), "damaged"),
    "2^62 samples, compressed": (member(header(f"({2**62}, 3, 8, 8)"), bytes(100), zipfile.ZIP_DEFLATED),
                                 "damaged|GB unpacked"),
    "by columns, 10^12": (member(header("(1000000000000, 3, 8, 8)", fortran=True), bytes(100)), DAMAGED),
    "a bomb of 512 MB": (bomb, r"\[16, 3, 8\]"),
}  # fmt: skip


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg_cut(path: Path) -> None:
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[:300])


IMAGES: dict[str, tuple[Build, str]] = {
    "no image": (content(b"<html>404</html>"), "can't be decoded"),
    "empty": (content(b""), "can't be decoded"),
    "cut short": (jpeg_cut, "can't be decoded"),
    "a bomb of 10^10 pixels": (content(png(10**5, 10**5)), "can't be decoded"),
    "of 2^31 pixels a row": (content(png(2**31 - 1, 1)), "can't be decoded"),
    "rows missing": (content(png(8, 8)), "can't be decoded"),
    "a FIFO": (os.mkfifo, "is a FIFO"),
    "a folder's link to itself": (lambda path: path.symlink_to(path.name), "can't be opened"),
    "of another size": (content(png(9, 9, bytes(9 * 28))), r"\[.*9, 9\]"),
}
