"""A thin, typed, lossless view of a `ModelProto`: scopes, nodes, values, and edits in place.

The protobuf stays the model; the view only knows who produces and who reads what.  What no
edit touches is never rewritten, so it leaves as it came: order, names, metadata, unknown
fields.  A *scope* is a list of nodes with its own names: the main graph, each body of
If/Loop/Scan (it may read, "capture", values of the scopes around it), each local function.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from bnfold.errors import ModelError, quoted

Container = GraphProto | FunctionProto

# Readers of the shape alone: they don't count as readers of a value.
SHAPE_READERS = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Names:
    """The names of one scope, and those around it."""

    own: set[str]
    outer: Names | None

    def __contains__(self, name: str) -> bool:
        names: Names | None = self
        while names is not None:
            if name in names.own:
                return True
            names = names.outer
        return False


def declared(scope: Container) -> Iterator[str]:
    """The names that a scope defines, one as often as it does."""
    if isinstance(scope, FunctionProto):
        yield from scope.input
    else:
        inputs = [info.name for info in scope.input]
        yield from inputs
        given = set(inputs)  # an initializer that is an input too is its default
        initial = [tensor.name for tensor in scope.initializer]
        initial += [sparse.values.name for sparse in scope.sparse_initializer]
        for name in initial:
            if name in given:
                given.remove(name)
            else:
                yield name
    for node in scope.node:
        for name in node.output:
            if name:
                yield name


class Value:
    """A named tensor of one scope.

    `tensor` is set for initializers, `outer` for a value captured from a scope around this one.
    """

    __slots__ = ("captured", "is_input", "is_output", "name", "outer", "producer", "tensor", "users")

    def __init__(self, name: str) -> None:
        self.name = name
        self.producer: Node | None = None
        self.users: list[tuple[Node, int]] = []
        self.tensor: TensorProto | None = None
        self.outer: Value | None = None
        self.is_input = False
        self.is_output = False
        self.captured = False  # read inside of a body below this scope

    def __repr__(self) -> str:
        return f"Value({self.name})"

    def readers(self) -> list[tuple[Node, int]]:
        """Users that read the content, not just the shape (Shape, Size) or the type (CastLike's second input)."""
        return [
            (node, index)
            for node, index in self.users
            if node.op not in SHAPE_READERS and not (node.op == "CastLike" and index == 1)
        ]

    @property
    def is_private(self) -> bool:
        """True if nobody outside of the scope's own nodes can see the value."""
        return not (self.is_output or self.captured or self.is_input or self.outer)


class Node:
    """One node: its proto, its values, its attributes."""

    __slots__ = ("bodies", "index", "inputs", "op", "outputs", "proto", "scope")

    def __init__(self, proto: NodeProto, scope: Scope, index: int) -> None:
        self.proto = proto
        self.scope = scope
        self.index = index  # position in topological order
        # Ops of foreign domains carry their domain, so that no rule for ONNX's own op takes them.
        self.op: str = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}::{proto.op_type}"
        self.inputs: list[Value | None] = []
        self.outputs: list[Value | None] = []
        self.bodies: list[Scope] = []

    def __repr__(self) -> str:
        return f"Node({self.op} {self.name})"

    @property
    def name(self) -> str:
        """The node's name, or that of its first output where it has none."""
        return self.proto.name or next((name for name in self.proto.output if name), self.proto.op_type)

    @property
    def opset(self) -> int:
        """The operator set version that this node's op is read with."""
        return self.scope.opsets.get(self.proto.domain if self.proto.domain != "ai.onnx" else "", 1)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or `default`; strings as str."""
        for attribute in self.proto.attribute:
            if attribute.name == name and not attribute.ref_attr_name:
                value = helper.get_attribute_value(attribute)
                return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return default

    @property
    def has_reference_attributes(self) -> bool:
        """True inside of a function whose caller sets an attribute of this node."""
        return any(attribute.ref_attr_name for attribute in self.proto.attribute)

    def input(self, index: int) -> Value | None:
        """The value at an input, None where it is absent or empty-named."""
        return self.inputs[index] if index < len(self.inputs) else None

    def output(self, index: int = 0) -> Value | None:
        """The value at an output, None where it is absent or empty-named."""
        return self.outputs[index] if index < len(self.outputs) else None


class Scope:
    """A graph, a body, or a local function: nodes in topological order, values by name."""

    def __init__(self, proto: Container, label: str, parent: Scope | None, opsets: dict[str, int]) -> None:
        self.proto = proto
        self.label = label  # "" for the main graph, else a readable path such as "if_3/then_branch"
        self.parent = parent
        self.opsets = opsets
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.overridable: set[str] = set()  # initializers that are also graph inputs

    @property
    def is_function(self) -> bool:
        """True for a local function (it has no initializers: constants are nodes)."""
        return isinstance(self.proto, FunctionProto)

    def lookup(self, name: str) -> Value | None:
        """The value a name means here; a captured one is registered in every scope it crosses."""
        path: list[Scope] = []
        scope: Scope | None = self
        while scope is not None and name not in scope.values:
            path.append(scope)
            scope = scope.parent
        if scope is None:
            return None
        value = scope.values[name]
        for inner in reversed(path):
            value.captured = True
            local = Value(name)
            local.outer = value
            inner.values[name] = local
            value = local
        return value

    def constant_source(self, value: Value) -> Value:
        """The value itself, or the one that it was captured from."""
        while value.outer is not None:
            value = value.outer
        return value


class Graph:
    """The view of a whole model.

    Args:
        model: the model; edits through the view change it in place.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.scopes: list[Scope] = []
        self._names: set[str] | None = None
        opsets = {opset.domain if opset.domain != "ai.onnx" else "": opset.version for opset in model.opset_import}
        self._read(model.graph, "", None, opsets)
        for function in model.functions:
            own = {opset.domain if opset.domain != "ai.onnx" else "": opset.version for opset in function.opset_import}
            overload = f":{function.overload}" if function.HasField("overload") and function.overload else ""
            self._read(function, f"{function.domain}::{function.name}{overload}", None, own)
        local = {f"{function.domain}::{function.name}" for function in model.functions}
        for node in (node for scope in self.scopes for node in scope.nodes if node.op in local):
            node.op += " (a local function)"  # whatever others mean by that name

    def _read(self, proto: Container, label: str, parent: Scope | None, opsets: dict[str, int]) -> None:
        pending: list[tuple[Container, str, Scope | None, Node | None]] = [(proto, label, parent, None)]
        while pending:  # a stack, since bodies may be nested deeper than Python recurses
            proto, label, parent, owner = pending.pop()
            scope = Scope(proto, label, parent, opsets)
            self.scopes.append(scope)
            if owner is not None:
                owner.bodies.append(scope)
            for node in _fill(scope):
                for attribute in node.proto.attribute:
                    for body in bodies_of(attribute):
                        where = f"{label}/" if label else ""
                        pending.append((body, f"{where}{node.name}/{attribute.name}", scope, node))

    @property
    def main(self) -> Scope:
        """The main graph."""
        return self.scopes[0]

    def unique_name(self, wanted: str) -> str:
        """`wanted`, or `wanted_1`, `wanted_2` … : a name that no value of any scope bears; taken from now on."""
        if self._names is None:
            self._names = {name for scope in self.scopes for name in scope.values}
        name, count = wanted, 0
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name


