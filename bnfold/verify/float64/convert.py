"""A model of floats as a model of doubles that ONNX Runtime has kernels for.

Nodes are of three kinds: ops with a double kernel stay (KEPT); ops that are declared are replaced by their
declaration; a node of any other kind that touches floats is left out, and its outputs become inputs of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from bnfold.inference import infer_shapes
from bnfold.verify.float64.builder import (
    DECLARATIONS,
    FLOATS,
    LEAST_OPSET,
    OLDER,
    Builder,
    Op,
    Shape,
    Term,
    Unsupported,
)
from bnfold.verify.runtime import bodies

# ONNX Runtime computes these in double, or whatever the element type is; the tests try each.
KEPT = frozenset(
    """
    Abs Add AffineGrid And ArgMax ArgMin Attention BatchNormalization Cast CastLike Ceil CenterCropPad Clip Compress
    Concat ConcatFromSequence Constant ConstantOfShape CumSum DFT DeformConv DepthToSpace Div Dropout Einsum Equal
    Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm Greater GreaterOrEqual GridSample
    GroupNormalization Identity If IsInf IsNaN Less LessOrEqual Log LogSoftmax Loop LpNormalization
    MatMul Max MaxPool Min Mod Mul Neg NegativeLogLikelihoodLoss Not Optional OptionalGetElement
    OptionalHasElement Or Pad Pow RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape ReverseSequence RoiAlign Round
    Scan ScatterElements ScatterND SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert
    SequenceLength Shape Shrink Sigmoid Sign Sin Size Slice Softmax SoftmaxCrossEntropyLoss SpaceToDepth Split
    SplitToSequence Sqrt Squeeze STFT Sub Sum Tanh Tile TopK Transpose Trilu Unique Unsqueeze Where Xor
    """.split()
)
# Attributes that name an element type.
TYPE_ATTRIBUTES = frozenset({"to", "dtype"})
# The input that has to be of floats for an op to be declared, where it isn't the first.
FLOAT_INPUTS = {"OneHot": 2, "DequantizeLinear": 1, "com.microsoft:DequantizeLinear": 1}
# Element types that are computed in double.
WIDE = FLOATS | {TensorProto.DOUBLE}
# Tensors above this are no constants that a declaration looks into, and shape inference doesn't need them.
SMALL = 4096
# What a declaration runs into where a node isn't what its op takes: a weight of rank 1, a stride of 0.
MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError)


@dataclass(frozen=True)
class Float64Form:
    """A model in double.

    Attributes:
        model: double where the original has floats.  Values keep their names, initializers too.
        unsupported: values that the original computes by nodes without a double form, and why.  The nodes are
            left out; these values are inputs of `model` (double where they were float).
        stored: initializers of `model` that are as they are stored, since their content is external, and the values
            that they become by a Cast: the names of the original's.
    """

    model: ModelProto
    unsupported: Mapping[str, str]
    stored: Mapping[str, str]


def to_float64(
    model: ModelProto, shapes: Mapping[str, Shape] | None = None, types: Mapping[str, int] | None = None
) -> Float64Form:
    """The double form of a flat model (no local functions).

    Args:
        model: of any float types and opset 7 or above; it isn't changed.
        shapes: concrete shapes of values, for the run at hand; those that onnx can infer are known anyway.
        types: element types of values, likewise.

    Raises:
        Unsupported: the model as a whole has no double form.

    >>> from onnx.parser import parse_model
    >>> model = parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     agraph (float[1, 3, 8, 8] x) => (float[1, 3, 1, 1] y) { y = GlobalAveragePool(x) }''')
    >>> [node.op_type for node in to_float64(model).model.graph.node][-1]
    'ReduceMean'
    """
    return _Conversion(model, shapes or {}, types or {}).run()


class _Conversion:
    """What all graphs of a model share."""

    def __init__(self, model: ModelProto, shapes: Mapping[str, Shape], types: Mapping[str, int]) -> None:
        if model.functions:
            raise Unsupported("local functions: inline them first")
        self.original = model
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), LEAST_OPSET)
        if self.opset < 7:
            raise Unsupported(f"opset {self.opset}: a model of opset 7 or above is needed")
        self.unsupported: dict[str, str] = {}
        self.stored: dict[str, str] = {}
        self.infos = _infer(model)
        self.types = {n: t.tensor_type.elem_type for n, t in self.infos.items() if t.HasField("tensor_type")}
        self.types.update(types)
        self.shapes = {n: s for n, t in self.infos.items() if (s := _static_shape(t)) is not None}
        self.shapes.update({name: tuple(shape) for name, shape in shapes.items()})
        self.taken: set[str] = set()
        self._claim(model.graph)

    def _claim(self, graph: GraphProto) -> None:
        """Note every name in use, and the parameters' shapes and types."""
        for tensor in graph.initializer:
            self.shapes[tensor.name] = tuple(tensor.dims)
            self.types[tensor.name] = tensor.data_type
        self.taken.update(info.name for info in (*graph.input, *graph.initializer))
        for node in graph.node:
            self.taken.update(node.output)
            for body in bodies(node):
                self._claim(body)

    def run(self) -> Float64Form:
        """The whole model."""
        result = ModelProto(ir_version=max(self.original.ir_version, 7), producer_name=self.original.producer_name)
        for imported in self.original.opset_import:
            version = max(imported.version, LEAST_OPSET) if imported.domain in ("", "ai.onnx") else imported.version
            result.opset_import.append(helper.make_opsetid(imported.domain, version))
        result.graph.CopyFrom(self.graph(self.original.graph, {}, main=True))
        inputs = {info.name for info in result.graph.input}
        read = {name for node in self.original.graph.node for name in (*node.input, *(_captured(node)))}
        read |= {info.name for info in self.original.graph.output}
        for name in self.unsupported:
            kind = self._kind(name)
            if kind is None and name in read:
                raise Unsupported(f"the type of '{name}' is not known: {self.unsupported[name]}")
            if kind is not None and name not in inputs:
                result.graph.input.append(ValueInfoProto(name=name, type=_widened(kind)))
        return Float64Form(result, self.unsupported, self.stored)

    def _kind(self, name: str) -> TypeProto | None:
        if name in self.types:
            return helper.make_tensor_type_proto(self.types[name], None)
        return self.infos.get(name)

    def graph(self, graph: GraphProto, outer: Mapping[str, TensorProto], main: bool = False) -> GraphProto:
        """The double form of one graph; `outer`: small constants of the graphs around it."""
        constants = {**outer, **{t.name: t for t in graph.initializer if _size(t) <= SMALL}}
        builder = Builder(self.opset, self.shapes, self.types, constants, self.taken)
        initializers = [self._initializer(builder, tensor) for tensor in graph.initializer]
        for node in graph.node:
            start = len(builder.nodes)
            try:
                self._node(builder, node)
            except (Unsupported, *MALFORMED) as error:
                if not main:
                    raise Unsupported(str(error)) from error
                builder.forget(start)
                self.unsupported.update({name: f"{node.op_type}: {error}" for name in node.output if name})
        result = GraphProto(name=graph.name)
        result.node.extend(builder.nodes)
        result.initializer.extend(initializers)
        result.sparse_initializer.extend(_widened_sparse(tensor) for tensor in graph.sparse_initializer)
        for field, target in ((graph.input, result.input), (graph.output, result.output)):
            target.extend(ValueInfoProto(name=info.name, type=_widened(info.type)) for info in field)
        return result

    def _initializer(self, builder: Builder, tensor: TensorProto) -> TensorProto:
        """In double; what is external stays as it is stored, and is cast as the graph runs."""
        if tensor.data_location != TensorProto.EXTERNAL or tensor.data_type not in FLOATS:
            return _widened_tensor(tensor)
        copy = TensorProto()
        copy.CopyFrom(tensor)
        copy.name = builder.fresh(f"stored {tensor.name}")
        builder.node("Cast", [copy.name], [tensor.name], to=TensorProto.DOUBLE)
        self.stored[copy.name] = tensor.name
        return copy

    def _node(self, builder: Builder, node: NodeProto) -> None:
        """Append the double form of a node.

        Raises: Unsupported.
        """
        op_type = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"
        if ":" in op_type and op_type not in DECLARATIONS:
            raise Unsupported(f"an op of {node.domain}")
        before, declaration = OLDER.get(op_type, (0, None))
        if declaration is None or self.opset >= before:
            place = FLOAT_INPUTS.get(op_type, 0)
            data = node.input[place : place + 1]
            floats = not data or self.types.get(data[0], TensorProto.FLOAT) in WIDE
            declaration = DECLARATIONS.get(op_type) if floats else None
        if node.op_type == "Attention" and _masked_twice(node):
            raise Unsupported("causal, padded, or of inner values")
        if declaration is not None:
            start = len(builder.nodes)
            result = declaration(Op(builder, node))
            builder.finish(start, [result] if isinstance(result, Term) else result, node.output)
        elif node.op_type in KEPT or not self._touches_floats(node):
            builder.nodes.append(self._copy(builder, node))
        else:
            raise Unsupported("no double form")

    def _touches_floats(self, node: NodeProto) -> bool:
        """True unless all inputs and outputs are known to be of other types."""
        return any(self.types.get(name, TensorProto.FLOAT) in WIDE for name in (*node.input, *node.output) if name)

    def _copy(self, builder: Builder, node: NodeProto) -> NodeProto:
        """A node whose op stays: its attributes in double."""
        copy = NodeProto(op_type=node.op_type, name=node.name, input=node.input, output=node.output)
        for attribute in node.attribute:
            copy.attribute.append(self._attribute(builder, attribute))
        if node.op_type == "ConstantOfShape" and not node.attribute:
            copy.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
        if node.op_type == "SequenceEmpty" and not node.attribute:
            copy.attribute.append(helper.make_attribute("dtype", TensorProto.DOUBLE))
        if node.op_type == "Constant" and copy.attribute and copy.attribute[0].name == "value":
            if _size(copy.attribute[0].t) <= SMALL:
                builder.constants[node.output[0]] = node.attribute[0].t
            builder.shapes[node.output[0]] = tuple(copy.attribute[0].t.dims)
        return copy

    def _attribute(self, builder: Builder, attribute: AttributeProto) -> AttributeProto:
        if attribute.type == AttributeProto.TENSOR:
            return helper.make_attribute(attribute.name, _widened_tensor(attribute.t))
        if attribute.type == AttributeProto.SPARSE_TENSOR:
            return helper.make_attribute(attribute.name, _widened_sparse(attribute.sparse_tensor))
        if attribute.name in ("value_float", "value_floats"):
            values = np.array(helper.get_attribute_value(attribute), np.float64)
            return helper.make_attribute("value", numpy_helper.from_array(values))
        if attribute.name in TYPE_ATTRIBUTES and attribute.i in FLOATS:
            return helper.make_attribute(attribute.name, TensorProto.DOUBLE)
        if attribute.type == AttributeProto.TYPE_PROTO:
            return helper.make_attribute(attribute.name, _widened(attribute.tp))
        if attribute.type == AttributeProto.GRAPH:
            return helper.make_attribute(attribute.name, self.graph(attribute.g, builder.constants))
        return attribute


def _masked_twice(node: NodeProto) -> bool:
    """True for the forms of Attention where ONNX Runtime's double and float differ or the double has no kernel."""
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    return bool(numbers.get("is_causal") or any(node.input[6:]) or any(node.output[3:]))


# -- types, tensors, shapes -----------------------------------------------------------------------------


def _widened(kind: TypeProto) -> TypeProto:
    """The type with double for every float."""
    copy = TypeProto()
    copy.CopyFrom(kind)
    inner = copy
    while not inner.HasField("tensor_type"):
        if inner.HasField("sequence_type"):
            inner = inner.sequence_type.elem_type
        elif inner.HasField("optional_type"):
            inner = inner.optional_type.elem_type
        else:
            return copy
    if inner.tensor_type.elem_type in FLOATS:
        inner.tensor_type.elem_type = TensorProto.DOUBLE
    return copy


def _widened_tensor(tensor: TensorProto) -> TensorProto:
    """The tensor as double if it is of floats; every float is a double."""
    if tensor.data_type not in FLOATS:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


def _widened_sparse(tensor: SparseTensorProto) -> SparseTensorProto:
    return SparseTensorProto(values=_widened_tensor(tensor.values), indices=tensor.indices, dims=tensor.dims)


def _size(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _captured(node: NodeProto) -> set[str]:
    """Names that the bodies of a node mention."""
    found: set[str] = set()
    for body in bodies(node):
        found.update(info.name for info in body.output)
        for inner in body.node:
            found.update(inner.input, _captured(inner))
    return found


def _infer(model: ModelProto) -> dict[str, TypeProto]:
    """Types of all values as far as onnx can infer them; weights are described, not copied."""
    copy = ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    for field in ("node", "input", "output", "value_info"):
        getattr(copy.graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        small = _size(tensor) <= SMALL
        copy.graph.initializer.append(
            tensor if small else TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        )
    inferred = infer_shapes(copy)  # what stays unknown is unsupported only if it is needed
    found: dict[str, TypeProto] = {}
    graphs = [inferred.graph]
    while graphs:
        graph = graphs.pop()
        found.update({info.name: info.type for info in (*graph.input, *graph.value_info, *graph.output)})
        graphs.extend(body for node in graph.node for body in bodies(node))
    return {name: kind for name, kind in found.items() if kind.WhichOneof("value")}


def _static_shape(kind: TypeProto) -> Shape | None:
    tensor = kind.tensor_type
    if not kind.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)
