"""Each op as a linear map: one rule an op, from a node to a `Term`.

A value that only one node reads is looked through, up to the value that several branches share.  What has no rule, or
is not linear, ends a branch: its result is the source of what is behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnfold.fold.merge.cost import work, work_of_nodes
from bnfold.fold.merge.terms import Axis, Term, behind, fitted, per_channel, union
from bnfold.fold.ops.affine import read_affine, read_arithmetic
from bnfold.fold.ops.linear import constant_bias, weight_of
from bnfold.fold.ties import Ties
from bnfold.fold.union_find import Floats
from bnfold.graph import Node, Value

# Nodes looked through between a sum and what its branches share; six branches in a row of Adds take eight.
DEPTH = 24

Rule = Callable[["Reader", Node, int], "Term | None"]
RULES: dict[str, Rule] = {}

SUMS = {"Add": (1, 1), "Sub": (1, -1), "Sum": None}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register the rule of some ops."""

    def register(function: Rule) -> Rule:
        for op in ops:
            RULES[op] = function
        return function

    return register


def leaf(value: Value) -> Term:
    """A value as the identity of itself."""
    return Term("identity", value, value)


def is_inner(value: Value) -> bool:
    """True if one node alone reads a value (others at most its type), so that nobody misses it."""
    readers = [node for node, index in value.users if not (node.op == "CastLike" and index == 1)]
    return value.is_private and len(readers) == 1 and value.producer is not None


class Reader:
    """Reads terms of one scope.

    Args:
        ties: knows constants and shapes of the scope.
        allowed: whether a node may go.
        rank: number of spatial axes of the values in question; None for MatMul and Gemm.
    """

    def __init__(self, ties: Ties, allowed: Callable[[Node], bool], rank: int | None) -> None:
        self.ties = ties
        self.rank = rank
        self._allowed = allowed

    def term(self, value: Value, depth: int = DEPTH) -> Term:
        """A value as a map of the value that its branch begins at."""
        if depth <= 0 or not is_inner(value):
            return leaf(value)
        node = value.producer
        assert node is not None
        return self.of_node(node, depth) or leaf(value)

    def of_node(self, node: Node, depth: int = DEPTH) -> Term | None:
        """The output of a node as such a map; None if the node is not linear."""
        read = RULES.get(node.op)
        if read is None or node.has_reference_attributes or not self._allowed(node):
            return None
        if any(output is not None and (output.users or output.is_output) for output in node.outputs[1:]):
            return None
        try:
            return read(self, node, depth)
        except (ValueError, IndexError, TypeError, KeyError, ArithmeticError):  # no valid ONNX
            return None

    def behind(self, outer: Term, depth: int) -> Term:
        """A map together with what is in front of it, where both together are one."""
        inner = self.term(outer.source, depth - 1)
        if inner.kind == "identity" and not inner.nodes:
            return outer
        return self.chained(outer, inner) or outer

    def chained(self, outer: Term, inner: Term) -> Term | None:
        """outer(inner(x)) as one map; None if that is none.

        A padded outer map sees zeros where inner(0) may be none, or where inner would see more of x.
        """
        if outer.rows is None and inner.rows is None:
            return self._unsized(outer, inner)
        if inner.rows is None and outer.columns is not None and outer.axes is not None:
            fit = fitted(inner, outer.columns, len(outer.axes), bool(outer.last))
        elif outer.rows is None and inner.rows is not None and inner.axes is not None:
            fit, outer = inner, fitted(outer, inner.rows, len(inner.axes), bool(inner.last)) or outer
        else:
            fit = inner
        if fit is None or outer.rows is None or fit.rows != outer.columns or fit.last != outer.last:
            return None
        if outer.axes is None or fit.axes is None or len(outer.axes) != len(fit.axes):
            return None
        if fit.dtype is not None and outer.dtype is not None and fit.dtype != outer.dtype:
            return None
        if any(axis.padded for axis in outer.axes) and not self._keeps_zero(fit):
            return None
        return Term(
            "chain", outer.value, fit.source, (*outer.nodes, *fit.nodes), (outer, fit), outer.rows, fit.columns,
            math.gcd(outer.groups or 1, fit.groups or 1),
            tuple(behind(o, i) for o, i in zip(outer.axes, fit.axes, strict=True)), outer.last,
            outer.host or fit.host, dtype=outer.dtype or fit.dtype,
        )  # fmt: skip

    def _unsized(self, outer: Term, inner: Term) -> Term | None:
        """A pool or Pad behind a Pad, of as yet unknown channels."""
        if outer.axes is None or inner.axes is None or inner.kind != "identity" or len(outer.axes) != len(inner.axes):
            return None
        axes = tuple(behind(o, i) for o, i in zip(outer.axes, inner.axes, strict=True))
        return Term(
            "chain", outer.value, inner.source, (*outer.nodes, *inner.nodes), (outer, inner), axes=axes, last=False
        )

    def _keeps_zero(self, inner: Term) -> bool:
        """True if zeros beside the input are zeros beside the output: one tap, no stride, no constant."""
        from bnfold.fold.merge.kernels import bias

        assert inner.axes is not None
        single = all(axis.taps == 1 and axis.stride == 1 for axis in inner.axes)
        return single and not bias(inner, self.ties.constants).any()


