"""Compile a graph into one straight Python function.

The nodes are walked once, when the module is made. Each becomes a call of its row in the table, with attributes and
constants filled in; what depends on constants alone is computed there and then; what computes with sizes alone stays
in Python (`bnfold.torch.sizes`). The result is a `torch.fx.Graph`, from which torch makes source code that frees every
value behind its last use. So a call of the module runs no interpreter of ours: autograd, autocast and torch.compile
see the calls that a person would have written.

Bodies of If, Loop and Scan become functions of their own, which get the values that they capture as arguments behind
their inputs. Local functions are inlined, and so are operators that the table lacks but ONNX defines by others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import onnx
import torch
import torch.fx
from onnx import AttributeProto, FunctionProto, TensorProto, helper
from torch.fx import Node as Step

from bnfold.constants import VIEWS
from bnfold.errors import ModelError, quoted
from bnfold.graph import Graph, Node, Scope, Value, stored_tensor
from bnfold.shapes import Shapes
from bnfold.torch import sizes
from bnfold.torch.batch_norm import EPSILON, conv_norm
from bnfold.torch.compiled import Compiled, bind, to_list, to_number, to_numbers, to_tensor, to_typed
from bnfold.torch.definitions import by_definition, definition, domain_and_name
from bnfold.torch.ops import linear, table
from bnfold.torch.state import State, StateTensor, outermost
from bnfold.torch.types import DTYPES, MOVABLE
from bnfold.torch.values import Arg, attributes_of, content_of, grows, is_size, leaves, marked, operand_of, plain_value
from bnfold.weights import Weights

# Attributes of old versions that say nothing about the result.
IGNORED = frozenset({"consumed_inputs"})


# --------------------------------------------------------------------------------------------------- compiling
@dataclass
class Parts:
    """What a program needs beside its code.

    Attributes:
        constants: non-persistent buffers by path.
        bodies: submodules by path.
        like: for each floating element type that is asked for, the path of an empty tensor of that type.
    """

    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    bodies: dict[str, torch.nn.Module] = field(default_factory=dict)
    like: dict[torch.dtype, str] = field(default_factory=dict)


@dataclass
class Shared:
    """What is the same for all builders of a model."""

    graph: Graph
    weights: Weights
    shapes: Shapes
    state: State
    parts: Parts = field(default_factory=Parts)
    functions: dict[tuple[str, str, str], Scope] = field(default_factory=dict)
    main_type: torch.dtype = torch.float32
    frozen: bool = False


@dataclass
class Frame:
    """One run through a scope's nodes: values by name, and the attributes that a function was called with."""

    values: dict[Value, Arg] = field(default_factory=dict)
    given: dict[str, AttributeProto] = field(default_factory=dict)


