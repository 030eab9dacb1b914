"""Small nets with BN, and the float64 reference that measured statistics are judged by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from referee import run_float64

Array = np.ndarray[Any, Any]

CHANNELS = 4


def bn(
    source: str, output: str, name: str, parameters: str = "", channels: int = CHANNELS, dtype: Any = np.float32,
    **attributes: Any,
) -> tuple[NodeProto, list[TensorProto]]:  # fmt: skip
    """A BatchNormalization called `name` with random parameters `name.scale` … (or those of `parameters`)."""
    rng = np.random.default_rng(sum(map(ord, name)))
    prefix = parameters or name
    values = {
        "scale": rng.uniform(0.5, 1.5, channels), "bias": rng.normal(size=channels),
        "mean": rng.normal(size=channels), "var": rng.uniform(0.5, 2, channels),
    }  # fmt: skip
    names = [f"{prefix}.{role}" for role in values]
    tensors = [numpy_helper.from_array(v.astype(dtype), n) for n, v in zip(names, values.values(), strict=True)]
    return helper.make_node("BatchNormalization", [source, *names], [output], name, **attributes), tensors


def model_of(
    nodes: Sequence[NodeProto], tensors: Iterable[TensorProto], shape: Sequence[Any], opset: int = 17,
    element_type: int = TensorProto.FLOAT, functions: Sequence[onnx.FunctionProto] = (),
) -> ModelProto:  # fmt: skip
    """x, of this shape, through the nodes to y."""
    x = helper.make_tensor_value_info("x", element_type, shape)
    y = helper.make_tensor_value_info("y", element_type, None)
    unique = {tensor.name: tensor for tensor in tensors}
    graph = helper.make_graph(list(nodes), "g", [x], [y], list(unique.values()))
    domains = sorted({function.domain for function in functions})
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    ir_version = 3 if opset < 9 else 8
    if ir_version == 3:
        graph.input.extend(
            helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)) for name, tensor in unique.items()
        )
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=list(functions))


def conv_net(depth: int = 3, shape: Sequence[Any] = (None, CHANNELS, 6, 6)) -> ModelProto:
    """Conv, BN, Relu `depth` times with a skip over all but the first, with BNs called bn0, bn1 and so on."""
    nodes, tensors, value, first = [], [], "x", ""
    rng = np.random.default_rng(0)
    for k in range(depth):
        weight = rng.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 4
        tensors.append(numpy_helper.from_array(weight, f"w{k}"))
        nodes.append(helper.make_node("Conv", [value, f"w{k}"], [f"c{k}"], f"conv{k}", pads=[1, 1, 1, 1]))
        node, parameters = bn(f"c{k}", f"n{k}", f"bn{k}")
        nodes += [node, helper.make_node("Relu", [f"n{k}"], [f"r{k}"], f"relu{k}")]
        tensors += parameters
        value, first = f"r{k}", first or f"r{k}"
    nodes.append(helper.make_node("Add", [value, first], ["y"], "add"))
    return model_of(nodes, tensors, shape)


def samples(count: int, *shape: int, seed: int = 1, mean: float = 0.5, std: float = 2.0) -> Array:
    rng = np.random.default_rng(seed)
    return (mean + std * rng.standard_normal((count, *shape))).astype(np.float32)


def tensors_of(model: ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def statistics_of(model: ModelProto) -> dict[str, tuple[Array, Array]]:
    """Mean and variance of each BN of the main graph by its name, float64; they have to be initializers."""
    have = tensors_of(model)
    return {
        node.name: (have[node.input[3]].astype(float), have[node.input[4]].astype(float))
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
    }


def with_statistics(model: ModelProto, change: Any) -> ModelProto:
    """A copy whose BNs have the statistics `change(mean, var)`."""
    copy = ModelProto.FromString(model.SerializeToString())
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    for node in copy.graph.node:
        if node.op_type == "BatchNormalization":
            pair = [tensors[name] for name in node.input[3:5]]
            new = change(*(numpy_helper.to_array(tensor).astype(np.float64) for tensor in pair))
            for tensor, content in zip(pair, new, strict=True):
                dtype = numpy_helper.to_array(tensor).dtype
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(content, dtype), tensor.name))
    return copy


def reference(model: ModelProto, batches: Iterable[Array]) -> dict[str, tuple[Array, Array]]:
    """Mean and biased variance of each BN's input by its name: train-mode batches in float64, pooled by numpy."""
    train = ModelProto.FromString(model.SerializeToString())
    norms = [node for node in train.graph.node if node.op_type == "BatchNormalization"]
    del train.graph.output[:]
    for node in norms:
        del node.output[1:]
        node.output.extend([f"{node.name}/m", f"{node.name}/v"])
        node.attribute.extend([helper.make_attribute("training_mode", 1), helper.make_attribute("momentum", 0.0)])
        train.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (node.input[0], *node.output[1:]))
    del train.graph.value_info[:]
    seen: dict[str, list[tuple[int, Array, Array]]] = {node.name: [] for node in norms}
    for batch in batches:
        values = run_float64(train, {train.graph.input[0].name: batch})
        for node in norms:
            count = values[node.input[0]].size // values[node.output[1]].size
            seen[node.name].append((count, values[node.output[1]], values[node.output[2]]))
    return {name: _pooled(parts) for name, parts in seen.items()}


def _pooled(parts: Sequence[tuple[int, Array, Array]]) -> tuple[Array, Array]:
    total = sum(count for count, _, _ in parts)
    mean = sum(count * m for count, m, _ in parts) / total
    return mean, sum(count * (v + (m - mean) ** 2) for count, m, v in parts) / total
