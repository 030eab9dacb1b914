"""Coordinates of values, and the vocabulary in which each op says how it ties them.

Every value may be stored in other coordinates, v' = s * (v + t) per channel (identity: s = 1,
t = 0).  A value carries two integer arrays, broadcastable to its shape: the ids of its scales and
of its shifts in two systems of unknowns (`UnionFind`).  Layout ops are the same numpy operation on
the ids, so nothing here knows of a "channel axis".  An op's rule (`bnfold.fold.ops`) states which
unknowns are equal, positive, or fixed; whatever respects all ties leaves the function as it was.
The identity always does.  Nodes without a rule fix all that they touch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.constants import Array, Constants, Dims
from bnfold.fold.sums import Sums
from bnfold.fold.union_find import Floats, Ids, UnionFind
from bnfold.graph import SHAPE_READERS, Node, Scope, Value
from bnfold.shapes import Shapes

if TYPE_CHECKING:
    from bnfold.fold.quantised import Quantised

# The first unknown of both systems: known, the identity.
IDENTITY: Ids = np.zeros((), np.int64)

# Tags of what made an unknown known, beside the indices of nodes.
UNKNOWN, OUTPUT = -1, -2

# A rule states a node's ties and returns True, or returns False ("not me"): then the node fixes all it touches.
Rule = Callable[["Ties", Node], bool]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register the rule of some ops (names of ONNX's own domain)."""

    def register(function: Rule) -> Rule:
        for op in ops:
            RULES[op] = function
        return function

    return register


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Ids of a value's scales and shifts, each broadcastable to the value's shape; its rank if known."""

    scale: Ids
    shift: Ids
    rank: int | None = None

    @property
    def uniform(self) -> bool:
        """True if one scale and one shift hold for all elements."""
        return self.scale.size == 1 and self.shift.size == 1


FIXED = Coordinates(IDENTITY, IDENTITY)


@dataclass(eq=False)
class Affine:
    """y = a * x + b with constant a, b: a BN, or a chain of BN, Mul, Add, Sub, Div by constants.

    a, b: float64, broadcastable to the value (axes aligned at the end, as numpy does).
    """

    nodes: tuple[Node, ...]
    source: Value
    target: Value
    a: Floats
    b: Floats
    steps: tuple[tuple[Floats, Floats], ...]  # (a, b) of each node

    @property
    def is_norm(self) -> bool:
        """True if it is a BN, or a chain with one."""
        return any(node.op == "BatchNormalization" for node in self.nodes)

    @property
    def absorbs(self) -> tuple[bool, bool]:
        """Whether the ops can take a change of (scale, shift) into their own constants when they stay."""
        ops, full = {node.op for node in self.nodes}, self.is_norm
        return full or bool(ops & {"Mul", "Div"}), full or bool(ops & {"Add", "Sub"})


@dataclass(eq=False)
class Linear:
    """A node that is linear in `source` with a constant weight, and the affine ops that only it feeds.

    The weight is seen as an array of shape `view`, where rows (what comes out) vary along `row_axes`
    and columns (what goes in) along `column_axes`:

        y = a * (gain * W x + bias) + b

    bias_input: the node's input that takes a bias; None where there is no such slot (an Add follows then).
    """

    node: Node
    source: Value | None
    output: Value
    weight: Value
    view: tuple[int, ...]
    row_axes: tuple[int, ...]
    column_axes: tuple[int, ...]
    rows: Coordinates  # flat ids, in the order of the row axes; empty where the output is fixed
    columns: Coordinates  # flat ids, in the order of the column axes; empty for a table of embeddings
    row_shape: tuple[int, ...]  # how a vector of rows lies in the output (aligned at the end)
    bias_input: int | None
    gain: float = 1.0
    bias_gain: float = 1.0
    padded: bool = False  # zeros are seen beside the input: a constant is none at the border
    table: bool = False  # an embedding: rows are read, not summed, so that the shift goes into the table itself
    chain: Affine | None = None
    quantised: Quantised | None = None  # the integers that the weight is kept as
    quantised_bias: Quantised | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """A constant that takes the scale of a value and nothing else: the steps that it is rounded to, or a factor."""

    node: Node
    index: int  # of the constant among the node's inputs
    held: Coordinates  # of the value: as many scales as the constant has elements, or one


@dataclass(frozen=True, eq=False)
class Limit:
    """What integers that a node reads rule out, and why: kind 'value' or 'sign' of these scales."""

    node: Node
    kind: str
    scale: Ids
    code: str
    sentence: str


@dataclass
class Ties:
    """All coordinates, ties and foldable ops of one scope."""

    scope: Scope
    shapes: Shapes
    constants: Constants
    offered: Callable[[Node], bool]
    barred: dict[Node, tuple[str, str]] = field(default_factory=dict)  # ops that have to stay: (reason code, sentence)
    scale: UnionFind = field(default_factory=lambda: UnionFind(signed=True))
    shift: UnionFind = field(default_factory=lambda: UnionFind(signed=False))
    coordinates: dict[Value, Coordinates] = field(default_factory=dict)
    linears: list[Linear] = field(default_factory=list)
    affines: list[Affine] = field(default_factory=list)
    refused: dict[Node, tuple[str, str]] = field(default_factory=dict)  # (reason code, sentence)
    steps: list[Step] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    gates: list[tuple[Node, Coordinates, Coordinates, Coordinates, int]] = field(default_factory=list)
    sequences: dict[Value, list[Coordinates]] = field(default_factory=dict)
    absorbed: set[Node] = field(default_factory=set)
    left_alone: set[Node] = field(default_factory=set)  # ops by constants that are part of something larger
    _pins: list[tuple[str, Ids, int, int]] = field(default_factory=list)
    _unions: list[tuple[str, Ids, Ids, Any, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for system in (self.scale, self.shift):
            system.new(1)
        self.scale.pin(IDENTITY, 1.0, sign=1)
        self.shift.pin(IDENTITY, 0.0)
        self.sums = Sums(self.shift)

    # -- reading --------------------------------------------------------------------------------

    def of(self, value: Value) -> Coordinates:
        """The coordinates of a value; constants and what comes from outside are fixed."""
        return self.coordinates.get(value, FIXED)

    def is_constant(self, value: Value | None) -> bool:
        """True if the value's content is known."""
        return value is not None and self.constants.array(value) is not None

    def array(self, value: Value | None) -> Array | None:
        """The content of a constant, None if it is none."""
        return self.constants.array(value)

    def integers(self, node: Node, name: str, index: int) -> list[int] | None:
        """Integers given as an attribute (old opsets) or a constant input (new ones); None if absent or unknown."""
        attribute = node.attribute(name)
        if attribute is not None:
            return [int(i) for i in np.ravel(attribute)]
        array = self.array(node.input(index))
        return None if array is None else [int(i) for i in np.ravel(array)]

    def rank(self, value: Value) -> int | None:
        """The value's number of dimensions."""
        known = self.of(value).rank
        return self.shapes.rank(self.scope, value) if known is None else known

    def dims(self, value: Value) -> Dims | None:
        """The value's shape; None for dimensions that depend on a symbol."""
        return self.shapes.dims(self.scope, value)

    # -- stating --------------------------------------------------------------------------------

    def fresh(self, shape: Sequence[int], rank: int | None = None) -> Coordinates:
        """New unknowns for scale and shift."""
        return Coordinates(self.fresh_scale(shape), self.fresh_shift(shape), rank)

    def fresh_scale(self, shape: Sequence[int]) -> Ids:
        """New unknown scales."""
        return self.scale.new(int(np.prod(shape, dtype=np.int64))).reshape(tuple(shape))

    def fresh_shift(self, shape: Sequence[int]) -> Ids:
        """New unknown shifts."""
        return self.shift.new(int(np.prod(shape, dtype=np.int64))).reshape(tuple(shape))

    def set(self, value: Value | None, coordinates: Coordinates) -> None:
        """Give an output its coordinates."""
        if value is not None:
            self.coordinates[value] = coordinates

    def fix(self, value: Value | None, node: Node | None) -> None:
        """The value stays as it is."""
        if value is None or value not in self.coordinates:
            return
        held = self.of(value)
        self.unit(held, node, sign=1)
        self.no_shift(held, node)

    def unit(self, held: Coordinates, node: Node | None, sign: int = 0) -> None:
        """|s| = 1, and s > 0 if asked."""
        self._pins.append(("unit", held.scale, sign, _tag(node)))

    def positive(self, held: Coordinates, node: Node) -> None:
        """Every s > 0."""
        self._pins.append(("sign", held.scale, 1, node.index))

    def no_shift(self, held: Coordinates, node: Node | None) -> None:
        """Every t = 0."""
        self._pins.append(("shift", held.shift, 0, _tag(node)))

    def equal_scale(self, left: Ids, right: Ids, node: Node, ratio: Any = 1.0) -> None:
        """s_left = ratio * s_right, elementwise."""
        self._unions.append(("scale", left, right, ratio, node.index))

    def equal_shift(self, left: Ids, right: Ids, node: Node, ratio: Any = 1.0) -> None:
        """t_left = ratio * t_right, elementwise."""
        self._unions.append(("shift", left, right, ratio, node.index))

    def even(self, held: Coordinates, axes: Sequence[int], node: Node) -> Coordinates:
        """Make coordinates constant along some axes (counted from the end: -1 is the last)."""
        return Coordinates(
            self._even(held.scale, axes, node, self.equal_scale),
            self._even(held.shift, axes, node, self.equal_shift),
            held.rank,
        )

    def _even(self, ids: Ids, axes: Sequence[int], node: Node, tie: Callable[..., None]) -> Ids:
        for axis in axes:
            if -axis <= ids.ndim and ids.shape[axis] > 1:
                first = np.take(ids, [0], axis=axis)
                tie(np.broadcast_to(first, ids.shape), ids, node)
                ids = first
        return ids

    # -- solving the ties -----------------------------------------------------------------------

    def settle(self) -> None:
        """Apply all ties stated so far, in one batch a kind; the identity satisfies every one of them."""
        for kind in ("scale", "shift"):
            rows = [row for row in self._unions if row[0] == kind]
            if rows:
                parts = [np.broadcast_arrays(left, right, ratio, tag) for _, left, right, ratio, tag in rows]
                left, right, ratio, tag = (np.concatenate([np.ravel(part[k]) for part in parts]) for k in range(4))
                system = self.scale if kind == "scale" else self.shift
                keep = left != right
                system.unite(left[keep], right[keep], ratio[keep], tag=tag[keep])
                system.compress()
        for kind in ("unit", "sign", "shift"):
            pins = [pin for pin in self._pins if pin[0] == kind]
            if pins:
                ids = np.concatenate([np.ravel(pin[1]) for pin in pins])
                sign = np.concatenate([np.full(pin[1].size, pin[2]) for pin in pins])
                tag = np.concatenate([np.full(pin[1].size, pin[3]) for pin in pins])
                if kind == "shift":
                    self.shift.pin(ids, 0.0, tag=tag)
                else:
                    self.scale.pin(ids, 1.0 if kind == "unit" else None, sign=sign, tag=tag)
        self._unions.clear()
        self._pins.clear()
        self._settle_gates()
        self.sums.settle()

    def _settle_gates(self) -> None:
        """y = u * g: s_y = s_u * s_g.  One factor has to be known; where neither is, the second is fixed.

        Settled after all else, in order, when it is known which factors are fixed anyway.
        """
        for node, left, right, result, power in self.gates:
            ids_l, ids_r, ids_y = np.broadcast_arrays(left.scale, right.scale, result.scale)
            ids_l, ids_r, ids_y = np.ravel(ids_l), np.ravel(ids_r), np.ravel(ids_y)
            known_l, known_r = self.scale.values(ids_l), self.scale.values(ids_r)
            free = np.isnan(known_l) & np.isnan(known_r)
            if free.any():
                self.scale.pin(ids_r[free], 1.0, sign=1, tag=node.index)
                known_l, known_r = self.scale.values(ids_l), self.scale.values(ids_r)
            by_right = ~np.isnan(known_r)
            if by_right.any():  # s_y = s_u * s_g^power
                self.scale.unite(ids_y[by_right], ids_l[by_right], known_r[by_right] ** power, tag=node.index)
            rest = ~by_right
            if rest.any():
                if power == 1:
                    self.scale.unite(ids_y[rest], ids_r[rest], known_l[rest], tag=node.index)
                else:  # a divisor of unknown scale
                    self.scale.pin(ids_r[rest], 1.0, sign=1, tag=node.index)
                    self.scale.pin(ids_y[rest], np.abs(known_l[rest]), sign=np.sign(known_l[rest]), tag=node.index)
        self.gates.clear()

    def node_of(self, tag: int) -> Node | None:
        """The node that a tag of the solver stands for."""
        return self.scope.nodes[tag] if 0 <= tag < len(self.scope.nodes) else None


