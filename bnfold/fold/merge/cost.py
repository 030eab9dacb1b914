"""What linear maps cost: multiply-adds, and elements moved, per position of the output.

An element that is read or written counts as one multiply-add: less than it costs where memory is the limit (depthwise
kernels, Adds), more than it costs where it is not.  A merged node may not cost more than its parts.
"""

from __future__ import annotations

import math

from bnfold.fold.merge.terms import Term


def multiply_adds(term: Term) -> int:
    """Of the one node that computes it."""
    return math.prod(term.shape)


def work(term: Term) -> int:
    """Multiply-adds and elements moved of the one node that computes it."""
    rows, _, *_ = term.shape
    return multiply_adds(term) + rows + (term.columns or 0) * math.prod(axis.stride for axis in term.axes or ())


def work_of_nodes(term: Term) -> int:
    """The same of the nodes that compute it now."""
    return sum(_of_nodes(term, work_of=True))


def multiply_adds_of_nodes(term: Term) -> int:
    """Multiply-adds of the nodes that compute it now."""
    return sum(_of_nodes(term, work_of=False))


def _of_nodes(term: Term, *, work_of: bool) -> list[int]:
    rows = term.shape[0]
    own = 0
    if term.kind in ("weight", "average"):
        own = work(term) if work_of else multiply_adds(term)
    elif term.kind == "affine" and not any(part.host for part in term.parts):  # behind a weight folding removes it
        own = 3 * rows if work_of else rows
    elif term.kind == "sum":
        own = (len(term.parts) - 1) * (4 * rows if work_of else rows)
    elif term.kind == "identity" and term.axes and any(axis.padded for axis in term.axes):
        own = 2 * rows if work_of else 0
    found = [own]
    for part in term.parts:
        inner = _of_nodes(part, work_of=work_of)
        if term.kind == "chain" and part is term.parts[1]:  # so many positions in front make one behind
            inner = [math.prod(axis.stride for axis in term.parts[0].axes or ()) * sum(inner)]
        found += inner
    return found
