"""`fold(requantize=…)`: rounding of activations that is in the way of BN moves behind it (docs/quantization.md)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import bnfold as run
from command import files, ok, refused
from conftest import NO_SHARED, REPO, SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, numpy_helper
from oracle import left, run_native
from probe_text import Probe
from requantize_table import TABLE, Row
from requantize_table import Q as PAIR

import bnfold
from bnfold.fold import Options, fold_model
from bnfold.model_file import to_proto, wrap
from bnfold.recalibrate.data import open_data
from bnfold.requantize import Loosened, finish
from bnfold.requantize.histogram import Histogram
from bnfold.requantize.measure import Tally
from bnfold.requantize.pairs import Steps, find_pairs, loosened
from bnfold.verify.inputs import ports

Array = np.ndarray[Any, Any]

SAMPLE = REPO / "sample_models" / "digits_cnn.onnx"

each_row = pytest.mark.parametrize("name", TABLE)


def probe_of(name: str, row: Row, *, good: bool) -> Probe:
    return Probe(f"requantize-{name}", "", row.good if good else row.bad, opset=row.opset, values=row.values)


def data_of(model: ModelProto, count: int = 64) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    fixed = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for info in model.graph.input:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        if info.name not in fixed:
            found[info.name] = rng.standard_normal((count, *shape[1:])).astype(np.float32)
    return found


def rounded_values(model: ModelProto) -> Counter[str]:
    """How often values that are computed are rounded, by the QuantizeLinear."""
    constant = {tensor.name for tensor in model.graph.initializer}
    return Counter(node.name or node.output[0] for node in model.graph.node
                   if node.op_type == "QuantizeLinear" and node.input[0] not in constant)  # fmt: skip


def inner_reads(model: ModelProto) -> list[str]:
    """What bodies read."""
    bodies = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.g.node]
    return [name for body in bodies for node in body.node for name in node.input]


def plain(model: ModelProto) -> ModelProto:
    """The model with nothing rounded or clipped; a pair whose two steps differ multiplies by what they do."""
    copy = ModelProto()
    copy.CopyFrom(model)
    makers = {name: node for node in copy.graph.node for name in node.output}
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
    for node in copy.graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if maker is None or not (maker.op_type == "QuantizeLinear" or maker.doc_string):
            continue
        step, own = maker.doc_string or maker.input[1], node.input[1]
        maker.op_type, maker.doc_string, node.op_type = "Identity", step, "Identity"
        del maker.input[1:], node.input[1:], maker.attribute[:], node.attribute[:]
        if step in tensors and own in tensors and tensors[step] != tensors[own]:
            node.op_type = "Mul"
            node.input.append(f"{node.output[0]} gain")
            copy.graph.initializer.append(numpy_helper.from_array(tensors[own] / tensors[step], node.input[1]))
    return copy


def steps(model: ModelProto) -> dict[str, Steps]:
    """How every QuantizeLinear of values rounds, by its output."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants = (node for node in model.graph.node if node.op_type == "Constant")
    tensors |= {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in constants}
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in tensors:
            zero = tensors[node.input[2]] if len(node.input) > 2 else np.zeros((), np.uint8)
            found[node.output[0]] = Steps(tensors[node.input[1]], zero)
    return found


