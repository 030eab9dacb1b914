"""Whole networks: every trained model and a choice of exported architectures, folded as a user would.

What is checked of each: nothing is left that `benchmarks/prototype.json` shows to be avoidable, every BatchNorm is
accounted for, the file is valid, it computes the same, and what the fold had no business with is as it was, to the
byte.  All 133 files go through `benchmarks/models.py`; here is what a few CPU minutes allow.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import NO_SHARED, REPO, SHARED, _real_models
from onnx import AttributeProto, ModelProto, NodeProto
from oracle import left, run_native

import bnfold
from bnfold.fold import Folding, Options, fold_model
from bnfold.fold.merge.apply import Merged
from bnfold.graph import Graph
from bnfold.model_file import load, to_proto

sys.path.append(str(REPO / "benchmarks"))
from measure import _error, _noise, first_run

SKELETONS = """
acnet.legacy13 bn_odd_places.dynamo18 conv_lrelu_bn_nopool.legacy17 convmixer_96.dynamo20 crnn.dynamo18 dbbnet.dynamo20
densenet_bc_g16.dynamo18 ecapa_tdnn.legacy13 eegnet.dynamo18 fastvit_mini.dynamo18 fpn_head_shared.legacy13
gru_bn.legacy13 hand_bn_training_mode.hand15 hand_decomposed_a.hand13 hand_ir3_opset9.hand9 hand_layout_a.hand13
hand_matmul_reshape_a.hand17 hand_shared_a.hand11 instnorm_track.legacy17 keras_fused_cnn.tf2onnx13
linbn_tokens_flat.dynamo18 mlp_pre_nobias.legacyF17 mobileone_s0_mini.legacy17 pixelshuffle_bn.dynamo18
pointnet_cls.dynamo18 preact_cifar_deep.legacy17 shufflenet_v2_x0_5.legacy17 siamese.dynamo20 simsiam.legacy17
""".split()
"""One of each idea: odd places, every exporter, old IR, tokens, shared weights, recurrent layers, training mode."""

PROTOTYPE = json.loads((REPO / "benchmarks" / "prototype.json").read_text())

HEAVY = {"eeg-spindle", "starrem-decomposed"}
"""The relation check runs the original five times or more, which takes these a CPU minute and longer."""

NOT_RUN = {
    "cifar-resnet20-qdq": "nothing was changed",
    "jet-mlp-keras2onnx": "nothing was changed",
}
"""Models of which there is no relation check, and why: ONNX Runtime can't run the last one at all."""

SPELLED_OUT = {"unsw-qonnx": "QONNX's ops: the checks write them out for ONNX Runtime"}

NOT_A_FIXED_POINT = {"linbn_tokens_flat.dynamo18"}
"""Folding their result again moves biases of MatMuls once more: the number of ops is the same."""

WRONG_ABOVE = 16.0
"""An output error of so many times the response to one ulp on all weights is no rounding."""
WRONG_ABOVE_ULPS = 64.0
"""The same in ulps of the largest output, where that response is next to nothing."""


@dataclass
class Folded:
    """A model, and what became of it."""

    name: str
    path: Path

    @cached_property
    def original(self) -> ModelProto:
        return onnx.load(self.path)

    @cached_property
    def result(self) -> bnfold.FoldResult:
        return bnfold.fold(self.path, verify=self.name not in HEAVY)

    @cached_property
    def model(self) -> ModelProto:
        model: ModelProto = self.result.model
        return model

    @cached_property
    def again(self) -> Folding:
        """The same fold once more, with what only the engine knows."""
        return fold_model(load(self.path), Options())


@pytest.fixture(scope="module", params=[*(p.stem for p in _real_models()), *SKELETONS])
def folded(request: pytest.FixtureRequest, hydrated: Callable[[str], Path]) -> Folded:
    if not SHARED.is_dir():
        pytest.skip(NO_SHARED.kwargs["reason"])
    real = SHARED / "models" / "real" / f"{request.param}.onnx"
    return Folded(request.param, real if real.exists() else hydrated(request.param))


