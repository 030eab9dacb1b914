"""BN that can't go whole: kept, reduced, or written as Mul and Add; what the default does, and where."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from command import bnfold as command
from command import ok, refused
from onnx import ModelProto
from oracle import assert_same_function
from probe_text import Probe
from probes import as_function
from test_merge import folded
from test_static_proof import moved_by, spoil

import bnfold
from bnfold.errors import NotEquivalentError, UsageError
from bnfold.fold import Options, fold_model
from bnfold.model_file import wrap
from bnfold.verify.static import prove


def ops(model: ModelProto) -> list[str]:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return [node.op_type for node in nodes if node.op_type not in ("Constant", "Block")]


# -- written out: `affine` ------------------------------------------------------------------------------------

# A BN of both signs between two Relus goes in no part; it becomes a Mul and an Add, whatever its surroundings.
TWO = "r = Relu(x); n = BN4(r); y = Relu(n)"
SHAPES = {"2": "x[N,4]", "3": "x[N,4,5]", "4": "x[N,4,5,3]", "5": "x[N,4,2,3,2]", "4-one": "x[N,4,1,1]"}
TYPES = {"float": 17, "float16": 17, "double": 17, "bfloat16": 22}

AFFINE = [
    *(Probe(f"rank-{rank}", "", f"{shape} -> y | {TWO}") for rank, shape in SHAPES.items()),
    *(Probe(f"type-{dtype}", "", f"x[N,4,5] -> y | {TWO}", dtype=dtype, opset=opset) for dtype, opset in TYPES.items()),
    *(Probe(f"opset-{opset}", "", f"x[N,4,5,3] -> y | {TWO}", opset=opset) for opset in (7, 8, 9, 13, 14, 15, 21)),
    Probe("per-pixel", "", "x[N,4,3,2] -> y | r = Relu(x);"
          "n = BatchNormalization<spatial=0>(r, g[4,3,2], b[4,3,2], m[4,3,2], v_var[4,3,2]); y = Relu(n)", opset=8),
    Probe("one-channel", "", "x[N,1,5,3] -> y | r = Relu(x); n = BN1(r); y = Relu(n)", values={"n_gamma": -1.5}),
    Probe("mixed-precision", "", "x[N,4,5] -> y | r = Relu(x); n = BatchNormalization"
          "(r, n_gamma:float[4], b:float[4], m:float[4], v_var:float[4]); y = Relu(n)", dtype="float16"),
    Probe("dead-channels", "", f"x[N,4,5,3] -> y | {TWO}", values={"n_gamma": [1.0, 0.0, -0.5, 0.0]}),
    Probe("output-too", "", "x[N,4,5,3] -> y, n | r = Relu(x); n = BN4(r); y = Relu(n)"),
    Probe("input", "", "x[N,4,5,3] -> y | n = BN4(x); y = Relu(n)"),
    Probe("two-readers", "", "x[N,4,5,3] -> y | r = Relu(x); n = BN4(r); s = Sigmoid(n); y = Mul(n, s)"),
    Probe("neighbours-moved", "", "x[N,3,5,3] -> y | c = Conv(x, w[4,3,1,1]); r = Relu(c); n = BN4(r); s = Relu(n);"
          "k = BN4+(s); y = Conv(k, v[2,4,1,1])"),
    Probe("in-a-function", "", f"x[N,3,5,3] -> y | x4 = Conv(x, w[4,3,1,1]); {TWO}".replace("(x)", "(x4)"),
          edit=as_function),
]  # fmt: skip


@pytest.mark.parametrize("probe", AFFINE, ids=lambda probe: probe.name)
def test_written_out(probe: Probe) -> None:
    model = probe.model()
    result, report = folded(model, kept="affine")
    left = ops(result)
    assert "BatchNormalization" not in left and left.count("Mul") - ops(model).count("Mul") == 1
    assert left.count("Add") == 1
    # A BN may have parameters of more digits than its input; a Mul has none, and its result has no more.
    assert_same_function(model, result, probe.batches(), 2.0**13 if probe.name == "mixed-precision" else 1.0)
    assert not report.kept and (report.after.batch_norms, report.after.arithmetic) == (0, 2)
    (entry,) = [entry for entry in report.entries if entry.outcome == "reduced"]
    assert entry.sentence.startswith("written as a Mul and an Add: ")
    assert report.nodes_after == sum(len(graph.node) for graph in (result.graph, *result.functions))
    assert folded(result, kept="affine")[0] == result


CHAINS = {  # what a chain with a BN becomes
    "BN and Mul": ("n = BN4(r); m = Mul(n, k[1,4,1,1]); y = Relu(m)", ["Mul", "Add"]),
    "two BN": ("m = BN4(r); n = BN4(m); y = Relu(n)", ["Mul", "Add"]),
    "Mul, BN, Add": ("a = Mul(r, k[1,4,1,1]); n = BN4(a); m = Add(n, b[1,4,1,1]); y = Relu(m)", ["Mul", "Add"]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chain_written_out(name: str) -> None:
    text, expected = CHAINS[name]
    probe = Probe(f"affine-{name}", "", f"x[N,4,5,3] -> y | r = Relu(x); {text}")
    result, report = folded(probe.model(), kept="affine")
    assert ops(result) == ["Relu", *expected, "Relu"]
    assert_same_function(probe.model(), result, probe.batches())
    assert report.after.arithmetic == 2 and not report.kept


STAY = {  # BN that no constants say: code, and the text
    "training-mode": ("x[N,4,5] -> y | y, a, b = BN4<training_mode=1>(x)", "training-mode", {}),
    "dynamic": ("x[N,4,5] g[4] -> y | y = BatchNormalization(x, g, b[4], m[4], v_var[4])", "dynamic-parameters", {}),
    # 300 / sqrt(1e-6) is no float16; a BN may compute with more
    "too-large": (f"x[N,4,5] -> y | {TWO}", "mul-add-range", {"n_var": 1e-6, "n_gamma": [300, -300, 300, -300]}),
}


@pytest.mark.parametrize("name", STAY)
def test_stays(name: str) -> None:
    text, code, values = STAY[name]
    dtype = "float16" if values else "float"
    text = text.replace("BN4(r)", "BN4<epsilon=1e-12>(r)")
    model = Probe(f"affine-stays-{name}", "", text, values=values, dtype=dtype).model()
    result, report = folded(model, kept="affine")
    assert result == model
    assert [entry.reason for entry in report.kept] == [code]


@pytest.mark.parametrize("role", ["Mul", "Add"])
def test_the_static_proof_sees_a_wrong_constant(role: str) -> None:
    original = wrap(Probe("affine-proof", "", f"x[N,4,5,3] -> y | {TWO}").model())
    folding = fold_model(original, Options(kept="affine"))
    assert prove(folding.rewrite, folding.model.weights).worst_ulp <= 0.5
    spoil(folding, role, 0, moved_by(3))
    with pytest.raises(NotEquivalentError, match="units in the last place"):
        prove(folding.rewrite, folding.model.weights)


def test_written_out_before_opset_7() -> None:
    """There attributes say which axis a constant lies along."""
    probe = Probe("affine-opset-6", "", f"x[2,4,5,3] -> y | {TWO}".replace("BN4", "BN4<is_test=1>"), opset=6)
    model = probe.model()
    result, _ = folded(model, kept="affine")
    assert ops(result) == ["Relu", "Mul", "Add", "Relu"]
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in result.graph.node[1:3]:
        assert {attribute.name: attribute.i for attribute in node.attribute} == {"axis": 1, "broadcast": 1}
        del node.attribute[:]
        constants[node.input[1]].dims.extend([1, 1])  # what that says, as opset 7 says it
    del model.graph.node[1].attribute[:]  # is_test
    for one in (model, result):
        one.opset_import[0].version = 7
    assert_same_function(model, result, probe.batches())


def test_what_was_left_out_stays() -> None:
    model = Probe("affine-skip", "", f"x[N,4,5,3] -> y | {TWO}").model()
    model.graph.node[1].name = "norm"
    assert folded(model, kept="affine", skip=("norm",))[0] == model


# -- the default ------------------------------------------------------------------------------------------------

PADDED = "n = BN4+(r); y = Conv<pads=[1,1,1,1]>(n, w[4,4,3,3])"
CONV = "c = Conv(x, v[4,4,1,1]); "
NORM = "BatchNormalization"
# What stands where only the scale can go: a BN in the blocked layout of ONNX Runtime's Convs, an Add elsewhere.
PLACES = {
    "between Convs": (f"x[N,4,6,6] -> y | {CONV}r = Relu(c); {PADDED}", NORM),
    "behind a pool": (f"x[N,4,7,7] -> y | {CONV}s = Relu(c); r = MaxPool<kernel_shape=[2,2]>(s); {PADDED}", NORM),
    "behind a sum": (f"x[N,4,6,6] -> y | {CONV}s = Add(c, x); r = Relu(s); {PADDED}", NORM),
    "at the input": (f"x[N,4,6,6] -> y | r = Relu(x); {PADDED}", "Add"),
    "behind a Transpose": (f"x[N,4,6,6] -> y | {CONV}s = Relu(c); r = Transpose<perm=[0,1,3,2]>(s); {PADDED}", "Add"),
    "1-D": (f"x[N,4,6] -> y | c = Conv(x, v[4,4,1]); r = Relu(c); {PADDED}"
            .replace("pads=[1,1,1,1]", "pads=[1,1]").replace("w[4,4,3,3]", "w[4,4,3]"), "Add"),
    "3-D": (f"x[N,4,3,3,3] -> y | c = Conv(x, v[4,4,1,1,1]); r = Relu(c); {PADDED}"
            .replace("pads=[", "pads=[1,1,").replace("w[4,4,", "w[4,4,3,"), "Add"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_default(name: str) -> None:
    text, expected = PLACES[name]
    probe = Probe(f"kept-{name}", "", text)
    model = probe.model()
    for kept, op in (("auto", expected), ("reduce", "Add"), ("keep", "BatchNormalization")):
        result, report = folded(model, kept=kept)
        assert ops(result)[-2:] == [op, "Conv"]
        assert report.after.per_channel_ops == 1
        assert_same_function(model, result, probe.batches())


def test_default_says_what_else_could_be_done() -> None:
    model = Probe("kept-says", "", PLACES["between Convs"][0]).model()
    (entry,) = folded(model)[1].kept
    assert "; its scale alone could go (--kept reduce), but ONNX Runtime is slower with the Add" in entry.sentence
    (entry,) = folded(model, kept="keep")[1].kept
    assert "--kept" not in entry.sentence
    assert folded(model, kept="keep")[0] == folded(model)[0] == model


def test_what_stays_leaves_no_trace_in_the_solver() -> None:
    """A BN that is kept though its scale could go doesn't tie its neighbours' scales: the next BN has its choice."""
    text = f"x[N,4,6,6] -> y, z | {CONV}r = Relu(c); {PADDED}; k = BN4+(r); z = Conv(k, u[2,4,1,1])"
    probe = Probe("kept-trace", "", text)
    result, report = folded(probe.model())
    assert ops(result).count("BatchNormalization") == 1 and [entry.name for entry in report.folded] == ["k"]
    assert_same_function(probe.model(), result, probe.batches())


def test_command(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(Probe("kept", "", PLACES["between Convs"][0]).model(), path)
    dry = ("fold", path, "--dry-run", "--no-verify")
    assert "\nBN       1 → 1\n" in ok(*dry)
    assert "\nBN       1 → 1\n" in ok(*dry, "--kept", "keep")
    assert "\nBN       1 → 0, 1 of them to Add or Mul\n" in ok(*dry, "--kept", "reduce")
    onnx.save(Probe("kept", "", f"x[N,4,5,3] -> y | {TWO}").model(), path)
    assert "\nBN       1 → 0, 1 of them to Add or Mul\nops      1 → 2 " in ok("fold", path, "--kept", "affine")
    words = "'auto', 'reduce', 'keep' or 'affine'"
    refused(command("fold", path, "--kept", "none"), f"--kept is {words}, not 'none'")
    with pytest.raises(UsageError, match=f"kept is {words}, not 'all'"):
        bnfold.fold(path, kept="all")  # type: ignore[arg-type]
