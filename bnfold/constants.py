"""What is constant in a graph, and its value.

Exporters seldom write a weight as a plain initializer only: it comes as a Constant node, behind
Identity, Transpose or Cast, as `Expand(CastLike(0, x), Shape(weight))`, as a Tile of an Expand.
All of these are constants.  They are evaluated with ONNX's own reference evaluator, on demand,
and only while the result stays small; initializers themselves are views of the mapped file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from bnfold import qonnx
from bnfold.graph import Node, Value, stored_tensor
from bnfold.weights import Weights, bits_of

Array = np.ndarray[Any, Any]
Dims = tuple[int | None, ...]

# Deterministic ops without side effects whose result depends on nothing but their inputs.
EVALUATED = frozenset(
    """Abs Add Cast CastLike Ceil Concat ConstantOfShape DequantizeLinear Div Equal Expand Flatten Floor Gather
    Greater Identity Less Max Min Mod Mul Neg Not Pow QuantizeLinear Range Reciprocal ReduceProd ReduceSum Reshape
    Shape Size Slice Split Sqrt Squeeze Sub Tile Transpose Unsqueeze Where
    com.microsoft::DequantizeLinear com.microsoft::QuantizeLinear""".split()
) | qonnx.OPS
# What rounds to integers, and what makes numbers of them.
QUANTIZE = frozenset({"QuantizeLinear", "com.microsoft::QuantizeLinear"})
DEQUANTIZE = frozenset({"DequantizeLinear", "com.microsoft::DequantizeLinear"})

# Results above this many elements are not evaluated: an exporter's chain builds a vector or a kernel,
# whereas ConstantOfShape of 10^12 or a doubling chain of Concat is an attack.  Views are free and not counted.
MAX_ELEMENTS = 1 << 24
VIEWS = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})


def is_floating(array: Array) -> bool:
    """True for the types that folding computes with: float16, bfloat16, float32, float64."""
    return array.dtype.name in ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Limits:
    """What a floating type can hold."""

    eps: float  # from 1 to the next number
    smallest_normal: float
    largest: float


@cache
def finfo(dtype: Any) -> Limits:
    """The limits of a type, bfloat16 included."""
    import ml_dtypes

    limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return Limits(float(limits.eps), float(limits.smallest_normal), float(limits.max))


def unit_roundoff(dtype: Any) -> float:
    """Half the distance from 1 to the next number: 2^-24 for float32, 2^-11 for float16, 2^-8 for bfloat16."""
    return finfo(dtype).eps / 2


class Constants:
    """Constant values of one model under one knowledge of shapes.

    Args:
        weights: where the bytes of tensors are.
        dims: shape of a value as far as it is known (for Shape and Size), None if nothing is known.
        element_type: TensorProto data type of a value (for CastLike), 0 if unknown.
        keep_overridable: initializers that are graph inputs too may be fed, so they are no constants.
    """

    def __init__(
        self,
        weights: Weights,
        dims: Callable[[Value], Dims | None],
        element_type: Callable[[Value], int],
        keep_overridable: bool = False,
    ) -> None:
        self.weights = weights
        self._dims = dims
        self._element_type = element_type
        self._keep_overridable = keep_overridable
        self._known: dict[Value, Array | None] = {}

    def array(self, value: Value | None) -> Array | None:
        """The content of a constant, read-only; None if the value is not constant (or is too large to evaluate)."""
        if value is None:
            return None
        stack = [value]
        while stack:  # chains may be longer than Python recurses
            top = stack[-1]
            if top in self._known:
                stack.pop()
                continue
            needs = self._needs(top)
            missing = [need for need in needs or () if need not in self._known]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            self._known[top] = None if needs is None else self._evaluate(top)
        return self._known[value]

    def tensor(self, value: Value) -> TensorProto | None:
        """The proto that stores the constant: an initializer or the tensor of a Constant node, else None."""
        while value.outer is not None:
            value = value.outer
        if value.tensor is not None and self._keep_overridable and value.is_input:
            return None
        return stored_tensor(value)

    def quantiser(self, value: Value | None) -> Node | None:
        """The node that makes a constant of integers: a DequantizeLinear, or one of QONNX's; None if there is none."""
        while value is not None:
            if value.outer is not None:
                value = value.outer
                continue
            producer = value.producer
            if producer is None or producer.op in DEQUANTIZE | qonnx.OPS:
                return producer
            if producer.op not in VIEWS | {"Cast"}:
                return None
            value = producer.input(0)
        return None

    def _needs(self, value: Value) -> list[Value] | None:
        """The constants that this value is made of; None if it can't be constant."""
        if value.outer is not None:
            return [value.outer]
        if value.tensor is not None:
            return None if self._keep_overridable and value.is_input else []
        node = value.producer
        if node is None or node.has_reference_attributes:
            return None
        if node.op == "Constant":
            return []
        if node.op not in EVALUATED:
            return None
        if node.op in ("Shape", "Size"):
            source = node.input(0)
            if source is None:
                return None
            if self._shape_of(node) is not None:
                return []
            return [source]  # maybe the shape of a constant
        inputs = node.inputs[:1] if node.op == "CastLike" else node.inputs
        return [need for need in inputs if need is not None]

    def _shape_of(self, node: Node) -> Array | None:
        """The result of a Shape or Size node from what is known of its input's shape."""
        source = node.input(0)
        dims = self._dims(source) if source is not None else None
        if dims is None:
            return None
        if node.op == "Shape":
            dims = dims[slice(node.attribute("start", 0), node.attribute("end"))]
        if any(dim is None for dim in dims):
            return None
        known = [int(dim) for dim in dims if dim is not None]
        return np.array(math.prod(known) if node.op == "Size" else known, np.int64)

    def _evaluate(self, value: Value) -> Array | None:
        if value.outer is not None:
            return self._known[value.outer]
        if value.tensor is not None:
            return self._read(value.tensor)
        node = value.producer
        assert node is not None
        if node.op == "Constant":
            return self._constant_node(node)
        if node.op in ("Shape", "Size"):
            shape = self._shape_of(node)
            if shape is not None:
                return shape
        inputs = [None if need is None else self._known.get(need) for need in node.inputs]
        proto = node.proto
        if node.op == "CastLike":  # reads its second input for the type alone
            like = node.input(1)
            element_type = self._element_type(like) if like is not None else 0
            if not element_type:
                return None
            proto = helper.make_node("Cast", list(node.proto.input[:1]), list(node.proto.output), to=element_type)
            inputs = inputs[:1]
        if any(have is None and need is not None for have, need in zip(inputs, node.inputs, strict=False)):
            return None
        if node.op == "Identity":  # the only expression of many a file: the evaluator's import takes 50 ms
            return inputs[0]
        if node.op not in VIEWS and size_of_result(node, inputs) > MAX_ELEMENTS:
            return None
        if _differs_by_runtime(node, inputs):
            return None
        return _run(proto, node, inputs, value)

    def _read(self, tensor: TensorProto) -> Array | None:
        """The content of a tensor, None of strings and of types that this onnx doesn't know."""
        return None if bits_of(tensor.data_type) is None else self.weights.read(tensor)

    def _constant_node(self, node: Node) -> Array | None:
        for attribute in node.proto.attribute:
            if attribute.name == "value":
                return self._read(attribute.t)
            if attribute.name in ("value_float", "value_floats"):
                return np.array(helper.get_attribute_value(attribute), np.float32)
            if attribute.name in ("value_int", "value_ints"):
                return np.array(helper.get_attribute_value(attribute), np.int64)
        return None