# -- linear ops -----------------------------------------------------------------------------------------


@rule("Conv")  # y[o] = W x[stride o - pad + dilation k] + b
def conv(reader: Reader, node: Node, depth: int) -> Term | None:
    """A Conv of constant weight, with explicit or resolved pads."""
    source, output = node.input(0), node.output()
    found = weight_of(reader.ties, node, 1)
    if found is None or source is None or output is None or reader.ties.is_constant(source):
        return None
    weight, shape = found
    groups = int(node.attribute("group", 1))
    if len(shape) < 3 or groups < 1 or shape[0] % groups:
        return None
    if not constant_bias(reader.ties, node, 2, lambda array: array.size == shape[0]):
        return None
    axes = window(reader.ties, node, source, shape[2:])
    if axes is None:
        return None
    own = Term(
        "weight", output, source, (node,), (), shape[0], shape[1] * groups, groups, axes, False, node,
        weight=weight, bias=node.input(2), dtype=_dtype(reader.ties, weight),
    )  # fmt: skip
    return reader.behind(own, depth)


@rule("AveragePool")  # y[o] = mean of x[stride o - pad + k], if zeros of the padding count
def average_pool(reader: Reader, node: Node, depth: int) -> Term | None:
    """An average whose window is always whole."""
    source, output = node.input(0), node.output()
    kernel = node.attribute("kernel_shape")
    if source is None or output is None or not kernel or node.attribute("ceil_mode", 0):
        return None
    axes = window(reader.ties, node, source, tuple(int(size) for size in kernel))
    if axes is None or (any(axis.padded for axis in axes) and not node.attribute("count_include_pad", 0)):
        return None
    return reader.behind(Term("average", output, source, (node,), axes=axes, last=False), depth)


@rule("Pad")  # y[o] = x[o - pad], zeros outside
def pad(reader: Reader, node: Node, depth: int) -> Term | None:
    """Zeros beside the spatial axes."""
    source, output = node.input(0), node.output()
    if source is None or output is None or node.attribute("mode", "constant") != "constant" or node.input(3):
        return None
    pads = reader.ties.integers(node, "pads", 1)
    filled = node.attribute("value", 0.0) if node.opset < 11 else 0.0
    if node.input(2) is not None:
        array = reader.ties.array(node.input(2))
        filled = 1.0 if array is None or array.size != 1 else float(array.ravel()[0])
    if not pads or filled != 0 or min(pads) < 0:
        return None
    half = len(pads) // 2
    if half < 3 or any(pads[:2]) or any(pads[half : half + 2]):
        return None
    axes = tuple(Axis(-low, margin=low + high - 1) for low, high in zip(pads[2:half], pads[half + 2 :], strict=True))
    return reader.behind(Term("identity", output, source, (node,), axes=axes, last=False), depth)


@rule("Gemm")  # y = alpha x W + beta C
def gemm(reader: Reader, node: Node, depth: int) -> Term | None:
    """Rows of x are samples; C is a vector over columns."""
    source, output = node.input(0), node.output()
    found = weight_of(reader.ties, node, 1)
    if found is None or source is None or output is None or reader.ties.is_constant(source):
        return None
    weight, shape = found
    across = bool(node.attribute("transB", 0))
    if len(shape) != 2 or node.attribute("transA", 0) or node.opset < 7:
        return None
    rows, columns = shape if across else shape[::-1]
    if not constant_bias(reader.ties, node, 2, lambda c: c.size == 1 or (c.size == rows and c.shape[-1] == rows)):
        return None
    own = Term(
        "weight", output, source, (node,), (), rows, columns, 1, (), True, node, weight=weight, bias=node.input(2),
        gains=(float(node.attribute("alpha", 1.0)), float(node.attribute("beta", 1.0))), across=across,
        dtype=_dtype(reader.ties, weight),
    )  # fmt: skip
    return reader.behind(own, depth)


