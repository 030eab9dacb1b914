"""Is a graph what it claims to be?  All that is wrong with it, at once, before any verb begins.

A file may come from anywhere, so nothing is taken for granted that work on it relies on: every name that is read is
produced, once; nodes can be put in an order; functions end, and don't write out to more nodes than any machine holds;
nodes of ONNX's own ops have the inputs, outputs and attributes that its schemas say.  What ONNX has no schema for
(other domains, ops of runtimes) is left alone.  It takes time linear in the file, and never recurses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto

from bnfold.errors import ModelError, not_utf8, quoted
from bnfold.graph import Container, Names, bodies_of, declared, in_cycle, order_of, undefined

# Nodes that a model has with its functions written out in the place of their calls, as ONNX Runtime does.  The
# largest real models have some 10^4; twelve functions that call each other ten times have 10^12.
MOST_NODES = 10**6

# The versions of ONNX's own operator set that the installed onnx knows.
NEWEST_OPSET = onnx.defs.onnx_opset_version()

Opsets = dict[str, int]
Key = tuple[str, str, str]


def demand_sound(model: ModelProto) -> None:
    """Raises: ModelError, for the first of all problems; its `others` are the rest."""
    problems = list(_problems(model))
    if problems:
        raise ModelError(problems[0].what, where=problems[0].where, others=map(str, problems[1:]))


def _problems(model: ModelProto) -> Iterator[ModelError]:
    yield from _opsets(model.opset_import)
    yield from _functions(model)
    yield from _scopes(model.graph, _versions(model.opset_import), "")
    for function in model.functions:
        opsets = _versions(function.opset_import)
        yield from _opsets(function.opset_import)
        yield from _scopes(function, opsets, f"function {quoted(function.name)}, ")


# -- names and nodes ----------------------------------------------------------------------------------


def _scopes(container: Container, opsets: Opsets, inside: str) -> Iterator[ModelError]:
    """The problems of a graph or function, and of the bodies in it."""
    pending: list[tuple[Container, Names | None]] = [(container, None)]
    while pending:
        scope, outer = pending.pop()
        nodes, counts = list(scope.node), Counter(declared(scope))
        names = Names(set(counts), outer)
        for name, count in counts.items():
            if shown := not_utf8(name):
                yield ModelError("its name isn't UTF-8; rename it", where=f"{inside}value {shown}")
            elif count > 1:
                what = "is defined twice; the model is not valid ONNX"
                yield ModelError(what, where=f"{inside}value {quoted(name)}")
        for node in nodes:
            yield from _node(node, names, opsets, inside)
            pending.extend((body, names) for attribute in node.attribute for body in bodies_of(attribute))
        order = order_of(nodes)
        if len(order) < len(nodes):
            yield in_cycle(nodes[min(set(range(len(nodes))) - set(order))])
        for name in _results(scope):
            if name not in names:
                what = "nothing produces it; the model is not valid ONNX"
                yield ModelError(what, where=f"{inside}output {quoted(name)}")


def _results(scope: Container) -> Iterable[str]:
    return scope.output if isinstance(scope, FunctionProto) else [info.name for info in scope.output]


def _node(node: NodeProto, names: Names, opsets: Opsets, inside: str) -> Iterator[ModelError]:
    for text in (node.name, node.op_type, node.domain):
        if shown := not_utf8(text):
            yield ModelError("its name or op isn't UTF-8; rename it", where=f"{inside}node {shown}")
            return
    for name in node.input:
        if name and name not in names:
            yield undefined(name, node)
    for name, count in Counter(attribute.name for attribute in node.attribute).items():
        if count > 1:
            yield ModelError(f"has its attribute {quoted(name)} twice", where=_where(node, inside))
    schema = _schema(node.op_type, opsets.get("", 1)) if node.domain in ("", "ai.onnx") else None
    if schema is not None:
        yield from (ModelError(what, where=_where(node, inside)) for what in schema.contradictions(node))


def _where(node: NodeProto, inside: str) -> str:
    name = node.name or next((name for name in node.output if name), node.op_type)
    return f"{inside}node {quoted(name)}"


# -- what ONNX says of its ops ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Schema:
    """What a node of an op may look like."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    attributes: dict[str, str]  # their types by name

    def contradictions(self, node: NodeProto) -> Iterator[str]:
        """What a node has that its op doesn't allow."""
        for (low, high), found, kind in (
            (self.inputs, len(node.input), "inputs"), (self.outputs, len(node.output), "outputs"),
        ):  # fmt: skip
            if not low <= found <= high:
                takes = str(low) if low == high else f"{low} to {high}" if high < 100 else f"{low} or more"
                yield f"has {found} {kind} where {node.op_type} has {takes}; the model is not valid ONNX"
        for attribute in node.attribute:
            wanted = self.attributes.get(attribute.name)
            found_type = AttributeProto.AttributeType.Name(attribute.type)
            if wanted not in (None, found_type) and not attribute.ref_attr_name:
                given = "has no type" if found_type == "UNDEFINED" else f"is of type {found_type}"
                yield f"attribute {quoted(attribute.name)} {given}; {node.op_type} has it of type {wanted}"


