"""Control flow and sequences. A body comes as a function of its inputs that gives the list of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bnfold.torch.ops.table import op

Body = Callable[..., list[Any]]


@op("If", kinds="k")
def if_(condition: Any, *, then_branch: Body, else_branch: Body, outputs: int) -> Any:
    result = then_branch() if condition else else_branch()
    return tuple(result) if outputs > 1 else result[0]


@op("Loop", kinds="kkq")
def loop(trips: int | None, condition: Any, *carried: Any, body: Body, outputs: int, like: Tensor) -> Any:
    state, gathered = list(carried), [[] for _ in range(outputs - len(carried))]  # type: list[Any], list[list[Any]]
    alive, i = condition is None or bool(condition), 0
    while alive and (trips is None or i < trips):
        go_on, *results = body(torch.tensor(i, device=like.device), torch.tensor(True, device=like.device), *state)
        state = results[: len(carried)]
        for column, value in zip(gathered, results[len(carried) :], strict=True):
            column.append(value)
        alive, i = bool(go_on), i + 1
    every = (*state, *(torch.stack(column) if column else like.new_zeros(0) for column in gathered))
    return every if outputs > 1 else every[0]


@op("Scan", since=9)
def scan(
    *inputs: Tensor, body: Body, num_scan_inputs: int, outputs: int, scan_input_axes: Sequence[int] = (),
    scan_input_directions: Sequence[int] = (), scan_output_axes: Sequence[int] = (),
    scan_output_directions: Sequence[int] = (),
) -> Any:  # fmt: skip
    count = len(inputs) - num_scan_inputs
    state, scanned = list(inputs[:count]), list(inputs[count:])
    in_axes, in_turns = list(scan_input_axes) or [0] * len(scanned), list(scan_input_directions) or [0] * len(scanned)
    columns: list[list[Any]] = [[] for _ in range(outputs - count)]
    length = scanned[0].shape[in_axes[0]]
    for i in range(length):
        now = [
            x.select(axis, length - 1 - i if turned else i)
            for x, axis, turned in zip(scanned, in_axes, in_turns, strict=True)
        ]
        results = body(*state, *now)
        state = results[:count]
        for column, value in zip(columns, results[count:], strict=True):
            column.append(value)
    out_axes, out_turns = list(scan_output_axes) or [0] * len(columns), list(scan_output_directions)
    stacked = [
        torch.stack(column[::-1] if out_turns and out_turns[k] else column, out_axes[k])
        for k, column in enumerate(columns)
    ]
    every = (*state, *stacked)
    return every if outputs > 1 else every[0]


# ------------------------------------------------------------------------------------------------ sequences
@op("SequenceConstruct")
def sequence_construct(*tensors: Tensor) -> list[Tensor]:
    return list(tensors)


@op("SequenceEmpty")
def sequence_empty(*, dtype: Any = None) -> list[Tensor]:
    return []


@op("SequenceAt", kinds="qk")
def sequence_at(sequence: list[Tensor], position: int) -> Tensor:
    return sequence[int(position)]


@op("SequenceInsert", kinds="qtk")
def sequence_insert(sequence: list[Tensor], tensor: Tensor, position: int | None = None) -> list[Tensor]:
    at = len(sequence) if position is None else int(position) % (len(sequence) + 1 if position >= 0 else len(sequence))
    return [*sequence[:at], tensor, *sequence[at:]]


@op("SequenceErase", kinds="qk")
def sequence_erase(sequence: list[Tensor], position: int | None = None) -> list[Tensor]:
    at = (-1 if position is None else int(position)) % len(sequence)
    return [*sequence[:at], *sequence[at + 1 :]]


@op("SplitToSequence", kinds="tz")
def split_to_sequence(x: Tensor, sizes: Any = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    if sizes is None:
        parts = torch.split(x, 1, axis)
        return list(parts) if keepdims else [part.squeeze(axis) for part in parts]
    return list(torch.split(x, sizes if isinstance(sizes, int) else list(sizes), axis))


@op("ConcatFromSequence", kinds="q")
def concat_from_sequence(sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@op("SequenceMap", kinds="q")
def sequence_map(*inputs: Any, body: Body, outputs: int) -> Any:
    results = [
        body(*(value[i] if isinstance(value, list) else value for value in inputs)) for i in range(len(inputs[0]))
    ]
    columns = tuple([row[k] for row in results] for k in range(outputs))
    return columns if outputs > 1 else columns[0]


@op("Optional", kinds="q")
def optional(value: Any = None, *, type: Any = None) -> Any:  # noqa: A002 (ONNX's name)
    return value


@op("OptionalGetElement", kinds="q")
def optional_get(value: Any) -> Any:
    return value


@op("OptionalHasElement", kinds="q")
def optional_has(value: Any = None, *, like: Tensor) -> Tensor:
    return torch.tensor(value is not None, device=like.device)
