"""The parts of a verdict, each alone: ratios, pairs, windows, signatures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import REPO
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto
from onnx.parser import parse_model

from bnfold.model_file import load
from bnfold.verify import pairing, sides
from bnfold.verify.criterion import LESS_EXACT, Tally, regressed, unlike
from bnfold.verify.examine import Batches, examine
from bnfold.verify.inputs import drawn
from bnfold.verify.large import Model, parted
from bnfold.verify.pairing import CANDIDATES, LAYOUTS, NEAR, Pair, pair_coordinates, pair_values, sketch
from bnfold.verify.prepare import moved, prepare, weights
from bnfold.verify.runtime import CUT, Runner, cut_model
from bnfold.verify.sides import Side
from bnfold.verify.signature import compare_signatures, pinned

MODEL = REPO / "sample_models" / "digits_cnn.onnx"


def values(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape)


# -- ratios -----------------------------------------------------------------------------------------


def test_the_ratio_counts_in_units_of_noise() -> None:
    exact = values(8, 4, 16)
    noise = [exact * (1 + 1e-6 * np.sign(values(8, 4, 16, seed=seed))) for seed in range(3)]
    found = exact.copy()
    found[:, 2] *= 1 + 1e-5
    tally = Tally(2.0**-24)
    tally.add(exact, found, noise)
    reading = tally.reading()
    assert reading.r == pytest.approx(10, rel=0.01)
    assert (reading.axis, reading.channels, reading.bad, reading.count) == (1, (2,), 1, 4)


@pytest.mark.parametrize(("theirs", "r"), [(0.0, 10), (2e-6, 5), (1e-4, 10 / LESS_EXACT)])
def test_noise_of_b_counts_up_to_a_limit(theirs: float, r: float) -> None:
    exact, sign = values(8, 4, 16), np.sign(values(8, 4, 16, seed=1))
    tally = Tally(2.0**-24, seeds=1)
    found = exact * (1 + 1e-5)
    tally.add(exact, found, [exact * (1 + 1e-6 * sign)])
    tally.add_noise(found, found * (1 + theirs * sign), of_b=True)
    assert tally.reading().r == pytest.approx(r, rel=0.01)


def test_batches_add_up() -> None:
    exact, found = values(8, 4), values(8, 4) * (1 + 1e-6)
    whole, parts = Tally(2.0**-24, seeds=0), Tally(2.0**-24, seeds=0)
    whole.add(exact, found, [])
    for start in (0, 4):
        parts.add(exact[start : start + 4], found[start : start + 4], [])
    assert parts.reading().r == pytest.approx(whole.reading().r)


@pytest.mark.parametrize(
    ("exact", "found", "phrase"),
    [
        ([1.0, np.nan], [1.0, np.nan], ""),
        ([1.0, np.inf, -np.inf], [1.0, np.inf, -np.inf], ""),
        ([1.0, 2.0], [1.0, np.nan], "has NaN in 1 places, A in 0"),
        ([np.inf, 1.0], [-np.inf, 1.0], "has +Inf in 0 places, A in 1"),
        ([np.inf, 1.0], [1.0, np.inf], "has +Inf in other places"),
        ([1.0], [1.0, 2.0], "has shape [2] instead of [1]"),
    ],
)
def test_what_no_number_measures(exact: list[float], found: list[float], phrase: str) -> None:
    assert unlike(np.array(exact), np.array(found)) == phrase


def test_other_coordinates_are_found_by_half_of_the_samples() -> None:
    exact = values(6, 3, 5)
    slope, intercept = np.array([2.0, -1.0, 0.5]).reshape(1, 3, 1), np.array([0.0, 3.0, 1.0]).reshape(1, 3, 1)
    found = regressed(exact, slope * exact + intercept)
    assert np.allclose(found[0], slope) and np.allclose(found[1], intercept)


def test_weights_move_by_one_unit_and_settings_do_not() -> None:
    model = parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] w = {1, 2, 0, -4}, float low = {0}, float two = {2}>
        { a = MatMul (x, w)  b = Pow (a, two)  y = Max (b, low) }"""
    )
    found = weights(parted(model))
    assert set(found) == {"w"}
    changed = moved("w", found["w"], 0)
    original = np.array([[1, 2], [0, -4]], np.float32)
    assert changed.dtype == np.float32 and changed[1, 0] == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.abs(changed - original) / np.spacing(np.abs(original))
    assert set(steps[original != 0].tolist()) <= {0.5, 1.0}  # below a power of 2 units are half as large


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_numbers_at_the_ends_of_a_type_stay_numbers(kind: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    info = ml_dtypes.finfo(dtype)
    ends = np.array([0, -0.0, np.inf, -np.inf, np.nan, float(info.max), -float(info.max)], dtype)
    weight = np.concatenate([ends, np.full(9, 3, dtype)])
    for seed in range(4):
        changed = moved("w", weight, seed)
        same = changed.view(f"u{dtype.itemsize}") == weight.view(f"u{dtype.itemsize}")
        assert same[:5].all() and np.isfinite(changed[5:].astype(float)).all()
        steps = np.abs(changed[7:].astype(float) - 3) / (float(info.eps) * 2)
        assert (steps == 1).all()


# -- pairs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", sorted(LAYOUTS))
def test_layouts_go_there_and_back(rank: int) -> None:
    value = values(*range(2, 2 + rank))
    for layout in LAYOUTS[rank]:
        other = value.transpose(np.argsort(layout))
        pair = Pair("a", "b", layout)
        assert np.array_equal(pair.as_a(other, value.shape), value)
        assert np.array_equal(pair.as_b(value, other.shape), other)


def test_values_are_paired_whatever_their_names_and_layouts() -> None:
    first, second = values(2, 3, 4, 5), values(2, 3, 4, 5, seed=1)
    a = {"x": sketch(first, False), "y": sketch(second, False)}
    b = {"y": sketch(first.transpose(0, 2, 3, 1), True), "x": sketch(second + 1e-6, True)}
    assert {(pair.a, pair.b) for pair in pair_values(a, b, (), NEAR)} == {("x", "y"), ("y", "x")}


def test_names_tell_equal_values_apart() -> None:
    same = values(2, 3)
    a = {name: sketch(same, False) for name in "xyz"}
    b = {name: sketch(same, True) for name in "zyx"}
    assert all(pair.a == pair.b for pair in pair_values(a, b, (), NEAR))


def test_values_in_other_coordinates_are_candidates() -> None:
    value = values(4, 3, 8, 8)
    other = value * np.array([2.0, -3.0, 0.5]).reshape(1, 3, 1, 1) + 7
    a, b = {"x": sketch(value, False)}, {"v": sketch(other, True), "w": sketch(values(4, 3, 8, 8, seed=5), True)}
    assert pair_coordinates(a, b, []) == [Pair("x", "v", (), "coordinates")]


# -- windows ----------------------------------------------------------------------------------------


def side(path: Path) -> tuple[Side, dict[str, Any]]:
    proto = prepare(load(path))
    feeds = drawn(proto, 0).batches[0]
    return Side(proto, feeds), feeds


def test_windows_give_what_one_run_gives() -> None:
    model, feeds = side(MODEL)
    double = model.double_feeds(feeds)
    whole = next(model.walk(model.floats, double))
    windows = list(model.walk(model.floats, double, held=5000))
    assert len(windows) > 5
    found = {name: value for window in windows for name, value in window.items()}
    assert found.keys() == whole.keys()
    assert all(np.allclose(found[name], whole[name], rtol=1e-13, atol=1e-13) for name in whole)


def test_a_verdict_in_windows_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.verify import examine as module
    from bnfold.verify.segments import Segments

    model, feeds = side(MODEL)
    batches = Batches([feeds], {name: name for name in feeds})
    outputs = {name: name for name in ("logits",) if name in model.floats}
    whole = examine(model, model, outputs, batches, 0)
    monkeypatch.setattr(module, "HELD", 5000)
    monkeypatch.setattr(Segments.run, "__defaults__", (None, 5000))
    parts = examine(model, model, outputs, batches, 0)
    assert [segment.pair for segment, _ in parts.segments] == [segment.pair for segment, _ in whole.segments]
    assert parts.worst == pytest.approx(whole.worst, abs=1e-3)


def test_windows_of_few_values_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model is computed and measured part by part, however little memory that takes."""
    model, feeds = side(MODEL)
    batches, outputs = Batches([feeds], {name: name for name in feeds}), {"logits": "logits"}
    whole = examine(model, model, outputs, batches, 0)
    assert len(model.windows(model.floats)) == 1
    monkeypatch.setattr(sides, "MOST_VALUES", 4)
    assert max(map(len, model.windows(model.floats))) == 4
    parts = examine(model, model, outputs, batches, 0)
    assert [segment.pair for segment, _ in parts.segments] == [segment.pair for segment, _ in whole.segments]
    assert parts.worst == pytest.approx(whole.worst, abs=1e-3)


def test_a_cut_leaves_a_bodys_own_values_alone() -> None:
    """The branches call a value of their own as the main graph calls what the If makes, which is cut."""
    proto = parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[3] x, bool yes) => (float[3] z) {
            c = Relu (x)
            y = If (yes) <
                then_branch = t () => (float[3] r) { y = Exp (c)  r = Neg (y) },
                else_branch = e () => (float[3] y) { y = Add (c, c) }
            >
            z = If (yes) <
                then_branch = a () => (float[3] s) { s = Exp (y) },
                else_branch = b () => (float[3] s) { s = Add (y, c) }
            >
        }""")
    whole = Model(proto, {})
    part = cut_model(whole, {"y": 1}, ["y", "z"], (), {"y": [3]})
    for yes in (True, False):
        feeds = {"x": np.array([1, -2, 3], np.float32), "yes": np.array(yes)}
        expected = Runner(whole, ["y", "z"]).run(feeds)
        found = Runner(part, ["y", "z"]).run(feeds | {f"{CUT}y": expected["y"]})
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        assert not np.array_equal(Runner(part, ["z"]).run(feeds | {f"{CUT}y": expected["y"] + 1})["z"], expected["z"])


