"""A verdict that others can check: the files by their SHA-256, how they were compared, and what was found.

`check` compares the same files in the same way again. It holds if the files are those that the certificate names and
the verdict is the same; on other versions of ONNX Runtime the numbers may differ in their last digits.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from bnfold.errors import NotEquivalentError, UsageError, quoted
from bnfold.mapped import Refused, open_regular
from bnfold.model_file import load
from bnfold.verify.compare import verify
from bnfold.verify.comparison import Comparison

FORMAT = "bnfold certificate"
VERSION = 1
BLOCK = 1 << 20
# Bytes of a certificate, at most: one of 10,000 segments has 1 MB.
LONGEST = 64 << 20


def certificate(
    found: Comparison, a: str, b: str | None, data: str | None, folder: str | os.PathLike[str]
) -> dict[str, Any]:
    """What `found` certifies, as plain data; paths are relative to `folder`, where it is to be kept."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "verdict": found.verdict,
        "reason": found.reason,
        "worst": found.worst,
        "a": _files(a, folder),
        "b": None if b is None else _files(b, folder),
        "data": None if data is None else {os.path.relpath(data, folder): digest(data)},
        "inputs": found.inputs,
        "settings": found.settings,
        "segments": [
            {"value": segment.value, "value_b": segment.value_b, "r": segment.r} for segment in found.segments
        ],
    }


def _files(model: str, folder: str | os.PathLike[str]) -> dict[str, str]:
    """SHA-256 of the model file, which comes first, and of its data files, by path."""
    paths = [Path(model), *(file.path for file in load(model).weights.files(external_only=True))]
    return {os.path.relpath(path, folder): digest(path) for path in paths}


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            sha.update(block)
    return sha.hexdigest()


def check(path: str | os.PathLike[str]) -> Comparison:
    """Compare again what a certificate is about.

    Raises:
        UsageError: it is no certificate.
        NotEquivalentError: a file isn't what was certified, or the verdict is another one.
        BnfoldError: as `verify` does.
    """
    known, folder = read(path), os.path.dirname(os.fspath(path)) or os.curdir
    for files in (known["a"], known["b"] or {}, known["data"] or {}):
        for name, sha in files.items():
            if not os.path.isfile(os.path.join(folder, name)):
                raise UsageError(f"certifies {quoted(name)}, which isn't there", file=os.fspath(path))
            if digest(os.path.join(folder, name)) != sha:
                raise NotEquivalentError(f"{quoted(name)} is not the file that was certified", file=os.fspath(path))
    a, b, data = (
        None if not known[role] else os.path.join(folder, next(iter(known[role]))) for role in ("a", "b", "data")
    )
    settings = known["settings"]
    found = verify(
        a, b, data=data, seed=settings["seed"], optimized=settings["optimized"],
        provider_a=settings["provider_a"], provider_b=settings["provider_b"],
    )  # fmt: skip
    if found.verdict != known["verdict"]:
        what = f"certifies {quoted(known['verdict'])}; it is {quoted(found.verdict)} now: {found.reason}"
        raise NotEquivalentError(what, file=os.fspath(path))
    return found


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A certificate's content.

    Raises: UsageError if it is none.
    """
    trouble = UsageError("is no certificate of bnfold verify", file=os.fspath(path))
    try:
        with open_regular(path) as file:
            known = json.loads(file.read(LONGEST).decode("utf-8"))
    except Refused as why:
        raise UsageError(str(why), file=os.fspath(path)) from None
    except (ValueError, RecursionError):
        raise trouble from None
    if not isinstance(known, dict) or known.get("format") != FORMAT:
        raise trouble
    if known.get("version") != VERSION:
        raise UsageError(f"is a certificate of version {known.get('version')}; this is {VERSION}", file=os.fspath(path))
    fields: dict[str, tuple[type, ...]] = {
        "a": (dict,), "settings": (dict,), "verdict": (str,), "b": (dict, type(None)), "data": (dict, type(None)),
    }  # fmt: skip
    if any(not isinstance(known.get(name), kinds) for name, kinds in fields.items()) or not known["a"]:
        raise trouble
    if not {"seed", "optimized", "provider_a", "provider_b"} <= known["settings"].keys():
        raise trouble
    return known