@rule("MatMul")  # y = x W
def matmul(reader: Reader, node: Node, depth: int) -> Term | None:
    """A matrix on the right, whatever is in front of it."""
    source, output = node.input(0), node.output()
    if source is None or output is None or reader.ties.is_constant(source):
        return None
    found = weight_of(reader.ties, node, 1)
    if found is None or len(found[1]) != 2:
        return None
    weight, shape = found
    own = Term(
        "weight", output, source, (node,), (), shape[1], shape[0], 1, (), True, node, weight=weight,
        dtype=_dtype(reader.ties, weight),
    )  # fmt: skip
    return reader.behind(own, depth)


def _dtype(ties: Ties, weight: Value) -> Any:
    array = ties.array(weight)
    return None if array is None else array.dtype


def window(ties: Ties, node: Node, source: Value, kernel: tuple[int, ...]) -> tuple[Axis, ...] | None:
    """Where the taps of a Conv or pool lie along each spatial axis; None if that depends on an unknown size."""
    count = len(kernel)
    strides, dilations = ([int(i) for i in node.attribute(name) or [1] * count] for name in ("strides", "dilations"))
    if not len(strides) == len(dilations) == count or min((*strides, *dilations, *kernel)) < 1:
        return None
    mode = node.attribute("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        dims = ties.dims(source) if any(stride > 1 for stride in strides) else None
        sizes = (None,) * count if dims is None or len(dims) != count + 2 else dims[2:]
        totals = [_same(*of) for of in zip(sizes, kernel, strides, dilations, strict=True)]
        if None in totals:
            return None
        halves = [(total // 2, total - total // 2) for total in totals if total is not None]
        pads = halves if mode == "SAME_UPPER" else [(more, less) for less, more in halves]
    else:
        given = [int(i) for i in node.attribute("pads") or [0] * 2 * count] if mode != "VALID" else [0] * 2 * count
        if len(given) != 2 * count or min(given) < 0:
            return None
        pads = list(zip(given[:count], given[count:], strict=True))
    return tuple(
        Axis(-low, taps, step if taps > 1 else 1, stride, low + high - step * (taps - 1) - 1)
        for taps, stride, step, (low, high) in zip(kernel, strides, dilations, pads, strict=True)
    )


def _same(size: int | None, taps: int, stride: int, step: int) -> int | None:
    """Zeros that make the output ceil(size / stride)."""
    reach = (taps - 1) * step + 1
    if stride == 1:
        return reach - 1
    return None if size is None else max((-(-size // stride) - 1) * stride + reach - size, 0)


# -- what is linear in between --------------------------------------------------------------------------


@rule("Identity", "Dropout")  # y = x
def identity(reader: Reader, node: Node, depth: int) -> Term | None:
    """Nothing happens (Dropout: when it is not told to train)."""
    source, output = node.input(0), node.output()
    if source is None or output is None or node.input(2) is not None or (node.op == "Dropout" and node.opset < 7):
        return None
    inner = reader.term(source, depth - 1)
    return replace(inner, value=output, nodes=(node, *inner.nodes))


@rule("BatchNormalization", "Mul", "Div")  # y = a x + b
def affine(reader: Reader, node: Node, depth: int) -> Term | None:
    """Scale and shift per channel, behind any map."""
    output = node.output()
    if node.op == "BatchNormalization":
        found = read_affine(reader.ties, node, None if reader.rank is None else reader.rank + 2)
    else:
        found = read_arithmetic(reader.ties, node)
    if found is None or output is None or reader.ties.is_constant(found[0]):
        return None
    source, a, b = found
    if reader.rank is None and max(a.ndim, b.ndim) > 1 and max(a.ndim, b.ndim) <= (reader.ties.rank(source) or 0):
        a, b = (_without_leading_ones(step) for step in (a, b))
    inner = reader.term(source, depth - 1)
    if inner.rows is not None and not all(
        per_channel(step, inner.rows, len(inner.axes or ()), bool(inner.last)) for step in (a, b)
    ):
        inner = leaf(source)
    return replace(_affine_of(inner, a, b), value=output, nodes=(node, *inner.nodes), node=node)


def _without_leading_ones(array: Floats) -> Floats:
    """What broadcasts to the same where the value has as many axes."""
    first = next((axis for axis, size in enumerate(array.shape) if size > 1), array.ndim)
    trimmed: Floats = array.reshape(array.shape[first:])
    return trimmed


@rule("Add", "Sub", "Sum")  # y = u + v: of one value they are one map
def total(reader: Reader, node: Node, depth: int) -> Term | None:
    """A sum of maps of the same value, or of a value and a constant."""
    if node.opset < (8 if node.op == "Sum" else 7):
        return None
    if node.op != "Sum" and any(reader.ties.is_constant(value) for value in node.inputs):
        return affine(reader, node, depth)
    parts = merged(reader, [signed(sign, reader.term(value, depth - 1)) for sign, value in operands(node)])
    output = node.output()
    if len(parts) != 1 or output is None:
        return None
    return replace(parts[0], value=output, nodes=(node, *parts[0].nodes))


def operands(node: Node) -> list[tuple[int, Value]]:
    """What a sum adds, each with its sign."""
    signs = SUMS[node.op] or (1,) * len(node.inputs)
    return [(sign, value) for sign, value in zip(signs, node.inputs, strict=True) if value is not None]


def signed(sign: int, term: Term) -> Term:
    """A term, or what it is subtracted as."""
    if sign > 0:
        return term
    return _affine_of(term, np.array(-1.0), np.array(0.0))


def _affine_of(term: Term, a: Floats, b: Floats) -> Term:
    """a y + b behind a term y."""
    return replace(
        term, kind="affine", parts=(term,), steps=(a, b), node=None, weight=None, bias=None, gains=(1.0, 1.0),
        across=False,
    )  # fmt: skip


# -- sums -----------------------------------------------------------------------------------------------


def merged(reader: Reader, terms: Sequence[Term]) -> list[Term]:
    """The terms of a sum with those of one source as one, where that is no more work; the others as they are."""
    by_source: dict[Value, list[Term]] = {}
    for term in terms:
        by_source.setdefault(term.source, []).append(term)
    result: list[Term] = []
    for group in by_source.values():
        if len(group) > 1 and any(term.host is not None for term in group):
            group = _merged_group(reader, group)
        result += group
    return result


def _merged_group(reader: Reader, group: list[Term]) -> list[Term]:
    """Begin with the largest term and take in one after the other, as long as each costs no more there than alone."""
    sized = sorted((term for term in group if term.rows is not None), key=work, reverse=True)
    left = [term for term in group if term.rows is None]
    result: list[Term] = []
    while sized:
        whole = sized.pop(0)
        if whole.host is None or whole.axes is None:
            result.append(whole)
            continue
        parts = [whole]
        for term in [*sized, *left]:
            fit = fitted(term, whole.columns or 0, len(whole.axes), bool(whole.last))
            found = None if fit is None else _sum_of(reader, [*parts, fit])
            if fit is None or found is None:
                continue
            apart = work_of_nodes(fit) + 4 * fit.shape[0] + (work(whole) if len(parts) > 1 else work_of_nodes(whole))
            if work(found) <= apart:
                parts.append(fit)
                whole = found
                (sized if term in sized else left).remove(term)
        result.append(whole)
    return [*result, *left]


def _sum_of(reader: Reader, parts: list[Term]) -> Term | None:
    """Terms of equal rows as one; None if they are none."""
    first = parts[0]
    if any((part.rows, part.columns) != (first.rows, first.columns) for part in parts):
        return None
    if len({part.dtype for part in parts if part.dtype is not None}) > 1:
        return None
    axes = []
    for number, same in enumerate(zip(*(part.axes or () for part in parts), strict=True)):
        size = None
        if len({axis.margin for axis in same}) > 1:
            dims = reader.ties.dims(first.source)
            size = None if dims is None or len(dims) != len(first.axes or ()) + 2 else dims[2 + number]
        axis = union(same, size)
        if axis is None:
            return None
        axes.append(axis)
    groups = math.gcd(*(part.groups or 1 for part in parts))
    nodes = tuple(node for part in parts for node in part.nodes)
    return Term(
        "sum", first.value, first.source, nodes, tuple(parts), first.rows, first.columns, groups, tuple(axes),
        first.last, _host(parts), dtype=next(part.dtype for part in parts if part.dtype is not None),
    )  # fmt: skip


def _host(parts: Sequence[Term]) -> Node | None:
    """The node that holds the merged weight: a Gemm, which has room for a bias, before a MatMul."""
    hosts = [part.host for part in parts if part.host is not None]
    return next((host for host in hosts if host.op != "MatMul"), hosts[0] if hosts else None)
