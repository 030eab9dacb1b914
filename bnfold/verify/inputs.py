"""What both models are fed: random inputs after the signature, or the user's own data.

Random floats are half normal, half uniform in [0, 1): the first reach the negative side of every activation, the
second are what images are like. A symbolic dimension has one size wherever its name stands; the sizes are those that
the original runs with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from bnfold.constants import Array
from bnfold.errors import UsageError, quoted
from bnfold.inspection import Port, port_of
from bnfold.verify.runtime import CannotRun, Feeds, Runner

# Sizes tried for symbolic dimensions other than the batch, until the original runs.
SIDES = (64, 32, 128, 224, 16, 48, 256, 1)
# Samples of a batch of unknown size: enough for a mean square per channel, which takes many where there is no space.
BATCH, BATCH_OF_ROWS = 2, 32
# Rows of the user's data that are run at a time.
CHUNK = 8
# Random integers are indices more often than not: 0 and 1 are in every table.
INTEGERS = (0, 2)


@dataclass(frozen=True)
class Samples:
    """Batches of inputs.

    Attributes:
        batches: to be run one after the other; all of the same shapes.
        sentence: what they are.
    """

    batches: tuple[Feeds, ...]
    sentence: str


def ports(model: ModelProto) -> tuple[list[Port], list[Port]]:
    """Inputs (that callers have to give) and outputs."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    return (
        [port_of(info) for info in model.graph.input if info.name not in fixed],
        [port_of(info) for info in model.graph.output],
    )


def drawn(model: ModelProto, seed: int) -> Samples:
    """Random inputs that ONNX Runtime runs `model` with.

    Raises: CannotRun if it runs with none.
    """
    trouble: CannotRun | None = None
    runner: Runner | None = None
    try:
        runner = Runner(model)
    except CannotRun as error:  # no kernels for its type: the float64 form will tell
        trouble = error
    for side in SIDES if _has_open_sides(model) else SIDES[:1]:
        batches = tuple(_draw(model, side, seed))
        if runner is None:
            break
        try:
            for batch in batches:
                runner.run(batch)
        except CannotRun as error:
            trouble = trouble or error
            continue
        trouble = None
        break
    if trouble is not None and runner is not None:
        raise trouble
    sizes = ", ".join(f"{quoted(name)} {list(value.shape)}" for name, value in batches[0].items())
    kind = "normal and uniform" if any(value.dtype.kind == "f" for value in batches[0].values()) else "random"
    return Samples(batches, f"{kind}, seed {seed}: {sizes}")


def _has_open_sides(model: ModelProto) -> bool:
    return any(not isinstance(size, int) or size < 1 for port in ports(model)[0] for size in (port.shape or ())[1:])


def _draw(model: ModelProto, side: int, seed: int) -> Iterator[Feeds]:
    """One batch whose first half is normal and second half uniform; two where the batch size is 1."""
    first = dict[str, Array]()
    second = dict[str, Array]()
    rng = np.random.default_rng(seed)
    named: dict[object, int] = {}
    types = {info.name: info.type.tensor_type.elem_type for info in model.graph.input}
    for port in ports(model)[0]:
        if port.shape is None:
            raise CannotRun(f"the rank of input {quoted(port.name)} is unknown; give --data")
        batch = BATCH if len(port.shape) > 2 else BATCH_OF_ROWS
        shape = [
            size if isinstance(size, int) and size > 0
            else named.setdefault(size if size and isinstance(size, str) else (axis == 0 or (port.name, axis)),
                                  side if axis else batch)
            for axis, size in enumerate(port.shape)
        ]  # fmt: skip
        first[port.name], second[port.name] = _values(shape, types[port.name], rng, port.name)
    floats = [value for value in first.values() if value.dtype.kind == "f" or value.dtype.name == "bfloat16"]
    together = bool(floats) and all(value.ndim > 0 and value.shape[0] > 1 for value in floats)
    if together:
        for name, value in first.items():
            half = len(value) // 2 if value.ndim and value.dtype.kind == "f" else None
            if half:
                value[half:] = second[name][half:]
    yield first
    if floats and not together:
        yield second


def _values(shape: list[int], element_type: int, rng: np.random.Generator, name: str) -> tuple[Array, Array]:
    """Values of one kind and of the other."""
    if element_type not in TensorProto.DataType.values() or element_type in (0, TensorProto.STRING):
        raise CannotRun(f"no random values can be made for input {quoted(name)}; give --data")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    if dtype.kind in "iu":
        return rng.integers(*INTEGERS, shape).astype(dtype), rng.integers(*INTEGERS, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool), rng.integers(0, 2, shape).astype(bool)
    return rng.standard_normal(shape).astype(dtype), rng.random(shape).astype(dtype)


def from_file(model: ModelProto, path: str | os.PathLike[str]) -> Samples:
    """The user's data: an .npz with an array for each input, samples along the first axis.

    An input whose first dimension is fixed to n is fed n rows at a time, others some; what is left over isn't used.

    Raises: UsageError if it isn't such a file, or doesn't fit the model.
    """
    shown = os.fspath(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise UsageError("is one array; an .npz with an array for each input is needed", file=shown)
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UsageError("is no .npz file of plain arrays", file=shown) from None
    inputs, _ = ports(model)
    for port in inputs:
        if port.name not in arrays and len(inputs) == 1 and len(arrays) == 1:
            arrays = {port.name: next(iter(arrays.values()))}
        _check(port, arrays, shown)
    rows = {len(arrays[port.name]) for port in inputs}
    if len(rows) != 1 or 0 in rows:
        raise UsageError("its arrays have no, or not the same number of, samples along the first axis", file=shown)
    used = {port.name: arrays[port.name] for port in inputs}
    count = rows.pop()
    sizes = {port.shape[0] for port in inputs if port.shape and isinstance(port.shape[0], int) and port.shape[0] > 0}
    step = min(sizes) if sizes else min(CHUNK, count)
    if count < step and sizes:
        raise UsageError(f"has {count} samples; the model takes {step} at a time", file=shown)
    starts = range(0, count - count % step, step)  # one shape for all
    batches = tuple({name: value[start : start + step] for name, value in used.items()} for start in starts)
    return Samples(batches, f"{min(count, step * len(starts))} samples of {shown}")


def _check(port: Port, arrays: Mapping[str, Any], file: str) -> None:
    value = arrays.get(port.name)
    if value is None:
        raise UsageError(f"has no array {quoted(port.name)}; it has {', '.join(map(quoted, arrays))}", file=file)
    if value.dtype.name != port.type:
        raise UsageError(f"array {quoted(port.name)} is {value.dtype.name}; the input is {port.type}", file=file)
    fits = port.shape is None or (
        len(port.shape) == value.ndim
        and all(not isinstance(n, int) or n < 1 or n == m for n, m in zip(port.shape[1:], value.shape[1:], strict=True))
    )
    if not fits:
        raise UsageError(f"array {quoted(port.name)} is {list(value.shape)}, which doesn't fit", file=file)
