"""Reductions, softmax and its kin, searches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bnfold.torch.ops.table import add, op

Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.mean(axes, keepdim=keep) if x.is_floating_point() else _sum(x, axes, keep) // math.prod(
        x.shape[axis] for axis in axes
    )


def _extreme(largest: bool) -> Reduce:
    def reduce(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if not x.numel() and x.is_floating_point():
            return _sum(x, axes, keep) + (-math.inf if largest else math.inf)
        return x.amax(axes, keep) if largest else x.amin(axes, keep)

    return reduce


REDUCTIONS: dict[str, Reduce] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _extreme(largest=True),
    "ReduceMin": _extreme(largest=False),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: _sum(x * x, axes, keep).sqrt().to(x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: _sum(x, axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
}


def _declare(name: str, reduce: Reduce) -> None:
    def by_input(
        x: Tensor, axes: Sequence[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        if not axes and noop_with_empty_axes:
            # Nothing is reduced, but what happens to each element still does.
            return reduce(x.unsqueeze(0), (0,), False)
        if not x.dim():
            return reduce(x.unsqueeze(0), (0,), False)
        return reduce(x, tuple(axes) if axes else tuple(range(x.dim())), bool(keepdims))

    def by_attribute(x: Tensor, *, axes: Sequence[int] | None = None, keepdims: int = 1) -> Tensor:
        return by_input(x, axes, keepdims=keepdims)

    # Attributes became inputs in opset 13 (ReduceSum) and 18 (the others).
    for function in (by_input, by_attribute):  # each under its name: a module that uses it is pickled by that
        function.__name__ = function.__qualname__ = f"{name}_{function.__name__}"
        globals()[function.__name__] = function
    add(name, by_attribute)
    add(name, by_input, since=13 if name == "ReduceSum" else 18, kinds="ts")


for _name, _reduce in REDUCTIONS.items():
    _declare(_name, _reduce)


def _as_matrix(x: Tensor, axis: int) -> Tensor:
    """Before opset 13 softmax runs over all axes from `axis` on, taken as one."""
    axis = axis % x.dim()
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@op("Softmax")
def softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return torch.softmax(_as_matrix(x, axis), 1).reshape(x.shape)


@op("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


@op("LogSoftmax")
def log_softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return torch.log_softmax(_as_matrix(x, axis), 1).reshape(x.shape)


@op("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


@op("Hardmax")
def hardmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return hardmax(_as_matrix(x, axis), axis=1).reshape(x.shape)


def _search(x: Tensor, axis: int, keepdims: int, last: int, largest: bool) -> Tensor:
    if last:
        x = x.flip(axis)
    best = x.argmax(axis, keepdim=bool(keepdims)) if largest else x.argmin(axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - best if last else best


@op("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _search(x, axis, keepdims, select_last_index, largest=True)


@op("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _search(x, axis, keepdims, select_last_index, largest=False)


@op("TopK", since=10, kinds="tk")
def top_k(x: Tensor, k: int, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> Any:  # noqa: A002
    # Of equal elements the first comes first, which torch.topk does not promise.
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, int(k)), indices.narrow(axis, 0, int(k))


@op("TopK")
def top_k_1(x: Tensor, *, k: int, axis: int = -1) -> Any:
    return top_k(x, k, axis=axis)


@op("CumSum", kinds="tk")
def cum_sum(x: Tensor, axis: int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    x = x.flip(axis) if reverse else x
    y = x.cumsum(axis, dtype=x.dtype)
    y = y - x if exclusive else y
    return y.flip(axis) if reverse else y


@op("CumProd", kinds="tk")
def cum_prod(x: Tensor, axis: int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    x = x.flip(axis) if reverse else x
    if exclusive:
        x = torch.cat([torch.ones_like(x.narrow(axis, 0, 1)), x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    y = x.cumprod(axis, dtype=x.dtype)
    return y.flip(axis) if reverse else y
