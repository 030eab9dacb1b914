"""Resize and Upsample: along each axis, every output element is a weighted sum of a few input elements.

Which ones and with which weights is computed here, in double, and becomes one Gather and one Mul per element of the
footprint.  The coordinates of `nearest` are those that ONNX Runtime computes, in float32, since a tie decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.constants import Array
from bnfold.verify.float64.builder import Op, Term, Unsupported, declares


@dataclass(frozen=True)
class Axis:
    """One axis to resize: sizes, the scale that maps coordinates, and the region (tf_crop_and_resize only)."""

    axis: int
    size: int
    wanted: int
    scale: float
    start: float = 0.0
    end: float = 1.0


@declares("Resize", "Upsample")  # per axis: sum over the footprint of weight * Gather(index)
def resize(op: Op) -> Term:
    """Interpolation of any mode; older opsets are asymmetric and know nearest and linear only."""
    mode = op.attribute("mode", "nearest")
    old = op.proto.op_type == "Upsample" or op.opset < 11
    coordinates = "asymmetric" if old else op.attribute("coordinate_transformation_mode", "half_pixel")
    total, outside = op.input(0), op.number("extrapolation_value", 0.0)
    for axis in _axes(op, old):
        cropped = coordinates == "tf_crop_and_resize"
        if axis.size == axis.wanted and axis.scale == 1 and (not cropped or (axis.start, axis.end) == (0.0, 1.0)):
            continue
        x = _coordinates(coordinates, axis, np.float32 if mode == "nearest" else np.float64)
        if mode == "nearest":
            rounding = ("simple" if op.opset < 11 else "floor") if old else op.attribute("nearest_mode")
            index = _nearest(x, rounding or "round_prefer_floor", axis.scale < 1)
            total = total.gather(index.clip(0, axis.size - 1), axis.axis)
        else:
            total = _interpolated(op, total, axis, x, mode)
        if cropped:
            inside = ((x >= 0) & (x <= axis.size - 1)).reshape(-1, *[1] * (op.rank(0) - 1 - axis.axis))
            total = op.builder.constant(inside).op("Where", total, op.builder.constant(outside))
    return total if total.name != op.proto.input[0] else total.op("Identity")


def _axes(op: Op, old: bool) -> list[Axis]:
    """The axes that the node resizes, by whichever of its inputs tells."""
    shape = op.shape(0)
    axes = [axis % len(shape) for axis in op.attribute("axes") or range(len(shape))]
    scales, sizes, roi = op.constant(1 if old else 2), op.constant(3), op.constant(1)
    if op.attribute("scales"):
        scales = np.array(op.attribute("scales"), np.float32)
    if scales is not None and scales.size:
        factors = [float(scale) for scale in scales]
        wanted = [math.floor(np.float32(shape[a]) * np.float32(s)) for a, s in zip(axes, factors, strict=True)]
    elif old or op.optional(3) is None:
        raise Unsupported("scales that are computed")
    else:
        given = [int(n) for n in sizes] if sizes is not None else [op.output_shape()[a] for a in axes]
        factors = [n / shape[a] for n, a in zip(given, axes, strict=True)]
        policy = op.attribute("keep_aspect_ratio_policy", "stretch")
        wanted = given
        if policy != "stretch" and sizes is not None:
            factors = [min(factors) if policy == "not_larger" else max(factors)] * len(axes)
            wanted = [math.floor(f * shape[a] + 0.5) for f, a in zip(factors, axes, strict=True)]
        elif policy != "stretch":
            raise Unsupported("computed sizes that keep the aspect ratio")
    if op.attribute("coordinate_transformation_mode") != "tf_crop_and_resize":
        return [Axis(a, shape[a], n, f) for a, n, f in zip(axes, wanted, factors, strict=True)]
    if roi is None or roi.size != 2 * len(axes):
        raise Unsupported("a region that is computed")
    edges = zip(roi[: len(axes)], roi[len(axes) :], strict=True)
    cases = zip(axes, wanted, factors, edges, strict=True)
    return [Axis(a, shape[a], n, f, float(low), float(high)) for a, n, f, (low, high) in cases]


def _coordinates(mode: str, axis: Axis, kind: Any) -> Array:
    """Where in the input each output element lies, computed in float32 or float64.

    Source: the specification of Resize, attribute coordinate_transformation_mode.
    """
    out = np.arange(axis.wanted).astype(kind)
    scale, last, half = kind(axis.scale), kind(axis.size - 1), kind(0.5)
    steps = kind(max(axis.wanted - 1, 1))
    start, end = kind(axis.start), kind(axis.end)
    centre, adjusted = kind(axis.size) / kind(2), kind(axis.wanted) / (scale * kind(axis.size))
    found: dict[str, Array] = {
        "asymmetric": out / scale,
        "half_pixel": (out + half) / scale - half,
        "tf_half_pixel_for_nn": (out + half) / scale,
        "pytorch_half_pixel": (out + half) / scale - half if axis.wanted > 1 else out,
        "half_pixel_symmetric": centre * (kind(1) - adjusted) + (out + half) / scale - half,
        "align_corners": out * last / steps,
        "tf_crop_and_resize": start * last + out * (end - start) * last / steps
        if axis.wanted > 1
        else out + half * (start + end) * last,
    }
    if mode not in found:
        raise Unsupported(f"coordinate_transformation_mode {mode}")
    return found[mode]


def _nearest(x: Array, rounding: str, shrinks: bool) -> Array:
    """Index of the element nearest to each coordinate."""
    if rounding == "simple":  # ONNX Runtime's in opset 10, which says nothing
        rounding = "ceil" if shrinks else "floor"
    half = x.dtype.type(0.5)
    found: dict[str, Array] = {
        "round_prefer_floor": np.ceil(x - half),
        "round_prefer_ceil": np.floor(x + half),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
    }
    return found[rounding].astype(np.int64)


def _interpolated(op: Op, total: Term, axis: Axis, x: Array, mode: str) -> Term:
    """The sum over the footprint."""
    sharp = axis.scale >= 1 or not op.attribute("antialias", 0)
    stretch = 1.0 if sharp else axis.scale
    reach = 1 if mode == "linear" else 2
    first, count = math.floor(-reach / stretch) + 1, 2 * math.ceil(reach / stretch)
    offsets = np.arange(first, first + count)
    base = np.floor(x).astype(np.int64)
    distance = (offsets[:, None] - (x - base)[None]) * stretch  # (footprint, output)
    weights = _triangle(distance) if mode == "linear" else _cubic(distance, op.number("cubic_coeff_a", -0.75))
    index = base[None] + offsets[:, None]
    if op.attribute("exclude_outside", 0):
        weights = np.where((index >= 0) & (index < axis.size), weights, 0.0)
    if op.attribute("exclude_outside", 0) or not sharp:
        weights = weights / weights.sum(0)
    column = (-1, *[1] * (op.rank(0) - 1 - axis.axis))
    result: Term | None = None
    for row, weight in zip(index.clip(0, axis.size - 1), weights, strict=True):
        if weight.any():
            part = total.gather(row, axis.axis) * op.builder.constant(weight.reshape(column))
            result = part if result is None else result + part
    assert result is not None
    return result


def _triangle(distance: Array) -> Array:
    return np.asarray((1.0 - np.abs(distance)).clip(0.0, 1.0))


def _cubic(distance: Array, a: float) -> Array:
    """Keys' cubic convolution kernel."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.asarray(np.where(d <= 1, near, np.where(d < 2, far, 0.0)))