def bodies_of(attribute: AttributeProto) -> Iterator[GraphProto]:
    """The graphs that an attribute holds."""
    if attribute.type == AttributeProto.GRAPH:
        yield attribute.g
    elif attribute.type == AttributeProto.GRAPHS:
        yield from attribute.graphs


def _fill(scope: Scope) -> list[Node]:
    """Create the scope's values and nodes; returns the nodes that have bodies."""
    _declare(scope)
    with_bodies = []
    for index, proto in enumerate(_sorted_nodes(list(scope.proto.node), scope)):
        node = Node(proto, scope, index)
        scope.nodes.append(node)
        for name in proto.output:
            produced = _value(scope, name) if name else None
            if produced is not None:
                produced.producer = node
            node.outputs.append(produced)
        if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in proto.attribute):
            with_bodies.append(node)
    for node in scope.nodes:
        _connect(scope, node)
    outputs = scope.proto.output
    for name in outputs if isinstance(scope.proto, FunctionProto) else [info.name for info in outputs]:
        result = scope.lookup(name)
        if result is not None:
            result.is_output = True
    return with_bodies


def _value(scope: Scope, name: str) -> Value:
    value = scope.values.get(name)
    if value is None:
        value = scope.values[name] = Value(name)
    return value


def _declare(scope: Scope) -> None:
    """The values that no node produces: inputs and initializers."""
    proto = scope.proto
    if isinstance(proto, FunctionProto):
        for name in proto.input:
            _value(scope, name).is_input = True
        return
    for info in proto.input:
        _value(scope, info.name).is_input = True
    for tensor in proto.initializer:
        initial = _value(scope, tensor.name)
        initial.tensor = tensor
        if initial.is_input:
            scope.overridable.add(tensor.name)
    for sparse in proto.sparse_initializer:  # known by name, never read: nothing folds into them
        _value(scope, sparse.values.name)


