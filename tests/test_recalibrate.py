"""Measured statistics: right to the digits that float32 has, and nothing else of the model changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import REPO
from onnx import ModelProto, TensorProto, helper, numpy_helper
from recalibration_models import (
    CHANNELS,
    Array,
    bn,
    conv_net,
    model_of,
    reference,
    samples,
    statistics_of,
    tensors_of,
    with_statistics,
)

import bnfold
from bnfold.errors import ModelError, UsageError
from bnfold.recalibrate import exact, measure
from bnfold.verify.inputs import drawn
from bnfold.verify.runtime import CannotRun

SAMPLES = REPO / "sample_models"
DIGITS = ["digits_cnn", "digits_mobile", "digits_preact"]


def in_batches(x: Array, size: int) -> list[Array]:
    return [x[start : start + size] for start in range(0, len(x), size)]


def in_order(model: Any, x: Array, size: int, **options: Any) -> bnfold.RecalibrationResult:
    """Recalibrate on these batches: a stream keeps its order."""
    return bnfold.recalibrate(model, iter(in_batches(x, size)), batch_size=size, **options)


def assert_close(found: dict[str, tuple[Array, Array]], expected: dict[str, tuple[Array, Array]], limit: float) -> None:
    assert found.keys() == expected.keys()
    for name, (mean, variance) in found.items():
        exact_mean, exact_variance = expected[name]
        assert np.abs(variance / exact_variance - 1).max() < limit, name
        assert (np.abs(mean - exact_mean) / np.sqrt(exact_variance)).max() < limit, name


def top1(model: ModelProto, x: Array, y: Array) -> float:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return float((session.run(None, {"input": x})[0].argmax(1) == y).mean())


# -- what is measured ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIGITS)
def test_pooled_equals_train_mode_batches_in_float64(name: str) -> None:
    model = onnx.load(SAMPLES / f"{name}.onnx")
    x = np.load(SAMPLES / "digits.npz")["calib_x"][:40]  # 16 + 24: what is left over goes with the last batch
    result = in_order(model, x[:36], 16)
    assert result.method == "pooled" and result.samples == 36
    assert_close(statistics_of(result.model), reference(model, [x[:16], x[16:36]]), 2e-5)


@pytest.mark.parametrize("name", DIGITS)
def test_exact_equals_one_batch_of_everything_in_float64(name: str) -> None:
    model = onnx.load(SAMPLES / f"{name}.onnx")
    x = np.load(SAMPLES / "digits.npz")["calib_x"][:40]
    result = in_order(model, x, 16, method="exact")
    assert_close(statistics_of(result.model), reference(model, [x]), 1e-5)


def test_batches_count_by_their_size() -> None:
    x = samples(50, CHANNELS, 6, 6)
    model = conv_net()
    found = statistics_of(in_order(model, x, 20).model)
    assert_close(found, reference(model, [x[:20], x[20:40], x[40:]]), 2e-6)


@pytest.mark.parametrize("ratio", [1, 100, 1000])
@pytest.mark.parametrize("shape", [(), (7,), (5, 6), (3, 4, 5)], ids=["rank2", "rank3", "rank4", "rank5"])
@pytest.mark.parametrize("method", ["pooled", "exact", "elementary"])
def test_a_large_mean_costs_no_digits(
    ratio: float, shape: tuple[int, ...], method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "elementary":  # as on other providers than the CPU
        method = "pooled"
        monkeypatch.setattr(measure, "is_plain", lambda provider: True)
    node, tensors = bn("x", "y", "bn")
    model = model_of([node], tensors, (None, CHANNELS, *shape))
    x = samples(600, CHANNELS, *shape, mean=ratio, std=1.0)
    mean, variance = statistics_of(in_order(model, x, 64, method=method).model)["bn"]
    axes = (0, *range(2, x.ndim))
    exact = x.astype(np.float64)
    assert np.abs(variance / exact.var(axes) - 1).max() < 1e-5
    assert np.abs(mean / exact.mean(axes) - 1).max() < 1e-6


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 17, 22])
@pytest.mark.parametrize("elementary", [False, True])
def test_every_opset(opset: int, elementary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "is_plain", lambda provider: elementary)
    node, tensors = bn("x", "n", "bn")
    relu = helper.make_node("Relu", ["n"], ["r"])
    second, more = bn("r", "y", "second")
    model = model_of([node, relu, second], [*tensors, *more], ("n", CHANNELS, 3, 3), opset)
    x = samples(64, CHANNELS, 3, 3)
    assert_close(statistics_of(in_order(model, x, 64).model), reference(model, [x]), 2e-6)


@pytest.mark.parametrize("method", ["pooled", "exact"])
@pytest.mark.parametrize("kind", ["float16", "mixed", "float64"])
def test_other_types(kind: str, method: Any) -> None:
    dtype = np.float64 if kind == "float64" else np.float16
    node, tensors = bn("x", "n", "bn", dtype=dtype)
    if kind == "mixed":  # opset 15: statistics may be float32 beside float16
        tensors = [
            numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float32 if i > 1 else np.float16), t.name)
            for i, t in enumerate(tensors)
        ]
    tail = helper.make_node("Relu", ["n"], ["y"])
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = model_of([node, tail], tensors, (None, CHANNELS, 8), 15, element_type)
    # The variance of a float16 batch, 90000, would overflow float16 before it is ... pooled in float32.
    spread = 300.0 if kind == "mixed" else 100.0
    x = samples(200, CHANNELS, 8, std=spread).astype(dtype)
    mean, variance = statistics_of(in_order(model, x, 64, method=method).model)["bn"]
    exact = x.astype(np.float64)
    limit = 1e-3 if kind == "float16" else 1e-6
    assert np.abs(variance / exact.var((0, 2)) - 1).max() < limit
    assert np.abs(mean - exact.mean((0, 2))).max() < limit * spread


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_bfloat16(method: Any) -> None:
    """Measured in float32, kept in bfloat16: to its three digits. ONNX Runtime's CPU casts it, and little else."""
    dtype = np.dtype("bfloat16")
    node, tensors = bn("h", "n", "bn", dtype=dtype)
    second, more = bn("n", "m", "second", dtype=dtype)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16), node, second,
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]  # fmt: skip
    model = model_of(nodes, [*tensors, *more], (None, CHANNELS, 8), 15)
    x = samples(200, CHANNELS, 8, std=300).astype(dtype).astype(np.float32)
    if method == "exact":  # ONNX Runtime gives no bfloat16 out, so nothing can be kept between segments
        with pytest.raises(ModelError, match="use the method pooled"):
            in_order(model, x, 64, method=method)
        return
    found = statistics_of(in_order(model, x, 64, method=method).model)
    exact = x.astype(np.float64)
    assert np.abs(found["bn"][1] / exact.var((0, 2)) - 1).max() < 2**-8
    assert np.abs(found["bn"][0] - exact.mean((0, 2))).max() < 300 * 2**-8
    scale = numpy_helper.to_array(tensors[0]).astype(float)
    assert np.abs(found["second"][1] / scale**2 - 1).max() < 2**-6


