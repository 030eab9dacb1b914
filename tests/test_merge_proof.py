"""Merged weights: random branches in float64, a proof that sees every fault, and whole networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper
from random_branches import convolutions, matrices
from referee import run_float64
from test_merge import folded, pair

import bnfold
from bnfold.errors import NotEquivalentError
from bnfold.fold import Options, fold_model
from bnfold.fold.merge import merge_model
from bnfold.model_file import load, to_proto, wrap
from bnfold.report import FoldReport
from bnfold.verify.merged import prove_merges


def check_random(model: ModelProto, seed: int) -> FoldReport:
    """In float64 no rounding hides anything: the merged model is the same to the last digits."""
    shape = [d.dim_value or (2 if k == 0 else 8) for k, d in enumerate(model.graph.input[0].type.tensor_type.shape.dim)]
    x = np.random.default_rng(seed).standard_normal(shape)
    try:
        onnx.checker.check_model(model, full_check=True)
        expected = run_float64(model, {"x": x})
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeWarning):  # too small for its windows
        reject()
    result, report = folded(model)
    for name, value in run_float64(result, {"x": x}).items():
        assert value.shape == expected[name].shape
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-11 * np.abs(expected[name]).max())
    return report


@settings(max_examples=50, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_random_convolutions(seed: int) -> None:
    check_random(convolutions(np.random.default_rng(seed)), seed)


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_random_matrices(seed: int) -> None:
    check_random(matrices(np.random.default_rng(seed)), seed)


def test_random_models_do_merge() -> None:
    found = [len(folded(convolutions(np.random.default_rng(seed)))[1].merges) for seed in range(12)]
    assert sum(count > 0 for count in found) >= 4


def _move_weight(model: ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.endswith("w_merged"))
    array = numpy_helper.to_array(tensor).copy()
    array.flat[7] *= 1 + 2.0**-20
    tensor.raw_data = array.tobytes()


def _move_bias(model: ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if "bias" in t.name)
    tensor.raw_data = (numpy_helper.to_array(tensor) * np.float32(1 + 2.0**-20)).tobytes()


def _attribute(name: str, value: list[int]) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "Conv")
        attribute = next(a for a in node.attribute if a.name == name)
        attribute.CopyFrom(helper.make_attribute(name, value))

    return edit


def _other_source(model: ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Relu", ["x"], ["r"]))
    model.graph.node[1].input[0] = "r"


BROKEN = {
    "a weight": _move_weight, "a bias": _move_bias, "pads moved": _attribute("pads", [2, 1, 0, 1]),
    "another size": _attribute("pads", [1, 1, 2, 2]), "a stride": _attribute("strides", [2, 2]),
    "a dilation": _attribute("dilations", [2, 2]), "another source": _other_source,
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_proof_sees(what: str) -> None:
    """Merge, break what came out, prove."""
    model = wrap(pair())
    merging = merge_model(model, Options(), set())
    assert prove_merges(merging).worst_ulp <= 1
    merging.model.proto.CopyFrom(to_proto(model))
    assert prove_merges(merging).worst_ulp <= 1
    BROKEN[what](merging.model.proto)
    with pytest.raises(NotEquivalentError):
        prove_merges(merging)


NETWORKS = {
    "acnet.dynamo18": 13, "acnet.legacy13": 10, "mobileone_s0_mini.legacy17": 29, "repghostnet_050.dynamo20": 202,
    "repvgg_a0.dynamo18": 57, "fastvit_mini.dynamo18": 209, "dbbnet.dynamo20": 53,
}  # fmt: skip
"""Nodes that are left; `test_models.py` makes the relation check of them all."""


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, hydrated: Callable[[str], Path]) -> None:
    """Exported architectures: no BN, and nothing that only a branch needs."""
    result = bnfold.fold(hydrated(name), verify=False)
    assert result.report.after.batch_norms == 0
    assert result.report.nodes_after <= NETWORKS[name]
    apart = fold_model(load(hydrated(name)), Options(merge=False)).report
    assert result.report.before == apart.before
    assert result.report.after.per_channel_ops <= apart.after.per_channel_ops
    assert sum(m.multiply_adds[1] for m in result.report.merges) < sum(m.multiply_adds[0] for m in result.report.merges)
