"""What can go wrong, as a tree of exceptions.

    BnfoldError                 anything bnfold refuses to do; one line, says what to do
    ├── ModelError              the model file or graph is not what it claims to be
    │   └── ExternalDataError   a tensor kept outside the model file can't be used
    ├── OutputError             the result can't be written where it was asked for
    ├── UsageError              options or arguments that make no sense together
    │   └── CalibrationDataError    samples can't be read, or don't fit the model
    └── NotEquivalentError      a proof failed: the result is not the same function

Every message is one line of the form ``where: what is wrong; what to do``, where *where*
names the file and, when known, the node or tensor.  Names come from files that nobody
vouches for, so `quoted` shows control characters escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

# A message stays a line, whatever a file calls its nodes; real names reach about 150 characters.
LONGEST_NAME = 300
# So many problems of a file are told in full.
TOLD = 3


def clean(text: str) -> str:
    r"""A text that can't steer a terminal, nor take more than its line: control characters are escaped.

    >>> clean("a\x1b[31m\nb")
    'a\\x1b[31m\\nb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(name: object) -> str:
    r"""A name from a file, safe to show in a terminal: control characters come out escaped.

    >>> quoted("conv1\x1b[31m")
    "'conv1\\x1b[31m'"
    """
    text = str(name)
    if len(text) > LONGEST_NAME:
        text = text[:LONGEST_NAME] + "…"
    return f"'{clean(text)}'"


def not_utf8(name: object) -> str | None:
    r"""A name as it can be shown if it isn't UTF-8 (protobuf gives such a string as bytes), else None.

    >>> not_utf8(b"conv\xff"), not_utf8("conv")
    ("'conv\ufffd'", None)
    """
    return quoted(name.decode("utf-8", "replace")) if isinstance(name, bytes) else None


class BnfoldError(Exception):
    """Base of everything bnfold raises on purpose.

    Args:
        what: what is wrong and what to do, one line.
        file: the file concerned, if any.
        where: the node or tensor concerned, if any (as it should be shown).
    """

    exit_code = 2

    def __init__(self, what: str, *, file: str | Path | None = None, where: str | None = None) -> None:
        super().__init__(": ".join(str(part) for part in (file, where, what) if part))
        self.what = what
        self.file = file
        self.where = where

    def of(self, file: str | Path | None) -> BnfoldError:
        """The same error, of a file."""
        return type(self)(self.what, file=file, where=self.where)


class ModelError(BnfoldError):
    """The model file or graph is not what it claims to be.

    Args:
        what, file, where: as of every BnfoldError.
        others: further problems of the same file, a sentence each.
    """

    def __init__(
        self, what: str, *, file: str | Path | None = None, where: str | None = None, others: Iterable[str] = ()
    ) -> None:
        self.others = tuple(others)
        super().__init__(what, file=file, where=where)

    def __str__(self) -> str:
        if not self.others:
            return super().__str__()
        told = "; ".join(self.others[: TOLD - 1]) + ("; …" if len(self.others) >= TOLD else "")
        return f"{super().__str__()} (and {len(self.others)} more: {told})"

    def of(self, file: str | Path | None) -> ModelError:
        """The same error, of a file."""
        return type(self)(self.what, file=file, where=self.where, others=self.others)


class TooLargeError(ModelError):
    """The model doesn't fit into one protobuf message (2 GiB), and is wanted as one."""


class NoPlaceError(ModelError):
    """A model has no place for a BatchNormalization."""


class ExternalDataError(ModelError):
    """A tensor kept outside of the model file can't be used."""


class OutputError(BnfoldError):
    """The result can't be written where it was asked for."""


class UsageError(BnfoldError):
    """Options or arguments that make no sense together."""


class CalibrationDataError(UsageError):
    """Samples, to measure or to compare on, can't be read or don't fit the model."""


class NotEquivalentError(BnfoldError):
    """A proof failed: the result is not the same function as the original."""

    exit_code = 1
