"""Conv and ConvTranspose by MatMul, one strided Slice of the padded input per tap of the kernel.

    y[n, g, o, p] = sum over channels i, taps k:  W[g, o, i, k] x[n, g, i, p stride + k dilation]

With all taps side by side (im2col) that is one product of (group, outputs, inputs * taps) and (group, inputs * taps,
positions).  Such a copy is `taps` times as large as the input, so that big ones are made band by band.

ConvTranspose is the product first, and then each tap's part added at its place.  Places that differ by a multiple of
the stride are added on the grid of the input; the grids are interleaved at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

from bnfold.verify.float64.builder import Op, Term, declares
from bnfold.verify.float64.window import Window, same_pads

# Size of a band's im2col: small beside any activation that needs more than one.  Half and double are no faster.
IM2COL_BYTES = 16 << 20


@declares("Conv")  # pad, one Slice per tap, MatMul with the kernel
def conv(op: Op) -> Term:
    """Convolution over any number of axes, any group, stride, dilation and padding."""
    outputs, inner, *kernel = op.shape(1)
    window, groups = Window(op, kernel), op.attribute("group", 1)
    weight = op.input(1).reshape([groups, outputs // groups, inner * math.prod(kernel)])
    padded = op.input(0).pad([0, 0, *window.low], [0, 0, *window.high])
    sizes = (groups, inner, outputs)
    bands = [_convolved(band, weight, window, sizes) for band in _bands(op, padded, window)]
    total = op.builder.op("Concat", *bands, axis=2) if len(bands) > 1 else bands[0]
    return _with_bias(total, op.optional(2), window.rank)


def _convolved(padded: Term, weight: Term, window: Window, sizes: tuple[int, int, int]) -> Term:
    """All taps side by side, times the kernel; `sizes`: groups, inputs per group, outputs."""
    groups, inner, outputs = sizes
    taps = math.prod(window.kernel)
    slices = list(window.taps(padded))
    shape = padded.builder.joined(slices[0].dims(0, 1), outputs, slices[0].dims(2, 2 + window.rank))
    seen = [term.reshape([0, groups, inner, 1, -1]) for term in slices]
    columns = seen[0] if taps == 1 else padded.builder.op("Concat", *seen, axis=3)
    return (weight @ columns.reshape([0, groups, inner * taps, -1])).reshape(shape)


def _bands(op: Op, padded: Term, window: Window) -> Iterator[Term]:
    """The rows of the first spatial axis that each band of outputs sees."""
    taps = math.prod(window.kernel)
    if taps == 1 or not op.knows_shape(0):
        yield padded
        return
    batch, channels, *spatial = op.shape(0)
    rows, *others = window.sizes(spatial)
    count = min(rows, math.ceil(8 * batch * channels * taps * rows * math.prod(others) / IM2COL_BYTES))
    if count <= 1:
        yield padded
        return
    height, stride, span = -(-rows // count), window.strides[0], window.spans[0]
    for start in range(0, rows, height):
        end = min(start + height, rows)
        yield padded.slice([start * stride], [(end - 1) * stride + span], [2], [1])


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
        total = [s * (n - 1) + more + span - size for n, size, s, span, more in cases]
        low = same_pads([max(0, n) for n in total], mode == "SAME_UPPER")[:rank]
        high = [(n if wanted else max(0, n)) - first for n, first in zip(total, low, strict=True)]
    # Behind the last element that a tap reaches, the grids go on to a whole stride.
    over = [(reach + 1) * s - span for reach, s, span in zip(window.reach, window.strides, window.spans, strict=True)]
    return low, [n + rest - more for n, rest, more in zip(high, over, extra, strict=True)]
