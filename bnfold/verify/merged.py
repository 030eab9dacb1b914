"""The static proof of merges: the linear map up to a merged value, before and after, entry by entry.

Each model is walked from the merged value's name back to values that both have.  What lies between is listed: for each
offset in the input, entries (row, column, value).  Conv, pools and Pads add entries, BN and constants scale rows, sums
join lists, and a map behind another joins every pair of offsets.  Listed like that, nothing is padded, embedded or
regrouped, as the rewriter does it.  Both lists have to agree to one unit in the last place of what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from bnfold.constants import Array, finfo, unit_roundoff
from bnfold.errors import NotEquivalentError, quoted
from bnfold.fold.merge import Merging, Spoiled
from bnfold.fold.ops.affine import unrounded
from bnfold.fold.parameters import Unrepresentable
from bnfold.fold.union_find import Floats, Ids
from bnfold.graph import Graph, Node, Scope, Value
from bnfold.model_file import LoadedModel
from bnfold.shapes import Shapes
from bnfold.verify.static import DOUBLE_LIMIT, StaticProof

Offset = tuple[int, ...]
# (rows, columns, values); a diagonal has neither rows nor columns, and may be one value for all channels.
Listing = tuple[Ids | None, Ids | None, Floats]

# Sums in another order differ by some of these, in units of their terms' sizes.
ORDER = 2.0**-48


@dataclass(frozen=True)
class Map:
    """What a value is of one source: output o sees, at stride * o + offset, the listed entries.

    margin: along each axis there are floor((size + margin) / stride) + 1 outputs.
    """

    stride: Offset
    margin: Offset
    taps: dict[Offset, list[Listing]]


@dataclass
class Linear:
    """A value as a sum of maps of its sources and a constant; `size` adds up the magnitudes behind the constant."""

    maps: dict[str, Map] = field(default_factory=dict)
    constant: Floats = field(default_factory=lambda: np.zeros(1))
    size: Floats = field(default_factory=lambda: np.zeros(1))


class Mismatch(Exception):
    """What was merged is no sum of what it stands for."""


def prove_merges(merging: Merging) -> StaticProof:
    """Recompute every merged weight and bias.

    Raises:
        NotEquivalentError: a stored value is not the exact one, rounded, or another map than before.
        Spoiled: a weight that its type can't hold (met while it is made).
    """
    tensors, values, worst = 0, 0, 0.0
    for number, done in enumerate(merging.rounds):
        after = merging.rounds[number + 1].before if number + 1 < len(merging.rounds) else merging.model
        old, new = _View(done.before), _View(after)
        for root in dict.fromkeys(item.root for item in done.done):
            items = [item for item in done.done if item.root is root]
            output = root.output()
            assert output is not None
            rank = len(items[0].term.axes or ())
            try:
                found = _compare(old, new, root.scope.label, output.name, rank, items[0].term.dtype)
            except Unrepresentable:
                raise Spoiled(root) from None
            except Mismatch as why:
                where = f"merged value {quoted(output.name)}"
                raise NotEquivalentError(f"{why}; please report this", where=where) from None
            worst = max(worst, found)
        for tensor in {id(t): t for item in done.done for t in (item.weight, item.bias) if t is not None}.values():
            tensors += 1
            values += math.prod(tensor.dims)
    return StaticProof(tensors, values, worst)


class _View:
    """A model, to be walked by names."""

    def __init__(self, model: LoadedModel) -> None:
        self.graph = Graph(model.proto)
        self.shapes = Shapes(self.graph, model)
        self.scopes = {scope.label: scope for scope in self.graph.scopes}


def _compare(old: _View, new: _View, label: str, name: str, rank: int, dtype: Any) -> float:
    """The largest deviation of a value's map, in units in the last place."""
    scopes = old.scopes[label], new.scopes[label]
    shared = {key for key, value in scopes[0].values.items() if key in scopes[1].values and key != name}
    before, after = (
        _Walk(view.shapes, scope, shared, rank).linear(scope.values[name])
        for view, scope in zip((old, new), scopes, strict=True)
    )
    if set(before.maps) != set(after.maps):
        raise Mismatch("it is made of other values than before")
    worst = 0.5
    for source, exact in before.maps.items():
        stored = after.maps[source]
        _same_outputs(exact, stored, partial(old.shapes.dims, scopes[0], scopes[0].values[source]), rank)
        worst = max(worst, _compare_taps(exact, stored, dtype))
    rows = np.broadcast_arrays(before.constant, after.constant, before.size)
    return max(worst, _ulps(rows[1], rows[0], rows[2], lambda: np.inf, dtype))


