"""Cutting both models at the pairs: every segment is fed A's exact values, so its error is its own.

One run of B gives the local error of every segment; runs of A with moved weights and inputs give the noise that it is
judged by. Nothing is amplified or hidden on the way to an output: the first segment that is off is where the bug is.
Channels that are 0 hide the weights behind them: such a segment is run once more with other channels in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from onnx import NodeProto, helper

from bnfold.constants import Array
from bnfold.verify.criterion import NATIVE, SEEDS, Reading, Tally, regressed
from bnfold.verify.pairing import Pair
from bnfold.verify.prepare import moved
from bnfold.verify.runtime import CUT, Feeds, Runner, frontier
from bnfold.verify.sides import DOUBLE, WINDOW, Side, as_double


@dataclass
class Segment:
    """What lies between a pair and the pairs before it.

    Attributes:
        pair: what it computes.
        given_a, given_b: cut values (their names in A and in B) that A's and B's begin at.
        nodes_a, nodes_b: of the models themselves.
        native: it has no double form: both run it in their own types.
        tally: what was measured.
    """

    pair: Pair
    given_a: frozenset[str]
    given_b: frozenset[str]
    nodes_a: list[NodeProto]
    nodes_b: list[NodeProto]
    native: bool
    tally: Tally = field(repr=False)
    probe: Tally = field(repr=False)

    @property
    def needs(self) -> frozenset[str]:
        """Values of A that it takes to judge it, but for those that B's given ones are paired with."""
        return self.given_a | {self.pair.a}

    def reading(self) -> Reading:
        """What was measured: on A's own values, and on those of other channels where some are idle."""
        readings = [tally.reading(NATIVE if self.native else 1.0) for tally in (self.tally, self.probe)]
        return max(readings, key=lambda reading: reading.r)


class Segments:
    """Both models, cut.

    Args:
        a, b: the models.
        pairs: those to cut at, and those of other coordinates, which are only observed.
        wanted: those to measure; None: all.
        seed: of the noise.
        seeds: how many runs it is measured by.
        both: whether B's is measured, too.
    """

    def __init__(
        self, a: Side, b: Side, pairs: Sequence[Pair], wanted: Iterable[Pair] | None = None, seed: int = 0,
        seeds: int = SEEDS, both: bool = False,
    ) -> None:  # fmt: skip
        self.a, self.b, self.seed, self.seeds, self.both = a, b, seed, seeds, both
        self.pairs = pairs
        cuts = [pair for pair in pairs if pair.basis != "coordinates"]
        self.by_b = {pair.b: pair for pair in cuts}
        self.cut_a, self.cut_b = {pair.a: DOUBLE for pair in cuts}, {pair.b: DOUBLE for pair in cuts}
        order = {name: place for place, name in enumerate(b.floats)}
        chosen = sorted(pairs if wanted is None else wanted, key=lambda pair: order.get(pair.b, 0))
        self.segments = [self._segment(pair) for pair in chosen]

    def _segment(self, pair: Pair) -> Segment:
        a, b = self.a, self.b
        double_a, _ = frontier(a.double_makers, self.cut_a, [pair.a])
        double_b, _ = frontier(b.double_makers, self.cut_b, [pair.b])
        native = (
            pair.a in a.unsupported or pair.b in b.unsupported
            or any(name in a.unsupported and name not in self.cut_a for name in double_a)
            or any(name in b.unsupported and name not in self.cut_b for name in double_b)
        )  # fmt: skip
        own_a, nodes_a = a.segment(pair.a, self.cut_a)
        own_b, nodes_b = b.segment(pair.b, self.cut_b)
        given_a, given_b = (own_a, own_b) if native else (double_a, double_b)
        return Segment(
            pair, frozenset(n for n in given_a if n in self.cut_a), frozenset(n for n in given_b if n in self.cut_b),
            nodes_a, nodes_b, native, Tally(a.unit(pair.a), self.seeds), Tally(a.unit(pair.a), self.seeds),
        )  # fmt: skip

    def run(self, feeds_a: Feeds, feeds_b: Feeds, known: Mapping[str, Array] | None = None, held: int = WINDOW) -> None:
        """Measure one batch.

        Args:
            feeds_a: inputs of A.
            feeds_b: inputs of B.
            known: A's exact values where all of them are at hand.
            held: bytes of values to hold at a time.

        Raises: CannotRun.
        """
        double_a, double_b = self.a.double_feeds(feeds_a), self.b.double_feeds(feeds_b)
        needs = [segment.needs | {self.by_b[name].a for name in segment.given_b} for segment in self.segments]
        waiting = list(zip(self.segments, needs, strict=True))
        names = set().union(*needs) if needs else set()
        ordered = [name for name in self.a.floats if name in names]
        values: Feeds = {}
        for window in _windows(self.a, ordered, double_a, known, held):
            values.update(window)
            ready = [segment for segment, need in waiting if need <= values.keys()]
            waiting = [(segment, need) for segment, need in waiting if not need <= values.keys()]
            for native in (False, True):
                feeds = (feeds_a, feeds_b) if native else (double_a, double_b)
                for probing in (False, True):
                    chosen = [
                        segment for segment in ready
                        if segment.native == native and not (probing and not self._is_idle(segment, values))
                    ]  # fmt: skip
                    if chosen:
                        _Measurement(self, chosen, values, native, probing).run(*feeds)
            still = set().union(*(need for _, need in waiting)) if waiting else set()
            values = {name: value for name, value in values.items() if name in still}

    def _is_idle(self, segment: Segment, values: Feeds) -> bool:
        """Whether a segment that begins at the same pairs in both models is given channels that are 0."""
        if not segment.given_a or {self.by_b[name].a for name in segment.given_b} != segment.given_a:
            return False
        return any(_has_idle(values[name]) for name in segment.given_a)


