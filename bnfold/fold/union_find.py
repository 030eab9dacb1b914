"""An affine weighted union-find over scalar unknowns, in batches of numpy arrays.

Every unknown is an affine function of its class's root:  x = alpha * root + beta.  A root may be
*known* (a value), and its sign may be.  The scales of a model and its shifts are two such systems:

    shifts   x_i = alpha * x_j + beta       known: the value
    scales   x_i = alpha * x_j, x != 0      known: the magnitude; the sign is a second unknown,
                                            since Relu asks for s > 0 and Tanh for s = +1 or -1

`unite` and `pin` either take effect or return a `Conflict`.  Changes go to a journal, so that a
refused offer leaves no trace (`mark`, `rollback`).  Trees are kept shallow by size, never by path
compression, which a roll-back would have to undo; `compress` does it once, outside of any offer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ids = np.ndarray[Any, np.dtype[np.int64]]

# Two float64 computations of the same ratio or shift along different paths differ by a few rounding
# errors per step (2^-53 each): far below this.  Statistics that really differ are far above it.
TOLERANCE = 1e-12

# What is left of terms that cancel, as a part of their size: rounding errors, and no shift to spend an Add on.
RESIDUE = 2.0**-45


def total(terms: Floats, axis: int = 0) -> Floats:
    """Their sum along an axis; exactly 0 where they cancel but for rounding."""
    result = terms.sum(axis)
    return np.where(np.abs(result) <= RESIDUE * np.abs(terms).sum(axis), 0.0, result)


def distinct(ids: Ids) -> Ids:
    """Each id once, in ascending order: np.unique, but for that one's import of numpy.ma, which takes 15 ms."""
    ordered = np.sort(ids, axis=None)
    once: Ids = ordered[np.diff(ordered, prepend=ordered[:1] - 1) != 0]
    return once


@dataclass(frozen=True)
class Conflict:
    """Why a tie can't hold.

    kind: 'value' (two values differ) or 'sign'; tags: of what made the sides known; count: of how many unknowns.
    """

    kind: str
    tags: tuple[int, ...]
    count: int