def norms(model: ModelProto) -> Counter[tuple[str, str]]:
    scopes = Graph(model).scopes
    return Counter((s.label, node.name) for s in scopes for node in s.nodes if node.op == "BatchNormalization")


def test_batch_norms_left(folded: Folded) -> None:
    before, after = left(folded.original), left(folded.model)
    limit = PROTOTYPE.get(folded.path.name, {"fold": before.bn})["fold"]
    assert after.bn <= limit
    assert after.total <= before.total
    assert folded.result.report.after.batch_norms == after.bn


def test_every_batch_norm_is_accounted_for(folded: Folded) -> None:
    entries = [entry for entry in folded.result.report.entries if entry.op == "BatchNormalization"]
    assert Counter((entry.scope, entry.name) for entry in entries) == norms(folded.original)
    assert Counter((entry.scope, entry.name) for entry in folded.result.kept) == norms(folded.model)
    assert all(entry.reason and entry.sentence for entry in folded.result.kept)
    assert all(entry.sentence for entry in entries)


def test_file_is_valid(folded: Folded) -> None:
    try:
        onnx.checker.check_model(folded.original, full_check=True)
    except onnx.shape_inference.InferenceError:  # shapes that contradict each other: it was like that
        onnx.checker.check_model(folded.model)
    else:
        onnx.checker.check_model(folded.model, full_check=True)


def test_verification(folded: Folded) -> None:
    verification = folded.result.verification
    assert verification.static.worst_ulp <= 1
    if folded.name in HEAVY:
        return
    assert verification.skipped == NOT_RUN.get(folded.name, "")
    if verification.relation is None:
        assert folded.model == folded.original
    else:
        assert verification.relation.passed
        assert verification.relation.values > 0


def test_outputs_are_the_same(folded: Folded) -> None:
    feeds, expected = first_run(folded.original)
    if not expected:
        assert folded.name in NOT_RUN | SPELLED_OUT, "ONNX Runtime can't run the original"
        return
    found = run_native(folded.model, feeds)
    assert found is not None, "ONNX Runtime can't run the result"
    assert list(found) == list(expected)
    noise = _noise(folded.original, feeds, expected)["noise"]
    ulp = max((np.finfo(y.dtype).eps for y in expected.values() if y.dtype.kind == "f"), default=0.0)
    error = max(_error(found[name], value) for name, value in expected.items())
    assert error <= max(WRONG_ABOVE * noise, WRONG_ABOVE_ULPS * ulp)


def test_second_run_gives_the_same_bytes(folded: Folded) -> None:
    second = to_proto(folded.again.model)
    assert second.SerializeToString(deterministic=True) == folded.model.SerializeToString(deterministic=True)
    assert folded.again.report.to_dict()["entries"] == folded.result.report.to_dict()["entries"]


def test_folding_the_result_changes_nothing(folded: Folded) -> None:
    twice = bnfold.fold(folded.model, verify=False)
    assert twice.report.after == twice.report.before == folded.result.report.after
    assert twice.report.nodes_after == folded.result.report.nodes_after
    if folded.name not in NOT_A_FIXED_POINT:
        assert twice.model == folded.model


def test_rest_is_untouched(folded: Folded) -> None:
    before, after = folded.original, folded.model
    fields = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
    assert all(getattr(before, name) == getattr(after, name) for name in fields)
    for name in ("opset_import", "metadata_props", "training_info"):
        assert list(getattr(before, name)) == list(getattr(after, name))
    assert before.graph.name == after.graph.name
    assert before.graph.doc_string == after.graph.doc_string
    assert list(before.graph.output) == list(after.graph.output)
    weights = {tensor.name for tensor in (*before.graph.initializer, *after.graph.initializer)}
    inputs = [[value for value in m.graph.input if value.name not in weights] for m in (before, after)]
    assert inputs[0] == inputs[1]
    _check_initializers(folded)
    _check_nodes(folded)


