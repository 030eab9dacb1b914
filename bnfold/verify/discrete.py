"""Outputs that are no floats: an index, a mask, a list of boxes.

A difference there counts only if the scores behind it are apart by more than their noise: an argmax of two equal scores
may be either. Both models are cut at the pairs, so that B decides on A's own scores wherever these are paired, and
nothing flips at all. What is left is compared element by element: for ArgMax, TopK and comparisons the scores at both
choices are looked up; for others (NMS, NonZero) it is asked whether A's noise changes its own result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from bnfold.constants import Array
from bnfold.errors import quoted
from bnfold.verify.criterion import EQUAL, SEEDS
from bnfold.verify.examine import Batch, Batches, Examination
from bnfold.verify.runtime import CUT, Feeds, Runner, cut_model
from bnfold.verify.sides import DOUBLE, Side

# What hands a decision on.
PASSES = frozenset("Cast Squeeze Unsqueeze Reshape Identity Flatten Not".split())
COMPARISONS = frozenset("Greater GreaterOrEqual Less LessOrEqual Equal".split())


@dataclass(frozen=True)
class Flips:
    """Elements of one output that differ.

    counted: those that are no ties; ties: the others; sentence: about the counted.
    """

    counted: int
    ties: int
    sentence: str


def judge_discrete(
    a: Side, b: Side, outputs: Mapping[str, str], batches: Batches, found: Examination, seed: int
) -> dict[str, Flips]:
    """Compare the outputs that are no floats, in double, on A's exact scores.

    Raises: CannotRun.
    """
    names = {left: right for left, right in outputs.items() if left not in a.floats and left in a.double_makers}
    names = {left: right for left, right in names.items() if right in b.double_makers}
    if not names:
        return {}
    result: dict[str, Flips] = {}
    for batch in batches:
        flips = _Decisions(a, b, names, found, seed).run(batch)
        for name, flip in flips.items():
            before = result.get(name, Flips(0, 0, ""))
            result[name] = Flips(
                before.counted + flip.counted, before.ties + flip.ties, before.sentence or flip.sentence
            )
    return result


class _Decisions:
    """Both models, cut at their pairs, up to the discrete outputs."""

    def __init__(self, a: Side, b: Side, names: Mapping[str, str], found: Examination, seed: int) -> None:
        self.a, self.b, self.names, self.seed = a, b, names, seed
        pairs = [segment.pair for segment, _ in found.segments if segment.pair.basis != "coordinates"]
        self.pairs = {pair.b: pair for pair in pairs if pair.a in a.double_makers and pair.b in b.double_makers}
        self.deciders = {name: _decider(a, name) for name in names}

    def run(self, batch: Batch) -> dict[str, Flips]:
        """Flips of one batch."""
        scores = sorted({name for node in self.deciders.values() if node for name in node.input[:2]
                         if name in self.a.double_makers})  # fmt: skip
        wanted = [*self.names, *(name for name in scores if name not in self.names)]
        exact, noisy = self._of_a(wanted, batch)
        exact |= self._thresholds()
        cuts = dict.fromkeys(self.pairs, DOUBLE)
        wanted = list(self.names.values())
        runner = Runner(cut_model(self.b.model, cuts, wanted, (), self.b.shapes), wanted)
        feeds = self.b.double_feeds(batch.b)
        known = self._known(batch, [name.removeprefix(CUT) for name in runner.inputs if name.startswith(CUT)])
        other = runner.run(feeds | {CUT + name: value for name, value in known.items()})
        return {
            left: self._flips(left, exact, other[right], noisy) for left, right in self.names.items()
        }  # fmt: skip

    def _thresholds(self) -> Feeds:
        """Constants that scores are compared with."""
        read = {name for node in self.deciders.values() if node for name in node.input[:2]}
        tensors = (tensor for tensor in self.a.model.graph.initializer if tensor.name in read)
        return {tensor.name: self.a.model.read(tensor) for tensor in tensors}

    def _known(self, batch: Batch, names: list[str]) -> Feeds:
        """A's exact values, as B's cuts take them."""
        wanted = [name for name in self.a.floats if name in {self.pairs[b].a for b in names}]
        if not wanted:
            return {}
        values = Runner(cut_model(self.a.model, {}, wanted), wanted).run(self.a.double_feeds(batch.a))
        return {b: self.pairs[b].as_b(values[self.pairs[b].a], self.b.shapes[b]) for b in names}

    def _of_a(self, wanted: list[str], batch: Batch) -> tuple[Feeds, list[Feeds]]:
        """A's decisions and scores, and those with its weights moved."""
        feeds = self.a.double_feeds(batch.a)
        plain = Runner(cut_model(self.a.model, {}, wanted), wanted).run(feeds)
        runner = Runner(cut_model(self.a.model, {}, wanted, self.a.loose), wanted)
        loose = [name for name in runner.inputs if name in self.a.loose]
        return plain, [
            runner.run(feeds | {name: self.a.weight(name, self.seed + seed) for name in loose})
            for seed in range(SEEDS)
        ]

    def _flips(self, name: str, exact: Feeds, other: Array, noisy: list[Feeds]) -> Flips:
        value, node = exact[name], self.deciders[name]
        differs = np.asarray(value != other) if value.shape == other.shape else np.ones(1, bool)
        count = int(differs.sum())
        if not count:
            return Flips(0, 0, "")
        margin = _margin(node, name, exact, other) if node and differs.size == value.size else None
        if margin is None or margin.shape != differs.shape or node is None:
            restless = any(noise[name].shape != value.shape or (noise[name] != value).any() for noise in noisy)
            tie = np.full(differs.shape, restless)
        else:
            tie = margin <= _noise(node, exact, noisy)
        counted = int((differs & ~tie).sum())
        sentence = f"{counted} elements of output {quoted(name)} differ, by more than the noise of their scores"
        return Flips(counted, count - counted, sentence if counted else "")


def _decider(side: Side, name: str) -> NodeProto | None:
    """The node that makes the decision that an output hands out."""
    node = side.makers.get(name)
    while node is not None and node.op_type in PASSES and side.types.get(node.input[0]) not in (1, 10, 11, 16):
        node = side.makers.get(node.input[0])
    return node


def _margin(node: NodeProto, name: str, exact: Feeds, other: Array) -> Array | None:
    """How far apart the scores are that A and B decided between, element by element; None if it can't be said."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    scores = [exact[read] for read in node.input[:2] if read in exact]
    if node.op_type in COMPARISONS and len(scores) == 2:
        return np.asarray(np.abs(scores[0] - scores[1]))
    if node.op_type not in ("ArgMax", "ArgMin", "TopK") or not scores or name not in node.output:
        return None
    default = -1 if node.op_type == "TopK" else 0
    axis = attributes.get("axis", default)
    mine, theirs = exact[name], other
    if node.op_type != "TopK" and not attributes.get("keepdims", 1):
        mine, theirs = np.expand_dims(mine, axis), np.expand_dims(theirs, axis)
    gap = np.abs(np.take_along_axis(scores[0], mine, axis) - np.take_along_axis(scores[0], theirs, axis))
    return np.asarray(gap.reshape(exact[name].shape))


def _noise(node: NodeProto, exact: Feeds, noisy: list[Feeds]) -> float:
    """What the scores of a decision move by: the limit of r times their rms noise."""
    names = [read for read in node.input[:2] if read in noisy[0]]
    squares = [float(np.mean((noise[read] - exact[read]) ** 2)) for noise in noisy for read in names]
    return EQUAL * float(np.sqrt(np.mean(squares))) if squares else 0.0
