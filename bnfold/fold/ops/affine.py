"""What folding removes: y = a * x + b with constants, as BatchNormalization or written out.

    BN:  a = gamma / sqrt(var + eps),  b = beta - a * mean      (Ioffe & Szegedy 2015, algorithm 2)

A removed op needs maps with s_x = a * s_y and a * t_x = b + t_y.  One that stays absorbs in its own
constants whatever its neighbours' maps are: BN any scale and shift, Mul and Div any scale (then
t_y = a * t_x), Add and Sub any shift (then s_y = s_x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from bnfold.constants import Array, is_floating, unit_roundoff
from bnfold.errors import quoted
from bnfold.fold.ties import Affine, Coordinates, Ties, rule
from bnfold.fold.union_find import Floats
from bnfold.graph import Node, Value

ARITHMETIC = ("Mul", "Add", "Sub", "Div")
# A constant of more elements than any channel axis has is a table of positions or an image, not a per-channel
# op: offering it would cost an unknown per element.
MAX_ELEMENTS = 1 << 16

TRAINING = "training-mode"


def read_affine(ties: Ties, node: Node, rank: int | None) -> tuple[Value, Floats, Floats] | None:
    """(x, a, b) of an affine node; None if it is none, with the reason in `ties.refused` for a BN."""
    if node.op == "BatchNormalization":
        return _batch_norm(ties, node, rank)
    if node.op in ARITHMETIC:
        return _arithmetic(ties, node)
    return None


def _batch_norm(ties: Ties, node: Node, rank: int | None) -> tuple[Value, Floats, Floats] | None:
    source = node.input(0)
    refusal = _why_not_inference(node)
    if refusal is None and source is not None:
        told = rank is not None  # by a producer whose channels the caller compares with
        rank = rank if told else ties.rank(source)
        parameters = [ties.array(node.input(k)) for k in range(1, 5)]
        shapes = {None if p is None else p.shape for p in parameters}
        if any(p is None for p in parameters):
            refusal = "dynamic-parameters", "its scale, bias, mean or variance is no constant"
        elif not all(p is not None and is_floating(p) for p in parameters):
            refusal = "wrong-type", "its parameters are no floating-point numbers"
        elif rank is None:
            refusal = _unknown_rank(ties, source)
        elif len(shapes) != 1 or not _fits(ties, source, rank, parameters[0], told):
            refusal = "wrong-shape", "its parameters don't fit its input's channels"
    if refusal is not None or source is None or rank is None:
        ties.refused.setdefault(node, refusal or ("wrong-shape", "it has no input"))
        return None
    gamma_type = parameters[0].dtype  # type: ignore[union-attr]  # none of them is None
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    spread = variance + epsilon_of(node)
    with np.errstate(all="ignore"):
        a = unrounded(gamma / np.sqrt(spread), gamma_type, lambda: ties.shapes.element_type(ties.scope, source))
        b = beta - a * mean
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (spread > 0).all()):
        count = int((~(np.isfinite(a) & np.isfinite(b) & (spread > 0))).sum())
        sentence = f"var + epsilon is zero or negative, or not finite, in {count} of {a.size} channels"
        ties.refused[node] = ("invalid-statistics", sentence)
        return None
    shape = (1, *a.shape, *(1,) * (rank - 1 - a.ndim))
    return source, a.reshape(shape), b.reshape(shape)


def unrounded(a: Floats, gamma_type: Any, data_type: Callable[[], int]) -> Floats:
    """Scales that are 1 but for the rounding of gamma: then it was sqrt(var + eps), as `bnfold.insert` writes it.

    So the weight stays to the bit, and where beta is the mean a MatMul needs no Add.

    data_type: that of the values; where it is another one than gamma's, a last digit of gamma may be many of theirs.
    """
    near = (np.abs(a - 1) <= unit_roundoff(gamma_type)) & (a != 1)
    if not near.any() or data_type() != helper.np_dtype_to_tensor_dtype(np.dtype(gamma_type)):
        return a
    return np.where(near, 1.0, a)


def _unknown_rank(ties: Ties, source: Value) -> tuple[str, str]:
    """No rank, no channel axis; but the node in front may have a better reason."""
    producer = source.producer
    if producer is not None and producer in ties.refused:
        code, sentence = ties.refused[producer]
        return code, f"{producer.op} {quoted(producer.name)} in front of it can't take it in ({sentence})"
    return "unknown-rank", "the rank of its input is unknown, so its channel axis is too"


def epsilon_of(node: Node) -> float:
    """The attribute's float32 value, or that of its default, 1e-5 (0 is legal)."""
    return float(np.float32(node.attribute("epsilon", 1e-5)))


