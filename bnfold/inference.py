"""ONNX's shape inference, kept from ending the process.

A window larger than its input gives a negative size, and a Slice of one is a failed assertion inside the onnx library:
the process aborts, and no `except` helps.  The model need not be at fault: `shapes` tries small sizes on purpose.  So
Slices below ops with windows are hidden from inference at first, and shown as soon as the sizes above them are known
and none is negative.

Nor from filling the memory: with data propagation it follows the contents of small vectors through the graph, and of
a vector that is concatenated with itself sixty times it would write down every element.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from bnfold.graph import Container, bodies_of

# Ops whose output may be smaller than nothing.
WINDOWS = frozenset(
    """AveragePool CenterCropPad Conv ConvInteger ConvTranspose DeformConv LpPool MaxPool MaxUnpool Pad
    QLinearConv""".split()
)
# Elements of a vector whose contents are followed; those of shapes have a handful.
LONGEST_VECTOR = 1 << 16
PADDED = frozenset({"AveragePool", "Conv", "LpPool", "MaxPool"})  # those whose attributes tell
HIDDEN = "HiddenSlice"  # no op of ONNX: inference passes it by
UNKNOWN = -1  # all bits: windows inside of bodies and functions, whose sizes nobody tells


@dataclass(frozen=True)
class _Window:
    """An output of an op with a window, and the Slices above it, as bits."""

    name: str
    slices: int


@dataclass(frozen=True)
class _Slice:
    """A Slice, its own bit, and the windows above it, as bits."""

    node: NodeProto
    bit: int
    windows: int


def infer_shapes(model: ModelProto, settled: set[str] | None = None, guess: bool = True) -> ModelProto:
    """A copy of the model with its shapes and types, as far as ONNX's inference gets; the model itself if it fails.

    Negative sizes of inputs, by which some exporters mean unknown ones, are cleared in the model.

    Args:
        model: to infer.
        settled: outputs of Slices above which all sizes are known, by an earlier call for the same model with the same
            sizes of inputs: they need no passes again. Those of this call are added.
        guess: whether Slices are shown below sizes that stay unknown, too: a pass for each in a row.
    """
    settled = set() if settled is None else settled
    for info in model.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.Clear()
    windows, hidden = _doubtful(model)
    hidden = [each for each in hidden if each.node.output[0] not in settled]
    for each in hidden:
        each.node.op_type = HIDDEN
    try:
        while True:
            inferred = _inferred(model)
            known, sound = _sound(inferred, windows, hidden) if hidden else (0, 0)
            shown = [each for each in hidden if not each.windows & ~(sound if guess else known)]
            if not shown:
                return inferred
            settled.update(each.node.output[0] for each in shown if not each.windows & ~known)
            for each in shown:
                each.node.op_type = "Slice"
            hidden = [each for each in hidden if each not in shown]
    finally:
        for each in hidden:
            each.node.op_type = "Slice"


def hides(inferred: ModelProto) -> bool:
    """Whether Slices have been left out of what was inferred."""
    return any(node.op_type == HIDDEN for node in (*inferred.graph.node, *_inside(inferred.graph.node)))


def _inferred(model: ModelProto) -> ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=_stays_small(model))
    except Exception:  # inference is best effort: what stays unknown is simply not folded through
        return model


def _doubtful(model: ModelProto) -> tuple[list[_Window], list[_Slice]]:
    """The windows of the main graph, and the Slices below any, there or inside of bodies and functions."""
    windows: list[_Window] = []
    slices: list[_Slice] = []
    inner = [*_inside(model.graph.node), *(node for f in model.functions for node in (*f.node, *_inside(f.node)))]
    if not any(node.op_type == "Slice" for node in (*model.graph.node, *inner)):
        return windows, slices
    unknown = any(_may_turn_negative(node) for node in inner)
    reached: dict[str, tuple[int, int]] = {}  # bits of the windows and of the Slices above a value
    for node in model.graph.node:
        pairs = [reached[name] for name in node.input if name in reached]
        if node.domain or any(attribute.HasField("g") for attribute in node.attribute):  # whatever it captures
            pairs.append((UNKNOWN if unknown else (1 << len(windows)) - 1, (1 << len(slices)) - 1))
        seen = cut = 0
        for pair in pairs:
            seen, cut = seen | pair[0], cut | pair[1]
        if node.op_type == "Slice" and seen:
            slices.append(_Slice(node, 1 << len(slices), seen))
            cut |= slices[-1].bit
        elif _may_turn_negative(node) and node.output:
            windows.append(_Window(node.output[0], cut))
            seen |= 1 << (len(windows) - 1)
        if seen:
            reached.update(dict.fromkeys(node.output, (seen, cut)))
    everything = UNKNOWN if unknown else (1 << len(windows)) - 1
    for node in inner if everything else ():
        if node.op_type == "Slice":
            slices.append(_Slice(node, 1 << len(slices), everything))
    return windows, slices


def _may_turn_negative(node: NodeProto) -> bool:
    """Whether a size of its output may be below 0 where that of its input is not.

    size' = (size + pads - dilation (kernel - 1) - 1) / stride + 1, rounded down or up: with as much padding as the
    kernel reaches beyond its first tap it is not. Most windows are so, and a hidden Slice costs a pass of inference.
    """
    if node.op_type not in WINDOWS:
        return False
    found = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type not in PADDED or "kernel_shape" not in found:
        return True
    kernel = list(found["kernel_shape"].ints)
    step = list(found["dilations"].ints) if "dilations" in found else [1] * len(kernel)
    pads = list(found["pads"].ints) if "pads" in found else [0] * (2 * len(kernel))
    told = "auto_pad" not in found or found["auto_pad"].s == b"NOTSET"
    if not told or len(step) != len(kernel) or len(pads) != 2 * len(kernel):
        return True
    reach = (d * (k - 1) for d, k in zip(step, kernel, strict=True))
    return any(low + high < far for low, high, far in zip(pads, pads[len(kernel) :], reach, strict=False))


def _inside(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes of the bodies of these nodes."""
    pending = [attribute.g for node in nodes for attribute in node.attribute if attribute.HasField("g")]
    while pending:
        body = pending.pop()
        yield from body.node
        pending += [attribute.g for node in body.node for attribute in node.attribute if attribute.HasField("g")]


