"""Whether both models have the very same nodes between two values: then no data is needed to say that they are equal.

A zero weight (a classifier's head before training) makes a value that reacts to nothing, on any inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto

from bnfold.verify.runtime import bodies
from bnfold.verify.segments import Segment
from bnfold.verify.sides import Side


def alike(a: Side, b: Side, segment: Segment, ends: Mapping[str, str]) -> bool:
    """Whether a segment is the same in both models: ops, attributes, and weights bit by bit.

    Args:
        a: the reference.
        b: the model in question.
        segment: its nodes are in topological order, the last ones make the pair.
        ends: where segments begin, and inputs: names of A by those of B.
    """
    if segment.pair.layout:
        return False
    one = _forms(a, segment.nodes_a, {name: name for name in ends.values()})
    other = _forms(b, segment.nodes_b, ends)
    form = one.get(segment.pair.a)
    return form is not None and form == other.get(segment.pair.b)


def _forms(side: Side, nodes: Sequence[NodeProto], ends: Mapping[str, str]) -> dict[str, bytes]:
    """What each value is computed by, as a hash; those of which that isn't known are missing."""
    wanted = {name for node in nodes for name in node.input}
    forms = {name: b"end" + own.encode() for name, own in ends.items()}
    for tensor in side.proto.graph.initializer:
        if tensor.name in wanted:
            kind = f"{tensor.data_type} {list(tensor.dims)}".encode()
            content = np.ascontiguousarray(side.proto.read(tensor)).reshape(-1).view(np.uint8)
            forms[tensor.name] = _hash(kind, content.data)
    found: dict[str, bytes] = {}
    for node in nodes:
        given = [forms[name] if name else b"none" for name in node.input if name in forms or not name]
        if len(given) < len(node.input) or any(True for _ in bodies(node)):
            continue
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        form = _hash(f"{node.domain}:{node.op_type}".encode(), *attributes, b"inputs", *given)
        for place, name in enumerate(node.output):
            found[name] = _hash(form, str(place).encode())
            forms.setdefault(name, found[name])
    return found


def _hash(*parts: bytes | memoryview) -> bytes:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.digest()
