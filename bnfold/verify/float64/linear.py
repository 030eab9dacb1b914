"""Conv and ConvTranspose by MatMul, one strided Slice of the padded input per tap of the kernel.

    y[n, g, o, p] = sum over channels i, taps k:  W[g, o, i, k] x[n, g, i, p stride + k dilation]

Tap by tap that is a sum of products of (group, outputs, inputs) with (group, inputs, positions).  All taps side by side
(im2col) make one faster product, of `taps` times the memory: used while that stays below IM2COL_BYTES.

ConvTranspose is the product first, and then each tap's part added at its place.  Places that differ by a multiple of
the stride are added on the grid of the input; the grids are interleaved at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

from bnfold.verify.float64.builder import Op, Term, declares
from bnfold.verify.float64.window import Window, same_pads

# Above this the slices are multiplied one by one.  Two nodes of such a model are alive at a time.
IM2COL_BYTES = 64 << 20


@declares("Conv")  # pad, one Slice per tap, MatMul with the kernel
def conv(op: Op) -> Term:
    """Convolution over any number of axes, any group, stride, dilation and padding."""
    outputs, inner, *kernel = op.shape(1)
    window, groups, taps = Window(op, kernel), op.attribute("group", 1), math.prod(kernel)
    padded = op.input(0).pad([0, 0, *window.low], [0, 0, *window.high])
    slices = window.taps(padded)
    first = next(slices)
    shape = op.builder.joined(first.dims(0, 1), outputs, first.dims(2, 2 + window.rank))
    if taps == 1 or _im2col_bytes(op, window) <= IM2COL_BYTES:
        seen = [term.reshape([0, groups, inner, 1, -1]) for term in (first, *slices)]
        columns = seen[0] if taps == 1 else op.builder.op("Concat", *seen, axis=3)
        weight = op.input(1).reshape([groups, outputs // groups, inner * taps])
        total = weight @ columns.reshape([0, groups, inner * taps, -1])
    else:
        weight = op.input(1).reshape([groups, outputs // groups, inner, taps])
        total = weight.gather(0, 3) @ first.reshape([0, groups, inner, -1])
        for tap, term in enumerate(slices, 1):
            total = total + weight.gather(tap, 3) @ term.reshape([0, groups, inner, -1])
    return _with_bias(total.reshape(shape), op.optional(2), window.rank)


def _im2col_bytes(op: Op, window: Window) -> float:
    if not op.knows_shape(0):
        return math.inf
    batch, channels, *spatial = op.shape(0)
    return 8 * batch * channels * math.prod(window.kernel) * math.prod(window.sizes(spatial))


def _with_bias(total: Term, bias: Term | None, rank: int) -> Term:
    return total if bias is None else total + bias.reshape([-1, *[1] * rank])


@declares("ConvTranspose")  # MatMul with the kernel, then each tap's part added at its place
def conv_transpose(op: Op) -> Term:
    """Transposed convolution: any group, stride, dilation, padding and output shape."""
    inner, outputs, *kernel = op.shape(1)
    groups, taps = op.attribute("group", 1), math.prod(kernel)
    window = Window(op, kernel, transposed=True)
    low, high = _cut(op, window)
    x = op.input(0)
    spatial = x.dims(2, 2 + window.rank)
    weight = op.input(1).reshape([groups, inner // groups, outputs, taps]).transpose([0, 3, 2, 1])  # (G, taps, O, I)
    columns = x.reshape([0, groups, inner // groups, -1])
    shape = op.builder.joined(x.dims(0, 1), groups * outputs, spatial)
    parts = [(weight.gather(tap, 1) @ columns).reshape(shape) for tap in range(taps)]
    total = _interleaved(parts, window).pad([0, 0, *(-n for n in low)], [0, 0, *(-n for n in high)])
    return _with_bias(total, op.optional(2), window.rank)


def _interleaved(parts: Sequence[Term], window: Window) -> Term:
    """The sum of the taps' parts, each on the grid `stride` from its own offset.

    The result begins at offset 0 and is a whole number of strides long: `Window.reach` more steps than the input.
    """
    rank, strides, builder = window.rank, window.strides, parts[0].builder
    phases: dict[tuple[int, ...], Term] = {}
    for part, offset in zip(parts, window.offsets(), strict=True):
        steps = [n // s for n, s in zip(offset, strides, strict=True)]
        left = [reach - step for reach, step in zip(window.reach, steps, strict=True)]
        phase = tuple(n % s for n, s in zip(offset, strides, strict=True))
        placed = part.pad([0, 0, *steps], [0, 0, *left])
        phases[phase] = phases[phase] + placed if phase in phases else placed
    if math.prod(strides) == 1:
        return phases[(0,) * rank]
    first = phases[min(phases)]
    nothing = first * 0.0 if len(phases) < math.prod(strides) else first
    grids = [phases.get(phase, nothing).unsqueeze(2) for phase in product(*map(range, strides))]
    stacked = builder.op("Concat", *grids, axis=2)  # (N, O, phases, *grid)
    sizes = [first.dims(2 + axis, 3 + axis) for axis in range(rank)]
    split = builder.joined(first.dims(0, 2), *strides, *sizes)
    order = [axis for k in range(rank) for axis in (2 + rank + k, 2 + k)]  # each axis: grid, then phase
    long = [size.op("Mul", builder.integers([stride])) for size, stride in zip(sizes, strides, strict=True)]
    return stacked.reshape(split).transpose([0, 1, *order]).reshape(builder.joined(first.dims(0, 2), *long))


def _cut(op: Op, window: Window) -> tuple[list[int], list[int]]:
    """What to cut off before and behind the interleaved grids; negative numbers add zeros."""
    rank = window.rank
    extra = list(op.attribute("output_padding", [0] * rank))
    low, high = window.low, window.high
    wanted, mode = op.attribute("output_shape"), op.attribute("auto_pad", "NOTSET")
    if wanted or mode.startswith("SAME"):
        spatial = op.shape(0)[2:]
        given = list(wanted)[-rank:] if wanted else [n * s for n, s in zip(spatial, window.strides, strict=True)]
        cases = zip(spatial, given, window.strides, window.spans, extra, strict=True)
        total = [max(0, s * (n - 1) + more + span - size) for n, size, s, span, more in cases]
        pads = same_pads(total, mode == "SAME_UPPER")
        low, high = pads[:rank], pads[rank:]
    # Behind the last element that a tap reaches, the grids go on to a whole stride.
    over = [(reach + 1) * s - span for reach, s, span in zip(window.reach, window.strides, window.spans, strict=True)]
    return low, [n + rest - more for n, rest, more in zip(high, over, extra, strict=True)]
