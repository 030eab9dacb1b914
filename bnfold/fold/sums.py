"""Ties among three or more shifts: y = x_1 + x_2 gives t_y = t_1 + t_2.

A union-find knows two unknowns at a time.  So such a row waits while one of its classes is *free*
and in no other waiting row: its *slack*, which can take whatever the others leave over (the branch
of a residual block is one).  A row is propagated as soon as at most two classes are left in it.
Rows that have no slack of their own are peeled: a row whose slack is found makes its other classes
rarer, until every row has one.  What can't be peeled would need elimination; there an offer is
refused, and at the very start an unknown is fixed instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnfold.fold.union_find import Conflict, Floats, Ids, UnionFind, total

# A coefficient this small beside the others is the rounding error of one that cancelled.
NOTHING = 1e-12


@dataclass(eq=False)
class Block:
    """sum_k coefficient[k] * t[ids[k, j]] = 0 for every column j: the rows of one Add node."""

    ids: Ids  # (terms, columns)
    coefficient: Floats  # (terms,)
    tag: int


class Sums:
    """The rows of all sums of a scope over one system of shifts."""

    def __init__(self, shift: UnionFind) -> None:
        self._shift = shift
        self._blocks: list[Block] = []
        self._watch: dict[int, tuple[int, ...]] = {}  # class root -> blocks that may hold it

    def add(self, ids: list[Ids], coefficient: list[float], tag: int) -> None:
        """State rows; ids broadcast against each other."""
        flat = np.stack([np.ravel(part) for part in np.broadcast_arrays(*ids)])
        flat = flat[:, np.unique(flat, axis=1, return_index=True)[1]]  # with the index: see `distinct`
        self._blocks.append(Block(flat, np.array(coefficient), tag))

    def settle(self) -> None:
        """Propagate all rows once at the start; fix an unknown wherever rows could not be peeled."""
        while True:
            self._propagate_all()
            waiting = [(block, self._open(block)) for block in self._blocks]
            core = self._unpeeled([(b, rows) for b, rows in waiting if rows.size])
            if core is None:
                break
            self._shift.pin(np.array([core]), 0.0)
        self._watch = {}
        for index, (block, rows) in enumerate(waiting):
            for root in self._roots(block, rows):
                self._watch[root] = (*self._watch.get(root, ()), index)

    def propagate(self) -> tuple[Conflict | None, list[tuple[int, tuple[int, ...] | None]]]:
        """Follow what the unions and pins since the last mark have changed.

        Returns a conflict, if any, and the log to undo the bookkeeping (`undo`).
        """
        log: list[tuple[int, tuple[int, ...] | None]] = []
        hooks_done = pins_done = 0
        affected: set[int] = set()
        while hooks_done < len(self._shift.hooks) or pins_done < len(self._shift.pinned):
            touched: set[int] = set()
            for child, parent in self._shift.hooks[hooks_done:]:
                touched.update(self._follow(child, parent, log))
            for roots in self._shift.pinned[pins_done:]:
                for root in roots.tolist():
                    touched.update(self._watch.get(root, ()))
            hooks_done, pins_done = len(self._shift.hooks), len(self._shift.pinned)
            for index in sorted(touched):
                conflict = self._propagate(self._blocks[index])
                if conflict is not None:
                    return conflict, log
            affected |= touched
        if affected and not self._peels(affected):
            return Conflict("sum", (self._blocks[min(affected)].tag,), 1), log
        return None, log

    def undo(self, log: list[tuple[int, tuple[int, ...] | None]]) -> None:
        """Take back what `propagate` noted down."""
        for root, old in reversed(log):
            if old is None:
                self._watch.pop(root, None)
            else:
                self._watch[root] = old

    def solve(self) -> None:
        """With all other classes known, give each waiting row's slack its value."""
        while True:
            self._propagate_all()
            rows = [(block, self._open(block)) for block in self._blocks]
            rows = [(block, columns) for block, columns in rows if columns.size]
            if not rows:
                return
            slack = self._slack_roots(rows)
            block, columns = rows[0]
            roots = self._roots(block, columns[:1])
            self._shift.pin(np.array([root for root in roots if root not in slack] or roots[:1]), 0.0)

    def slack(self) -> Ids:
        """Roots that waiting rows determine: they are not to be chosen."""
        rows = [(block, self._open(block)) for block in self._blocks]
        return np.array(sorted(self._slack_roots([(b, c) for b, c in rows if c.size])), np.int64)

    def _propagate_all(self) -> None:
        """Propagate all rows until none moves any more; what moves late in the graph may free rows before it."""
        rows = self._blocks
        while rows:
            self._shift.hooks.clear()
            self._shift.pinned.clear()
            for block in rows:
                self._propagate(block)
            if not self._shift.hooks and not self._shift.pinned:
                return
            rows = [block for block in rows[::-1] if (self._terms(block)[1] != 0).any()]

    def linked_roots(self) -> list[list[int]]:
        """Classes that share a waiting row."""
        rows = [(block, self._open(block)) for block in self._blocks]
        return [self._roots(block, columns) for block, columns in rows if columns.size]

    def shifted_rows(self) -> list[set[int]]:
        """For each row, its unknowns whose value is not 0, all being known by now."""
        rows = []
        for block in self._blocks:
            moved = self._shift.values(block.ids) != 0
            rows += [set(block.ids[moved[:, column], column].tolist()) for column in range(moved.shape[1])]
        return rows

    # -- one block ------------------------------------------------------------------------------

    def _terms(self, block: Block) -> tuple[Ids, Floats, Floats]:
        """Roots and weights of the unknown terms (0: none), and the constant of every column."""
        root, alpha, beta = self._shift.find(block.ids)
        known = self._shift.known[root]
        weight = block.coefficient[:, None] * alpha
        have = ~np.isnan(known)
        constant = total(block.coefficient[:, None] * beta + np.where(have, weight * np.nan_to_num(known), 0.0))
        weight = np.where(have, 0.0, weight)
        for left in range(len(weight)):  # the same class twice in a row counts once
            for right in range(left + 1, len(weight)):
                twice = (root[left] == root[right]) & (weight[right] != 0)
                weight[left] += np.where(twice, weight[right], 0.0)
                weight[right] = np.where(twice, 0.0, weight[right])
        weight[np.abs(weight) <= NOTHING * np.abs(block.coefficient).max()] = 0.0
        return root, weight, constant

    def _open(self, block: Block) -> Ids:
        """Columns with three or more unknown classes."""
        _, weight, _ = self._terms(block)
        return np.flatnonzero((weight != 0).sum(0) > 2)

    def _roots(self, block: Block, columns: Ids) -> list[int]:
        root, weight, _ = self._terms(block)
        return sorted(set(root[:, columns][weight[:, columns] != 0].tolist()))

    def _propagate(self, block: Block) -> Conflict | None:
        root, weight, constant = self._terms(block)
        count = (weight != 0).sum(0)
        if (count == 0).any():
            columns = np.flatnonzero(count == 0)
            ids, alpha, beta = self._shift.find(block.ids[:, columns])
            size = np.abs(block.coefficient[:, None] * (alpha * np.nan_to_num(self._shift.known[ids]) + beta)).sum(0)
            if (np.abs(constant[columns]) > 1e-11 * size).any():  # values of TOLERANCE each, summed
                tags = (int(self._shift.known_by[ids[0, 0]]), block.tag)
                return Conflict("value", tags, len(columns))
        single = np.flatnonzero(count == 1)
        if single.size:
            term = (weight[:, single] != 0).argmax(0)
            value = -constant[single] / weight[term, single]
            conflict = self._shift.pin(root[term, single], value, tag=block.tag)
            if conflict is not None:
                return conflict
        double = np.flatnonzero(count == 2)
        if double.size:
            used = weight[:, double] != 0
            first, last = used.argmax(0), len(used) - 1 - used[::-1].argmax(0)
            pivot = weight[first, double]
            return self._shift.unite(
                root[first, double], root[last, double],
                -weight[last, double] / pivot, -constant[double] / pivot, tag=block.tag,
            )
        return None

    # -- slack ----------------------------------------------------------------------------------

    def _follow(self, child: Ids, parent: Ids, log: list[tuple[int, tuple[int, ...] | None]]) -> set[int]:
        """Classes have merged: the parent's rows now include the child's."""
        touched: set[int] = set()
        for low, high in zip(child.tolist(), parent.tolist(), strict=True):
            mine, theirs = self._watch.get(low), self._watch.get(high)
            if mine is not None:
                log.append((high, theirs))
                self._watch[high] = tuple(dict.fromkeys((*(theirs or ()), *mine)))
            touched.update(mine or (), theirs or ())
        return touched

    def _peels(self, affected: set[int]) -> bool:
        """True if every waiting row that shares a class with the affected ones can be peeled."""
        reached, frontier = set(affected), set(affected)
        while frontier:
            rows = [(self._blocks[i], self._open(self._blocks[i])) for i in sorted(reached)]
            rows = [(block, columns) for block, columns in rows if columns.size]
            if not rows or self._all_private(rows):
                return True
            roots = {root for block, columns in rows for root in self._roots(block, columns)}
            wider = {index for root in roots for index in self._watch.get(root, ())} - reached
            reached |= wider
            frontier = wider
        return self._unpeeled(rows) is None

    def _all_private(self, rows: list[tuple[Block, Ids]]) -> bool:
        """The quick test: each row has a class that no other block holds."""
        for block, columns in rows:
            root, weight, _ = self._terms(block)
            held, used = root[:, columns], weight[:, columns] != 0
            roots, count = np.unique(held[used], return_counts=True)
            own = [r for r in roots[count == 1].tolist() if len(self._watch.get(r, ())) == 1]
            if not (np.isin(held, own) & used).any(0).all():
                return False
        return True

    def _unpeeled(self, rows: list[tuple[Block, Ids]]) -> int | None:
        """None if all rows can be peeled, else a class of a row that can't."""
        remaining, holders = self._index(rows)
        self._peel(remaining, holders)
        return next((min(held) for held in remaining.values()), None)

    def _slack_roots(self, rows: list[tuple[Block, Ids]]) -> set[int]:
        remaining, holders = self._index(rows)
        return self._peel(remaining, holders)

    def _index(self, rows: list[tuple[Block, Ids]]) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
        remaining: dict[int, set[int]] = {}  # row -> its classes
        holders: dict[int, set[int]] = {}  # class -> rows that hold it
        for block, columns in rows:
            root, weight, _ = self._terms(block)
            for column in columns.tolist():
                number = len(remaining)
                remaining[number] = set(root[:, column][weight[:, column] != 0].tolist())
                for held in remaining[number]:
                    holders.setdefault(held, set()).add(number)
        return remaining, holders

    @staticmethod
    def _peel(remaining: dict[int, set[int]], holders: dict[int, set[int]]) -> set[int]:
        """Take away rows that have a class of their own, until none has; returns those classes."""
        ready = [root for root, rows in holders.items() if len(rows) == 1]
        slack: set[int] = set()
        while ready:
            root = ready.pop()
            if len(holders[root]) != 1:
                continue
            number = holders[root].pop()
            slack.add(root)
            for other in remaining.pop(number):
                holders[other].discard(number)
                if len(holders[other]) == 1:
                    ready.append(other)
        return slack
