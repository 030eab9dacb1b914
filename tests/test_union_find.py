"""The affine union-find against a reference that solves the same equations with exact fractions, one at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referee import Array

from bnfold.fold.union_find import UnionFind, total

COUNT = 6
FIELDS = ("parent", "alpha", "beta", "known", "sign", "size", "known_by", "signed_by")

ids = st.integers(0, COUNT - 1)
ratios = st.sampled_from([Fraction(n, d) for n in (-3, -2, -1, 1, 2, 3, 5) for d in (1, 2, 4)])
offsets = st.sampled_from([Fraction(n, 4) for n in range(-6, 7)])
unions = st.tuples(st.just("unite"), ids, ids, ratios, offsets)
pins = st.tuples(st.just("pin"), ids, offsets)
shift_steps = st.lists(st.one_of(unions, unions, pins), max_size=14)
scale_unions = st.tuples(st.just("unite"), ids, ids, ratios, st.just(Fraction(0)))
scale_pins = st.tuples(st.just("pin"), ids, st.sampled_from([Fraction(1, 2), Fraction(1), Fraction(3)]))
sign_pins = st.tuples(st.just("sign"), ids, st.sampled_from([-1, 1]))
scale_steps = st.lists(st.one_of(scale_unions, scale_unions, scale_pins, sign_pins), max_size=14)


@dataclass
class Naive:
    """Linear equations by elimination, exactly: rows of coefficients over the unknowns, and a constant."""

    rows: list[list[Fraction]] = field(default_factory=list)

    def add(self, coefficients: dict[int, Fraction], constant: Fraction) -> bool:
        """True if the equation contradicts nothing (then it holds from now on)."""
        row = [coefficients.get(k, Fraction(0)) for k in range(COUNT)] + [constant]
        for other in self.rows:
            lead = next(k for k in range(COUNT) if other[k])
            factor = row[lead] / other[lead]
            row = [a - factor * b for a, b in zip(row, other, strict=True)]
        if not any(row[:COUNT]):
            return row[COUNT] == 0
        self.rows.append(row)
        return True

    def value(self, unknown: int) -> Fraction | None:
        """What the equations say it is; None if they leave it open."""
        answers = set()
        for guess in (Fraction(0), Fraction(1)):
            trial = Naive([list(row) for row in self.rows])
            if trial.add({unknown: Fraction(1)}, guess):
                answers.add(guess)
        if len(answers) == 2:
            return None
        return self._only_value(unknown)

    def _only_value(self, unknown: int) -> Fraction:
        row = [Fraction(int(k == unknown)) for k in range(COUNT)] + [Fraction(0)]
        for other in self.rows:
            lead = next(k for k in range(COUNT) if other[k])
            factor = row[lead] / other[lead]
            row = [a - factor * b for a, b in zip(row, other, strict=True)]
        return -row[COUNT]


def new(signed: bool) -> UnionFind:
    system = UnionFind(signed)
    system.new(COUNT)
    return system


def apply(system: UnionFind, step: tuple[Any, ...]) -> bool:
    """Offer one step; True if it was taken, else it has left no trace."""
    mark = system.mark()
    kind, first, *rest = step
    where = np.array([first])
    if kind == "unite":
        other, ratio, offset = rest
        conflict = system.unite(where, np.array([other]), float(ratio), float(offset))
    elif kind == "pin":
        conflict = system.pin(where, float(rest[0]))
    else:
        conflict = system.pin(where, sign=rest[0])
    if conflict is not None:
        system.rollback(mark)
    return conflict is None


def state(system: UnionFind) -> list[Array]:
    return [getattr(system, name)[:COUNT].copy() for name in FIELDS]


def same(left: list[Array], right: list[Array]) -> bool:
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(left, right, strict=True))


@settings(max_examples=300, derandomize=True, deadline=None)
@given(shift_steps)
def test_shifts_like_elimination(steps: list[tuple[Any, ...]]) -> None:
    system, naive = new(signed=False), Naive()
    for step in steps:
        kind, first, *rest = step
        if kind == "unite":  # x_first - ratio * x_other = offset
            other, ratio, offset = rest
            coefficients = {first: Fraction(1)}
            coefficients[other] = coefficients.get(other, Fraction(0)) - ratio
        else:
            coefficients, offset = {first: Fraction(1)}, rest[0]
        assert apply(system, step) == naive.add(coefficients, offset)
    for unknown in range(COUNT):
        expected = naive.value(unknown)
        found = system.values(np.array([unknown]))[0]
        assert np.isnan(found) if expected is None else found == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(scale_steps)
def test_scales_like_all_assignments(steps: list[tuple[Any, ...]]) -> None:
    """Magnitudes by exact products along paths, signs by trying all of them."""
    system = new(signed=True)
    taken: list[tuple[Any, ...]] = []
    for step in steps:
        possible = _signs([*taken, step]) and _magnitudes([*taken, step])
        assert apply(system, step) == bool(possible)
        taken += [step] if possible else []
    signs, sizes = _signs(taken), _magnitudes(taken)
    assert signs and sizes
    for unknown in range(COUNT):
        forced = {sign[unknown] for sign in signs}
        found = system.values(np.array([unknown]))[0]
        if len(forced) == 1 and sizes[unknown] is not None:
            assert found == pytest.approx(forced.pop() * float(sizes[unknown] or 0))
        else:
            assert np.isnan(found)


def _signs(steps: list[tuple[Any, ...]]) -> list[list[int]]:
    everything = [[1 if number >> k & 1 else -1 for k in range(COUNT)] for number in range(1 << COUNT)]
    for step in steps:
        if step[0] == "unite":
            _, a, b, ratio, _ = step
            sign = 1 if ratio > 0 else -1
            everything = [s for s in everything if s[a] == sign * s[b]]
        elif step[0] == "sign":
            everything = [s for s in everything if s[step[1]] == step[2]]
    return everything


def _magnitudes(steps: list[tuple[Any, ...]]) -> list[Fraction | None]:
    """Of every unknown, None where it is open; empty if they contradict each other.

    All numbers here are products of 2, 3 and 5, so that the exponents of each prime are a system of sums.
    """
    sizes: list[Fraction | None] = [Fraction(1)] * COUNT
    for prime in (2, 3, 5):
        system = Naive()
        for kind, first, *rest in steps:
            if kind == "unite":
                equation = {first: Fraction(1)}
                equation[rest[0]] = equation.get(rest[0], Fraction(0)) - 1
                possible = system.add(equation, _exponent(prime, rest[1]))
            else:
                possible = kind == "sign" or system.add({first: Fraction(1)}, _exponent(prime, rest[0]))
            if not possible:
                return []
        for unknown, exponent in enumerate(map(system.value, range(COUNT))):
            size = sizes[unknown]
            sizes[unknown] = None if exponent is None or size is None else size * Fraction(prime) ** int(exponent)
    return sizes


def _exponent(prime: int, number: Fraction) -> Fraction:
    count = 0
    top, bottom = abs(number.numerator), number.denominator
    while top % prime == 0:
        top, count = top // prime, count + 1
    while bottom % prime == 0:
        bottom, count = bottom // prime, count - 1
    return Fraction(count)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.booleans().flatmap(lambda signed: st.tuples(
    st.just(signed), *(scale_steps if signed else shift_steps for _ in range(2))
)))  # fmt: skip
def test_rollback_restores_everything(drawn: tuple[bool, list[tuple[Any, ...]], list[tuple[Any, ...]]]) -> None:
    signed, before, offer = drawn
    system = new(signed)
    for step in before:
        apply(system, step)
    kept, mark = state(system), system.mark()
    for step in offer:
        apply(system, step)
    system.rollback(mark)
    assert same(state(system), kept)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(shift_steps)
def test_compress_changes_no_value(steps: list[tuple[Any, ...]]) -> None:
    system = new(signed=False)
    for step in steps:
        apply(system, step)
    everything = np.arange(COUNT)
    before, (roots, alpha, beta) = system.values(everything), system.find(everything)
    system.compress()
    after = system.find(everything)
    assert np.array_equal(roots, after[0])
    np.testing.assert_allclose((alpha, beta), after[1:], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(system.values(everything), before, rtol=1e-12, atol=1e-12)


@given(st.lists(st.tuples(ids, ids, ratios, offsets), max_size=10))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_batch_is_the_same_as_one_by_one(rows: list[tuple[int, int, Fraction, Fraction]]) -> None:
    together, single = new(signed=False), new(signed=False)
    one_by_one = [apply(single, ("unite", *row)) for row in rows]
    left, right, ratio, offset = (np.array([float(row[k]) for row in rows]) for k in range(4))
    conflict = together.unite(left.astype(np.int64), right.astype(np.int64), ratio, offset)
    assert (conflict is None) == all(one_by_one)
    if conflict is None:
        everything = np.arange(COUNT)
        np.testing.assert_allclose(together.values(everything), single.values(everything), rtol=1e-9, atol=1e-9)


def test_what_cancels_is_zero() -> None:
    terms = np.array([[0.1, 1e20, 1.0, 0.3], [0.2, 1.0, -1.0, -0.1], [-0.3, -1e20, 1e-10, -0.2]])
    assert total(terms).tolist() == [0.0, 0.0, 1e-10, 0.0]
