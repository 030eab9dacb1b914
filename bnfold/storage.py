"""New tensors in a graph, a body or a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import FunctionProto, TensorProto, helper, numpy_helper

from bnfold.constants import Array
from bnfold.graph import Graph, Scope
from bnfold.weights import Weights, bits_of

CONTENT = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def new_tensor(graph: Graph, scope: Scope, name: str, dtype: Any, dims: Sequence[int]) -> TensorProto:
    """An initializer of a scope, still without content; in a function, which has none, the tensor of a Constant."""
    tensor: TensorProto
    if isinstance(scope.proto, FunctionProto):
        node = helper.make_node("Constant", [], [name], value=TensorProto())
        scope.proto.node.insert(0, node)
        tensor = scope.proto.node[0].attribute[0].t
    else:
        tensor = scope.proto.initializer.add()
        if scope.parent is None and graph.model.ir_version < 4:  # then every initializer is an input too
            element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            scope.proto.input.append(helper.make_tensor_value_info(name, element_type, dims))
    tensor.name = name
    return tensor


def add_tensor(graph: Graph, scope: Scope, name: str, content: Array) -> TensorProto:
    """The same with its content, one that is small enough to be held."""
    tensor = new_tensor(graph, scope, name, content.dtype, content.shape)
    tensor.CopyFrom(numpy_helper.from_array(content, name))
    return tensor


def tensors_of(scope: Scope) -> dict[str, TensorProto]:
    """The stored tensors that a scope's nodes can read, by name."""
    found: dict[str, TensorProto] = {} if scope.parent is None else tensors_of(scope.parent)
    if not isinstance(scope.proto, FunctionProto):
        found.update((tensor.name, tensor) for tensor in scope.proto.initializer)
    for node in scope.proto.node:
        if node.op_type == "Constant":
            found.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    return found


def fill(
    weights: Weights, tensor: TensorProto, dtype: Any, dims: Sequence[int], content: Array | Callable[[], Any]
) -> None:
    """Give a tensor its shape and content: an array, or what makes it block by block."""
    del tensor.dims[:]
    tensor.dims.extend(dims)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if callable(content):
        weights.defer(tensor, content)
        return
    for name in CONTENT:
        tensor.ClearField(name)
    if is_packed(content.dtype):
        tensor.raw_data = numpy_helper.from_array(content).raw_data
        return
    tensor.raw_data = np.ascontiguousarray(content).tobytes()


def is_packed(dtype: Any) -> bool:
    """True for types that ONNX stores tighter than a byte."""
    return bool((bits_of(helper.np_dtype_to_tensor_dtype(np.dtype(dtype))) or 8) % 8)