def shown(model: ModelProto, *names: str) -> ModelProto:
    """With these values as outputs, too."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


def rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64)))))


@each_row
def test_bn_goes_and_the_rounding_behind_it_stays(name: str) -> None:
    row = TABLE[name]
    model = probe_of(name, row, good=True).model()
    data = data_of(model)
    result = bnfold.fold(model, requantize=data)
    assert left(bnfold.fold(model).model).total == left(model).bn
    assert left(result.model).total == 0
    onnx.checker.check_model(result.model, full_check=True)
    assert sum(rounded_values(result.model).values()) == row.pairs
    assert not any(node.op_type == "Identity" or node.doc_string for node in result.model.graph.node)
    read = {name for node in result.model.graph.node for name in node.input}
    assert {tensor.name for tensor in result.model.graph.initializer} <= read | set(inner_reads(result.model))
    assert result.requantization is not None
    without, after = (run_native(plain(each), data) for each in (model, result.model))
    for output, expected in without.items():  # but for the rounding it is the same function
        np.testing.assert_allclose(after[output], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@each_row
def test_hostile_twin_keeps_its_bn_and_its_rounding(name: str) -> None:
    row = TABLE[name]
    model = probe_of(name, row, good=False).model()
    result = bnfold.fold(model, requantize=data_of(model))
    assert left(result.model).total == left(bnfold.fold(model).model).total == 1
    assert result.requantization is None
    assert rounded_values(result.model) == rounded_values(model)




@each_row
def test_pairs_are_measured_and_others_stay(name: str) -> None:
    model = probe_of(name, TABLE[name], good=True).model()
    data = data_of(model)
    result = bnfold.fold(model, requantize=data)
    found = result.requantization
    assert found is not None
    old, new = steps(model), steps(result.model)
    integers = {node.output[0]: node.input[0] for node in result.model.graph.node if node.op_type == "QuantizeLinear"}
    moved = {pair.name: pair for pair in found.pairs}
    assert {output for output in new if output not in moved} == {
        output for output in new if output in old and new[output] == old[output]
    }
    assert {pair.name for pair in found.gone} == old.keys() - new.keys()
    values = run_native(plain(shown(result.model, *(integers[output] for output in new))), data)
    for output in new.keys() & moved.keys():
        value, after = values[integers[output]].astype(np.float64), moved[output].after
        assert after is not None
        assert (after.step, after.zero_point) == (float(new[output].step), int(new[output].zero_point))
        assert new[output].zero_point.dtype == old[output].zero_point.dtype
        noise = rms(new[output].rounded(value) - value)
        assert after.noise * rms(value) == pytest.approx(noise, rel=0.3)  # 576 values at the least
        assert noise <= 1.1 * rms(widest(value, new[output]).rounded(value) - value)


def widest(values: Array, like: Steps) -> Steps:
    """From the smallest to the largest value, as quantisers choose by default."""
    low, high = min(values.min(), 0), max(values.max(), 0)
    least, most = like.limits
    if int(like.zero_point) == 0 and least < 0:
        return Steps(np.float32(max(-low, high) / most).reshape(()), like.zero_point)
    step = (high - low) / (most - least)
    return Steps(np.float32(step).reshape(()), np.asarray(np.rint(least - low / step), like.zero_point.dtype))


def test_says_how_far_outputs_move() -> None:
    model = probe_of("behind a Conv", TABLE["behind a Conv"], good=True).model()
    data = data_of(model)
    found = bnfold.fold(model, requantize=data).requantization
    assert found is not None
    old, new, exact = (run_native(each, data)["y"] for each in
                       (model, bnfold.fold(model, requantize=data).model, plain(model)))  # fmt: skip
    (output,) = found.outputs
    assert (output.name, output.same_class, found.samples, found.compared) == ("y", None, 64, 64)
    told = (output.change, output.rounding_before, output.rounding_after)
    expected = [rms(difference) / rms(exact) for difference in (new - old, old - exact, new - exact)]
    np.testing.assert_allclose(told, expected, rtol=1e-3)
    (pair,) = found.pairs
    values = run_native(shown(model, "c"), data)["c"].astype(np.float64)
    tensors = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    gamma, beta, mean, var = (tensors[f"n_{part}"].reshape(-1, 1, 1) for part in ("gamma", "beta", "mean", "var"))
    gain = gamma / np.sqrt(var + 1e-5)
    noise = gain * (steps(model)["i"].rounded(values) - values)
    assert pair.before.noise == pytest.approx(rms(noise) / rms(gain * (values - mean) + beta), rel=1e-6)


def test_counts_the_samples_that_keep_their_class() -> None:
    text = "x[N,3] -> y | c = Gemm(x, w[3,4], b[4]); " + PAIR.replace("0.1", "0.4") + "n = BN4(d); y = Softmax(n)"
    model = Probe("requantize-classes", "", text, values={"w": np.eye(3, 4), "b": 0.1}).model()
    data = data_of(model, 500)
    result = bnfold.fold(model, requantize=data)
    assert result.requantization is not None
    old, new = (run_native(each, data)["y"].argmax(1) for each in (model, result.model))
    assert 400 < (old == new).sum() < 500
    assert result.requantization.outputs[0].same_class == (old == new).sum()


def test_tally_of_a_pair() -> None:
    """Sums over batches, in the coordinates that the fold stores: v' = s (v + t)."""
    model = probe_of("behind a Conv", TABLE["behind a Conv"], good=True).model()
    (pair,) = find_pairs(wrap(model), Options())
    values = np.random.default_rng(0).normal(3, 12, (40, 4)).astype(np.float32)  # limits: -12 and 13.5
    scale, shift = np.array([1, 2, -3, 0.5]), np.array([0, 1, 10, -2.0])
    tally = Tally()
    for batch in np.split(values, 4):
        tally.add(pair, batch, scale, shift)
    exact = scale * (values.astype(np.float64) + shift)
    cut = scale * (np.clip(values.astype(np.float64), -12, 13.5) - values)
    step = float(np.float32(0.1))
    whole = scale * (np.clip(np.rint(values.astype(np.float64) / step), -120, 135) * step - values)
    assert tally.clipped == pytest.approx(np.square(cut).sum() / np.square(exact - exact.mean()).sum(), rel=1e-5)
    assert tally.noise == pytest.approx(rms(whole) / rms(exact), rel=1e-6)
    assert tally.clipped > 1e-3


