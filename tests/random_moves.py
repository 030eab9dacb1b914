"""The moves of `random_graphs`: each appends one op (or a small motif) to a value, attributes and constants drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from random_graphs import DTYPES, ELEMENT, MAX_ELEMENTS, Builder, Misfit, Value, pick

Move = Callable[[Builder, Value], None]
BLOCKS = ("Sigmoid", "Softmax", "Exp", "Floor")  # no rule: they fix what they touch


def grow(b: Builder) -> None:
    """One or two inputs, then up to nine moves; a move that doesn't fit is passed over."""
    dtype = pick(b.choices, DTYPES)
    size = b.integer(2, 4)
    shapes = [(2, size, 4, 4), (2, size, size, size), (3, size, 5, 3), (2, size, 6), (3, size), (2, 2, 3, 3, 2)]
    b.source(b.pick(shapes), dtype)
    if b.chance(4):
        b.source(b.pick([b.values[0].shape, (1,) * b.values[0].rank, b.pick(shapes)]), dtype)
    if b.chance(8):
        with suppress(Misfit):
            embedding(b, dtype)
    framed = b.chance(2)
    if framed:  # what lies between two linear nodes is free to move
        linear(b, b.values[0])
    for _ in range(b.integer(2, 9)):
        near = b.values[-3:] if b.chance(2) else b.values[-1:]
        with suppress(Misfit):
            b.pick(MOVES)(b, b.pick(b.values if b.chance(3) else near))
    if framed:
        read = {name for node in b.nodes for name in node.input}
        for value in [v for v in b.values if v.name not in read]:
            linear(b, value)


# -- linear -----------------------------------------------------------------------------------------


def linear(b: Builder, x: Value) -> None:
    """Whatever linear node fits."""
    with suppress(Misfit):
        b.pick({2: [gemm, matmul], 3: [conv, matmul, recurrent], 4: [conv, conv, conv, conv_transpose]}
               .get(x.rank, [matmul]))(b, x)  # fmt: skip


def sandwich(b: Builder, x: Value) -> None:
    """Linear, something, BN, linear: a fold that has to find its way through what is between."""
    linear(b, x)
    for _ in range(b.integer(1, 2)):
        with suppress(Misfit):
            b.pick(BETWEEN)(b, b.values[-1])
    batch_norm(b, b.values[-1])
    if b.chance(2):
        with suppress(Misfit):
            b.pick(BETWEEN)(b, b.values[-1])
    linear(b, b.values[-1])