def test_a_variance_that_float16_cannot_hold_is_an_error() -> None:
    node, tensors = bn("x", "y", "bn", dtype=np.float16)
    model = model_of([node], tensors, (None, CHANNELS, 8), 15, TensorProto.FLOAT16)
    with pytest.raises(ModelError, match=r"node 'bn': its variance of .* overflows float16"):
        bnfold.recalibrate(model, samples(200, CHANNELS, 8, std=300).astype(np.float16))


# -- the invariants -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pooled", "exact"])
@pytest.mark.parametrize("name", DIGITS)
def test_the_old_statistics_play_no_part(name: str, method: Any) -> None:
    model = onnx.load(SAMPLES / f"{name}.onnx")
    rng = np.random.default_rng(0)
    perturbed = with_statistics(
        model, lambda m, v: (m + np.sqrt(v) * rng.standard_normal(m.shape), v * np.exp(rng.standard_normal(v.shape)))
    )
    reset = with_statistics(model, lambda m, v: (0 * m, 0 * v + 1))
    broken = with_statistics(model, lambda m, v: (np.nan * m, np.inf * v))
    data = str(SAMPLES / "digits.npz:calib_x")
    clean = tensors_of(bnfold.recalibrate(model, data, method=method).model)
    for other in (perturbed, reset, broken):
        again = tensors_of(bnfold.recalibrate(other, data, method=method).model)
        assert all(np.array_equal(clean[key], again[key]) for key in clean)


