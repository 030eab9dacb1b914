"""The language that the declarations are written in: terms that become nodes.

A declaration takes an `Op` (a node whose op has no double kernel) and returns a `Term` built from ops that have one:

    @declares("Softsign")
    def softsign(op: Op) -> Term:
        x = op.input(0)
        return x / (1.0 + abs(x))

Every operator on a term appends a node, and the driver gives the last one the name of the original output.
Parameters stay as they are stored (a kernel is reshaped by nodes, not here), so that the double model has the
initializers of the original under their own names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

Shape = tuple[int, ...]

# Element types that become double.
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})


# What the terms below need: axes of Squeeze, Unsqueeze and ReduceSum as inputs.
LEAST_OPSET = 13


class Unsupported(Exception):
    """A node has no double form; the message says why."""


class Builder:
    """Collects the nodes of one graph (the main one, or a body).

    Args:
        opset: of ONNX's own domain, in the original; what is built is of LEAST_OPSET or above.
        shapes: concrete shapes of values, by their original names.
        types: element types of the original values.
        constants: small constants of the original, by name.
        taken: every name in use; fresh ones are added.
    """

    def __init__(
        self,
        opset: int,
        shapes: dict[str, Shape],
        types: Mapping[str, int],
        constants: dict[str, TensorProto],
        taken: set[str],
    ) -> None:
        self.opset = opset
        self.shapes = shapes
        self.types = types
        self.constants = constants
        self.taken = taken
        self._counts: dict[str, int] = {}  # how many of a name are taken for sure: thousands of ops share one
        self.nodes: list[NodeProto] = []
        self._cache: dict[tuple[str, Shape, bytes], Term] = {}

    def fresh(self, wanted: str) -> str:
        """A name that nothing bears yet."""
        count = self._counts.get(wanted, 0)
        name = f"{wanted}_{count}" if count else wanted
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        self._counts[wanted] = count
        return name

    def node(self, op_type: str, inputs: Iterable[str], outputs: Iterable[str], **attributes: Any) -> None:
        """Append a node."""
        self.nodes.append(helper.make_node(op_type, list(inputs), list(outputs), **attributes))

    def op(self, op_type: str, *inputs: Term | None, **attributes: Any) -> Term:
        """A new node's first output."""
        name = self.fresh(f"float64/{op_type}")
        self.node(op_type, [term.name if term else "" for term in inputs], [name], **attributes)
        return Term(self, name)

    def ops(self, op_type: str, inputs: Sequence[Term], count: int, **attributes: Any) -> tuple[Term, ...]:
        """A new node's outputs."""
        names = [self.fresh(f"float64/{op_type}") for _ in range(count)]
        self.node(op_type, [term.name for term in inputs], names, **attributes)
        return tuple(Term(self, name) for name in names)

    def constant(self, values: Any) -> Term:
        """A double constant; integers and bools keep their type (int64 for Python's)."""
        array = np.asarray(values)
        array = array.astype(np.float64) if array.dtype.kind == "f" else array
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._cache:
            name = self.fresh("float64/constant")
            self.node("Constant", [], [name], value=numpy_helper.from_array(array, name))
            self._cache[key] = Term(self, name)
        return self._cache[key]

    def integers(self, values: Sequence[int]) -> Term:
        """A list of int64, as shapes and axes are given."""
        return self.constant(np.array(values, np.int64))

    def forget(self, start: int) -> None:
        """Drop the nodes from `start` on, of a declaration that failed."""
        names = {name for node in self.nodes[start:] for name in node.output}
        del self.nodes[start:]
        self._cache = {key: term for key, term in self._cache.items() if term.name not in names}

    def joined(self, *sizes: Term | int) -> Term:
        """A shape, from parts that are computed and numbers."""
        terms = [size if isinstance(size, Term) else self.integers([size]) for size in sizes]
        return self.op("Concat", *terms, axis=0)

    def finish(self, start: int, terms: Sequence[Term], outputs: Sequence[str]) -> None:
        """Give the terms, made by the nodes from `start` on, the names of the original outputs."""
        names = {term.name: name for term, name in zip(terms, outputs, strict=False) if name}
        made: set[str] = set()
        for node in self.nodes[start:]:
            made.update(node.output)
            for field in (node.input, node.output):
                for index, name in enumerate(field):
                    if name in names and name in made:
                        field[index] = names[name]
        for name, output in names.items():
            if name not in made:
                self.node("Identity", [name], [output])