@pytest.mark.parametrize("name", ["behind a Conv", "what follows rounds, but not for all", "symmetric", "16 bits"])
def test_pairs_of_the_other_domain(name: str) -> None:
    model = probe_of(name, TABLE[name], good=True).model()
    usual = bnfold.fold(model, requantize=data_of(model))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    for node in model.graph.node:
        node.domain = "com.microsoft" if node.op_type.endswith("uantizeLinear") else ""
    result = bnfold.fold(model, requantize=data_of(model))
    assert left(result.model).total == 0
    assert result.requantization == usual.requantization
    assert {node.domain for node in result.model.graph.node if node.op_type.endswith("uantizeLinear")} == {
        "com.microsoft"
    }


def test_as_few_as_will_do() -> None:
    """Of three pairs near BN that stay, one lets its BN go; the others keep their steps to the bit."""
    text = (
        "x[N,3,5,5] -> y | c = Conv(x, w[4,3,3,3], b[4]); i = QuantizeLinear(c, s[]={0.1}, z:uint8[]={120}); "
        "d = DequantizeLinear(i, s, z); n = BN4(d); r = Sigmoid(n); j = QuantizeLinear(r, t[]={0.01}, z); "
        "e = DequantizeLinear(j, t, z); m = BN4(e); k = QuantizeLinear(m, s, z); f = DequantizeLinear(k, s, z); "
        "y = Sigmoid(f)"
    )  # fmt: skip
    model = Probe("requantize-few", "", text).model()
    result = bnfold.fold(model, requantize=data_of(model))
    assert [entry.name for entry in result.kept] == ["m"]
    assert result.requantization is not None
    assert [pair.name for pair in result.requantization.pairs] == ["i"]
    old, new = steps(model), steps(result.model)
    assert (new["j"], new["k"]) == (old["j"], old["k"])
    assert new["i"] != old["i"]


def test_a_pair_that_has_not_moved_in_the_end_is_scaled() -> None:
    """What a check makes of a fold may leave a pair with one scale for all, which its steps take, and no more."""
    text = "x[N,3,5,5] -> y | c = Conv(x, w[4,3,3,3], b[4]); " + PAIR + "m = Mul(d, f[]={2.5}); y = Sigmoid(m)"
    model = wrap(Probe("requantize-scaled", "", text).model())
    data = open_data(data_of(model.proto), ports(model.proto)[0], batch_size=16)
    pairs = find_pairs(model, Options())
    folding = fold_model(loosened(model, pairs), Options())
    plain_fold = fold_model(model, Options())
    loose = Loosened(loosened(model, pairs), tuple(pairs), {0: Tally()}, (), plain_fold.report)
    done, found = finish(model, folding, loose, data)
    assert (found.pairs, left(to_proto(done.model)).total) == ((), 0)
    assert steps(to_proto(done.model))["i"].step == pytest.approx(0.25)


@each_row
def test_the_model_given_is_not_touched(name: str) -> None:
    model = probe_of(name, TABLE[name], good=True).model()
    nodes = list(model.graph.node)[::-1]  # in an order that bnfold sorts
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    before = model.SerializeToString()
    assert bnfold.fold(model, requantize=data_of(model)).requantization is not None
    assert model.SerializeToString() == before


