"""Signs alone: BatchNorms that only turn channels around, against every way to store values with the other sign.

With scales of +1 and -1 and no shift a fold is a question of signs: which values can be stored negated, channel by
channel, so that most BatchNorms go?  Here that is answered without the solver: each subset of them is checked by
walking its signs through the graph.  A fold has to find as many.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pytest
from oracle import assert_same_function
from probe_text import Probe

import bnfold

GRAPHS = 120
CHANNELS = (0, 1)
Place = tuple[str, int]  # a value's channel
Edge = tuple[Place, Place, int]  # both have the same sign (1), or not (-1)


class Drawn(NamedTuple):
    """A random model, and what it demands of signs."""

    probe: Probe
    positive: set[Place]
    edges: list[Edge]
    norms: list[list[Edge]]  # what holds if this BatchNorm goes


def draw(seed: int) -> Drawn:
    """Convs, activations, sums and exchanged channels, with up to six BatchNorms of random signs in between."""
    rng = np.random.default_rng(seed)
    names, read, text = ["v0"], set(), ["v0 = Conv(x, w[2,3,1,1])"]
    positive: set[Place] = set()
    edges: list[Edge] = []
    norms: list[list[Edge]] = []
    values: dict[str, object] = {}
    for i in range(1, int(rng.integers(5, 14))):
        source, other = (str(rng.choice(names[-4:])) for _ in range(2))
        name, op = f"v{i}", str(rng.choice(["bn", "bn", "Relu", "Tanh", "Neg", "MaxPool", "Add", "Conv", "Gather"]))
        read.add(source)
        pairs: list[Edge] = [((name, c), (source, c), 1) for c in CHANNELS]
        if op == "bn" and len(norms) < 6:
            signs = rng.choice([-1, 1], 2)
            values |= {f"{name}_gamma": signs, f"{name}_var": 1.0, f"{name}_mean": 0.0, f"{name}_beta": 0.0}
            text.append(f"{name} = BN2<epsilon=0.>({source})")
            norms.append([(y, x, int(sign)) for (y, x, _), sign in zip(pairs, signs, strict=True)])
        elif op == "Conv":
            text.append(f"{name} = Conv({source}, w{i}[2,2,1,1])")
        elif op == "Add":
            read.add(other)
            text.append(f"{name} = Add({source}, {other})")
            edges += pairs + [((name, c), (other, c), 1) for c in CHANNELS]
        elif op == "Gather":
            text.append(f"{name} = Gather<axis=1>({source}, i{i}:int64[2]={{1,0}})")
            edges += [((name, c), (source, 1 - c), 1) for c in CHANNELS]
        else:
            op = "Relu" if op == "bn" else op
            text.append(f"{name} = {op}{'<kernel_shape=[1,1]>' * (op == 'MaxPool')}({source})")
            edges += pairs
            positive |= {(name, c) for c in CHANNELS if op in ("Relu", "MaxPool")}
        names.append(name)
    ends = [name for name in names if name not in read]
    outputs = []
    for name in ends:
        if rng.random() < 0.5:
            outputs.append(name)
            positive |= {(name, c) for c in CHANNELS}
        else:
            outputs.append(f"{name}_out")
            text.append(f"{name}_out = Conv({name}, {name}_w[2,2,1,1])")
    probe = Probe(f"signs-{seed}", "", f"x[N,3,2,2] -> {', '.join(outputs)} | {'; '.join(text)}", values=values)
    return Drawn(probe, positive, edges, norms)


def consistent(positive: set[Place], edges: list[Edge]) -> bool:
    """True if signs can be given to all places: from each positive one outwards, then from any that is left."""
    near = defaultdict(list)
    for left, right, sign in edges:
        near[left].append((right, sign))
        near[right].append((left, sign))
    signs = dict.fromkeys(positive, 1)
    for start in [*positive, *near]:
        signs.setdefault(start, 1)
        pending = [start]
        while pending:
            place = pending.pop()
            for other, sign in near[place]:
                if other not in signs:
                    signs[other] = signs[place] * sign
                    pending.append(other)
                elif signs[other] != signs[place] * sign:
                    return False
    return True


def most(drawn: Drawn) -> int:
    """How many BatchNorms can go."""
    for count in range(len(drawn.norms), 0, -1):
        for subset in itertools.combinations(drawn.norms, count):
            if consistent(drawn.positive, drawn.edges + list(itertools.chain(*subset))):
                return count
    return 0


def test_as_many_go_as_signs_allow() -> None:
    tried = hard = 0
    for seed in range(GRAPHS):
        drawn = draw(seed)
        if not drawn.norms:
            continue
        report = bnfold.fold(drawn.probe.model(), merge=False, verify=False).report
        possible = most(drawn)
        assert report.after.per_channel_ops == len(drawn.norms) - possible, seed
        tried, hard = tried + 1, hard + (0 < possible < len(drawn.norms))
    assert tried > GRAPHS // 2
    assert hard > 10, "no graph in which some can go and some can't"


@pytest.mark.parametrize("seed", range(12))
def test_function_stays(seed: int) -> None:
    probe = draw(seed).probe
    model = probe.model()
    assert_same_function(model, bnfold.fold(model, merge=False).model, probe.batches())
