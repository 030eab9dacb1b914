"""From two models and their inputs to readings: sketches, pairs, segments, and second thoughts about pairs.

A pair whose segment is off, with another one behind it, may be no pair: a tool that moves a scale of 0.99999 from one
node to a later one leaves values that look like A's and aren't. It is taken back, with all between the two, and the
longer segment decides. Where that is off as well the models differ, and less certain pairs show where. They also help
where a segment reacts to nothing (a saturated softmax): what is off inside of it then is a difference.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bnfold.verify.alike import alike
from bnfold.verify.criterion import BLIND, DOUBTFUL, EQUAL, MORE_SEEDS, Reading
from bnfold.verify.pairing import (
    CLOSE,
    NEAR,
    ROUNDINGS,
    SURE,
    Pair,
    Sketch,
    pair_coordinates,
    pair_places,
    pair_values,
    sketch,
)  # fmt: skip
from bnfold.verify.runtime import Feeds
from bnfold.verify.segments import Segment, Segments
from bnfold.verify.sides import HELD, Side

log = logging.getLogger("bnfold")

# How often pairs are taken back.
ROUNDS = 3
# A value inside of a segment that is so many times as far off is none of A's: later nodes make up for it.
MADE_UP_FOR = 1000.0


@dataclass(frozen=True)
class Batch:
    """Inputs of both models."""

    a: Feeds
    b: Feeds


class Batches:
    """Inputs of both models, batch by batch; where they come from a file, one batch is in memory.

    Args:
        a: inputs of A.
        names: of B's inputs, by A's.
    """

    def __init__(self, a: Sequence[Feeds], names: Mapping[str, str]) -> None:
        self.a, self.names = a, names

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, index: int) -> Batch:
        feeds = self.a[index]
        return Batch(feeds, {self.names[name]: value for name, value in feeds.items() if name in self.names})

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


@dataclass
class Examination:
    """What was measured.

    Attributes:
        segments: each with its reading, in the order of B's nodes.
        located: the segments that are off, as finely cut as can be; the first is where the difference begins.
        blind: segments with weights that their value doesn't react to.
        taken_back: pairs that weren't.
        overflow: a value of B that is finite in double and too large for its type, though none of A's is; '' if none.
    """

    segments: list[tuple[Segment, Reading]]
    located: list[tuple[Segment, Reading]]
    blind: list[Segment]
    taken_back: int
    overflow: str

    @property
    def worst(self) -> float:
        """The largest r of what counts."""
        return max((reading.r for segment, reading in self.segments if counts(segment.pair)), default=0.0)


def counts(pair: Pair) -> bool:
    """Whether a pair is part of the verdict: what is A's in other coordinates is only observed."""
    return pair.basis != "coordinates"


