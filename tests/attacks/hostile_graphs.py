"""Models whose bytes are sound and whose graph is not, or is a trap: one of each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper
from onnx import numpy_helper as nh

from bnfold.soundness import NEWEST_OPSET

FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(0)
GAMMA, BETA, MEAN, VAR = range(1, 5)


class Attack(NamedTuple):
    """A hostile model.

    `refused`: what every verb says of it; '' if they work.  `left`: BatchNorms that a fold leaves (None: don't care).
    """

    make: Callable[[], ModelProto]
    refused: str = ""
    left: int | None = None


def conv_bn(dtype: type = np.float32) -> ModelProto:
    """x → Conv → BN → Relu → y, which folds."""
    shapes = {"w": (4, 3, 3, 3), "gamma": (4,), "beta": (4,), "mean": (4,), "var": (4,)}
    rng = np.random.default_rng(0)
    tensors = [nh.from_array(rng.random(shape).astype(dtype), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"], name="bn"),
        helper.make_node("Relu", ["b"], ["y"], name="relu"),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = helper.make_tensor_value_info("x", kind, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", kind, ["N", 4, 6, 6])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def without_bn(model: ModelProto) -> ModelProto:
    """The same with nothing where BNs were, so that there is a place for one."""
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and node.input and node.output:
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name))
    return model


def edited(edit: Callable[[ModelProto], Any]) -> Callable[[], ModelProto]:
    """The same after an edit."""

    def make() -> ModelProto:
        model = conv_bn()
        edit(model)
        return model

    return make


def tensor(index: int, **fields: Any) -> Callable[[], ModelProto]:
    """An initializer (0: the weight) whose content is these fields."""

    def edit(model: ModelProto) -> None:
        old = model.graph.initializer[index]
        new = TensorProto(name=old.name, dims=old.dims, data_type=old.data_type)
        for name, value in fields.items():
            if name == "dims":
                del new.dims[:]
            if isinstance(value, list):
                getattr(new, name).extend(value)
            else:
                setattr(new, name, value)
        old.CopyFrom(new)

    return edited(edit)


def parameter(index: int, array: Any) -> Callable[[], ModelProto]:
    """A BN parameter (GAMMA …) or the weight (0) that is this array."""
    def edit(model: ModelProto) -> None:
        old = model.graph.initializer[index]
        old.CopyFrom(nh.from_array(np.asarray(array), old.name))
    return edited(edit)


def attribute(node: int, name: str, value: Any) -> Callable[[], ModelProto]:
    """An attribute of a node: 0 the Conv, 1 the BN."""
    def edit(model: ModelProto) -> None:
        made = value if isinstance(value, AttributeProto) else helper.make_attribute(name, value)
        model.graph.node[node].attribute.append(made)
    return edited(edit)


def inputs(node: int, *names: str) -> Callable[[], ModelProto]:
    """The inputs of a node."""
    def edit(model: ModelProto) -> None:
        del model.graph.node[node].input[:]
        model.graph.node[node].input.extend(names)
    return edited(edit)


def in_front(*nodes: NodeProto, tensors: Any = ()) -> Callable[[], ModelProto]:
    """Nodes in front of the graph, which make 'gamma'."""
    def edit(model: ModelProto) -> None:
        del model.graph.initializer[GAMMA]
        old = [NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend([*nodes, *old])
        model.graph.initializer.extend(tensors)
    return edited(edit)


def functions(count: int, calls: int, recursive: bool = False) -> Callable[[], ModelProto]:
    """Functions that call the next one so many times: calls ** count nodes, written out."""
    def edit(model: ModelProto) -> None:
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
        model.opset_import.append(helper.make_opsetid("f", 1))
        for level in range(count):
            last = level == count - 1
            op, domain = ("Relu", "") if last and not recursive else (f"f{(level + 1) % count}", "f")
            chain = [helper.make_node(op, [f"v{i}"], [f"v{i + 1}"], domain=domain) for i in range(calls)]
            model.functions.append(helper.make_function("f", f"f{level}", ["v0"], [f"v{calls}"], chain, opsets))
        model.graph.node[2].op_type, model.graph.node[2].domain = "f0", "f"
    return edited(edit)


def doubling(model: ModelProto) -> None:
    """gamma is 2^60 numbers, by Concat of a value with itself."""
    nodes = [helper.make_node("Concat", [f"d{i}", f"d{i}"], [f"d{i + 1}"], axis=0) for i in range(60)]
    old = list(model.graph.node)
    model.graph.initializer.append(nh.from_array(np.ones(4, np.float32), "d0"))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in old]
    copies[1].input[GAMMA] = "d60"
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *copies])


def doubled_shape(model: ModelProto) -> None:
    """A Reshape to a shape of 2^60 numbers."""
    nodes = [helper.make_node("Concat", [f"d{i}", f"d{i}"], [f"d{i + 1}"], axis=0) for i in range(60)]
    model.graph.initializer.append(nh.from_array(np.ones(1, np.int64), "d0"))
    last = helper.make_node("Reshape", ["b", "d60"], ["y"])
    old = [NodeProto.FromString(node.SerializeToString()) for node in model.graph.node[:2]]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *old, last])
    model.graph.output[0].type.tensor_type.ClearField("shape")


def chain(model: ModelProto, count: int, op: str) -> None:
    """So many ops behind each other."""
    graph = model.graph
    del graph.node[2:]
    graph.output[0].name = f"v{count}"
    graph.node.append(helper.make_node("Identity", ["b"], ["v0"]))
    parameters = ["gamma", "beta", "mean", "var"] if op == "BatchNormalization" else []
    graph.node.extend(helper.make_node(op, [f"v{i}", *parameters], [f"v{i + 1}"]) for i in range(count))


def nested_ifs(model: ModelProto, depth: int) -> None:
    """If in If in If; the innermost captures the BN's output."""
    model.graph.initializer.append(nh.from_array(np.array(True), "yes"))
    out = lambda name: helper.make_tensor_value_info(name, FLOAT, None)  # noqa: E731
    body = helper.make_graph([helper.make_node("Relu", ["b"], ["r"])], "in", [], [out("r")])
    for level in range(depth):
        name = f"r{level}"
        other = helper.make_graph([helper.make_node("Identity", ["b"], [f"e{level}"])], "else", [], [out(f"e{level}")])
        node = helper.make_node("If", ["yes"], [name], then_branch=body, else_branch=other)
        body = helper.make_graph([node], f"g{level}", [], [out(name)])
    node.output[0] = "y"
    model.graph.node[2].CopyFrom(node)


def own_names(model: ModelProto, depth: int) -> None:
    """If in If, each with values called as those around it: valid, and no cycle."""
    model.graph.initializer.append(nh.from_array(np.array(True), "yes"))
    out = helper.make_tensor_value_info("y", FLOAT, None)
    body, other = (helper.make_graph([helper.make_node(op, ["b"], ["y"])], op, [], [out]) for op in ("Relu", "Abs"))
    for level in range(depth):
        node = helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=other)
        body = helper.make_graph([node], f"g{level}", [], [out])
    model.graph.node[2].CopyFrom(node)