def test_what_a_pair_had_besides_comes_back() -> None:
    model = probe_of("behind a Conv", TABLE["behind a Conv"], good=True).model()
    for node in model.graph.node:
        node.doc_string = f"what {node.op_type} does"
    model.graph.value_info.extend(onnx.shape_inference.infer_shapes(model).graph.value_info)
    before = model.SerializeToString()
    result = bnfold.fold(model, requantize=data_of(model)).model
    assert model.SerializeToString() == before
    assert [(n.op_type, n.doc_string) for n in result.graph.node if n.op_type.endswith("uantizeLinear")] == [
        (op, f"what {op} does") for op in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert {info.name: info.type.tensor_type.elem_type for info in result.graph.value_info}["i"] == TensorProto.UINT8


def test_a_pair_that_is_skipped_stays() -> None:
    model = probe_of("behind a Conv", TABLE["behind a Conv"], good=True).model()
    result = bnfold.fold(model, requantize=data_of(model), skip="d")
    assert left(result.model).total == 1
    assert result.requantization is None


def test_a_pair_that_stands_for_a_relu_is_told() -> None:
    model = probe_of("behind a Conv", TABLE["behind a Conv"], good=False).model()
    (notice,) = (one for one in bnfold.fold(model, requantize=data_of(model)).notices if "clips" in one)
    assert notice.startswith("'i' clips ")


def test_a_model_that_needs_nothing_is_folded_as_ever() -> None:
    model = onnx.load(SAMPLE)
    result = bnfold.fold(model, requantize=data_of(model))
    assert result.model == bnfold.fold(model).model
    assert any("no rounding had to move" in notice for notice in result.notices)


def test_float16_values() -> None:
    text = TABLE["behind a Conv"].good.replace("={0.1}", "")
    probe = Probe("requantize-float16", "", text, opset=19, dtype="float16", values={"s": 0.1})
    model = probe.model()
    data = {"x": np.random.default_rng(0).standard_normal((64, 3, 5, 5)).astype(np.float16)}
    result = bnfold.fold(model, requantize=data)
    assert left(result.model).total == 0
    assert steps(result.model)["i"].step.dtype == np.float16
    without, after = (run_native(plain(each), data)["y"].astype(np.float64) for each in (model, result.model))
    assert rms(after - without) < 2e-3 * rms(without)


# -- data -------------------------------------------------------------------------------------------


def test_data_that_end_are_asked_for_again() -> None:
    model = probe_of("behind a Conv", TABLE["behind a Conv"], good=True).model()
    samples = list(data_of(model)["x"])
    with pytest.raises(bnfold.CalibrationDataError, match="gone through only once"):
        bnfold.fold(model, requantize=iter(samples))
    assert bnfold.fold(model, requantize=lambda: iter(samples)).requantization is not None


def test_values_that_are_not_finite_are_named() -> None:
    model = probe_of("behind a Conv", TABLE["behind a Conv"], good=True).model()
    data = {"x": np.full((20, 3, 5, 5), 3e38, np.float32)}
    with pytest.raises(bnfold.ModelError, match="value 'c': isn't finite in batch 0"):
        bnfold.fold(model, requantize=data)


# -- histogram --------------------------------------------------------------------------------------

LIKE = [Steps(np.float32(1).reshape(()), np.asarray(zero, kind)) for zero, kind in ((0, np.uint8), (0, np.int8))]


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.lists(st.sampled_from([1e-30, 1e-3, 1.0, 7.0, 1e4, 1e30]), min_size=1, max_size=4),
    st.sampled_from(["normal", "laplace", "positive", "constant", "zeros"]), st.integers(0, 2**32 - 1),
)  # fmt: skip
@pytest.mark.parametrize("like", LIKE, ids=["uint8", "int8"])
def test_best_steps_are_as_good_as_they_say(like: Steps, scales: list[float], kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    draw: dict[str, Any] = {"normal": rng.standard_normal, "laplace": lambda size: rng.laplace(size=size),
                            "positive": lambda size: rng.random(size), "constant": lambda size: np.full(size, -0.7),
                            "zeros": np.zeros}  # fmt: skip
    batches = [(scale * draw[kind](5000)).astype(np.float32) for scale in scales]
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    values = np.concatenate(batches).astype(np.float64)
    assert histogram.counts.sum() == values.size
    found, noise = histogram.best_steps(like)
    if kind == "zeros":
        assert (found, noise) == (like, 0)
        return
    error = rms(found.rounded(values) - values)
    assert 0 < float(found.step) < np.inf
    whole = widest(values, like)
    if kind == "constant":  # few values at all: how they fall between the steps is chance
        assert error <= float(whole.step)
        return
    assert error <= 1.02 * rms(whole.rounded(values) - values) + 1e-12 * rms(values)
    if len(scales) == 1:
        assert error == pytest.approx(noise * rms(values), rel=0.05)


def test_batches_in_any_order_give_the_same_counts() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal(1000) * 2.0**power for power in (-40, 3, 0, 17)]
    counts = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        histogram = Histogram()
        for number in order:
            histogram.add(batches[number])
        counts.append((histogram.limit, histogram.counts.tolist()))
    assert counts[0] == counts[1] == counts[2]


