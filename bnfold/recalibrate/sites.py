"""Which BatchNormalizations can be measured, and what they hold.

A *site* is one set of statistics. Nodes that read the same statistics, scale and shift are one module that is
applied several times: they are one site, and its statistics are pooled over all uses. But exporters store equal
tensors once, so that the BNs of a network that was never trained (1, 0, 0, 1 in every channel) share theirs without
being one: each of these is a site of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from onnx import helper

from bnfold.constants import Array, is_floating
from bnfold.fold.ops.affine import epsilon_of
from bnfold.graph import Graph, Node, Scope, Value
from bnfold.recalibrate.moments import Floats
from bnfold.shapes import Shapes

# Ops whose bodies statistics can be led out of.
BODIED = frozenset({"If", "Loop", "Scan"})

MEAN, VARIANCE = 3, 4  # inputs of BatchNormalization


@dataclass(frozen=True, eq=False)
class Site:
    """One set of statistics.

    Attributes:
        nodes: the BNs that read it.
        places: the same as (number of the scope, number of the node), to find them in a copy of the model.
        mean, variance: float64, (C,): what the file says.
        element_type: TensorProto data type of what the BN normalises.
    """

    nodes: tuple[Node, ...]
    places: tuple[tuple[int, int], ...]
    mean: Floats
    variance: Floats
    element_type: int

    @property
    def name(self) -> str:
        """The name of the first node."""
        return self.nodes[0].name

    @property
    def scope(self) -> Scope:
        """The scope of the first node."""
        return self.nodes[0].scope

    @property
    def channels(self) -> int:
        """C."""
        return int(self.mean.size)

    @property
    def epsilon(self) -> float:
        """What is added to a variance."""
        return epsilon_of(self.nodes[0])


@dataclass(frozen=True)
class Unmeasured:
    """A BN whose statistics stay as they are: its name, and why, a sentence."""

    name: str
    why: str


def in_training_mode(node: Node) -> bool:
    """Whether it normalises by each batch's own statistics."""
    return bool(node.attribute("training_mode", 0)) or (node.opset < 7 and not node.attribute("is_test", 0))


def find_sites(
    graph: Graph, shapes: Shapes, chosen: Callable[[Node], bool], freeze: bool
) -> tuple[list[Site], list[Unmeasured]]:
    """Every BN of the model, measurable or not; those that are not `chosen` are in neither list."""
    sites: dict[object, Site] = {}
    left: list[Unmeasured] = []
    for number, node in batch_norms(graph):
        if not chosen(node):
            continue
        constants = shapes.constants(node.scope)
        mean, variance = (constants.array(node.input(index)) for index in (MEAN, VARIANCE))
        why = _why_not(node, mean, variance, freeze)
        if why or mean is None or variance is None:
            left.append(Unmeasured(node.name, why))
            continue
        fresh = all(_is_even(constants.array(node.input(index))) for index in range(1, 5))
        sources = (_source(node.input(index)) for index in range(1, 5))
        key = (number, *sources, epsilon_of(node), node.index if fresh else None)
        known = sites.get(key)
        sites[key] = Site(
            (*(known.nodes if known else ()), node),
            (*(known.places if known else ()), (number, node.index)),
            np.array(mean, np.float64),
            np.array(variance, np.float64),
            _element_type(shapes, node, mean),
        )
    return list(sites.values()), left


def batch_norms(graph: Graph) -> Iterator[tuple[int, Node]]:
    """Every BN of the model with the number of its scope."""
    for number, scope in enumerate(graph.scopes):
        for node in scope.nodes:
            if node.op == "BatchNormalization":
                yield number, node


def _source(value: Value | None) -> Value | None:
    while value is not None and value.outer is not None:
        value = value.outer
    return value


def _is_even(array: Array | None) -> bool:
    """True for a constant of one number throughout."""
    return array is not None and array.size > 0 and bool((array == array.flat[0]).all())


def _why_not(node: Node, mean: Array | None, variance: Array | None, freeze: bool) -> str:
    """Why a BN can't be measured, or its statistics not be replaced; '' if they can."""
    if node.has_reference_attributes:
        return "its attributes are set by whoever calls the function that it is in; inline that first"
    if in_training_mode(node) and not freeze:
        return "it is in training mode, where stored statistics are not used; --freeze gives it measured ones"
    if any(output is not None and (output.users or output.is_output) for output in node.outputs[1:]):
        return "its running or saved statistics are read as outputs"
    if mean is None or variance is None:
        if any((value := node.input(index)) is not None and value.is_input for index in (MEAN, VARIANCE)):
            return "its statistics come from outside of the function or body that it is in; inline that first"
        return "its statistics are computed while the model runs"
    if not (is_floating(mean) and is_floating(variance)):
        return "its statistics are no floating-point numbers"
    if mean.ndim != 1 or mean.shape != variance.shape or not mean.size:
        return "its statistics are no vectors of one number per channel"
    return _why_not_led_out(node)


def _why_not_led_out(node: Node) -> str:
    scope = node.scope
    while scope.parent is not None:
        owner = next(one for one in scope.parent.nodes if scope in one.bodies)
        if owner.op not in BODIED:
            return f"it is in a body of {owner.op}, which gives no statistics out"
        scope = scope.parent
    return ""


def _element_type(shapes: Shapes, node: Node, mean: Array) -> int:
    """Of its input; where inference does not know, of its scale, which is the same but for mixed precision."""
    for value in (node.input(0), node.input(1)):
        if value is not None and (found := shapes.element_type(node.scope, value)):
            return found
    return int(helper.np_dtype_to_tensor_dtype(mean.dtype))