class Builder:
    """Writes the program of one graph or body."""

    def __init__(self, shared: Shared, parent: tuple[Builder, Frame] | None = None) -> None:
        self.shared = shared
        self.parent = parent
        self.fx = torch.fx.Graph()
        self.captured: dict[Step, Step] = {}  # the enclosing program's step → the parameter that it arrives by
        self._paths: dict[str, Step] = {}

    # ------------------------------------------------------------------------------------------------- values
    def input(self) -> Step:
        """One more parameter."""
        return self.fx.placeholder(f"input_{len([n for n in self.fx.nodes if n.op == 'placeholder'])}")

    def path(self, path: str) -> Step:
        """An attribute of the root module."""
        if self.parent is not None:
            return self.imported(self.parent[0].path(path))
        if path not in self._paths:
            self._paths[path] = self.fx.get_attr(path)
        return self._paths[path]

    def imported(self, arg: Arg) -> Arg:
        """A value of the enclosing program."""
        if not isinstance(arg, Step):
            return arg
        if arg not in self.captured:
            parameter = self.input()
            parameter.meta.update(arg.meta)
            self.captured[arg] = parameter
        return self.captured[arg]

    def constant(self, tensor: torch.Tensor) -> Step:
        """A tensor that is known, as a buffer that is no part of the state."""
        constants = self.shared.parts.constants
        for path, known in constants.items():
            if known is tensor:
                return self.path(path)
        path = f"constants_.c{len(constants)}"
        constants[path] = tensor
        return self.path(path)

    def like(self, dtype: torch.dtype | None = None) -> Step:
        """An empty tensor that has moved wherever the module has, and to the type that `dtype` has become."""
        likes = self.shared.parts.like
        dtype = dtype or self.shared.main_type
        return self.path(likes.setdefault(dtype, f"like_.as_{str(dtype).rpartition('.')[2]}"))

    def value(self, frame: Frame, value: Value) -> Arg:
        """What a value is here."""
        if value in frame.values:
            return frame.values[value]
        if value.outer is not None and self.parent is not None and value.outer not in frame.values:
            arg = self.imported(self.parent[0].value(self.parent[1], value.outer))
        else:
            source = outermost(value)
            known = self.shared.state.of_value.get(source)
            tensor = stored_tensor(source)
            if known is not None:
                arg = self.path(known.key)
            elif tensor is not None:
                arg = content_of(self.shared.weights, tensor)
            else:
                raise RuntimeError(f"internal error in bnfold: {value.name} is read before it is computed")
        frame.values[value] = arg
        return arg

    # -------------------------------------------------------------------------------------------------- forms
    def tensor(self, arg: Arg) -> Arg:
        """As a tensor; a known one is a torch.Tensor."""
        if isinstance(arg, Step):
            return self.emit(to_tensor, (arg, self.like())) if is_size(arg) else arg
        return arg if arg is None or isinstance(arg, torch.Tensor) else to_tensor(arg, torch.zeros(()))

    def numbers(self, arg: Arg, kind: str) -> Arg:
        """As Python numbers: a list (s), one number (k), or whichever it is (z)."""
        if arg is None:
            return None
        if kind != "z" and is_size(arg):
            rank = arg.meta["size"] if isinstance(arg, Step) else int(isinstance(arg, list))
            return arg if rank == (kind == "s") else self.emit(_SIZES[kind], (arg,))
        return arg if is_size(arg) else self.emit(_READ[kind], (arg,))

    def form(self, arg: Arg, kind: str, with_tensor: bool) -> Arg:
        """An argument in the form that a row wants it in."""
        if arg is None or kind == "q":
            return arg
        if kind in _READ:
            return self.numbers(arg, kind)
        scalar = (isinstance(arg, torch.Tensor) and arg.dim() == 0) or isinstance(arg, (int, float))
        if kind == "i" or (kind == "n" and with_tensor):
            if scalar:
                return arg.item() if isinstance(arg, torch.Tensor) else arg
            if isinstance(arg, Step) and arg.meta.get("size") == 0:
                return arg
        return self.tensor(arg)

    def emit(self, function: Callable[..., Any], args: Sequence[Arg], named: dict[str, Any] | None = None) -> Arg:
        """A step; or its result, if all that goes into it is known."""
        named = named or {}
        if not any(isinstance(arg, Step) for arg in [*leaves(args), *leaves(list(named.values()))]):
            with torch.no_grad():
                return function(*args, **named)
        given = tuple(self.fixed(arg) for arg in args)
        return self.fx.call_function(function, given, {key: self.fixed(arg) for key, arg in named.items()})

    def fixed(self, arg: Arg) -> Arg:
        """As an argument of a step: known tensors become buffers."""
        if isinstance(arg, torch.Tensor):
            return self.constant(arg)
        return [self.fixed(one) for one in arg] if isinstance(arg, (list, tuple)) else arg

    # -------------------------------------------------------------------------------------------------- nodes
    def run(self, scope: Scope, frame: Frame) -> None:
        """Compile the nodes of a scope."""
        for node in scope.nodes:
            try:
                results = self.node(node, frame)
            except (ModelError, RecursionError):
                raise
            except Exception as error:
                first = str(error).strip().partition("\n")[0]
                what = f"{node.op} can't be computed: {first or type(error).__name__}; the model may not be valid"
                raise ModelError(what, where=f"node {quoted(node.name)}") from error
            for value, result in zip(node.outputs, results, strict=False):
                if value is not None:
                    frame.values.setdefault(value, result)

    def node(self, node: Node, frame: Frame) -> Sequence[Arg]:
        """Compile one node; its outputs."""
        attributes = dict(attributes_of(node, frame.given))
        outputs = max((i + 1 for i, name in enumerate(node.proto.output) if name), default=0)
        if node.op == "Constant":
            return [self._constant(node, frame, attributes)]
        args = [None if value is None else self._read(frame, node, i, value) for i, value in enumerate(node.inputs)]
        if node.op == "Identity":
            state = self.shared.state.of_value.get(node.outputs[0]) if node.outputs[0] is not None else None
            return [args[0] if state is None else self.path(state.key)]
        function = self.shared.functions.get((*domain_and_name(node), node.proto.overload))
        if function is not None:
            return self._inline(function, args, attributes, node)
        if (result := self._sizes(node, args, attributes, outputs)) is not None:
            return result
        row = table.find(*domain_and_name(node), node.opset)
        if row is None:
            return self._inline(by_definition(node, self.shared.shapes, attributes), args, attributes, node)
        return self._call(row, node, frame, args, attributes, outputs)

    def _read(self, frame: Frame, node: Node, index: int, value: Value) -> Arg:
        own = self.shared.state.of_reader.get((id(node), index))
        return self.value(frame, value) if own is None else self.path(own.key)

    def _constant(self, node: Node, frame: Frame, attributes: dict[str, AttributeProto]) -> Arg:
        output = node.outputs[0]
        if output is not None and not node.scope.is_function and stored_tensor(output) is not None:
            return self.value(frame, output)
        name, attribute = next(iter(attributes.items()))
        if name == "value":
            return content_of(self.shared.weights, attribute.t)
        value = helper.get_attribute_value(attribute)
        return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)

    def _sizes(
        self, node: Node, args: Sequence[Arg], attributes: dict[str, AttributeProto], outputs: int
    ) -> Sequence[Arg] | None:
        """The node as arithmetic of sizes, if it is that."""
        if node.op in ("Shape", "Size", "SequenceLength"):
            start, end = (attributes[name].i if name in attributes else None for name in ("start", "end"))
            named = {"start": start or 0, "end": end} if start or end is not None else {}
            result = self.emit(sizes.shape if node.op == "Shape" else sizes.count, args[:1], named)
            inner = isinstance(args[0], list) or (isinstance(args[0], Step) and is_size(args[0]))
            return [marked(result, int(node.op == "Shape"), inner)]
        operands = [operand_of(arg) for arg in args]
        known = [one for arg, one in zip(args, operands, strict=True) if arg is not None]
        if not any(is_size(arg) for arg in args) or None in known:
            return None
        plain = {name: plain_value(self.shared.weights, one) for name, one in attributes.items()}
        step = sizes.plan(node.op, operands, plain, outputs)
        if step is None:
            return None
        given = [self.numbers(arg, "z") for arg in args]
        result = self.emit(step.function, given, step.extra)
        if outputs > 1:
            return [marked(self.emit(getitem, (result, i)), step.rank) for i in range(outputs)]
        return [marked(result, step.rank)]

    def _call(
        self, row: table.Row, node: Node, frame: Frame, args: Sequence[Arg], attributes: dict[str, AttributeProto],
        outputs: int,
    ) -> Sequence[Arg]:  # fmt: skip
        typed = [arg for i, arg in enumerate(args) if row.kind(i) in "nT"]
        with_tensor = any(isinstance(arg, Step) and not is_size(arg) for arg in typed)
        if node.op not in VIEWS and grows(node, args):  # computed at each call, rather than kept
            args = [self.fixed(arg) for arg in args]
        given = [self.form(arg, row.kind(i), with_tensor) for i, arg in enumerate(args)]
        live = row.random or any(isinstance(arg, Step) for arg in leaves(given))
        named: dict[str, Any] = {}
        for name, attribute in attributes.items():
            if name in IGNORED:
                continue
            if row.attributes is not None and name not in row.attributes:
                raise ModelError(
                    f"{node.op} has an attribute {quoted(name)} that bnfold.torch doesn't know",
                    where=f"node {quoted(node.name)}",
                )
            named[name] = self._attribute(node, frame, attribute, live)
        if "outputs" in row.wants:
            named["outputs"] = outputs
        is_frozen = row.name == "BatchNormalization" and self.shared.frozen
        if "training" in row.wants:
            named["training"] = False if is_frozen else self.path("training")
        if "like" in row.wants:
            named["like"] = self.like() if live else torch.zeros(())
        if is_frozen and outputs == 1 and (folded := self._folded(node, given, named)) is not None:
            return [folded]
        result = self.emit(row.function, given, named)
        if outputs > 1 or (isinstance(result, tuple) and not isinstance(result, Step)):
            return [self.emit(getitem, (result, i)) for i in range(outputs)]
        if row.name in _TUPLES and isinstance(result, Step):
            return [self.emit(getitem, (result, 0))]
        return [result]

    def _folded(self, node: Node, given: Sequence[Arg], named: dict[str, Any]) -> Arg | None:
        """A BN with frozen statistics as part of the convolution in front of it, if that is for the BN alone."""
        x, source = given[0], node.inputs[0]
        if not (isinstance(x, Step) and x.target is linear.conv and source is not None and source.is_private):
            return None
        if len(source.users) > 1 or named.get("training_mode"):
            return None
        data, weight, bias = (*x.args, None)[:3]
        args = (data, weight, bias, *given[1:])
        return self.emit(conv_norm, args, {"epsilon": named.get("epsilon", EPSILON), **x.kwargs})

    def _attribute(self, node: Node, frame: Frame, attribute: AttributeProto, live: bool) -> Any:
        if attribute.type == AttributeProto.GRAPH:
            scope = next(body for body in node.bodies if body.proto is attribute.g)
            return self._body(scope, frame)
        value = plain_value(self.shared.weights, attribute)
        if attribute.name in _TYPES:
            dtype = DTYPES.get(value) if value else None
            if dtype is None and value:
                raise ModelError(
                    f"torch has no type like {TensorProto.DataType.Name(value)}", where=f"node {quoted(node.name)}"
                )
            return self.like(dtype) if dtype in MOVABLE and live else dtype
        return value

    # ------------------------------------------------------------------------------------------------- bodies
    def _body(self, scope: Scope, frame: Frame) -> Step:
        inner = Builder(self.shared, (self, frame))
        own = Frame(given=frame.given)
        proto = scope.proto
        assert isinstance(proto, onnx.GraphProto)
        for info in proto.input:
            own.values[scope.values[info.name]] = inner.input()
        inner.run(scope, own)
        results = []
        for info in proto.output:
            found = scope.lookup(info.name)
            assert found is not None
            result = inner.value(own, found)
            results.append(inner.fixed(inner.tensor(result) if is_size(result) else result))
        inner.fx.output(results)
        path = f"bodies_.b{len(self.shared.parts.bodies)}"
        self.shared.parts.bodies[path] = Compiled(inner.fx)
        step: Step = self.fx.call_function(bind, (self.path(path), list(inner.captured)))
        return step

    def _inline(
        self, scope: Scope, args: Sequence[Arg], attributes: dict[str, AttributeProto], node: Node
    ) -> Sequence[Arg]:
        proto = scope.proto
        assert isinstance(proto, FunctionProto)
        given = {one.name: one for one in proto.attribute_proto} | attributes
        frame = Frame(given=given)
        padded = [*args, *[None] * (len(proto.input) - len(args))]
        for name, arg in zip(proto.input, padded, strict=True):
            frame.values[scope.values[name]] = arg
        self.run(scope, frame)
        results = []
        for name, wanted in zip(proto.output, node.outputs, strict=False):
            found = scope.lookup(name)
            results.append(None if wanted is None or found is None else self.value(frame, found))
        return results


