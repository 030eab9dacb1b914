"""One of the two models, ready to be looked into: its double form, the shapes of its values, what was not convertible.

Both models go through the same door, so that whatever the conversion to double does to one it does to the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from bnfold.constants import Array
from bnfold.verify.large import Model
from bnfold.verify.prepare import LARGEST, ULP, moved, weights
from bnfold.verify.runtime import (
    CUT,
    CannotRun,
    Cutter,
    Feeds,
    Runner,
    element_types,
    frontier,
    producers,
    static_shapes,
)

# Bytes of double values that are kept from one run to the next; more is computed again.
HELD = 1 << 29
# Bytes that are computed at a time, values in double and the weights that they are made with: a window. A measurement
# holds the values of three (A's, B's, and A's with moved weights).
WINDOW = 1 << 28
# Values of a window: loading takes ONNX Runtime a time quadratic in the nodes, and a Conv in double is ten of them.
MOST_VALUES = 64
# Values whose shapes can't be inferred are asked for natively, this many at a time.
ASKED = 64

DOUBLE = TensorProto.DOUBLE


class Side:
    """A prepared model and its double form, for inputs of certain shapes.

    Args:
        proto: one flat graph (`prepare.prepare`).
        feeds: a batch of inputs.

    Attributes:
        proto: the model in its own types.
        model: the double model; its inputs are those of `proto` and the values of `unsupported`.
        unsupported: values that no double kernel computes, and why; they are computed natively.
        shapes, types: of values, as far as they are known.
        floats: the values that can be compared, in topological order.
        weights: initializers that rounding would move.
        loose: the initializers of `model` that hold them, and their own names.
        makers: the node of each value, in `proto`.
        cutter, native_cutter: of `model` and of `proto`.

    Raises:
        CannotRun: there is no double form.
    """

    def __init__(self, proto: Model, feeds: Mapping[str, Array]) -> None:
        from bnfold.verify.float64 import Unsupported, to_float64

        self.proto = proto
        self.shapes = static_shapes(proto, feeds)
        self.types = element_types(proto)
        self.makers = producers(proto.graph)
        self._places = {id(node): place for place, node in enumerate(self.makers.values())}
        self._ask(feeds)
        try:
            form = to_float64(proto.proto, self.shapes, self.types)
        except Unsupported as why:
            raise CannotRun(f"it has no float64 form: {why}") from why
        self.unsupported = form.unsupported
        kept = {name: array for name, array in proto.beside.items() if name not in form.stored.values()}
        self.model = Model(form.model, {new: proto.beside[old] for new, old in form.stored.items()} | kept)
        self.double_makers = producers(self.model.graph)
        self.cutter, self.native_cutter = Cutter(self.model), Cutter(proto)
        self.floats = [
            name
            for node in proto.graph.node
            for name in node.output
            if self.types.get(name) in ULP and name in self.shapes
            and (name in self.double_makers or name in self.unsupported)
        ]  # fmt: skip
        self.weights = weights(proto)
        stored = {old: new for new, old in form.stored.items()}
        self.loose = {stored.get(name, name): name for name in self.weights}

    def _ask(self, feeds: Mapping[str, Array]) -> None:
        """Shapes and types that inference doesn't give, from native runs."""
        missing = [name for name in self.makers if name not in self.shapes or not self.types.get(name)]
        for start in range(0, len(missing), ASKED):
            names = missing[start : start + ASKED]
            try:
                values = Runner(self.proto, names).run(feeds)
            except CannotRun:  # no kernels for its types: what is known has to do
                return
            for name, value in values.items():
                if isinstance(value, np.ndarray):
                    self.shapes[name] = value.shape
                    kind = {"float32": 1, "float16": 10, "float64": 11, "int64": 7, "int32": 6, "bool": 9}
                    self.types[name] = kind.get(value.dtype.name, 0)

    def weight(self, name: str, seed: int | None) -> Array:
        """One of `loose` as `model` takes it, moved by one unit in the last place if there is a seed."""
        own = self.loose[name]
        value = self.weights[own] if seed is None else moved(own, self.weights[own], seed)
        return as_double(value) if name == own else value

    def nbytes(self, name: str) -> int:
        """Size of a value in double."""
        return 8 * int(np.prod(self.shapes[name], dtype=np.int64))

    def ulp(self, name: str) -> float:
        """A unit in the last place of 1, in the type that a value is stored in."""
        return ULP.get(self.types.get(name, TensorProto.FLOAT), ULP[TensorProto.FLOAT])

    def unit(self, name: str) -> float:
        """Half of `ulp`: what storing a value may change."""
        return self.ulp(name) / 2

    def overflows(self, name: str, value: Array) -> bool:
        """Whether a value in double is finite and too large for the type that the model holds it in.

        A native run needn't show that: ONNX Runtime's CPU kernels compute float16 in float32, and keep it so from node
        to node. Other devices don't.
        """
        largest = float(np.abs(value).max(initial=0.0))
        return LARGEST[self.types[name]] < largest < np.inf

    def double_feeds(self, feeds: Mapping[str, Array]) -> Feeds:
        """Inputs as the double model takes them; what it can't compute is computed natively.

        Raises: CannotRun.
        """
        given = {info.name: info.type.tensor_type.elem_type for info in self.model.graph.input}
        found = dict(feeds)
        names = [name for name in self.unsupported if name in given]
        if names:
            found.update(Runner(self.proto, names).run(feeds))
        return {name: as_double(value) if given.get(name) == DOUBLE else value for name, value in found.items()}

    def segment(self, name: str, cuts: Mapping[str, int]) -> tuple[set[str], list[NodeProto]]:
        """Values that the segment of a value begins at, and its nodes, in the model's own graph."""
        given, nodes = frontier(self.makers, cuts, [name])
        return given, sorted(nodes, key=lambda node: self._places[id(node)])

    def windows(self, names: Sequence[str], held: int = WINDOW) -> list[list[str]]:
        """Values in topological order, in groups that fit into memory together."""
        groups: list[list[str]] = [[]]
        size = 0
        for name in names:
            cost = self.nbytes(name) + self._weight_bytes(name)
            if groups[-1] and (size + cost > held or len(groups[-1]) == MOST_VALUES):
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += cost
        return groups

    def _weight_bytes(self, name: str) -> int:
        """What the large weights of a value's node take in double."""
        read = self.makers[name].input if name in self.makers else ()
        return sum(8 * self.proto.beside[weight].size for weight in read if weight in self.proto.beside)

    def walk(self, names: Sequence[str], feeds: Feeds, held: int = WINDOW) -> Iterator[Feeds]:
        """Values of the double model window by window; each goes on from what the ones before it left.

        Args:
            names: made by nodes or given (`unsupported`), in topological order.
            feeds: of the double model (`double_feeds`).
            held: bytes of a window.
        """
        groups = self.windows(names, held)
        last: dict[str, int] = {}
        earlier: dict[str, int] = {}
        cuts: list[dict[str, int]] = []
        for index, group in enumerate(groups):
            cuts.append(dict(earlier))
            given, _ = frontier(self.double_makers, earlier, group)
            last.update((one, index) for one in given if one in earlier)
            earlier.update(dict.fromkeys(group, DOUBLE))
        left: Feeds = {}
        for index, group in enumerate(groups):
            made = [name for name in group if name in self.double_makers]
            values = {name: feeds[name] for name in group if name not in self.double_makers}
            if made:
                runner = Runner(self.cutter.cut(cuts[index], made, (), self.shapes), made)
                values |= runner.run(feeds | {CUT + name: value for name, value in left.items()})
            yield values
            left = {name: value for name, value in (left | values).items() if last.get(name, -1) > index}


def as_double(value: Array) -> Array:
    """A float array in double; others as they are."""
    return value.astype(np.float64) if value.dtype.kind == "f" or value.dtype.name == "bfloat16" else value
