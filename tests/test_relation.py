"""The relation check: what it finds, and what it doesn't take for a fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from probe_text import Probe

import bnfold
from bnfold.fold import Options, fold_model
from bnfold.model_file import load, to_proto, wrap
from bnfold.verify import relation

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"


def checked(name: str, edit: Callable[[ModelProto], None] = lambda _: None) -> relation.RelationCheck:
    """Fold a sample, edit the result, check it."""
    original = load(SAMPLES / name)
    folding = fold_model(original, Options())
    folded = to_proto(folding.model)
    edit(folded)
    return relation.check(original, wrap(folded), folding.plans[0])


def new_tensor(model: ModelProto, rank: int) -> TensorProto:
    """The first initializer of this rank that the fold made (a weight or a bias)."""
    return next(t for t in model.graph.initializer if len(t.dims) == rank and t.data_type == TensorProto.FLOAT)


def scaled(rank: int, factor: float) -> Callable[[ModelProto], None]:
    """Multiply one output channel of a weight, or one element of a bias."""

    def edit(model: ModelProto) -> None:
        tensor = new_tensor(model, rank)
        array = numpy_helper.to_array(tensor).copy()
        array[int(np.abs(array.reshape(len(array), -1)).max(axis=1).argmax())] *= factor
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return edit


def upside_down(model: ModelProto) -> None:
    """Another op."""
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "Neg"


@pytest.mark.parametrize("name", ["digits_cnn.onnx", "digits_mobile.onnx", "digits_preact.onnx", "tabular_mlp.onnx"])
def test_right_folds_pass(name: str) -> None:
    found = checked(name)
    assert found.passed
    assert found.values > 3
    assert 0 < found.worst < relation.LIMIT


@pytest.mark.parametrize("name", ["digits_cnn.onnx", "digits_preact.onnx"])
@pytest.mark.parametrize(
    "edit",
    [scaled(4, 1.001), scaled(4, float("nan")), scaled(1, 1.01), upside_down],
    ids=["weight", "nan", "bias", "op"],
)
def test_faults_are_found(name: str, edit: Callable[[ModelProto], None]) -> None:
    assert not checked(name, edit).passed


def test_noise_that_is_small_by_chance_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first seeds answer next to nothing, as happens in a channel of few values, more decide."""
    moved = relation.moved
    few = relation.SEEDS
    monkeypatch.setattr(relation, "moved", lambda model, seed, *more: moved(model, seed) if seed >= few else model)
    monkeypatch.setattr(relation, "own_errors", lambda *_: {})
    assert checked("digits_preact.onnx").passed
    monkeypatch.setattr(relation, "MORE_SEEDS", relation.SEEDS)
    assert not checked("digits_preact.onnx").passed


def test_the_sum_of_equal_numbers() -> None:
    """A dead channel's pool adds one number 4096 times: the original is wrong in 50 last places, the fold in none."""
    probe = Probe(
        "dead-into-pool", "",
        "x[N,3,H,W] -> y | h = BN3(x); p = GlobalAveragePool(h); y = Conv<group=3>(p, w[3,1,1,1])",
        values={"h_gamma": [0.6, 0.0, 1.0], "h_beta": -0.79897404, "h_mean": 0.1, "w": 0.4},
    )  # fmt: skip
    result = bnfold.fold(probe.model())
    assert not result.kept
    assert not result.notices


def test_values_far_below_their_statistics_are_not_shifted() -> None:
    """BN says that the stream has variance 1, but it is tiny: a shift of 1 on it would cost others all digits."""
    probe = Probe(
        "tiny-stream", "",
        "x[N,3,6,6] -> y, s | h = Conv(x, w[4,3,1,1]); a = BN4+(h); r = Relu(a); "
        "p = Conv<pads=[1,1,1,1]>(r, v[4,4,3,3]); q = Mul(p, c[]); "
        "s = Add(q, h); d = BN4+(s); e = Relu(d); y = Conv(e, u[2,4,1,1])", 2,
        values={"w": 1e-6, "c": 1e-6, "a_mean": 0.0, "a_var": 1.0, "d_mean": 0.0, "d_var": 1.0},
    )  # fmt: skip
    quick = bnfold.fold(probe.model(), verify=False, kept="reduce")
    assert not quick.kept
    result = bnfold.fold(probe.model(), kept="reduce")
    assert [entry.reason for entry in result.kept] == ["precision"]
    assert result.verification.relation is not None and result.verification.relation.passed
    assert ["lost digits at first" in notice for notice in result.notices] == [True]


def test_what_is_too_large_to_be_loaded_by_default_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relation, "MAX_WEIGHTS", 1000)
    verification = bnfold.fold(SAMPLES / "tabular_mlp.onnx").verification
    assert verification.relation is None
    assert "`bnfold verify` compares on demand" in verification.skipped
