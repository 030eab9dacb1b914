"""The rounding noise of a model, measured: its answer to moved weights, and how far off its own kernels are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from onnx import FunctionProto, GraphProto, ModelProto, TensorProto, numpy_helper

from bnfold.constants import VIEWS, Array
from bnfold.fold.union_find import Floats
from bnfold.model_file import LoadedModel
from bnfold.verify.prepare import prepare
from bnfold.verify.runtime import CannotRun
from bnfold.verify.sides import Side

# Inputs of these ops that are weights; others (bounds, exponents, shapes) are settings, and moving them is no rounding.
WEIGHTED = frozenset(
    """Conv ConvTranspose Gemm MatMul BatchNormalization Mul Add Sub Div PRelu LSTM GRU RNN InstanceNormalization
    LayerNormalization GroupNormalization""".split()
)


def moved(model: ModelProto, seed: int, biases: Collection[str] = ()) -> ModelProto:
    """The model with every weight one unit in the last place up or down, and int32 biases of these names one step."""
    rng = np.random.default_rng(1000 + seed)
    copy = ModelProto()
    copy.CopyFrom(model)
    for name, tensor in stored_tensors(copy):
        if name in biases:
            array = numpy_helper.to_array(tensor)
            step = rng.choice(np.array([-1, 1], array.dtype), array.shape)
            tensor.CopyFrom(numpy_helper.from_array(array + step, tensor.name))
    for tensor in _weights(copy):
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            continue
        array = numpy_helper.to_array(tensor)
        up = rng.integers(0, 2, array.shape).astype(bool)
        away = np.where(up, np.inf, -np.inf).astype(array.dtype)
        tensor.CopyFrom(numpy_helper.from_array(np.where(array == 0, array, np.nextafter(array, away)), tensor.name))
    return copy


def _weights(model: ModelProto) -> Iterator[TensorProto]:
    """Tensors that weights are made of, those of bodies and local functions included."""
    stored = list(stored_tensors(model))
    constants = {name for name, _ in stored}
    names: set[str] = set()
    for node in reversed([node for graph in _graphs(model) for node in graph.node]):
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:  # its integers stay, to the bit
            names.update(node.input[1:2])
        elif node.op_type in WEIGHTED or (node.op_type in VIEWS | {"Cast", "Expand"} and names & set(node.output)):
            names.update(node.input)
    yield from (tensor for name, tensor in stored if name in names)


def stored_tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Initializers, and the tensors of Constant nodes, with the names that they are read by."""
    graphs = _graphs(model)
    for graph in graphs:
        if isinstance(graph, GraphProto):
            yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in (node for graph in graphs for node in graph.node if node.op_type == "Constant"):
        yield from ((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")


def _graphs(model: ModelProto) -> list[GraphProto | FunctionProto]:
    graphs: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    for graph in graphs:  # grows
        graphs += [body for node in graph.node for a in node.attribute for body in (a.g, *a.graphs) if body.node]
    return graphs


def own_errors(
    model: LoadedModel, feeds: Mapping[str, Array], values: Mapping[str, Array], names: Collection[str]
) -> dict[str, Floats]:
    """What the model's own values are off those computed in float64, for those of the names that can be.

    Moved weights don't tell the rounding of a long sum: that of 4096 equal numbers has the same error every time.
    """
    found: dict[str, Floats] = {}
    try:
        side = Side(prepare(model), feeds)
        wanted = [name for name in side.floats if name in names and name in side.double_makers]
        for window in side.walk(wanted, side.double_feeds(feeds)):
            for name, exact in window.items():
                if exact.shape == values[name].shape:
                    with np.errstate(invalid="ignore"):
                        found[name] = values[name].astype(np.float64) - exact
    except CannotRun:  # no float64 form
        pass
    return found