# -- as a user --------------------------------------------------------------------------------------

QDQ = SHARED / "models" / "real" / "cifar-resnet20-qdq.onnx"
CIFAR = SHARED / "data" / "cifar10.npz"


@pytest.fixture
def rounded(tmp_path: Path) -> Path:
    """A folder with a model and data for it."""
    model = probe_of("what follows rounds, but not for all", TABLE["what follows rounds, but not for all"], good=True)
    onnx.save(model.model(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=data_of(model.model(), 128)["x"], classes=np.zeros(128, np.int64))
    return tmp_path


def test_the_account(rounded: Path) -> None:
    told = run("fold", rounded / "m.onnx", "--requantize", f"{rounded}/d.npz:x", "-v").stdout
    lines = {line[:9].strip() or "more": line[9:] for line in told.splitlines()}
    assert lines["BN"] == "1 → 0"
    assert lines["rounding"] == "1 pair moved behind BN: 1 with steps measured on 128 samples"
    assert "the rounding that moved left out; worst" in lines["check"]
    assert lines["more"].startswith("'i'  noise ")
    assert lines["output"].startswith("'y' moved by ")
    assert left(onnx.load(rounded / "m.folded.onnx")).total == 0


def test_a_bn_behind_rounding_is_pointed_to_it(rounded: Path) -> None:
    told = ok("fold", rounded / "m.onnx", "--dry-run")
    assert "1 BN is behind rounded activations: --requantize DATA moves the rounding" in told


def test_json_says_it_all(rounded: Path) -> None:
    told = json.loads(ok("fold", rounded / "m.onnx", "--requantize", f"{rounded}/d.npz:x", "--samples", 32, "--json"))
    assert told["data"] == f"{rounded}/d.npz:x"
    found = told["requantization"]
    assert (found["samples"], found["compared"]) == (32, 32)
    (pair,) = found["pairs"]
    assert (pair["name"], pair["value"], pair["before"]["zero_point"]) == ("i", "c", 120)
    assert json.loads(ok("fold", rounded / "m.onnx", "--dry-run", "--json"))["requantization"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", 3], "--samples is of --requantize; give that, too"),
        (["--labels", "y", "--mean", "0.5"], "--labels and --mean are of --requantize; give that, too"),
        (["--requantize", "none.npz"], "none.npz: there is no such file or folder"),
        (["--requantize", "d.npz:z"], "d.npz: has no array 'z'; it has 'x', 'classes'"),
        (["--requantize", "d.npz:x", "-o", "d.npz", "--force"], "d.npz: is an input of this very command"),
        (["--requantize", "d.npz:x", "--jobs", 2], "several models and --requantize contradict each other"),
        (["--requantize", "m.onnx"], "m.onnx: "),
    ],
)
def test_bad_input(rounded: Path, options: list[Any], message: str) -> None:
    before = files(rounded)
    refused(run("fold", "m.onnx", *options, cwd=rounded), message)
    assert files(rounded) == before


@pytest.mark.skipif(not (QDQ.exists() and CIFAR.exists()), reason=NO_SHARED.kwargs["reason"])
def test_resnet20_with_all_values_rounded(tmp_path: Path) -> None:
    """19 BN go, the answers stay, and what remains is nearer to the network without rounding."""
    with np.load(CIFAR) as data:
        mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        images = {part: ((data[f"{part}_x"][:512] / 255 - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)
                  for part in ("calib", "test")}  # fmt: skip
        labels = data["test_y"][:512]
    result = bnfold.fold(QDQ, requantize=images["calib"][:128])
    assert (left(onnx.load(QDQ)).bn, left(result.model).total) == (19, 0)
    found = result.requantization
    assert found is not None
    assert (len(found.pairs), len(found.gone)) == (19, 10)
    (output,) = found.outputs
    assert output.rounding_after < 0.8 * output.rounding_before
    right = [int((run_native(model, {"input": images["test"]})["logits"].argmax(1) == labels).sum())
             for model in (onnx.load(QDQ), result.model)]  # fmt: skip
    assert abs(right[1] - right[0]) <= 5