class Term:
    """A value of the graph that is being built; operators append nodes."""

    __slots__ = ("builder", "name")

    def __init__(self, builder: Builder, name: str) -> None:
        self.builder = builder
        self.name = name

    def op(self, op_type: str, *others: Term | None, **attributes: Any) -> Term:
        """`op_type` of this and other inputs."""
        return self.builder.op(op_type, self, *others, **attributes)

    def _with(self, op_type: str, other: Term | float, swapped: bool = False) -> Term:
        term = other if isinstance(other, Term) else self.builder.constant(float(other))
        return term.op(op_type, self) if swapped else self.op(op_type, term)

    def __add__(self, other: Term | float) -> Term:
        return self._with("Add", other)

    def __radd__(self, other: float) -> Term:
        return self._with("Add", other)

    def __sub__(self, other: Term | float) -> Term:
        return self._with("Sub", other)

    def __rsub__(self, other: float) -> Term:
        return self._with("Sub", other, swapped=True)

    def __mul__(self, other: Term | float) -> Term:
        return self._with("Mul", other)

    def __rmul__(self, other: float) -> Term:
        return self._with("Mul", other)

    def __truediv__(self, other: Term | float) -> Term:
        return self._with("Div", other)

    def __rtruediv__(self, other: float) -> Term:
        return self._with("Div", other, swapped=True)

    def __pow__(self, power: float) -> Term:
        return self._with("Pow", power)

    def __neg__(self) -> Term:
        return self.op("Neg")

    def __abs__(self) -> Term:
        return self.op("Abs")

    def __matmul__(self, other: Term) -> Term:
        return self.op("MatMul", other)

    def above(self, bound: float) -> Term:
        """max(x, bound)."""
        return self._with("Max", bound)

    def below(self, bound: float) -> Term:
        """min(x, bound)."""
        return self._with("Min", bound)

    def inside(self, body: Builder) -> Term:
        """This value as a body captures it."""
        return Term(body, self.name)

    def cast(self, element_type: int) -> Term:
        """The same values in another type."""
        return self.op("Cast", to=element_type)

    def reshape(self, shape: Sequence[int] | Term) -> Term:
        """Another shape; 0 keeps a dimension, -1 is what is left."""
        return self.op("Reshape", shape if isinstance(shape, Term) else self.builder.integers(shape))

    def transpose(self, order: Sequence[int]) -> Term:
        """Axes in another order."""
        return self.op("Transpose", perm=list(order))

    def unsqueeze(self, *axes: int) -> Term:
        """New axes of size 1."""
        return self.op("Unsqueeze", self.builder.integers(axes))

    def slice(self, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]) -> Term:
        """A strided part; an end of None is the end."""
        return self.op("Slice", *map(self.builder.integers, (starts, ends, axes, steps)))

    def pad(self, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Term:
        """A border around all axes; negative widths cut off."""
        if not any((*before, *after)):
            return self
        return self.op("Pad", self.builder.integers([*before, *after]), self.builder.constant(value))

    def reduce(self, op_type: str, axes: Sequence[int], keepdims: bool = True) -> Term:
        """ReduceSum, ReduceMean, ReduceMax or the like over some axes; before opset 18 most have them as attribute."""
        if op_type == "ReduceSum" or self.builder.opset >= 18:  # the first of them to change, and the others
            return self.op(op_type, self.builder.integers(axes), keepdims=int(keepdims))
        return self.op(op_type, axes=list(axes), keepdims=int(keepdims))

    def gather(self, indices: Any, axis: int) -> Term:
        """Elements along an axis; one index alone takes the axis away."""
        return self.op("Gather", self.builder.constant(np.asarray(indices, np.int64)), axis=axis)

    def dims(self, start: int, end: int) -> Term:
        """Sizes of the axes from `start` up to `end`, as the graph runs."""
        return self.op("Shape").slice([start], [end], [0], [1])


class Op:
    """A node of the original, as a declaration sees it."""

    def __init__(self, builder: Builder, node: NodeProto) -> None:
        self.builder = builder
        self.proto = node

    @property
    def opset(self) -> int:
        """Of ONNX's own domain, in the original."""
        return self.builder.opset

    def input(self, index: int) -> Term:
        """An input that is always there."""
        return Term(self.builder, self.proto.input[index])

    def optional(self, index: int) -> Term | None:
        """An input, None if it is left out."""
        return self.input(index) if index < len(self.proto.input) and self.proto.input[index] else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute; a float default is rounded to float32, which an attribute is."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return float(np.float32(default)) if isinstance(default, float) else default

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        return float(self.attribute(name, default))

    def shape(self, index: int) -> Shape:
        """Concrete shape of an input.

        Raises:
            Unsupported: it isn't known.
        """
        return self._shape(self.proto.input[index])

    def output_shape(self, index: int = 0) -> Shape:
        """Concrete shape of an output.

        Raises:
            Unsupported: it isn't known.
        """
        return self._shape(self.proto.output[index])

    def knows_shape(self, index: int) -> bool:
        """True if the concrete shape of an input is known."""
        return self.proto.input[index] in self.builder.shapes

    def knows_rank(self, index: int) -> bool:
        """True if the number of axes of an input is known."""
        return self.knows_shape(index)

    def over(self, op_type: str, x: Term, **attributes: Any) -> Term:
        """Another op of x, by its own declaration if it has one."""
        if op_type not in DECLARATIONS:
            return x.op(op_type, **attributes)
        node = helper.make_node(op_type, [x.name], [self.proto.output[0]], **attributes)
        result = DECLARATIONS[op_type](Op(self.builder, node))
        assert isinstance(result, Term)
        return result

    def _shape(self, name: str) -> Shape:
        if name not in self.builder.shapes:
            raise Unsupported(f"the shape of '{name}' is not known")
        return self.builder.shapes[name]

    def constant(self, index: int) -> np.ndarray[Any, Any] | None:
        """The content of a small constant input, None if it is computed."""
        tensor = self.builder.constants.get(self.proto.input[index]) if self.optional(index) else None
        return None if tensor is None else numpy_helper.to_array(tensor)

    def rank(self, index: int) -> int:
        """Number of axes of an input.

        Raises:
            Unsupported: it isn't known.
        """
        return len(self.shape(index))

    def wants(self, output: int) -> bool:
        """True if the node has this output."""
        return output < len(self.proto.output) and bool(self.proto.output[output])


Declaration = Callable[[Op], "Term | tuple[Term, ...]"]

# Forms of ops without a double kernel.
DECLARATIONS: dict[str, Declaration] = {}
# Forms of ops as they were before an opset, of whatever element type: the newer ones have other inputs or meaning.
OLDER: dict[str, tuple[int, Declaration]] = {}


def declares(*op_types: str) -> Callable[[Declaration], Declaration]:
    """Register the double form of ops: of ONNX's own domain by their names, of others as `domain:name`."""

    def register(declaration: Declaration) -> Declaration:
        DECLARATIONS.update(dict.fromkeys(op_types, declaration))
        return declaration

    return register


def lifts(op_type: str, before: int) -> Callable[[Declaration], Declaration]:
    """Register what stands for an op in models of an opset below `before`."""

    def register(declaration: Declaration) -> Declaration:
        OLDER[op_type] = (before, declaration)
        return declaration

    return register
