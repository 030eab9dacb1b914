"""Resize and Upsample: torch's own interpolation where it is the same function, else one axis after the other.

Every mode of Resize is separable: output i of an axis is a weighted sum of some inputs of that axis, with places and
weights that depend on the sizes alone.  So one routine serves nearest, linear and cubic in any coordinate system,
with or without antialiasing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bnfold.torch.ops.table import op

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


@op("Resize", since=11, kinds="tsss")
def resize(
    x: Tensor, roi: Sequence[float] | None = None, scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None, *, antialias: int = 0, axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75, exclude_outside: int = 0,
    extrapolation_value: float = 0.0, keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:  # fmt: skip
    axes = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    have = [x.shape[axis] for axis in axes]
    if sizes:
        factors = [want / size for want, size in zip(sizes, have, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            factor = min(factors) if keep_aspect_ratio_policy == "not_larger" else max(factors)
            factors, sizes = [factor] * len(have), [math.floor(factor * size + 0.5) for size in have]
    else:
        factors = list(scales or ())
        sizes = [math.floor(size * factor) for size, factor in zip(have, factors, strict=True)]
    where = coordinate_transformation_mode
    if (fast := _torchs_own(x, axes, factors, sizes, mode, where, nearest_mode, antialias)) is not None:
        return fast
    outside = None
    for i, axis in enumerate(axes):
        if have[i] == sizes[i] and factors[i] == 1 and where != "tf_crop_and_resize":
            continue
        rank = len(axes)
        span = (roi[i], roi[rank + i]) if roi and where == "tf_crop_and_resize" else (0.0, 1.0)
        at = _coordinates(where, sizes[i], have[i], factors[i], span)
        if where == "tf_crop_and_resize":
            beyond = torch.tensor([not 0 <= p <= have[i] - 1 for p in at], device=x.device)
            beyond = beyond.reshape([-1 if a == axis else 1 for a in range(x.dim())])
            outside = beyond if outside is None else outside | beyond
        taps = _taps(mode, at, have[i], factors[i], nearest_mode, cubic_coeff_a, exclude_outside, antialias)
        x = _weighted(x, axis, taps)
    return x if outside is None else torch.where(outside, extrapolation_value, x)


def _torchs_own(
    x: Tensor, axes: Sequence[int], factors: Sequence[float], sizes: Sequence[int], mode: str, where: str,
    nearest_mode: str, antialias: int,
) -> Tensor | None:  # fmt: skip
    """torch's interpolation, if the spatial axes alone are resized in a way that it has."""
    full = dict(zip(axes, factors, strict=True))
    if not 3 <= x.dim() <= 5 or any(full.get(axis, 1) != 1 for axis in (0, 1)) or antialias:
        return None
    target = dict(zip(axes, sizes, strict=True))
    spatial = [target.get(axis, x.shape[axis]) for axis in range(2, x.dim())]
    exact = all(x.shape[2 + i] * full.get(2 + i, 1) == size for i, size in enumerate(spatial))
    if mode == "linear" and (exact or where == "align_corners") and x.is_floating_point():
        if where == "align_corners":
            return F.interpolate(x, spatial, mode=_LINEAR[x.dim()], align_corners=True)
        if where == "half_pixel" or (where == "pytorch_half_pixel" and min(spatial) > 1):
            return F.interpolate(x, spatial, mode=_LINEAR[x.dim()], align_corners=False)
    whole = all(size % x.shape[2 + i] == 0 for i, size in enumerate(spatial))
    if mode == "nearest" and exact and whole and (
        (where == "asymmetric" and nearest_mode == "floor")
        or (where == "half_pixel" and nearest_mode.startswith("round_prefer"))
    ):
        return F.interpolate(x, spatial, mode="nearest")
    return None


