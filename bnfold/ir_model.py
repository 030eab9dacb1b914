"""An `onnx_ir.Model` as what bnfold works on, and back, with its tensors by reference.

The structure goes through a ModelProto, which is small: in the place of a large tensor it has a token
(`bnfold.weights`) behind which the tensor itself stands.  So nothing of it is copied, and a tensor that nobody changed
comes back as the same object, be it an array, torch's, or a range of a file that onnx_ir has mapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from bnfold.errors import ModelError
from bnfold.model_file import LoadedModel, wrap
from bnfold.verify.runtime import first_line
from bnfold.weights import LARGE, Array, Held, Stored, Weights, bits_of

if TYPE_CHECKING:
    import onnx_ir as ir

# A range of a file: its path, offset and size.
Range = tuple[str, int, int]


def opened(model: ir.Model) -> tuple[LoadedModel, Callable[[LoadedModel], ir.Model]]:
    """The model (it isn't changed), and what makes an onnx_ir.Model of an edited one.

    Raises: ModelError where its tensors can't be had.
    """
    import onnx_ir as ir

    weights, externals, small = Weights(), dict[Range, Any](), list[Any]()
    sources: dict[int, Held] = {}  # tied weights stay tied

    def stand_in(tensor: Any) -> Any:
        if isinstance(tensor, ir.ExternalTensor):  # bnfold maps the file itself, and looks where it leads
            externals.setdefault(_range_of(tensor), tensor)
        elif _is_large(tensor):
            source = sources.setdefault(id(tensor), Held(tensor.nbytes, False, tensor, _reader(tensor)))
            return _stand_in(tensor, weights.token(source))
        else:
            small.append(tensor)
        return tensor

    try:
        copy = model.clone()  # of the structure: tensors are shared
    except (ValueError, RuntimeError) as error:  # its own wrap where it happened around what happened
        raise ModelError(f"onnx_ir can't copy it: {first_line(_cause(error))}") from error
    _replace(copy, stand_in)
    loaded = wrap(ir.to_proto(copy), _data_folder(externals.values()), weights)
    known = externals | {ir.serde.serialize_tensor(tensor).SerializeToString(): tensor for tensor in small}
    return loaded, lambda edited: _given_back(edited, known)


def _cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _cause(error.__cause__)


def _given_back(edited: LoadedModel, known: dict[Any, Any]) -> ir.Model:
    """An onnx_ir.Model; `known` are tensors by where they are, small ones by what they are."""
    import onnx_ir as ir

    def original(tensor: Any) -> Any:
        is_raw = isinstance(tensor, ir.serde.TensorProtoTensor)  # all but strings
        raw = tensor.raw if is_raw else ir.serde.serialize_tensor(tensor)
        source = edited.weights.source(raw)
        if source is None:
            return known.get(raw.SerializeToString(), tensor)
        if isinstance(source, Held):
            return source.owner
        if isinstance(source, Stored) and (unchanged := known.get(_range_of_source(source))) is not None:
            return unchanged
        return ir.Tensor(edited.weights.read(raw), ir.DataType(raw.data_type), name=raw.name)

    model = ir.from_proto(edited.copy().proto)
    _replace(model, original)
    return model


def _replace(model: ir.Model, new: Callable[[Any], Any]) -> None:
    """Put a new tensor in the place of each, in initializers and attributes, bodies and functions included."""
    import onnx_ir as ir

    for graph in _graphs(model):
        for value in getattr(graph, "initializers", {}).values():
            if value.const_value is not None:
                value.const_value = new(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    tensor = new(attribute.value)
                    if tensor is not attribute.value:
                        node.attributes[name] = ir.Attr(name, attribute.type, tensor, attribute.doc_string)


def _graphs(model: ir.Model) -> Iterator[Any]:
    """Every graph and function, bodies included."""
    roots: list[Any] = [model.graph, *model.functions.values()]
    for root in roots:
        yield root
        yield from root.subgraphs()


def _is_large(tensor: Any) -> bool:
    """Whether it is worth a token, and has bytes."""
    return bits_of(tensor.dtype.value) is not None and tensor.nbytes >= LARGE


def _reader(tensor: Any) -> Callable[[], Array]:
    def read() -> Array:
        is_packed = (bits_of(tensor.dtype.value) or 1) % 8
        return np.frombuffer(tensor.tobytes(), np.uint8) if is_packed else np.asarray(tensor.numpy())

    return read


def _stand_in(tensor: Any, token: bytes) -> Any:
    """A tensor of the same name, type and shape whose bytes are a token."""
    import onnx_ir as ir

    raw = TensorProto(dims=tensor.shape.numpy(), data_type=tensor.dtype.value, raw_data=token)
    raw.name, raw.doc_string = tensor.name or "", tensor.doc_string or ""
    for key, value in tensor.metadata_props.items():
        raw.metadata_props.add(key=key, value=value)
    return ir.serde.TensorProtoTensor(raw)


# -- external data ----------------------------------------------------------------------------------


def _range_of(tensor: Any) -> Range:
    return os.path.realpath(tensor.path), tensor.offset or 0, tensor.nbytes


def _range_of_source(source: Stored) -> Range:
    return os.path.realpath(source.file.path), source.offset, source.nbytes


def _data_folder(tensors: Any) -> str | None:
    """The folder of a model's external tensors, None if it has none."""
    folders = {os.fsdecode(tensor.base_dir) for tensor in tensors}
    if len(folders) > 1:
        raise ModelError("its external data is in several folders; save it to one file and give the path of that")
    # The tensors say '' where they mean the current folder.
    return next((folder or os.curdir for folder in folders), None)
