"""Small nets without BN in ONNX's text, and what an insertion has to leave as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper
from onnx.parser import parse_model

Array = np.ndarray[Any, Any]

SAMPLES = 96


def weight(*shape: int, seed: int = 0) -> Array:
    """Numbers around 0 whose products stay of size one."""
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def vector(size: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def net(text: str, opset: int = 17, ir_version: int = 8, **tensors: Array) -> ModelProto:
    """The model `agraph TEXT` with these initializers."""
    opsets = f'"": {opset}' + (', "com.microsoft": 1' if "com.microsoft" in text else "")
    model = parse_model(f"<ir_version: {ir_version}, opset_import: [{opsets}]> agraph {text}")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items())
    if ir_version < 4:
        known = {info.name for info in model.graph.input}
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            for tensor in model.graph.initializer
            if tensor.name not in known
        )
    return model


def inputs_of(model: ModelProto, count: int = SAMPLES, seed: int = 2) -> dict[str, Array]:
    """Random samples, not around 0."""
    rng, initial = np.random.default_rng(seed), {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        if info.name in initial:
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        shape = [dim.dim_value or count for dim in info.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape) + 0.5
        feeds[info.name] = (array > 0 if kind == np.bool_ else array).astype(kind)
    return feeds


def run(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def distance(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    """rms(b - a) / rms(a), the largest over the outputs."""
    assert a.keys() == b.keys()
    worst = 0.0
    for name, expected in a.items():
        x, y = expected.astype(np.float64), b[name].astype(np.float64)
        assert x.shape == y.shape
        worst = max(worst, float(np.sqrt(((y - x) ** 2).mean() / max((x**2).mean(), 1e-30))))
    return worst


def ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def norms(model: ModelProto) -> dict[str, onnx.NodeProto]:
    """The BNs of the main graph by the name of what they make."""
    return {node.output[0]: node for node in model.graph.node if node.op_type == "BatchNormalization"}
