"""Which tensors of a model are a module's parameters and buffers, and what they are called.

A floating tensor *trains* if it reaches an input where layers keep their weights (`SLOTS`), directly or through
nodes that only change its shape or type. Means and variances of BN are buffers, and so are other floating
initializers; what has one element and is no weight (an exponent, an epsilon) and whatever is no float is part of the
program.

Exporters store equal tensors once. While a network is fresh, its ones and zeros are all equal, and layers that have
nothing to do with each other share a tensor in the file. Trained as one they would stay one. So a tensor of one
number throughout is a tensor of its own for each node that reads it, and so is what comes out of an Identity (the
TorchScript exporter writes these for equal tensors, under the original names). Tensors of many values that several
nodes read are shared on purpose, and stay shared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from onnx import TensorProto

from bnfold.constants import Array, is_floating
from bnfold.errors import UsageError, quoted
from bnfold.graph import Graph, Node, Value, stored_tensor
from bnfold.weights import Weights

# Where layers keep weights: operator → inputs, and what they are called where they need a name.
SLOTS: dict[str, dict[int, str]] = {
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {0: "left", 1: "weight", 2: "bias"},
    "MatMul": {0: "left", 1: "weight"},
    "BatchNormalization": {1: "scale", 2: "shift"},
    "InstanceNormalization": {1: "scale", 2: "shift"},
    "LayerNormalization": {1: "scale", 2: "shift"},
    "GroupNormalization": {1: "scale", 2: "shift"},
    "RMSNormalization": {1: "scale"},
    "PRelu": {1: "slope"},
    "LSTM": {1: "weight", 2: "recurrence", 3: "bias", 7: "peepholes"},
    "GRU": {1: "weight", 2: "recurrence", 3: "bias"},
    "RNN": {1: "weight", 2: "recurrence", 3: "bias"},
    "Einsum": {0: "weight", 1: "weight"},
}
# Here too if there is more than one element: a bias, a scale per channel, positions, a table of embeddings.
WIDE_SLOTS: dict[str, dict[int, str]] = {
    **{name: {0: "left", 1: "right"} for name in ("Add", "Sub", "Mul", "Div")},
    "Gather": {0: "table"},
    "Concat": dict.fromkeys(range(16), "part"),
}
STATISTICS = {3: "running_mean", 4: "running_var"}  # of BatchNormalization

# Nodes that a weight may pass through on its way, their other inputs being constants.
VIEWS = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "CastLike", "Expand"})

# What may stand in generated code between quotes as it is.
_HARMLESS = re.compile(r"[^\"'\\{}\x00-\x1f\x7f]+")

Choice = str | Sequence[str] | Callable[[str], bool] | None


@dataclass(frozen=True, eq=False)
class StateTensor:
    """A parameter or buffer.

    Attributes:
        name: of the tensor in the file; of a copy: the name that it gets if it becomes a tensor of its own.
        key: in the module's state_dict: the name, but for names that torch can't use.
        source: what it is read from.
        trains: whether it requires a gradient.
        buffer: whether it is no parameter at all.
        readers: of a copy, the inputs that read it, as (node, number of the input).
        identity: of a copy, the Identity that it comes out of, if it does.
    """

    name: str
    key: str
    source: Value
    trains: bool
    buffer: bool
    readers: tuple[tuple[Node, int], ...] = ()
    identity: Node | None = None

    @property
    def is_copy(self) -> bool:
        """Whether the file has no tensor of this name yet."""
        return bool(self.readers) or self.identity is not None

    @property
    def tensor(self) -> TensorProto:
        """Where the file keeps the content (of a copy: what it was copied from)."""
        found = stored_tensor(self.source)
        assert found is not None
        return found


@dataclass(frozen=True)
class State:
    """All of them, and how the program finds them: by the value that is read, or by who reads it."""

    tensors: tuple[StateTensor, ...]
    of_value: dict[Value, StateTensor]
    of_reader: dict[tuple[int, int], StateTensor]


@dataclass(frozen=True, eq=False)
class _Slot:
    node: Node
    index: int
    role: str
    origin: Value
    direct: bool  # read without a node in between
    widened: bool  # behind an Expand: a bias made of one zero is no weight, a class token is
    identity: Value | None  # the Identity's output next to the origin, if there is one
    statistic: bool


def outermost(value: Value) -> Value:
    """The value itself, or the one that it was captured from."""
    while value.outer is not None:
        value = value.outer
    return value


def find_state(graph: Graph, weights: Weights, train: Choice, taken: Callable[[str], bool]) -> State:
    """Decide for every floating tensor of the model.

    Args:
        graph: its view.
        weights: the content of its tensors.
        train: which tensors train; None for the default.
        taken: names that the module needs for itself.

    Raises: UsageError if a pattern matches no tensor.
    """
    floats = {value: weights.read(tensor) for value, tensor in _floating(graph)}
    slots = [slot for slot in _slots(graph) if slot.origin in floats and _counts(slot, floats[slot.origin])]
    parameters = {slot.origin for slot in slots if not slot.statistic}
    statistics = {slot.origin for slot in slots if slot.statistic} - parameters
    chosen = _chooser(train)
    names = _Names(taken, (name for scope in graph.scopes for name in scope.values))
    names_of = {value: names.told_apart(value.name) for value in floats}
    asked = {value for value in floats if train is not None and chosen(names_of[value])}
    tensors: list[StateTensor] = []
    of_value: dict[Value, StateTensor] = {}
    of_reader: dict[tuple[int, int], StateTensor] = {}
    for value, array in floats.items():
        is_parameter = value in parameters or value in asked - statistics
        if not is_parameter and value not in statistics and (value.tensor is None or array.size == 1):
            continue
        trains = is_parameter and (train is None or value in asked)
        name = names_of[value]
        of_value[value] = StateTensor(name, names.key(name), value, trains, not is_parameter)
        tensors.append(of_value[value])
    for slot, name, readers in _copies(slots, floats, names):
        trains = not slot.statistic and chosen(name)
        identity = slot.identity.producer if slot.identity is not None else None
        mine = () if identity is not None else readers
        tensors.append(StateTensor(name, names.key(name), slot.origin, trains, slot.statistic, mine, identity))
        if slot.identity is not None:
            of_value[slot.identity] = tensors[-1]
        of_reader.update({(id(node), index): tensors[-1] for node, index in mine})
    _demand_matches(train, [tensor.name for tensor in tensors])
    return State(tuple(tensors), of_value, of_reader)


def _floating(graph: Graph) -> Iterator[tuple[Value, TensorProto]]:
    """Floating tensors of the graph and its bodies, in the file's order; functions have none of their own."""
    for scope in graph.scopes:
        if scope.is_function:
            continue
        for value in scope.values.values():
            tensor = stored_tensor(value)
            if tensor is not None and tensor.data_type in _FLOATS:
                yield value, tensor