def examine(a: Side, b: Side, outputs: dict[str, str], batches: Batches, seed: int) -> Examination:
    """Pair, cut, measure.

    Args:
        a: the reference.
        b: the model in question.
        outputs: names of B's outputs by those of A's.
        batches: inputs; pairs are made on the first.
        seed: of the noise.

    Raises: CannotRun.
    """
    log.info("pairing %d values", len(a.floats))
    total = sum(a.nbytes(name) for name in a.floats)
    known: Feeds | None = {} if total <= HELD and len(batches) == 1 else None
    first = batches[0]
    sketches_a, over_a = _sketches(a, first.a, False, known)
    sketches_b, over_b = _sketches(b, first.b, True, None)
    shown = {left: right for left, right in outputs.items() if left in sketches_a and right in sketches_b}
    ends = [Pair(left, right, (), "output") for left, right in shown.items()]
    sure = max([SURE, *(ROUNDINGS * a.unit(name) for name in a.floats)])
    pairs = ends + pair_values(sketches_a, sketches_b, ends, sure)
    observed = pair_coordinates(sketches_a, sketches_b, pairs)
    bench = _Bench(a, b, batches, known, seed)
    log.info("measuring %d segments", len(pairs))
    found = bench.measure(pairs + observed, None)
    pairs, found, gone = _second_thoughts(bench, pairs + observed, found)
    pairs = [pair for pair in pairs if counts(pair)]
    located = _off(found)
    blind = [] if located else _blind(bench, found)
    if located or blind:
        less_sure = gone if located else []  # they may be right: two bugs in a row look the same
        less_sure = less_sure + pair_values(sketches_a, sketches_b, [*pairs, *less_sure], max(CLOSE, sure))
        # What is A's in other coordinates is off by nature, though it may bear the same name or be near.
        taken = [*pairs, *observed]
        less_sure += pair_values(sketches_a, sketches_b, [*taken, *less_sure], NEAR)
        less_sure += pair_places(a, b, [*taken, *less_sure]) if located else []
        finer = _finer(bench, pairs, less_sure, located or blind)
        if located:
            located = _off(finer) or located
        else:
            found |= finer
            located = _off(finer)
            blind = [] if located and not _leads_on(located) else _blind(bench, found)
            located = [] if blind else located
    kept = {pair: item for pair, item in found.items() if counts(pair) or item[1].r <= EQUAL}
    return Examination(
        bench.ordered(kept.values()), bench.ordered(located), [item[0] for item in blind],
        0 if located else len(gone),
        "" if over_a else over_b,
    )  # fmt: skip


def _sketches(
    side: Side, feeds: Feeds, layouts: bool, known: Feeds | None
) -> tuple[dict[str, Sketch], str]:
    """Sketches of all values, and the first one that its type can't hold."""
    found: dict[str, Sketch] = {}
    over = ""
    for window in side.walk(side.floats, side.double_feeds(feeds)):
        found.update((name, sketch(value, layouts)) for name, value in window.items())
        over = over or next((name for name, value in window.items() if side.overflows(name, value)), "")
        if known is not None:
            known.update(window)
    return {name: found[name] for name in side.floats}, over


Item = tuple[Segment, Reading]
Found = dict[Pair, Item]


class _Bench:
    """Where segments are measured, as often as it takes."""

    def __init__(self, a: Side, b: Side, batches: Batches, known: Feeds | None, seed: int) -> None:
        self.a, self.b, self.batches, self.known, self.seed = a, b, batches, known, seed
        self.inputs = {other: name for name, other in batches.names.items()}
        self.pairs: Sequence[Pair] = ()
        self._order = {name: place for place, name in enumerate(b.floats)}

    def ordered(self, items: Iterable[Item]) -> list[Item]:
        """By the place of B's value among B's."""
        return sorted(items, key=lambda item: self._order.get(item[0].pair.b, 0))

    def measure(self, pairs: Sequence[Pair], wanted: Sequence[Pair] | None) -> Found:
        """Readings of some or all pairs, with both models cut at all of them; doubtful ones twice."""
        self.pairs = [pair for pair in pairs if counts(pair)]
        found = self._measure(Segments(self.a, self.b, pairs, wanted, self.seed))
        low, high = DOUBTFUL
        doubtful = [pair for pair, (_, reading) in found.items() if low < reading.r < high]
        if doubtful:
            found |= self._measure(Segments(self.a, self.b, pairs, doubtful, self.seed, MORE_SEEDS, both=True))
        return found

    def _measure(self, cut: Segments) -> Found:
        for batch in self.batches:
            cut.run(batch.a, batch.b, self.known)
        return {segment.pair: (segment, segment.reading()) for segment in cut.segments}

    def same(self, segment: Segment) -> bool:
        """Whether both models have the very same nodes there."""
        ends = {pair.b: pair.a for pair in self.pairs} | self.inputs
        return alike(self.a, self.b, segment, ends)


def _off(found: Found) -> list[Item]:
    return [(segment, reading) for pair, (segment, reading) in found.items() if counts(pair) and reading.r > EQUAL]