def _connect(scope: Scope, node: Node) -> None:
    """Tell the values that a node reads of their reader."""
    for position, name in enumerate(node.proto.input):
        read = scope.lookup(name) if name else None
        if name and read is None:
            raise undefined(name, node.proto)
        if read is not None:
            read.users.append((node, position))
        node.inputs.append(read)


def undefined(name: str, node: NodeProto) -> ModelError:
    """The error for a node that reads what nobody makes."""
    own = node.name or next((made for made in node.output if made), node.op_type)
    return ModelError(
        f"reads {quoted(name)}, which nothing produces; the model is not valid ONNX", where=f"node {quoted(own)}"
    )


def in_cycle(node: NodeProto) -> ModelError:
    """The error for a node that reads what is made of its own result."""
    return ModelError(
        "is part of a cycle; the model is not valid ONNX", where=f"node {quoted(node.name or node.op_type)}"
    )


def order_of(protos: list[NodeProto]) -> list[int]:
    """A topological order, stable: the nodes' positions in it; those in a cycle, and what reads them, are left out."""
    position = {name: index for index, proto in enumerate(protos) for name in proto.output if name}
    needs = [[position[name] for name in _reads(proto) if name in position] for proto in protos]
    if all(all(need < index for need in row) for index, row in enumerate(needs)):
        return list(range(len(protos)))
    import heapq

    waiting = [len(set(row)) for row in needs]
    readers: list[list[int]] = [[] for _ in protos]
    for index, row in enumerate(needs):
        for need in set(row):
            readers[need].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    return order


def _sorted_nodes(protos: list[NodeProto], scope: Scope) -> list[NodeProto]:
    """The nodes in topological order; a file that has them in another order is sorted in place."""
    order = order_of(protos)
    if len(order) < len(protos):
        raise in_cycle(protos[min(set(range(len(protos))) - set(order))])
    if order == list(range(len(protos))):
        return protos
    copies = [NodeProto() for _ in protos]
    for copy, index in zip(copies, order, strict=True):
        copy.CopyFrom(protos[index])
    del scope.proto.node[:]
    scope.proto.node.extend(copies)
    return list(scope.proto.node)


def _reads(proto: NodeProto) -> Iterator[str]:
    """Names a node reads from its scope, also inside of its bodies (which may have names of their own)."""
    yield from (name for name in proto.input if name)
    bodies = [body for attribute in proto.attribute for body in bodies_of(attribute)]
    pending: list[tuple[GraphProto, Names | None]] = [(body, None) for body in bodies]
    while pending:
        body, outer = pending.pop()
        names = Names(set(declared(body)), outer)
        read = chain((name for node in body.node for name in node.input), (info.name for info in body.output))
        yield from (name for name in read if name and name not in names)
        attributes = (attribute for node in body.node for attribute in node.attribute)
        pending.extend((inner, names) for attribute in attributes for inner in bodies_of(attribute))


def remove_nodes(scope: Scope, gone: Iterable[Node]) -> None:
    """Delete nodes from the scope's proto, the others keep their place."""
    doomed = {id(node.proto) for node in gone}
    if not doomed:
        return
    # Protobuf hands out one wrapper per entry while it is referenced, and Node holds it: ids are stable.
    entries = scope.proto.node
    for index in range(len(entries) - 1, -1, -1):
        if id(entries[index]) in doomed:
            del entries[index]
    scope.nodes = [node for node in scope.nodes if id(node.proto) not in doomed]


def stored_tensor(value: Value) -> TensorProto | None:
    """The tensor behind an initializer or a Constant node."""
    if value.tensor is not None:
        return value.tensor
    if value.producer is not None and value.producer.op == "Constant":
        for attribute in value.producer.proto.attribute:
            if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
                tensor: TensorProto = attribute.t
                return tensor
    return None
