"""Pools, reductions and resampling: maxima keep order, averages keep any scale and shift.

Whatever an op gathers into one element has to be in the same coordinates: `even` sees to that.
"""

from __future__ import annotations

import numpy as np

from bnfold.fold.ties import Coordinates, Ties, rule
from bnfold.fold.union_find import Ids
from bnfold.graph import Node, Value


def spatial_axes(ties: Ties, source: Value) -> list[int] | None:
    """Axes 2 … of a feature map, counted from the end; None if the rank is unknown and matters."""
    held = ties.of(source)
    if held.uniform:
        return []
    rank = ties.rank(source)
    return None if rank is None else list(range(-(rank - 2), 0))


def over_space(ties: Ties, node: Node) -> Coordinates | None:
    """The node's input, made even over space (and its coordinates handed on to the output)."""
    source = node.input(0)
    axes = None if source is None else spatial_axes(ties, source)
    if source is None or axes is None:
        return None
    held = ties.even(ties.of(source), axes, node)
    ties.set(node.output(), held)
    return held


@rule("MaxPool", "GlobalMaxPool")  # max(s (x + t)) = s (max x + t) for s > 0; padding is -inf
def max_pool(ties: Ties, node: Node) -> bool:
    """Order is kept by s > 0; indices are another matter."""
    indices = node.output(1)
    if indices is not None and (indices.users or indices.is_output):
        return False
    held = over_space(ties, node)
    if held is None:
        return False
    ties.positive(held, node)
    return True


@rule("AveragePool")  # mean(s (x + t)) = s (mean x + t), unless padding is counted
def average_pool(ties: Ties, node: Node) -> bool:
    """Any scale; no shift where zeros of the padding are averaged in."""
    held = over_space(ties, node)
    if held is None:
        return False
    padded = any(int(pad) for pad in node.attribute("pads", ())) or node.attribute("auto_pad", "NOTSET") in (
        "SAME_UPPER",
        "SAME_LOWER",
    )
    # Before opset 7 padding was counted; with ceil_mode some runtimes count what overhangs.
    counted = node.opset < 7 or bool(node.attribute("count_include_pad", 0))
    if (padded and counted) or (counted and node.attribute("ceil_mode", 0)):
        ties.no_shift(held, node)
    return True


@rule("GlobalAveragePool")  # mean(s (x + t)) = s (mean x + t)
def global_average_pool(ties: Ties, node: Node) -> bool:
    """Any scale, any shift."""
    return over_space(ties, node) is not None


@rule("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum")
def reduce(ties: Ties, node: Node) -> bool:
    """Mean: s, t stay.  Max, Min: s > 0.  Sum over n elements: sum s (x + t) = s (sum x + n t)."""
    source, output = node.input(0), node.output()
    if source is None or output is None:
        return False
    axes = _reduced_axes(ties, node, source)
    if axes is None:
        return False
    held = ties.even(ties.of(source), axes, node)
    if node.op in ("ReduceMax", "ReduceMin"):
        ties.positive(held, node)
    if node.op == "ReduceSum":
        held = _summed(ties, node, held, source, axes)
    if not node.attribute("keepdims", 1):
        held = Coordinates(_drop(held.scale, axes), _drop(held.shift, axes), held.rank and held.rank - len(axes))
    ties.set(output, held)
    return True


def _reduced_axes(ties: Ties, node: Node, source: Value) -> list[int] | None:
    """The reduced axes, counted from the end."""
    rank = ties.rank(source)
    if rank is None:
        return None
    axes = ties.integers(node, "axes", 1)
    if axes is None and len(node.inputs) > 1 and node.input(1) is not None:
        return None  # axes that are computed
    if not axes:
        if node.attribute("noop_with_empty_axes", 0):
            return []
        axes = list(range(rank))
    return sorted({axis - rank if axis >= 0 else axis for axis in axes})


def _summed(ties: Ties, node: Node, held: Coordinates, source: Value, axes: list[int]) -> Coordinates:
    dims = ties.dims(source)
    sizes = [dims[axis] for axis in axes] if dims is not None else [None]
    if any(size is None for size in sizes):
        ties.no_shift(held, node)
        return held
    shift = ties.fresh_shift(held.shift.shape)
    count = float(np.prod([float(size) for size in sizes if size is not None]))
    if count == 0:
        ties.no_shift(held, node)
        return held
    ties.equal_shift(shift, held.shift, node, count)
    return Coordinates(held.scale, shift, held.rank)


def _drop(ids: Ids, axes: list[int]) -> Ids:
    keep = [ids.shape[axis] for axis in range(-ids.ndim, 0) if axis not in axes]
    return ids.reshape(keep)


@rule("Resize", "Upsample")  # weights sum to one: sum w (s (x + t)) = s (sum w x + t)
def resize(ties: Ties, node: Node) -> bool:
    """Interpolation keeps any scale and shift, as long as the channels themselves are not resampled."""
    source = node.input(0)
    mode = node.attribute("coordinate_transformation_mode", "half_pixel")
    if source is None or mode == "tf_crop_and_resize":  # extrapolates with a constant
        return False
    for value in node.inputs[1:]:  # scales may be computed
        ties.fix(value, node)
    held = ties.of(source)
    if not held.uniform:
        rank = ties.rank(source)
        output = node.output()
        before = ties.shapes.cases(ties.scope, source)
        after = [None] if output is None else ties.shapes.cases(ties.scope, output)
        if rank is None:
            return False
        for axis in range(-rank, 0):
            resampled = any(p is None or q is None or p[axis] != q[axis] for p, q in zip(before, after, strict=True))
            if resampled or any(p is None or p[axis] is None for p in before):
                held = ties.even(held, [axis], node)
    ties.set(node.output(), held)
    return True
