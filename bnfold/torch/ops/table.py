"""The table of operators: (domain, name, since-version) → a torch function of the same signature.

A row's function takes what the ONNX operator takes: its inputs in order, an absent one as None, then its attributes
by their names. So `Gemm` is `def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0)`, and whoever knows
the operator's page can check the function. Besides, a function gets what else it asks for by parameter name:

    training    whether the module is in training mode
    outputs     how many outputs the node has, the absent ones at its end not counted
    like        some tensor of the module, for the device of new tensors

*Kinds* say in what form an input is wanted, one letter an input, the last one for all that follow:

    t    a tensor
    n    a tensor, or a Python number where it is a scalar constant or a size: x * 2.0 needs no tensor
    T    a tensor with whose type the numbers of this node go
    i    as n, but an index: its type is nobody's
    s    a list of Python numbers: shapes, axes, pads. Sizes stay Python's all the way from Shape to Reshape
    k    one Python number: the k of TopK, the ratio of Dropout
    z    a number or a list, whichever it is
    q    a sequence, or whatever else it is
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Function = Callable[..., Any]

# What a function may ask for beside inputs and attributes.
CONTEXT = frozenset({"training", "outputs", "like"})


@dataclass(frozen=True)
class Row:
    """One operator from one version on.

    Attributes:
        function: computes it.
        kinds: the forms of its inputs, see above.
        wants: what it asks for of CONTEXT.
        attributes: the attributes that it takes, None if any.
        random: whether two runs differ: it is never evaluated when the module is made.
    """

    domain: str
    name: str
    since: int
    function: Function
    kinds: str
    wants: frozenset[str]
    attributes: frozenset[str] | None
    random: bool

    def kind(self, index: int) -> str:
        """The form in which input `index` is wanted."""
        return self.kinds[min(index, len(self.kinds) - 1)]


_ROWS: dict[tuple[str, str], list[Row]] = {}


def add(
    name: str, function: Function, since: int = 1, kinds: str = "t", domain: str = "", random: bool = False
) -> None:
    """One row."""
    wants, attributes = frozenset[str](), None
    if function.__module__.startswith("bnfold."):
        parameters = inspect.signature(function).parameters.values()
        named = frozenset(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)
        wants = CONTEXT & named
        attributes = None if any(one.kind is one.VAR_KEYWORD for one in parameters) else named - wants
    else:  # torch's own
        attributes = frozenset[str]()
    rows = _ROWS.setdefault((domain, name), [])
    rows.append(Row(domain, name, since, function, kinds, wants, attributes, random))
    rows.sort(key=lambda row: -row.since)


def op(
    names: str, since: int = 1, kinds: str = "t", domain: str = "", random: bool = False
) -> Callable[[Function], Function]:
    """A decorator: this function computes these operators (names separated by blanks)."""

    def register(function: Function) -> Function:
        for name in names.split():
            add(name, function, since, kinds, domain, random)
        return function

    return register


def add_all(functions: dict[str, Function], since: int = 1, kinds: str = "t") -> None:
    """Operators that torch has under another name."""
    for name, function in functions.items():
        add(name, function, since, kinds)


def find(domain: str, name: str, opset: int) -> Row | None:
    """The row that computes an operator as of a version of its domain, None if there is none."""
    rows: Iterable[Row] = _ROWS.get((domain, name), ())
    return next((row for row in rows if row.since <= opset), None)


def rows() -> list[Row]:
    """The whole table, in alphabetical order."""
    return sorted(
        (row for rows in _ROWS.values() for row in rows), key=lambda row: (row.domain, row.name, row.since)
    )
