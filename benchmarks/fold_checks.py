"""Which check of `bnfold fold` finds what, and what each costs: static proof, relation check, cut float64 runs.

    python benchmarks/fold_checks.py [--files GLOB]

Faults are put into what a fold has written, as if its rewriter had a bug: into one new weight or bias, or into the
wiring. Then the checks are made as `bnfold fold` makes them. Prints a markdown table; times are CPU seconds of the
right fold, all models together.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from harness import REPO, files, say, table
from onnx import numpy_helper

from bnfold.errors import NotEquivalentError
from bnfold.fold import Folding, Options, fold_model
from bnfold.fold.rewrite import Rewritten
from bnfold.model_file import LoadedModel, load
from bnfold.verify.compare import Settings, compare_models
from bnfold.verify.relation import check
from bnfold.verify.runtime import CannotRun
from bnfold.verify.static import prove

Content = np.ndarray[Any, Any]
CHECKS = ("static proof", "relation check", "cut float64")


def _channel(factor: float) -> Callable[[Content], Content]:
    def change(weight: Content) -> Content:
        changed = weight.copy()
        changed[len(changed) // 2] *= 1 + factor
        return changed

    return change


def _bit(position: int) -> Callable[[Content], Content]:
    def change(weight: Content) -> Content:
        changed = weight.copy()
        flat = changed.reshape(-1)
        largest = int(np.argmax(np.abs(flat)))
        flat[largest : largest + 1].view(np.uint32)[:] ^= np.uint32(1 << position)
        return changed

    return change


WEIGHT: dict[str, Callable[[Content], Content]] = {
    "two rows exchanged": lambda w: np.concatenate([w[1::-1], w[2:]]),
    "a row's sign": _channel(-2),
    **{f"a row × (1+{f:g})": _channel(f) for f in (1e-3, 1e-4, 1e-5, 1e-6)},
    "rounded through fp16": lambda w: w.astype(np.float16).astype(w.dtype),
    "4 low bits cleared": lambda w: (w.view(np.uint32) & np.uint32(0xFFFFFFF0)).view(np.float32),
    **{f"bit {n} of one weight": _bit(n) for n in (18, 11, 8, 5, 2)},
}
BIAS: dict[str, Callable[[Content], Content]] = {
    "bias dropped": np.zeros_like,
    "one bias × (1+1e-3)": _channel(1e-3),
    "one bias × (1+1e-5)": _channel(1e-5),
}
WIRING = ("a Relu bypassed", "a node reads an older value")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", default=str(REPO / "sample_models" / "*.onnx"))
    found: Counter[tuple[str, str]] = Counter()
    tried: Counter[str] = Counter()
    cost: Counter[str] = Counter()
    for path in files(parser.parse_args().files):
        say(path.name)
        original = load(path)
        for fault, folding in _faulty(original):
            tried[fault] += 1
            for name in CHECKS:
                start = time.process_time()
                found[fault, name] += not _passes(name, original, folding)
                cost[name] += (time.process_time() - start) * (fault == "none")
    rows = [[fault, str(count), *(str(found[fault, name]) for name in CHECKS)] for fault, count in tried.items()]
    rows.append(["CPU seconds", "", *(f"{cost[name]:.2f}" for name in CHECKS)])
    print(table(["fault", "models", *(f"{name} finds" for name in CHECKS)], rows))
    return int(any(found["none", name] for name in CHECKS))


def _faulty(original: LoadedModel) -> Iterator[tuple[str, Folding]]:
    """The right fold, then faulty ones."""
    yield "none", fold_model(original, Options())
    for role, faults in (("weight", WEIGHT), ("bias", BIAS)):
        for fault, change in faults.items():
            folding = fold_model(original, Options())
            target = _middle(folding, role)
            if target is None:
                continue
            content = folding.model.weights.read(target.tensor)
            if content.dtype != np.float32 or len(content) < 2 or np.array_equal(changed := change(content), content):
                continue
            target.tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), target.tensor.name))
            yield fault, folding
    for fault in WIRING:
        folding = fold_model(original, Options())
        if _rewired(folding, fault):
            yield fault, folding


def _middle(folding: Folding, role: str) -> Rewritten | None:
    new = [item for item in folding.rewrite.rewritten if item.role == role]
    return new[len(new) // 2] if new else None


def _rewired(folding: Folding, fault: str) -> bool:
    nodes = folding.model.proto.graph.node
    relus = [node for node in nodes if node.op_type == "Relu"]
    if len(relus) < 3:
        return False
    if fault == "a Relu bypassed":
        relu = relus[len(relus) // 2]
        for node in nodes:
            for place, name in enumerate(node.input):
                if name == relu.output[0]:
                    node.input[place] = relu.input[0]
        return True
    sizes = {tensor.name: list(tensor.dims[1:2]) for tensor in folding.model.proto.graph.initializer}
    readers = {node.input[0]: node for node in nodes if len(node.input) > 1 and node.input[1] in sizes}
    for earlier, later in itertools.pairwise(relu.output[0] for relu in relus):  # until it still runs
        if earlier in readers and later in readers and (
            sizes[readers[earlier].input[1]] == sizes[readers[later].input[1]]
        ):
            readers[later].input[0] = earlier
            return True
    return False


def _passes(name: str, original: LoadedModel, folding: Folding) -> bool:
    """Whether a check has no objection."""
    try:
        if name == "static proof":
            prove(folding.rewrite, folding.model.weights)
            return True
        if name == "relation check":
            return check(original, folding.model, folding.plans[0]).passed
    except (NotEquivalentError, CannotRun):
        return False
    return compare_models(original, folding.model, None, Settings()).verdict in ("equal", "cannot tell")


if __name__ == "__main__":
    sys.exit(main())
