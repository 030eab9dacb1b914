"""Random small models over the ops that folding knows, and some that it doesn't.

A model is grown node by node: pick a value, pick a move (`random_moves`), draw its attributes and constants.
Every decision goes through `Choices`, so that one generator serves hypothesis (which shrinks what fails) and a
plain seed (`benchmarks/fuzz.py`, a million models a day).  Sizes are small and often equal, since equal sizes are
what confuses axes; gammas are of both signs, zero, or tiny; values are read several times, and weights shared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from oracle import UNMOVED, run_native
from probes import as_constants, as_function, behind_identity
from referee import ULP, Array, run_float64

T = TypeVar("T")
MAX_ELEMENTS = 600
OPSETS = (7, 8, 9, 10, 11, 13, 17, 18, 21, 23, 25)
DTYPES = (*("float",) * 6, "float16", "double", "bfloat16")
ELEMENT = {"float": 1, "float16": 10, "double": 11, "bfloat16": 16}


class Misfit(Exception):
    """The move is not possible here: a type that the op hasn't got in this opset, a kernel larger than its input."""


class Choices(Protocol):
    """Where decisions come from."""

    def integer(self, low: int, high: int) -> int: ...


def pick(choices: Choices, options: Sequence[T]) -> T:
    return options[choices.integer(0, len(options) - 1)]


def chance(choices: Choices, one_in: int) -> bool:
    return choices.integer(0, one_in - 1) == one_in - 1


class Seeded:
    """Decisions from a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))


class Drawn:
    """Decisions from hypothesis."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))


