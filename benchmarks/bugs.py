"""What tools do to models, right and wrong: the pairs that `verdicts.py` asks about.

Right transformations keep the function. Bugs are those that folding BatchNorm goes wrong by; each is put into the
original, which is then folded: what comes out is what a tool with that bug would write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Edit = Callable[[ModelProto, np.random.Generator], bool]


def resaved(model: ModelProto, _: np.random.Generator) -> bool:
    """Weights as lists of numbers instead of bytes."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.raw_data:
            values = numpy_helper.to_array(tensor).ravel().tolist()
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values)
    return True


def renamed(model: ModelProto, _: np.random.Generator) -> bool:
    """Every node and inner value by another name, and nodes with bodies left alone."""
    graph = model.graph
    if any(attribute.type in (5, 10) for node in graph.node for attribute in node.attribute) or model.functions:
        return False
    fixed = {info.name for info in (*graph.input, *graph.output)} | {""}
    names: dict[str, str] = {}
    for index, name in enumerate(sorted({n for node in graph.node for n in (*node.input, *node.output)} - fixed)):
        names[name] = f"v{index}"
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    del graph.value_info[:]
    for index, node in enumerate(graph.node):
        node.name = f"n{index}"
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    return True


def constants(model: ModelProto, _: np.random.Generator) -> bool:
    """Initializers as Constant nodes."""
    shown = {info.name for info in model.graph.input}
    moved = [tensor for tensor in model.graph.initializer if tensor.name not in shown]
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in moved]
    kept = [tensor for tensor in model.graph.initializer if tensor.name in shown]
    rest = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend([*nodes, *rest])
    return bool(nodes)


def channels_last(model: ModelProto, _: np.random.Generator) -> bool:
    """Relu and pooling-free elementwise ops between two Transposes: values in NHWC."""
    nodes, count = [], 0
    for node in model.graph.node:
        if node.op_type not in ("Relu", "Sigmoid") or not _rank_4(model, node.input[0]):
            nodes.append(node)
            continue
        count += 1
        inner, outer = f"{node.output[0]} nhwc in", f"{node.output[0]} nhwc"
        nodes.append(helper.make_node("Transpose", [node.input[0]], [inner], perm=[0, 2, 3, 1]))
        nodes.append(helper.make_node(node.op_type, [inner], [outer]))
        nodes.append(helper.make_node("Transpose", [outer], [node.output[0]], perm=[0, 3, 1, 2]))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return count > 0


def _rank_4(model: ModelProto, name: str) -> bool:
    makers = {output: node for node in model.graph.node for output in node.output}
    node = makers.get(name)
    while node is not None and node.op_type in ("BatchNormalization", "Relu"):
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "Conv" and len(_array(model, node.input[1], np.zeros(0)).shape) == 4


RIGHT: dict[str, Edit] = {
    "re-saved": resaved, "renamed": renamed, "Constant nodes": constants, "channels last": channels_last,
}  # fmt: skip


# -- bugs -------------------------------------------------------------------------------------------