def _check_initializers(folded: Folded) -> None:
    rewritten = {item.tensor.name for item in folded.again.rewrite.rewritten} | {
        tensor.name for item in merged(folded) for tensor in (item.weight, item.bias) if tensor is not None
    }
    old = {tensor.name: tensor for tensor in folded.original.graph.initializer}
    kept = [tensor for tensor in folded.model.graph.initializer if tensor.name in old]
    assert [t.name for t in kept] == [name for name in old if name in {t.name for t in kept}], "another order"
    assert all(old[tensor.name] == tensor for tensor in kept if tensor.name not in rewritten)
    assert {t.name for t in folded.model.graph.initializer} - set(old) <= rewritten


def merged(folded: Folded) -> list[Merged]:
    """The nodes that stand for several."""
    return [item for found in folded.again.merging.rounds for item in found.done]


def _check_nodes(folded: Folded) -> None:
    """Nodes keep their order, op and attributes; some arithmetic becomes Add or Mul, and MatMuls may get an Add.

    What a merged node has taken in is in its attributes too.
    """
    hosts = {item.host.name for item in merged(folded)}
    rewritten = {item.tensor.name for item in folded.again.rewrite.rewritten}
    before = list(folded.original.graph.node)
    places: dict[str, list[int]] = {}
    for place, node in enumerate(before):
        places.setdefault(_key(node), []).append(place)
    last = -1
    for node in folded.model.graph.node:
        place = next((later for later in places.get(_key(node), ()) if later > last), None)
        if place is None:
            assert _key(node) not in places or not node.name, f"{node.name} has moved"
            assert node.op_type in ("Add", "Mul")
            continue
        last, was = place, before[place]
        if (node.op_type, node.domain) != (was.op_type, was.domain):
            assert node.op_type in ("Add", "Mul", "Sub", "Identity", "BatchNormalization")
            assert was.op_type in ("Add", "Mul", "Sub", "Div", "BatchNormalization")
        elif node.name not in hosts and (node.op_type != "Constant" or node.attribute[0].t.name not in rewritten):
            assert _attributes(node) == _attributes(was)


def _key(node: NodeProto) -> str:
    told = node.output[0] if node.op_type == "Constant" else _attributes(node)
    return node.name or f"{node.op_type} {told}"


def _attributes(node: NodeProto) -> list[AttributeProto]:
    """All but the beta of a Gemm, which its new bias has taken in."""
    return [attribute for attribute in node.attribute if (node.op_type, attribute.name) != ("Gemm", "beta")]


# ------------------------------------------------------------------------------------- what users look at
def test_resnet20_classifies_the_same_images() -> None:
    if not SHARED.is_dir():
        pytest.skip(NO_SHARED.kwargs["reason"])
    path = SHARED / "models" / "real" / "cifar-resnet20.onnx"
    result = bnfold.fold(path, verify=False)
    assert not result.kept
    with np.load(SHARED / "data" / "cifar10.npz") as data:
        images, labels = data["test_x"], data["test_y"]
    pixels = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    feeds = {"input": pixels.transpose(0, 3, 1, 2).astype(np.float32)}
    answers = []
    for model in (onnx.load(path), result.model):
        outputs = run_native(model, feeds)
        assert outputs is not None
        answers.append(next(iter(outputs.values())).argmax(1))
    assert len(labels) == 1017
    assert [int((answer == labels).sum()) for answer in answers] == [932, 932]
    assert np.array_equal(*answers)


def test_preactivation_resnet_with_positive_gammas_loses_every_batch_norm() -> None:
    path = REPO / "sample_models" / "digits_preact.onnx"
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    gammas = [tensors[node.input[1]] for node in onnx.load(path).graph.node if node.op_type == "BatchNormalization"]
    assert len(gammas) == 13 and all((gamma > 0).all() for gamma in gammas)
    result = bnfold.fold(path)
    assert left(result.model).total == 0
    assert not result.kept
    with np.load(path.with_name("digits.npz")) as data:
        images = data["test_x"]
    name = result.model.graph.input[0].name
    before, after = (run_native(model, {name: images}) for model in (onnx.load(path), result.model))
    assert before is not None and after is not None
    assert all(np.array_equal(before[key].argmax(-1), after[key].argmax(-1)) for key in before)
