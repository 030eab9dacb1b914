"""Choice of roots: every unknown that the ties leave free gets a value.

The tensors of a class vote, so that as many as possible stay as they are; ties go to the output of the
removed op, since weights then change upstream, where they would have anyway.  Shifts that only a
waiting sum determines (its slack) are not chosen but solved for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bnfold.fold.accept import Decision
from bnfold.fold.dead import DeadColumns
from bnfold.fold.parameters import shifted
from bnfold.fold.ties import Coordinates, Linear, Ties
from bnfold.fold.union_find import Floats, Ids, UnionFind, distinct, total

Bools = np.ndarray[Any, np.dtype[np.bool_]]

# Votes, in tensors: one that would stay as it is counts 1, the output of a removed op decides ties, and
# an Add that would have to be created outweighs any of them.
BIAS_VOTE, OUTPUT_VOTE = 16.0, 0.5


def choose_roots(ties: Ties, decision: Decision) -> None:
    """Make every unknown known."""
    _choose_scales(ties, decision)
    _choose_shifts(ties, decision)


def rows_of(linear: Linear, array: Floats) -> Floats:
    """A chain's constant as a vector over rows (leading axes of size 1 beyond the rows' own are dropped)."""
    shape = linear.row_shape
    trimmed = array.reshape(array.shape[max(array.ndim - len(shape), 0) :])
    return np.array(np.broadcast_to(trimmed, shape), np.float64).ravel()


def _choose_scales(ties: Ties, decision: Decision) -> None:
    system = ties.scale
    system.compress()
    ids, weights = _voters(ties, decision, "scale")
    root, alpha, _ = system.find(ids)
    wanted = 1 / alpha
    decided = system.sign[root] != 0
    wanted = np.where(decided, np.abs(wanted) * system.sign[root], wanted)
    free = np.isnan(system.known[root])
    _elect(system, root[free], wanted[free], weights[free])
    undecided = ~free & ~decided  # magnitude known, sign not: odd functions
    _elect(system, root[undecided], np.sign(wanted[undecided]) * system.known[root[undecided]], weights[undecided])
    rest = np.arange(system.count)
    rest = rest[(system.parent[rest] == rest) & np.isnan(system.known[rest])]
    if rest.size:
        system.pin(rest, 1.0)
    unsigned = np.arange(system.count)
    unsigned = unsigned[(system.parent[unsigned] == unsigned) & (system.sign[unsigned] == 0)]
    if unsigned.size:
        system.pin(unsigned, sign=1)


def _choose_shifts(ties: Ties, decision: Decision) -> None:
    system = ties.shift
    system.compress()
    ids, weights = _voters(ties, decision, "shift")
    values = np.zeros(len(ids))
    for part, value, weight in _without_add(ties, decision):
        ids = np.concatenate([ids, part])
        values = np.concatenate([values, value])
        weights = np.concatenate([weights, np.full(part.size, weight)])
    root, alpha, beta = system.find(ids)
    slack = ties.sums.slack()
    free = np.isnan(system.known[root]) & ~np.isin(root, slack)
    _elect(system, root[free], ((values - beta) / alpha)[free], weights[free])
    rest = np.arange(system.count)
    rest = rest[(system.parent[rest] == rest) & np.isnan(system.known[rest])]
    rest = rest[~np.isin(rest, slack)]
    if rest.size:
        system.pin(rest, 0.0)
    ties.sums.solve()
    rest = np.arange(system.count)
    rest = rest[(system.parent[rest] == rest) & np.isnan(system.known[rest])]
    if rest.size:
        system.pin(rest, 0.0)


def _without_add(ties: Ties, decision: Decision) -> Iterator[tuple[Ids, Floats, float]]:
    """Shifts (ids, values) with which MatMuls need no Add behind them, t_o = a W t_i - b in all rows, and their weight.

    In topological order: each takes for granted what those before it have asked for.  Where it can't, it asks for
    what suits it alone, and it takes two such to outvote one before.
    """
    dead = [entry for entries in decision.dead.values() for entry in entries if isinstance(entry, DeadColumns)]
    hoped = ties.shift.known.copy()
    for linear in ties.linears:
        if linear.bias_input is not None or linear.table:
            continue
        rows, columns = np.ravel(linear.rows.shift), np.ravel(linear.columns.shift)
        for given, weight in ((hoped, BIAS_VOTE), (ties.shift.known, BIAS_VOTE / 2)):
            shift, _ = _nearest(ties, columns, np.zeros(columns.size), given)  # 0 as long as nobody asks for another
            ids = np.concatenate([rows, columns])
            wanted = np.concatenate([_rows_without_add(ties, linear, shift, dead), shift])
            possible, first = _nearest(ties, ids, wanted, given)
            if np.allclose(wanted, possible, rtol=1e-9, atol=1e-300):
                vote = ids[first], wanted[first]
                yield *vote, weight
                root, alpha, beta = ties.shift.find(vote[0])
                hoped[root] = np.where(np.isnan(hoped[root]), (vote[1] - beta) / alpha, hoped[root])
                break


def _rows_without_add(ties: Ties, linear: Linear, columns: Floats, dead: list[DeadColumns]) -> Floats:
    """a W t_i - b for each row."""
    columns = columns.copy()
    for entry in dead:
        if entry.linear is linear:
            columns[entry.columns] = -entry.constant
    weight = ties.array(linear.weight)
    assert weight is not None
    wanted = shifted(linear, columns, weight)
    if linear.chain is not None:
        wanted = rows_of(linear, linear.chain.a) * wanted - rows_of(linear, linear.chain.b)
    return wanted


def _nearest(ties: Ties, ids: Ids, wanted: Floats, given: Floats) -> tuple[Floats, Ids]:
    """Values that the ids can have together: what is wanted of the first of each class; and where those are.

    given: of roots, NaN where any value will do.
    """
    root, alpha, beta = ties.shift.find(ids)
    _, first, index = np.unique(root, return_index=True, return_inverse=True)
    asked = ((wanted - beta) / alpha)[first][index]
    return total(np.stack([alpha * np.where(np.isnan(given[root]), asked, given[root]), beta])), first


def _voters(ties: Ties, decision: Decision, kind: str) -> tuple[Ids, Floats]:
    """Ids whose tensors would rather stay as they are, each with its weight."""
    ids: list[Ids] = []
    weights: list[Floats] = []

    def vote(held: Coordinates, weight: float) -> None:
        flat = distinct(getattr(held, kind))
        flat = flat[_agree(ties, flat, kind)]
        ids.append(flat)
        weights.append(np.full(flat.size, weight))

    for linear in ties.linears:
        vote(linear.rows, 1.0)
        vote(linear.columns, 1.0)
    for step in ties.steps:
        vote(step.held, 1.0)
    for op in ties.affines:
        if op in decision.accepted:
            vote(ties.of(op.target), OUTPUT_VOTE)
        else:
            vote(ties.of(op.source), 1.0)
            vote(ties.of(op.target), 1.0)
    if not ids:
        return np.zeros(0, np.int64), np.zeros(0)
    return np.concatenate(ids), np.concatenate(weights)


def _agree(ties: Ties, ids: Ids, kind: str) -> Bools:
    """Whether all ids of a class would stay as they are with one value of its root: if not, none of them has a say."""
    root, alpha, beta = (ties.scale if kind == "scale" else ties.shift).find(ids)
    wanted = 1 / alpha if kind == "scale" else -beta / alpha
    _, first, index = np.unique(root, return_index=True, return_inverse=True)
    apart = np.bincount(index, ~np.isclose(wanted, wanted[first][index], rtol=1e-9, atol=1e-300))
    agree: Bools = (apart == 0)[index]
    return agree


def _elect(system: UnionFind, root: Ids, wanted: Floats, weight: Floats) -> None:
    """Give each root the value with the most votes; equal values up to rounding count together.

    A tie goes to the first voter, so that the channels of a tensor agree: a bias vanishes only if all of it does.
    """
    if not root.size:
        return
    key = np.round(wanted, 12 - np.floor(np.log10(np.abs(wanted).max() + 1e-300)).astype(int).clip(-12, 12))
    order = np.lexsort((key, root))
    root, wanted, weight, key = root[order], wanted[order], weight[order], key[order]
    starts = np.flatnonzero(np.r_[True, (root[1:] != root[:-1]) | (key[1:] != key[:-1])])
    votes = np.add.reduceat(weight, starts)
    best = np.lexsort((order[starts], -votes, root[starts]))
    first = best[np.unique(root[starts][best], return_index=True)[1]]
    chosen = starts[first]
    if system.signed:
        system.pin(root[chosen], np.abs(wanted[chosen]), sign=np.sign(wanted[chosen]))
    else:
        system.pin(root[chosen], wanted[chosen])
