"""What callers see of two models: inputs and outputs, and which of them are the same.

Names decide; where they are others (a tool renamed them), the position does, if types and sizes agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto

from bnfold.errors import quoted
from bnfold.inspection import Port
from bnfold.verify.inputs import ports


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of two models.

    Attributes:
        inputs, outputs: of the first model, each with the second one's for it (None: it has none).
        differences: what a caller would run into, sentences; empty if either may stand for the other.
        notes: what differs without harm: names, sizes that one of them leaves open.
    """

    inputs: tuple[tuple[Port, Port | None], ...]
    outputs: tuple[tuple[Port, Port | None], ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def input_names(self) -> dict[str, str]:
        """Names of the second model's inputs by those of the first."""
        return {a.name: b.name for a, b in self.inputs if b is not None}

    @property
    def output_names(self) -> dict[str, str]:
        """Names of the second model's outputs by those of the first."""
        return {a.name: b.name for a, b in self.outputs if b is not None}


def compare_signatures(a: ModelProto, b: ModelProto) -> Signature:
    """The signatures of two models (without initializers among their inputs), side by side."""
    differences: list[str] = []
    notes: list[str] = []
    pairs = []
    for role, left, right in zip(("input", "output"), ports(a), ports(b), strict=True):
        pairs.append(tuple(_match(role, left, right, differences, notes)))
    return Signature(pairs[0], pairs[1], tuple(differences), tuple(notes))


def _match(
    role: str, left: Sequence[Port], right: Sequence[Port], differences: list[str], notes: list[str]
) -> list[tuple[Port, Port | None]]:
    """Ports of the same name; those left over in their order."""
    by_name = {port.name: port for port in right}
    names = {port.name for port in left}
    rest = iter([port for port in right if port.name not in names])
    pairs: list[tuple[Port, Port | None]] = []
    for port in left:
        other = by_name.get(port.name) or next(rest, None)
        pairs.append((port, other))
        if other is None:
            differences.append(f"{role} {quoted(port.name)} is missing in B")
        elif _fits(port, other):
            if port.name != other.name:
                notes.append(f"{role} {quoted(port.name)} is called {quoted(other.name)} in B")
            if port.shape != other.shape:
                notes.append(f"{role} {quoted(port.name)} is {shown(port)} in A and {shown(other)} in B")
        else:
            differences.append(f"{role} {quoted(port.name)} is {shown(port)} in A and {shown(other)} in B")
    differences += [f"{role} {quoted(port.name)} is in B only" for port in rest]
    return pairs


def _fits(a: Port, b: Port) -> bool:
    if a.type != b.type:
        return False
    if a.shape is None or b.shape is None:
        return True
    return len(a.shape) == len(b.shape) and all(
        m == n or not (isinstance(m, int) and isinstance(n, int)) for m, n in zip(a.shape, b.shape, strict=True)
    )


def shown(port: Port) -> str:
    """Type and shape: 'float32 [N, 3, 32, 32]'."""
    if port.shape is None:
        return f"{port.type} of unknown rank"
    return f"{port.type} [{', '.join('?' if size is None else str(size) for size in port.shape)}]"


def pinned(a: ModelProto, signature: Signature) -> ModelProto:
    """`a` with the sizes of its inputs that only the second model fixes: both can be run with what fits it."""
    copy = ModelProto()
    copy.graph.input.extend(a.graph.input)
    others = {left.name: right for left, right in signature.inputs if right is not None}
    for info in copy.graph.input:
        other = others.get(info.name)
        tensor = info.type.tensor_type
        if other is None or other.shape is None or len(other.shape) != len(tensor.shape.dim):
            continue
        for dim, size in zip(tensor.shape.dim, other.shape, strict=True):
            if isinstance(size, int) and size > 0 and not dim.dim_value > 0:
                dim.dim_value = size
    result = ModelProto()
    result.CopyFrom(a)
    del result.graph.input[:]
    result.graph.input.extend(copy.graph.input)
    return result
