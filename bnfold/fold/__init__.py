"""Fold BatchNormalization out of a model: the whole way on one screen.

    merge     parallel branches become one linear node each
    ties      every value may be stored in other coordinates; each op ties those of its inputs and outputs
    accept    BN (and constant Mul, Add, Sub, Div) are offered to the solver: those go that contradict nothing
    plan      every unknown gets a value: new parameters, frozen and checked
    rewrite   the plan is carried out on the protobuf, and nothing else is touched
    proof     each new parameter is recomputed from the original ones in float64

A scope (the main graph, a body, a local function) is folded by itself: what crosses its border is fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
from onnx import ModelProto

from bnfold.errors import quoted
from bnfold.fold.accept import Refusal, accept
from bnfold.fold.account import class_keys, counts, entries
from bnfold.fold.kept import Kept
from bnfold.fold.merge import Merging, Spoiled, merge_model
from bnfold.fold.norms import needless_adds, offer_norms
from bnfold.fold.objections import LARGEST_SHIFT, objections
from bnfold.fold.parameters import Unrepresentable
from bnfold.fold.plan import Plan, make_plan
from bnfold.fold.rescale import only_scales, row_factors
from bnfold.fold.rewrite import Rescaled, Rewrite, rewrite
from bnfold.fold.ties import Ties, tie_scope
from bnfold.graph import Graph, Node, Scope
from bnfold.model_file import LoadedModel
from bnfold.report import FoldReport
from bnfold.shapes import Shapes
from bnfold.verify.merged import prove_merges
from bnfold.verify.static import StaticProof, prove


@dataclass(frozen=True)
class Options:
    """What may be folded.

    Attributes:
        only: patterns (`*`, `?`, `[...]`) of node names; if given, nothing else is folded.
        skip: patterns of node names that stay untouched.
        keep_overridable: initializers that are graph inputs too stay inputs, and so are no constants.
        merge: whether parallel branches become one node.
        kept: what becomes of a BN that can't go whole (`bnfold.fold.kept`).
        norms: whether the scale and bias of LayerNormalization and its kin are folded, too.
        largest_shift: by how many times its usual size a value that several read may be shifted.
    """

    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    keep_overridable: bool = False
    merge: bool = True
    kept: Kept = "auto"
    norms: bool = False
    largest_shift: float = LARGEST_SHIFT

    def chosen(self, node: Node) -> bool:
        """True if the options let this node go."""
        if any(fnmatchcase(node.name, pattern) for pattern in self.skip):
            return False
        return not self.only or any(fnmatchcase(node.name, pattern) for pattern in self.only)

    def unmatched(self, names: Iterable[str], what: str) -> Iterator[str]:
        """A notice for each pattern that none of the names matches: it is probably misspelt."""
        known = list(names)
        for option, patterns in (("only", self.only), ("skip", self.skip)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in known):
                    yield f"{option} {quoted(pattern)} matches the name of no {what}"

    def mergeable(self, node: Node) -> bool:
        """True if the options let this node merge with others; --only is about BN."""
        if node.op == "BatchNormalization":
            return self.chosen(node)
        return not any(fnmatchcase(node.name, pattern) for pattern in self.skip)

    def wanted(self, nodes: Iterable[Node]) -> bool:
        """True if these nodes may become one: with --only, if there is a BN among them."""
        return not self.only or any(node.op == "BatchNormalization" for node in nodes)


@dataclass
class Folding:
    """A folded model with all that is needed to report and prove it."""

    model: LoadedModel
    report: FoldReport
    plans: list[Plan]
    rewrite: Rewrite
    proof: StaticProof
    merging: Merging


Barred = dict[tuple[str, int], Refusal]  # ops that have to stay, by scope and index of the node


def plan_model(
    model: LoadedModel, options: Options, barred: Barred, graph: Graph | None = None, shapes: Shapes | None = None
) -> tuple[Graph, list[Plan]]:
    """The plan of every scope; `barred` is added to, `graph` and `shapes` are those of the model, if there are any."""
    graph = graph or Graph(model.proto)
    shapes = shapes or Shapes(graph, model, options.keep_overridable)
    return graph, [_plan_scope(scope, shapes, options, barred) for scope in graph.scopes]


def _plan_scope(scope: Scope, shapes: Shapes, options: Options, barred: Barred) -> Plan:
    without = _plan_scope(scope, shapes, replace(options, norms=False), barred) if options.norms else None
    while True:
        stay = {scope.nodes[index]: refusal for (label, index), refusal in barred.items() if label == scope.label}
        ties = Ties(scope, shapes, shapes.constants(scope), options.chosen)
        ties.barred.update({node: (refusal.code, refusal.sentence) for node, refusal in stay.items()})
        tie_scope(ties)
        decision = accept(ties, options.kept)
        if options.norms:
            offer_norms(ties, decision)
        plan = make_plan(ties, decision, write_out=options.kept == "affine")
        found = objections(plan, options.largest_shift) or needless_adds(plan, without)
        if not found:
            return plan
        barred.update({(scope.label, node.index): refusal for node, refusal in found.items()})


def fold_model(model: LoadedModel, options: Options) -> Folding:
    """Fold a loaded model; the given one is left as it is.

    Raises:
        ModelError: the model is not valid ONNX.
    """
    with np.errstate(all="ignore"):  # what overflows is found where it matters: no plan has a number that isn't finite
        return _folded(model, options)


def _folded(model: LoadedModel, options: Options) -> Folding:
    barred: Barred = {}
    spoiled: set[str] = set()
    while True:
        proto = ModelProto()
        proto.CopyFrom(model.proto)
        work = LoadedModel(proto, model.weights, model.path)
        try:
            merging = merge_model(work, options, spoiled)
            merged = prove_merges(merging)
        except Spoiled as trouble:
            spoiled.add(trouble.key)
            continue
        graph, plans = plan_model(work, options, barred, merging.graph, merging.shapes)
        told, (before, after) = entries(plans, merging), counts(graph, plans, merging)
        try:
            done = rewrite(graph, work.weights, plans)
            proof = merged + prove(done, work.weights)
        except Unrepresentable as trouble:
            barred.update(_culprits(plans, trouble))
            continue
        done.frozen.extend(merging.frozen)
        nodes_after = sum(len(scope.nodes) for scope in Graph(proto).scopes)
        told_of = tuple(merging.merges)
        report = FoldReport(told, before, after, merging.nodes, nodes_after, _notices(work, done), told_of)
        return Folding(work, report, plans, done, proof, merging)


def _culprits(plans: list[Plan], trouble: Unrepresentable) -> Barred:
    """The ops whose removal asked for a parameter that its type can't hold."""
    node = trouble.node
    plan = next(plan for plan in plans if plan.scope is node.scope)
    refusal = Refusal("unrepresentable", node.name, trouble.sentence)
    edit = next((edit for edit in plan.linears if edit.linear.node is node), None)
    chain = edit.linear.chain if edit is not None else None
    if chain is not None:
        return {(node.scope.label, n.index): refusal for n in chain.nodes}
    touched = set().union(
        *(class_keys(plan.ties, held) for held in ((edit.linear.rows, edit.linear.columns) if edit else ()))
    )
    for norm in plan.decision.norms:  # the first that can do without
        if norm.node is node or touched & class_keys(plan.ties, norm.rows):
            return {(node.scope.label, norm.node.index): refusal}
    ops = [op for op in plan.decision.accepted if node in op.nodes or _touches(plan, op.target, touched)]
    merged = next((op for op in plan.ties.affines if node in op.nodes and len(op.nodes) > 1), None)
    if not ops and merged is not None:  # a chain that stays, as one op
        return {(node.scope.label, n.index): refusal for n in merged.nodes}
    ops = ops or list(plan.decision.accepted)
    if not ops:
        raise trouble
    return {(node.scope.label, ops[-1].nodes[0].index): refusal}


