"""A model as it is compared: one flat graph of ONNX's own ops (QONNX's spelled out) whose constants are initializers.

What a model computes from constants alone is computed once, by ONNX Runtime, in the model's own type: a folded
weight is no better for being a chain of nodes than it would be as an initializer, and the rounding of such a chain
is part of what the file computes. That includes the rounding of each float16 step: ONNX Runtime's CPU keeps float32
between float16 nodes, so that an epsilon of 1e-8, which is 0 in float16, would still be there.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from bnfold.constants import Array, finfo
from bnfold.model_file import LoadedModel
from bnfold.verify.large import LARGE, PLAIN, Model, opened, reference
from bnfold.verify.room import demand_room
from bnfold.verify.runtime import CUT, CannotRun, Runner, bodies, cut_model, element_types, first_line, reads
from bnfold.verify.spelled import spelled_out

# Distance of 1 to the next number.
ULP: dict[int, float] = {
    TensorProto.FLOAT: 2.0**-23, TensorProto.FLOAT16: 2.0**-10, TensorProto.BFLOAT16: 2.0**-7,
    TensorProto.DOUBLE: 2.0**-52,
}  # fmt: skip

# The type that CPU kernels compute in a wider one.
SHORT = TensorProto.FLOAT16

# Largest numbers.
LARGEST: dict[int, float] = {
    kind: float(finfo(onnx.helper.tensor_dtype_to_np_dtype(kind)).largest) for kind in ULP
}  # fmt: skip

# Inputs of these ops that are weights; others (bounds, exponents, shapes) are settings, and moving them is no rounding.
WEIGHTED = frozenset(
    """Conv ConvTranspose Gemm MatMul BatchNormalization Mul Add Sub Div PRelu LSTM GRU RNN InstanceNormalization
    LayerNormalization GroupNormalization RMSNormalization Einsum FusedConv FusedGemm FusedMatMul BiasGelu
    SkipLayerNormalization""".split()
)
# What only moves data: a weight behind it is a weight.
MOVERS = frozenset("Transpose Reshape Identity Cast CastLike Unsqueeze Squeeze Flatten Slice Split Expand".split())
# Numbers of a weight that are moved at a time.
BLOCK = 1 << 20
RANDOM = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split())


def prepare(model: LoadedModel) -> Model:
    """A copy with local functions inlined and constants computed; initializers are no inputs any more.

    Raises:
        ExternalDataError: tensors are out of reach.
        CannotRun: its functions can't be inlined, or it would take more memory than there is.
    """
    found = opened(model)
    proto = spelled_out(found.proto)
    demand_room(proto)
    if proto.functions:
        import onnx.inliner

        try:
            proto = onnx.inliner.inline_local_functions(proto)
        except Exception as error:  # onnx's own, of its C++ code
            raise CannotRun(f"its functions can't be inlined: {first_line(error)}") from error
    constant = {tensor.name for tensor in proto.graph.initializer}
    inputs = [info for info in proto.graph.input if info.name not in constant]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    return _settled(Model(proto, found.beside))


def _settled(model: Model) -> Model:
    """What depends on no input becomes initializers, where ONNX Runtime can compute it."""
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    fixed: list[NodeProto] = []
    for node in graph.node:
        if reads(node) <= known and node.op_type not in RANDOM and not any(True for _ in bodies(node)):
            fixed.append(node)
            known.update(node.output)
    if not fixed:
        return model
    made = {name for node in fixed for name in node.output if name}
    shown = {info.name for info in graph.output}
    ids = {id(node) for node in fixed}
    rest = [node for node in graph.node if id(node) not in ids]
    wanted = sorted((set().union(*(reads(node) for node in rest)) | shown) & made)
    try:
        values = _computed(model, fixed, wanted)
    except CannotRun:  # a type without kernels: Constant nodes at least need none
        values = _constant_nodes(fixed)
    values = {name: value for name, value in values.items() if _plain(value)}
    beside = {name: value for name, value in values.items() if _is_large(value)}
    tensors = {
        name: reference(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape) if name in beside
        else numpy_helper.from_array(value, name)
        for name, value in values.items()
    }  # fmt: skip
    settled = [node for node in fixed if all(name in tensors or name not in wanted for name in node.output if name)]
    if len(settled) < len(fixed):  # keep the rest whole
        settled = [node for node in fixed if node.op_type == "Constant" and node.output[0] in tensors]
    gone = {id(node) for node in settled}
    outputs = {name for node in settled for name in node.output}
    graph.initializer.extend(tensor for name, tensor in tensors.items() if name in outputs)
    nodes = [node for node in graph.node if id(node) not in gone]
    copies = [_copy(node) for node in nodes]
    for name in sorted(shown & outputs):  # an output must be made by a node
        tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
        tensor.name = f"bnfold constant: {name}"
        if name in beside:
            beside[tensor.name] = beside.pop(name)
        for copy in copies:
            for index, read in enumerate(copy.input):
                copy.input[index] = tensor.name if read == name else read
        copies.append(onnx.helper.make_node("Identity", [tensor.name], [name]))
    del graph.node[:]
    graph.node.extend(copies)
    used = set().union(*map(reads, copies)) | shown
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return Model(model.proto, {name: array for name, array in {**model.beside, **beside}.items() if name in used})


def _is_large(value: Array) -> bool:
    return value.nbytes >= LARGE and onnx.helper.np_dtype_to_tensor_dtype(value.dtype) in PLAIN


def _computed(model: Model, fixed: list[NodeProto], wanted: list[str]) -> dict[str, Array]:
    """Constants; what is float16 is computed, and stored so, before anything reads it.

    Raises: CannotRun.
    """
    types = element_types(model)
    stages: list[list[str]] = []
    stage_of: dict[str, int] = {}
    for node in fixed:
        stage = max((stage_of.get(name, 0) for name in reads(node)), default=0)
        for name in node.output:
            stage_of[name] = stage
            if types.get(name) == SHORT and node.op_type != "Constant":
                stages += [[] for _ in range(stage + 1 - len(stages))]
                stages[stage].append(name)
                stage_of[name] = stage + 1
    values: dict[str, Array] = {}
    for names in [*stages, wanted]:
        made = [name for name in names if name not in values]
        if made:
            given = {name: types[name] for name in values}
            runner = Runner(cut_model(model, given, made), made)
            values |= runner.run({CUT + name: value for name, value in values.items()})
    return {name: values[name] for name in wanted}


def _plain(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _constant_nodes(nodes: list[NodeProto]) -> dict[str, Array]:
    return {
        node.output[0]: numpy_helper.to_array(attribute.t)
        for node in nodes if node.op_type == "Constant"
        for attribute in node.attribute if attribute.name == "value"
    }  # fmt: skip


def weights(model: Model) -> dict[str, Array]:
    """The float initializers that are weights: those that a rounding would move."""
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting = [name for node in model.graph.node if node.op_type in WEIGHTED for name in node.input]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name in makers and makers[name].op_type in MOVERS:
            waiting.append(makers[name].input[0])
    tensors = (tensor for tensor in model.graph.initializer if tensor.data_type in ULP)
    return {tensor.name: model.read(tensor) for tensor in tensors if tensor.name in found}


def moved(name: str, weight: Array, seed: int) -> Array:
    """A weight, every number one unit in the last place up or down (0 stays), of its stored type."""
    rng = np.random.default_rng([seed, *name.encode()])
    flat = np.ascontiguousarray(weight).ravel()
    result: Array = flat.copy()
    bits = result.view(f"i{flat.itemsize}")  # the next number is the next integer
    for start in range(0, flat.size, BLOCK):
        part, place = flat[start : start + BLOCK], slice(start, start + BLOCK)
        away = np.unpackbits(np.frombuffer(rng.bytes(-(-part.size // 8)), np.uint8), count=part.size)
        bits[place] += 2 * away.astype(np.int8) - 1
        with np.errstate(invalid="ignore"):
            stays = (part == 0) | ~np.isfinite(part) | ~np.isfinite(result[place])
        np.copyto(result[place], part, where=stays)
    return np.asarray(result.reshape(weight.shape))
