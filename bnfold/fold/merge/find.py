"""Where linear maps meet: sums of branches that begin at one value, and linear nodes one after the other.

Candidates are found by the ops alone, without a look at a weight or a shape, so that a model without any costs next to
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bnfold.fold.merge.cost import work, work_of_nodes
from bnfold.fold.merge.read import DEPTH, RULES, SUMS, Reader, is_inner, merged, operands, signed
from bnfold.fold.merge.terms import Term
from bnfold.fold.ties import Ties
from bnfold.graph import Node, Value

LINEAR = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, eq=False)
class Merge:
    """What becomes of a node that ends a sum or a sequence.

    root: the node; its output keeps its name.
    terms: maps that are one node each from now on.
    others: what is added to them besides, each with its sign.
    gone: nodes that go.
    """

    root: Node
    terms: tuple[Term, ...]
    others: tuple[tuple[int, Value], ...]
    gone: tuple[Node, ...]

    @property
    def nodes(self) -> list[Node]:
        """The nodes of all terms, and those that go besides."""
        return list(dict.fromkeys((*(node for term in self.terms for node in term.nodes), *self.gone)))


def find(ties: Ties, allowed: Callable[[Node], bool], spoiled: Callable[[Node], bool]) -> list[Merge]:
    """All merges of a scope, none of which shares a node with another.

    Args:
        ties: knows constants and shapes of the scope.
        allowed: whether a node may go.
        spoiled: whether a node was found to end nothing that can be stored.
    """
    found: list[Merge] = []
    taken: set[Node] = set()
    for node in reversed(ties.scope.nodes):
        if node in taken or spoiled(node) or not allowed(node):
            continue
        if node.op in SUMS:
            merge = _sum(ties, allowed, node) if _branches_meet(node) else None
        elif node.op in LINEAR:
            merge = _sequence(ties, allowed, node) if _follows_another(node) else None
        else:
            continue
        if merge is not None:
            found.append(merge)
            taken.update(merge.nodes)
    return found[::-1]


# -- candidates, by ops alone ---------------------------------------------------------------------------


def _inputs(node: Node) -> Iterator[Value]:
    """What a linear op reads besides weights."""
    for value in node.inputs[: None if node.op in ("Add", "Sub", "Sum", "Mul", "Div") else 1]:
        if value is not None and value.tensor is None and not (value.producer and value.producer.op == "Constant"):
            yield value


def _branches_meet(root: Node) -> bool:
    """True if two ways up from a sum meet, and one of them has a weight."""
    ends: set[Value] = set()
    pending = [(value, DEPTH) for value in _inputs(root)]
    meet = weighted = False
    while pending:
        value, depth = pending.pop()
        node = value.producer if depth and is_inner(value) else None
        if node is not None and node.op in RULES:
            weighted |= node.op in LINEAR
            pending += [(above, depth - 1) for above in _inputs(node)]
        else:
            meet |= value in ends
            ends.add(value)
    return meet and weighted


def _follows_another(node: Node) -> bool:
    """True if a linear node reads another's result, with nothing but pools and affine ops between."""
    pending = [(value, DEPTH) for value in _inputs(node)]
    while pending:
        value, depth = pending.pop()
        above = value.producer if depth and is_inner(value) else None
        if above is None or above.op not in RULES:
            continue
        if above.op in LINEAR or above.op == "AveragePool":
            return True
        pending += [(further, depth - 1) for further in _inputs(above)]
    return False


# -- what comes of them ---------------------------------------------------------------------------------


def _sum(ties: Ties, allowed: Callable[[Node], bool], root: Node) -> Merge | None:
    if root.opset < (8 if root.op == "Sum" else 7):
        return None
    reader = Reader(ties, allowed, _spatial_rank(ties, root))
    leaves, sums = _flattened(root, allowed)
    terms = [signed(sign, reader.term(value)) for sign, value in leaves]
    result = merged(reader, terms)
    ours = tuple(term for term in result if term.kind == "sum" and term not in terms)
    if not ours:
        return None
    kept = tuple(leaf for leaf, term in zip(leaves, terms, strict=True) if term in result)
    return Merge(root, ours, kept, tuple(sums))


def _flattened(root: Node, allowed: Callable[[Node], bool]) -> tuple[list[tuple[int, Value]], list[Node]]:
    """The operands of a tree of sums, from left to right, each with its sign; and the sums."""
    leaves: list[tuple[int, Value]] = []
    sums: list[Node] = [root]
    pending = [(*operand, DEPTH) for operand in reversed(operands(root))]
    while pending:
        sign, value, depth = pending.pop()
        node = value.producer
        if depth and node is not None and is_inner(value) and node.op in SUMS and allowed(node) and _is_sum(node):
            sums.append(node)
            pending += [(sign * inner, above, depth - 1) for inner, above in reversed(operands(node))]
        else:
            leaves.append((sign, value))
    return leaves, sums


def _is_sum(node: Node) -> bool:
    """True for a sum of computed values: an Add of a constant is an affine op."""
    return len(list(_inputs(node))) == len(node.inputs) and not node.has_reference_attributes


def _sequence(ties: Ties, allowed: Callable[[Node], bool], root: Node) -> Merge | None:
    reader = Reader(ties, allowed, _spatial_rank(ties, root))
    for depth in (DEPTH, 3, 2):
        term = reader.of_node(root, depth)
        if term is None or term.kind != "chain":
            return None
        weighty = any(inner.kind in ("weight", "average") for inner in term.parts[1].walk())
        if weighty and work(term) <= work_of_nodes(term):
            return Merge(root, (term,), (), ())
    return None


def _spatial_rank(ties: Ties, root: Node) -> int | None:
    """Number of spatial axes around a node, as the weight of the first Conv tells; None without any."""
    pending: list[tuple[Node, int]] = [(root, DEPTH)]
    while pending:
        node, depth = pending.pop()
        if node.op == "Conv":
            weight = ties.array(node.input(1))
            return None if weight is None else weight.ndim - 2
        if depth and node.op in RULES:
            pending += [(value.producer, depth - 1) for value in _inputs(node) if value.producer and is_inner(value)]
    return None
