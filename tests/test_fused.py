"""Constants of a written-out activation stay with it, so that a runtime knows it again."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import ModelProto
from oracle import assert_same_function
from probe_text import Probe
from test_merge import folded

CONV = "h = Conv(x, w[4,3,1,1], b[4]); "
BEHIND = "y = Conv(g, v[4,4,1,1])"
ERF = "e = Erf(d); p = Add(e, one[]={1.0}); "

# Where x is halved, and by which op erf's argument is made, differs between exporters.
WHOLE = {
    "half behind": CONV + "d = Div(h, r[]={1.4142135}); " + ERF + "m = Mul(h, p); g = Mul(m, k[]={0.5}); " + BEHIND,
    "half in front": CONV + "d = Mul(h, r[]={0.70710677}); " + ERF + "m = Mul(h, k[]={0.5}); g = Mul(m, p); " + BEHIND,
    "tanh": CONV + "q = Pow(h, three[]={3.0}); c = Mul(q, s[]={0.044715}); a = Add(h, c); d = Mul(a, r[]={0.7978846}); "
    "e = Tanh(d); p = Add(e, one[]={1.0}); m = Mul(h, p); g = Mul(m, k[]={0.5}); " + BEHIND,
    "sigmoid": CONV + "d = Mul(h, r[]={1.702}); e = Sigmoid(d); g = Mul(h, e); " + BEHIND,
}  # fmt: skip

# No such activation: its constants go as ever.
OTHER = {
    "erf alone": CONV + "d = Div(h, r[]={1.4142135}); e = Erf(d); g = Mul(e, k[]={0.5}); " + BEHIND,
    "no one added": CONV + "d = Div(h, r[]={1.4142135}); e = Erf(d); m = Mul(h, e); g = Mul(m, k[]={0.5}); " + BEHIND,
    "another reader": CONV + "d = Div(h, r[]={1.4142135}); " + ERF + "m = Mul(h, p); z = Relu(p); "
    "g = Mul(m, k[]={0.5}); " + BEHIND,
}  # fmt: skip


def arithmetic(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type in ("Mul", "Div", "Add", "Pow", "Erf", "Tanh")]


@pytest.mark.parametrize("name", WHOLE)
def test_activation_stays_whole(name: str) -> None:
    """A BN in front of it and one behind it go all the same."""
    text = WHOLE[name].replace("h = Conv(x, w[4,3,1,1], b[4]);", "f = Conv(x, w[4,3,1,1], b[4]); h = BN4(f);")
    text = text.replace(BEHIND, "n = BN4(g); y = Conv(n, v[4,4,1,1])")
    probe = Probe(f"gelu-{name}", "", f"x[N,3,5,5] -> y | {text}")
    model = probe.model()
    result, report = folded(model)
    assert_same_function(model, result, probe.batches())
    assert arithmetic(result) == arithmetic(model)
    assert report.after.batch_norms == 0
    assert report.before.arithmetic == report.after.arithmetic == 0


@pytest.mark.parametrize("name", OTHER)
def test_other_constants_go(name: str) -> None:
    outputs = "y, z" if "z = " in OTHER[name] else "y"
    probe = Probe(f"no-gelu-{name}", "", f"x[N,3,5,5] -> {outputs} | {OTHER[name]}")
    model = probe.model()
    result, _ = folded(model)
    assert_same_function(model, result, probe.batches())
    assert len(arithmetic(result)) < len(arithmetic(model))


def test_onnxruntime_fuses_what_is_left(tmp_path: Path) -> None:
    import onnxruntime

    model = Probe("gelu-ort", "", f"x[N,3,5,5] -> y | {WHOLE['half behind']}").model()
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(folded(model)[0].SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert "Gelu" in {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
