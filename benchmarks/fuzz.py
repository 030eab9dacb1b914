"""Fold random models for as long as you like.

    python benchmarks/fuzz.py --examples 10000 --seed 0 [--show SEED] [--minutes 25]

What has to hold is `tests/test_random_graphs.py:check_fold`: the model stays valid and keeps its function, in float64
and on ONNX Runtime; values obey their relations, if need be after a fold without shifts; no more per-channel ops are
left than before, and every BN is accounted for; a fold can be repeated to the byte; and what has been folded, folded
again, is the same function once more with as many ops or one less (`SAVED_AGAIN` says why not always as many).

Model number k is made from seed + k, so that every failure can be made again (`--show` prints the model and the
trouble).  Each is folded in another process, since a failed assertion in a library ends it.  What fails is cut
down: outputs and nodes are left out, one after the other, as long as it goes on failing in the same way.  At the end:
how often each op was drawn, and how often a fold went into or through it, since what never moves is never tested.
Exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import TypeVar

from harness import REPO, say

sys.path.insert(0, str(REPO / "tests"))

import onnx
from onnx import ModelProto
from oracle import run_native
from random_graphs import Seeded, random_model
from referee import Array
from test_random_graphs import check_fold

from bnfold.fold import Folding

Case = tuple[ModelProto, dict[str, Array]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this long")
    parser.add_argument("--show", type=int, help="the model of one seed, and what is wrong with it")
    arguments = parser.parse_args()
    if arguments.show is not None:
        case = random_model(Seeded(arguments.show))
        if case is not None:
            small = reduced(case)
            print(onnx.printer.to_text(small[0]))
            check_fold(*small)
        return 0
    return _run(arguments.seed, arguments.examples, time.monotonic() + 60 * arguments.minutes)


@dataclass
class Finding:
    """What became of one model: what is wrong with it, if anything, and what was counted."""

    what: str
    counts: Counter[str] = field(default_factory=Counter)
    drawn: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)


def _run(seed: int, examples: int, end: float) -> int:
    failures: dict[str, list[int]] = {}
    total = Finding("")
    worker = Worker()
    for number in range(seed, seed + examples):
        if time.monotonic() > end:
            break
        found = worker.run(examined, number)
        if found is None:  # an assertion failed in a library; was it of the model itself?
            found = Finding("the process died") if worker.run(runs, number) else Finding("", Counter(["can't be run"]))
        total.counts += found.counts
        total.drawn += found.drawn
        total.moved += found.moved
        if found.what:
            if found.what not in failures:
                say(f"seed {number}: {found.what}")
            failures.setdefault(found.what, []).append(number)
        if number % 500 == 499:
            say(f"{number + 1 - seed} seeds, {sum(map(len, failures.values()))} failures")
    worker.close()
    print(", ".join(f"{count} {name}" for name, count in total.counts.items()))
    shares = (f"{op} {total.moved[op]}/{count}" for op, count in sorted(total.drawn.items()))
    print("ops, moved of drawn:", ", ".join(shares))
    for what, seeds in sorted(failures.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds):5d} × {what}: seeds {', '.join(map(str, seeds[:6]))}")
    return 1 if failures else 0


Result = TypeVar("Result")


class Worker:
    """A process that may die."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))

    def close(self) -> None:
        """End it."""
        self._pool.shutdown()

    def run(self, work: Callable[[int], Result], number: int) -> Result | None:
        """What the work gives; None if the process died of it."""
        try:
            return self._pool.submit(work, number).result()
        except BrokenProcessPool:
            self.close()
            self._pool = ProcessPoolExecutor(1, get_context("spawn"))
            return None


def examined(number: int) -> Finding:
    """Draw a model, fold it, judge it."""
    case = random_model(Seeded(number))
    if case is None:
        return Finding("", Counter(["led nowhere"]))
    what, folding = trouble(case)
    found = Finding(what, Counter(["models"]))
    if folding is not None:
        report = folding.report
        found.counts["BatchNorm"] = report.before.batch_norms
        found.counts["of them folded"] = report.before.batch_norms - report.after.batch_norms
        _count_ops(folding, found.drawn, found.moved)
    return found


def runs(number: int) -> bool:
    """Run the model itself: True if the process survives that."""
    case = random_model(Seeded(number))
    assert case is not None
    run_native(*case)
    return True


def trouble(case: Case) -> tuple[str, Folding | None]:
    """What is wrong, in a line without numbers; or '' and the folding."""
    try:
        return "", check_fold(*case)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = "".join(c for c in str(error).split("\n")[0] if not c.isdigit() and c not in ".+-")[:70]
        return f"{type(error).__name__} {frame.filename.rsplit('/', 1)[-1]} {frame.name}: {text}", None


def _count_ops(folding: Folding, drawn: Counter[str], moved: Counter[str]) -> None:
    """Add the ops of the original, and those of them that read or write a value in other coordinates."""
    for plan in folding.plans:
        away = {name for name, (scale, shift) in plan.maps.items() if (scale != 1).any() or shift.any()}
        edited = {edit.linear.node for edit in plan.linears if edit.changes_weight or edit.changes_bias}
        for node in plan.scope.nodes:
            values = [value.name for value in (*node.inputs, *node.outputs) if value is not None]
            drawn[node.op] += 1
            moved[node.op] += node in edited or not away.isdisjoint(values)


# -- cutting down -----------------------------------------------------------------------------------


def reduced(case: Case) -> Case:
    """The smallest model found that fails in the same way (in the same function of the same file)."""
    what = _kind(case)
    shrinking = bool(what)
    while shrinking:
        shrinking = False
        for smaller in _smaller(case):
            if _kind(smaller) == what:
                case, shrinking = smaller, True
                break
    return case


def _kind(case: Case) -> str:
    return trouble(case)[0].split(":")[0]


def _smaller(case: Case) -> Iterator[Case]:
    """One output less; a node less (its input in place of its output); or an inner value as an input."""
    model, feeds = case
    for index in range(len(model.graph.output) if len(model.graph.output) > 1 else 0):
        copy = _copy(model)
        del copy.graph.output[index]
        yield from _valid(copy, feeds)
    for index, node in enumerate(model.graph.node):
        for name in node.input[:2]:
            copy = _copy(model)
            del copy.graph.node[index]
            for other in copy.graph.node:
                for k, read in enumerate(other.input):
                    if read in node.output:
                        other.input[k] = name
            for output in copy.graph.output:
                if output.name in node.output and len(copy.graph.node):
                    output.name = copy.graph.node[-1].output[0]
            yield from _valid(copy, feeds)


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _valid(model: ModelProto, feeds: dict[str, Array]) -> Iterator[Case]:
    """The model without what nobody reads any more, if it is one."""
    needed = {output.name for output in model.graph.output}
    for index in range(len(model.graph.node) - 1, -1, -1):
        node = model.graph.node[index]
        if needed & set(node.output):
            needed |= set(node.input)
            needed |= {name for a in node.attribute for inner in a.g.node for name in inner.input}
        else:
            del model.graph.node[index]
    for entries in (model.graph.initializer, model.graph.input):
        for index in range(len(entries) - 1, -1, -1):
            if entries[index].name not in needed:
                del entries[index]
    feeds = {info.name: feeds[info.name] for info in model.graph.input if info.name in feeds}
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        typed = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        for output, inferred in zip(model.graph.output, typed.graph.output, strict=True):
            output.CopyFrom(inferred)
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # not a model
        return
    if model.graph.node and model.graph.input:
        yield model, feeds


if __name__ == "__main__":
    sys.exit(main())