def _why_not_inference(node: Node) -> tuple[str, str] | None:
    """Training-time normalisation uses the batch's own statistics, which no weight can stand for."""
    hint = "`bnfold recalibrate --freeze` gives it measured ones"
    if node.attribute("training_mode", 0) or (node.opset < 7 and not node.attribute("is_test", 0)):
        return TRAINING, f"it is in training mode: it normalises by each batch's own statistics; {hint}"
    if any(output is not None and (output.users or output.is_output) for output in node.outputs[1:]):
        return "statistics-read", "its running or saved statistics are read as outputs"
    return None


def _fits(ties: Ties, source: Value, rank: int, parameter: Any, told: bool) -> bool:
    """Parameters are (C,), or before opset 9 with spatial = 0 (C, D1 … Dn): they have to fit what is known of x."""
    if not 1 <= parameter.ndim <= rank - 1:
        return False
    held = ties.of(source)
    known = ties.shapes.dims(ties.scope, source) if held.uniform and not told else None
    for axis, size in enumerate(parameter.shape, start=1):
        for ids in (held.scale, held.shift):
            if ids.ndim == rank and ids.shape[axis] not in (1, size):
                return False
        if known is not None and known[axis] not in (None, size):
            return False
    return True


def _arithmetic(ties: Ties, node: Node) -> tuple[Value, Floats, Floats] | None:
    found = read_arithmetic(ties, node)
    if found is None:
        return None
    return found if _keeps_shape(ties, found[0], node, found[1]) else None


def read_arithmetic(ties: Ties, node: Node) -> tuple[Value, Floats, Floats] | None:
    """(x, a, b) of a Mul, Add, Sub or Div by a constant, which may be larger than x; None if it is none."""
    left, right = node.input(0), node.input(1)
    if left is None or right is None or node.opset < 7:  # before 7 shapes align by attributes
        return None
    constant, other = ties.array(right), left
    swapped = constant is None or ties.is_constant(left)
    if swapped:
        constant, other = ties.array(left), right
    if constant is None or ties.is_constant(other) or (swapped and node.op == "Div"):
        return None
    if not is_floating(constant) or not 0 < constant.size <= MAX_ELEMENTS:
        return None
    if ties.constants.quantiser(left if swapped else right) is not None:
        return None
    c = np.asarray(constant, np.float64)
    with np.errstate(all="ignore"):
        a, b = {
            "Mul": lambda: (c, np.zeros_like(c)),  # y = c x
            "Add": lambda: (np.ones_like(c), c),  # y = x + c
            "Div": lambda: (1 / c, np.zeros_like(c)),  # y = x / c
            "Sub": lambda: (-np.ones_like(c), c) if swapped else (np.ones_like(c), -c),  # y = c - x, x - c
        }[node.op]()
    return (other, a, b) if np.isfinite(a).all() and np.isfinite(b).all() else None


def _keeps_shape(ties: Ties, x: Value, node: Node, constant: Array) -> bool:
    """The constant must not make x larger by broadcasting: then y is no re-scaled x."""
    if constant.size == 1 and constant.ndim == 0:
        return True
    held = ties.of(x)
    wide = held.scale if held.scale.size >= held.shift.size else held.shift
    if constant.ndim <= wide.ndim and all(
        size in (1, have) for size, have in zip(constant.shape[::-1], wide.shape[::-1], strict=False)
    ):
        return True
    before, output = ties.shapes.cases(ties.scope, x), node.output()
    if output is None:
        return False
    after = ties.shapes.cases(ties.scope, output)
    if constant.size == 1:
        return all(dims is not None and len(dims) >= constant.ndim for dims in before)
    return all(p is not None and None not in p and p == q for p, q in zip(before, after, strict=True))


def read_chain(ties: Ties, value: Value, rank: int, shape: tuple[int, ...] | None) -> Affine | None:
    """The longest chain of offered affine ops, finite as a whole, that starts at a value which nobody else reads.

    Args:
        ties: the scope's ties.
        value: where the chain would start.
        rank: rank of the value, as far as its coordinates tell.
        shape: what the chain's constants have to broadcast to, or None for anything.
    """
    nodes: list[Node] = []
    steps: list[tuple[Floats, Floats]] = []
    a: Floats = np.ones(())
    b: Floats = np.zeros(())
    source = value
    while value.is_private:
        readers = value.readers()
        node = readers[0][0] if len(readers) == 1 else None
        if node is None or node in ties.barred or node in ties.left_alone or not ties.offered(node):
            break
        found = read_affine(ties, node, rank if node.op == "BatchNormalization" and rank > 1 else None)
        if found is None or (shape is not None and not _within(found[1], shape)):
            break
        with np.errstate(over="ignore", invalid="ignore"):
            scale, shift = found[1] * a, found[1] * b + found[2]
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            break
        a, b = scale, shift
        nodes.append(node)
        steps.append((found[1], found[2]))
        target = node.output()
        assert target is not None
        value = target
    if not nodes:
        return None
    return Affine(tuple(nodes), source, value, a, b, tuple(steps))