def deep_type(model: ModelProto) -> None:
    kind = TypeProto()
    kind.tensor_type.elem_type = FLOAT
    for _ in range(90):
        outer = TypeProto()
        outer.sequence_type.elem_type.CopyFrom(kind)
        kind = outer
    model.graph.value_info.add(name="c").type.CopyFrom(kind)


def input_type(kind: TypeProto | None) -> Callable[[], ModelProto]:
    def edit(model: ModelProto) -> None:
        model.graph.input[0].ClearField("type")
        if kind is not None:
            model.graph.input[0].type.CopyFrom(kind)
    return edited(edit)


def sparse(model: ModelProto, index: int) -> None:
    old = model.graph.initializer[index]
    values, size = nh.to_array(old).ravel(), int(np.prod(old.dims))
    made = model.graph.sparse_initializer.add()
    made.values.CopyFrom(nh.from_array(values, old.name))
    made.indices.CopyFrom(nh.from_array(np.arange(size, dtype=np.int64), old.name + "i"))
    made.dims.extend(old.dims)
    del model.graph.initializer[index]


def raw_name(model: ModelProto, old: bytes, new: bytes) -> ModelProto:
    """A name that isn't UTF-8, which no library lets one write."""
    return ModelProto.FromString(model.SerializeToString().replace(old, new))


def branchless(model: ModelProto) -> None:
    model.graph.initializer.append(nh.from_array(np.array(True), "yes"))
    model.graph.node[2].CopyFrom(helper.make_node("If", ["yes"], ["y"], then_branch=3, else_branch=[1, 2]))