def quantised(b: Builder, x: Value) -> None:
    """A linear node whose weight is integers behind a DequantizeLinear, to the ends of their range, often with a BN."""
    if x.rank not in (2, 4) or x.dtype != "float" or b.opset < 13:
        return
    rows, columns = b.integer(1, 4), x.shape[1]
    low, high, kind = b.pick([(-127, 127, np.int8), (-128, 127, np.int8), (0, 255, np.uint8)])
    integers = b.rng.integers(low, high + 1, (rows, columns, *(1,) * (x.rank - 2))).astype(kind)
    axis, count = b.pick([(0, rows), (0, 1), (1, columns)])
    one = count == 1
    scale = b.constant(np.float32(b.rng.uniform(0.005, 0.02, () if one else count)), b.name("w"))
    zero = b.constant(b.rng.integers(low // 2, high // 2, () if one else count).astype(kind), b.name("w"))
    inputs = [b.constant(integers, b.name("w")), scale, *([zero] if b.chance(2) else [])]
    wide = b.one("DequantizeLinear", *inputs, axis=axis)
    bias = [b.weight((rows,), x.dtype)] if b.chance(2) else []
    if x.rank == 4:
        b.one("Conv", x, wide, *bias)
    else:
        b.one("Gemm", x, wide, *bias, transB=1)
    b.values.remove(wide)
    if b.chance(2):
        batch_norm(b, b.values[-1])


def conv(b: Builder, x: Value) -> None:
    if not 3 <= x.rank <= 5:
        return
    group = b.pick([g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0])
    rows = group * b.integer(1, 2) if b.chance(2) else math.lcm(x.shape[1], group)
    kernel = [b.integer(1, min(3, size)) for size in x.shape[2:]]
    attributes: dict[str, Any] = {"group": group}
    if b.chance(3):
        attributes["strides"] = [b.integer(1, 2) for _ in kernel]
    padding = b.pick(["none", "none", "some", "same", "auto"])
    if padding == "auto":
        attributes["auto_pad"] = b.pick(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif padding == "same":
        attributes["pads"] = [(k - 1) // 2 for k in kernel] + [k // 2 for k in kernel]
    elif padding == "some":
        attributes["pads"] = [b.integer(0, 1) for _ in range(2 * len(kernel))]
    if "auto_pad" not in attributes and b.chance(4):
        attributes["dilations"] = [2 if 2 * k - 1 <= size else 1 for k, size in zip(kernel, x.shape[2:], strict=True)]
    bias = b.pick([[], [""], [b.weight((rows,), x.dtype)]])
    b.one("Conv", x, b.weight((rows, x.shape[1] // group, *kernel), x.dtype), *bias, **attributes)


def conv_transpose(b: Builder, x: Value) -> None:
    if not 3 <= x.rank <= 4:
        return
    group = b.pick([g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0])
    rows = b.integer(1, 2)
    kernel = [b.integer(1, 2) for _ in x.shape[2:]]
    attributes: dict[str, Any] = {"group": group}
    if b.chance(2):
        attributes["strides"] = [2 for _ in kernel]
        attributes["output_padding"] = [b.integer(0, 1) for _ in kernel]
    bias = b.pick([[], [b.weight((rows * group,), x.dtype)]])
    b.one("ConvTranspose", x, b.weight((x.shape[1], rows, *kernel), x.dtype), *bias, **attributes)


def gemm(b: Builder, x: Value) -> None:
    if x.rank != 2:
        return
    across, flipped = b.integer(0, 1), b.chance(4)
    size, count = x.shape[::-1] if not flipped else x.shape
    rows = b.pick([2, 4, size])
    forms: list[Any] = [None, "", (rows,), (1, rows), (1,), (), (count, 1), (count, rows)]
    form = b.pick(forms)
    bias = [] if form is None else [""] if form == "" else [b.weight(form, x.dtype)]
    shape = (rows, size) if across else (size, rows)
    b.one(
        "Gemm", x, b.weight(shape, x.dtype), *bias, transA=int(flipped), transB=across,
        alpha=b.pick([1.0, 1.0, 0.3]), beta=b.pick([1.0, 1.0, -0.5, 0.0]),
    )  # fmt: skip


def matmul(b: Builder, x: Value) -> None:
    if x.rank < 1:
        return
    rows = b.pick([2, 4, x.shape[-1]])
    left = b.chance(3)
    size = x.shape[-2] if left and x.rank > 1 else x.shape[-1]
    heads: tuple[int, ...] = b.pick([(), (), (1,), (x.shape[-3] if x.rank > 2 else 2,)])
    weight = b.weight((*heads, rows, size) if left else (*heads, size, rows), x.dtype)
    y = b.one("MatMul", weight, x) if left else b.one("MatMul", x, weight)
    if b.chance(3) and not left:
        bias = b.weight((rows,), x.dtype)
        b.one("Add", *b.pick([(y, bias), (bias, y)]))


def recurrent(b: Builder, x: Value) -> None:
    if x.rank != 3 or x.dtype != "float" or b.opset > 21:
        return
    op, gates = b.pick([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    hidden = b.integer(1, 2)
    bias = b.pick([[], [b.weight((1, 2 * gates * hidden), x.dtype)]])
    inputs = [b.weight((1, gates * hidden, x.shape[2]), x.dtype), b.weight((1, gates * hidden, hidden), x.dtype)]
    b.one(op, x, *inputs, *bias, hidden_size=hidden)


def embedding(b: Builder, dtype: str) -> None:
    ids = Value(b.name("x"), (2, 3), "other")
    b.inputs.append(ids)
    b.one("Gather", b.weight((4, b.integer(2, 4)), dtype), ids)


# -- affine -----------------------------------------------------------------------------------------


def batch_norm(b: Builder, x: Value) -> None:
    if x.rank < 2:
        return
    kinds = ("gain", "normal", "normal", "variance")
    dtype = "float" if x.dtype in ("float16", "bfloat16") and b.opset >= 15 and b.chance(3) else x.dtype
    each = b.opset < 9 and b.chance(4)  # a number for each pixel: spatial = 0
    parameters = [b.weight(x.shape[1:] if each else (x.shape[1],), dtype, kind) for kind in kinds]
    b.one("BatchNormalization", x, *parameters, epsilon=b.pick([1e-5, 1e-3]), **({"spatial": 0} if each else {}))


def written_out(b: Builder, x: Value) -> None:
    """BN as some exporters write it: (x - mean) / deviation * gamma + beta."""
    if x.rank < 2:
        return
    shape = (x.shape[1], *(1,) * (x.rank - 2))
    x = b.one("Sub", x, b.weight(shape, x.dtype))
    x = b.one(b.pick(["Mul", "Div"]), x, b.weight(shape, x.dtype, "deviation"))
    x = b.one("Mul", *b.pick([(x, w := b.weight(shape, x.dtype, "gain")), (w, x)]))
    b.one("Add", x, b.weight(shape, x.dtype))


def arithmetic(b: Builder, x: Value) -> None:
    """A constant of one number, one axis (mostly the channels), or all of them."""
    op = b.pick(["Mul", "Add", "Sub", "Div"])
    axes = b.pick([[], [1], [1], [1], [x.rank - 1], list(range(x.rank))])
    shape = tuple(size if axis in axes else 1 for axis, size in enumerate(x.shape))
    while shape and shape[0] == 1 and b.chance(2):
        shape = shape[1:]
    constant = b.weight(shape, x.dtype, "gain" if op == "Mul" else "variance" if op == "Div" else "normal")
    b.one(op, *((constant, x) if b.chance(3) and op != "Div" else (x, constant)))


# -- elementwise and pools --------------------------------------------------------------------------


def elementwise(b: Builder, x: Value) -> None:
    op = b.pick(["Relu", "Relu", "Relu", "LeakyRelu", "PRelu", "Clip", "Abs", "Neg", "Tanh", "Erf", "Dropout",
                 "Identity", "Max", "CastLike", "Sin", "Softsign", *BLOCKS])  # fmt: skip
    if op == "PRelu":
        shape = b.pick([(1,), (x.shape[1], *(1,) * (x.rank - 2))]) if x.rank > 1 else (1,)
        b.one(op, x, b.weight(shape, x.dtype))
    elif op == "Clip":
        high = b.pick([None, None, 1.5, np.inf])
        if b.opset < 11:
            b.one(op, x, min=0.0, **({} if high is None else {"max": high}))
        else:
            bounds = [0.0] if high is None else [0.0, high]
            b.one(op, x, *(b.constant(bound, b.name("w"), x.dtype) for bound in bounds))
    elif op == "Max":
        b.one(op, x, b.constant(0.0, b.name("w"), x.dtype))
    elif op == "CastLike":
        b.one(op, x, b.pick(b.values))
    elif op != "Exp" or x.dtype == "float":
        b.one(op, x, **({"alpha": 0.2} if op == "LeakyRelu" else {}))


def pool(b: Builder, x: Value) -> None:
    if x.rank < 3:
        return
    op = b.pick(["MaxPool", "AveragePool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
    if op.startswith("Global"):
        b.one(op, x)
        return
    kernel = [b.integer(1, min(3, size)) for size in x.shape[2:]]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": [b.integer(1, 2) for _ in kernel]}
    if b.chance(2):
        attributes["pads"] = [b.integer(0, k - 1) for k in (*kernel, *kernel)]
    if op == "AveragePool":
        attributes["count_include_pad"] = b.integer(0, 1)
    b.one(op, x, **attributes)


def reduce(b: Builder, x: Value) -> None:
    op = b.pick(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"])
    axes = sorted({b.integer(0, x.rank - 1) for _ in range(2)}) if x.rank else []
    axes = [axis - x.rank if b.chance(2) else axis for axis in axes]
    if not axes:
        return
    if b.opset >= (13 if op == "ReduceSum" else 18):
        b.one(op, x, b.integers(axes), keepdims=b.integer(0, 1))
    else:
        b.one(op, x, axes=axes, keepdims=b.integer(0, 1))


def resize(b: Builder, x: Value) -> None:
    if x.rank != 4 or x.dtype not in ("float", "double"):
        return
    if b.opset < 10:
        grown = b.constant(np.array([1, 1, 2, b.integer(1, 2)], np.float32), b.name("w"))
        b.one("Upsample", x, *([grown] if b.opset == 9 else []), **({} if b.opset == 9 else {"scales": [1.0, 1, 2, 2]}))
        return
    scales = [1.0, float(b.chance(6) + 1), float(b.integer(1, 2)), float(b.integer(1, 2))]
    mode = b.pick(["nearest", "linear", "cubic"])
    if mode != "nearest":
        scales[1] = 1.0
    form = b.pick(["asymmetric", "half_pixel", "align_corners"])
    roi = "" if b.opset >= 13 else b.constant(np.zeros(0, np.float32), b.name("w"))
    name = b.constant(np.array(scales, np.float32), b.name("w"))
    b.one("Resize", x, roi, name, mode=mode, coordinate_transformation_mode=form)


# -- joins and motifs -------------------------------------------------------------------------------


def join(b: Builder, x: Value) -> None:
    """Add, Mul, Max … with another value of a shape that broadcasts (maybe the same value)."""
    near = [v for v in b.values if v.dtype == x.dtype and _broadcasts(v.shape, x.shape)]
    other = b.pick(near[-3:] if b.chance(2) else near)
    op = b.pick(["Add", "Add", "Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean"])
    if op in ("Sum", "Mean") and b.chance(2):
        b.one(op, x, other, b.pick(near))
    else:
        b.one(op, *b.pick([(x, other), (other, x)]))


def _broadcasts(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    try:
        return math.prod(np.broadcast_shapes(one, other)) <= MAX_ELEMENTS
    except ValueError:
        return False


def residual(b: Builder, x: Value) -> None:
    """x + W relu(BN(x)), as pre-activation networks have it."""
    if x.rank != 4:
        return
    batch_norm(b, x)
    y = b.one("Relu", b.values[-1])
    y = b.one("Conv", y, b.weight((x.shape[1], x.shape[1], 3, 3), x.dtype), pads=[1, 1, 1, 1])
    b.one("Add", *b.pick([(x, y), (y, x)]))


def gate(b: Builder, x: Value) -> None:
    """Squeeze and excite."""
    if x.rank != 4:
        return
    y = b.one("GlobalAveragePool", x)
    y = b.one("Conv", y, b.weight((x.shape[1], x.shape[1], 1, 1), x.dtype))
    y = b.one("Sigmoid", y)
    b.one(b.pick(["Mul", "Mul", "Div"]), x, y)


def branch(b: Builder, x: Value) -> None:
    """An If whose bodies read a value from outside."""
    if x.rank != 4 or any(v.name == "condition" for v in b.inputs):
        return
    count = len(b.nodes), len(b.values)
    bodies = []
    for body in ("then", "else"):
        batch_norm(b, x)
        if b.chance(2):
            b.one("Conv", b.values[-1], b.weight((x.shape[1], x.shape[1], 1, 1), x.dtype))
        if b.chance(2):
            batch_norm(b, b.values[-1])
        out = b.values[-1]
        info = helper.make_tensor_value_info(out.name, ELEMENT[x.dtype], [None] * x.rank)
        bodies.append(helper.make_graph(b.nodes[count[0] :], f"{body}{len(b.nodes)}", [], [info]))
        del b.nodes[count[0] :], b.values[count[1] :]
    if "condition" not in b.tensors:
        b.constant(np.array(b.chance(2)), "condition")
    result = Value(b.name("v"), x.shape, x.dtype)
    node = helper.make_node("If", ["condition"], [result.name], b.name("If_"), then_branch=bodies[0],
                            else_branch=bodies[1])  # fmt: skip
    b.append(node, [result])


def loop(b: Builder, x: Value) -> None:
    """A Loop that normalises and convolves what it carries."""
    if x.rank != 4 or b.opset < 11:
        return
    count = len(b.nodes), len(b.values)
    carried = Value(b.name("v"), x.shape, x.dtype)
    b.values.append(carried)
    batch_norm(b, carried)
    b.one("Conv", b.values[-1], b.weight((x.shape[1], x.shape[1], 1, 1), x.dtype))
    b.pick([batch_norm, residual])(b, b.pick([b.values[-1], x]))
    out = b.values[-1]
    on, still = b.name("c"), b.name("c")
    infos = [
        helper.make_tensor_value_info(b.name("k"), TensorProto.INT64, []),
        helper.make_tensor_value_info(on, TensorProto.BOOL, []),
        helper.make_tensor_value_info(carried.name, ELEMENT[x.dtype], x.shape),
        helper.make_tensor_value_info(still, TensorProto.BOOL, []),
        helper.make_tensor_value_info(out.name, ELEMENT[x.dtype], [None] * x.rank),
    ]
    nodes = [*b.nodes[count[0] :], helper.make_node("Identity", [on], [still], still)]
    body = helper.make_graph(nodes, on, infos[:3], infos[3:])
    del b.nodes[count[0] :], b.values[count[1] :]
    result = Value(b.name("v"), x.shape, x.dtype)
    inputs = [b.integers(2), b.constant(np.array(True), b.name("c")), x.name]
    b.append(helper.make_node("Loop", inputs, [result.name], b.name("Loop_"), body=body), [result])


def cast(b: Builder, x: Value) -> None:
    if b.chance(2):
        b.one("Cast", x, to=b.pick([TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE]))


from random_layout import LAYOUT  # noqa: E402  (its moves are built with the same helpers)

MOVES: list[Move] = [
    *[conv] * 6, conv_transpose, *[gemm] * 3, *[matmul] * 3, recurrent, *[batch_norm] * 8, *[arithmetic] * 4,
    written_out, *[sandwich] * 6, quantised, loop,
    *[elementwise] * 5, *[pool] * 2, reduce, resize, *[join] * 4, *[residual] * 2, gate, branch, cast, *LAYOUT,
]  # fmt: skip
BETWEEN: list[Move] = [*[elementwise] * 4, *[pool] * 2, *[reduce] * 2, resize, *[join] * 3, gate, arithmetic, *LAYOUT]