@cache
def _schema(op: str, version: int) -> _Schema | None:
    """Of one of ONNX's own ops, None if it has no such op in this version of the operator set."""
    try:
        found = onnx.defs.get_schema(op, version, "")
    except (onnx.defs.SchemaError, TypeError):  # TypeError: a version that is no C int
        return None
    if found.deprecated:
        return None
    kinds: dict[str, Any] = {name: attribute.type for name, attribute in found.attributes.items()}
    attributes = {name: kind.name for name, kind in kinds.items()}
    return _Schema((found.min_input, found.max_input), (found.min_output, found.max_output), attributes)


def _versions(imports: Iterable[onnx.OperatorSetIdProto]) -> Opsets:
    return {"" if opset.domain == "ai.onnx" else opset.domain: opset.version for opset in imports}


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> Iterator[ModelError]:
    known: Opsets = {}
    for opset in imports:
        domain = "" if opset.domain == "ai.onnx" else opset.domain
        if known.setdefault(domain, opset.version) != opset.version:
            shown = quoted(domain or "ai.onnx")
            yield ModelError(f"imports opset {known[domain]} and {opset.version} of {shown}; which is meant is unclear")
        if not domain and opset.version > NEWEST_OPSET:
            what = f"uses opset {opset.version}; the installed onnx knows up to {NEWEST_OPSET}: install a newer one"
            yield ModelError(what)
        elif not domain and opset.version < 1:
            yield ModelError(f"uses opset {opset.version}, and they begin at 1; the model is not valid ONNX")


# -- local functions ----------------------------------------------------------------------------------


def _functions(model: ModelProto) -> Iterator[ModelError]:
    """Functions that are there twice, that call themselves, or that write out to too many nodes."""
    keys = Counter((function.domain, function.name, function.overload) for function in model.functions)
    for (_, name, _), count in keys.items():
        if count > 1:
            yield ModelError("is defined twice; the model is not valid ONNX", where=f"function {quoted(name)}")
    if not keys:
        return
    calls = {key: Counter[Key]() for key in keys}
    sizes = dict.fromkeys(keys, 0)
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        calls[key], sizes[key] = _called(function.node, calls.keys())
    ordered = _callees_first(calls)
    if len(ordered) < len(calls):
        name = next(key for key in calls if key not in set(ordered))[1]
        yield ModelError("calls itself, which ONNX doesn't allow", where=f"function {quoted(name)}")
        return
    for key in ordered:
        sizes[key] += sum(count * sizes[callee] for callee, count in calls[key].items())
    called, size = _called(model.graph.node, calls.keys())
    size += sum(count * sizes[callee] for callee, count in called.items())
    if size > MOST_NODES:
        what = f"with its functions written out it has {size:.3g} nodes, more than can be worked on"
        yield ModelError(what)


def _called(nodes: Iterable[NodeProto], known: Iterable[Key]) -> tuple[Counter[Key], int]:
    """How often functions are called by nodes and the bodies in them, and how many of these are no calls."""
    calls, count, keys = Counter[Key](), 0, set(known)
    pending = [nodes]
    while pending:
        for node in pending.pop():
            key = (node.domain, node.op_type, node.overload)
            if key in keys:
                calls[key] += 1
            else:
                count += 1
            pending.extend(body.node for attribute in node.attribute for body in bodies_of(attribute))
    return calls, count


def _callees_first(calls: dict[Key, Counter[Key]]) -> list[Key]:
    """Functions, each behind those that it calls; those in a cycle, and what calls them, are left out."""
    callers: dict[Key, list[Key]] = {key: [] for key in calls}
    waiting = {key: len(called) for key, called in calls.items()}
    for key, called in calls.items():
        for callee in called:
            callers[callee].append(key)
    ready = [key for key, count in waiting.items() if not count]
    for key in ready:  # grows while it is walked
        for caller in callers[key]:
            waiting[caller] -= 1
            if not waiting[caller]:
                ready.append(caller)
    return ready
