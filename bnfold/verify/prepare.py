"""A model as it is compared: one flat graph whose constants are initializers.

What a model computes from constants alone is computed once, by ONNX Runtime, in the model's own type: a folded
weight is no better for being a chain of nodes than it would be as an initializer, and the rounding of such a chain
is part of what the file computes. That includes the rounding of each float16 step: ONNX Runtime's CPU keeps float32
between float16 nodes, so that an epsilon of 1e-8, which is 0 in float16, would still be there.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from bnfold.constants import Array, finfo
from bnfold.model_file import LoadedModel, to_proto
from bnfold.verify.room import demand_room
from bnfold.verify.runtime import CUT, CannotRun, Runner, bodies, cut_model, element_types, first_line, reads

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
    LayerNormalization GroupNormalization RMSNormalization Einsum""".split()
)
# What only moves data: a weight behind it is a weight.
MOVERS = frozenset("Transpose Reshape Identity Cast CastLike Unsqueeze Squeeze Flatten Slice Split Expand".split())
RANDOM = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split())


def prepare(model: LoadedModel) -> ModelProto:
    """A copy with local functions inlined and constants computed; initializers are no inputs any more.

    Raises:
        TooLargeError: it is larger than 2 GiB.
        CannotRun: its functions can't be inlined, or it would take more memory than there is.
    """
    proto = to_proto(model)
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
    _settle(proto)
    return proto


def _settle(model: ModelProto) -> None:
    """Replace what depends on no input by initializers, where ONNX Runtime can compute it."""
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    fixed: list[NodeProto] = []
    for node in graph.node:
        if reads(node) <= known and node.op_type not in RANDOM and not any(True for _ in bodies(node)):
            fixed.append(node)
            known.update(node.output)
    if not fixed:
        return
    made = {name for node in fixed for name in node.output if name}
    shown = {info.name for info in graph.output}
    ids = {id(node) for node in fixed}
    rest = [node for node in graph.node if id(node) not in ids]
    wanted = sorted((set().union(*(reads(node) for node in rest)) | shown) & made)
    try:
        values = _computed(model, fixed, wanted)
    except CannotRun:  # a type without kernels: Constant nodes at least need none
        values = _constant_nodes(fixed)
    tensors = {name: numpy_helper.from_array(value, name) for name, value in values.items() if _plain(value)}
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
        for copy in copies:
            for index, read in enumerate(copy.input):
                copy.input[index] = tensor.name if read == name else read
        copies.append(onnx.helper.make_node("Identity", [tensor.name], [name]))
    del graph.node[:]
    graph.node.extend(copies)


def _computed(model: ModelProto, fixed: list[NodeProto], wanted: list[str]) -> dict[str, Array]:
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


def weights(model: ModelProto) -> dict[str, TensorProto]:
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
    return {tensor.name: tensor for tensor in tensors if tensor.name in found}


def moved(tensor: TensorProto, seed: int) -> Array:
    """A weight, every number one unit in the last place up or down (0 stays), of its stored type."""
    array = numpy_helper.to_array(tensor)
    rng = np.random.default_rng([seed, *tensor.name.encode()])
    away = np.where(rng.integers(0, 2, array.shape) == 1, np.inf, -np.inf).astype(array.dtype)
    return np.asarray(np.where(array == 0, array, np.nextafter(array, away)), array.dtype)