def _second_thoughts(bench: _Bench, pairs: list[Pair], found: Found) -> tuple[list[Pair], Found, list[Pair]]:
    """Take back pairs that are off with another one behind them, and all between; which were."""
    taken_back: list[Pair] = []
    for _ in range(ROUNDS):
        gone = _between(found) | _crossed(found)
        if not gone:
            break
        taken_back += gone
        pairs = [pair for pair in pairs if pair not in gone]
        names_a, names_b = {pair.a for pair in gone}, {pair.b for pair in gone}
        affected = [pair for pair in pairs if found[pair][0].given_a & names_a or found[pair][0].given_b & names_b]
        found = {pair: found[pair] for pair in pairs} | bench.measure(pairs, affected)
    return pairs, found, taken_back


def _between(found: Found) -> set[Pair]:
    """Pairs on the way from one segment that is off to another, the first included; an output stays a pair."""
    by_b = {pair.b: item for pair, item in found.items() if counts(pair)}
    off = {pair.b for pair, (_, reading) in found.items() if counts(pair) and reading.r > EQUAL}
    behind: set[str] = set()  # behind one that is off, itself included
    for name, (segment, _) in by_b.items():  # in the order of B's nodes
        if name in off or segment.given_b & behind:
            behind.add(name)
    ahead: set[str] = set()  # with one that is off behind it
    for name, (segment, _) in reversed(by_b.items()):
        if name in off or name in ahead:
            ahead.update(segment.given_b)
    return {by_b[name][0].pair for name in behind & ahead if by_b[name][0].pair.basis != "output"}


def _crossed(found: Found) -> set[Pair]:
    """Pairs that are off and begin at other pairs in A than in B: values that equal others, judged by others' noise."""
    by_b = {pair.b: pair.a for pair in found if counts(pair)}
    return {
        segment.pair for segment, _ in _off(found)
        if segment.pair.basis != "output" and {by_b[name] for name in segment.given_b} != segment.given_a
    }  # fmt: skip


def _leads_on(off: list[Item]) -> bool:
    """Whether one that is off may make up for another."""
    return bool(_between({segment.pair: (segment, reading) for segment, reading in off}))


def _finer(bench: _Bench, pairs: list[Pair], extra: list[Pair], coarse: list[Item]) -> Found:
    """Some segments again, cut at less certain pairs inside of them as well: those that are pairs."""
    inside_a = {name for segment, _ in coarse for node in segment.nodes_a for name in node.output}
    inside_b = {name for segment, _ in coarse for node in segment.nodes_b for name in node.output}
    extra = [pair for pair in extra if pair.a in inside_a and pair.b in inside_b]
    wanted = [*extra, *(segment.pair for segment, _ in coarse)]
    least = min((reading.r for _, reading in coarse), default=0.0)
    found = bench.measure([*pairs, *extra], wanted)
    for _ in range(ROUNDS):
        # what one is off by, another makes up for
        gone = {pair for pair in _between(found) & set(extra) if found[pair][1].r > MADE_UP_FOR * least}
        if not gone:
            break
        extra, wanted = ([pair for pair in some if pair not in gone] for some in (extra, wanted))
        found = bench.measure([*pairs, *extra], wanted)
    return found


def _blind(bench: _Bench, found: Found) -> list[Item]:
    """Segments with weights that their value doesn't react to."""
    return [
        (segment, reading) for pair, (segment, reading) in found.items()
        if counts(pair) and reading.response < BLIND and reading.r <= EQUAL and _has_weights(segment, bench)
        and not bench.same(segment)
    ]  # fmt: skip


def _has_weights(segment: Segment, bench: _Bench) -> bool:
    return any(name in bench.b.weights for node in segment.nodes_b for name in node.input) or any(
        name in bench.a.weights for node in segment.nodes_a for name in node.input
    )