@given(st.lists(st.integers(0, 6), max_size=40))
def test_the_smallest_are_those_of_a_stable_sort(numbers: list[int]) -> None:
    values = np.array(numbers, np.float64)
    expected = np.argsort(values, kind="stable")[:CANDIDATES]
    assert pairing._smallest(values)[:CANDIDATES].tolist() == expected.tolist()


# -- signatures -------------------------------------------------------------------------------------


def model_of(signature: str) -> ModelProto:
    return parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {signature} {{ y = Identity (x) }}')


@pytest.mark.parametrize(
    ("a", "b", "differences", "notes"),
    [
        ("(float[N, 3] x) => (float[N, 3] y)", "(float[N, 3] x) => (float[N, 3] y)", 0, 0),
        ("(float[N, 3] x) => (float[N, 3] y)", "(float[2, 3] x) => (float[2, 3] y)", 0, 2),
        ("(float[N, 3] x) => (float[N, 3] y)", "(float16[N, 3] x) => (float16[N, 3] y)", 2, 0),
        ("(float[N, 3] x) => (float[N, 3] y)", "(float[N, 4] x) => (float[N, 4] y)", 2, 0),
        ("(float[N, 3] x) => (float[N, 3] y)", "(float[N, 3] x, float[1] z) => (float[N, 3] y)", 1, 0),
        ("(float[N, 3] x, float[1] z) => (float[N, 3] y)", "(float[N, 3] x) => (float[N, 3] y)", 1, 0),
    ],
)
def test_signatures(a: str, b: str, differences: int, notes: int) -> None:
    found = compare_signatures(model_of(a), model_of(b))
    assert (len(found.differences), len(found.notes)) == (differences, notes)


def test_sizes_that_one_model_fixes_are_used_for_both() -> None:
    a, b = model_of("(float[N, 3] x) => (float[N, 3] y)"), model_of("(float[7, 3] x) => (float[7, 3] y)")
    (batch,) = drawn(pinned(a, compare_signatures(a, b)), 0).batches
    assert batch["x"].shape == (7, 3)
