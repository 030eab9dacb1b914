"""ONNX's shape inference, as far as it goes, on any file.

It has to be told apart what is worth asking: inference with data propagation follows the contents of small vectors
through the graph, and of a vector that is concatenated with itself sixty times it would write down every element.
"""

from __future__ import annotations

import onnx
from onnx import GraphProto, ModelProto

from bnfold.graph import Container, bodies_of

# Elements of a vector whose contents are followed; those of shapes have a handful.
LONGEST_VECTOR = 1 << 16


def infer_shapes(model: ModelProto) -> ModelProto:
    """The model with the shapes and types that ONNX can infer; the same where it can't."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=_stays_small(model))
    except Exception:  # best effort: what stays unknown is not used
        return model


def _stays_small(model: ModelProto) -> bool:
    """Whether no vector can grow beyond `LONGEST_VECTOR` by being concatenated (what else is propagated can't grow)."""
    waiting: list[Container] = [model.graph, *model.functions]
    lengths: dict[str, int] = {}
    while waiting:
        scope = waiting.pop()
        if isinstance(scope, GraphProto):
            lengths.update({tensor.name: tensor.dims[0] for tensor in scope.initializer if len(tensor.dims) == 1})
        for node in scope.node:
            given = [lengths.get(name, 1) for name in node.input]
            given += [a.t.dims[0] for a in node.attribute if a.type == a.TENSOR and len(a.t.dims) == 1]
            length = sum(given) if node.op_type == "Concat" else max(given, default=1)
            if node.op_type == "Concat" and length > LONGEST_VECTOR:
                return False
            if length > 1:
                lengths.update(dict.fromkeys(node.output, length))
            waiting.extend(body for attribute in node.attribute for body in bodies_of(attribute))
    return True
