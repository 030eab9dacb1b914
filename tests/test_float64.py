"""The double form of every op, against ONNX Runtime's float kernel and the reference evaluator in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from float64_cases import CASES, Case
from onnx import ModelProto, helper, numpy_helper

from bnfold.verify.float64 import to_float64

Array = npt.NDArray[Any]

TRIES = 24
# Relative to the rms of the result.  Float rounding of a few hundred terms; double rounding of as many.
FLOAT_NOISE, DOUBLE_NOISE = 3e-6, 1e-12


def run(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs on ONNX Runtime, its optimisations off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


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
    node = helper.make_node(op_type, names, outputs, **case.attributes)
    constants = {f"i{k}" for k in case.constants} & set(arrays)
    feeds = {name: value for name, value in arrays.items() if name not in constants}
    graph = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(arrays[name], name) for name in sorted(constants)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8), feeds


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
            if "NOT_IMPLEMENTED" in str(error) and index == 0:
                pytest.skip(f"ONNX Runtime has no {op_type} at all")
            continue
        form = to_float64(model, {name: value.shape for name, value in (*feeds.items(), *native.items())})
        what = f"{op_type} {case.attributes} {[None if i is None else i.shape for i in case.inputs]} opset {case.opset}"
        assert not form.unsupported, what
        tried += 1
        got = run(form.model, wide(feeds))
        for name, value in native.items():
            assert_close(got[name], value, FLOAT_NOISE, f"{what}: native")
        if case.reference:
            for name, value in reference(op_type, case).items():
                assert_close(got[name], value, DOUBLE_NOISE, f"{what}: reference")
    assert tried >= TRIES // 2


def reference(op_type: str, case: Case) -> dict[str, Array]:
    from onnx.reference import ReferenceEvaluator

    model, feeds = node_model(op_type, case, np.float64)
    return dict(zip([o.name for o in model.graph.output], ReferenceEvaluator(model).run(None, feeds), strict=True))
