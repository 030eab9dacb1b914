"""Which value of one model is which of the other: by what they hold, on the same inputs.

Names lie: tools give the folded value the name that the convolution's output had. So values are compared, at a few
hundred fixed places each, in the layouts that frameworks have (NCHW, NHWC, time first), and each value gets the nearest
one of the other model. Equal ones (an Identity, a Relu that changes nothing) are told apart by name, then by order.

A pair need not be right for a verdict to be: every value of B is computed from A's values at the pairs before it, so if
all of them come out as A's, B is A on these inputs, whatever was paired with what (induction over B's nodes). A wrong
pair can only raise an alarm, and `examine` takes pairs back behind which there is another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from bnfold.constants import Array
from bnfold.verify.sides import Side

# Places of a value that are compared.
PLACES = 512
# How far apart (relative rms, in double) two values may be that count as the same. Nearer than SURE are those that only
# rounding parts; up to CLOSE it is a bug rather than other coordinates, up to NEAR it may be either; such pairs help to
# find a bug or to see past an output that reacts to nothing.
SURE, CLOSE, NEAR = 1e-3, 0.02, 0.3
# Rounding the weights of 16-bit types parts right values by more than that: SURE is at least so many units of the type.
ROUNDINGS = 16.0
# Nearest values that are considered for each.
CANDIDATES = 6
# Values that are the other's in other coordinates: standardised, they agree this well.
SAME_PROFILE = 1e-2
# Channels, and places of each, by which that is seen.
CHANNELS, PLACES_OF_CHANNEL = 16, 64

# Orders of axes in which a framework may keep a value, by rank: to bring the second model's to the first one's.
LAYOUTS = {
    2: ((1, 0),),
    3: ((0, 2, 1), (1, 0, 2)),
    4: ((0, 3, 1, 2), (0, 2, 3, 1)),
    5: ((0, 4, 1, 2, 3), (0, 2, 3, 4, 1)),
}


@dataclass(frozen=True)
class Pair:
    """A value of A and the one of B that should be equal.

    Attributes:
        a, b: their names.
        layout: the order of axes that B's has to be brought in; () as it is. It is then reshaped.
        basis: 'value', 'output' (of the signature), 'name' (or place in the graph), 'coordinates' (other per-channel
            ones: it is observed, nothing is fed there).
    """

    a: str
    b: str
    layout: tuple[int, ...] = ()
    basis: str = "value"

    def as_a(self, value: Array, shape: tuple[int, ...]) -> Array:
        """B's value in A's layout and shape."""
        return np.asarray((value.transpose(self.layout) if self.layout else value).reshape(shape))

    def as_b(self, value: Array, shape: tuple[int, ...]) -> Array:
        """A's value in B's layout and shape."""
        if not self.layout:
            return np.asarray(value.reshape(shape))
        return np.asarray(value.reshape([shape[axis] for axis in self.layout]).transpose(np.argsort(self.layout)))


@dataclass(frozen=True)
class Sketch:
    """What is kept of a value: its shape, some of its elements, for each layout, and its standardised profile."""

    shape: tuple[int, ...]
    size: int
    places: Mapping[tuple[int, ...], Array]
    profile: Array


def sketch(value: Array, layouts: bool) -> Sketch:
    """A sketch of a float value; `layouts`: in those of `LAYOUTS` too."""
    orders = ((), *LAYOUTS.get(value.ndim, ())) if layouts else ((),)
    where = np.random.default_rng(value.size).integers(0, max(value.size, 1), PLACES)
    places = {}
    for order in orders if value.size else ():
        shape = [value.shape[axis] for axis in order]
        index = np.unravel_index(where, shape) if order else np.unravel_index(where, value.shape or (1,))
        if order:
            index = tuple(index[list(order).index(axis)] for axis in range(value.ndim))
        places[order] = np.nan_to_num(np.atleast_1d(value)[index].astype(np.float64), posinf=0, neginf=0)
    return Sketch(value.shape, value.size, places, _profile(value))


def _profile(value: Array) -> Array:
    """Some channels, each with mean 0, mean square 1 and a first element above 0."""
    if value.ndim < 2 or not value.size:
        return np.zeros(0)
    rows = np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)
    rows = rows[np.linspace(0, len(rows) - 1, min(CHANNELS, len(rows))).astype(int)]
    where = np.random.default_rng(rows.shape[1]).integers(0, rows.shape[1], PLACES_OF_CHANNEL)
    rows = np.nan_to_num(rows[:, where].astype(np.float64), posinf=0, neginf=0)
    with np.errstate(over="ignore", invalid="ignore"):  # what is so large agrees with nothing
        rows -= rows.mean(axis=1, keepdims=True)
        rms = np.sqrt(np.mean(rows**2, axis=1, keepdims=True))
        rows = np.where((rms > 0) & np.isfinite(rms), rows / np.where(rms > 0, rms, 1), 0)
    return np.asarray(rows * np.where(rows[:, :1] < 0, -1, 1)).ravel()


def pair_values(a: Mapping[str, Sketch], b: Mapping[str, Sketch], given: Iterable[Pair], near: float) -> list[Pair]:
    """Values of B, each with the value of A nearest to it, one to one.

    Args:
        a: sketches of A's values, in topological order.
        b: of B's.
        given: pairs that there are already; they aren't among the result.
        near: how far apart they may be.
    """
    pairs: list[Pair] = []
    taken_a, taken_b = {pair.a for pair in given}, {pair.b for pair in given}
    for apart, _, _, _, _, left, right, layout in sorted(_candidates(a, b)):
        if apart < near and left not in taken_a and right not in taken_b:
            taken_a.add(left)
            taken_b.add(right)
            pairs.append(Pair(left, right, layout))
    return pairs


def _candidates(
    a: Mapping[str, Sketch], b: Mapping[str, Sketch]
) -> Iterator[tuple[float, bool, bool, tuple[int, ...], float, str, str, tuple[int, ...]]]:
    """Near values: how far apart, whether shapes and names differ, the layout, distance in the graph; both names."""
    depth_a = {name: place / len(a) for place, name in enumerate(a)}
    depth_b = {name: place / len(b) for place, name in enumerate(b)}
    for size in {sketched.size for sketched in a.values()} - {0}:
        left = [(name, sketched.places[()]) for name, sketched in a.items() if sketched.size == size]
        right = [
            (name, layout, places)
            for name, sketched in b.items() if sketched.size == size
            for layout, places in sketched.places.items()
        ]  # fmt: skip
        if not right:
            continue
        matrix = np.stack([places for _, _, places in right])
        squares = np.sum(matrix**2, axis=1)
        for name, places in left:
            norm = float(np.sum(places**2))
            if norm == 0:
                continue
            rough = squares - 2 * (matrix @ places)
            for index in _smallest(rough):
                other, layout, _ = right[index]
                apart = float(np.sqrt(np.sum((matrix[index] - places) ** 2) / norm))
                if apart < NEAR:
                    yield (
                        apart, a[name].shape != b[other].shape, name != other, layout,
                        abs(depth_a[name] - depth_b[other]), name, other, layout,
                    )  # fmt: skip


def _smallest(values: Array) -> Array:
    """Where the smallest are, `CANDIDATES` of them, as a stable sort has them: most of it need not be sorted."""
    if len(values) > CANDIDATES:
        few = np.flatnonzero(values <= np.partition(values, CANDIDATES - 1)[CANDIDATES - 1])
        return np.asarray(few[np.argsort(values[few], kind="stable")][:CANDIDATES])
    return np.argsort(values, kind="stable")


def pair_coordinates(a: Mapping[str, Sketch], b: Mapping[str, Sketch], pairs: Iterable[Pair]) -> list[Pair]:
    """Values without a pair that agree when each channel is standardised: v' = s (v + t), to be confirmed."""
    taken_a, taken_b = {pair.a for pair in pairs}, {pair.b for pair in pairs}
    groups: dict[tuple[int, int], list[str]] = {}
    for left, ours in a.items():
        if left not in taken_a:
            groups.setdefault((ours.size, ours.profile.size), []).append(left)
    profiles = {key: np.stack([a[left].profile for left in names]) for key, names in groups.items()}
    found = []
    for right, theirs in b.items():
        key = theirs.size, theirs.profile.size
        if right in taken_b or key not in groups or not theirs.profile.any():
            continue
        apart = np.sqrt(np.mean((profiles[key] - theirs.profile) ** 2, axis=1))
        best = int(apart.argmin())
        if apart[best] < SAME_PROFILE:
            profiles[key][best] = np.inf  # it is taken
            found.append(Pair(groups[key][best], right, (), "coordinates"))
    return found


def pair_places(a: Side, b: Side, pairs: Iterable[Pair]) -> list[Pair]:
    """Values without a pair that have the same name or the same place among their like: to find where a bug is."""
    taken_a, taken_b = {pair.a for pair in pairs}, {pair.b for pair in pairs}
    rest_a = [name for name in a.floats if name not in taken_a]
    rest_b = [name for name in b.floats if name not in taken_b]
    theirs = set(rest_b)
    found = [Pair(n, n, (), "name") for n in rest_a if n in theirs and a.shapes[n] == b.shapes[n]]
    named = {pair.a for pair in found}
    rest_a, rest_b = ([name for name in rest if name not in named] for rest in (rest_a, rest_b))
    left, right = ([(side.makers[name].op_type, side.shapes[name]) for name in rest]
                   for side, rest in ((a, rest_a), (b, rest_b)))  # fmt: skip
    for start_a, start_b, length in SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks():
        chosen = zip(rest_a[start_a : start_a + length], rest_b[start_b : start_b + length], strict=True)
        found += [Pair(name, other, (), "name") for name, other in chosen]
    return found
