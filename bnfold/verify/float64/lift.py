"""Ops as they were before opset 13, in the words of today.

onnx's version converter doesn't enter bodies and doesn't promise to keep names, so that each change that
matters is a declaration here.  Ops that only gained inputs, types or attributes with neutral defaults need none.
"""

from __future__ import annotations

from bnfold.verify.float64.builder import Op, Term, Unsupported, lifts


@lifts("Squeeze", before=13)  # axes became an input
def squeeze(op: Op) -> Term:
    """Without axes of size 1."""
    axes = op.attribute("axes")
    return op.input(0).op("Squeeze", *([] if axes is None else [op.builder.integers(axes)]))


@lifts("Unsqueeze", before=13)  # axes became an input
def unsqueeze(op: Op) -> Term:
    """With new axes of size 1."""
    return op.input(0).unsqueeze(*op.attribute("axes"))


@lifts("ReduceSum", before=13)  # axes became an input
def reduce_sum(op: Op) -> Term:
    """Sum over some axes, or all."""
    axes = op.attribute("axes")
    return op.input(0).op(
        "ReduceSum", *([] if axes is None else [op.builder.integers(axes)]), keepdims=op.attribute("keepdims", 1)
    )


@lifts("Split", before=13)  # split became an input
def split(op: Op) -> tuple[Term, ...]:
    """In parts along an axis."""
    sizes = op.attribute("split")
    inputs = [op.input(0), *([] if sizes is None else [op.builder.integers(sizes)])]
    return op.builder.ops("Split", inputs, len(op.proto.output), axis=op.attribute("axis", 0))


@lifts("Softmax", before=13)  # all axes from `axis` on were one, and `axis` was 1
@lifts("LogSoftmax", before=13)
@lifts("Hardmax", before=13)
def softmax(op: Op) -> Term:
    """A distribution over all axes from `axis` on."""
    axis, x = op.attribute("axis", 1), op.input(0)
    if op.knows_rank(0) and axis in (-1, op.rank(0) - 1):
        return op.over(op.proto.op_type, x, axis=-1)
    flat = op.over(op.proto.op_type, x.op("Flatten", axis=axis), axis=-1)
    return flat.reshape(x.op("Shape"))


@lifts("Dropout", before=12)  # ratio became an input; inference leaves x as it is
def dropout(op: Op) -> Term:
    """Nothing."""
    if op.wants(1):
        raise Unsupported("the mask of a Dropout")
    return op.input(0)


@lifts("Clip", before=11)  # bounds became inputs
def clip(op: Op) -> Term:
    """Between two bounds."""
    low, high = op.attribute("min"), op.attribute("max")
    x = op.input(0)
    x = x if low is None else x.above(low)
    return x if high is None else x.below(high)


@lifts("Pad", before=11)  # widths and value became inputs
def pad(op: Op) -> Term:
    """With a border."""
    value = op.builder.constant(float(op.attribute("value", 0.0)))
    mode = op.attribute("mode", "constant")
    extra = [value] if mode == "constant" else []
    return op.input(0).op("Pad", op.builder.integers(op.attribute("pads")), *extra, mode=mode)


@lifts("Slice", before=10)  # all became inputs
def slice_(op: Op) -> Term:
    """A part."""
    starts = op.attribute("starts")
    axes = op.attribute("axes") or range(len(starts))
    return op.input(0).slice(starts, op.attribute("ends"), list(axes), [1] * len(starts))


@lifts("TopK", before=10)  # k became an input
def top_k(op: Op) -> tuple[Term, ...]:
    """The largest elements and where they are."""
    inputs = [op.input(0), op.builder.integers([op.attribute("k")])]
    return op.builder.ops("TopK", inputs, 2, axis=op.attribute("axis", -1))


@lifts("Scatter", before=11)  # renamed
def scatter(op: Op) -> Term:
    """Elements put into a tensor."""
    return op.input(0).op("ScatterElements", op.input(1), op.input(2), axis=op.attribute("axis", 0))


@lifts("BatchNormalization", before=14)  # in training mode, for ONNX Runtime too, if it has more outputs than one
def batch_normalization(op: Op) -> tuple[Term, ...]:
    """Normalisation per channel."""
    if op.attribute("spatial", 1) == 0:
        raise Unsupported("BatchNormalization with spatial=0")
    inputs = [op.input(index) for index in range(5)]
    settings = {"epsilon": op.attribute("epsilon", 1e-5), "momentum": op.attribute("momentum", 0.9)}
    outputs = max(index + 1 for index, name in enumerate(op.proto.output) if name)
    return op.builder.ops("BatchNormalization", inputs, outputs, **settings)


@lifts("Scan", before=9)  # scanned batches, with other inputs
def scan(op: Op) -> Term:
    """Nothing that could be said with today's."""
    raise Unsupported(f"Scan of opset {op.opset}")