@pytest.mark.parametrize("method", ["pooled", "exact"])
@pytest.mark.parametrize("name", DIGITS)
def test_lost_accuracy_is_won_back(name: str, method: Any) -> None:
    arrays = np.load(SAMPLES / "digits.npz")
    reset = with_statistics(onnx.load(SAMPLES / f"{name}.onnx"), lambda m, v: (0 * m, 0 * v + 1))
    before = top1(reset, arrays["test_x"], arrays["test_y"])
    result = bnfold.recalibrate(reset, arrays["calib_x"], method=method)
    after = top1(result.model, arrays["test_x"], arrays["test_y"])
    assert before < 0.9 and after > 0.97, (before, after)


def test_nothing_but_the_statistics_changes(model: Path, tmp_path: Path) -> None:
    before = onnx.load(model)
    result = bnfold.recalibrate(model, str(SAMPLES / "digits.npz:calib_x"), samples=200)
    written = tmp_path / "out.onnx"
    assert result.save(written) == [written]
    after = onnx.load(written)
    changed = {name for node in before.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
        assert (old.SerializeToString() != new.SerializeToString()) == (old.name in changed)
        if old.name in changed:
            new.CopyFrom(old)
    assert before.SerializeToString() == after.SerializeToString()
    assert model.read_bytes() == (SAMPLES / "digits_cnn.onnx").read_bytes()
    assert len(written.read_bytes()) == len(model.read_bytes())


def test_measuring_again_gives_the_same() -> None:
    model = conv_net()
    x = samples(100, CHANNELS, 6, 6)
    once = bnfold.recalibrate(model, x)
    again = bnfold.recalibrate(once.model, x)
    assert once.model.SerializeToString() == again.model.SerializeToString()
    assert all(drift.score == 0 and not drift.shift.any() and (drift.ratio == 1).all() for drift in again.drift)


@pytest.mark.parametrize("name", [*DIGITS, "tabular_mlp"])
def test_recalibrate_then_fold_then_verify(name: str, tmp_path: Path) -> None:
    data = "cancer" if name == "tabular_mlp" else "digits"
    x = np.load(SAMPLES / f"{data}.npz")["calib_x"]
    model = bnfold.recalibrate(SAMPLES / f"{name}.onnx", x).model
    folded = bnfold.fold(model)
    assert not folded.verification.skipped
    np.savez(tmp_path / "x.npz", input=x[:32])
    assert bnfold.verify(model, folded.model, data=tmp_path / "x.npz").verdict == "equal"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_real_models(real_model: Path, method: Any) -> None:
    """Recalibrated, then folded with its checks; on random inputs."""
    proto = onnx.load(real_model)
    if not any(node.op_type == "BatchNormalization" for node in proto.graph.node):
        pytest.skip("it has no BatchNormalization")
    try:
        batches = [batch for seed in range(2) for batch in drawn(proto, seed).batches]
    except CannotRun as why:
        pytest.skip(f"ONNX Runtime can't run it: {why}")
    try:
        result = bnfold.recalibrate(real_model, iter(batches), method=method, batch_size=16)
    except ModelError as error:
        if "is not a registered function/op" not in str(error):
            raise
        pytest.skip("it has ops that ONNX Runtime has not")
    assert result.drift and not result.unmeasured
    bnfold.fold(result.model, verify=method == "pooled")  # running both once is enough: 15 s for the largest


# -- options ------------------------------------------------------------------------------------------


def test_unbiased() -> None:
    model, x = conv_net(), samples(64, CHANNELS, 6, 6)
    biased, unbiased = (statistics_of(in_order(model, x, 64, unbiased=u).model)["bn0"][1] for u in (False, True))
    count = 64 * 36
    np.testing.assert_allclose(unbiased, biased * count / (count - 1), rtol=1e-6)


def test_blend_goes_layer_by_layer() -> None:
    model, x = conv_net(), samples(64, CHANNELS, 6, 6)
    old, new = statistics_of(model), reference(model, [x])
    result = in_order(model, x, 32, method="blend", source_weight=16)
    found = statistics_of(result.model)
    for which in (0, 1):  # nothing upstream of the first differs
        np.testing.assert_allclose(found["bn0"][which], (16 * old["bn0"][which] + 64 * new["bn0"][which]) / 80, 1e-5)
    # the second was measured behind the blended first
    first = with_statistics(model, lambda m, v: (m, v))
    behind = bnfold.recalibrate(with_blended(first, found), x, method="exact", only="bn1").model
    target = statistics_of(behind)["bn1"]
    for which in (0, 1):
        np.testing.assert_allclose(found["bn1"][which], (16 * old["bn1"][which] + 64 * target[which]) / 80, 1e-4)


def with_blended(model: ModelProto, statistics: dict[str, tuple[Array, Array]]) -> ModelProto:
    names = iter(node.name for node in model.graph.node if node.op_type == "BatchNormalization")
    return with_statistics(model, lambda m, v: statistics[next(names)])


def test_no_source_weight_is_exact() -> None:
    model, x = conv_net(), samples(64, CHANNELS, 6, 6)
    blend = in_order(model, x, 32, method="blend", source_weight=0)
    assert blend.model == in_order(model, x, 32, method="exact").model


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_only_and_skip(method: Any) -> None:
    model, x = conv_net(), samples(64, CHANNELS, 6, 6)
    old = statistics_of(model)
    for options in ({"only": "bn[12]"}, {"skip": ["bn0", "nope"]}):
        result = bnfold.recalibrate(model, x, method=method, **options)
        found = statistics_of(result.model)
        assert [drift.name for drift in result.drift] == ["bn1", "bn2"]
        assert np.array_equal(found["bn0"][0], old["bn0"][0])
        # bn0 normalises by what it holds: what bn1 measures differs from where it is measured too
        everything = statistics_of(bnfold.recalibrate(model, x, method=method).model)
        assert np.abs(found["bn1"][0] - everything["bn1"][0]).max() > 0.01
    assert any("skip 'nope' matches" in notice for notice in result.notices)
    with pytest.raises(UsageError, match="leave no BatchNormalization"):
        bnfold.recalibrate(model, x, only="nope")


def test_a_small_fixed_batch_is_measured_exactly() -> None:
    model, x = conv_net(shape=(2, CHANNELS, 6, 6)), samples(40, CHANNELS, 6, 6)
    result = bnfold.recalibrate(model, x)
    assert result.method == "exact"
    assert any("takes 2 samples at a time" in notice for notice in result.notices)
    assert_close(statistics_of(result.model), reference(conv_net(), [x]), 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "frozen"}, {"provider": "abacus"}, {"source_weight": -1},
        {"batch_size": 0}, {"samples": 0},
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        bnfold.recalibrate(conv_net(), samples(64, CHANNELS, 6, 6), **options)


# -- what goes wrong ----------------------------------------------------------------------------------


def test_a_model_without_bn() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], [], (None, CHANNELS))
    with pytest.raises(ModelError, match="has no BatchNormalization"):
        bnfold.recalibrate(model, samples(64, CHANNELS))


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_a_statistic_that_is_not_finite(method: Any) -> None:
    nodes = [helper.make_node("Log", ["x"], ["l"])]
    node, tensors = bn("l", "y", "bn")
    model = model_of([*nodes, node], tensors, (None, CHANNELS))
    x = np.abs(samples(64, CHANNELS)) + 1
    x[5, 2] = -1
    with pytest.raises(ModelError, match=r"node 'bn', channel 2: .* not finite"):
        bnfold.recalibrate(model, x, method=method)


