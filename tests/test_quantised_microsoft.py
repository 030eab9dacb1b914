"""ONNX Runtime's own QuantizeLinear and DequantizeLinear are folded as ONNX's are (docs/quantization.md)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from oracle import run_native
from probe_text import Probe
from quantised_models import SMALL, quantised
from quantised_table import SUMS, TABLE, probe_of

import bnfold

MICROSOFT = "com.microsoft"
NOT_THERE = {"8-bit floats", "blocks of a row", "blocks with a zero point", "behind a Transpose, in blocks"}


def contributed(text: str) -> Probe:
    """The same model with ONNX Runtime's QuantizeLinear and DequantizeLinear."""
    for op in ("DequantizeLinear", "QuantizeLinear"):
        text = re.sub(rf"\b{op}\b", f"{MICROSOFT}.{op}", text)

    def import_domain(model: ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))

    return Probe("contributed", "", text, edit=import_domain)


def renamed(model: ModelProto) -> ModelProto:
    """With ONNX's ops, as far as they are called the same."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.opset_import[1:]
    graphs = [copy.graph]
    for graph in graphs:  # grows
        graphs += [attribute.g for node in graph.node for attribute in node.attribute if attribute.g.node]
        for node in graph.node:
            node.ClearField("domain")
        for info in graph.output:
            info.type.tensor_type.ClearField("shape")  # inference knows none behind ONNX Runtime's
    return copy


def assert_natively_the_same(before: ModelProto, after: ModelProto, probe: Probe) -> None:
    for feeds in probe.batches():
        expected, found = run_native(before, feeds), run_native(after, feeds)
        assert expected is not None
        assert found is not None
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-6 * max(np.abs(value).max(), 1e-3))


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("name", [name for name in TABLE if name not in NOT_THERE])
def test_microsofts_ops_are_folded_as_onnxs(name: str, good: bool) -> None:
    row = TABLE[name]
    plain = probe_of(name, row, good=good)
    probe = replace(contributed(plain.text), name=plain.name, opset=max(plain.opset, 13), values=row.values,
                    dtype=plain.dtype)  # fmt: skip
    plain = replace(plain, opset=probe.opset)
    model = probe.model()
    assert any(node.domain for node in model.graph.node) or name == "in a body"
    expected, found = (bnfold.fold(m, kept="reduce") for m in (plain.model(), model))
    assert renamed(found.model) == renamed(expected.model)
    assert [entry.outcome for entry in found.report.entries] == [entry.outcome for entry in expected.report.entries]
    if probe.dtype == "float":
        assert_natively_the_same(model, found.model, probe)


def test_microsofts_op_gives_the_type_of_its_scale() -> None:
    probe = contributed("u:uint8[N,4,5,5] -> y | d = DequantizeLinear(u, k[], z:uint8[]={90}); y = BN4(d)")
    probe = replace(probe, dtype="float16", values={"k": 0.01})
    model = probe.model()
    result = bnfold.fold(model, kept="affine")
    assert [node.op_type for node in result.model.graph.node] == ["DequantizeLinear", "Mul", "Add"]
    assert {tensor.data_type for tensor in result.model.graph.initializer} == {TensorProto.FLOAT16, TensorProto.UINT8}


@pytest.mark.parametrize("name", ["one scale becomes one of each channel", "dead channels"])
def test_microsofts_op_has_a_scale_of_each_channel_at_any_opset(name: str) -> None:
    row = TABLE[name]
    probe = replace(contributed(row.bad), opset=11, values=row.values)
    model = probe.model()
    result = bnfold.fold(model)
    assert result.report.after.per_channel_ops == 0
    assert_natively_the_same(model, result.model, probe)


@pytest.mark.parametrize("opset", [13, 17])
def test_what_onnxruntime_quantises_to_four_bits(opset: int, tmp_path: Path) -> None:
    """Below opset 21 it writes its own ops."""
    model = Probe("small", "", SMALL, opset=opset).model()
    model = quantised(model, (2, 3, 8, 8), tmp_path, per_channel=False, outputs=False, weights="QInt4")
    assert {node.domain for node in model.graph.node if node.op_type == "DequantizeLinear"} == {MICROSOFT}
    result = bnfold.fold(model)
    assert (result.report.before.batch_norms, result.report.after.per_channel_ops) == (3, 0)
    assert result.verification.relation is not None
    weights = [tensor for tensor in result.model.graph.initializer if tensor.data_type == TensorProto.INT4]
    assert sum(len(tensor.dims) > 1 for tensor in weights) == 3


@pytest.mark.parametrize("name", [name for name in SUMS if name != "QLinearConv"])
def test_microsofts_rounded_values(name: str) -> None:
    row = SUMS[name]
    probe = contributed(row.text)
    model = probe.model()
    result = bnfold.fold(model)
    assert result.report.after.per_channel_ops == row.left
    assert_natively_the_same(model, result.model, probe)
