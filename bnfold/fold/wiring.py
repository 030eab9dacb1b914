"""Take removed ops out of the graph and connect what is left, then sweep out what nobody reads.

Where y = BN(x) is removed, the stored x' is the stored y'.  It bears y's name where y has to be seen
(an output), or where y is stored as it was and x is not; else x's.  So names keep their meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnx import GraphProto, NodeProto, helper

from bnfold.fold.plan import AffineEdit, LinearEdit, Plan, StepEdit
from bnfold.fold.ties import Affine
from bnfold.graph import Container, Graph, Node, Scope, Value, remove_nodes

Created = Mapping[tuple[LinearEdit | AffineEdit | StepEdit, str], str]


class Wiring:
    """The edits of nodes and names of one scope."""

    def __init__(self, graph: Graph, plan: Plan, created: Created) -> None:
        self._graph = graph
        self._plan = plan
        self._created = created
        self._same: dict[Value, Value] = {}  # removed value -> the value that is stored in its place
        self._name: dict[Value, str] = {}  # new names
        self._writer: dict[Value, NodeProto] = {}  # nodes that write a value now, where that isn't its producer
        self._gone: list[Node] = []
        self._paired: set[Node] = set()  # Transposes that went with what they stood around
        self._added: list[tuple[Node, NodeProto]] = []  # (behind which node, what)

    def run(self) -> None:
        """Edit the scope's proto."""
        for edit in self._plan.linears:
            self._linear(edit)
        for affine in self._plan.affines:  # in topological order
            self._affine(affine)
        self._rename()
        gone = set(self._gone)
        self._insert()
        remove_nodes(self._plan.scope, gone)

    # -- linear nodes and the chain they absorbed -------------------------------------------------

    def _linear(self, edit: LinearEdit) -> None:
        linear, chain = edit.linear, edit.linear.chain
        if edit.keeps_add:
            return
        bias = self._created.get((edit, "bias"))
        target = chain.target if chain else linear.output
        inner = [linear.output, *(node.output() for node in chain.nodes[:-1])] if chain else []
        for value in inner:  # readers of its shape
            if value is not None:
                self._same[value] = target
        if bias is None:
            if chain is not None:
                self._gone += chain.nodes
                self._writer[target] = linear.node.proto
                set_output(linear.node.proto, linear.output.name, target.name)
            return
        # y = MatMul(x) becomes y = Add(MatMul(x), bias); what is in between has a name of its own
        between = self._graph.unique_name(f"{target.name}_no_bias")
        set_output(linear.node.proto, linear.output.name, between)
        if chain is None:
            self._writer[target] = self._add_behind(linear.node, "Add", [between, bias], target.name)
        else:
            self._gone += chain.nodes[:-1]
            become(chain.nodes[-1].proto, "Add", [between, bias])

    # -- affine ops between ------------------------------------------------------------------------

    def _affine(self, edit: AffineEdit) -> None:
        op = edit.op
        if edit.left == "same":
            return
        inner = [value for value in (node.output() for node in op.nodes[:-1]) if value is not None]
        ops = edit.ops_left
        if not ops:
            for value in inner:
                self._same[value] = op.source
            self._remove(edit)
            return
        for value in inner[: len(op.nodes) - len(ops)]:  # readers of its shape
            self._same[value] = op.source
        self._gone += op.nodes[: -len(ops)]
        kept = op.nodes[-len(ops) :]
        if ops == ("BatchNormalization",):
            norm = next(node for node in op.nodes if node.op == "BatchNormalization")
            last = kept[0].proto
            if kept[0] is norm:
                last.input[0] = op.source.name
            else:  # scale, bias and mean have been put at the last node; the variance stays
                parameters, attributes = [*last.input[1:4], norm.proto.input[4]], list(norm.proto.attribute)
                become(last, "BatchNormalization", [op.source.name, *parameters])
                last.attribute.extend(attributes)
            self._reads(kept[0], 0, op.source)
            return
        name = op.source.name
        for number, role in enumerate(ops):
            place = 1 if role == "Sub" else 0  # b - x
            inputs = [self._created[edit, role]]
            inputs.insert(place, name)
            if number < len(kept):
                proto = kept[number].proto
                become(proto, role, inputs)
            else:  # one BN becomes two ops
                proto = self._writer[op.target] = self._add_behind(kept[-1], role, inputs, op.target.name)
            if edit.left == "affine" and kept[-1].opset < 7:  # how a constant per channel is aligned there
                proto.attribute.extend([helper.make_attribute("broadcast", 1), helper.make_attribute("axis", 1)])
            if number == 0:
                self._reads(kept[0], place, op.source)
            if number < len(ops) - 1:  # an inner value that is not what it was
                proto.output[0] = self._graph.unique_name(f"{op.target.name}_scaled")
            name = proto.output[0]

    def _remove(self, edit: AffineEdit) -> None:
        source, target, nodes = self._with_transposes(edit.op)
        stored = self._resolve(source)
        must_show = target.is_output or target.captured
        free = stored.is_private and stored.producer is not None and stored not in self._name
        if must_show and not free:
            # Both names are seen: the same content under two of them.
            become(nodes[-1].proto, "Identity", [source.name])
            self._gone += nodes[:-1]
            self._reads(nodes[-1], 0, source)
            return
        self._gone += nodes
        self._same[target] = stored
        if free and (must_show or (_is_identity(edit.target) and not _is_identity(edit.source))):
            self._name[stored] = target.name

    def _with_transposes(self, op: Affine) -> tuple[Value, Value, Sequence[Node]]:
        """What a removed op reads and makes, and its nodes; with the Transposes around it if one undoes the other.

        They brought the channels to where a BatchNormalization wants them, and back.
        """
        plain = op.source, op.target, op.nodes
        before = op.source.producer
        inner = [op.source, op.target, *(value for node in op.nodes[:-1] if (value := node.output()) is not None)]
        if before is None or before.op != "Transpose" or not all(v.is_private and len(v.users) == 1 for v in inner):
            return plain
        after = op.target.users[0][0]
        source, target = before.input(0), after.output()
        if after.op != "Transpose" or source is None or target is None or before in self._paired:
            return plain
        there, back = before.attribute("perm"), after.attribute("perm")
        if not there or not back or [there[axis] for axis in back] != list(range(len(there))):
            return plain
        self._paired.update((before, after))
        return source, target, (before, *op.nodes, after)

    def _resolve(self, value: Value) -> Value:
        while value in self._same:
            value = self._same[value]
        return value

    def _reads(self, node: Node, index: int, value: Value) -> None:
        """Note that a rebuilt node reads a value now (its name may still change)."""
        value.users.append((node, index))

    # -- carrying out --------------------------------------------------------------------------------

    def _add_behind(self, anchor: Node, op: str, inputs: list[str], output: str) -> NodeProto:
        name = f"{anchor.proto.name}_{op}" if anchor.proto.name else ""
        proto = helper.make_node(op, inputs, [output], name)
        self._added.append((anchor, proto))
        return proto

    def _rename(self) -> None:
        """Give values their final names, wherever they are read and written."""
        gone = set(self._gone)
        for value, name in self._name.items():
            assert value.producer is not None
            set_output(self._writer.get(value, value.producer.proto), value.name, name)
        readers = set(self._same) | set(self._name)
        for value in readers:
            stored = self._resolve(value)
            name = self._name.get(stored, stored.name)
            for node, index in value.users:
                if node not in gone and index < len(node.proto.input) and node.proto.input[index] == value.name:
                    node.proto.input[index] = name

    def _insert(self) -> None:
        """New nodes, each right behind its anchor."""
        if not self._added:
            return
        behind = {id(anchor.proto): proto for anchor, proto in self._added}
        entries = self._plan.scope.proto.node
        for index in range(len(entries) - 1, -1, -1):
            if id(entries[index]) in behind:
                entries.insert(index + 1, behind[id(entries[index])])


