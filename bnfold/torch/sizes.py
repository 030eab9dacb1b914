"""Arithmetic of sizes in plain Python numbers.

What comes out of Shape is a list of Python's integers, and as long as nodes compute with nothing but such lists,
numbers and constants, they do so here: no tensors are made, nothing waits for a device, and torch.compile sees
symbolic sizes instead of data.  A value is a number (rank 0) or a list (rank 1); `plan` says for a node whether it can
be computed so, and the rank of the result.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import TensorProto
from torch import Tensor

Number = Any  # int, float, bool, or torch's symbolic forms of them
Size = Any  # a Number or a list of them

_KINDS: dict[int, type] = {
    TensorProto.INT64: int, TensorProto.INT32: int, TensorProto.BOOL: bool, TensorProto.FLOAT: float,
    TensorProto.DOUBLE: float, TensorProto.FLOAT16: float,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """How a node computes with sizes.

    Attributes:
        function: of the node's inputs (those that are there) and `extra`.
        rank: of each of its outputs: 0 or 1.
        small: whether the result is the length of a list of sizes, so that a list of that length is one too.
    """

    function: Callable[..., Size]
    rank: int
    extra: dict[str, Any] = field(default_factory=dict)
    small: bool = False


@dataclass(frozen=True)
class Operand:
    """An input: its rank, its value if it is known when the module is made, and whether it is `Step.small`."""

    rank: int
    value: Size = None
    small: bool = False


# --------------------------------------------------------------------------------------- what runs
def shape(x: Any, start: int = 0, end: int | None = None) -> list[int]:
    """Of a tensor, a list of sizes or a number."""
    dims = list(x.shape) if isinstance(x, Tensor) else [len(x)] if isinstance(x, list) else []
    return dims if start == 0 and end is None else dims[start:end]


def count(x: Any) -> int:
    """Elements of a tensor or a list."""
    return x.numel() if isinstance(x, Tensor) else len(x) if isinstance(x, list) else 1


def _by_element(name: str, function: Callable[..., Number]) -> Callable[..., Size]:
    """A function of numbers as one of lists, too: numbers and lists of one go with every row."""

    def apply(*values: Size) -> Size:
        lists = [value for value in values if isinstance(value, list)]
        if not lists:
            return function(*values)
        length = max(len(value) for value in lists) if all(lists) else 0
        columns = [value if isinstance(value, list) else [value] for value in values]
        return [function(*row) for row in zip(*(c if len(c) == length else c * length for c in columns), strict=True)]

    return _named(f"each_{name}", apply)


def _reduced(name: str, function: Callable[..., Number], keep: bool) -> Callable[..., Size]:
    """A function of a list, over its only axis."""

    def apply(values: list[Number], *_: Any) -> Size:
        result = function(values)
        return [result] if keep else result

    return _named(f"{name}_keep" if keep else name, apply)


def _named(name: str, function: Callable[..., Size]) -> Callable[..., Size]:
    """Generated code calls a function by its name, and a module that uses it is pickled by it."""
    function.__name__ = function.__qualname__ = name
    globals()[name] = function
    return function


def divide(a: Number, b: Number) -> Number:
    """ONNX's division: of integers, towards zero."""
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


def choose(condition: Number, a: Number, b: Number) -> Number:
    """Where."""
    return a if condition else b


def floor(a: float) -> float:
    """Floor."""
    return float(math.floor(a))


def ceil(a: float) -> float:
    """Ceil."""
    return float(math.ceil(a))


def convert(value: Size, kind: str) -> Size:
    """Cast to 'int', 'float' or 'bool'; what is an integer already stays as it is, symbolic ones too."""
    if isinstance(value, list):
        return [convert(one, kind) for one in value]
    if kind == "int":
        return int(value) if isinstance(value, (float, bool)) else value
    return float(value) if kind == "float" else bool(value)


def gather(values: list[Number], index: Size) -> Size:
    """Gather along the only axis."""
    return [values[i] for i in index] if isinstance(index, list) else values[index]


def cut(values: list[Number], starts: list[int], ends: list[int], axes: Any = None, steps: Any = None) -> list[Number]:
    """Slice along the only axis; Python's slices clamp as ONNX's do."""
    step, end = steps[0] if steps else 1, ends[0]
    return values[starts[0] :: step] if step < 0 and end < -len(values) else values[starts[0] : end : step]


def joined(*values: list[Number]) -> list[Number]:
    """Concat."""
    return [one for value in values for one in value]


def as_list(value: Size, *_: Any) -> list[Number]:
    """Unsqueeze, Reshape to rank 1."""
    return value if isinstance(value, list) else [value]


def as_number(value: Size, *_: Any) -> Number:
    """Squeeze, Reshape to rank 0."""
    return value[0] if isinstance(value, list) else value


