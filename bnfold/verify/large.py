"""Models without their large weights: what takes seconds to serialise, and is of no use to shape inference.

ONNX Runtime is given the weights beside the model, as arrays, which for a model with a data file are ranges of the
mapped file. So a model may also be larger than the 2 GiB that one protobuf message can hold, and no session has a copy
of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, StringStringEntryProto, TensorProto, numpy_helper

from bnfold.constants import Array
from bnfold.model_file import LoadedModel
from bnfold.wire import tensors

# Bytes from which on a weight is large. Shape inference reads smaller ones (shapes, axes).
LARGE = 1 << 16
# What ONNX Runtime takes as numpy arrays.
PLAIN = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32,
         TensorProto.INT8, TensorProto.UINT8)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model and its large weights.

    Attributes:
        proto: it refers to them as external data, in a file that there needn't be.
        beside: they, by their names.
    """

    proto: ModelProto
    beside: Mapping[str, Array]

    @property
    def graph(self) -> GraphProto:
        """The main graph."""
        return self.proto.graph

    def read(self, tensor: TensorProto) -> Array:
        """The content of an initializer."""
        return self.beside[tensor.name] if tensor.name in self.beside else numpy_helper.to_array(tensor)


def opened(model: LoadedModel) -> Model:
    """A model of any size; what is in a mapped file stays there, if it is aligned.

    Raises: ExternalDataError if tensors are out of reach.
    """
    weights = model.weights

    def read(tensor: TensorProto) -> Array | None:
        if weights.nbytes(tensor) < LARGE:
            return None
        return np.require(weights.read(tensor), requirements=["C", "A"])

    found = _parted(model.proto, read)
    for tensor, _ in tensors(found.proto):
        if source := weights.source(tensor):
            tensor.raw_data = b"".join(source.blocks())
    return found


def parted(model: ModelProto) -> Model:
    """A model that is in memory."""
    return _parted(model, lambda tensor: numpy_helper.to_array(tensor) if len(tensor.raw_data) >= LARGE else None)


def _parted(model: ModelProto, read: Callable[[TensorProto], Array | None]) -> Model:
    """Those that nothing reads are left out: ONNX Runtime would look for them in vain."""
    from bnfold.verify.runtime import reads

    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    beside: dict[str, Array] = {}
    used = set().union(*map(reads, model.graph.node), (info.name for info in model.graph.output))
    for tensor in model.graph.initializer:
        array = read(tensor) if tensor.data_type in PLAIN else None
        if array is None:
            graph.initializer.append(tensor)
        elif tensor.name in used:
            beside[tensor.name] = array
            graph.initializer.append(reference(tensor.name, tensor.data_type, array.shape))
    return Model(light, beside)


def reference(name: str, data_type: int, shape: tuple[int, ...]) -> TensorProto:
    """What stands for a large weight in a proto."""
    return TensorProto(
        name=name, data_type=data_type, dims=shape, data_location=TensorProto.EXTERNAL,
        external_data=[StringStringEntryProto(key="location", value="beside")],
    )  # fmt: skip