def become(proto: NodeProto, op: str, inputs: list[str]) -> None:
    """Turn a node into another op, in its place and under its name."""
    proto.op_type = op
    proto.domain = ""
    del proto.attribute[:]
    del proto.output[1:]
    del proto.input[:]
    proto.input.extend(inputs)


def set_output(proto: NodeProto, old: str, new: str) -> None:
    """Give an output of a node another name."""
    for index, name in enumerate(proto.output):
        if name == old:
            proto.output[index] = new


def remove_beta(node: Node) -> None:
    """Let a Gemm add its C as it is."""
    attributes = node.proto.attribute if node.op == "Gemm" else ()
    for position, attribute in enumerate(attributes):
        if attribute.name == "beta":
            del node.proto.attribute[position]
            break


def set_axis(node: Node, axis: int) -> None:
    """Say along which axis a DequantizeLinear's scale lies."""
    for attribute in node.proto.attribute:
        if attribute.name == "axis":
            attribute.i = axis
            return
    node.proto.attribute.append(helper.make_attribute("axis", axis))


def own_producer(graph: Graph, node: Node, value: Value, producer: Node) -> Node:
    """The producer of a constant that a node reads, or a copy of it right in front of the node.

    A copy if others read the constant, too, or read it as it was before a Transpose.
    """
    places = [index for reader, index in value.users if reader is node]
    if value.producer is producer and value.is_private and len(places) == 1 and len(value.users) == 1:
        return producer
    entries = node.scope.proto.node
    at = next(index for index, proto in enumerate(entries) if proto is node.proto)
    entries.insert(at, producer.proto)
    proto = entries[at]
    proto.output[0] = graph.unique_name(value.name)
    proto.name = ""
    for index in places:
        node.proto.input[index] = proto.output[0]
    copy = Node(proto, node.scope, producer.index)
    copy.inputs = list(producer.inputs)
    return copy