def filled(length: list[int], value: Number) -> list[Number]:
    """ConstantOfShape."""
    return [value] * length[0]


def divided(values: list[Number], sizes: Sequence[int]) -> tuple[list[Number], ...]:
    """Split."""
    result, start = [], 0
    for size in sizes:
        result.append(values[start : start + size])
        start += size
    return tuple(result)


# --------------------------------------------------------------------------------------- what can run
_NUMBERS: dict[str, Callable[..., Number]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": divide, "Mod": operator.mod,
    "Neg": operator.neg, "Abs": operator.abs, "Equal": operator.eq, "Less": operator.lt, "Greater": operator.gt,
    "LessOrEqual": operator.le, "GreaterOrEqual": operator.ge, "Not": operator.not_, "Where": choose, "Floor": floor,
    "Ceil": ceil, "Sqrt": math.sqrt, "Pow": operator.pow, "Min": min, "Max": max,
}  # fmt: skip
_ELEMENTWISE = {name: _by_element(name, function) for name, function in _NUMBERS.items()}
_OF_LISTS: dict[str, Callable[..., Number]] = {
    "ReduceProd": math.prod, "ReduceSum": sum, "ReduceMax": max, "ReduceMin": min,
}  # fmt: skip
_REDUCTIONS = {
    (name, keep): _reduced(name, function, keep)
    for name, function in _OF_LISTS.items()
    for keep in (False, True)
}


def plan(name: str, operands: Sequence[Operand | None], attributes: dict[str, Any], outputs: int) -> Step | None:
    """How an operator of ONNX's own computes with sizes; None if it can't, or its result would be no size.

    Args:
        name: the operator.
        operands: its inputs, all of them sizes.
        attributes: of the node; element types as TensorProto numbers, tensors as torch's.
        outputs: how many it has.
    """
    have = [one for one in operands if one is not None]
    if name in _ELEMENTWISE:
        if name in ("Min", "Max", "Mod") and (len(have) < 2 or attributes.get("fmod")):
            return None
        return Step(_ELEMENTWISE[name], max(one.rank for one in have))
    keep = bool(attributes.get("keepdims", 1))
    if (name, keep) in _REDUCTIONS and have[0].rank == 1:
        return Step(_REDUCTIONS[name, keep], int(keep))
    rule = _RULES.get(name)
    return rule(have, attributes, outputs) if rule else None


def _cast(have: list[Operand], attributes: dict[str, Any], outputs: int) -> Step | None:
    kind = _KINDS.get(attributes["to"])
    return None if kind is None else Step(convert, have[0].rank, {"kind": kind.__name__})


def _gather(have: list[Operand], attributes: dict[str, Any], outputs: int) -> Step | None:
    return Step(gather, have[1].rank) if have[0].rank == 1 else None


def _slice(have: list[Operand], attributes: dict[str, Any], outputs: int) -> Step | None:
    if have[0].rank != 1:
        return None
    return Step(cut, 1, {key: list(attributes[key]) for key in ("starts", "ends", "axes") if key in attributes})


def _concat(have: list[Operand], attributes: dict[str, Any], outputs: int) -> Step | None:
    return Step(joined, 1) if all(one.rank == 1 for one in have) else None


def _unsqueeze(have: list[Operand], attributes: dict[str, Any], outputs: int) -> Step | None:
    return Step(as_list, 1) if have[0].rank == 0 else None


def _squeeze(have: list[Operand], attributes: dict[str, Any], outputs: int) -> Step | None:
    named = len(have) > 1 or "axes" in attributes
    return Step(as_number, 0) if named and have[0].rank == 1 else None


def _reshape(have: list[Operand], attributes: dict[str, Any], outputs: int) -> Step | None:
    target = have[1].value if len(have) > 1 else list(attributes.get("shape", (0, 0)))
    if not isinstance(target, list) or len(target) > 1:
        return None
    return Step(as_list, 1) if target else Step(as_number, 0)


def _filled(have: list[Operand], attributes: dict[str, Any], outputs: int) -> Step | None:
    value = attributes.get("value")
    if not have[0].small or value is None or value.is_floating_point():
        return None
    return Step(filled, 1, {"value": value.item()})


def _split(have: list[Operand], attributes: dict[str, Any], outputs: int) -> Step | None:
    sizes = have[1].value if len(have) > 1 else attributes.get("split")
    if have[0].rank != 1 or sizes is None or outputs < 2:
        return None
    return Step(divided, 1, {} if len(have) > 1 else {"sizes": list(sizes)})


_RULES: dict[str, Callable[[list[Operand], dict[str, Any], int], Step | None]] = {
    "Cast": _cast, "Gather": _gather, "Slice": _slice, "Concat": _concat, "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze, "Reshape": _reshape, "ConstantOfShape": _filled, "Split": _split,
}  # fmt: skip
