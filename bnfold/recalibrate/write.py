"""Put statistics into the model: nothing but the mean and variance of measured BNs changes.

A tensor that the measured BNs alone read gets a new content in its place. Where others read it, or where it is not
a tensor but an expression, the BNs get tensors of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from bnfold.constants import Array, finfo
from bnfold.errors import ModelError, quoted
from bnfold.fold.wiring import read_names, sweep
from bnfold.graph import Graph, Node, stored_tensor
from bnfold.recalibrate.moments import Floats
from bnfold.recalibrate.sites import MEAN, VARIANCE, Site, in_training_mode
from bnfold.shapes import Shapes
from bnfold.storage import add_tensor
from bnfold.weights import Weights

_ROLES = {MEAN: "running_mean", VARIANCE: "running_var"}


def stored(values: Floats, dtype: Any, site: Site, role: str) -> Array:
    """Statistics in the type that the model keeps them in.

    Raises: ModelError if they don't fit.
    """
    if not np.isfinite(values).all():
        channel = int(np.flatnonzero(~np.isfinite(values))[0])
        what = f"its {role} in channel {channel} is not finite; look at the data and at what is upstream of it"
        raise ModelError(what, where=f"node {quoted(site.name)}")
    largest = finfo(dtype).largest
    if (np.abs(values) > largest).any():
        what = f"its {role} of {np.abs(values).max():.4g} overflows {np.dtype(dtype).name}, which the model keeps it in"
        raise ModelError(f"{what}; convert the model to float32", where=f"node {quoted(site.name)}")
    result: Array = values.astype(dtype)
    return result


class Writer:
    """Writes statistics into one model, in place.

    Args:
        graph: its view.
        weights: where its tensors are.
    """

    def __init__(self, graph: Graph, weights: Weights, shapes: Shapes) -> None:
        self._graph = graph
        self._weights = weights
        self._shapes = shapes
        self._before = read_names(graph)
        self._rewired = False

    def types(self, site: Site) -> tuple[Any, Any]:
        """The dtypes that mean and variance are stored in."""
        constants = self._shapes.constants(site.scope)
        arrays = [constants.array(site.nodes[0].input(index)) for index in (MEAN, VARIANCE)]
        assert arrays[0] is not None
        assert arrays[1] is not None
        return arrays[0].dtype, arrays[1].dtype

    def put(self, site: Site, mean: Array, variance: Array) -> None:
        """Give a site's BNs these statistics; those in training mode are in inference mode from now on."""
        for index, content in ((MEAN, mean), (VARIANCE, variance)):
            if (tensor := self._own(site, index)) is not None:
                self._weights.defer(tensor, partial(_once, content))
            else:
                self._add(site, index, content)
        for node in site.nodes:
            to_inference(node.proto, node)

    def finish(self) -> None:
        """Sweep out expressions that nobody reads any more."""
        if self._rewired:
            sweep(self._graph, self._before)

    def _own(self, site: Site, index: int) -> TensorProto | None:
        """The tensor behind an input, if nobody but the site reads it."""
        value = site.nodes[0].input(index)
        assert value is not None
        mine = {(id(node), index) for node in site.nodes}
        if value.captured or value.is_output or {(id(node), place) for node, place in value.users} != mine:
            return None
        source = value
        while source.outer is not None:  # captured: the name means the same everywhere, so its readers can be counted
            source = source.outer
        if source is not value and (source.is_output or self._before[value.name] != len(mine)):
            return None
        return stored_tensor(source)

    def _add(self, site: Site, index: int, content: Array) -> None:
        name = self._graph.unique_name(f"{site.name}.{_ROLES[index]}")
        add_tensor(self._graph, site.scope, name, content)
        for node in site.nodes:
            node.proto.input[index] = name
        self._rewired = True


def _once(content: Array) -> Iterator[Array]:
    yield content


def to_inference(proto: NodeProto, node: Node) -> None:
    """Where `node` is in training mode: turn that off in its proto, or in a copy of that."""
    if not in_training_mode(node):
        return
    for index in range(len(proto.attribute) - 1, -1, -1):
        if proto.attribute[index].name == "training_mode":
            del proto.attribute[index]
    del proto.output[1:]
    if node.opset < 7:
        proto.attribute.append(helper.make_attribute("is_test", 1))