_READ = {"s": to_list, "k": to_number, "z": to_numbers}
_SIZES = {"s": sizes.as_list, "k": sizes.as_number}
# Operators whose function gives a tuple, however many of its items the node has.
_TUPLES = frozenset({"LSTM", "GRU", "RNN", "Split", "TopK", "DynamicQuantizeLinear"})
# Attributes that name an element type.
_TYPES = frozenset({"to", "dtype", "output_dtype", "stash_type", "precision"})


# -------------------------------------------------------------------------------------------------- whole models
def demand_known(shared: Shared) -> None:
    """Raises: ModelError that names every operator that can't be computed, or a tensor that can't be read."""
    unknown: dict[str, list[Node]] = {}
    for scope in shared.graph.scopes:
        for sparse in getattr(scope.proto, "sparse_initializer", ()):
            what = "is sparse, which bnfold.torch doesn't read; store it as a plain initializer"
            raise ModelError(what, where=f"tensor {quoted(sparse.values.name)}")
        for node in scope.nodes:
            domain, name = domain_and_name(node)
            if node.op in ("Constant", "Identity", "Shape", "Size", "SequenceLength"):
                continue
            if (domain, name, node.proto.overload) in shared.functions or table.find(domain, name, node.opset):
                continue
            if definition(node, shared.shapes, list(node.proto.attribute)) is None:
                unknown.setdefault(f"{domain}::{name}" if domain else name, []).append(node)
    if unknown:
        listed = ", ".join(
            f"{name} ({len(nodes)} node{'s' * (len(nodes) > 1)}, first {quoted(nodes[0].name)})"
            for name, nodes in sorted(unknown.items())
        )
        raise ModelError(f"has operators that bnfold.torch doesn't compute: {listed}")


def compile_main(shared: Shared) -> torch.fx.Graph:
    """The program of the main graph."""
    builder, frame = Builder(shared), Frame()
    scope = shared.graph.main
    proto = scope.proto
    assert isinstance(proto, onnx.GraphProto)
    for info in proto.input:
        value = scope.values[info.name]
        if value.tensor is None:
            frame.values[value] = builder.input()
    builder.run(scope, frame)
    results = []
    for info in proto.output:
        found = scope.lookup(info.name)
        assert found is not None
        arg = builder.value(frame, found)
        if is_size(arg):
            dtype = DTYPES.get(info.type.tensor_type.elem_type, torch.int64)
            arg = builder.emit(to_typed, (arg, dtype, builder.like()))
        results.append(builder.fixed(arg))
    builder.fx.output(results[0] if len(results) == 1 else tuple(results))
    builder.fx.eliminate_dead_code()
    return builder.fx


def state_content(shared: Shared, tensor: StateTensor) -> torch.Tensor:
    """The content of a parameter or buffer."""
    return content_of(shared.weights, tensor.tensor)