def _run(proto: NodeProto, node: Node, inputs: list[Array | None], wanted: Value) -> Array | None:
    if node.op in qonnx.OPS:
        return qonnx.evaluate(node, inputs)
    from onnx.reference import ReferenceEvaluator

    feeds = {name: have for name, have in zip(proto.input, inputs, strict=False) if name}
    opset = max(node.opset, 13) if proto.op_type == "Cast" else node.opset
    if node.op in QUANTIZE | DEQUANTIZE:  # ONNX Runtime's are as ONNX's, and the evaluator knows no other domain
        proto = helper.make_node(proto.op_type, list(proto.input), list(proto.output))
        proto.attribute.extend(node.proto.attribute)
    try:
        evaluator = ReferenceEvaluator(proto, opsets={"": opset})
        results = evaluator.run(None, feeds)
    except Exception:  # the evaluator has no contract on what it raises; an odd expression is simply not constant
        return None
    names = [name for name in proto.output if name]
    return np.asarray(list(results)[names.index(wanted.name)])


def _differs_by_runtime(node: Node, inputs: list[Array | None]) -> bool:
    """Whether a result is another one from runtime to runtime: powers of integers, divisions by an integer 0."""
    have = [array for array in inputs if array is not None]
    if node.op not in ("Pow", "Div", "Mod") or len(have) < 2 or any(map(is_floating, have)):
        return False
    return node.op == "Pow" or not have[1].all()


def size_of_result(node: Node, inputs: Sequence[Array | None]) -> int:
    """Elements of the result, known before it is made; ops not named here grow by broadcasting only."""
    have = [array for array in inputs if array is not None]
    if not have:
        return 1
    if node.op == "ConstantOfShape":
        return _product(have[0])
    if node.op in ("Expand", "Tile") and len(have) > 1:
        grown = _product(np.maximum(have[1], 1))
        return max(have[0].size, 1) * grown if node.op == "Tile" else max(have[0].size, grown)
    if node.op == "Range" and len(have) == 3:
        count = abs(float(have[1]) - float(have[0])) / (abs(float(have[2])) or 1.0)
        return int(min(count, 1e18)) if math.isfinite(count) else MAX_ELEMENTS + 1
    if node.op in QUANTIZE | DEQUANTIZE | qonnx.OPS:  # the scale lies along an axis of its own
        return have[0].size
    if node.op == "Concat":
        return sum(array.size for array in have)
    if node.op == "Gather":
        return max(have[0].size, 1) * max(have[1].size, 1) if have[0].ndim else have[1].size
    try:
        return math.prod(np.broadcast_shapes(*(array.shape for array in have)))
    except ValueError:
        return max(array.size for array in have)


def _product(dims: Array) -> int:
    return math.prod(int(dim) for dim in np.ravel(dims))
