"""Verdicts: right pairs are equal, bugs are found and told where they are, and what can't be told is said."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from conftest import REPO
from onnx import ModelProto, helper, numpy_helper
from onnx.parser import parse_model

import bnfold

SAMPLES = sorted((REPO / "sample_models").glob("*.onnx"))
MODEL = REPO / "sample_models" / "digits_cnn.onnx"


def _bugs() -> Any:
    spec = importlib.util.spec_from_file_location("bugs", REPO / "benchmarks" / "bugs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bugs"] = module
    spec.loader.exec_module(module)
    return module


BUGS = _bugs()


def parsed(text: str, opset: int = 17, **tensors: Any) -> ModelProto:
    model = parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    for name, values in tensors.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return model


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# -- right pairs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_fold_is_equal(path: Path) -> None:
    found = bnfold.verify(path, bnfold.fold(path, verify=False).model)
    assert found.verdict == "equal", found.reason
    assert found.worst < 3 and found.first is None and found.exit_code() == 0
    assert found.outputs[0].max_rel < 1e-4


@pytest.mark.parametrize("name", sorted(BUGS.RIGHT))
@pytest.mark.parametrize("folded", [False, True], ids=["as it is", "folded"])
def test_other_forms_of_a_model_are_equal(name: str, folded: bool) -> None:
    other = BUGS.edited(bnfold.fold(MODEL, verify=False).model if folded else onnx.load(MODEL), BUGS.RIGHT[name], 0)
    found = bnfold.verify(MODEL, other)
    assert found.verdict == "equal", found.reason
    assert len(found.segments) >= 15


def test_nodes_in_another_order_are_equal() -> None:
    model = parsed(
        """g (float[N, 4] x) => (float[N, 4] y)
        { a = MatMul (x, v)  b = MatMul (x, w)  c = Relu (a)  y = Add (b, c) }""",
        v=normal(4, 4), w=normal(4, 4, seed=1),
    )  # fmt: skip
    other = ModelProto.FromString(model.SerializeToString())
    nodes = [other.graph.node[index] for index in (1, 0, 2, 3)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del other.graph.node[:]
    other.graph.node.extend(copies)
    assert bnfold.verify(model, other).verdict == "equal"


@pytest.mark.parametrize("op", ["Log", "Sqrt", "Reciprocal"])
def test_equal_nan_and_inf_are_equal(op: str) -> None:
    text = f"g (float[8, 4] x) => (float[8, 4] y) {{ a = Relu (x)  b = Sub (a, w)  y = {op} (b) }}"
    model = parsed(text, w=np.array([0, 0.5, 0, 0.5], np.float32))
    found = bnfold.verify(model, model)
    assert found.verdict == "equal", found.reason


def test_16_bit_floats() -> None:
    def build(kind: str, dtype: Any) -> ModelProto:
        weight = normal(4, 4).astype(dtype)
        return parsed(f"g ({kind}[8, 4] x) => ({kind}[8, 4] y) {{ a = MatMul (x, w)  y = Relu (a) }}", w=weight)

    half = build("float16", "float16")
    assert bnfold.verify(half, half).verdict == "equal"
    import ml_dtypes

    brain = build("bfloat16", ml_dtypes.bfloat16)
    found = bnfold.verify(brain, brain)
    assert found.verdict == "equal", found.reason
    assert any("own type" in note for note in found.notes)  # ONNX Runtime has no kernels


# -- wrong pairs ------------------------------------------------------------------------------------

OF_THE_BN_IN_THE_MIDDLE = [
    "eps ignored, one BN", "one channel × (1+1e-3)", "one channel × (1+1e-4)", "one channel × (1+1e-5)",
    "sqrt forgotten", "mean's sign", "mean stale by 0.1 % of std",
]  # fmt: skip


@pytest.mark.parametrize("bug", OF_THE_BN_IN_THE_MIDDLE)
def test_a_bug_in_a_batch_norm_is_found_where_it_is(bug: str) -> None:
    model = onnx.load(MODEL)
    norms = BUGS.norms(model)
    other = bnfold.fold(BUGS.edited(model, BUGS.BUGS[bug], 0), verify=False).model
    found = bnfold.verify(MODEL, other)
    assert found.verdict == "different" and found.exit_code() == 1
    assert found.first is not None
    name = norms[len(norms) // 2].name
    assert name in found.first.batch_norms
    # Without its sqrt it only looks like itself in other coordinates: the segment that is off goes on to the next one.
    assert found.first.batch_norms == (name,) or bug == "sqrt forgotten"
    if bug.startswith("one channel"):
        assert found.first.bad == 1


@pytest.mark.parametrize("bug", sorted(set(BUGS.BUGS) - set(OF_THE_BN_IN_THE_MIDDLE)))
@pytest.mark.parametrize("path", SAMPLES[:2], ids=lambda path: path.stem)
def test_other_bugs_are_found(path: Path, bug: str) -> None:
    mutant = BUGS.edited(onnx.load(path), BUGS.BUGS[bug], 0)
    if mutant is None:
        pytest.skip("there is nothing in the model to apply it to")
    found = bnfold.verify(path, bnfold.fold(mutant, verify=False).model)
    assert found.verdict in ("different", "rounding-scale difference"), found.reason
    assert found.exit_code(strict=True) == 1


def test_a_bug_shows_without_any_name() -> None:
    mutant = BUGS.edited(onnx.load(MODEL), BUGS.BUGS["one channel × (1+1e-4)"], 0)
    other = bnfold.fold(BUGS.edited(mutant, BUGS.RIGHT["renamed"], 0), verify=False).model
    found = bnfold.verify(MODEL, other)
    assert found.verdict == "different"
    assert found.first is not None and found.first.bad == 1


@pytest.mark.parametrize("between", ["Transpose <perm = [1, 0]> (a)", "Reshape (a, shape)"])
def test_an_optimiser_that_is_wrong_is_caught(between: str) -> None:
    """ONNX Runtime folds BN into a MatMul through a layout op, along the wrong one of two axes of equal size."""
    rank = "6, 6" if "Transpose" in between else "1, 6, 6"
    model = parsed(
        f"""g (float[6, 4] x) => (float[{rank}] y)
        {{ a = MatMul (x, w)  b = {between}  y = BatchNormalization (b, gamma, beta, mean, var) }}""",
        w=normal(4, 6), gamma=normal(6, seed=1), beta=normal(6, seed=2), mean=normal(6, seed=3),
        var=np.abs(normal(6, seed=4)) + np.float32(0.5), shape=np.array([1, 6, 6]),
    )  # fmt: skip
    from bnfold.verify.runtime import optimised_by_runtime

    found = bnfold.verify(model, optimized=True)
    if any(node.op_type == "BatchNormalization" for node in optimised_by_runtime(model).graph.node):
        assert found.verdict == "equal"
        pytest.skip("this ONNX Runtime leaves it alone")
    assert found.verdict == "different"


def test_an_optimiser_that_is_right_is_not() -> None:
    found = bnfold.verify(MODEL, optimized=True)
    assert found.verdict == "equal", found.reason


def test_overflow_is_a_difference() -> None:
    a = parsed("g (float16[8, 4] x) => (float16[8, 4] y) { y = Mul (x, k) }", k=np.float16(512))
    b = parsed(
        "g (float16[8, 4] x) => (float16[8, 4] y) { a = Mul (x, k)  b = Mul (a, k)  y = Div (b, k) }", k=np.float16(512)
    )
    found = bnfold.verify(a, b)
    assert found.verdict == "different"
    assert "too large for its type" in found.reason or "Inf" in found.reason


def test_non_finite_weights_are_different() -> None:
    mutant = onnx.load(MODEL)
    tensor = next(t for t in mutant.graph.initializer if len(t.dims) == 4)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    found = bnfold.verify(MODEL, mutant)
    assert found.verdict == "different"


# -- discrete outputs -------------------------------------------------------------------------------


def classifier(weight: Any, decision: str) -> ModelProto:
    return parsed(f"g (float[32, 4] x) => (int64[32] y) {{ s = MatMul (x, w)  {decision} }}", w=weight)


ARGMAX = "y = ArgMax <axis = 1, keepdims = 0> (s)"


def test_a_tie_may_fall_either_way() -> None:
    weight = np.repeat(normal(4, 1), 3, axis=1)
    other = np.nextafter(weight, np.float32(np.inf))
    other[:, 0] = weight[:, 0]
    found = bnfold.verify(classifier(weight, ARGMAX), classifier(other, ARGMAX))
    assert found.verdict == "equal", found.reason


def test_another_decision_on_the_same_scores_counts() -> None:
    weight = normal(4, 3)
    found = bnfold.verify(classifier(weight, ARGMAX), classifier(weight, ARGMAX.replace("ArgMax", "ArgMin")))
    assert found.verdict == "different"
    assert "output 'y'" in found.reason


def test_another_threshold_counts() -> None:
    def build(threshold: float) -> ModelProto:
        text = "g (float[32, 4] x) => (bool[32, 4] y) { s = MatMul (x, w)  y = Greater (s, t) }"
        return parsed(text, w=normal(4, 4), t=np.float32(threshold))

    assert bnfold.verify(build(0.5), build(0.5)).verdict == "equal"
    assert bnfold.verify(build(0.5), build(0.6)).verdict == "different"


# -- cannot tell ------------------------------------------------------------------------------------


def test_inputs_that_reach_nothing_tell_nothing(tmp_path: Path) -> None:
    text = "g (float[8, 4] x) => (float[8, 4] y) { y = MatMul (x, w) }"
    a, b = (parsed(text, w=normal(4, 4, seed=seed)) for seed in (0, 1))
    np.savez(tmp_path / "zeros.npz", x=np.zeros((8, 4), np.float32))
    found = bnfold.verify(a, b, data=tmp_path / "zeros.npz")
    assert (found.verdict, found.exit_code()) == ("cannot tell", 3)
    assert "react" in found.reason
    assert bnfold.verify(a, b).verdict == "different"


def test_a_saturated_output_does_not_hide_a_bug() -> None:
    def build(scale: float) -> ModelProto:
        text = "g (float[32, 4] x) => (float[32, 4] y) { a = MatMul (x, w)  b = Add (a, k)  y = Clip (b, low, high) }"
        weight = normal(4, 4) * np.float32(scale)
        return parsed(text, w=weight, k=np.float32(1e3), low=np.float32(0), high=np.float32(1))

    assert bnfold.verify(build(1), build(1)).verdict in ("equal", "cannot tell")
    assert bnfold.verify(build(1), build(1.001)).verdict in ("different", "cannot tell")


def test_the_same_nodes_are_equal_whatever_they_react_to() -> None:
    """A head of zeros, as networks have it before training: no data would show its weights."""

    def build(head: float) -> ModelProto:
        text = "g (float[8, 4] x) => (float[8, 4] y) { a = MatMul (x, w)  b = Relu (a)  y = Gemm (b, h, c) }"
        return parsed(text, w=normal(4, 4), h=np.full((4, 4), head, np.float32), c=np.zeros(4, np.float32))

    found = bnfold.verify(build(0), build(0))
    assert found.verdict == "equal", found.reason
    assert bnfold.verify(build(0), build(1)).verdict == "different"


def test_two_bugs_in_a_row_are_told_at_the_first() -> None:
    def build(*factors: float) -> ModelProto:
        text = """g (float[32, 4] x) => (float[32, 4] y)
            { a = MatMul (x, u)  b = Relu (a)  c = MatMul (b, v)  d = Sigmoid (c)  e = MatMul (d, w)  y = Tanh (e) }"""
        one, two, three = (normal(4, 4, seed=n) * np.float32(f) for n, f in enumerate((1, *factors)))
        return parsed(text, u=one, v=two, w=three)

    found = bnfold.verify(build(1, 1), build(1.001, 1.01))
    assert found.verdict == "different"
    assert found.first is not None and found.first.value == "c"
    assert not any("look alike" in note for note in found.notes)


def test_what_outputs_hide_is_said() -> None:
    def build(factor: float) -> ModelProto:
        text = "g (float[32, 4] x) => (float[32, 4] y) { a = MatMul (x, w)  b = Mul (a, k)  y = Add (b, x) }"
        return parsed(text, w=normal(4, 4) * np.float32(factor), k=np.float32(1e-6))

    found = bnfold.verify(build(1), build(1.0005))
    assert found.verdict == "different"
    assert found.notes[0].startswith("the outputs don't show it")


def test_nan_in_both_is_said() -> None:
    model = parsed("g (float[8, 4] x) => (float[8, 4] y) { a = Mul (x, k)  y = Sqrt (a) }", k=np.float32(2))
    found = bnfold.verify(model, model)
    assert found.verdict == "equal"
    assert any("NaN or Inf" in note for note in found.notes)


def test_unknown_operators_cannot_be_told() -> None:
    model = parsed("g (float[8, 4] x) => (float[8, 4] y) { y = Relu (x) }")
    model.opset_import.append(helper.make_opsetid("my", 1))
    model.graph.node[0].domain = "my"
    assert bnfold.verify(model, model).verdict == "cannot tell"


# -- settings ---------------------------------------------------------------------------------------


def test_fold_takes_a_full_verdict() -> None:
    result = bnfold.fold(MODEL, verify="full")
    assert result.verification.comparison is not None
    assert result.verification.comparison.verdict == "equal"
    assert result.to_dict()["verification"]["comparison"]["verdict"] == "equal"


def test_seeds_are_fixed() -> None:
    folded = bnfold.fold(MODEL, verify=False).model
    first, second = (bnfold.verify(MODEL, folded).to_dict() for _ in range(2))
    assert first == second
    assert bnfold.verify(MODEL, folded, seed=1).to_dict() != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b": None}, "one model only"),
        ({"b": MODEL, "provider_b": "tpu"}, "is no provider"),
        ({"b": 3}, "is no model"),
        ({"b": MODEL, "data": "missing.npz"}, "no such file"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((bnfold.UsageError, OSError), match=message):
        bnfold.verify(MODEL, **arguments)


@pytest.mark.parametrize(
    "name", ["eegnet.legacy13", "mlp_pre.dynamo18", "hand_layout_a.hand13", "keras_fused_cnn.tf2onnx13"]
)
def test_exported_networks(hydrated: Callable[[str], Path], name: str) -> None:
    path = hydrated(name)
    found = bnfold.verify(path, bnfold.fold(path, verify=False).model)
    assert found.verdict == "equal", found.reason


@pytest.mark.parametrize(
    "name", ["chess-preact", "mesonet", "cifar-resnet20-fp16", "cifar-resnet20-qdq", "mlperf-ad01"]
)
def test_trained_networks(real_models: list[Path], name: str) -> None:
    path = next((path for path in real_models if path.stem == name), None)
    if path is None:
        pytest.skip(f"{name} is not among the shared models")
    found = bnfold.verify(path, bnfold.fold(path, verify=False).model)
    assert found.verdict == "equal", found.reason


# -- what others write ------------------------------------------------------------------------------


def test_what_the_runtime_fuses_is_compared_in_double(tmp_path: Path) -> None:
    import onnxruntime

    options, target = onnxruntime.SessionOptions(), tmp_path / "extended.onnx"
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(target), 4
    onnxruntime.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
    assert {node.op_type for node in onnx.load(target).graph.node} & {"FusedConv", "FusedGemm"}
    found = bnfold.verify(MODEL, target)
    assert found.verdict == "equal", found.reason
    assert not any(segment.native for segment in found.segments)


def test_a_fold_of_16_bit_numbers_has_inner_pairs() -> None:
    model = parsed(
        """g (bfloat16[N, 3, 8, 8] x) => (bfloat16[N, 4, 8, 8] y) {
        h = Conv <pads = [1, 1, 1, 1]> (x, w)  n = BatchNormalization (h, s, s, s, s)  r = Relu (n)
        i = Conv <pads = [1, 1, 1, 1]> (r, v)  y = BatchNormalization (i, s, s, s, s) }""",
        w=normal(4, 3, 3, 3).astype(ml_dtypes.bfloat16),
        v=normal(4, 4, 3, 3, seed=1).astype(ml_dtypes.bfloat16),
        s=np.abs(normal(4, seed=2)).astype(ml_dtypes.bfloat16) + 1,
    )
    found = bnfold.verify(model, bnfold.fold(model, verify=False).model)
    assert found.verdict == "equal" and len(found.segments) > 2, found.reason