def _sound(inferred: ModelProto, windows: list[_Window], hidden: list[_Slice]) -> tuple[int, int]:
    """Bits of the windows of known sizes, and of all that aren't negative, nor become so when Slices are shown."""
    above = sum(each.bit for each in hidden)
    tensors = {info.name: info.type.tensor_type for info in (*inferred.graph.value_info, *inferred.graph.output)}
    told = sound = 0
    for number, window in enumerate(windows):
        tensor = tensors.get(window.name)
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim] if tensor else []
        if any(size is not None and size < 0 for size in sizes):
            continue
        known = bool(sizes) and None not in sizes
        told |= known << number
        sound |= (known or not window.slices & above) << number
    return told, sound


def _stays_small(model: ModelProto) -> bool:
    """Whether no vector can grow beyond `LONGEST_VECTOR` by being concatenated (what else is propagated can't grow)."""
    waiting: list[Container] = [model.graph, *model.functions]
    lengths: dict[str, int] = {}
    while waiting:
        scope = waiting.pop()
        if isinstance(scope, GraphProto):
            lengths.update({tensor.name: tensor.dims[0] for tensor in scope.initializer if len(tensor.dims) == 1})
        for node in scope.node:
            given = [lengths.get(name, 1) for name in node.input]
            given += [a.t.dims[0] for a in node.attribute if a.type == a.TENSOR and len(a.t.dims) == 1]
            length = sum(given) if node.op_type == "Concat" else max(given, default=1)
            if node.op_type == "Concat" and length > LONGEST_VECTOR:
                return False
            if length > 1:
                lengths.update(dict.fromkeys(node.output, length))
            waiting.extend(body for attribute in node.attribute for body in bodies_of(attribute))
    return True
