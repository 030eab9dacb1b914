"""What a quantised model's fold differs by: a last digit, the announced rounding of an int32 bias, nothing else.

`benchmarks/rounding.py` follows random networks rounding by rounding; here are a few of them.
"""

from __future__ import annotations

import sys

import pytest
from conftest import REPO

sys.path.append(str(REPO / "benchmarks"))
from rounding import NOISE, Parting, network, part, with_float_biases

NETS = 120


@pytest.fixture(scope="module")
def partings() -> list[Parting]:
    return [part(network(seed), seed) for seed in range(NETS)]


def test_each_segment_differs_by_last_digits(partings: list[Parting]) -> None:
    exact = [parting for parting in partings if not parting.rounds_bias]
    assert len(exact) > NETS / 2
    assert sum(parting.folded for parting in exact) > 100
    assert sum(parting.values for parting in exact) > 10_000
    assert max(max(parting.in_front, parting.output) for parting in exact) <= NOISE


def test_a_rounded_bias_is_what_makes_the_rest(partings: list[Parting]) -> None:
    rounded = {seed: parting for seed, parting in enumerate(partings) if parting.rounds_bias}
    assert len(rounded) > NETS / 20
    assert max(parting.in_front for parting in rounded.values()) > 10 * NOISE, "nothing was rounded: it shows nothing"
    again = [part(with_float_biases(network(seed)), seed) for seed in rounded]
    assert not any(parting.rounds_bias for parting in again)
    assert max(max(parting.in_front, parting.output) for parting in again) <= NOISE
