"""Constants inside of an activation that is written out: they belong to it, and a runtime computes them with it.

    Gelu           x * (1 + erf(x / sqrt 2)) / 2          and  x / 2 * (1 + tanh(c * (x + d x^3)))
    its neighbour  x * sigmoid(1.702 x)

ONNX Runtime and others know these by their nodes and constants, and run each in one pass.  Moving the half into the
next weight, as an op by a constant may be moved, saves an op and costs that: at a batch of 8, fastvit_t8 and
repvit_m0_9 ran 1.35 and 1.26 times as long as with these constants left alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from bnfold.fold.ties import Ties
from bnfold.graph import Node, Value

CORES = ("Erf", "Tanh", "Sigmoid")


def inside_activations(ties: Ties) -> set[Node]:
    """Mul, Div and Add by one number that are part of such an activation, over the whole scope."""
    found: set[Node] = set()
    for core in ties.scope.nodes:
        source, output = core.input(0), core.output()
        if core.op in CORES and source is not None and output is not None:
            found.update(_of_sigmoid(ties, source, output) if core.op == "Sigmoid" else _of_gelu(ties, source, output))
    return found


def _of_gelu(ties: Ties, source: Value, output: Value) -> list[Node]:
    """The constants around an Erf or Tanh, if 1 is added behind it and x multiplies that."""
    plus = _only_reader(output)
    product = None if plus is None or plus.op != "Add" or not _by_number(ties, plus) else _only_reader(plus.output())
    if plus is None or product is None or product.op != "Mul" or _by_number(ties, product):
        return []
    half = [node for node in (_only_reader(product.output()), *_makers(product)) if node and _by_number(ties, node)]
    return [plus, *half, *_in_front(ties, source)]


def _of_sigmoid(ties: Ties, source: Value, output: Value) -> list[Node]:
    """The factor in front of a Sigmoid that multiplies what the factor reads."""
    factor, product = source.producer, _only_reader(output)
    if factor is None or product is None or product.op != "Mul" or not _by_number(ties, factor):
        return []
    return [factor] if set(factor.inputs) & set(product.inputs) else []


def _in_front(ties: Ties, source: Value) -> Iterator[Node]:
    """The factor in front of the core; of the form with Tanh, that of the cube too."""
    factor = source.producer
    if factor is None or not _by_number(ties, factor):
        return
    yield factor
    for inner in _makers(factor):
        if inner.op == "Add" and not _by_number(ties, inner):
            yield from (cube for cube in _makers(inner) if _by_number(ties, cube))


def _only_reader(value: Value | None) -> Node | None:
    if value is None or not value.is_private:
        return None
    readers = value.readers()
    return readers[0][0] if len(readers) == 1 else None


def _makers(node: Node) -> list[Node]:
    return [value.producer for value in node.inputs if value is not None and value.producer is not None]


def _by_number(ties: Ties, node: Node) -> bool:
    """True for an op with a computed value and one number."""
    arrays = [ties.array(value) for value in node.inputs]
    known = [array for array in arrays if array is not None]
    return node.op in ("Mul", "Div", "Add") and len(arrays) == 2 and len(known) == 1 and known[0].size == 1