def _same_outputs(exact: Map, stored: Map, dims: Callable[[], Any], rank: int) -> None:
    if exact.stride != stored.stride:
        raise Mismatch("its stride is another one")
    if exact.margin != stored.margin:
        sizes = dims()
        known = sizes is not None and len(sizes) == rank + 2 and None not in sizes[2:]
        counts = [
            [(size + margin) // stride for size, margin, stride in zip(sizes[2:], m.margin, m.stride, strict=True)]
            for m in (exact, stored) if known
        ]  # fmt: skip
        if not known or counts[0] != counts[1]:
            raise Mismatch("its size is another one")


def _compare_taps(exact: Map, stored: Map, dtype: Any) -> float:
    worst = 0.5
    listed = [(r, c) for held in (exact, stored) for tap in held.taps.values() for r, c, _ in tap]
    sizes = [[int(index.max()) for index in of if index is not None] for of in zip(*listed, strict=True)]
    rows, columns = (1 + max(size, default=0) for size in sizes)
    largest = np.zeros(rows)
    for tap in stored.taps.values():
        for r, _, v in tap:
            np.maximum.at(largest, np.arange(rows) if r is None else r, np.abs(v))
    at = _Places(rows, columns)
    for offset in {*exact.taps, *stored.taps}:
        places, (exactly, found, size) = _summed(exact.taps.get(offset, []), stored.taps.get(offset, []), at)
        noise = partial(_row_noise, largest, at.rows_of(places), dtype)
        worst = max(worst, _ulps(found, exactly, size, noise, dtype))
    return worst


def _row_noise(largest: Floats, rows: Ids, dtype: Any) -> Floats:
    """A last digit of the largest weight of each row."""
    return np.asarray(unit_roundoff(dtype) * largest[rows])


class _Places:
    """Entries as places in the whole matrix, row * columns + column; those of one node's taps are the same."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self._known: dict[tuple[int, int], Ids] = {}

    def of(self, listings: list[Listing]) -> tuple[Ids, Floats]:
        """Places and values of all listings of an offset."""
        places, values = [np.zeros(0, np.int64)], [np.zeros(0)]
        for r, c, v in listings:
            key = id(r), id(c)
            if key not in self._known:
                diagonal = np.arange(self.rows) * (self.columns + 1)
                self._known[key] = diagonal if r is None or c is None else r * self.columns + c
            places.append(self._known[key])
            values.append(np.broadcast_to(v, places[-1].shape))
        return (places[1], values[1]) if len(places) == 2 else (np.concatenate(places), np.concatenate(values))

    def rows_of(self, places: Ids) -> Ids:
        """The row of each place."""
        return places // self.columns


def _summed(exact: list[Listing], stored: list[Listing], at: _Places) -> tuple[Ids, tuple[Floats, Floats, Floats]]:
    """Places, the sums there of both lists, and of the magnitudes of the first."""
    left, right = at.of(exact), at.of(stored)
    count = at.rows * at.columns
    if count <= 2 * (len(left[0]) + len(right[0])):  # a full matrix
        places, found = np.arange(count), (left[0], right[0])
    else:
        places = np.unique(np.concatenate([left[0], right[0]]))
        count, found = len(places), (np.searchsorted(places, left[0]), np.searchsorted(places, right[0]))
    rows: list[tuple[Ids, Floats]] = [(found[0], left[1]), (found[1], right[1]), (found[0], np.abs(left[1]))]
    sums = [np.asarray(np.bincount(at, values, count), np.float64) for at, values in rows]
    return np.asarray(places), (sums[0], sums[1], sums[2])


def _ulps(stored: Floats, exact: Floats, size: Floats, noise: Callable[[], Any], dtype: Any) -> float:
    """The largest deviation in units in the last place, beyond what the order of sums makes.

    noise: gives what values below the smallest normal number may be off.
    """
    limits = finfo(dtype)
    error = np.maximum(np.abs(stored - exact) - ORDER * size, 0)
    small = np.abs(exact) < limits.smallest_normal
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = float(np.where(small | (error == 0), 0.0, error / np.abs(exact)).max(initial=0.0)) / limits.eps
    if not worst <= (DOUBLE_LIMIT if dtype == np.float64 else 1) or (small.any() and (small & (error > noise())).any()):
        raise Mismatch(f"a stored value is {worst:.3g} units in the last place from the exact one")
    return worst


# -- walking --------------------------------------------------------------------------------------------


class _Walk:
    """Lists the map of a value of one model."""

    def __init__(self, shapes: Shapes, scope: Scope, shared: set[str], rank: int) -> None:
        self._constants = shapes.constants(scope)
        self._dims: Callable[[Value], Any] = partial(shapes.dims, scope)
        self._type: Callable[[Value], int] = partial(shapes.element_type, scope)
        self._shared = shared
        self._rank = rank

    def linear(self, value: Value) -> Linear:
        """A value as maps of the nearest values that both models have."""
        if value.name in self._shared or value.producer is None:
            zero, one = (0,) * self._rank, (1,) * self._rank
            return Linear({value.name: Map(one, (-1,) * self._rank, {zero: [(None, None, np.ones(1))]})})
        node = value.producer
        constants = [self._constants.array(held) for held in node.inputs]
        if node.op in ("Add", "Sub", "Sum") and not any(array is not None for array in constants):
            return self._sum(node)
        if node.op in ("Add", "Sub", "Mul", "Div", "BatchNormalization"):
            return self._affine(node, constants)
        if node.op in ("Identity", "Dropout"):
            return self.linear(self._input(node, 0))
        if node.op in ("Conv", "AveragePool", "Pad"):
            return self._window(node)
        if node.op in ("Gemm", "MatMul"):
            return self._product(node)
        raise Mismatch(f"{node.op} {quoted(node.name)} is no linear op")

    def _input(self, node: Node, index: int) -> Value:
        value = node.input(index)
        if value is None:
            raise Mismatch(f"{node.op} {quoted(node.name)} lacks an input")
        return value

    def _array(self, node: Node, index: int) -> Floats:
        array = self._constants.array(node.input(index))
        if array is None:
            raise Mismatch(f"{node.op} {quoted(node.name)} has an input that is no constant")
        return np.asarray(array, np.float64)

    def _sum(self, node: Node) -> Linear:
        result = Linear()
        for index, value in enumerate(node.inputs):
            assert value is not None
            part = self.linear(value)
            if node.op == "Sub" and index:
                part = _scaled(part, -np.ones(1), np.zeros(1))
            result.constant = result.constant + part.constant
            result.size = result.size + part.size
            for source, found in part.maps.items():
                have = result.maps.get(source)
                if have is not None:
                    _same_outputs(have, found, partial(self._dims, node.scope.values[source]), self._rank)
                    taps = {key: list(tap) for key, tap in have.taps.items()}
                    for key, tap in found.taps.items():
                        taps.setdefault(key, []).extend(tap)
                    margin = tuple(max(pair) for pair in zip(have.margin, found.margin, strict=True))
                    found = Map(have.stride, margin, taps)
                result.maps[source] = found
        return result

    def _affine(self, node: Node, constants: Sequence[Array | None]) -> Linear:
        if node.op == "BatchNormalization":
            gamma, beta, mean, variance = (self._array(node, index) for index in range(1, 5))
            slope = gamma / np.sqrt(variance + np.float64(np.float32(node.attribute("epsilon", 1e-5))))
            assert constants[1] is not None
            slope = unrounded(slope, constants[1].dtype, lambda: self._type(self._input(node, 0)))
            if max(gamma.shape[1:], default=1) > 1:  # spatial = 0, before opset 9
                raise Mismatch("a BatchNormalization varies along other axes than that of channels")
            return _scaled(self.linear(self._input(node, 0)), slope.ravel(), (beta - slope * mean).ravel())
        index = 1 if constants[1] is not None else 0
        array = self._array(node, index)
        inner = self.linear(self._input(node, 1 - index))
        axes = [k for k in range(array.ndim) if array.shape[k] > 1]
        if axes not in ([], [array.ndim - 1 - self._rank]):
            raise Mismatch(f"a constant of {node.op} {quoted(node.name)} varies along other axes than that of channels")
        c, one, zero = array.ravel(), np.ones(1), np.zeros(1)
        if node.op == "Div" and index == 0:
            raise Mismatch("a quotient by a computed value is not linear")
        sign = -one if node.op == "Sub" and index == 0 else one
        if node.op in ("Mul", "Div"):
            return _scaled(inner, c if node.op == "Mul" else 1 / c, zero)
        return _scaled(inner, sign, -c if node.op == "Sub" and index else c)

    def _window(self, node: Node) -> Linear:
        """Conv, AveragePool and Pad: each tap is a matrix, at an offset."""
        inner = self.linear(self._input(node, 0))
        matrices, kernel, low, high = self._taps(node)
        stride = tuple(int(i) for i in node.attribute("strides") or [1] * self._rank)
        step = tuple(int(i) for i in node.attribute("dilations") or [1] * self._rank)
        if node.op == "Pad":
            stride = step = (1,) * self._rank
        if any((*low, *high)):
            _demand_zero_outside(inner)
        margin = tuple(p + q - d * (k - 1) - 1 for p, q, d, k in zip(low, high, step, kernel, strict=True))
        result = Linear()
        for source, held in inner.maps.items():
            taps: dict[Offset, list[Listing]] = {}
            for place, matrix in matrices.items():
                for offset, listings in held.taps.items():
                    at = tuple(
                        o + s * (k * d - p) for o, s, k, d, p in zip(offset, held.stride, place, step, low, strict=True)
                    )
                    taps.setdefault(at, []).extend(_behind(matrix, listings))
            result.maps[source] = Map(
                tuple(a * b for a, b in zip(held.stride, stride, strict=True)),
                tuple(m + s * (n + 1) for m, s, n in zip(held.margin, held.stride, margin, strict=True)), taps,
            )  # fmt: skip
        for matrix in matrices.values():
            result.constant, result.size = _passed(matrix, inner, result)
        if node.op == "Conv" and node.input(2) is not None:
            added = self._array(node, 2).ravel()
            result.constant, result.size = result.constant + added, result.size + np.abs(added)
        return result

    def _taps(self, node: Node) -> tuple[dict[Offset, _Matrix], Offset, Offset, Offset]:
        """A matrix for each tap, the size of the kernel, and the zeros before and behind the input."""
        rank = self._rank
        if node.op == "Pad":
            pads = node.attribute("pads")
            pads = [int(i) for i in (pads if pads is not None else self._array(node, 1).ravel())]
            ones, half = (1,) * rank, rank + 2
            if len(pads) != 2 * half or any((*pads[:2], *pads[half : half + 2])) or min(pads) < 0:
                raise Mismatch("a Pad does more than it may")
            return {(0,) * rank: _Matrix(None, 1)}, ones, tuple(pads[2:half]), tuple(pads[half + 2 :])
        matrices: dict[Offset, _Matrix]
        if node.op == "Conv":
            weight, groups = self._array(node, 1), int(node.attribute("group", 1))
            kernel = weight.shape[2:]
            places = _places(weight.shape[0], weight.shape[1], groups)
            taps = np.moveaxis(weight, (0, 1), (-2, -1))
            matrices = {k: _Matrix(taps[k], groups, places=places) for k in product(*map(range, kernel))}
        else:
            kernel = tuple(int(i) for i in node.attribute("kernel_shape"))
            matrices = {k: _Matrix(None, 1, 1 / math.prod(kernel)) for k in product(*map(range, kernel))}
        if len(kernel) != rank:
            raise Mismatch("a window has other axes")
        low, high = self._pads(node, kernel)
        if node.op == "AveragePool" and any((*low, *high)) and not node.attribute("count_include_pad", 0):
            raise Mismatch("an average leaves its padding out")
        return matrices, kernel, low, high

    def _pads(self, node: Node, kernel: Sequence[int]) -> tuple[Offset, Offset]:
        rank, mode = self._rank, node.attribute("auto_pad", "NOTSET")
        if mode == "VALID":
            return (0,) * rank, (0,) * rank
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            strides, steps = (node.attribute(name) or [1] * rank for name in ("strides", "dilations"))
            dims = self._dims(self._input(node, 0))
            total = []
            for axis, (k, s, d) in enumerate(zip(kernel, strides, steps, strict=True)):
                size = 0 if dims is None else dims[2 + axis] or 0
                if s > 1 and not size:
                    raise Mismatch("its padding depends on the size of the input")
                total.append(d * (k - 1) if s == 1 else max(((size + s - 1) // s - 1) * s + d * (k - 1) + 1 - size, 0))
            less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
            return (less, more) if mode == "SAME_UPPER" else (more, less)
        pads = [int(i) for i in node.attribute("pads") or [0] * 2 * rank]
        return tuple(pads[:rank]), tuple(pads[rank:])

    def _product(self, node: Node) -> Linear:
        weight = self._array(node, 1)
        weight = weight if node.op == "Gemm" and node.attribute("transB", 0) else weight.T
        inner = self.linear(self._input(node, 0))
        gain = float(node.attribute("alpha", 1.0)) if node.op == "Gemm" else 1.0
        matrix = _Matrix(gain * weight, 1)
        result = Linear()
        for source, held in inner.maps.items():
            result.maps[source] = Map((), (), {(): _behind(matrix, held.taps[()])})
        result.constant, result.size = _passed(matrix, inner, result)
        if node.op == "Gemm" and node.input(2) is not None:
            added = float(node.attribute("beta", 1.0)) * self._array(node, 2).ravel()
            result.constant, result.size = result.constant + added, result.size + np.abs(added)
        return result


@dataclass(frozen=True)
class _Matrix:
    """One tap: a block-diagonal matrix (rows, columns of a group), or `gain` on the diagonal where there is none."""

    weight: Floats | None
    groups: int
    gain: float = 1.0
    places: tuple[Ids, Ids] | None = None  # of the entries, where they are known

    def dense(self) -> Floats:
        """Without its groups."""
        assert self.weight is not None
        rows, columns = self.weight.shape
        whole = np.zeros((rows, columns * self.groups))
        r, c, v = self.listed()
        whole[r, c] = v
        return whole

    def listed(self) -> tuple[Ids, Ids, Floats]:
        """Its entries."""
        assert self.weight is not None
        rows, columns = self.weight.shape
        return *(self.places or _places(rows, columns, self.groups)), self.weight.ravel()


def _places(rows: int, columns: int, groups: int) -> tuple[Ids, Ids]:
    """Rows and columns of the entries of a block-diagonal matrix."""
    r = np.repeat(np.arange(rows), columns)
    return r, np.tile(np.arange(columns), rows) + r // (rows // groups) * columns


def _behind(matrix: _Matrix, listings: Iterable[Listing]) -> list[Listing]:
    """The entries of a matrix times what is listed."""
    found: list[Listing] = []
    for r, c, v in listings:
        if matrix.weight is None:
            found.append((r, c, matrix.gain * v))
        elif r is None or c is None:  # a diagonal
            rows, columns, values = matrix.listed()
            found.append((rows, columns, values * (v if v.size == 1 else v[columns])))
        else:
            left = matrix.dense()
            right = np.zeros((left.shape[1], int(c.max()) + 1))
            np.add.at(right, (r, c), v)
            whole = left @ right
            rows, columns = (np.ravel(index) for index in np.indices(whole.shape))
            found.append((rows, columns, whole.ravel()))
    return found


def _passed(matrix: _Matrix, inner: Linear, result: Linear) -> tuple[Floats, Floats]:
    """What becomes of the constant in front of a tap, added to what there is."""
    if matrix.weight is None:
        return result.constant + matrix.gain * inner.constant, result.size + abs(matrix.gain) * inner.size
    if not inner.size.any():
        return result.constant, result.size
    whole = matrix.dense()
    constant, size = (np.broadcast_to(part, whole.shape[1:]) for part in (inner.constant, inner.size))
    return result.constant + whole @ constant, result.size + np.abs(whole) @ size


def _scaled(inner: Linear, slope: Floats, shift: Floats) -> Linear:
    maps = {
        source: Map(held.stride, held.margin, {
            offset: [(r, c, v * (slope if r is None or slope.size == 1 else slope[r])) for r, c, v in listings]
            for offset, listings in held.taps.items()
        })
        for source, held in inner.maps.items()
    }  # fmt: skip
    return Linear(maps, slope * inner.constant + shift, np.abs(slope) * inner.size + np.abs(shift))


def _demand_zero_outside(inner: Linear) -> None:
    """Zeros are put beside a value: it has to be the map of zeros there, one tap of each source and no constant."""
    single = all(len(held.taps) == 1 and set(held.stride) <= {1} for held in inner.maps.values())
    reached = all(
        o <= 0 and m + 1 + o >= 0 for held in inner.maps.values() for at in held.taps
        for o, m in zip(at, held.margin, strict=True)
    )  # fmt: skip
    if not single or not reached or inner.constant.any():
        raise Mismatch("zeros are seen beside a value that is not zero there")
