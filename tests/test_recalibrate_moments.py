"""Merging moments, and how far statistics drifted: plain arithmetic."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import bnfold
from bnfold.recalibrate.moments import Moments


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(-1e4, 1e4), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_merged_moments_are_those_of_all(sizes: list[int], mean: float, seed: int) -> None:
    x = mean + np.random.default_rng(seed).standard_normal((sum(sizes), 3))
    merged = Moments()
    for part in np.split(x, np.cumsum(sizes)[:-1]):
        merged.add(len(part), part.mean(0), part.var(0))
    assert merged.count == len(x)
    np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(merged.variance(), x.var(0), rtol=1e-7, atol=1e-12)
    if len(x) > 1:
        np.testing.assert_allclose(merged.variance(unbiased=True), x.var(0, ddof=1), rtol=1e-7, atol=1e-12)


def test_drift_says_how_far() -> None:
    zero, one = np.zeros(1), np.ones(1)
    moved = bnfold.Drift("bn", "", 1, zero, one, one, one, 100, 0.0)
    assert (moved.shift, moved.ratio, moved.score) == (1, 1, 1)
    wider = bnfold.Drift("bn", "", 1, zero, one, zero, 4 * one, 100, 0.0)
    assert (wider.shift, wider.ratio, wider.score) == (0, 2, 0.5 * (0.25 + 4) - 1)
