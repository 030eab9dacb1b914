"""The probe table (`probes.py`): what is folded, how much is left, and above all that the function stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from oracle import assert_same_function, left, run_native
from probe_text import Probe
from probes import PEERS, PROBES
from referee import ULP, run_float64

import bnfold

CODES = {
    "training": {"training-mode"},
    "not-finite": {"invalid-statistics"},
    "overflow": {"unrepresentable"},
    "underflow": {"unrepresentable"},
    "runtime": {"dynamic-parameters", "dynamic-weight"},
    "sign": {"sign"},
    "shared": {"shared-table"},
}
"""Reason codes that the table's `why` stands for.  Where it is missing here (padding, axis, conflict, …), several
nodes are in the way and any of them may be named."""

by_name = {probe.name: probe for probe in PROBES}
each_probe = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)


@each_probe
def test_probe(probe: Probe) -> None:
    model, given = probe.model(), probe.model()
    result = bnfold.fold(model, **probe.options)
    assert model == given, "the model given was changed"
    onnx.checker.check_model(result.model, full_check=True)
    assert_same_function(model, result.model, probe.batches())
    after = left(result.model)
    assert after.total <= probe.left, f"{after} left, the function needs {probe.left}"
    assert len(result.folded) + len(result.kept) == left(model).bn, "a BatchNorm is not accounted for"
    assert len(result.kept) == after.bn
    for entry in result.kept:
        assert entry.sentence
        assert entry.reason in CODES.get(probe.why, {entry.reason} - {""}), entry.sentence


@each_probe
def test_referee_agrees_with_onnxruntime(probe: Probe) -> None:
    """The float64 referee stands on ONNX's reference code, which is wrong in places: see referee.py."""
    model = probe.model()
    unit = 64 * ULP[onnx.TensorProto.FLOAT16 if "16" in f"{probe.dtype} {probe.text}" else onnx.TensorProto.FLOAT]
    for feeds in probe.batches():
        native = run_native(model, feeds)
        if native is None:
            pytest.skip("ONNX Runtime has no kernel for this type or opset")
        for name, expected in run_float64(model, feeds).items():
            largest = np.nanmax(np.abs(expected))
            np.testing.assert_allclose(native[name], expected, rtol=0, atol=unit * largest)


@pytest.mark.parametrize("text", ["x[1,N,3] -> y | y = BN1(x)", "x[1,N,3] -> y | y = ConvTranspose(x, w[1,2,1])"])
def test_referee_refuses_other_numbers_of_channels(text: str) -> None:
    """One channel's parameters were broadcast to two: no model, so that a right fold gave something else."""
    probe = Probe("one-channel", "", text)
    for feeds in probe.batches():
        with pytest.raises((AssertionError, ValueError)):
            run_float64(probe.model(), feeds)


@pytest.mark.parametrize("ulps", [1, 64, 1024])
def test_judge_sees_what_rounding_cannot_explain(ulps: int) -> None:
    probe = by_name["conv-2d"]
    model, moved = probe.model(), probe.model()
    weight = next(tensor for tensor in moved.graph.initializer if tensor.name == "w")
    values = onnx.numpy_helper.to_array(weight) * np.float32(1 + ulps * ULP[onnx.TensorProto.FLOAT])
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    if ulps == 1:
        assert_same_function(model, moved, probe.batches())
    else:
        with pytest.raises(AssertionError, match="float64 error"):
            assert_same_function(model, moved, probe.batches())


def test_table_is_well_formed() -> None:
    assert len(by_name) == len(PROBES)
    for probe in PROBES:
        assert len(probe.peers) == len(PEERS), probe.name
        assert set(probe.peers) <= set("+-~x!?"), probe.name
        assert bool(probe.left) == bool(probe.why), probe.name
