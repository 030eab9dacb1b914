"""Ties among three shifts: what is accepted can be solved, and what is solved holds; against exact elimination."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_union_find import COUNT, Naive

from bnfold.fold.sums import Sums
from bnfold.fold.union_find import UnionFind

ids = st.integers(0, COUNT - 1)
rows = st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=4)
"""y = a + b, for one element each."""
values = st.sampled_from([Fraction(n, d) for n, d in ((0, 1), (1, 1), (-2, 1), (1, 2), (3, 1))])
offers = st.lists(st.tuples(ids, ids, st.sampled_from([Fraction(1), Fraction(2), Fraction(-1, 2)]), values), max_size=5)


def stated(sums: list[tuple[int, int, int]]) -> tuple[UnionFind, Sums]:
    shift = UnionFind(signed=False)
    shift.new(COUNT)
    system = Sums(shift)
    for y, a, b in sums:
        system.add([np.array([y]), np.array([a]), np.array([b])], [1.0, -1.0, -1.0], tag=0)
    system.settle()
    return shift, system


def equation(y: int, a: int, b: int) -> dict[int, Fraction]:
    found: dict[int, Fraction] = {}
    for unknown, factor in ((y, 1), (a, -1), (b, -1)):
        found[unknown] = found.get(unknown, Fraction(0)) + factor
    return found


def offer(shift: UnionFind, system: Sums, x: int, y: int, ratio: Fraction, offset: Fraction) -> bool:
    """x = ratio * y + offset; True if it was taken, else it has left no trace."""
    mark = shift.mark()
    conflict = shift.unite(np.array([x]), np.array([y]), float(ratio), float(offset))
    log: list[tuple[int, tuple[int, ...] | None]] = []
    if conflict is None:
        conflict, log = system.propagate()
    if conflict is not None:
        system.undo(log)
        shift.rollback(mark)
    return conflict is None


@settings(max_examples=300, derandomize=True, deadline=None)
@given(rows, offers)
def test_what_is_accepted_holds(
    sums: list[tuple[int, int, int]], tries: list[tuple[int, int, Fraction, Fraction]]
) -> None:
    """Each offer that is taken contradicts nothing before it, and in the end there are values for all unknowns."""
    shift, system = stated(sums)
    naive = Naive()
    for row in sums:
        naive.add(equation(*row), Fraction(0))
    taken = []
    for x, y, ratio, offset in tries:
        if not offer(shift, system, x, y, ratio, offset):
            continue
        pair = {x: Fraction(1)}
        pair[y] = pair.get(y, Fraction(0)) - ratio
        assert naive.add(pair, offset), "an offer was taken that contradicts what was there"
        taken.append((x, y, float(ratio), float(offset)))
    roots = np.arange(COUNT)
    free = roots[(shift.parent[roots] == roots) & np.isnan(shift.known[roots])]
    shift.pin(free[~np.isin(free, system.slack())], 0.0)
    system.solve()
    found = shift.values(roots)
    assert np.isfinite(found[np.unique(sums)]).all()
    for y, a, b in sums:
        assert found[y] == pytest.approx(found[a] + found[b], abs=1e-9)
    for x, y, ratio, offset in taken:
        if np.isfinite(found[[x, y]]).all():
            assert found[x] == pytest.approx(ratio * found[y] + offset, abs=1e-9)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(rows, offers)
def test_what_is_refused_leaves_no_trace(
    sums: list[tuple[int, int, int]], tries: list[tuple[int, int, Fraction, Fraction]]
) -> None:
    """Without the offers that were refused, all is the same."""
    shift, system = stated(sums)
    taken = [each for each in tries if offer(shift, system, *each)]
    other_shift, other = stated(sums)
    assert all(offer(other_shift, other, *each) for each in taken)
    everything = np.arange(COUNT)
    np.testing.assert_array_equal(shift.values(everything), other_shift.values(everything))
    assert sorted(map(sorted, system.linked_roots())) == sorted(map(sorted, other.linked_roots()))


def test_one_sum_takes_what_it_can() -> None:
    """y = a + b: with two of them known the third is too, and nothing else is right then."""
    shift, system = stated([(0, 1, 2)])
    assert offer(shift, system, 1, 3, Fraction(1), Fraction(0))
    shift.pin(np.array([3]), 2.0)
    assert system.propagate()[0] is None
    assert np.isnan(shift.values(np.array([0]))[0])
    assert offer(shift, system, 2, 3, Fraction(2), Fraction(1))
    assert shift.values(np.arange(3)).tolist() == [7, 2, 5]
    assert not offer(shift, system, 0, 3, Fraction(1), Fraction(1))
    assert offer(shift, system, 0, 3, Fraction(3), Fraction(1))


def test_one_value_for_two_columns() -> None:
    """Elements of one Add that share an unknown and ask for different values of it."""
    shift = UnionFind(signed=False)
    shift.new(5)
    system = Sums(shift)
    system.add([np.array([0, 0]), np.array([1, 2]), np.array([3, 4])], [1.0, -1.0, -1.0], tag=7)
    system.settle()
    shift.mark()
    shift.pin(np.array([1, 2, 3, 4]), np.array([1.0, 1.0, 1.0, 2.0]))
    conflict, _ = system.propagate()
    assert conflict is not None
    assert (conflict.kind, conflict.tags[1]) == ("value", 7)


def test_what_cannot_be_peeled_is_fixed() -> None:
    """Two sums of the same three unknowns: neither has one of its own, so that one of them is given a value."""
    shift, system = stated([(0, 1, 2), (1, 0, 2)])  # y = a + b, a = y + b: 2 b = 0
    assert system.linked_roots() == []
    free = shift.values(np.arange(3))
    assert free[0] == free[1] or np.isnan(free[:2]).all()
