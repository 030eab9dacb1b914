"""Carry out merges: one node in place of several, with a weight that is made when it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from bnfold.constants import Array, Constants, unit_roundoff
from bnfold.fold.merge.find import Merge
from bnfold.fold.merge.kernels import bias, kernel
from bnfold.fold.merge.terms import Term
from bnfold.fold.parameters import stored
from bnfold.fold.union_find import Floats
from bnfold.fold.wiring import become, set_output
from bnfold.graph import Graph, Node, Value, remove_nodes
from bnfold.storage import fill, new_tensor
from bnfold.weights import Weights


@dataclass(frozen=True, eq=False)
class Merged:
    """A node that stands for several: its term, its name, the value that it computes and its new tensors."""

    term: Term
    root: Node
    output: str
    weight: TensorProto
    bias: TensorProto | None

    @property
    def host(self) -> Node:
        """The node that was there and is left."""
        assert self.term.host is not None
        return self.term.host


class Applier:
    """Carries out merges; equal terms share their tensors, so that a Siamese net stays shared."""

    def __init__(self, graph: Graph, weights: Weights) -> None:
        self._graph = graph
        self._weights = weights
        self._made: dict[tuple[Any, ...], tuple[TensorProto, TensorProto | None]] = {}

    def apply(self, merge: Merge, constants: Constants) -> list[Merged]:
        """Edit the graph's proto; the view keeps showing the nodes as they were, but for those that go.

        Raises:
            Unrepresentable: a bias that the stored type can't hold (a weight is met when it is made).
        """
        scope, root = merge.root.scope, merge.root
        output = root.output()
        assert output is not None
        alone = len(merge.terms) == 1 and not merge.others
        done, addends = [], []
        for term in merge.terms:
            assert term.host is not None
            added = _bias(term, constants)
            needs_add = added is not None and term.host.op == "MatMul"
            name = output.name if alone and not needs_add else self._graph.unique_name(f"{output.name}_merged")
            weight, extra = self._tensors(term, constants, added)
            _configure(term, weight.name, None if needs_add or extra is None else extra.name, name)
            addends.append((1, name))
            if needs_add and extra is not None:
                addends.append((1, extra.name))
            done.append(Merged(term, root, name, weight, extra))
        for node in merge.nodes:
            if node is not root:
                _hand_over_type(node.output(), merge.terms[0].source)
        addends += [(sign, value.name) for sign, value in merge.others]
        hosts = {id(item.host.proto) for item in done}
        gone = {node for node in merge.nodes if id(node.proto) not in hosts}
        if len(addends) > 1:
            gone.discard(root)
            self._add_up(root, addends, output.name, behind=id(root.proto) in hosts)
        remove_nodes(scope, gone)
        return done

    def _tensors(
        self, term: Term, constants: Constants, added: Floats | None
    ) -> tuple[TensorProto, TensorProto | None]:
        host = term.host
        assert host is not None
        across = not term.last or (host.op == "Gemm" and bool(host.attribute("transB", 0)))
        key = (host.scope.label, across, term.key)
        if key in self._made:
            return self._made[key]
        name = host.proto.input[1]
        dims = term.shape if across else term.shape[::-1]
        content = partial(_blocks, term, constants, across)
        weight = self._new(host, f"{name}_merged", dims, content, term.dtype)
        extra = None
        if added is not None:
            noise = partial(_bias_noise, term, constants)
            made = stored(added, term.dtype, host, noise)
            wanted = f"{name[: -len('.weight')]}.bias" if name.endswith(".weight") else f"{name}_bias"
            extra = self._new(host, f"{wanted}_merged", made.shape, made, term.dtype)
        self._made[key] = weight, extra
        return weight, extra

    def _new(
        self, host: Node, wanted: str, dims: tuple[int, ...], content: Array | Callable[[], Any], dtype: Any
    ) -> TensorProto:
        tensor = new_tensor(self._graph, host.scope, self._graph.unique_name(wanted), dtype, dims)
        fill(self._weights, tensor, dtype, dims, content)
        return tensor

    def _add_up(self, root: Node, addends: list[tuple[int, str]], output: str, *, behind: bool) -> None:
        """The root becomes the last Add (or Sub) of a row of them, which stand in front of it.

        behind: the root is the merged MatMul itself, and one Add for its bias comes behind it.
        """
        (_, left), *rest = addends
        entries = root.scope.proto.node
        if behind:
            place = next(index for index, entry in enumerate(entries) if entry is root.proto)
            entries.insert(place + 1, helper.make_node("Add", [left, rest[0][1]], [output], f"{root.name}_bias"))
            return
        for sign, right in rest[:-1]:
            name = self._graph.unique_name(f"{output}_partial")
            label = f"{root.proto.name}_{name}" if root.proto.name else ""
            node = helper.make_node("Add" if sign > 0 else "Sub", [left, right], [name], label)
            place = next(index for index, entry in enumerate(entries) if entry is root.proto)
            entries.insert(place, node)
            left = name
        sign, right = rest[-1]
        become(root.proto, "Add" if sign > 0 else "Sub", [left, right])


def _bias(term: Term, constants: Constants) -> Floats | None:
    """What the merged node adds; None if that is nothing."""
    added = bias(term, constants)
    return added if added.any() else None


def _bias_noise(term: Term, constants: Constants) -> Floats:
    """Rounding noise of each row: a last digit of its weights, times an input of size one."""
    size = np.abs(kernel(term, constants)).reshape(term.shape[0], -1).max(axis=1)
    return np.asarray(unit_roundoff(term.dtype) * size)


def _blocks(term: Term, constants: Constants, across: bool) -> Iterator[Array]:
    """The merged weight, made when it is wanted; flushed where that is less than a last digit of its row."""
    exact = kernel(term, constants)
    rows = exact.reshape(term.shape[0], -1)
    assert term.host is not None
    made = stored(
        rows, term.dtype, term.host, lambda: unit_roundoff(term.dtype) * np.abs(rows).max(axis=1, keepdims=True)
    )
    yield made.reshape(term.shape) if across else made.T


def _configure(term: Term, weight: str, extra: str | None, output: str) -> None:
    """Turn the host into the merged node."""
    host = term.host
    assert host is not None
    proto, own = host.proto, host.output()
    assert own is not None
    set_output(proto, own.name, output)
    del proto.input[:]
    proto.input.extend([term.source.name, weight, *([extra] if extra is not None else [])])
    if host.op == "Gemm":
        _set_attributes(proto, {"alpha": None, "beta": None})
    elif host.op == "Conv":
        axes = term.axes or ()
        low, high = zip(*(axis.pads for axis in axes), strict=True)
        _set_attributes(proto, {
            "auto_pad": None, "kernel_shape": [axis.taps for axis in axes], "group": term.groups,
            "pads": [*low, *high], "strides": [axis.stride for axis in axes], "dilations": [axis.step for axis in axes],
        })  # fmt: skip


def _set_attributes(proto: NodeProto, wanted: dict[str, Any]) -> None:
    """Give attributes their values, where they stand; None takes one away, and what ONNX assumes needs none."""
    held = {attribute.name: attribute for attribute in proto.attribute}
    for name, value in wanted.items():
        made = None if value is None else helper.make_attribute(name, value)
        if name in held and made is None:
            proto.attribute.remove(held[name])
        elif name in held:
            held[name].CopyFrom(made)
        elif made is not None and not _assumed(name, value):
            proto.attribute.append(made)


def _assumed(name: str, value: Any) -> bool:
    """True for the value that an absent attribute of Conv has."""
    usual = {"group": 1, "pads": 0, "strides": 1, "dilations": 1}
    return name in usual and bool((np.ravel(value) == usual[name]).all())


def _hand_over_type(value: Value | None, source: Value) -> None:
    """Whoever reads a value that goes for its type alone reads what it was made of."""
    for node, index in value.users if value is not None else ():
        if node.op == "CastLike" and index == 1:
            node.proto.input[index] = source.name
