"""A model in float64, run by ONNX's reference evaluator: the referee of every comparison.

Where the evaluator is known to be wrong it is put right here: BatchNormalization of opsets 7 to 13 mixes batch
statistics in, ConvTranspose mixes groups up (onnx 1.23).  Both were found by comparing with ONNX Runtime.  Local
functions are inlined, since it doesn't use what is put right in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

ULP: dict[int, float] = {TensorProto.FLOAT: 2.0**-23, TensorProto.FLOAT16: 2.0**-10, TensorProto.BFLOAT16: 2.0**-7,
       TensorProto.DOUBLE: 2.0**-52}  # fmt: skip
"""Distance of 1 to the next number, by ONNX element type."""


def run_float64(model: ModelProto, feeds: Feeds) -> dict[str, Array]:
    """The outputs of ``as_float64(model)`` on ONNX's reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(as_float64(model), new_ops=[_batch_normalization(), _conv_transpose()])
    wide = {k: v.astype(float) if v.dtype.kind == "f" or v.dtype.name == "bfloat16" else v for k, v in feeds.items()}
    with np.errstate(all="ignore"):
        return dict(zip((o.name for o in model.graph.output), evaluator.run(None, wide), strict=True))


def _batch_normalization() -> Any:
    """BatchNormalization of every opset.  The evaluator's own of opsets 7 to 13 mixes batch statistics in."""
    from onnx.reference.op_run import OpRun

    class BatchNormalization(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Array, scale: Array, bias: Array, mean: Array, var: Array, epsilon: float | None = None,
                 is_test: int | None = None, momentum: float | None = None, spatial: int | None = None,
                 training_mode: int | None = None, consumed_inputs: Any = None) -> tuple[Array, ...]:  # fmt: skip
            channel = (1, *x.shape[1:2], *(1,) * (x.ndim - 2)) if spatial != 0 else (1, *x.shape[1:])
            eps = np.float32(1e-5 if epsilon is None else epsilon)  # an attribute is a float32
            statistics = (mean, var)
            if training_mode or (self.run_params["opsets"][""] < 7 and not is_test):
                axes = tuple(i for i in range(x.ndim) if i != 1)
                statistics = (x.mean(axes), x.var(axes))
            used = [a.reshape(channel) for a in (scale, bias, *statistics)]
            y = used[0] * (x - used[2]) / np.sqrt(used[3] + eps) + used[1]
            keep = 0.9 if momentum is None else momentum
            running = [keep * old + (1 - keep) * new for old, new in zip((mean, var), statistics, strict=True)]
            return (y, *running)[: max(1, len(self.onnx_node.output))]

    return BatchNormalization


def _conv_transpose() -> Any:
    """ConvTranspose with groups, which the evaluator's own gets wrong."""
    from onnx.reference.op_run import OpRun

    class ConvTranspose(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: Array, w: Array, b: Array | None = None, auto_pad: Any = None, dilations: Any = None,
                 group: int | None = None, kernel_shape: Any = None, output_padding: Any = None,
                 output_shape: Any = None, pads: Any = None, strides: Any = None) -> tuple[Array]:  # fmt: skip
            assert auto_pad in (None, "NOTSET") and output_shape is None, "not needed by any probe"
            assert x.shape[1] == w.shape[0], "one channel would be broadcast to several"
            rank, groups = x.ndim - 2, group or 1
            strides, dilations = strides or [1] * rank, dilations or [1] * rank
            pads, extra = pads or [0] * 2 * rank, output_padding or [0] * rank
            space = zip(x.shape[2:], w.shape[2:], strides, dilations, extra, strict=True)
            size = [(n - 1) * s + (k - 1) * d + 1 + e for n, k, s, d, e in space]
            y = np.zeros((x.shape[0], groups, w.shape[1], *size))
            taps = w.reshape(groups, -1, *w.shape[1:])
            source = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
            for tap in np.ndindex(*w.shape[2:]):  # every tap adds the input, seen through it, at its own offset
                weight = np.moveaxis(taps, (0, 1, 2), (-3, -2, -1))[tap]
                steps = zip(tap, dilations, x.shape[2:], strides, strict=True)
                at: Any = (..., *(slice(t * d, t * d + n * s, s) for t, d, n, s in steps))
                y[at] += np.einsum("ngi...,gio->ngo...", source, weight)
            ends = zip(pads[:rank], size, pads[rank:], strict=True)
            inner: Any = (..., *(slice(low, n - high) for low, n, high in ends))
            y = y.reshape(x.shape[0], -1, *size)[inner]
            return (y if b is None else y + b.reshape(-1, *(1,) * rank),)

    return ConvTranspose


def as_float64(model: ModelProto) -> ModelProto:
    """A copy in which every float tensor, type and Cast is float64 (integers stay).

    What a model computes from constants alone it still computes in its own type: folded weights are no better
    for being a chain of float16 nodes instead of an initializer.
    """
    import onnx.inliner

    wide = settle_constants(onnx.inliner.inline_local_functions(model) if model.functions else model)
    for tensor in all_tensors(wide):
        if tensor.data_type in ULP:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(float), tensor.name))
    for nodes in (wide.graph.node, *(f.node for f in wide.functions)):
        _widen_nodes(nodes)
    _widen_types(wide.graph)
    return wide


def settle_constants(model: ModelProto, fed: bool = True) -> ModelProto:
    """A copy whose main graph has the values of its expressions of constants as initializers.

    Initializers that are inputs too are none of these, unless nobody is to feed them (``fed=False``).
    Expressions that the evaluator can't compute stay as they are.
    """
    settled = ModelProto()
    settled.CopyFrom(model)
    graph = settled.graph
    values: dict[str, Any] = {t.name: t for t in graph.initializer}
    for value in graph.input if fed else ():
        values.pop(value.name, None)
    rest = []
    for node in graph.node:
        found = _constant_outputs(node, values, model) if all(name in values for name in node.input if name) else None
        if found is None:
            rest.append(node)
        else:
            values.update({tensor.name: tensor for tensor in found})
            graph.initializer.extend(found)
    del graph.node[:]
    graph.node.extend(rest)
    return settled


def _constant_outputs(
    node: NodeProto, values: Mapping[str, TensorProto], model: ModelProto
) -> list[TensorProto] | None:
    from onnx.reference import ReferenceEvaluator

    if list(subgraphs(node)):
        return None
    inputs = {name: values[name] for name in node.input if name}
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    part = onnx.helper.make_graph([node], "constant", [], outputs, list(inputs.values()))
    try:
        with np.errstate(all="ignore"):
            made = onnx.helper.make_model(part, opset_imports=model.opset_import, functions=model.functions)
            computed = ReferenceEvaluator(made, new_ops=[_batch_normalization()]).run(None, {})
    except Exception:  # operators of other domains, or older than the evaluator knows
        return None
    return [numpy_helper.from_array(np.asarray(v), o.name) for v, o in zip(computed, outputs, strict=True)]


def _widen_nodes(nodes: Any) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in ULP:
                attribute.i = TensorProto.DOUBLE
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                values = np.array(attribute.f if attribute.name == "value_float" else attribute.floats, float)
                attribute.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(values)))
        for graph in subgraphs(node):
            _widen_nodes(graph.node)
            _widen_types(graph)


def _widen_types(graph: GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in ULP:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every initializer and tensor attribute, subgraphs and functions included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[TensorProto]:
    for node in nodes:
        yield from (a.t for a in node.attribute if a.type == AttributeProto.TENSOR)
        for graph in subgraphs(node):
            yield from _graph_tensors(graph)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies of If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
