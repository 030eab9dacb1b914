"""--norms: the scale and bias of LayerNormalization and its kin go into what reads them, too.

A norm y = scale * N(x) + bias whose output is stored with s = 1 / scale and t = -bias is stored as N(x): its own scale
becomes 1 and its bias 0.  By the ties that is all that has to be asked for; the rest of the solver is as it was.  The
norms come last, so that no BatchNorm stays for one of them, and one that can't go whole may go in part: a bias stays
ahead of a Relu or a zero padding, and where it would cost an Add.  It is free where it is, and it may even save the Add
of the Linear at the end of a skip that begins at the norm (`needless_adds`).
"""

from __future__ import annotations

import numpy as np

from bnfold.errors import quoted
from bnfold.fold.accept import BOTH, SCALE, SHIFT, Decision, Refusal, in_the_way
from bnfold.fold.account import class_keys
from bnfold.fold.ops.normalization import NORMS
from bnfold.fold.plan import Plan
from bnfold.fold.roots import rows_of
from bnfold.fold.ties import Coordinates, Linear, Ties
from bnfold.fold.union_find import Conflict, Floats
from bnfold.graph import Node

NO_GAIN = "no-gain"


def offer_norms(ties: Ties, decision: Decision) -> None:
    """Offer each norm that is not 1 and 0 already: whole, else its scale alone, else its bias."""
    for linear in ties.linears:
        if linear.node.op not in NORMS or not ties.offered(linear.node):
            continue
        a, b = own_affine(ties, linear)
        if (a != 1).any() or b.any():
            _decide(ties, decision, linear, a, b)


def own_affine(ties: Ties, linear: Linear) -> tuple[Floats, Floats]:
    """Scale and bias of a norm as vectors over its rows, with those of the affine ops that only it feeds."""
    scale, bias = ties.array(linear.weight), None
    assert scale is not None
    if linear.bias_input is not None:
        bias = ties.array(linear.node.input(linear.bias_input))
    a = np.asarray(scale, np.float64)
    b = np.zeros(a.shape) if bias is None else np.asarray(bias, np.float64)
    if linear.chain is not None:
        gain, offset = rows_of(linear, linear.chain.a), rows_of(linear, linear.chain.b)
        a, b = gain * a, gain * b + offset
    return a, b


def _decide(ties: Ties, decision: Decision, linear: Linear, a: Floats, b: Floats) -> None:
    barred = ties.barred.get(linear.node)
    if barred is not None:
        refusal: Refusal | None = Refusal(barred[0], None, barred[1])
    elif not a.all():
        refusal = Refusal("dead-channel", None, f"{int((a == 0).sum())} of its channels are constant (scale 0)")
    else:
        refusal = _offer(ties, linear, a, b, BOTH)
    if refusal is None:
        decision.norms[linear] = BOTH
        return
    decision.norms_refused[linear] = refusal
    parts = [SCALE] * bool((a != 1).any() and a.all()) + [SHIFT] * bool(b.any())
    if barred is not None:  # what cost Adds was the shift; what could not be stored, either of them
        parts = [part for part in parts if part == SCALE and barred[0] == NO_GAIN]
    for part in parts:
        if _offer(ties, linear, a, b, part) is None:
            decision.norms[linear] = part
            return


def _offer(ties: Ties, linear: Linear, a: Floats, b: Floats, part: str) -> Refusal | None:
    """s = 1 / a and t = -b, as far as asked; a refused offer leaves no trace."""
    marks = ties.scale.mark(), ties.shift.mark()
    tag = linear.node.index
    conflict: Conflict | None = None
    system = "scale"
    if part != SHIFT:
        conflict = ties.scale.pin(linear.rows.scale, np.abs(1 / a), sign=np.sign(a).astype(np.int8), tag=tag)
    if conflict is None and part != SCALE:
        system = "shift"
        conflict = ties.shift.pin(linear.rows.shift, 0 - b, tag=tag)
    if conflict is None:
        conflict, log = ties.sums.propagate()
        if conflict is None:
            return None
        system = "shift"
        ties.sums.undo(log)
    ties.scale.rollback(marks[0])
    ties.shift.rollback(marks[1])
    refusal = in_the_way(ties, {tag}, conflict, system)
    if refusal.code == "fixed":  # by nothing but the norm's own, different entries
        return Refusal("fixed", None, f"what reads it needs one {system} for several of its entries")
    return refusal


def needless_adds(plan: Plan, without: Plan | None) -> dict[Node, Refusal]:
    """Norms whose bias should stay: there are more Adds behind MatMuls than in the plan `without` norms."""
    if without is None:
        return {}
    before = {edit.linear.node for edit in without.linears if edit.makes_add}
    now = [edit.linear for edit in plan.linears if edit.makes_add]
    new = [linear for linear in now if linear.node not in before]
    shifting = [norm for norm, part in plan.decision.norms.items() if part != SCALE]
    if len(now) <= len(before) or not new or not shifting:
        return {}
    keys = set().union(*(_shifts(plan.ties, held) for linear in new for held in (linear.rows, linear.columns)))
    asking = [norm for norm in shifting if keys & _shifts(plan.ties, norm.rows)] or shifting
    refusal = Refusal(NO_GAIN, new[0].node.name, f"without its bias {quoted(new[0].node.name)} would need an Add")
    return dict.fromkeys((norm.node for norm in asking), refusal)


def _shifts(ties: Ties, held: Coordinates) -> set[int]:
    return {key for kind, key in class_keys(ties, held) if kind == "shift"}
