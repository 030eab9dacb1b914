"""Which pairs are in the way of BatchNormalization: as few as let all BN go that can go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from bnfold.fold import Folding, Options, fold_model
from bnfold.graph import Node
from bnfold.model_file import LoadedModel
from bnfold.requantize.measure import Maps, map_of
from bnfold.requantize.pairs import Pair, Steps, loosened, sources

# Behind these (and in front) is what takes a BN in.
LINEAR = frozenset("Conv ConvTranspose Gemm MatMul Einsum".split())


def in_the_way(
    original: LoadedModel, options: Options, plain: Folding, offered: Sequence[Pair]
) -> tuple[list[Pair], Maps]:
    """Of the offered pairs those that BN go through, and the coordinates that values are stored in then.

    A pair is tried if it lies between a BN that stays, or of which something is left, and the linear nodes in front of
    it; then those behind.  It is chosen if the fold stores what it rounds in such coordinates that its steps fit no
    more.

    Args:
        original: the model as it is.
        options: of the fold.
        plain: its fold with all pairs in their places.
        offered: what may go out of the way.
    """
    folding = plain
    tried: list[Pair] = []
    while more := _near(folding, offered, tried):
        tried += more
        folding = fold_model(loosened(original, tried), options)
    chosen = moved(folding, tried)
    if len(chosen) < len(tried):
        if chosen:
            return in_the_way(original, options, plain, chosen)
        folding = plain
    gains = folding.report.after.per_channel_ops < plain.report.after.per_channel_ops
    return (chosen if gains else []), folding.plans[0].maps


def _near(folding: Folding, offered: Sequence[Pair], tried: Sequence[Pair]) -> list[Pair]:
    """Pairs that have not been tried, in front of BN that stay; behind them if there are no more of these."""
    left = {entry.name for entry in folding.report.entries if entry.op == "BatchNormalization"
            and entry.outcome != "folded" and not entry.scope}  # fmt: skip
    if not left or len(tried) == len(offered):
        return []
    owners = {id(node.proto): pair for pair in offered for node in pair.nodes}
    scope = offered[0].nodes[0].scope
    norms = [node for node in scope.nodes if node.op == "BatchNormalization" and node.name in left]
    for step in (_in_front, _behind):
        met = {owners[id(node.proto)] for node in _walk(norms, step) if id(node.proto) in owners}
        if more := [pair for pair in offered if pair in met and pair not in tried]:
            return more
    return []


def _walk(starts: Sequence[Node], step: Callable[[Node], Iterable[Node]]) -> Iterator[Node]:
    """The nodes that these lead to, as far as the next linear ones."""
    pending, seen = list(starts), set(starts)
    while pending:
        node = pending.pop()
        yield node
        for near in step(node):
            if near not in seen and near.op not in LINEAR:
                seen.add(near)
                pending.append(near)


def _in_front(node: Node) -> Iterator[Node]:
    yield from (value.producer for value in node.inputs if value is not None and value.producer is not None)


def _behind(node: Node) -> Iterator[Node]:
    yield from (reader for value in node.outputs if value is not None for reader, _ in value.readers())


def moved(folding: Folding, pairs: Iterable[Pair]) -> list[Pair]:
    """Those that can't stay as they are, or with their steps scaled: by one positive scale for all, and no shift."""
    left = sources(folding.model)  # a merge may have taken some in
    found = []
    for pair in pairs:
        scale, shift = map_of(folding.plans[0].maps, pair)
        fits = (scale == scale.flat[0]).all() and scale.flat[0] > 0 and not shift.any()
        if pair.number not in left or not fits:
            found.append(pair)
    return found


def scaled(folding: Folding, pair: Pair) -> Steps:
    """The steps of a pair that has not moved, in the coordinates of what it rounds."""
    scale, _ = map_of(folding.plans[0].maps, pair)
    step = np.asarray(float(pair.steps.step) * scale.flat[0], pair.steps.step.dtype)
    return Steps(step, pair.steps.zero_point)
