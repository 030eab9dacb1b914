"""Every op that folding declares: its BatchNorm goes, its hostile twin's stays, and both keep their function."""

from __future__ import annotations

import onnx
import pytest
from onnx import ModelProto
from ops_table import TABLE
from oracle import assert_same_function, left
from probe_text import Probe
from probes import PROBES

from bnfold.fold import Options, fold_model, ops
from bnfold.fold.ties import RULES
from bnfold.model_file import to_proto, wrap
from bnfold.report import FoldReport

BY_NAME = {probe.name: probe for probe in PROBES}

each_op = pytest.mark.parametrize("op", TABLE)


def probe_of(text: str, op: str, opset: int) -> Probe:
    """A row of the probe table by its name, or one made of this text."""
    return Probe(f"table-{op}", "", text, opset=opset) if " -> " in text else BY_NAME[text]


def folded(probe: Probe) -> tuple[ModelProto, FoldReport]:
    model = probe.model()
    # Merging needs no coordinates, and whether what could go in part does go is no matter of ties.
    folding = fold_model(wrap(model), Options(merge=False, kept="reduce"))
    result = to_proto(folding.model)
    onnx.checker.check_model(result, full_check=True)
    assert_same_function(model, result, probe.batches())
    return result, folding.report


def test_every_declared_op_has_a_row() -> None:
    """Ops that ONNX Runtime alone knows can't be written in the table's notation; they have tests of their own."""
    ops.load()
    assert set(TABLE) == {op for op in RULES if onnx.defs.has(op)}


@each_op
def test_op_is_in_both_models(op: str) -> None:
    row = TABLE[op]
    for text in (row.good, row.bad):
        assert op in {node.op_type for node in probe_of(text, op, row.opset).model().graph.node}


@each_op
def test_batch_norm_goes_through(op: str) -> None:
    result, report = folded(probe_of(TABLE[op].good, op, TABLE[op].opset))
    assert left(result).total == 0
    assert not report.kept


@each_op
def test_not_through_the_hostile_twin(op: str) -> None:
    row = TABLE[op]
    result, report = folded(probe_of(row.bad, op, row.opset))
    assert left(result).total > 0
    entries = [entry for entry in report.entries if entry.outcome in ("kept", "reduced")]
    assert {entry.reason or entry.outcome for entry in entries} == ({row.code} if row.code else set())
