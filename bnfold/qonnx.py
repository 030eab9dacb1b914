"""QONNX: whole numbers kept as floats, in front of the op that rounds them.

    Quant, IntQuant    y = scale * (q - zero_point)    q = round(clip(x / scale + zero_point, low, high))
    BipolarQuant       y = scale * q                   q = 1 where x >= 0, else -1

`scale` and `zero_point` lie as numpy broadcasts them; `low` and `high` follow from the width in bits and from two
attributes.  Brevitas and QKeras export weights so, and FINN and hls4ml read them.

Source: docs/qonnx-custom-ops of fastmachinelearning/qonnx, version 1 of the operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bnfold.graph import Node

Array = np.ndarray[Any, Any]

# Where the ops have been at home: today, as Brevitas wrote them, before QONNX had a name, and without any.
DOMAINS = ("qonnx.custom_op.general::", "onnx.brevitas::", "finn.custom_op.general::", "")
QUANT = frozenset(domain + op for domain in DOMAINS for op in ("Quant", "IntQuant"))
BIPOLAR = frozenset(domain + "BipolarQuant" for domain in DOMAINS)
OPS = QUANT | BIPOLAR


def _half_up(size: Array) -> Array:
    return np.asarray(np.floor(size) + (size - np.floor(size) >= 0.5))


def _half_down(size: Array) -> Array:
    return np.asarray(np.floor(size) + (size - np.floor(size) > 0.5))


# How each mode rounds the size of a number, and whether a number's sign is left aside for that.
ROUNDING: dict[str, tuple[Callable[[Array], Array], bool]] = {
    "ROUND": (np.rint, False), "HALF_EVEN": (np.rint, False), "HALF_UP": (_half_up, True),
    "HALF_DOWN": (_half_down, True), "CEIL": (np.ceil, False), "FLOOR": (np.floor, False),
    "UP": (np.ceil, True), "DOWN": (np.floor, True),
}  # fmt: skip
# A float that stands for q, and is a last digit off, has to come out as q.  Modes that round one way need room for
# that: half a step.
LEAN = {"CEIL": -0.5, "FLOOR": 0.5, "UP": -0.5, "DOWN": 0.5}


@dataclass(frozen=True)
class Grid:
    """The whole numbers that values are rounded to.

    rounding: a key of ROUNDING; '' for the sign alone.
    """

    name: str  # as in messages
    low: int
    high: int
    rounding: str

    @property
    def has_zero(self) -> bool:
        """False if there is no integer for 0."""
        return self.rounding != ""

    def integers(self, x: Array, scale: Array, zero: Array) -> Array:
        """q, as floats of x's type: computed in that type, as QONNX's own implementation does."""
        if not self.rounding:
            return np.where(x >= 0, 1, -1).astype(x.dtype)
        function, by_size = ROUNDING[self.rounding]
        with np.errstate(all="ignore"):
            seen = np.clip((x / scale + zero).astype(x.dtype), self.low, self.high)
            return np.asarray(np.sign(seen) * function(np.abs(seen)) if by_size else function(seen))

    def numbers(self, x: Array, scale: Array, zero: Array) -> Array:
        """y: scale * (q - zero)."""
        with np.errstate(all="ignore"):
            return np.asarray((self.integers(x, scale, zero) - zero) * scale, x.dtype)

    def floats(self, integers: Array, scale: Array, zero: Array) -> Array:
        """What to store as x, for these integers to come out: scale * (q - zero), or half a step beside it."""
        lean = LEAN.get(self.rounding, 0.0) * (np.sign(integers) if self.rounding in ("UP", "DOWN") else 1.0)
        with np.errstate(all="ignore"):
            wide = scale.astype(np.float64) * (integers.astype(np.float64) - zero + lean)
            return np.asarray(wide.astype(scale.dtype))


def grid_of(node: Node, bits: Array | None) -> Grid | str:
    """The whole numbers that a node rounds to; or why they are unknown, as the end of a sentence.

    bits: its fourth input.
    """
    if node.op in BIPOLAR:
        return Grid("bipolar", -1, 1, "")
    if bits is None or bits.size != 1:
        return "whose width in bits is no constant number"
    width = float(np.ravel(bits)[0])
    signed, narrow = bool(node.attribute("signed", 1)), bool(node.attribute("narrow", 0))
    if not width.is_integer() or not 1 + signed <= width <= 32:
        return f"whose width of {width:g} bits isn't one"
    rounding = str(node.attribute("rounding_mode", "ROUND")).upper()
    if rounding not in ROUNDING:
        return f"which are rounded in a way that isn't known, {rounding!r}"
    count = 1 << int(width)
    low, high = (narrow - count // 2, count // 2 - 1) if signed else (0, count - 1 - narrow)
    return Grid(f"{'' if signed else 'u'}int{int(width)}", low, high, rounding)


def evaluate(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    """What a node makes of constants; None where that isn't known."""
    x, scale, zero, bits = (*inputs, None, None, None, None)[:4]
    grid = grid_of(node, bits)
    if isinstance(grid, str) or x is None or scale is None or (zero is None and node.op in QUANT):
        return None
    if x.dtype.kind != "f" or np.broadcast_shapes(x.shape, scale.shape) != x.shape:
        return None
    return grid.numbers(x, scale, np.zeros((), x.dtype) if zero is None else zero)
