"""The kernels of linear maps, in float64: weights put where their taps lie, and summed.

A kernel is (rows, columns of a group, taps …), as a Conv's weight is; a Gemm's or MatMul's has no taps.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from bnfold.constants import Constants
from bnfold.fold.merge.terms import Term, as_rows
from bnfold.fold.union_find import Floats


def kernel(term: Term, constants: Constants) -> Floats:
    """What each output sees of its inputs."""
    if term.kind == "weight":
        return _stored(term, constants)
    if term.kind == "identity":
        return np.ones(term.shape)
    if term.kind == "average":
        return np.full(term.shape, 1 / math.prod(term.shape[2:]))
    if term.kind == "affine":
        assert term.steps is not None
        inner = kernel(term.parts[0], constants)
        return inner * _over_rows(as_rows(term.steps[0], term.shape[0]), inner.ndim)
    if term.kind == "sum":
        total = np.zeros(term.shape)
        for part in term.parts:
            total[placed(part, term)] += regrouped(kernel(part, constants), part.groups or 1, term.groups or 1)
        return total
    return _behind(term, constants)


def bias(term: Term, constants: Constants) -> Floats:
    """What each output adds to that."""
    rows = term.shape[0]
    if term.kind == "weight":
        held = None if term.bias is None or term.gains[1] == 0 else constants.array(term.bias)
        return np.zeros(rows) if held is None else term.gains[1] * as_rows(np.asarray(held, np.float64), rows)
    if term.kind == "affine":
        assert term.steps is not None
        a, b = (as_rows(step, rows) for step in term.steps)
        return a * bias(term.parts[0], constants) + b
    if term.kind == "sum":
        return np.asarray(np.sum([bias(part, constants) for part in term.parts], axis=0))
    if term.kind == "chain":
        outer, inner = term.parts
        passed = regrouped(kernel(outer, constants), outer.groups or 1, 1)
        seen = passed.sum(axis=tuple(range(2, passed.ndim)))
        return np.asarray(bias(outer, constants) + seen @ bias(inner, constants))
    return np.zeros(rows)


def _stored(term: Term, constants: Constants) -> Floats:
    array = constants.array(term.weight)
    assert array is not None
    weight: Floats = np.asarray(array, np.float64)
    weight = weight.T if term.last and not term.across else weight  # (K, N)
    return np.asarray(term.gains[0] * weight) if term.gains[0] != 1 else weight


def _over_rows(vector: Floats, rank: int) -> Floats:
    return np.asarray(vector.reshape(-1, *(1,) * (rank - 1)))


def regrouped(array: Floats, groups: int, wanted: int) -> Floats:
    """A kernel of so many groups as one of fewer, with zeros between the old groups."""
    if groups == wanted:
        return array
    rows, columns, *taps = array.shape
    inside = groups // wanted
    result = np.zeros((wanted, inside, rows // groups, inside, columns, *taps))
    old = array.reshape(wanted, inside, rows // groups, columns, *taps)
    for index in range(inside):
        result[:, index, :, index] = old[:, index]
    return result.reshape(rows, inside * columns, *taps)


def placed(part: Term, whole: Term) -> tuple[slice, ...]:
    """Where the taps of a part lie in the kernel of the whole."""
    assert part.axes is not None
    assert whole.axes is not None
    cuts = [slice(None), slice(None)]
    for own, axis in zip(part.axes, whole.axes, strict=True):
        start = (own.first - axis.first) // axis.step
        stride = own.step // axis.step if own.taps > 1 else 1
        cuts.append(slice(start, start + (own.taps - 1) * stride + 1, stride))
    return tuple(cuts)


def _behind(term: Term, constants: Constants) -> Floats:
    """One map behind another: every pair of taps adds the product of their matrices where both together reach."""
    outer, inner = term.parts
    groups = term.groups or 1
    left = regrouped(kernel(outer, constants), outer.groups or 1, groups)
    left = left.reshape(groups, -1, *left.shape[1:])
    right = kernel(inner, constants)
    depthwise = inner.rows == inner.columns == inner.groups  # a diagonal: rows of `left`'s columns are multiplied
    if depthwise:
        right = right.reshape(groups, 1, -1, *right.shape[2:])
    else:
        right = regrouped(right, inner.groups or 1, groups)
        right = right.reshape(groups, -1, *right.shape[1:])
    result = np.zeros((groups, term.shape[0] // groups, *term.shape[1:]))
    every: Any = (slice(None),) * 3
    axes = list(zip(outer.axes or (), inner.axes or (), term.axes or (), strict=True))
    for far in product(*(range(axis.taps) for axis, _, _ in axes)):
        for near in product(*(range(axis.taps) for _, axis, _ in axes)):
            at = tuple(
                (i.first + n * i.step + i.stride * (o.first + f * o.step) - whole.first) // whole.step
                for (o, i, whole), f, n in zip(axes, far, near, strict=True)
            )
            pair = left[every + far], right[every + near]
            result[every + at] += pair[0] * pair[1] if depthwise else pair[0] @ pair[1]
    return result.reshape(term.shape)
