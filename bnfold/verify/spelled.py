"""QONNX's ops in ops of ONNX's own, so that ONNX Runtime runs them: it knows neither their domain nor what they do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnfold.constants import Array
from bnfold.graph import Graph, Node, Scope, Value, stored_tensor
from bnfold.qonnx import OPS, Grid, evaluate, grid_of
from bnfold.verify.runtime import bodies

# Names of what is added begin so.
MARK = "bnfold spelled: "
NAMES = frozenset(op.rpartition("::")[2] for op in OPS)
# Opset of Round.
LEAST_OPSET = 11
# How each mode rounds, in ops: of the number, or of its size.
ROUNDING = {
    "ROUND": ("Round",), "HALF_EVEN": ("Round",), "CEIL": ("Ceil",), "FLOOR": ("Floor",),
    "UP": ("Abs", "Ceil", "Sign"), "DOWN": ("Abs", "Floor", "Sign"),
    "HALF_UP": ("Abs", "Add", "Floor", "Sign"), "HALF_DOWN": ("Abs", "Sub", "Ceil", "Sign"),
}  # fmt: skip


def spelled_out(model: ModelProto, rounding: bool = True) -> ModelProto:
    """A copy without QONNX's ops, as far as they are known; the model itself if there are none.

    What one makes of stored tensors is stored, too.

    Args:
        model: the model; it is the same afterwards.
        rounding: whether activations are rounded, or clipped to the range of what they are rounded to only.
    """
    if not any(map(_uses, (model.graph, *model.functions))):
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    for scope in reversed(Graph(copy).scopes):  # bodies before what they are in
        fixed = _constants(scope)
        spelled = {
            id(node.proto): list(_spelled(node, rounding or node.inputs[0] in fixed))
            for node in scope.nodes if node.op in OPS
        }  # fmt: skip
        entries = [made for proto in scope.proto.node for made in spelled.get(id(proto)) or [proto]]
        copies = [NodeProto.FromString(proto.SerializeToString()) for proto in entries]
        del scope.proto.node[:]
        scope.proto.node.extend(copies)
    return copy


def _uses(graph: GraphProto | FunctionProto) -> bool:
    return any(node.op_type in NAMES or any(map(_uses, bodies(node))) for node in graph.node)


def _constants(scope: Scope) -> set[Value | None]:
    """Values that depend on no input: a weight is rounded, whatever becomes of activations."""
    fixed: set[Value | None] = {value for value in scope.values.values() if stored_tensor(value) is not None}
    for node in scope.nodes:
        if node.inputs and fixed.issuperset(value for value in node.inputs if value is not None):
            fixed.update(node.outputs)
    return fixed


def _spelled(node: Node, rounding: bool) -> Iterator[NodeProto]:
    """The nodes that stand for one; none if it isn't known."""
    bits = None if node.input(3) is None else _stored(node, 3)
    grid = grid_of(node, bits)
    if isinstance(grid, str) or node.scope.opsets.get("", 1) < LEAST_OPSET:
        return
    inputs = [_stored(node, index) for index in range(len(node.inputs))]
    known = None if any(array is None for array in inputs) else evaluate(node, inputs)
    if known is not None:
        yield _constant(known, node.proto.output[0])
        return
    like = next((array for array in inputs[1:3] if array is not None and array.dtype.kind == "f"), np.float32(0))
    yield from _Speller(node, np.asarray(like).dtype).of(grid, rounding)


def _stored(node: Node, index: int) -> Array | None:
    """The content of an input that is stored, and at hand."""
    value = node.inputs[index]
    while value is not None and value.outer is not None:
        value = value.outer
    tensor = None if value is None else stored_tensor(value)
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
        return None
    return numpy_helper.to_array(tensor)


def _constant(content: Array, name: str) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.ascontiguousarray(content)))


class _Speller:
    """Writes nodes one behind the other."""

    def __init__(self, node: Node, dtype: Any) -> None:
        self._node, self._dtype = node.proto, dtype
        self._nodes: list[NodeProto] = []

    def of(self, grid: Grid, rounding: bool) -> list[NodeProto]:
        """The nodes for a grid."""
        x, scale, *others = self._node.input
        if grid.rounding:
            held = self._op("Add", self._op("Div", x, scale), others[0])
            held = self._op("Min", self._op("Max", held, self._number(grid.low)), self._number(grid.high))
            held = self._rounded(grid.rounding, held) if rounding else held
            self._op("Mul", self._op("Sub", held, others[0]), scale)
        elif rounding:
            self._op("Where", self._op("Less", x, self._number(0)), self._op("Neg", scale), scale)
        else:
            self._op("Min", self._op("Max", x, self._op("Neg", scale)), scale)
        self._nodes[-1].output[0] = self._node.output[0]
        return self._nodes

    def _rounded(self, rounding: str, held: str) -> str:
        start = held
        for op in ROUNDING[rounding]:
            if op == "Sign":
                held = self._op("Mul", held, self._op("Sign", start))
            else:
                held = self._op(op, held, *([self._number(0.5)] if op in ("Add", "Sub") else []))
        return held

    def _number(self, value: float) -> str:
        name = self._name()
        self._nodes.append(_constant(np.asarray(value, self._dtype), name))
        return name

    def _op(self, op: str, *inputs: str) -> str:
        name = self._name()
        self._nodes.append(helper.make_node(op, list(inputs), [name]))
        return name

    def _name(self) -> str:
        return f"{MARK}{len(self._nodes)} of {self._node.output[0]}"
