"""Models without their large weights: what takes seconds to serialise, and is of no use to shape inference.

ONNX Runtime is given the weights beside the model, as arrays. So a model may also be larger than the 2 GiB that one
protobuf message can hold.
"""

from __future__ import annotations

from onnx import ModelProto, StringStringEntryProto, TensorProto

# Bytes from which on a weight is large. Shape inference reads smaller ones (shapes, axes).
LARGE = 1 << 16
# What ONNX Runtime takes as numpy arrays.
PLAIN = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32,
         TensorProto.INT8, TensorProto.UINT8)  # fmt: skip


def without_large(model: ModelProto) -> tuple[ModelProto, list[TensorProto]]:
    """A copy whose large initializers are references to a file that there needn't be; and these, in their order.

    Those that nothing reads are left out: ONNX Runtime would look for them in vain.
    """
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
    large = []
    read = set().union(*map(reads, model.graph.node), (info.name for info in model.graph.output))
    for tensor in model.graph.initializer:
        if tensor.data_type not in PLAIN or len(tensor.raw_data) < LARGE:
            graph.initializer.append(tensor)
            continue
        if tensor.name not in read:
            continue
        large.append(tensor)
        graph.initializer.append(
            TensorProto(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=TensorProto.EXTERNAL,
                external_data=[StringStringEntryProto(key="location", value="beside")],
            )
        )  # fmt: skip
    return light, large