def _touches(plan: Plan, value: object, touched: set[tuple[str, int]]) -> bool:
    return bool(touched & class_keys(plan.ties, plan.ties.of(value)))  # type: ignore[arg-type]


def _notices(model: LoadedModel, done: Rewrite) -> tuple[str, ...]:
    return *_integer_notices(done.rescaled), *_frozen_notices(model, done)


def _integer_notices(done: list[Rescaled]) -> Iterator[str]:
    """What became of weights and biases that are kept as integers."""
    factors = [row_factors(item.edit) for item in done if item.role == "weight"]
    if factors:
        changed, count = sum(int((rows <= 0).sum()) for rows in factors), sum(rows.size for rows in factors)
        kept = "1 weight" if len(factors) == 1 else f"{len(factors)} weights"
        but = f", but for {changed} of {count} output channels that are negated or zero" if changed else ""
        yield f"{kept} kept as integers took a factor in the scale; the integers are the same{but}"
    rounded = [item.rounding for item in done if item.role == "bias" and not only_scales(item.edit)]
    if rounded:
        kept = "1 int32 bias" if len(rounded) == 1 else f"{len(rounded)} int32 biases"
        yield f"{kept} took a shift, rounded to the steps of an integer kernel: by at most {max(rounded):.2g}"


def _frozen_notices(model: LoadedModel, done: Rewrite) -> tuple[str, ...]:
    if not done.frozen:
        return ()
    shown = ", ".join(quoted(name) for name in done.frozen[:3]) + (" …" if len(done.frozen) > 3 else "")
    what = "are inputs no more" if model.proto.ir_version >= 4 else "have new contents"
    notice = (
        f"{len(done.frozen)} initializers were graph inputs too, so a caller could override them; those that the fold "
        f"used ({shown}) {what}. --keep-overridable leaves them alone."
    )
    return (notice,)
