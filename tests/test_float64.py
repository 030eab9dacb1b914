"""The double form of every op, against ONNX Runtime's float kernel and the reference evaluator in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from float64_cases import CASES, Case
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.parser import parse_model

from bnfold.model_file import load
from bnfold.verify.float64 import Unsupported, to_float64
from bnfold.verify.large import Model
from bnfold.verify.large import reference as reference_to
from bnfold.verify.prepare import prepare

Array = npt.NDArray[Any]

TRIES = 24
# Relative to the rms of the result.  Float rounding of a few hundred terms; double rounding of as many.
FLOAT_NOISE, DOUBLE_NOISE = 3e-6, 1e-12


def run(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Any]:
    """All outputs (arrays, or lists of them) on ONNX Runtime, its optimisations off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs() if output.name not in feeds]
    return {**feeds, **dict(zip(names, session.run(names, dict(feeds)) if names else [], strict=True))}


def node_model(
    op_type: str, case: Case, element: type[np.floating[Any]] = np.float32
) -> tuple[ModelProto, dict[str, Array]]:
    """The case as a model and its feeds; floats of `element` type."""
    parameters = op_type in ("Resize", "Upsample")  # scales and regions, which are floats always
    arrays = {
        f"i{k}": v.astype(element) if v.dtype == np.float32 and not (parameters and k) else v
        for k, v in enumerate(case.inputs) if v is not None
    }  # fmt: skip
    outputs = [f"o{k}" for k in range(case.outputs)]
    names = [f"i{k}" if v is not None else "" for k, v in enumerate(case.inputs)]
    while names and not names[-1]:
        names.pop()
    domain, _, op_type = op_type.rpartition(":")
    node = helper.make_node(op_type, names, outputs, domain=domain, **case.attributes)
    constants = {f"i{k}" for k in case.constants} & set(arrays)
    feeds = {name: value for name, value in arrays.items() if name not in constants}
    graph = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(arrays[name], name) for name in sorted(constants)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", case.opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), feeds


def wide(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {k: v.astype(float) if v.dtype.kind == "f" or v.dtype.name == "bfloat16" else v for k, v in arrays.items()}


def assert_close(got: Array, expected: Array, noise: float, what: str) -> None:
    assert got.shape == expected.shape, what
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(got, expected, what)
        return
    assert got.dtype == np.float64, what
    rms = float(np.sqrt(np.mean(np.square(expected.astype(float))))) or 1.0
    assert np.abs(got - expected).max(initial=0.0) <= noise * rms * 4, what


@pytest.mark.parametrize("op_type", CASES)
def test_an_op_in_double(op_type: str) -> None:
    rng, tried = np.random.default_rng(crc32(op_type.encode())), 0
    for index in range(TRIES):
        case = CASES[op_type][index % len(CASES[op_type])](rng)
        model, feeds = node_model(op_type, case)
        try:
            native = run(model, feeds)
        except Exception as error:  # what ONNX Runtime refuses (some pads, some modes) can't be compared
            if index == 0 and ("NOT_IMPLEMENTED" in str(error) or "is under development" in str(error)):
                pytest.skip(f"ONNX Runtime has no {op_type} at all")
            continue
        form = to_float64(model, {name: value.shape for name, value in (*feeds.items(), *native.items())})
        what = f"{op_type} {case.attributes} {[None if i is None else i.shape for i in case.inputs]} opset {case.opset}"
        assert not form.unsupported, what
        tried += 1
        if counts_pads_wrongly(op_type, case):
            continue
        got = run(form.model, wide(feeds))
        for name, value in native.items():
            assert_close(got[name], value, FLOAT_NOISE, f"{what}: native")
        if case.reference:
            for name, value in reference(op_type, case).items():
                assert_close(got[name], value, DOUBLE_NOISE, f"{what}: reference")
    assert tried >= TRIES // 2


def counts_pads_wrongly(op_type: str, case: Case) -> bool:
    """True for what ONNX Runtime's native kernel got wrong: 1.23 did, 1.31 doesn't."""
    import onnxruntime

    old = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 31)
    automatic = case.attributes.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    return old and op_type == "AveragePool" and automatic and bool(case.attributes.get("count_include_pad"))