class UnionFind:
    """The unknowns of one system.

    Args:
        signed: the system of scales: beta is always 0 and `known` is a magnitude.
    """

    def __init__(self, signed: bool) -> None:
        self.signed = signed
        self.count = 0
        self.parent: Ids = np.zeros(0, np.int64)
        self.alpha: Floats = np.zeros(0)
        self.beta: Floats = np.zeros(0)
        self.known: Floats = np.zeros(0)  # of roots; NaN: unknown
        self.sign: np.ndarray[Any, np.dtype[np.int8]] = np.zeros(0, np.int8)  # of roots; 0: undecided
        self.size: Ids = np.zeros(0, np.int64)
        self.known_by: Ids = np.zeros(0, np.int64)  # tag of what made it known
        self.signed_by: Ids = np.zeros(0, np.int64)
        self._journal: list[tuple[str, Ids, Any]] = []
        self._journaling = False
        self.hooks: list[tuple[Ids, Ids]] = []  # (children, parents) since the last mark
        self.pinned: list[Ids] = []  # roots that became known since the last mark

    def new(self, count: int) -> Ids:
        """Ids of `count` fresh unknowns."""
        start, self.count = self.count, self.count + count
        if self.count > len(self.parent):
            grow = max(self.count, 2 * len(self.parent), 1024) - len(self.parent)
            fresh = np.arange(len(self.parent), len(self.parent) + grow)
            self.parent = np.concatenate([self.parent, fresh])
            self.alpha = np.concatenate([self.alpha, np.ones(grow)])
            self.beta = np.concatenate([self.beta, np.zeros(grow)])
            self.known = np.concatenate([self.known, np.full(grow, np.nan)])
            self.sign = np.concatenate([self.sign, np.zeros(grow, np.int8)])
            self.size = np.concatenate([self.size, np.ones(grow, np.int64)])
            self.known_by = np.concatenate([self.known_by, np.full(grow, -1)])
            self.signed_by = np.concatenate([self.signed_by, np.full(grow, -1)])
        return np.arange(start, self.count)

    def find(self, ids: Ids) -> tuple[Ids, Floats, Floats]:
        """Roots of the ids and the alpha, beta of x = alpha * root + beta."""
        root = self.parent[ids]
        alpha, beta = self.alpha[ids], self.beta[ids]
        while True:
            above = self.parent[root]
            if np.array_equal(above, root):
                return root, alpha, beta
            beta = alpha * self.beta[root] + beta
            alpha = alpha * self.alpha[root]
            root = above

    def values(self, ids: Ids) -> Floats:
        """Values of the ids; NaN where they are not known yet (for scales: magnitude and sign)."""
        root, alpha, beta = self.find(ids)
        value = self.known[root]
        if self.signed:
            sign = self.sign[root]
            return alpha * np.where(sign == 0, np.nan, sign) * value
        return total(np.stack([alpha * value, beta]))

    # -- transactions ---------------------------------------------------------------------------

    def mark(self) -> int:
        """Start an offer: what follows can be rolled back."""
        self._journaling = True
        self.hooks.clear()
        self.pinned.clear()
        return len(self._journal)

    def rollback(self, mark: int) -> None:
        """Undo everything since the mark."""
        while len(self._journal) > mark:
            name, where, old = self._journal.pop()
            getattr(self, name)[where] = old
        self.hooks.clear()
        self.pinned.clear()

    def _set(self, name: str, where: Ids, new: Any) -> None:
        array = getattr(self, name)
        if self._journaling:
            self._journal.append((name, where, array[where]))
        array[where] = new

    # -- ties -----------------------------------------------------------------------------------

    def pin(self, ids: Ids, value: Any = None, sign: Any = 0, tag: Any = -1) -> Conflict | None:
        """Make unknowns known: their value (of scales: the magnitude), and for scales their sign."""
        ids = np.ravel(ids)
        root, alpha, beta = self.find(ids)
        tags = np.broadcast_to(np.asarray(tag, np.int64), ids.shape)
        if value is not None:
            value = np.broadcast_to(np.asarray(value, np.float64), ids.shape)
            implied = np.abs(value / alpha) if self.signed else total(np.stack([value, -beta])) / alpha
            conflict = self._pin_values(root, implied, np.abs(value) + np.abs(beta), np.abs(alpha), tags)
            if conflict is not None:
                return conflict
        if self.signed:
            wanted = np.broadcast_to(np.asarray(sign, np.int8), ids.shape) * np.sign(alpha).astype(np.int8)
            return self._pin_signs(root, wanted, tags)
        return None

    def _pin_values(self, root: Ids, value: Floats, size: Floats, alpha: Floats, tags: Ids) -> Conflict | None:
        free = np.isnan(self.known[root])
        if free.any():
            first, index = np.unique(root[free], return_index=True)
            self._set("known", first, value[free][index])
            self._set("known_by", first, tags[free][index])
            self.pinned.append(first)
        # Compared in the units of the unknown itself, where `size` is the size of the terms that were subtracted.
        wrong = np.abs(self.known[root] - value) * alpha > TOLERANCE * np.maximum(size, np.abs(value) * alpha)
        if wrong.any():
            first = np.flatnonzero(wrong)[0]
            return Conflict("value", (int(self.known_by[root[first]]), int(tags[first])), int(wrong.sum()))
        return None

    def _pin_signs(self, root: Ids, sign: Any, tags: Ids) -> Conflict | None:
        asked = sign != 0
        if not asked.any():
            return None
        root, sign, tags = root[asked], sign[asked], tags[asked]
        free = self.sign[root] == 0
        if free.any():
            first, index = np.unique(root[free], return_index=True)
            self._set("sign", first, sign[free][index])
            self._set("signed_by", first, tags[free][index])
        wrong = self.sign[root] != sign
        if wrong.any():
            first = np.flatnonzero(wrong)[0]
            return Conflict("sign", (int(self.signed_by[root[first]]), int(tags[first])), int(wrong.sum()))
        return None

    def unite(self, left: Ids, right: Ids, alpha: Any = 1.0, beta: Any = 0.0, tag: Any = -1) -> Conflict | None:
        """Tie x_left = alpha * x_right + beta, elementwise over broadcast arrays."""
        left, right, alpha, beta, tags = (
            np.ravel(part) for part in np.broadcast_arrays(left, right, np.float64(alpha), np.float64(beta), tag)
        )
        while len(left):
            root_l, alpha_l, beta_l = self.find(left)
            root_r, alpha_r, beta_r = self.find(right)
            ratio = alpha * alpha_r / alpha_l  # root_l = ratio * root_r + offset
            offset = (alpha * beta_r + beta - beta_l) / alpha_l
            size = (np.abs(alpha * beta_r) + np.abs(beta) + np.abs(beta_l)) / np.abs(alpha_l)
            same = root_l == root_r
            if same.any():
                conflict = self._close_cycle(root_l[same], ratio[same], offset[same], size[same], tags[same])
                if conflict is not None:
                    return conflict
            rest = ~same
            if not rest.any():
                return None
            conflict = self._hook(root_l[rest], root_r[rest], ratio[rest], offset[rest])
            if conflict is not None:
                return conflict
            left, right, alpha, beta, tags = (part[rest] for part in (left, right, alpha, beta, tags))
        return None

    def _close_cycle(self, root: Ids, ratio: Floats, offset: Floats, size: Floats, tags: Ids) -> Conflict | None:
        """root = ratio * root + offset, of one and the same root."""
        turning = np.abs(ratio - 1) > TOLERANCE
        if self.signed:
            if turning.any():
                mirrored = np.abs(ratio + 1) <= TOLERANCE
                kind = "sign" if mirrored[turning].all() else "value"
                return Conflict(kind, self._tags_of(root[turning][:1], tags[turning]), int(turning.sum()))
            return None
        wrong = ~turning & (np.abs(offset) > TOLERANCE * np.maximum(size, 1e-300))
        if wrong.any():
            return Conflict("value", self._tags_of(root[wrong][:1], tags[wrong]), int(wrong.sum()))
        if turning.any():  # the only fixed point
            return self.pin(root[turning], offset[turning] / (1 - ratio[turning]), tag=tags[turning])
        return None

    def _tags_of(self, root: Ids, tags: Ids) -> tuple[int, ...]:
        return int(self.known_by[root[0]]), int(self.signed_by[root[0]]), int(tags[0])

    def _hook(self, left: Ids, right: Ids, ratio: Floats, offset: Floats) -> Conflict | None:
        """Hang roots under roots, each child once a round: the smaller class under the larger, ties by id."""
        size_l, size_r = self.size[left], self.size[right]
        left_above = (size_l > size_r) | ((size_l == size_r) & (left < right))
        child = np.where(left_above, right, left)
        parent = np.where(left_above, left, right)
        # left = ratio * right + offset   <=>   right = left / ratio - offset / ratio
        alpha = np.where(left_above, 1 / ratio, ratio)
        beta = np.where(left_above, -offset / ratio, offset)
        child, index = np.unique(child, return_index=True)
        parent, alpha, beta = parent[index], alpha[index], beta[index]
        known, sign = self.known[child], self.sign[child]
        known_by, signed_by = self.known_by[child], self.signed_by[child]
        self._set("parent", child, parent)
        self._set("alpha", child, alpha)
        self._set("beta", child, beta)
        total = self.size[parent].copy()
        np.add.at(self.size, parent, self.size[child])
        if self._journaling:
            self._journal.append(("size", parent, total))
        self.hooks.append((child, parent))
        have = ~np.isnan(known)
        if have.any():
            conflict = self.pin(child[have], known[have], tag=known_by[have])
            if conflict is not None:
                return conflict
        asked = sign != 0
        if asked.any():
            return self.pin(child[asked], sign=sign[asked], tag=signed_by[asked])
        return None

    def compress(self) -> None:
        """Hang every unknown right under its root (not to be called within an offer)."""
        ids = np.arange(self.count)
        while True:
            parent = self.parent[ids]
            above = self.parent[parent]
            if np.array_equal(above, parent):
                return
            self.beta[ids] += self.alpha[ids] * self.beta[parent]
            self.alpha[ids] *= self.alpha[parent]
            self.parent[ids] = above