def swapped(model: ModelProto) -> None:
    first = NodeProto.FromString(model.graph.node[0].SerializeToString())
    del model.graph.node[0]
    model.graph.node.append(first)


def shape_of(size: int) -> TensorProto:
    return nh.from_array(np.array([size], np.int64), "size")


def opset(*versions: tuple[str, int]) -> Callable[[], ModelProto]:
    def edit(model: ModelProto) -> None:
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid(*version) for version in versions)
    return edited(edit)


def drop(path: str) -> Callable[[], ModelProto]:
    def edit(model: ModelProto) -> None:
        getattr(model.graph, path).__delitem__(slice(None))
    return edited(edit)


def infinite_dims(model: ModelProto) -> None:
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (2**40, 3, 2**40, 2**40), strict=True):
        dim.dim_value = size


def function_default(model: ModelProto) -> None:
    """A function whose BN takes its epsilon from the caller, who gives a string."""
    bn = NodeProto.FromString(model.graph.node[1].SerializeToString())
    bn.attribute.append(AttributeProto(name="epsilon", type=AttributeProto.FLOAT, ref_attr_name="e"))
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(FunctionProto(name="norm", domain="f", input=bn.input, output=bn.output, node=[bn],
                                         attribute=["e"], opset_import=opsets))  # fmt: skip
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "norm", "f"
    model.graph.node[1].attribute.append(helper.make_attribute("e", "much"))


def future_function(model: ModelProto) -> None:
    function = helper.make_function("f", "g", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])],
                                    [helper.make_opsetid("", 9999)])  # fmt: skip
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.graph.node[2].op_type, model.graph.node[2].domain = "g", "f"


def twins(model: ModelProto) -> None:
    function = helper.make_function("f", "g", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])],
                                    [helper.make_opsetid("", 17)])  # fmt: skip
    model.functions.extend([function, function])
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.graph.node[2].op_type, model.graph.node[2].domain = "g", "f"


def shadow(model: ModelProto) -> None:
    """A body that calls a value of its own 'c', as the main graph calls the Conv's output."""
    model.graph.initializer.append(nh.from_array(np.array(True), "yes"))
    out = helper.make_tensor_value_info("r", FLOAT, None)
    then = helper.make_graph([helper.make_node("Relu", ["b"], ["c"]), helper.make_node("Abs", ["c"], ["r"])],
                             "t", [], [out])  # fmt: skip
    other = helper.make_graph([helper.make_node("Identity", ["c"], ["r"])], "e", [], [out])
    model.graph.node[2].CopyFrom(helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other))


TENSORS = {
    "raw data of another size": Attack(tensor(0, raw_data=b"1234"), r"tensor 'w': holds 4 bytes where FLOAT\[4, 3, 3"),
    "negative dims": Attack(tensor(GAMMA, dims=[-4], raw_data=b""), "tensor 'gamma': .* negative dimension"),
    "two negative dims": Attack(tensor(GAMMA, dims=[-2, -2], raw_data=bytes(16)), "negative dimension"),
    "overflowing dims": Attack(tensor(GAMMA, dims=[2**62, 4], raw_data=b""), "tensor 'gamma': holds 0 bytes"),
    "dims that wrap around to the right size": Attack(
        tensor(GAMMA, dims=[2**32, 2**32, 4], raw_data=bytes(16)), "tensor 'gamma': holds 16 bytes"),
    "raw data and typed data": Attack(
        tensor(GAMMA, raw_data=np.ones(4, "f4").tobytes(), float_data=[2.0] * 4), "tensor 'gamma': holds its values tw"),
    "typed data of two kinds": Attack(
        tensor(GAMMA, float_data=[2.0] * 4, int32_data=[1, 2, 3, 4]), "tensor 'gamma': holds its values tw"),
    "typed data of another kind": Attack(tensor(GAMMA, int64_data=[1, 2, 3, 4]), "tensor 'gamma': holds 0 values"),
    "too few typed values": Attack(tensor(GAMMA, float_data=[1.0]), "tensor 'gamma': holds 1 values where FLOAT"),
    "no values": Attack(tensor(GAMMA), "tensor 'gamma': holds 0 values"),
    "an unknown data type": Attack(tensor(GAMMA, data_type=99, raw_data=bytes(16)), left=1),
    "no data type": Attack(tensor(GAMMA, data_type=0, raw_data=bytes(16)), "tensor 'gamma': .*type"),
    "strings as raw data": Attack(tensor(GAMMA, data_type=8, raw_data=bytes(16)), "tensor 'gamma': is a tensor of str"),
    "strings": Attack(tensor(GAMMA, data_type=8, string_data=[b"a"] * 4), left=1),
    "int4": Attack(tensor(GAMMA, data_type=TensorProto.INT4, raw_data=b"\x12\x34"), left=1),
    "a segment": Attack(edited(lambda m: setattr(m.graph.initializer[1].segment, "begin", 3)), "tensor 'gamma': .*segm"),
    "sparse gamma": Attack(edited(lambda m: sparse(m, GAMMA)), left=1),
    "sparse weight": Attack(edited(lambda m: sparse(m, 0)), left=1),
}  # fmt: skip

