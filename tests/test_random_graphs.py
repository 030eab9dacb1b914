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
    again = to_proto(fold_model(wrap(folded), Options()).model)
    assert left(again) == after or _may_change(folding), "folding twice is not folding once"
    same = to_proto(fold_model(wrap(model), Options()).model)
    assert same.SerializeToString(deterministic=True) == folded.SerializeToString(deterministic=True)
    _check_report(model, folded, folding)
    return folding


def _may_change(folding: Folding) -> bool:
    """True where a second fold sees something else.

    Constants that vary along several axes: a BN in between became one, and now merges with its neighbours.
    A value's usual size, which a kept BN's mean tells: a shift has moved it.
    """
    edits = [edit for plan in folding.plans for edit in plan.affines if edit.left]
    tables = any(sum(size > 1 for size in part.shape) > 1 for edit in edits for part in (edit.a, edit.b))
    return tables or any(entry.reason == "precision" for entry in folding.report.entries)


def _check_relation(model: ModelProto, folding: Folding) -> None:
    try:
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