def reference(op_type: str, case: Case) -> dict[str, Array]:
    from onnx.reference import ReferenceEvaluator

    model, feeds = node_model(op_type, case, np.float64)
    return dict(zip([o.name for o in model.graph.output], ReferenceEvaluator(model).run(None, feeds), strict=True))


def test_erf_is_the_error_function() -> None:
    x = np.concatenate([np.linspace(-8, 8, 20001), [0.0, 1e-300, -1e-8, 1e30, np.inf, -np.inf]])
    model, _ = node_model("Erf", Case([x.astype(np.float32)]))
    got = run(to_float64(model).model, {"i0": x})["o0"]
    np.testing.assert_allclose(got, [math.erf(value) for value in x], rtol=0, atol=2e-14)
    np.testing.assert_array_equal(got[np.abs(x) > 6], np.sign(x[np.abs(x) > 6]))


@pytest.mark.parametrize("element", [np.float16, "bfloat16"])
def test_half_precision_becomes_double(element: Any) -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if element == "bfloat16" else element
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(kind)
    model = parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g ({np.dtype(kind).name}[1, 3, 6, 6] x) => (float[1, 4, 4, 4] y) {{
        c = Conv(x, w)  r = Relu(c)  y = Cast<to = 1>(r) }}"""
    )
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    form = to_float64(model)
    assert {info.type.tensor_type.elem_type for info in (*form.model.graph.input, *form.model.graph.output)} == {11}
    np.testing.assert_array_equal(numpy_helper.to_array(form.model.graph.initializer[0]), weight.astype(float))
    assert run(form.model, {"x": np.ones((1, 3, 6, 6))})["y"].dtype == np.float64


def test_bodies_are_converted() -> None:
    model = parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 4] x, bool flag, int64 n) => (float[2, 4] y, float[2, 4] z)
        <float half = {0.5}> {
        y = If (flag) <then_branch = a () => (float[2, 4] t) { t = Elu(x) }, else_branch = b () => (float[2, 4] e) {
            f = CastLike(half, x)  e = Mul(x, f) }>
        z = Loop (n, flag, x) <body = c (int64 i, bool on, float[2, 4] s) => (bool o, float[2, 4] u) {
            o = Identity(on)  k = Constant<value_float = 0.1>()  m = Softsign(s)  u = Sub(m, k) }>
        }"""
    )
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    for flag in (True, False):
        feeds = {"x": x, "flag": np.array(flag), "n": np.array(3, np.int64)}
        form = to_float64(model)
        got, native = run(form.model, wide(feeds)), run(model, feeds)
        assert not form.unsupported
        for name in native:
            assert_close(got[name], native[name], FLOAT_NOISE, name)


def test_what_has_no_form_becomes_an_input() -> None:
    model = parse_model(
        """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[2, 3, 3] x) => (float[2] y, float[2] d) {
        d = Det(x)  e = Relu(d)  q = com.microsoft.BiasSplitGelu(e, e)  y = Add(q, e) }"""
    )
    form = to_float64(model, types={"q": TensorProto.FLOAT})
    assert form.unsupported == {"d": "Det: no double form", "q": "BiasSplitGelu: an op of com.microsoft"}
    assert {info.name: info.type.tensor_type.elem_type for info in form.model.graph.input} == {
        "x": 11,
        "d": 11,
        "q": 11,
    }
    got = run(form.model, {"x": np.zeros((2, 3, 3)), "d": np.array([1.0, -1.0]), "q": np.array([2.0, 3.0])})
    np.testing.assert_array_equal(got["y"], [3.0, 3.0])
    np.testing.assert_array_equal(got["d"], [1.0, -1.0])


