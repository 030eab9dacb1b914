"""Signs: what would more of them be worth?  The BatchNorms that stay because a Relu lets no negative scale through.

    python benchmarks/signs.py [--files GLOB]

For each file: per-channel ops that a fold leaves, and how many it would leave if every Relu, pool and the like let both
signs through, which bounds whatever could be done about signs.  Where the two differ, channels would have to be there
with both signs: their producer would be duplicated, and the channels run on to the reader beside the others.  That
costs at least, in `bnfold.fold.merge`'s units (multiply-adds plus elements read or written, per position)

    channels * (weights of one row of the producer + weights of one column of the reader + 2)

with the cheapest linear producer there is, however many sums lie between; what it saves is at most the ops that go:
3 * channels each (read, compute, write).  Prints a markdown table of all files where signs matter, and the sums.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from harness import files, ready, say, table

from bnfold.fold import Options, plan_model
from bnfold.fold.accept import Refusal
from bnfold.fold.account import counts
from bnfold.fold.merge import merge_model
from bnfold.fold.plan import Plan
from bnfold.fold.ties import Affine, Linear, Ties
from bnfold.graph import Node, Value
from bnfold.model_file import LoadedModel, load

HEAD = ["file", "per-channel ops", "left", "left if signs were free", "ops signs keep", "would cost ×", "pays"]


@dataclass
class Case:
    """An op that stays for a sign: what duplication costs at least, and saves at most."""

    cost: float
    saving: float


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", help="glob of the files (default: every real model and every skeleton)")
    rows, sums, cases = [], np.zeros(4, int), []
    with tempfile.TemporaryDirectory() as folder:
        for path in files(parser.parse_args().files):
            with ready(path, folder) as model:
                row, found = study(model)
            sums += row
            say(f"{path.name}: {row.tolist()}")
            if found or row[3]:
                ratio = [case.cost / case.saving for case in found]
                worth = sum(value < 1 for value in ratio)
                span = f"{min(ratio):.1f} to {max(ratio):.1f}" if ratio else "no linear producer"
                rows.append([path.name, *map(str, row), span, str(worth)])
                cases += found
    worth = sum(case.cost < case.saving for case in cases)
    print(table(HEAD, [*rows, ["all", *map(str, sums), f"{len(cases)} ops", str(worth)]]))
    return 0


def study(path: Path) -> tuple[np.ndarray[tuple[int], np.dtype[np.int_]], list[Case]]:
    """Ops before, left, left if signs were free, their difference; and each op that a sign keeps."""
    before, after, plans = _plans(load(path))
    with patch.object(Ties, "positive", lambda *_: None):
        _, free, unsigned = _plans(load(path))
    gone = {(plan.scope.label, node.index): len(edit.ops_left) for plan in unsigned for edit in plan.affines
            for node in edit.op.nodes}  # fmt: skip
    cases = []
    for plan in plans:
        for edit in plan.affines:
            refusal = plan.decision.refused.get(edit.op)
            fewer = len(edit.ops_left) - gone.get((plan.scope.label, edit.op.nodes[0].index), 0)
            if refusal is not None and fewer > 0 and (count := _signs(refusal)):
                cost = _duplication(plan, edit.op, count)
                if np.isfinite(cost):
                    cases.append(Case(cost, 3.0 * fewer * edit.op.a.size))
    return np.array([before, after, free, after - free]), cases


def _plans(model: LoadedModel) -> tuple[int, int, list[Plan]]:
    options = Options()
    merging = merge_model(model, options, set())
    graph, plans = plan_model(model, options, {}, merging.graph, merging.shapes)
    before, after = counts(graph, plans, merging)
    return before.per_channel_ops, after.per_channel_ops, plans


def _signs(refusal: Refusal) -> int:
    """How many channels need the other sign."""
    found = re.search(r"(\d+) channels need a negative one", refusal.sentence)
    return int(found.group(1)) if found else 0


def _duplication(plan: Plan, op: Affine, channels: int) -> float:
    producers = [_per_row(plan, row) for row in plan.ties.linears if row.node in _above(op.source)]
    readers = [_per_column(plan, row) for row in plan.ties.linears if row.source in _below(op.target)]
    return channels * (min(producers, default=np.inf) + min(readers, default=0.0) + 2)


def _per_row(plan: Plan, linear: Linear) -> float:
    weight = plan.ties.array(linear.weight)
    assert weight is not None
    return weight.size / max(1, linear.rows.scale.size)


def _per_column(plan: Plan, linear: Linear) -> float:
    weight = plan.ties.array(linear.weight)
    assert weight is not None
    return weight.size / max(1, linear.columns.scale.size)


def _above(value: Value) -> set[Node]:
    found: set[Node] = set()
    pending = [value.producer]
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found.add(node)
            pending += [need.producer for need in node.inputs if need is not None]
    return found


def _below(value: Value) -> set[Value]:
    """The value, and what activations and layout ops make of it."""
    found, pending = {value}, [value]
    while pending:
        for node, _ in pending.pop().readers():
            output = node.output()
            if output is not None and output not in found and len(node.inputs) == 1:
                found.add(output)
                pending.append(output)
    return found


if __name__ == "__main__":
    sys.exit(main())