@op("Resize", since=10, kinds="ts")
def resize_10(x: Tensor, scales: Sequence[float], *, mode: str = "nearest") -> Tensor:
    return resize(
        x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


@op("Upsample", since=9, kinds="ts")
def upsample(x: Tensor, scales: Sequence[float], *, mode: str = "nearest") -> Tensor:
    return resize_10(x, scales, mode=mode.replace("bilinear", "linear"))


@op("Upsample", since=7)
def upsample_7(x: Tensor, *, scales: Sequence[float], mode: str = "nearest") -> Tensor:
    return upsample(x, scales, mode=mode)


def _coordinates(where: str, size: int, have: int, factor: float, span: tuple[float, float]) -> list[float]:
    """Where each output element stands on the input's axis."""
    if where == "align_corners":
        return [i * (have - 1) / (size - 1) if size > 1 else 0.0 for i in range(size)]
    if where == "asymmetric":
        return [i / factor for i in range(size)]
    if where == "tf_crop_and_resize":
        start, end = span
        if size == 1:
            return [0.5 * (start + end) * (have - 1)]
        return [start * (have - 1) + i * (end - start) * (have - 1) / (size - 1) for i in range(size)]
    if where == "pytorch_half_pixel" and size == 1:
        return [0.0]
    offset = 0.0
    if where == "half_pixel_symmetric":
        adjustment = size / (factor * have)
        offset = have / 2 * (1 - adjustment)
    return [offset + (i + 0.5) / factor - 0.5 for i in range(size)]


_NEAREST: dict[str, Callable[[float], int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "round_prefer_floor": lambda p: math.ceil(p - 0.5),
    "round_prefer_ceil": lambda p: math.floor(p + 0.5),
}


def _taps(
    mode: str, at: Sequence[float], have: int, factor: float, nearest_mode: str, a: float, exclude: int, antialias: int
) -> tuple[list[list[int]], list[list[float]] | None]:
    """Places and weights, one row per output element; no weights where it is one element of the input."""
    if mode == "nearest":
        return [[min(max(_NEAREST[nearest_mode](p), 0), have - 1)] for p in at], None
    shrink = min(factor, 1.0) if antialias else 1.0  # the kernel is stretched over what one output element covers
    reach = (1 if mode == "linear" else 2) / shrink
    count = 2 * math.ceil(reach)
    kernel = _triangle if mode == "linear" else (lambda d: _cubic(d, a))
    places, weights = [], []
    for p in at:
        first = math.floor(p) - math.ceil(reach) + 1
        row = [first + k for k in range(count)]
        weight = [kernel((k - p) * shrink) for k in row]
        if exclude:
            weight = [w if 0 <= k < have else 0.0 for w, k in zip(weight, row, strict=True)]
        total = sum(weight)  # 1 but for what was left out, or stretched
        weight = [w / total for w in weight]
        places.append([min(max(k, 0), have - 1) for k in row])
        weights.append(weight)
    return places, weights


def _triangle(d: float) -> float:
    return max(0.0, 1 - abs(d))


def _cubic(d: float, a: float) -> float:
    d = abs(d)
    if d <= 1:
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a if d < 2 else 0.0


def _weighted(x: Tensor, axis: int, taps: tuple[list[list[int]], list[list[float]] | None]) -> Tensor:
    places, weights = torch.tensor(taps[0], device=x.device), taps[1]
    if weights is None:
        return x.index_select(axis, places[:, 0])
    factors = torch.tensor(weights, dtype=x.dtype if x.is_floating_point() else torch.float32, device=x.device)
    view = [-1 if a == axis else 1 for a in range(x.dim())]
    result = x.index_select(axis, places[:, 0]) * factors[:, 0].reshape(view)
    for k in range(1, places.shape[1]):
        result = result + x.index_select(axis, places[:, k]) * factors[:, k].reshape(view)
    return result.to(x.dtype)


# ------------------------------------------------------------------------------------------- sampled grids
@op("GridSample")
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    return F.grid_sample(x, grid, names.get(mode, mode), padding_mode, bool(align_corners))


@op("AffineGrid", kinds="ts")
def affine_grid(theta: Tensor, size: Sequence[int], *, align_corners: int = 0) -> Tensor:
    return F.affine_grid(theta, list(size), bool(align_corners))


@op("Col2Im", kinds="tss")
def col2im(
    x: Tensor, image: Sequence[int], block: Sequence[int], *, dilations: Sequence[int] = (),
    pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    rank = len(block)
    dilations, strides, pads = dilations or (1,) * rank, strides or (1,) * rank, pads or (0,) * (2 * rank)
    padded = [size + pads[i] + pads[rank + i] for i, size in enumerate(image)]
    counts = [(padded[i] - (block[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(rank)]
    n, channels = x.shape[0], x.shape[1] // math.prod(block)
    flat = torch.zeros((), dtype=torch.int64, device=x.device)
    for i in range(rank):  # which element of the image each entry of the columns belongs to
        taps = torch.arange(block[i], device=x.device) * dilations[i]
        steps = torch.arange(counts[i], device=x.device) * strides[i]
        view = [1] * (2 * rank)
        view[i], view[rank + i] = block[i], counts[i]
        flat = flat * padded[i] + (taps.unsqueeze(1) + steps).reshape(view)
    columns = x.reshape(n, channels, -1)
    y = x.new_zeros(n, channels, math.prod(padded)).index_add(2, flat.flatten(), columns)
    y = y.reshape(n, channels, *padded)
    for i, size in enumerate(image):
        y = y.narrow(2 + i, pads[i], size)
    return y