def _windows(
    a: Side, names: Sequence[str], feeds: Feeds, known: Mapping[str, Array] | None, held: int
) -> Iterator[Feeds]:
    """A's exact values, as many as fit into memory at a time."""
    if known is None:
        return a.walk(names, feeds, held)
    return ({name: known[name] for name in group} for group in a.windows(names, held))


def _has_idle(value: Array) -> bool:
    return value.ndim > 1 and not value.any(axis=tuple(axis for axis in range(value.ndim) if axis != 1)).all()


def _woken(value: Array) -> Array:
    """Channels that are 0 hold what others do, so that the weights behind them count: no value leaves its range."""
    if not _has_idle(value):
        return value
    alive = np.asarray(value.any(axis=tuple(axis for axis in range(value.ndim) if axis != 1)))
    order = np.arange(len(alive))
    sources = np.flatnonzero(alive)
    if len(sources):
        order[~alive] = np.resize(sources, int((~alive).sum()))
    return value[:, order]


class _Measurement:
    """Segments whose values are all at hand, in one type of arithmetic; `probing` fills channels that are 0."""

    def __init__(self, cut: Segments, segments: list[Segment], values: Feeds, native: bool, probing: bool) -> None:
        self.cut, self.segments, self.native, self.probing = cut, segments, native, probing
        given = set().union(*(segment.given_a for segment in segments))
        self.values = {n: _woken(v) if n in given else v for n, v in values.items()} if probing else values

    def run(self, feeds_a: Feeds, feeds_b: Feeds) -> None:
        """Run B, then A with each seed, and add up."""
        cut, names_a, names_b = self.cut, *([s.pair.a for s in self.segments], [s.pair.b for s in self.segments])
        given_b = {
            name: self._stored(cut.b, name, cut.by_b[name], self.values[cut.by_b[name].a])
            for segment in self.segments for name in segment.given_b
        }  # fmt: skip
        run_b = partial(self._noisy, cut.b, self._session(cut.b, names_b, cut.cut_b, cut.both), feeds_b, given_b)
        found = run_b(None)
        own = {name for segment in self.segments for name in segment.given_a}
        given_a = {name: self._stored(cut.a, name, None, self.values[name]) for name in own}
        run_a = partial(self._noisy, cut.a, self._session(cut.a, names_a, cut.cut_a, True), feeds_a, given_a)
        exact = run_a(None) if self.native or self.probing else {name: self.values[name] for name in names_a}
        slopes = [self._add(segment, exact[segment.pair.a], found[segment.pair.b]) for segment in self.segments]
        for seed in range(cut.seed, cut.seed + cut.seeds):
            noisy = run_a(seed)
            for segment, slope in zip(self.segments, slopes, strict=True):
                name = segment.pair.a
                self._tally(segment).add_noise(as_double(exact[name]), as_double(noisy[name]), slope)
            if cut.both:
                self._add_noise_of_b(exact, found, run_b(seed))

    def _add_noise_of_b(self, exact: Feeds, found: Feeds, noisy: Feeds) -> None:
        for segment in self.segments:
            pair, shape = segment.pair, exact[segment.pair.a].shape
            if found[pair.b].size == exact[pair.a].size:
                plain, moved_one = (as_double(pair.as_a(values[pair.b], shape)) for values in (found, noisy))
                self._tally(segment).add_noise(plain, moved_one, of_b=True)

    def _session(self, side: Side, names: list[str], cuts: Mapping[str, int], loose: bool) -> Runner:
        cutter = side.native_cutter if self.native else side.cutter
        types = {name: side.types[name] for name in cuts} if self.native else cuts
        weights = (side.weights if self.native else side.loose) if loose else ()
        wanted = list(dict.fromkeys(names))
        return Runner(cutter.cut(types, wanted, weights, side.shapes), wanted)

    def _stored(self, side: Side, name: str, pair: Pair | None, value: Array) -> Array:
        """A's value as a side takes it at a cut."""
        if pair is not None:
            value = pair.as_b(value, side.shapes[name])
        return value.astype(helper.tensor_dtype_to_np_dtype(side.types[name])) if self.native else value

    def _noisy(self, side: Side, runner: Runner, feeds: Feeds, given: Feeds, seed: int | None) -> Feeds:
        """Values with weights and inputs one unit in the last place up or down; none of it without a seed."""
        rng = np.random.default_rng(seed)
        found: Feeds = {}
        for name in runner.inputs:
            cut = name.removeprefix(CUT)
            if self.native and name in side.weights:
                found[name] = side.weights[name] if seed is None else moved(name, side.weights[name], seed)
            elif name in side.loose:
                found[name] = side.weight(name, seed)
            else:
                value = given[cut] if name.startswith(CUT) else feeds[name]
                if seed is not None and value.dtype.kind == "f":
                    unit = side.ulp(cut)
                    value = np.asarray(value * (1 + unit * rng.choice((-1.0, 1.0), value.shape)), value.dtype)
                found[name] = value
        return runner.run(found)

    def _tally(self, segment: Segment) -> Tally:
        return segment.probe if self.probing else segment.tally

    def _add(self, segment: Segment, exact: Array, found: Array) -> Array | float:
        """Count a difference; by how much B's value moves when A's does."""
        pair, tally, slope = segment.pair, self._tally(segment), 1.0
        shape = exact.shape
        if found.size != exact.size or (not pair.layout and pair.basis == "output" and found.shape != shape):
            tally.problem = f"has shape {list(found.shape)} instead of {list(shape)}"
            return slope
        exact, found = as_double(exact), as_double(pair.as_a(found, shape))
        if pair.basis != "coordinates":
            tally.add(exact, found, [])
            return slope
        factor, intercept = regressed(exact, found)
        tally.add(factor * exact + intercept, found, [])
        return factor
