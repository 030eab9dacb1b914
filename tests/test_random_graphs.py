"""Random models: fold never crashes, never changes the function, never does worse; and says what it did."""

from __future__ import annotations

from collections import Counter

import onnx
from hypothesis import HealthCheck, given, reject, settings
from onnx import ModelProto
from oracle import assert_same_function, left
from random_graphs import models
from referee import Array

from bnfold.fold import Folding, Options, fold_model
from bnfold.graph import Graph
from bnfold.model_file import to_proto, wrap
from bnfold.verify import relation

SAVED_AGAIN = 1
"""Most ops that a second fold saves.

Most models are left as they are.  But which MatMul gets an Add is an election, which factor of a product may move is
decided beforehand, and a shift may have moved a value's usual size: after that another op may go.  The regressions and
the probes are exactly as before when they are folded again.
"""


def check_fold(model: ModelProto, feeds: dict[str, Array]) -> Folding:
    """Everything that holds after every fold."""
    given_bytes = model.SerializeToString(deterministic=True)
    folding = fold_model(wrap(model), Options())
    folded = to_proto(folding.model)
    assert model.SerializeToString(deterministic=True) == given_bytes, "the model given was changed"
    onnx.checker.check_model(folded, full_check=True)
    assert_same_function(model, folded, [feeds])
    _check_relation(model, folding)
    before, after = left(model), left(folded)
    assert sum(after) <= sum(before), f"{after} of {before} per-channel operations"
    assert after.bn <= before.bn
    second = fold_model(wrap(folded), Options())
    again = to_proto(second.model)
    assert_same_function(folded, again, [feeds])
    if not _has_tables(second):
        assert 0 <= sum(after) - sum(left(again)) <= SAVED_AGAIN, f"{left(again)} after {after} when folded again"
    same = to_proto(fold_model(wrap(model), Options()).model)
    assert same.SerializeToString(deterministic=True) == folded.SerializeToString(deterministic=True)
    _check_report(model, folded, folding)
    return folding


def _has_tables(folding: Folding) -> bool:
    """True if there are constants of several axes: where a per-channel op merges with one, it is no longer counted."""
    edits = [edit for plan in folding.plans for edit in plan.affines]
    return any(sum(size > 1 for size in part.shape) > 1 for edit in edits for part in (edit.op.a, edit.op.b))


def _check_relation(model: ModelProto, folding: Folding) -> None:
    """Every value obeys its relation; as in `bnfold.fold`, a model may be folded once more without shifts for it."""
    try:
        found = relation.check(wrap(model), folding.model, folding.plans[0])
        if not found.passed:
            folding = fold_model(wrap(model), Options(largest_shift=0.0))
            found = relation.check(wrap(model), folding.model, folding.plans[0])
    except relation.CannotRun:
        return
    assert found.passed, f"{found.worst_name} is {found.worst:.3g} times its noise off its relation"


def _check_report(model: ModelProto, folded: ModelProto, folding: Folding) -> None:
    norms = Counter((node.scope.label, node.name) for node in _norms(model))
    told = Counter((entry.scope, entry.name) for entry in folding.report.entries if entry.op == "BatchNormalization")
    assert told == norms, "a BatchNorm is not accounted for, or twice"
    assert len(folding.report.kept) == len(_norms(folded)) == folding.report.after.batch_norms
    assert folding.report.before.batch_norms == sum(norms.values())
    assert all(entry.reason and entry.sentence for entry in folding.report.kept)


def _norms(model: ModelProto) -> list[object]:
    return [node for scope in Graph(model).scopes for node in scope.nodes if node.op == "BatchNormalization"]


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(models())
def test_random_model(drawn: tuple[ModelProto, dict[str, Array]] | None) -> None:
    if drawn is None:
        reject()
    check_fold(*drawn)
