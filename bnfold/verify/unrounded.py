"""A model without the rounding of its activations: DequantizeLinear(QuantizeLinear(x)) becomes a clip to their range.

Rounding to steps makes a whole step of a difference in the last digit, somewhere, and no noise of a few runs tells
where.  What a fold claims holds with and without it: two models that are equal before the rounding round the same
numbers.  So the relation check leaves it out of both.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnfold.constants import Array
from bnfold.verify.noise import stored_tensors

# Names of what is added begin so.
MARK = "bnfold unrounded: "


def unrounded(model: ModelProto) -> ModelProto:
    """A copy whose main graph passes activations through pairs of QuantizeLinear and DequantizeLinear, or the model.

    Pairs with one constant scale each and the same zero point.
    """
    tensors = {name: tensor for name, tensor in stored_tensors(model) if np.prod(tensor.dims, dtype=np.int64) == 1}
    makers = {name: node for node in model.graph.node for name in node.output}
    pairs: dict[int, tuple[str, Array, float, float, float]] = {}
    for index, node in enumerate(model.graph.node):
        maker = makers.get(node.input[0]) if _is(node, "DequantizeLinear") else None
        if maker is not None and _is(maker, "QuantizeLinear"):
            found = _range(maker, node, tensors)
            if found is not None:
                pairs[index] = (maker.input[0], *found)
    if not pairs:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for index, node in enumerate(model.graph.node):
        if index in pairs:
            _clip(copy, node, *pairs[index])
        else:
            copy.graph.node.append(node)
    return copy


def _is(node: NodeProto, op: str) -> bool:
    return node.op_type == op and node.domain in ("", "ai.onnx", "com.microsoft")


def _range(
    quantize: NodeProto, dequantize: NodeProto, tensors: dict[str, TensorProto]
) -> tuple[Array, float, float, float] | None:
    """A zero of the values' type, lowest and highest value, and what comes out over what goes in; None if unknown."""
    steps, zeros = [], []
    for node in (quantize, dequantize):
        names = [*node.input[1:], ""][:2]
        if names[0] not in tensors or (names[1] and names[1] not in tensors):
            return None
        steps.append(numpy_helper.to_array(tensors[names[0]]).ravel()[0])
        zeros.append(numpy_helper.to_array(tensors[names[1]]).ravel()[0] if names[1] else np.uint8(0))
    kind = zeros[0].dtype.kind
    if kind not in "iu" or zeros[0] != zeros[1] or any(a.name == "output_dtype" for a in quantize.attribute):
        return None
    limits, zero, step = np.iinfo(zeros[0].dtype), int(zeros[0]), float(steps[0])
    return np.zeros((), steps[0].dtype), (limits.min - zero) * step, (limits.max - zero) * step, float(steps[1]) / step


def _clip(model: ModelProto, node: NodeProto, source: str, like: Array, low: float, high: float, gain: float) -> None:
    """y = gain min(max(x, low), high), with ops that every opset with QuantizeLinear has."""
    output = node.output[0]
    rows = [("Max", low), ("Min", high)] + ([("Mul", gain)] if gain != 1 else [])
    for number, (op, value) in enumerate(rows):
        constant = f"{MARK}{op} {output}"
        model.graph.initializer.append(numpy_helper.from_array(like + like.dtype.type(value), constant))
        result = output if number == len(rows) - 1 else f"{MARK}behind {op} {output}"
        model.graph.node.append(helper.make_node(op, [source, constant], [result]))
        source = result
