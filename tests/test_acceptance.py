"""Greedy acceptance against the best that any choice of ops allows, on graphs small enough to try them all.

An op is accepted if its two equations contradict nothing that has been accepted before, so the order of offers decides,
and the engine tries three.  Here every subset of the ops is offered alone; the best one is the optimum of what the
engine minimises, the number of per-channel ops left.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from onnx import ModelProto
from probe_text import Probe
from probes import PROBES
from random_graphs import Seeded, random_model

from bnfold.fold import Options
from bnfold.fold.accept import BOTH, _Run, _worth, accept
from bnfold.fold.ties import Affine, Ties, tie_scope
from bnfold.graph import Graph
from bnfold.model_file import wrap
from bnfold.shapes import Shapes

MOST_OPS = 8
CROWDED, RANDOM = 80, 1000
"""How many graphs are drawn; of the random ones about a quarter has two ops or more that could be in conflict."""


def tied(model: ModelProto) -> Ties:
    """The ties of the main graph, ready for offers."""
    graph, loaded = Graph(model), wrap(model)
    shapes = Shapes(graph, loaded, False)
    scope = graph.scopes[0]
    ties = Ties(scope, shapes, shapes.constants(scope), Options().chosen)
    tie_scope(ties)
    return ties


def saved(ops: Iterable[Affine]) -> int:
    return sum(_worth(op) for op in ops)


def greedy(model: ModelProto) -> int:
    """Per-channel ops that the engine saves by whole removals."""
    return saved(op for op, part in accept(tied(model)).accepted.items() if part == BOTH)


def best(model: ModelProto) -> int:
    """What the best subset saves."""
    ties = tied(model)
    most = 0
    for size in range(len(ties.affines) + 1):
        for subset in itertools.combinations(ties.affines, size):
            run = _Run(ties)
            run.offer_all(subset)
            if not run.decision.refused:
                most = max(most, saved(subset))
            run.undo()
    return most


# ------------------------------------------------------------------------------------------- chosen by hand
SAME = "{y} = BatchNormalization(h, {k}g[4], {k}b[4], {k}m[4], {k}_var[4])"


def readers(kinds: str) -> str:
    """One value read by a BN of each of these kinds; equal kinds can go together, others can't."""
    norms = "; ".join(SAME.format(y=f"y{i}", k=kind) for i, kind in enumerate(kinds))
    return f"x[N,3,4,4] -> {', '.join(f'y{i}' for i in range(len(kinds)))} | h = Conv(x, w[4,3,1,1]); {norms}"


RESIDUAL = (
    "x[N,3,6,6] -> y | h = Conv(x, w[4,3,1,1]); a = BN4+(h); r = Relu(a); p = Conv<pads=[1,1,1,1]>(r, v[4,4,3,3]); "
    "s = Add(p, h); c = BN4(s); d = Relu(c); y = Conv<pads=[1,1,1,1]>(d, u[2,4,3,3])"
)

CASES = {
    "first-is-worse": (readers("pqq"), 2),
    "last-is-worse": (readers("ppq"), 2),
    "both-ends-are-worse": (readers("pqqqp"), 3),  # neither topological nor reverse order finds it
    "alternating": (readers("pqpqp"), 3),
    "three-kinds": (readers("pqrqrq"), 3),
    "fixed-ends": ("x[N,4,3,3] -> y, z | h = BN4(x); a = BN4(h); y = BN4(a); z = BN4(h)", 1),
    "residual": (RESIDUAL, 1),}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    text, expected = CASES[name]
    model = Probe(name, "", text).model()
    assert best(model) == expected
    assert greedy(model) == expected


def test_known_case_where_greedy_is_worse() -> None:
    """p is first at both ends, r among those refused first: no order begins with q, the one that three share."""
    model = Probe("greedy-is-worse", "", readers("prqqqp")).model()
    assert best(model) == 3
    assert greedy(model) == 2


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_probe(probe: Probe) -> None:
    model = probe.model()
    assert greedy(model) == best(model)


# ------------------------------------------------------------------------------------------------- at random
def crowded(seed: int) -> ModelProto:
    """BN in a chain of blocks with skips, each ahead of a Relu or a padded Conv: many that are in others' way."""
    rng = np.random.default_rng(seed)
    values, read, text = ["h"], set(), ["h = Conv(x, w[4,3,1,1])"]
    for i in range(int(rng.integers(3, MOST_OPS))):
        source, skip = rng.choice(values[-3:]), rng.choice(values)
        read.add(source)
        text.append(f"a{i} = BN4{'+' if rng.random() < 0.7 else ''}({source})")
        value = f"a{i}"
        if rng.random() < 0.6:
            text.append(f"r{i} = Relu({value})")
            value = f"r{i}"
        if rng.random() < 0.6:
            size, pads = (3, "<pads=[1,1,1,1]>") if rng.random() < 0.5 else (1, "")
            text.append(f"c{i} = Conv{pads}({value}, w{i}[4,4,{size},{size}])")
            value = f"c{i}"
        if rng.random() < 0.5:
            read.add(skip)
            text.append(f"s{i} = Add({value}, {skip})")
            value = f"s{i}"
        values.append(value)
    ends = [value for value in values if value not in read]
    text += [f"y{i} = Conv({value}, u{i}[2,4,1,1])" for i, value in enumerate(ends)]
    outputs = ", ".join(f"y{i}" for i in range(len(ends)))
    return Probe(f"crowded-{seed}", "", f"x[N,3,4,4] -> {outputs} | {'; '.join(text)}").model()


def shortfalls(models: Iterable[ModelProto]) -> Counter[int]:
    """How often greedy leaves how many ops more than the best choice; graphs of one op or too many don't count."""
    return Counter(best(m) - greedy(m) for m in models if 2 <= len(tied(m).affines) <= MOST_OPS)


def test_crowded_graphs() -> None:
    found = shortfalls(map(crowded, range(CROWDED)))
    assert found[0] == found.total() > CROWDED // 2, found


def test_random_graphs() -> None:
    drawn = (random_model(Seeded(seed)) for seed in range(RANDOM))
    found = shortfalls(model[0] for model in drawn if model is not None)
    assert found[0] == found.total() > RANDOM // 10, found