def _is_identity(coordinates: tuple[object, object]) -> bool:
    scale, shift = coordinates
    return bool((scale == 1).all() and (shift == 0).all())  # type: ignore[attr-defined]


# -- sweeping ---------------------------------------------------------------------------------------


def read_names(graph: Graph) -> Counter[str]:
    """How often each name is read, over all scopes."""
    return Counter(name for scope in graph.scopes for name in _reads_of(scope.proto))


def _reads_of(proto: Container) -> Iterator[str]:
    for node in proto.node:
        yield from node.input
    if isinstance(proto, GraphProto):
        yield from (info.name for info in proto.output)
    else:
        yield from proto.output


def sweep(graph: Graph, before: Counter[str]) -> None:
    """Remove nodes and initializers that were read before and are not now; and value_info without a value."""
    counts = read_names(graph)
    lost = {name for name in before if name and not counts[name]}
    while lost:
        dropped: list[str] = []
        for scope in graph.scopes:
            doomed = [
                node
                for node in scope.nodes
                if any(name in lost for name in node.proto.output)
                and not any(counts[name] for name in node.proto.output if name)
                and not node.bodies
            ]
            for node in doomed:
                dropped += [name for name in node.proto.input if name]
            remove_nodes(scope, doomed)
        counts.subtract(dropped)
        newly = {name for name in dropped if counts[name] <= 0}
        _drop_initializers(graph, lost | newly, counts)
        lost = newly
    _drop_value_info(graph)


def _drop_initializers(graph: Graph, names: Iterable[str], counts: Counter[str]) -> None:
    gone = {name for name in names if counts[name] <= 0}
    for scope in graph.scopes:
        if not isinstance(scope.proto, GraphProto):
            continue
        entries = scope.proto.initializer
        for index in range(len(entries) - 1, -1, -1):
            if entries[index].name in gone:
                if entries[index].name in scope.overridable:
                    _drop_input(scope, entries[index].name)
                del entries[index]


def _drop_input(scope: Scope, name: str) -> None:
    for index, info in enumerate(scope.proto.input):
        if info.name == name:
            del scope.proto.input[index]
            return


def _drop_value_info(graph: Graph) -> None:
    for scope in graph.scopes:
        if not isinstance(scope.proto, GraphProto) or not scope.proto.value_info:
            continue
        held = {name for node in scope.proto.node for name in node.output}
        held.update(tensor.name for tensor in scope.proto.initializer)
        held.update(info.name for info in scope.proto.input)
        entries = scope.proto.value_info
        for index in range(len(entries) - 1, -1, -1):
            if entries[index].name not in held:
                del entries[index]


def freeze(graph: Graph, values: Iterable[Value]) -> list[str]:
    """Take initializers that a fold used or changed out of the inputs, so that feeding them later fails loudly.

    Before IR 4 every initializer has to be an input: there those that are left get a new name.
    """
    main = graph.main
    frozen = sorted(main.overridable & _names_behind(values))
    if graph.model.ir_version >= 4:
        for name in frozen:
            _drop_input(main, name)
        return frozen
    initializers = {tensor.name: tensor for tensor in main.proto.initializer} if frozen else {}
    fresh = {name: graph.unique_name(name) for name in frozen if name in initializers}
    for name, new in fresh.items():
        initializers[name].name = new
    for info in main.proto.input:
        info.name = fresh.get(info.name, info.name)
    for node in (node for scope in graph.scopes for node in scope.proto.node) if fresh else ():
        for index, name in enumerate(node.input):
            node.input[index] = fresh.get(name, name)
    return frozen


def relied_on(plan: Plan) -> Iterator[Value]:
    """Constants that made new parameters, or that the way of moved coordinates depends on."""
    nodes: list[Node] = []
    for edit in plan.linears:
        if edit.changes_weight or edit.changes_bias:
            nodes += [edit.linear.node, *(edit.linear.chain.nodes if edit.linear.chain else ())]
    for affine in plan.affines:
        if affine.left != "same":
            nodes += affine.op.nodes
    if nodes:
        moved = {name for name, coordinates in plan.maps.items() if not _is_identity(coordinates)}
        nodes += [
            node for node in plan.scope.nodes
            if not moved.isdisjoint(value.name for value in (*node.inputs, *node.outputs) if value is not None)
        ]  # fmt: skip
    yield from (value for node in nodes for value in node.inputs if plan.ties.is_constant(value) and value is not None)


def _names_behind(values: Iterable[Value]) -> set[str]:
    """Names of the initializers that constants are made of."""
    pending, names, seen = list(values), set(), set()
    while pending:
        value = pending.pop()
        while value.outer is not None:
            value = value.outer
        if value in seen:
            continue
        seen.add(value)
        names.add(value.name)
        if value.producer is not None:
            pending += [need for need in value.producer.inputs if need is not None]
    return names
