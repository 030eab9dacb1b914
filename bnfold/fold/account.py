"""Account for every BatchNormalization of a model: what became of it, by which route, or why it stays.

With --norms for every other norm, too: it is folded if its own scale and bias are 1 and 0 now.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bnfold.errors import quoted
from bnfold.fold.accept import BOTH, SCALE, SHIFT
from bnfold.fold.merge import Merging
from bnfold.fold.plan import AffineEdit, Plan
from bnfold.fold.ties import Coordinates, Linear, Ties
from bnfold.fold.union_find import distinct
from bnfold.graph import Graph, Node
from bnfold.report import Counts, Entry


def entries(plans: list[Plan], merging: Merging) -> tuple[Entry, ...]:
    """One entry for each BN, in the order of the nodes; arithmetic only where it went."""
    scopes = {plan.scope.label: number for number, plan in enumerate(plans)}
    told = [(merging.place(node), entry) for plan in plans for node, entry in _entries(plan)] + merging.entries
    return tuple(entry for _, entry in sorted(told, key=lambda placed: (scopes[placed[0][0]], placed[0][1])))


def _entries(plan: Plan) -> Iterator[tuple[Node, Entry]]:
    told: set[Node] = set()
    for linear in plan.linears:
        for node in linear.linear.chain.nodes if linear.linear.chain else ():
            told.add(node)
            if not (node.op in ("Add", "Sub") and linear.needs_bias and linear.linear.bias_input is None):
                kept = linear.linear.quantised
                note = f", the scale of its {kept.kind} weight" if kept is not None and linear.changes_weight else ""
                yield node, _entry(plan, node, "folded", "backward", (linear.linear.node.name,), note)
    takers = _takers(plan) if plan.affines or plan.decision.norms else {}
    for edit in plan.affines:
        for node in edit.op.nodes:
            told.add(node)
            if node.op == "BatchNormalization" or not edit.ops_left:
                yield node, _affine_entry(plan, edit, node, takers)
    for norm in plan.decision.norms | plan.decision.norms_refused:
        yield norm.node, _norm_entry(plan, norm, takers)
    for node in plan.scope.nodes:
        if node.op == "BatchNormalization" and node not in told:
            code, sentence = plan.ties.refused.get(node, ("fixed", "nothing is known of its surroundings"))
            yield node, Entry(node.name, node.op, plan.scope.label, "kept", reason=code, sentence=sentence)


def _entry(plan: Plan, node: Node, outcome: str, route: str, into: tuple[str, ...], note: str = "") -> Entry:
    where = ", ".join(quoted(name) for name in into[:3]) + (f" and {len(into) - 3} more" if len(into) > 3 else "")
    nowhere = "its scale and shift are 1 and 0" if outcome == "folded" else "what is around it takes the rest"
    sentence = f"{route} into {where}" if into else nowhere
    return Entry(node.name, node.op, plan.scope.label, outcome, route, into, sentence=sentence + note)


def _affine_entry(plan: Plan, edit: AffineEdit, node: Node, takers: dict[tuple[str, int], list[str]]) -> Entry:
    refusal = plan.decision.refused.get(edit.op)
    left = edit.ops_left
    if edit.left in ("same", "all", "affine") and refusal is not None:
        first = next((n for n in edit.op.nodes if n.op == "BatchNormalization"), node)
        if node is not first and ("BatchNormalization" in left or edit.left == "affine"):
            return _entry(plan, node, "folded", "backward", (first.name,))
        if edit.left == "affine":
            what = " and ".join(f"{'an' if op.startswith('A') else 'a'} {op}" for op in left)
            sentence = f"written as {what}: {refusal.sentence}"
            return Entry(node.name, node.op, plan.scope.label, "reduced", sentence=sentence)
        return Entry(
            node.name, node.op, plan.scope.label, "kept", reason=refusal.code, obstacle=refusal.obstacle,
            sentence=refusal.sentence,
        )  # fmt: skip
    source, target = ([_still(part) for part in pair] for pair in (edit.source, edit.target))
    route = "backward" if all(target) else "forward" if all(source) else "both ways"
    into: dict[str, None] = {}
    for value in (edit.op.source, edit.op.target):
        for key in sorted(class_keys(plan.ties, plan.ties.of(value))):  # a set's own order differs from run to run
            into.update(dict.fromkeys(takers.get(key, ())))
    if not left:
        return _entry(plan, node, "folded", route, tuple(into))
    article = "an" if left[0].startswith("A") else "a"
    note = f"; {article} {left[0]} is left: {refusal.sentence}" if refusal else ""
    return _entry(plan, node, "reduced", route, tuple(into), note)


def _norm_entry(plan: Plan, norm: Linear, takers: dict[tuple[str, int], list[str]]) -> Entry:
    part, refusal = plan.decision.norms.get(norm), plan.decision.norms_refused.get(norm)
    if part is None and refusal is not None:
        return Entry(
            norm.node.name, norm.node.op, plan.scope.label, "kept", reason=refusal.code, obstacle=refusal.obstacle,
            sentence=refusal.sentence,
        )  # fmt: skip
    into = dict.fromkeys(name for key in sorted(class_keys(plan.ties, norm.rows)) for name in takers.get(key, ()))
    into.pop(norm.node.name, None)
    stays = {SCALE: "bias", SHIFT: "scale"}.get(part or BOTH)
    note = f"; its {stays} stays: {refusal.sentence}" if refusal and stays else ""
    return _entry(plan, norm.node, "reduced" if stays else "folded", "forward", tuple(into), note)


def _still(array: object) -> bool:
    values = np.asarray(array)
    return bool((values == 1).all() or (values == 0).all())


def _takers(plan: Plan) -> dict[tuple[str, int], list[str]]:
    """For each class of unknowns the nodes whose parameters changed with it."""
    takers: dict[tuple[str, int], list[str]] = {}

    def enter(held: Coordinates, name: str) -> None:
        for key in class_keys(plan.ties, held):
            names = takers.setdefault(key, [])
            if name not in names[-1:]:
                names.append(name)

    for edit in plan.linears:
        if edit.changes_weight or edit.changes_bias:
            enter(edit.linear.rows, edit.linear.node.name)
            enter(edit.linear.columns, edit.linear.node.name)
    for step in plan.steps:
        if (step.factor != 1).any():
            enter(step.step.held, step.step.node.name)
    for affine in plan.affines:
        if affine.left in ("all", "affine"):
            enter(plan.ties.of(affine.op.source), affine.op.nodes[0].name)
            enter(plan.ties.of(affine.op.target), affine.op.nodes[0].name)
    return takers


def class_keys(ties: Ties, held: Coordinates) -> set[tuple[str, int]]:
    """Keys of a value's unknowns and of their classes, but for the identity's."""
    keys: set[tuple[str, int]] = set()
    for name, system, ids in (("scale", ties.scale, held.scale), ("shift", ties.shift, held.shift)):
        flat = distinct(ids)
        identity = int(system.find(np.zeros(1, np.int64))[0][0])  # may be an unknown that a BN has tied to it
        classes = set(system.find(flat)[0].tolist()) - {identity}
        keys.update((name, key) for key in (classes | set(flat.tolist())) - {0})
    return keys


def counts(graph: Graph, plans: list[Plan], merging: Merging) -> tuple[Counts, Counts]:
    """Per-channel ops before and after.

    Args:
        graph: as merging has left it.
        plans: of its scopes.
        merging: what went before.
    """
    gone = [entry.op for _, entry in merging.entries]
    merged = gone.count("BatchNormalization")
    norms = sum(node.op == "BatchNormalization" for scope in graph.scopes for node in scope.nodes)
    arithmetic_before = norms_gone = arithmetic_after = 0
    for plan in plans:
        for linear in plan.linears:
            nodes = linear.linear.chain.nodes if linear.linear.chain else ()
            norms_gone += sum(node.op == "BatchNormalization" for node in nodes)
            arithmetic_before += sum(node.op != "BatchNormalization" for node in nodes)
            arithmetic_after += linear.makes_add
        for edit in plan.affines:
            before = [node.op for node in edit.op.nodes]
            after = list(edit.ops_left)
            norms_gone += before.count("BatchNormalization") - after.count("BatchNormalization")
            arithmetic_before += len(before) - before.count("BatchNormalization")
            arithmetic_after += len(after) - after.count("BatchNormalization")
    arithmetic_gone = len(gone) - merged - merging.added
    return Counts(norms + merged, arithmetic_before + arithmetic_gone), Counts(norms - norms_gone, arithmetic_after)