NAMES = {
    "a tensor twice": Attack(edited(lambda m: m.graph.initializer.append(m.graph.initializer[1])), "'gamma'.*twice"),
    "a tensor twice, of other values": Attack(
        edited(lambda m: m.graph.initializer.append(nh.from_array(np.zeros(4, "f4"), "gamma"))), "'gamma'.*twice"),
    "sparse and dense of one name": Attack(
        edited(lambda m: (m.graph.initializer.append(m.graph.initializer[1]), sparse(m, GAMMA))), "'gamma'.*twice"),
    "a value made twice": Attack(edited(lambda m: m.graph.node[1].output.__setitem__(0, "c")), "'c'.*twice"),
    "a value made that is an initializer": Attack(
        edited(lambda m: m.graph.node[0].output.__setitem__(0, "gamma")), "'gamma'.*twice"),
    "a value made that is an input": Attack(edited(lambda m: m.graph.node[0].output.__setitem__(0, "x")), "'x'.*twice"),
    "an input twice": Attack(edited(lambda m: m.graph.input.append(m.graph.input[0])), "'x'.*twice"),
    "an output twice": Attack(edited(lambda m: m.graph.output.append(m.graph.output[0]))),
    "a nameless output": Attack(edited(lambda m: m.graph.output.add()), "output '': nothing produces it"),
    "an output that nothing produces": Attack(edited(lambda m: setattr(m.graph.output[0], "name", "z")), "output 'z': nothing produces it"),
    "an input that nothing produces": Attack(inputs(0, "z", "w"), "'z', which nothing produces"),
    "a body's value of an outer name": Attack(edited(shadow)),
    "self-loop": Attack(inputs(1, "b", "gamma", "beta", "mean", "var"), "node 'bn': is part of a cycle"),
    "cycle": Attack(inputs(0, "y", "w"), "is part of a cycle"),
    "nodes out of order": Attack(edited(swapped), left=0),
    "no nodes": Attack(drop("node"), "output 'y': nothing produces it"),
    "no outputs": Attack(drop("output"), left=None),
    "escapes": Attack(edited(lambda m: setattr(m.graph.node[1], "name", "\x1b]0;pwned\x07\nbn")), left=0),
    "escapes in an unknown name": Attack(inputs(0, "\x1b[2J\n", "w"), r"reads '\\x1b\[2J\\n', which nothing"),
    "a name of 10 MB": Attack(edited(lambda m: setattr(m.graph.node[1], "name", "n" * 10**7)), left=0),
    "a name that isn't UTF-8": Attack(lambda: raw_name(conv_bn(), b"conv", b"co\xff\xfe"), "node 'co.*isn't UTF-8"),
    "a value's name that isn't UTF-8": Attack(lambda: raw_name(conv_bn(), b"gamma", b"ga\xff\xfea"), "tensor 'ga.*isn't UTF-8"),
    "an op that isn't UTF-8": Attack(lambda: raw_name(conv_bn(), b"Relu", b"R\xff\xfeu"), "node 'R.*isn't UTF-8"),
    "an input's name that isn't UTF-8": Attack(lambda: raw_name(edited(lambda m: (
        setattr(m.graph.input[0], "name", "xyz"), m.graph.node[0].input.__setitem__(0, "xyz")))(), b"xyz", b"x\xffz"), "value 'x.*isn't UTF-8"),
}  # fmt: skip