def test_a_body_without_a_form_is_left_out_whole() -> None:
    model = parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2, 2] x, bool flag) => (float y) {
        y = If (flag) <then_branch = a () => (float t) { t = Det(x) }, else_branch = b () => (float e) {
            e = ReduceSum<keepdims = 0>(x) }>
        }"""
    )
    form = to_float64(model)
    assert list(form.unsupported) == ["y"]
    assert not form.model.graph.node


def test_an_opset_of_long_ago_is_refused() -> None:
    model = parse_model('<ir_version: 3, opset_import: ["": 6]> g (float[2] x) => (float[2] y) { y = Relu(x) }')
    with pytest.raises(Unsupported, match="opset 6"):
        to_float64(model)


def test_a_big_convolution_goes_by_bands() -> None:
    case = Case([np.ones((1, 16, 200, 210), np.float32), np.ones((8, 16, 3, 5), np.float32)], {"strides": [2, 1]})
    case.inputs[0] = np.random.default_rng(0).standard_normal((1, 16, 200, 210)).astype(np.float32)
    model, feeds = node_model("Conv", case)
    form = to_float64(model)
    assert sum(node.op_type == "MatMul" for node in form.model.graph.node) > 1
    assert_close(run(form.model, wide(feeds))["o0"], run(model, feeds)["o0"], FLOAT_NOISE, "bands")


def test_weights_that_are_elsewhere_are_cast_as_the_graph_runs() -> None:
    model, _ = node_model("Gemm", Case([np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)], constants=(1,)))
    weight = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(reference_to("i1", TensorProto.FLOAT, weight.shape))
    form = to_float64(model)
    (stored,) = form.stored
    assert form.stored == {stored: "i1"} and [tensor.name for tensor in form.model.graph.initializer] == [stored]
    assert [node.op_type for node in form.model.graph.node] == ["Cast", "Gemm"]


def test_to_float64_leaves_the_model_as_it_is() -> None:
    model, _ = node_model("Conv", Case([np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 2, 2), np.float32)]))
    before = model.SerializeToString()
    to_float64(model)
    assert model.SerializeToString() == before


REAL = """cae-decoder chess-preact cifar-resnet20-fp16 cifar-resnet20-qdq fsanet-1x1 mesonet mlperf-ad01 ppocr-cls-v2
    ultraface-slim-320""".split()
DRAWN = "gru_bn.legacy13 hand_ir3_opset9.hand9 yolov5_pico.legacy13 m5_audio.dynamo21".split()


@pytest.mark.parametrize("name", [*REAL, *DRAWN])
def test_a_model_in_double(name: str, real_models: list[Path], hydrated: Callable[[str], Path]) -> None:
    path = next((p for p in real_models if p.stem == name), None) or hydrated(name)
    model = whole(prepare(load(path)))
    feeds = drawn_feeds(model)
    everything = ModelProto()
    everything.CopyFrom(model)
    shown = {info.name for info in model.graph.output}
    inner = [output for node in model.graph.node for output in node.output if output not in {*shown, ""}]
    everything.graph.output.extend(onnx.ValueInfoProto(name=output) for output in inner)
    values = {**feeds, **{n: v for n, v in run(everything, feeds).items() if isinstance(v, np.ndarray)}}
    types = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in values.items()}
    form = to_float64(model, {name: value.shape for name, value in values.items()}, types)
    given = {info.name: values[info.name] for info in form.model.graph.input}
    noise = 2e-3 if "fp16" in name else 1e-4
    for output, value in run(form.model, wide(given)).items():
        rms = float(np.sqrt(np.mean(np.square(value)))) or 1.0
        assert float(np.sqrt(np.mean(np.square(value - values[output])))) <= noise * rms, output


def whole(model: Model) -> ModelProto:
    """With its large weights inside."""
    for tensor in model.graph.initializer:
        if tensor.name in model.beside:
            tensor.CopyFrom(numpy_helper.from_array(model.beside[tensor.name], tensor.name))
    return model.proto


def drawn_feeds(model: ModelProto) -> dict[str, Array]:
    """Normal inputs; symbolic dimensions are 1 for the batch and 64 for others."""
    rng, feeds = np.random.default_rng(0), {}
    for info in model.graph.input:
        dims = enumerate(info.type.tensor_type.shape.dim)
        shape = [dim.dim_value if dim.dim_value > 0 else (64 if axis else 1) for axis, dim in dims]
        feeds[info.name] = rng.standard_normal(shape).astype(
            helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        )
    return feeds
