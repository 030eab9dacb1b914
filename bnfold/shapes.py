"""Shapes as far as folding needs them: what holds whatever the batch size is.

ONNX's shape inference and the evaluation of constants alternate until nothing new is known.  A
model with symbolic dimensions is analysed twice, as copies with two different sizes for each of
them; what agrees in both, and with size 1 as far as that goes, is static, what differs depends on
the symbol.  Everything here is lazy: a plain chain of Conv and BatchNormalization never asks for a shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from bnfold.constants import Constants, Dims
from bnfold.graph import Graph, Scope, Value
from bnfold.inference import hides, infer_shapes
from bnfold.model_file import LoadedModel, structure
from bnfold.qonnx import OPS

# Sizes given to symbolic dimensions in the two analyses.  The first axis is nearly always the batch; other
# axes are images or sequences that have to survive strides of up to 32 and meet again in a Concat.
BATCH_SIZES = (2, 3, 1)
OTHER_SIZES = (64, 96, 1)
SMALL = 2  # the last of them, too small for many ops, only contradicts: the first 32 of a sequence may be fewer
# Inference and evaluation alternate; real files need two rounds, a chain of reshapes a few more.
MAX_ROUNDS = 6

# From which input on an op's shape depends on contents.
SHAPE_INPUT = {
    "Reshape": 1, "Expand": 1, "Tile": 1, "Slice": 1, "Pad": 1, "Resize": 2, "Upsample": 1, "Squeeze": 1,
    "Unsqueeze": 1, "Split": 1, "ReduceMean": 1, "ReduceSum": 1, "ReduceMax": 1, "ReduceMin": 1,
}  # fmt: skip


# Ops of which ONNX's inference tells nothing; what they give has the shape and type of what they read.
SAME_SHAPE = OPS | {"GroupNormalization", "SimplifiedLayerNormalization"}
# And those that give another type, that of a later input.
TYPE_INPUT = {"com.microsoft::DequantizeLinear": (1, TensorProto.FLOAT),
              "com.microsoft::QuantizeLinear": (2, TensorProto.UINT8)}  # fmt: skip


@dataclass
class _Analysis:
    """Concrete shapes of one copy, per scope label and value name."""

    dims: dict[str, dict[str, Dims]] = field(default_factory=dict)
    types: dict[str, dict[str, int]] = field(default_factory=dict)


class Shapes:
    """Shapes and element types of the values of a graph."""

    def __init__(self, graph: Graph, model: LoadedModel, keep_overridable: bool = False) -> None:
        self._graph = graph
        self._model = model
        self._keep_overridable = keep_overridable
        self._scope_of: dict[int, str] = {}

    @cached_property
    def _symbolic(self) -> bool:
        return any(
            not dim.HasField("dim_value") or dim.dim_value <= 0
            for info in self._model.proto.graph.input
            for dim in info.type.tensor_type.shape.dim
        )

    @cached_property
    def _analyses(self) -> tuple[_Analysis, ...]:
        return tuple(self._analysis(case) for case in range(SMALL if self._symbolic else 1))

    @cached_property
    def _small(self) -> _Analysis:
        return self._analysis(SMALL) if self._symbolic else self._analyses[0]

    def _analysis(self, case: int) -> _Analysis:
        return _analyse(self._graph, self._model, case, self._keep_overridable)

    def cases(self, scope: Scope, value: Value) -> list[Dims | None]:
        """The value's shape in each analysis (one, or two where dimensions are symbolic)."""
        return [_dims(analysis, scope, value) for analysis in self._analyses]

    def dims(self, scope: Scope, value: Value) -> Dims | None:
        """The value's shape, with None for what depends on a symbol or is unknown; None if the rank is unknown."""
        cases = self.cases(scope, value)
        first = cases[0]
        if first is None or any(case is None or len(case) != len(first) for case in cases):
            return None
        small = _dims(self._small, scope, value)
        if small is None or len(small) != len(first):
            small = first

        def static(axis: int) -> bool:
            """0 is what a Slice leaves of some sizes, or inference of an op that is too large for size 1."""
            seen = {size for case in cases if case is not None for size in case[axis : axis + 1]}
            return len(seen) == 1 and not seen & {0, None} and small[axis] in (None, 0, *seen)

        return tuple(size if static(axis) else None for axis, size in enumerate(first))

    def rank(self, scope: Scope, value: Value) -> int | None:
        """The number of dimensions, None if unknown."""
        dims = self.dims(scope, value)
        return None if dims is None else len(dims)

    def element_type(self, scope: Scope, value: Value) -> int:
        """TensorProto data type, 0 if unknown."""
        if value.tensor is not None:
            return int(value.tensor.data_type)
        found = self._analyses[0].types.get(scope.label, {}).get(value.name, 0)
        if not found and value.outer is not None and scope.parent is not None:  # captured: inference says it outside
            return self.element_type(scope.parent, value.outer)
        return found

    def constants(self, scope: Scope, case: int | None = None) -> Constants:
        """Constants of a scope under static shapes, or under those of one analysis."""
        key = (scope.label, case)
        if key not in self._constants:

            def dims(value: Value) -> Dims | None:
                return self.dims(scope, value) if case is None else _dims(self._analyses[case], scope, value)

            self._constants[key] = Constants(
                self._model.weights, dims, lambda value: self.element_type(scope, value), self._keep_overridable
            )
        return self._constants[key]

    @cached_property
    def _constants(self) -> dict[tuple[str, int | None], Constants]:
        return {}

    @property
    def case_count(self) -> int:
        """Number of analyses: 1, or 2 where the model has symbolic dimensions."""
        return len(self._analyses)