STRUCTURE = {
    "function recursion": Attack(functions(1, 1, recursive=True), "function 'f0': calls itself"),
    "mutual function recursion": Attack(functions(2, 1, recursive=True), "calls itself"),
    "nested-function bomb": Attack(functions(12, 10), r"written out it has 1e\+12 nodes"),
    "deep functions": Attack(functions(300, 1)),
    "functions of one name": Attack(edited(twins), "function 'g': is defined twice"),
    "a function's epsilon given as text": Attack(edited(function_default)),
    "If 20 deep": Attack(edited(lambda m: nested_ifs(m, 20))),
    "If 20 deep, all with the same names": Attack(edited(lambda m: own_names(m, 20)), left=0),
    "If without branches": Attack(edited(branchless), "node 'y': attribute 'else_branch' is of type INTS.*1 more"),
    "an unknown domain": Attack(edited(lambda m: setattr(m.graph.node[0], "domain", "nobody")), left=1),
    "an unknown op": Attack(edited(lambda m: setattr(m.graph.node[0], "op_type", "Conv9")), left=1),
    "no op": Attack(edited(lambda m: setattr(m.graph.node[0], "op_type", "")), left=1),
    "an unknown domain of a future version": Attack(opset(("", 17), ("nobody", 9999), ("ai.onnx.ml", 99)), left=0),
    "the next opset": Attack(opset(("", NEWEST_OPSET + 1)), f"knows up to {NEWEST_OPSET}: install a newer one"),
    "a future opset": Attack(opset(("", 9999)), "uses opset 9999"),
    "a function of a future opset": Attack(edited(future_function), "uses opset 9999"),
    "opset 0": Attack(opset(("", 0)), "uses opset 0"),
    "a negative opset": Attack(opset(("", -3)), "uses opset -3"),
    "no opset": Attack(opset(), left=1),
    "two opsets": Attack(opset(("", 17), ("", 6)), "imports opset 17 and 6"),
    "ai.onnx and its other name": Attack(opset(("", 17), ("ai.onnx", 6)), "imports opset 17 and 6"),
    "no IR version": Attack(edited(lambda m: m.ClearField("ir_version"))),
    "a future IR version": Attack(edited(lambda m: setattr(m, "ir_version", 2**40))),
    "an input without a type": Attack(input_type(None)),
    "an input of unknown rank": Attack(edited(lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"))),
    "an input that is a sequence": Attack(input_type(helper.make_sequence_type_proto(
        helper.make_tensor_type_proto(FLOAT, [1, 3, 8, 8])))),
    "an input that is a map": Attack(input_type(helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, None)))),
    "an input that is optional": Attack(input_type(helper.make_optional_type_proto(
        helper.make_tensor_type_proto(FLOAT, [1, 3, 8, 8])))),
    "a negative input size": Attack(
        edited(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", -8)), left=0),
    "an input of 2^120 elements": Attack(edited(infinite_dims)),
    "a type nested 90 deep": Attack(edited(deep_type), "nested too deep"),
    "no shapes": Attack(edited(lambda m: [i.type.tensor_type.ClearField("shape") for i in (*m.graph.input,
                                                                                           *m.graph.output)])),
    "no channels": Attack(parameter(0, np.zeros((0, 3, 3, 3), "f4"))),
    "no input channels": Attack(parameter(0, np.zeros((4, 0, 3, 3), "f4"))),
    "no kernel": Attack(parameter(0, np.zeros((4, 3, 0, 3), "f4"))),
}  # fmt: skip

SIZES = {
    "10,000 chained BN": Attack(edited(lambda m: chain(m, 10_000, "BatchNormalization"))),
    "100,000 unsorted nodes": Attack(edited(lambda m: (chain(m, 100_000, "Abs"), swapped(m))), left=0),
}

BOMBS = {
    "ConstantOfShape of 10^12": Attack(in_front(
        helper.make_node("ConstantOfShape", ["size"], ["gamma"], value=nh.from_array(np.ones(1, "f4"))),
        tensors=[shape_of(10**12)]), left=1),
    "ConstantOfShape of a negative size": Attack(in_front(
        helper.make_node("ConstantOfShape", ["size"], ["gamma"]), tensors=[shape_of(-4)]), left=1),
    "Expand to 10^12": Attack(in_front(helper.make_node("Expand", ["one", "size"], ["gamma"]), tensors=[
        shape_of(10**12), nh.from_array(np.ones(1, "f4"), "one")]), left=1),
    "Tile by 10^12": Attack(in_front(helper.make_node("Tile", ["one", "size"], ["gamma"]), tensors=[
        shape_of(10**12), nh.from_array(np.ones(1, "f4"), "one")]), left=1),
    "Tile by 2^63 - 1, twice": Attack(in_front(
        helper.make_node("Tile", ["one", "size"], ["more"]), helper.make_node("Tile", ["more", "size"], ["gamma"]),
        tensors=[shape_of(2**63 - 1), nh.from_array(np.ones(1, "f4"), "one")]), left=1),
    "Concat doubling": Attack(edited(doubling), left=1),
    "a shape of 2^60 numbers": Attack(edited(doubled_shape)),
    "Range of 10^12": Attack(in_front(
        helper.make_node("Range", ["zero", "many", "one"], ["gamma"]),
        tensors=[nh.from_array(np.float32(n), name) for name, n in
                 (("zero", 0), ("many", 1e12), ("one", 1))]), left=1),
    "Range by a tiny step": Attack(in_front(
        helper.make_node("Range", ["zero", "many", "one"], ["gamma"]),
        tensors=[nh.from_array(np.float32(n), name) for name, n in
                 (("zero", 0), ("many", 1), ("one", 1e-30))]), left=1),
    "Range by NaN": Attack(in_front(
        helper.make_node("Range", ["zero", "many", "one"], ["gamma"]),
        tensors=[nh.from_array(np.float32(n), name) for name, n in
                 (("zero", 0), ("many", 1), ("one", np.nan))]), left=1),
    "broadcasting to 10^12": Attack(in_front(
        helper.make_node("Add", ["row", "column"], ["wide"]), helper.make_node("Flatten", ["wide"], ["gamma"]),
        tensors=[nh.from_array(np.ones((1, 10**6), "f4"), "row"), nh.from_array(np.ones((10**6, 1), "f4"), "column")]),
        left=1),
    "Gather of 10^12": Attack(in_front(
        helper.make_node("Gather", ["table", "rows"], ["gamma"]),
        tensors=[nh.from_array(np.ones((1, 10**6), "f4"), "table"), nh.from_array(np.zeros(10**6, "i8"), "rows")]),
        left=1),
    "Reshape to 2^60": Attack(in_front(helper.make_node("Reshape", ["one", "size"], ["gamma"]), tensors=[
        shape_of(2**60), nh.from_array(np.ones(1, "f4"), "one")]), left=1),
    "Pow of huge integers": Attack(in_front(
        helper.make_node("Pow", ["big", "big"], ["p"]), helper.make_node("Cast", ["p"], ["gamma"], to=FLOAT),
        tensors=[nh.from_array(np.full(4, 2**62, np.int64), "big")])),
    "Split into 2,000": Attack(in_front(
        helper.make_node("Split", ["one"], ["gamma", *(f"s{i}" for i in range(2000))], axis=0),
        tensors=[nh.from_array(np.ones(4, "f4"), "one")])),
    "Div by an integer 0": Attack(in_front(
        helper.make_node("Div", ["four", "none"], ["d"]), helper.make_node("Cast", ["d"], ["gamma"], to=FLOAT),
        tensors=[nh.from_array(np.full(4, 4, np.int64), "four"), nh.from_array(np.zeros(4, np.int64), "none")]), left=1),
    "Mod by an integer 0": Attack(in_front(
        helper.make_node("Mod", ["four", "none"], ["d"]), helper.make_node("Cast", ["d"], ["gamma"], to=FLOAT),
        tensors=[nh.from_array(np.full(4, 4, np.int64), "four"), nh.from_array(np.zeros(4, np.int64), "none")]), left=1),
    "Constant without a value": Attack(in_front(helper.make_node("Constant", [], ["gamma"])), left=1),
    "Constant of text": Attack(in_front(helper.make_node("Constant", [], ["gamma"], value_string="four")), left=1),
}  # fmt: skip

OPERATORS = {
    "gamma of rank 2": Attack(parameter(GAMMA, np.ones((4, 1), "f4")), left=1),
    "gamma of rank 0": Attack(parameter(GAMMA, np.float32(2)), left=1),
    "gamma of another length": Attack(parameter(GAMMA, np.ones(5, "f4")), left=1),
    "gamma of length 1": Attack(parameter(GAMMA, np.ones(1, "f4")), left=1),
    "gamma of length 0": Attack(parameter(GAMMA, np.ones(0, "f4")), left=1),
    "all parameters of another length": Attack(edited(lambda m: [
        m.graph.initializer[i].CopyFrom(nh.from_array(np.ones(8, "f4"), m.graph.initializer[i].name))
        for i in range(1, 5)]), left=1),
    "gamma of integers": Attack(parameter(GAMMA, np.ones(4, "i8")), left=1),
    "gamma of double": Attack(parameter(GAMMA, np.ones(4, "f8"))),
    "gamma of complex": Attack(parameter(GAMMA, np.ones(4, "c8")), left=1),
    "var of bool": Attack(parameter(VAR, np.ones(4, bool)), left=1),
    "BN without var": Attack(inputs(1, "c", "gamma", "beta", "mean"), "'bn': has 4 inputs where BatchNormalization has 5"),
    "BN with an empty var": Attack(inputs(1, "c", "gamma", "beta", "mean", ""), left=1),
    "BN without inputs": Attack(inputs(1), "'bn': has 0 inputs"),
    "BN with six inputs": Attack(inputs(1, "c", "gamma", "beta", "mean", "var", "var"), "'bn': has 6 inputs"),
    "BN without outputs": Attack(edited(lambda m: (m.graph.node[1].output.pop(), m.graph.node[2].input.__setitem__(
        0, "c"))), "'bn': has 0 outputs"),
    "BN with an empty output": Attack(edited(lambda m: (m.graph.node[1].output.__setitem__(
        0, ""), m.graph.node[2].input.__setitem__(0, "c"))), left=1),
    "epsilon as text": Attack(attribute(1, "epsilon", "small"), "attribute 'epsilon' is of type STRING"),
    "epsilon as an integer": Attack(attribute(1, "epsilon", 1), "'epsilon' is of type INT; BatchNormalization has it of type FLOAT"),
    "epsilon as a list": Attack(attribute(1, "epsilon", [1.0, 2.0]), "is of type FLOATS"),
    "epsilon as a graph": Attack(attribute(1, "epsilon", GraphProto(name="e")), "is of type GRAPH"),
    "epsilon twice": Attack(edited(lambda m: m.graph.node[1].attribute.extend(
        [helper.make_attribute("epsilon", 1e-5), helper.make_attribute("epsilon", 1.0)])), "'bn'.*'epsilon'.*twice"),
    "an attribute without a type": Attack(attribute(1, "epsilon", AttributeProto(name="epsilon", f=0.5)), "'epsilon' has no type"),
    "an attribute of an unknown type": Attack(
        attribute(1, "epsilon", AttributeProto.FromString(b"\x0a\x07epsilon\xa0\x01\x63")),
        "'epsilon' has no type"),
    "momentum NaN": Attack(attribute(1, "momentum", float("nan"))),
    "spatial = 0": Attack(attribute(1, "spatial", 0), left=None),
    "training_mode as text": Attack(attribute(1, "training_mode", "yes"), "is of type STRING"),
    "training_mode 2": Attack(attribute(1, "training_mode", 2), left=1),
    "group 0": Attack(attribute(0, "group", 0), left=1),
    "group -1": Attack(attribute(0, "group", -1), left=1),
    "group 3": Attack(attribute(0, "group", 3), left=None),
    "group 2^62": Attack(attribute(0, "group", 2**62), left=None),
    "group as text": Attack(attribute(0, "group", "one"), "'group' is of type STRING; Conv has it of type INT"),
    "pads of odd number": Attack(attribute(0, "pads", [1, 1, 1])),
    "negative pads": Attack(attribute(0, "pads", [-1, -1, -1, -1])),
    "huge pads": Attack(attribute(0, "pads", [2**62] * 4)),
    "strides 0": Attack(attribute(0, "strides", [0, 0])),
    "dilations 2^62": Attack(attribute(0, "dilations", [2**62, 2**62])),
    "kernel_shape of another kernel": Attack(attribute(0, "kernel_shape", [5, 5])),
    "auto_pad of no meaning": Attack(attribute(0, "auto_pad", "SIDEWAYS")),
    "auto_pad that isn't UTF-8": Attack(attribute(0, "auto_pad", b"\xff\xfe")),
    "a weight of rank 0": Attack(parameter(0, np.float32(1))),
    "a weight of rank 1": Attack(parameter(0, np.ones(4, "f4"))),
    "a weight of rank 9": Attack(parameter(0, np.ones((4, 3, *[1] * 7), "f4"))),
    "a weight of integers": Attack(parameter(0, np.ones((4, 3, 3, 3), "i4")), left=1),
    "a Conv without a weight": Attack(inputs(0, "x"), "'conv': has 1 inputs where Conv has 2 to 3"),
    "a Conv with an empty weight": Attack(inputs(0, "x", ""), left=1),
    "a Conv with five inputs": Attack(inputs(0, "x", "w", "", "beta", "beta"), "has 5 inputs"),
    "a Conv of text": Attack(inputs(0, "x", "w", "w")),
    "two outputs of a Conv": Attack(edited(lambda m: m.graph.node[0].output.append("c2")), "has 2 outputs"),
}  # fmt: skip


def values(**arrays: Any) -> Callable[[], ModelProto]:
    """BN parameters, epsilon, and the type of everything."""
    def make() -> ModelProto:
        model = conv_bn(arrays.pop("dtype", np.float32))
        if (epsilon := arrays.pop("epsilon", None)) is not None:
            model.graph.node[1].attribute.append(helper.make_attribute("epsilon", epsilon))
        for old in model.graph.initializer:
            if old.name in arrays:
                dtype = nh.to_array(old).dtype
                with np.errstate(all="ignore"):
                    new = np.broadcast_to(np.asarray(arrays[old.name]).astype(dtype), tuple(old.dims))
                old.CopyFrom(nh.from_array(new.copy(), old.name))
        return model
    return make


HALF = np.float16
NUMBERS = {
    "var NaN": Attack(values(var=[1, np.nan, 1, 1]), left=1),
    "var infinite": Attack(values(var=[1, np.inf, 1, 1]), left=0),
    "mean infinite": Attack(values(mean=[1, -np.inf, 1, 1]), left=1),
    "gamma NaN": Attack(values(gamma=np.nan), left=1),
    "a weight NaN": Attack(values(w=np.nan)),
    "a weight infinite": Attack(values(w=np.inf)),
    "var negative": Attack(values(var=[1, -1, 1, 1]), left=1),
    "var negative within epsilon": Attack(values(var=-1e-6), left=0),
    "var + epsilon = 0": Attack(values(var=0, epsilon=0.0), left=1),
    "var + epsilon = 0 by subtraction": Attack(values(var=-0.5, epsilon=0.5), left=1),
    "epsilon negative": Attack(values(epsilon=-0.1), left=None),
    "epsilon NaN": Attack(values(epsilon=float("nan")), left=1),
    "epsilon infinite": Attack(values(epsilon=float("inf")), left=0),
    "epsilon that dominates": Attack(values(epsilon=1e30), left=None),
    "gamma 0": Attack(values(gamma=[0, 1, 0, 1]), left=0),
    "gamma 0 and var + epsilon 0": Attack(values(gamma=0, var=0, epsilon=0.0), left=1),
    "gamma that overflows": Attack(values(gamma=1e38, var=1e-20), left=1),
    "a weight that overflows": Attack(values(w=1e38, gamma=1e5), left=1),
    "a weight that underflows": Attack(values(w=1e-38, gamma=1e-10), left=None),
    "a weight that underflows, and nothing beside it": Attack(values(w=1e-38, gamma=1e-10, beta=0, mean=0), left=1),
    "a shift that overflows": Attack(values(mean=3e38, gamma=1e3), left=1),
    "denormal var": Attack(values(var=1e-45, epsilon=0.0)),
    "denormal gamma": Attack(values(gamma=1e-44), left=None),
    "fp16 var at the end": Attack(values(dtype=HALF, var=65504), left=None),
    "fp16 overflow": Attack(values(dtype=HALF, gamma=60000, var=1e-4), left=1),
    "fp16 underflow": Attack(values(dtype=HALF, gamma=6e-8, var=60000), left=None),
    "fp16 epsilon that is 0 there": Attack(values(dtype=HALF, var=0, epsilon=1e-8), left=None),
    "double that overflows": Attack(values(dtype=np.float64, gamma=1e300, var=1e-300, w=1e100), left=1),
}  # fmt: skip