def _tag(node: Node | None) -> int:
    return OUTPUT if node is None else node.index


def _applies(ties: Ties, node: Node) -> bool:
    """State a node's ties by its rule; False if it has none, or is not what the rule expects of valid ONNX."""
    rule_of = None if node.has_reference_attributes else RULES.get(node.op)
    if rule_of is None:
        return False
    linears, affines = len(ties.linears), len(ties.affines)
    try:
        return rule_of(ties, node)
    except (ValueError, IndexError, TypeError, KeyError, StopIteration, ArithmeticError):
        # Attributes or shapes contradict each other.  Ties made so far may stay: they only take freedom away.
        chains = [linear.chain.nodes for linear in ties.linears[linears:] if linear.chain]
        chains += [op.nodes for op in ties.affines[affines:]]
        ties.absorbed.difference_update(node for nodes in chains for node in nodes)
        del ties.linears[linears:], ties.affines[affines:]
        for value in (*node.outputs, *(n.output() for nodes in chains for n in nodes)):
            if value is not None:
                ties.coordinates.pop(value, None)
        return False


def tie_scope(ties: Ties) -> None:
    """State the ties of every node of the scope, in topological order, and settle them."""
    from bnfold.fold import ops  # registers the rules

    ops.load()
    ties.left_alone = ops.inside_activations(ties)
    for node in ties.scope.nodes:
        if node in ties.absorbed:
            continue
        if not _applies(ties, node):
            for index, value in enumerate(node.inputs):
                if node.op not in SHAPE_READERS and not (node.op == "CastLike" and index == 1):
                    ties.fix(value, node)
    for value, held in ties.coordinates.items():
        if held is not FIXED and (value.is_output or value.captured):
            ties.fix(value, None)
    ties.settle()
