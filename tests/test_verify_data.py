"""Data files and large models: what is read of them, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.parser import parse_model

import bnfold
from bnfold.model_file import load, wrap
from bnfold.verify.data import CHUNK, from_file
from bnfold.verify.inputs import drawn
from bnfold.verify.large import LARGE, parted
from bnfold.verify.prepare import prepare, weights
from bnfold.verify.runtime import Runner


def model_of(rows: object = "N", kind: str = "float") -> ModelProto:
    return parse_model(
        f"""<ir_version: 10, opset_import: ["": 22]> g ({kind}[{rows}, 3] x) => ({kind}[{rows}, 3] y)
        {{ y = Identity (x) }}"""
    )


def numbered(count: int) -> np.ndarray[Any, Any]:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_row_is_used(tmp_path: Path, save: Any, order: Any) -> None:
    rows = numbered(2 * CHUNK + 3)
    save(tmp_path / "d.npz", x=np.asarray(rows, order=order))
    batches = from_file(model_of(), tmp_path / "d.npz").batches
    assert [batch["x"].shape for batch in batches] == [(CHUNK, 3)] * 3
    assert {tuple(row) for batch in batches for row in batch["x"]} == {tuple(row) for row in rows}
    assert np.array_equal(batches[0]["x"], rows[:CHUNK])  # backwards, too
    assert np.array_equal(batches[-1]["x"], rows[-CHUNK:])


def test_a_fixed_batch_reaches_back(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=numbered(5))
    batches = from_file(model_of(2), tmp_path / "d.npz").batches
    assert [batch["x"][:, 0].tolist() for batch in batches] == [[0, 3], [6, 9], [9, 12]]
    with pytest.raises(bnfold.UsageError, match="has 5 samples; the model takes 8 at a time"):
        from_file(model_of(8), tmp_path / "d.npz")


def test_an_array_of_another_name_will_do_if_there_is_one_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=numbered(4))
    assert list(from_file(model_of(), tmp_path / "d.npz").batches[0]) == ["x"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.float32(1)}, "is one number"),
        ({"x": numbered(4).astype(float)}, "is float64; the input is float32"),
        ({"x": numbered(4)[:, :2]}, r"is \[4, 2\]; the input is \[N, 3\]"),
        ({"x": numbered(0)}, "have no, or not the same number of, samples"),
        ({"x": np.array([None])}, "no .npz file of plain arrays"),
        ({}, "its arrays are none"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(bnfold.UsageError, match=message):
        from_file(model_of(), tmp_path / "d.npz")


def test_a_damaged_row_is_told_when_it_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=numbered(4000))
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "d.npz").write_bytes(content)
    batches = from_file(model_of(), tmp_path / "d.npz").batches
    with pytest.raises(bnfold.UsageError, match="a damaged one"):
        list(batches)


def test_random_bfloat16_is_normal_and_uniform() -> None:
    samples = drawn(model_of(32, "bfloat16"), 0)
    (batch,) = samples.batches
    assert bnfold.verify(model_of(32, "bfloat16"), model_of(32, "bfloat16")).verdict == "equal"
    assert samples.sentence.startswith("normal and uniform")
    assert (batch["x"][:16] < 0).any() and (batch["x"][16:] >= 0).all()


# -- large models -----------------------------------------------------------------------------------


def test_large_weights_go_beside_the_model() -> None:
    width = 256
    model = parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, {width}] x) => (float[N, {width}] y)
        {{ y = MatMul (x, w) }}"""
    )
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    for name in ("w", "unused"):
        model.graph.initializer.append(
            TensorProto(name=name, data_type=1, dims=weight.shape, raw_data=weight.tobytes())
        )
    light = parted(model)
    assert list(light.beside) == ["w"]
    assert light.proto.ByteSize() < LARGE < model.ByteSize()
    x = np.ones((2, width), np.float32)
    for optimized in (False, True):  # as an input, as an initializer
        runner = Runner(light, optimized=optimized)
        assert runner.inputs == ["x"]
        assert np.allclose(runner.run({"x": x})["y"], x @ weight, atol=1e-4)
    assert bnfold.verify(model, model).verdict == "equal"


@pytest.mark.parametrize("width", [4, 256])
def test_a_weight_may_be_an_output(width: int) -> None:
    size = f"float[{width}, {width}]"
    model = parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, {width}] x) => (float[N, {width}] y, {size} w)
        {{ two = Constant <value_float = 2.0> ()  h = MatMul (x, w)  y = Mul (h, two) }}"""
    )
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    found = bnfold.verify(model, model)
    assert found.verdict == "equal", found.reason


def test_weights_in_a_data_file_stay_there(tmp_path: Path) -> None:
    path = saved_with_data_file(tmp_path)
    model = prepare(load(path))
    assert not model.beside["w"].flags.owndata
    assert np.shares_memory(model.beside["w"], weights(model)["w"])


def test_models_over_two_gib_are_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No protobuf holds them; their weights never enter one."""
    path = saved_with_data_file(tmp_path)
    other = onnx.load(path)
    content = numpy_helper.to_array(other.graph.initializer[0]).copy()
    content[3] *= 1.001
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(content, "w"))
    monkeypatch.setattr("bnfold.model_file.MAX_FILE_SIZE", 20_000)
    assert bnfold.verify(path, path).verdict == "equal"
    assert bnfold.verify(path, other).verdict == "different"
    found = bnfold.verify(path, optimized=True)  # the optimiser needs it whole
    assert (found.verdict, found.exit_code()) == ("cannot tell", 3)
    assert "is larger than 2 GiB" in found.reason


def saved_with_data_file(folder: Path) -> Path:
    """A Gemm whose weight is in a file of its own, at an aligned place."""
    model = parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 256] x) => (float[N, 256] y) { y = MatMul (x, w) }"""
    )
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    path = folder / "large.onnx"
    onnx.save(model, path, save_as_external_data=True, location="large.data")
    return path


def test_constants_in_float16_are_rounded_at_each_step() -> None:
    """ONNX Runtime's CPU keeps float32 between float16 nodes; other devices don't, nor does the standard."""
    model = parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float16[N, 1] x) => (float16[N, 1] y)
        <float small = {1e-8}, float16[1] zero = {0}>
        { e = Cast <to = 10> (small)  v = Add (zero, e)  s = Sqrt (v)  r = Reciprocal (s)  y = Mul (x, r) }"""
    )
    (tensor,) = (t for t in prepare(wrap(model)).graph.initializer if t.name == "r")
    assert np.isposinf(numpy_helper.to_array(tensor)).all()