_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})


def _slots(graph: Graph) -> Iterator[_Slot]:
    for scope in graph.scopes:
        if scope.is_function:
            continue
        for node in scope.nodes:
            roles = SLOTS.get(node.op) or WIDE_SLOTS.get(node.op) or {}
            for index, value in enumerate(node.inputs):
                statistic = node.op == "BatchNormalization" and index in STATISTICS
                if value is not None and (statistic or index in roles):
                    role = STATISTICS[index] if statistic else roles[index]
                    yield _slot(node, index, role, value, statistic)


def _slot(node: Node, index: int, role: str, value: Value, statistic: bool) -> _Slot:
    direct, widened, identity = True, False, None
    value = outermost(value)
    while value.tensor is None and value.producer is not None and value.producer.op in VIEWS:
        identity = value if value.producer.op == "Identity" else None
        direct, widened = False, widened or value.producer.op == "Expand"
        source = value.producer.input(0)
        if source is None:
            break
        value = outermost(source)
    return _Slot(node, index, role, value, direct, widened, identity, statistic)


def _counts(slot: _Slot, array: Array) -> bool:
    """Whether what is in the slot is a weight rather than a constant of the function."""
    return is_floating(array) and (array.size > 1 or not (slot.widened or slot.node.op in WIDE_SLOTS))


def _copies(
    slots: Sequence[_Slot], floats: dict[Value, Array], names: _Names
) -> Iterator[tuple[_Slot, str, tuple[tuple[Node, int], ...]]]:
    """Slots that share a tensor with others by accident: the slot, a name, and who reads the copy."""
    by_origin: dict[Value, list[_Slot]] = {}
    for slot in slots:
        by_origin.setdefault(slot.origin, []).append(slot)
    for origin, sharing in by_origin.items():
        given: set[Value] = set()
        for slot in sharing:
            if slot.identity is not None and len(origin.users) > 1 and slot.identity not in given:
                given.add(slot.identity)
                yield slot, slot.identity.name, ()
        array = floats[origin]
        even = array.size > 1 and bool((array == array.flat[0]).all())
        direct = [slot for slot in sharing if slot.direct]
        if not even or origin.outer is not None or len(direct) < 2:
            continue
        for slot in direct[1:]:
            yield slot, names.fresh(f"{slot.node.name}.{slot.role}"), ((slot.node, slot.index),)


def _chooser(train: Choice) -> Callable[[str], bool]:
    if train is None:
        return lambda name: True
    if callable(train):
        return train
    patterns = (train,) if isinstance(train, str) else tuple(train)
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def _demand_matches(train: Choice, names: Iterable[str]) -> None:
    if train is None or callable(train):
        return
    known = list(names)
    for pattern in (train,) if isinstance(train, str) else train:
        if not any(fnmatchcase(name, pattern) for name in known):
            some = ", ".join(quoted(name) for name in known[:3])
            raise UsageError(f"train {quoted(pattern)} matches the name of no floating tensor; there are {some}, …")


class _Names:
    """Hands out keys: paths of submodules and at their end a parameter, as torch wants them."""

    def __init__(self, taken: Callable[[str], bool], values: Iterable[str]) -> None:
        self._taken = taken
        self._values = set(values)
        self._told: set[str] = set()
        self._leaves: set[str] = set()
        self._inner: set[str] = set()

    def fresh(self, wanted: str) -> str:
        """`wanted`, or with a number behind it: a name that no value of the model has."""
        name, count = wanted, 0
        while name in self._values:
            count += 1
            name = f"{wanted}_{count}"
        self._values.add(name)
        return name

    def told_apart(self, name: str) -> str:
        """The name; with a number behind it where another body has it too."""
        told = name if name not in self._told else self.fresh(name)
        self._told.add(told)
        return told

    def key(self, name: str) -> str:
        """The name itself if torch can take it; else the nearest that it can."""
        key = name if self._possible(name) else re.sub(r"[\"'\\{}.\x00-\x1f\x7f]", "_", name) or "_"
        while not self._possible(key):
            key += "_"
        parts = key.split(".")
        self._leaves.add(key)
        self._inner.update(".".join(parts[:end]) for end in range(1, len(parts)))
        return key

    def _possible(self, key: str) -> bool:
        parts = key.split(".")
        paths = [".".join(parts[:end]) for end in range(1, len(parts))]
        return (
            all(_HARMLESS.fullmatch(part) and not hasattr(_PLAIN, part) for part in parts)
            and not self._taken(parts[0])
            and key not in self._leaves
            and key not in self._inner
            and not any(path in self._leaves for path in paths)
        )


_PLAIN = torch.nn.Module()
