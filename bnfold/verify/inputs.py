"""What both models are fed, if the user gives no data (`bnfold.verify.data`): random inputs after the signature.

Random floats are half normal, half uniform in [0, 1): the first reach the negative side of every activation, the
second are what images are like. A symbolic dimension has one size wherever its name stands; the sizes are those that
the original runs with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from bnfold.constants import Array, is_floating
from bnfold.errors import quoted
from bnfold.inspection import Port, port_of
from bnfold.verify.large import Model
from bnfold.verify.runtime import CannotRun, Feeds, Runner

# Sizes tried for symbolic dimensions other than the batch, until the original runs.
SIDES = (64, 32, 128, 224, 16, 48, 256, 1)
# Samples of a batch of unknown size: enough for a mean square per channel, which takes many where there is no space.
BATCH, BATCH_OF_ROWS = 2, 32
# Random integers are indices more often than not: 0 and 1 are in every table.
INTEGERS = (0, 2)


@dataclass(frozen=True)
class Samples:
    """Batches of inputs.

    Attributes:
        batches: to be run one after the other; all of the same shapes.
        sentence: what they are.
    """

    batches: Sequence[Feeds]
    sentence: str


def ports(model: Model | ModelProto) -> tuple[list[Port], list[Port]]:
    """Inputs (that callers have to give) and outputs."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    return (
        [port_of(info) for info in model.graph.input if info.name not in fixed],
        [port_of(info) for info in model.graph.output],
    )


def drawn(model: Model | ModelProto, seed: int) -> Samples:
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
        # numpy's bfloat16 is unknown to ONNX Runtime's Python: here too the float64 form will tell
        if runner is None or any(value.dtype.name == "bfloat16" for batch in batches for value in batch.values()):
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
    kind = "normal and uniform" if any(map(is_floating, batches[0].values())) else "random"
    return Samples(batches, f"{kind}, seed {seed}: {sizes}")


def _has_open_sides(model: Model | ModelProto) -> bool:
    return any(not isinstance(size, int) or size < 1 for port in ports(model)[0] for size in (port.shape or ())[1:])


def _draw(model: Model | ModelProto, side: int, seed: int) -> Iterator[Feeds]:
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
    floats = [value for value in first.values() if is_floating(value)]
    together = bool(floats) and all(value.ndim > 0 and value.shape[0] > 1 for value in floats)
    if together:
        for name, value in first.items():
            half = len(value) // 2 if value.ndim and is_floating(value) else None
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