def _within(array: Array, shape: tuple[int, ...]) -> bool:
    """True if the array broadcasts to the shape (leading axes of size 1 don't count)."""
    extra = max(array.ndim - len(shape), 0)
    return all(size == 1 for size in array.shape[:extra]) and all(
        size in (1, have) for size, have in zip(array.shape[::-1], shape[::-1], strict=False)
    )


@rule("BatchNormalization", "Mul", "Add", "Sub", "Div")
def affine(ties: Ties, node: Node) -> bool:
    """An affine op with a constant, and the private chain behind it; arithmetic of two computed values is elsewhere."""
    if node in ties.left_alone:
        return False
    found = read_affine(ties, node, None)
    if found is None:
        if node.op in ARITHMETIC:
            from bnfold.fold.ops.arithmetic import computed
            from bnfold.fold.ops.quantisation import outer_product

            return computed(ties, node) or outer_product(ties, node)
        return False
    source, a, b = found
    held = ties.of(source)
    output = node.output()
    if not ties.offered(node):
        ties.refused.setdefault(node, ("not-chosen", "it was left out by --only or --skip"))
    if output is None or node in ties.refused:
        return False
    rank = a.ndim if node.op == "BatchNormalization" else held.rank or 0
    rest = None if node in ties.barred else read_chain(ties, output, rank, None)
    nodes: tuple[Node, ...] = (node,)
    steps: tuple[tuple[Floats, Floats], ...] = ((a, b),)
    target = output
    if rest is not None and _one_batch_norm(node, a, rest):
        nodes, steps, target = (node, *rest.nodes), ((a, b), *rest.steps), rest.target
        a, b = rest.a * a, rest.a * b + rest.b
        ties.absorbed.update(rest.nodes)
    op = Affine(nodes, source, target, a, b, steps)
    if any(n.op == "BatchNormalization" for n in nodes):  # one that stays can absorb nothing that varies elsewhere
        held = ties.even(held, [-k for k in range(1, a.ndim + 1) if a.shape[-k] == 1], node)
    ties.affines.append(op)
    ties.set(target, _behind(ties, op, held))
    return True


def _one_batch_norm(node: Node, a: Floats, rest: Affine) -> bool:
    """A chain with a BN may have to stay as one BN: no constant in it may vary where channels don't."""
    gains = [a, *(step[0] for step in rest.steps)]
    shapes = [gain.shape for n, gain in zip((node, *rest.nodes), gains, strict=True) if n.op == "BatchNormalization"]
    return not shapes or all(_within(gain, shapes[0]) for gain in gains)


def _behind(ties: Ties, op: Affine, held: Coordinates) -> Coordinates:
    """Coordinates behind an affine op: new ones, as far as its own constants could absorb the difference."""
    takes_scale, takes_shift = op.absorbs
    rank = max(held.rank or 0, op.a.ndim, op.b.ndim) if "BatchNormalization" in {n.op for n in op.nodes} else held.rank
    scale_shape = np.broadcast_shapes(held.scale.shape, op.a.shape)
    shift_shape = np.broadcast_shapes(held.shift.shape, op.b.shape, op.a.shape)
    tag = op.nodes[0]
    if takes_scale:
        scale = ties.fresh_scale(scale_shape)
    else:
        scale = held.scale  # only Add and Sub: s_y = s_x
    shift = ties.fresh_shift(shift_shape)
    if not takes_shift:  # only Mul and Div: t_y = a t_x
        live = np.broadcast_to(op.a != 0, shift_shape)
        ids = np.broadcast_to(held.shift, shift_shape)
        ratio = np.broadcast_to(op.a, shift_shape)
        ties.equal_shift(shift[live], ids[live], tag, ratio[live])
        if not live.all():
            dead = np.where(live, 0, shift)
            ties.no_shift(Coordinates(held.scale, dead), tag)
    return Coordinates(scale, shift, rank)