def _dims(analysis: _Analysis, scope: Scope, value: Value) -> Dims | None:
    if value.tensor is not None:
        return tuple(value.tensor.dims)
    found: Scope | None = scope
    while found is not None:
        dims = analysis.dims.get(found.label, {}).get(value.name)
        if dims is not None or value.outer is None:
            return dims
        value, found = value.outer, found.parent
    return None


def _analyse(graph: Graph, model: LoadedModel, case: int, keep_overridable: bool) -> _Analysis:
    copy = structure(model)
    del copy.graph.value_info[:]  # an exporter's own may be symbolic or wrong
    for info in copy.graph.output:
        info.type.tensor_type.ClearField("shape")
    _set_sizes(copy.graph, case)
    _tell_same_shapes(copy.graph)
    analysis = _Analysis()
    added: set[tuple[str, str]] = set()
    settled: set[str] = set()
    for rest in reversed(range(MAX_ROUNDS)):
        inferred = infer_shapes(copy, settled, guess=not rest)
        analysis = _collect(graph, inferred)
        if _add_known_shape_inputs(graph, model, copy, analysis, added, keep_overridable):
            continue
        if not hides(inferred):
            break
        analysis = _collect(graph, infer_shapes(copy, settled))
        if not _add_known_shape_inputs(graph, model, copy, analysis, added, keep_overridable):
            break
    return analysis


def _tell_same_shapes(graph: GraphProto) -> None:
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        index, default = TYPE_INPUT.get(op, (0, 0))
        if (op not in SAME_SHAPE and not index) or len(node.output) != 1:
            continue
        to = types.get(node.input[index], default) if index < len(node.input) else default
        node.op_type, node.domain = "Cast" if index else "Identity", ""
        del node.input[1:], node.attribute[:]
        node.attribute.extend([helper.make_attribute("to", to)] if index else [])


def _set_sizes(graph: GraphProto, case: int) -> None:
    initial = {tensor.name for tensor in graph.initializer}
    for info in graph.input:
        if info.name in initial:
            continue
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") or dim.dim_value <= 0:
                dim.dim_value = BATCH_SIZES[case] if axis == 0 else OTHER_SIZES[case]


def _collect(graph: Graph, inferred: ModelProto) -> _Analysis:
    """Read the inferred shapes; scopes of the copy are met in the order in which the view made its own."""
    analysis = _Analysis()
    for scope, proto in zip(graph.scopes, _graphs_like(graph, inferred), strict=True):
        dims: dict[str, Dims] = {}
        types: dict[str, int] = {}
        if proto is not None:
            for info in [*proto.input, *proto.value_info, *proto.output]:
                _read_info(info, dims, types)
        analysis.dims[scope.label] = dims
        analysis.types[scope.label] = types
    return analysis


def _read_info(info: ValueInfoProto, dims: dict[str, Dims], types: dict[str, int]) -> None:
    if not info.type.HasField("tensor_type"):
        return
    tensor = info.type.tensor_type
    if tensor.elem_type:
        types[info.name] = tensor.elem_type
    if tensor.HasField("shape"):
        dims[info.name] = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in tensor.shape.dim
        )


def _graphs_like(graph: Graph, model: ModelProto) -> list[GraphProto | None]:
    """The graph of each scope in another copy of the same model; None for functions (inference says nothing there)."""
    return [
        proto if isinstance(proto, GraphProto) else None for proto in (s.proto for s in Graph(model).scopes)
    ] if len(graph.scopes) > 1 else [model.graph]


def _add_known_shape_inputs(
    graph: Graph, model: LoadedModel, copy: ModelProto, analysis: _Analysis, added: set[tuple[str, str]], keep: bool
) -> bool:
    """Give inference the shapes that only evaluation could compute; returns whether there was anything new.

    Only the main graph is helped: bodies get their shapes from it.
    """
    scope = graph.main
    constants = Constants(
        model.weights,
        lambda value: _dims(analysis, scope, value),
        lambda value: analysis.types[scope.label].get(value.name, 0),
        keep,
    )
    new = False
    for position, node in enumerate(scope.nodes):
        index = SHAPE_INPUT.get(node.op)
        output = node.output()
        if index is None or output is None or None not in analysis.dims[scope.label].get(output.name, (None,)):
            continue
        for place in range(index, len(node.inputs)):
            value = node.inputs[place]
            if value is None or value.tensor is not None or (scope.label, value.name) in added:
                continue
            array = constants.array(value)
            if array is not None and array.size < 1024:
                added.add((scope.label, value.name))
                name = f"{value.name}//known"
                copy.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
                copy.graph.node[position].input[place] = name
                new = True
    return new