@dataclass(frozen=True)
class Value:
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Builder:
    """A model that grows."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.rng = np.random.default_rng(choices.integer(0, 1 << 16))
        self.opset = pick(choices, OPSETS)
        self.gammas = pick(choices, ("positive", "mixed", "positive", "mixed", "dead", "small"))
        self.nodes: list[NodeProto] = []
        self.inputs: list[Value] = []
        self.values: list[Value] = []
        self.tensors: dict[str, TensorProto] = {}
        self._kinds: dict[str, str] = {}
        self._count = 0

    # -- drawing --------------------------------------------------------------------------------

    def pick(self, options: Sequence[T]) -> T:
        return pick(self.choices, options)

    def chance(self, one_in: int) -> bool:
        return chance(self.choices, one_in)

    def integer(self, low: int, high: int) -> int:
        return self.choices.integer(low, high)

    def name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    # -- constants ------------------------------------------------------------------------------

    def weight(self, shape: Sequence[int], dtype: str, kind: str = "normal") -> str:
        """A new initializer, or one of the same kind and shape that is there already."""
        shape = tuple(shape)
        alike = [n for n, k in self._kinds.items() if k == f"{kind}{shape}{dtype}"]
        if alike and self.chance(4):
            return self.pick(alike)
        name = self.name("w")
        self.constant(self._content(shape, kind), name, dtype)
        self._kinds[name] = f"{kind}{shape}{dtype}"
        return name

    def constant(self, content: Any, name: str, dtype: str | None = None) -> str:
        array = np.asarray(content)
        if dtype is not None:
            array = array.astype(helper.tensor_dtype_to_np_dtype(ELEMENT[dtype]))
        self.tensors[name] = numpy_helper.from_array(array, name)
        return name

    def integers(self, *content: Any) -> str:
        return self.constant(np.array(content[0] if len(content) == 1 else content, np.int64), self.name("i"))

    def _content(self, shape: tuple[int, ...], kind: str) -> Array:
        if kind == "normal":
            return self.rng.normal(0, 0.7, shape)
        result = np.asarray(self.rng.uniform(0.5, 2.0, shape))
        if kind == "deviation":
            return result
        if kind == "variance":
            return np.asarray(np.where(self.rng.random(shape) < 0.1, 1e-4, result))
        if kind == "gain" and self.gammas == "mixed":
            return np.asarray(result * self.rng.choice([-1.0, 1.0], shape))
        if kind == "gain" and self.gammas == "dead":
            return np.asarray(np.where(self.rng.random(shape) < 0.3, 0.0, result))
        if kind == "gain" and self.gammas == "small":
            return np.asarray(np.where(self.rng.random(shape) < 0.3, 0.05, 1.0) * result)
        return result

    # -- nodes ----------------------------------------------------------------------------------

    def source(self, shape: tuple[int, ...], dtype: str) -> Value:
        value = Value(self.name("x"), shape, dtype)
        self.inputs.append(value)
        self.values.append(value)
        return value

    def node(self, op: str, inputs: Sequence[str | Value], outputs: int = 1, **attributes: Any) -> list[Value]:
        """Append a node; its outputs that are floating join the values."""
        names = [value.name if isinstance(value, Value) else value for value in inputs]
        proto = helper.make_node(op, names, [self.name("v") for _ in range(outputs)], self.name(f"{op}_"), **attributes)
        types = self._infer(proto, names)
        results = []
        for output in proto.output:
            tensor = types[output].tensor_type
            shape = tuple(dim.dim_value for dim in tensor.shape.dim)
            results.append(Value(output, shape, {v: k for k, v in ELEMENT.items()}.get(tensor.elem_type, "other")))
        self.append(proto, results)
        return results

    def append(self, proto: NodeProto, results: Sequence[Value]) -> None:
        self.nodes.append(proto)
        self.values += [value for value in results if value.dtype != "other" and 0 < value.size <= MAX_ELEMENTS]

    def one(self, op: str, *inputs: str | Value, **attributes: Any) -> Value:
        return self.node(op, inputs, **attributes)[0]

    def _infer(self, proto: NodeProto, names: Sequence[str]) -> dict[str, onnx.TypeProto]:
        known = {value.name: value for value in (*self.inputs, *self.values)}
        types, data = {}, {}
        for name in names:
            if name in self.tensors:
                tensor = self.tensors[name]
                data[name] = tensor
                types[name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            elif name and name not in known:
                raise Misfit(f"{name} is too large")
            elif name:
                types[name] = helper.make_tensor_type_proto(ELEMENT.get(known[name].dtype, 7), known[name].shape)
        try:
            schema = onnx.defs.get_schema(proto.op_type, self.opset)
            return onnx.shape_inference.infer_node_outputs(schema, proto, types, data)
        except (onnx.defs.SchemaError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise Misfit from error

    # -- the model ------------------------------------------------------------------------------

    def model(self) -> ModelProto:
        read = {name for node in self.nodes for name in node.input}
        shown = [v for v in self.values if v.name not in read and v not in self.inputs]
        inner = [v for v in self.values if v.name in read and v not in self.inputs]
        if inner and self.chance(3):
            shown.append(self.pick(inner))
        inputs = [helper.make_tensor_value_info(v.name, ELEMENT.get(v.dtype, 7), v.shape) for v in self.inputs]
        outputs = [helper.make_tensor_value_info(v.name, ELEMENT[v.dtype], v.shape) for v in shown]
        used = read | {name for node in self.nodes for a in node.attribute for n in a.g.node for name in n.input}
        graph = helper.make_graph(
            self.nodes, "random", inputs, outputs, [t for n, t in self.tensors.items() if n in used]
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8 if self.opset < 21 else 10
        )


def random_model(choices: Choices) -> tuple[ModelProto, dict[str, Array]] | None:
    """A valid model with inputs to run it on; None if the draw led nowhere."""
    from random_moves import grow

    builder = Builder(choices)
    grow(builder)
    if not builder.nodes:
        return None
    model = builder.model()
    feeds = {value.name: _feed(builder, value) for value in builder.inputs}
    if not model.graph.output or not _runs(model, feeds):
        return None
    model, feeds = _open(choices, builder, model, feeds)
    edits = ((8, as_constants), (8, behind_identity), (12, as_function), (8, partial(_overridable, choices)))
    for one_in, edit in edits:
        edited = ModelProto()
        edited.CopyFrom(model)
        if chance(choices, one_in) and _allows(builder, edit, model):
            edit(edited)
        if edited != model and _runs(edited, feeds):
            model = edited
    return model, feeds


def _allows(builder: Builder, edit: object, model: ModelProto) -> bool:
    """In functions the referee runs the BatchNorm of old opsets wrongly, and the judge moves the scales of a Resize.

    Constants behind an Identity there it can't tell from what is computed.
    """
    odd = any(node.op_type in ("Resize", "Identity") for node in model.graph.node)
    return edit is not as_function or (builder.opset >= 14 and not odd)


def _overridable(choices: Choices, model: ModelProto) -> None:
    """Some initializers become inputs, too; all of them in a file of old, where there was no other way."""
    old = model.opset_import[0].version < 9 and not model.functions and chance(choices, 2)
    model.ir_version = 3 if old else model.ir_version
    settings = {name for node in model.graph.node if node.op_type in UNMOVED for name in node.input[1:]}
    views = [node for node in model.graph.node if node.op_type == "Identity"]
    settings |= {node.input[0] for node in views if node.output[0] in settings}
    for tensor in model.graph.initializer:
        if old or (tensor.data_type in ULP and tensor.name not in settings and chance(choices, 2)):
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def _feed(builder: Builder, value: Value, shape: tuple[int, ...] | None = None) -> Array:
    shape = value.shape if shape is None else shape
    if value.dtype == "other":
        return builder.rng.integers(0, 3, shape)
    dtype = helper.tensor_dtype_to_np_dtype(ELEMENT[value.dtype])
    return np.asarray(builder.rng.normal(0, 1, shape)).astype(dtype)


def _runs(model: ModelProto, feeds: dict[str, Array]) -> bool:
    """Whether the referee can run it, to the same result as ONNX Runtime where that can, without large numbers."""
    try:
        onnx.checker.check_model(model, full_check=True)
        results = run_float64(model, feeds)
    except Exception:  # an op of another opset than the evaluator's, a Resize it can't do …
        return False
    native = run_native(model, feeds) or results
    return all(
        native[name].shape == y.shape and np.isfinite(y).all() and (size := np.abs(y).max(initial=0.0)) < 1e4
        and np.abs(native[name] - y).max(initial=0.0) <= 0.02 * size
        for name, y in results.items()
    )  # fmt: skip


def _open(
    choices: Choices, builder: Builder, model: ModelProto, feeds: dict[str, Array]
) -> tuple[ModelProto, dict[str, Array]]:
    """Make the first axis of the inputs symbolic where the model runs at another size, too."""
    if chance(choices, 2):
        return model, feeds
    opened = ModelProto()
    opened.CopyFrom(model)
    axes = (0,) if chance(choices, 2) else (0, 2, 3)
    other = dict(feeds)
    for value, info in zip(builder.inputs, opened.graph.input, strict=True):
        shape = list(value.shape)
        for axis in axes:
            if axis < len(shape):
                info.type.tensor_type.shape.dim[axis].dim_param = f"axis{axis}_{shape[axis]}"
                shape[axis] += 1
        other[value.name] = _feed(builder, value, tuple(shape))
    for info in opened.graph.output:
        info.type.tensor_type.ClearField("shape")
    typed = onnx.shape_inference.infer_shapes(opened)
    for info, inferred in zip(opened.graph.output, typed.graph.output, strict=True):
        info.type.tensor_type.shape.CopyFrom(inferred.type.tensor_type.shape)
    return (opened, other) if _runs(opened, other) else (model, feeds)


@st.composite
def models(draw: Any) -> tuple[ModelProto, dict[str, Array]] | None:
    """The strategy of `random_model`."""
    return random_model(Drawn(draw))
