"""Operators that ONNX itself defines by others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, helper

from bnfold.graph import Graph, Node, Scope
from bnfold.shapes import Shapes


def domain_and_name(node: Node) -> tuple[str, str]:
    """Of a node's operator; ONNX's own domain is the empty one."""
    return "" if node.proto.domain == "ai.onnx" else node.proto.domain, node.proto.op_type


def by_definition(node: Node, shapes: Shapes, attributes: dict[str, AttributeProto]) -> Scope:
    """An operator that ONNX itself defines by others, as a function."""
    function = definition(node, shapes, list(attributes.values()))
    assert function is not None
    model = ModelProto(functions=[function])
    known = {one.domain for one in function.opset_import}
    missing = [helper.make_opsetid(name, version) for name, version in node.scope.opsets.items() if name not in known]
    model.functions[0].opset_import.extend(missing)
    return Graph(model).scopes[1]


def definition(node: Node, shapes: Shapes, attributes: Sequence[AttributeProto]) -> FunctionProto | None:
    """The body by which ONNX defines an operator with these attributes, None if it has none here."""
    domain, name = domain_and_name(node)
    try:
        schema: Any = onnx.defs.get_schema(name, node.opset, domain)
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:
        return schema.function_body
    if not schema.has_context_dependent_function:
        return None
    types = []
    for value in node.inputs:
        info = onnx.TypeProto()
        if value is not None:
            info.tensor_type.elem_type = shapes.element_type(node.scope, value) or TensorProto.FLOAT
        types.append(info.SerializeToString())
    function, proto = FunctionProto(), NodeProto()
    proto.CopyFrom(node.proto)
    del proto.attribute[:]
    proto.attribute.extend(attributes)
    try:
        function.ParseFromString(schema.get_context_dependent_function(proto.SerializeToString(), types))
    except Exception:  # onnx raises what its C++ does
        return None
    return function if function.node else None