def test_an_input_that_is_not_finite() -> None:
    x = samples(64, CHANNELS, 6, 6)
    x[7, 0, 0, 0] = np.nan
    with pytest.raises(UsageError, match=r"7.*'x': has NaN"):
        bnfold.recalibrate(conv_net(), x)


# -- front doors and reports --------------------------------------------------------------------------


def test_the_same_kind_comes_back() -> None:
    onnx_ir = pytest.importorskip("onnx_ir")
    model, x = conv_net(), samples(64, CHANNELS, 6, 6)
    given = onnx_ir.from_proto(model)
    result = bnfold.recalibrate(given, x)
    assert isinstance(result.model, onnx_ir.Model)
    assert statistics_of(onnx_ir.to_proto(result.model)).keys() == {"bn0", "bn1", "bn2"}
    assert tensors_of(onnx_ir.to_proto(given)).keys() == tensors_of(model).keys()


def test_external_data_stays_external(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv_net(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    x = samples(64, CHANNELS, 6, 6)
    files = bnfold.recalibrate(path, x).save(tmp_path / "out.onnx")
    assert [file.name for file in files] == ["out.onnx", "out.onnx.data"]
    plain = statistics_of(bnfold.recalibrate(conv_net(), x).model)
    assert_close(statistics_of(onnx.load(files[0])), plain, 1e-12)


def test_the_report_is_plain_data() -> None:
    result = bnfold.recalibrate(conv_net(), samples(64, CHANNELS, 6, 6))
    told = json.loads(json.dumps(result.to_dict()))
    assert told["method"] == "pooled" and told["samples"] == 64
    assert [one["name"] for one in told["batch_norms"]] == ["bn0", "bn1", "bn2"]
    assert told["batch_norms"][0]["count"] == 64 * 36 and told["batch_norms"][0]["score"] > 0


def test_a_dead_channel_is_told() -> None:
    x = samples(64, CHANNELS)
    x[:, 1] = 3
    node, tensors = bn("x", "y", "bn")
    result = bnfold.recalibrate(model_of([node], tensors, (None, CHANNELS)), x)
    assert result.drift[0].dead == 1
    assert any("1 channels in 1 BatchNormalizations ('bn' first) never vary" in notice for notice in result.notices)


def test_what_does_not_fit_the_cache_goes_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, x = conv_net(), samples(64, CHANNELS, 6, 6)
    small, large = (in_order(model, x, 16, method="exact", cache_size=size).model for size in (3000, 1 << 30))
    assert small == large
    assert not list(tmp_path.iterdir())


def test_images_are_prepared() -> None:
    """uint8 pixels given as an array: the options are those of the command line."""
    model = conv_net(shape=(None, 3, 6, 6))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w0")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, :3].copy(), "w0"))
    pixels = np.random.default_rng(0).integers(0, 256, (130, 6, 6, 3), np.uint8)
    images = bnfold.ImageOptions(mean=(0.5,), std=(0.25,))
    ready = (pixels.astype(np.float32) * np.float32(1 / 255) - np.float32(0.5)) / np.float32(0.25)
    ready = ready.transpose(0, 3, 1, 2)
    found, expected = bnfold.recalibrate(model, pixels, images=images), bnfold.recalibrate(model, ready.copy())
    assert found.model.SerializeToString() == expected.model.SerializeToString()


# -- how far they can be trusted ----------------------------------------------------------------------


def plain_bn() -> ModelProto:
    node, tensors = bn("x", "y", "bn")
    return model_of([node], tensors, (None, CHANNELS))


@pytest.mark.parametrize(("count", "rough"), [(32, True), (2048, False)])
@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_the_standard_error_is_that_of_the_mean(count: int, rough: bool, method: Any) -> None:
    """Of independent values it is sigma / sqrt(n)."""
    result = in_order(plain_bn(), samples(count, CHANNELS), 4 if rough else 64, method=method)
    (drift,) = result.drift
    assert drift.error is not None and drift.rough == rough
    assert 0.4 < drift.error * np.sqrt(count) < 2
    told = [notice for notice in result.notices if "too few" in notice and "standard deviations" in notice]
    assert len(told) == rough
    assert result.to_dict()["batch_norms"][0]["rough"] == rough


def test_values_of_an_image_are_no_independent_draws() -> None:
    """All 400 values of a sample are equal: what counts is the number of samples."""
    node, tensors = bn("x", "y", "bn")
    model = model_of([node], tensors, (None, CHANNELS, 20, 20))
    x = np.broadcast_to(samples(64, CHANNELS, 1, 1), (64, CHANNELS, 20, 20))
    (drift,) = in_order(model, x, 8).drift
    assert drift.error is not None and 0.06 < drift.error < 0.25 and drift.count == 64 * 400


@pytest.mark.parametrize("kind", ["shuffled", "sorted mean", "sorted spread"])
def test_statistics_that_do_not_settle_are_told(kind: str) -> None:
    x = samples(640, CHANNELS)
    if kind == "sorted mean":
        x[320:] += 2
    elif kind == "sorted spread":
        x[320:] *= 3
    result = in_order(plain_bn(), x, 16)
    assert result.drift[0].unsettled == (kind != "shuffled")
    assert any("is the data shuffled?" in notice for notice in result.notices) == (kind != "shuffled")
    if kind != "shuffled":  # the order of rows is not the file's
        assert not bnfold.recalibrate(plain_bn(), x, batch_size=16).drift[0].unsettled


def test_a_channel_of_one_large_number_is_dead() -> None:
    """Its variance is what float32 makes of the mean of equal numbers, not 0."""
    x = samples(256, CHANNELS)
    x[:, 2] = 7.3
    result = bnfold.recalibrate(plain_bn(), x)
    assert result.drift[0].dead == 1 and np.isfinite(result.drift[0].error or np.nan)


# -- exact, where the parts of a Concat are known -----------------------------------------------------


def dense_net(shape: Any = (None, CHANNELS, 6, 6)) -> ModelProto:
    """Each layer sees those before it: BN, Relu, Conv, Concat three times, and a BN at the end."""
    rng, nodes, tensors = np.random.default_rng(0), [], []
    weight = rng.normal(size=(CHANNELS, CHANNELS, 1, 1)).astype(np.float32)
    tensors.append(numpy_helper.from_array(weight, "w"))
    nodes.append(helper.make_node("Conv", ["x", "w"], ["v0"], "stem"))
    for k in range(3):
        node, parameters = bn(f"v{k}", f"n{k}", f"bn{k}", channels=CHANNELS * (k + 1))
        weight = rng.normal(size=(CHANNELS, CHANNELS * (k + 1), 3, 3)).astype(np.float32) / 4
        tensors += [*parameters, numpy_helper.from_array(weight, f"w{k}")]
        nodes += [
            node, helper.make_node("Relu", [f"n{k}"], [f"r{k}"]),
            helper.make_node("Conv", [f"r{k}", f"w{k}"], [f"c{k}"], pads=[1, 1, 1, 1]),
            helper.make_node("Concat", [f"v{k}", f"c{k}"], [f"v{k + 1}"], axis=1),
        ]  # fmt: skip
    node, parameters = bn("v3", "y", "last", channels=4 * CHANNELS)
    return model_of([*nodes, node], [*tensors, *parameters], shape)


@pytest.mark.parametrize("axis", [1, -3])
def test_parts_of_a_concat_are_measured_once(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense_net()
    for node in model.graph.node:
        if node.op_type == "Concat":
            node.attribute[0].i = axis
    x = samples(48, CHANNELS, 6, 6)
    seen = []
    plain = exact.take_in
    monkeypatch.setattr(
        exact, "take_in", lambda t, o, r, values, n: (seen.extend(values[one.names[1]].size for one in r),
                                                       plain(t, o, r, values, n))[1],
    )  # fmt: skip
    found = statistics_of(in_order(model, x, 16, method="exact").model)
    assert_close(found, reference(model, [x]), 1e-5)
    channels = sum(seen) // 3  # of all that was measured, in each of three batches
    assert channels == (4 if axis == 1 else 1 + 2 + 3 + 4) * CHANNELS