def norms(model: ModelProto) -> list[NodeProto]:
    """BatchNorm nodes whose parameters are initializers, that have a Conv or Gemm before them where there are such."""
    tensors = {tensor.name for tensor in model.graph.initializer}
    found = [
        node for node in model.graph.node
        if node.op_type == "BatchNormalization" and set(node.input[1:5]) <= tensors
    ]  # fmt: skip
    linear = {n.output[0] for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")}
    return [node for node in found if node.input[0] in linear] or found


def _array(model: ModelProto, name: str, default: Any = None) -> Any:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    return default


def _set(model: ModelProto, node: NodeProto, position: int, values: Any) -> bool:
    """Give a node its own tensor; whether that is a change at all."""
    old = _array(model, node.input[position])
    new = np.asarray(values, old.dtype)
    if np.array_equal(old, new):
        return False
    name = f"{node.input[position]} of {node.output[0]}"
    model.graph.initializer.append(numpy_helper.from_array(new, name))
    if model.ir_version < 4:  # there an initializer has to be an input
        model.graph.input.append(helper.make_tensor_value_info(name, model.graph.initializer[-1].data_type, new.shape))
    node.input[position] = name
    return True


def _of_norm(place: float, change: Callable[..., tuple[int, Any]]) -> Edit:
    """A bug in one BatchNorm: `change` gives the input it concerns (1 scale, 2 bias, 3 mean, 4 variance) and values."""

    def edit(model: ModelProto, rng: np.random.Generator) -> bool:
        found = norms(model)
        if not found:
            return False
        node = found[min(int(place * len(found)), len(found) - 1)]
        arrays = [_array(model, name).astype(np.float64) for name in node.input[1:5]]
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        return _set(model, node, *change(*arrays, epsilon, rng))

    return edit


def _one_channel(factor: float, place: float) -> Edit:
    def change(gamma: Any, _beta: Any, _mean: Any, variance: Any, epsilon: float, rng: np.random.Generator) -> Any:
        gain = np.abs(gamma) / np.sqrt(variance + epsilon)
        strong = np.argsort(gain)[len(gain) // 2 :]  # a channel that is alive
        values = gamma.copy()
        values[rng.choice(strong)] *= 1 + factor
        return 1, values

    return _of_norm(place, change)


def _epsilon(new: float, every: bool) -> Edit:
    def edit(model: ModelProto, _: np.random.Generator) -> bool:
        found = norms(model)
        for node in found if every else found[len(found) // 2 : len(found) // 2 + 1]:
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            variance = _array(model, node.input[4]).astype(np.float64)
            # What is stored makes up for the change of epsilon, wherever that is above 0.
            other = new
            if other == epsilon:
                other = 1e-3
            if not _set(model, node, 4, np.maximum(variance + other - epsilon, 1e-12)):
                return False
        return bool(found)

    return edit


def _of_weight(change: Callable[[Any, np.random.Generator], Any]) -> Edit:
    """A bug in the weight of the linear node in the middle."""

    def edit(model: ModelProto, rng: np.random.Generator) -> bool:
        found = [
            node for node in model.graph.node
            if node.op_type in ("Conv", "Gemm", "ConvTranspose") and _array(model, node.input[1]) is not None
        ]  # fmt: skip
        if not found:
            return False
        node = found[len(found) // 2]
        return _set(model, node, 1, change(_array(model, node.input[1]), rng))

    return edit


def _bit(position: int) -> Edit:
    def change(weight: Any, rng: np.random.Generator) -> Any:
        if weight.dtype != np.float32:
            return weight
        flat = weight.copy().ravel()
        index = rng.choice(np.argsort(np.abs(flat))[len(flat) // 2 :])
        flat[index : index + 1].view(np.uint32)[:] ^= np.uint32(1 << position)
        return flat.reshape(weight.shape)

    return _of_weight(change)


def _low_bits(weight: Any, _: np.random.Generator) -> Any:
    if weight.dtype != np.float32:
        return weight
    return (np.ascontiguousarray(weight).view(np.uint32) & np.uint32(0xFFFFFFF0)).view(np.float32)


def _swapped(weight: Any, _: np.random.Generator) -> Any:
    order = np.arange(len(weight))
    order[:2] = order[:2][::-1]
    return weight[order]


def _bias_dropped(model: ModelProto, rng: np.random.Generator) -> bool:
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "ConvTranspose") and len(node.input) > 2 and node.input[2]:
            bias = _array(model, node.input[2])
            if bias is not None and bias.any():
                return _set(model, node, 2, np.zeros_like(bias))
    return _of_norm(0.5, lambda g, beta, m, v, e, r: (2, np.zeros_like(beta)))(model, rng)


def _groups_mixed(model: ModelProto, _: np.random.Generator) -> bool:
    for node in model.graph.node:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        weight = _array(model, node.input[1]) if node.op_type in ("Conv", "ConvTranspose") else None
        if weight is not None and groups > 1:
            return _set(model, node, 1, np.roll(weight, len(weight) // groups, axis=0))
    return False


def _border(model: ModelProto, _: np.random.Generator) -> bool:
    """A shift moved through zero padding: the border sees it, nothing else does."""
    for node in model.graph.node:
        pads = next((list(a.ints) for a in node.attribute if a.name == "pads"), [])
        if node.op_type == "Conv" and len(pads) == 4 and any(pads):
            half = len(pads) // 2
            widths = numpy_helper.from_array(np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64), "bug widths")
            dtype = _array(model, node.input[1], np.zeros(0, np.float32)).dtype
            value = numpy_helper.from_array(np.array(0.01, dtype), "bug value")
            model.graph.initializer.extend([widths, value])
            opset = next(entry.version for entry in model.opset_import if not entry.domain)
            if opset < 11:
                return False
            position = next(i for i, other in enumerate(model.graph.node) if other.output[0] == node.output[0])
            padding = helper.make_node("Pad", [node.input[0], "bug widths", "bug value"], ["bug padded"])
            node.input[0] = "bug padded"
            for attribute in node.attribute:
                if attribute.name == "pads":
                    attribute.ints[:] = [0] * len(pads)
            model.graph.node.insert(position, padding)
            return True
    return False


BUGS: dict[str, Edit] = {
    "eps ignored, all BN": _epsilon(0.0, True),
    "eps ignored, one BN": _epsilon(0.0, False),
    "eps 1e-5 for 1e-3": _epsilon(1e-5, False),
    "one channel × (1+1e-3)": _one_channel(1e-3, 0.5),
    "one channel × (1+1e-4)": _one_channel(1e-4, 0.5),
    "one channel × (1+1e-5)": _one_channel(1e-5, 0.5),
    "one channel × (1+1e-5), last BN": _one_channel(1e-5, 1.0),
    "sqrt forgotten": _of_norm(0.5, lambda g, b, m, v, e, r: (1, g / np.sqrt(v + e))),
    "mean's sign": _of_norm(0.5, lambda g, b, m, v, e, r: (3, -m)),
    "mean stale by 0.1 % of std": _of_norm(0.5, lambda g, b, m, v, e, r: (3, m + 1e-3 * np.sqrt(v + e))),
    "bias dropped": _bias_dropped,
    "channels swapped": _of_weight(_swapped),
    "groups mixed": _groups_mixed,
    "shift at a padded border": _border,
    "layer through fp16": _of_weight(lambda w, r: w.astype(np.float16).astype(w.dtype)),
    "4 low bits of a layer": _of_weight(_low_bits),
    "bit 22 of one weight": _bit(22),
    "bit 18 of one weight": _bit(18),
    "bit 14 of one weight": _bit(14),
    "bit 11 of one weight": _bit(11),
}
"""The bugs that have to be found."""

BELOW: dict[str, Edit] = {
    "one channel × (1+1e-6)": _one_channel(1e-6, 0.5),
    "bit 8 of one weight": _bit(8),
    "bit 5 of one weight": _bit(5),
    "bit 2 of one weight": _bit(2),
}
"""Those near or below the floor: what is found of them is told apart."""


def edited(model: ModelProto, edit: Edit, seed: int) -> ModelProto | None:
    """A copy with an edit, None if there is nothing to apply it to."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy if edit(copy, np.random.default_rng(seed)) else None


def variants(model: ModelProto, edits: dict[str, Edit], seed: int) -> Iterator[tuple[str, ModelProto]]:
    """Every edit that there is something to apply to."""
    for name, edit in edits.items():
        copy = edited(model, edit, seed)
        if copy is not None:
            yield name, copy
