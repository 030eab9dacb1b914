"""Is it still the same function?  What is left of its BatchNorm?  The judges of the probe table.

A fold changes weights, and every changed weight is rounded once more.  So two right models differ, and
the question is by how much they may.  No tolerance is written down here; it is measured on the original:

    A64    the original in float64 (`as_float64`, run by ONNX's reference evaluator)
    N      rms response of A64 to one ulp, of the *stored* type, on every weight and every input (3 seeds)
    r      rms(B64 - A64) / max(N, u * rms(A64))      B64: the folded model in float64; u: half an ulp

r is a backward error in ulps of the weights and does not depend on how deep or ill conditioned a model is.
float64 has no overflow where float16 has, so both models also run natively (ONNX Runtime, optimisations
off: with them on, its own bugs would be taken for ours) and must agree in what is finite, with an error
against A64 that the original's own error explains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from referee import ULP, Array, Feeds, all_tensors, as_float64, run_float64, settle_constants, subgraphs

UNMOVED = ("Resize", "Upsample", "Clip", "Pad")
"""Their further inputs are settings (sizes, bounds), not weights: one ulp on them is another function."""

SAME = 4.0
"""Largest r of a right fold: on 15 models the worst right pair had 2.5, the best wrong one 7."""

SAME_NATIVE = 8.0
"""Native errors in units of the original's own: the same sums in another order, so wider than `SAME`."""


# ------------------------------------------------------------------------------------------- what is left
class Left(NamedTuple):
    """What a model still computes per channel (subgraphs and functions included).

    ``affine`` counts Add, Sub, Mul and Div by a float constant with at most one axis longer than 1: a number
    per channel costs what one number for all costs.  The Add right behind a MatMul or an Einsum is its bias, as
    Gemm and Conv have theirs inside: ``bias`` counts it apart.
    """

    bn: int
    affine: int
    bias: int

    @property
    def total(self) -> int:
        """Per-channel operations that are no part of a linear node."""
        return self.bn + self.affine


def left(model: ModelProto) -> Left:
    """Count the BatchNorm and other per-channel operations of ``model``."""
    counts = [0, 0, 0]
    settled = settle_constants(model, fed=False)
    _count_graph(settled.graph, {}, counts)
    for function in settled.functions:
        _count(function.node, {}, counts)
    return Left(*counts)


def _count_graph(graph: GraphProto, outer: Mapping[str, list[int]], counts: list[int]) -> None:
    own = {tensor.name: list(tensor.dims) for tensor in graph.initializer if tensor.data_type in ULP}
    _count(graph.node, dict(outer) | own, counts)


def _count(nodes: Iterable[NodeProto], constants: dict[str, list[int]], counts: list[int]) -> None:
    """Add the nodes' counts; ``constants`` gives the shapes of the float constants."""
    producer: dict[str, str] = {}
    for node in nodes:
        for graph in subgraphs(node):
            _count_graph(graph, constants, counts)
        if node.op_type == "Constant" and node.attribute[0].t.data_type in ULP:
            constants[node.output[0]] = list(node.attribute[0].t.dims)
        elif node.op_type == "BatchNormalization":
            counts[0] += 1
        elif node.op_type in ("Add", "Sub", "Mul", "Div"):
            fixed = [i for i, name in enumerate(node.input) if name in constants]
            if len(fixed) == 1 and sum(size > 1 for size in constants[node.input[fixed[0]]]) <= 1:
                other = producer.get(node.input[1 - fixed[0]])
                if node.op_type != "Div" or fixed == [1]:  # constant / x is no affine map
                    counts[2 if node.op_type == "Add" and other in ("MatMul", "Einsum") else 1] += 1
        producer.update(dict.fromkeys(node.output, node.op_type))


# --------------------------------------------------------------------------------------------- the judge
def assert_same_function(
    original: ModelProto, folded: ModelProto, batches: list[dict[str, Array]], lenient: float = 1.0
) -> None:
    """Raise AssertionError unless ``folded`` computes what ``original`` computes on every batch.

    Initializers that callers of both models may override are fed other values as well.  ``lenient`` widens the
    limits for tools that fold in the type of the weights.
    """
    ulp = max((ULP.get(t.data_type, 0.0) for t in all_tensors(original)), default=0.0) or ULP[TensorProto.FLOAT]
    for feeds in [*batches, *(batches[-1] | other for other in _overrides(original, folded))]:
        expected = run_float64(original, feeds)
        noise = _noise(original, feeds, expected, ulp)
        try:
            found = run_float64(folded, feeds)
        except (NotImplementedError, RuntimeError):  # operators of other domains: the native run has to do
            found = expected
        _compare("float64", found, expected, noise, lenient * SAME)
        native = run_native(original, feeds)
        if native is None:  # no kernels for this type: float64 is all there is
            assert found is not expected, "nothing can run the result"
            continue
        after = run_native(folded, feeds)
        assert after is not None, "the original runs on ONNX Runtime, the result doesn't"
        own = {name: max(_rms(native[name] - y), noise[name]) for name, y in expected.items()}
        target = {name: np.where(np.isfinite(native[name]), y, native[name]) for name, y in expected.items()}
        _compare("native", after, target, own, lenient * SAME_NATIVE)


def _overrides(original: ModelProto, folded: ModelProto) -> list[dict[str, Array]]:
    """Other values for the weights that both models list as inputs."""
    both = {v.name for v in original.graph.input} & {v.name for v in folded.graph.input}
    weights = [t for t in original.graph.initializer if t.name in both and t.data_type in ULP]
    given = {t.name: numpy_helper.to_array(t) for t in weights}
    return [{name: (value * 2).astype(value.dtype) for name, value in given.items()}] if given else []


def _compare(how: str, found: Feeds, expected: Feeds, noise: Mapping[str, float], limit: float) -> None:
    for name, (a, b) in _paired(found, expected).items():
        assert np.array_equal(np.isfinite(a), np.isfinite(b)), f"{name}: {how}: other values are finite"
        finite = np.isfinite(b)
        ratio = _rms((a - b)[finite]) / (noise[name] or 1e-300)
        assert ratio <= limit, f"{name}: {how} error is {ratio:.3g} times the model's own noise, at most {limit:g}"


def _paired(found: Feeds, expected: Feeds) -> dict[str, tuple[Array, Array]]:
    assert list(found) == list(expected), f"outputs {list(found)} instead of {list(expected)}"
    for name, value in expected.items():
        assert found[name].shape == value.shape, f"{name}: shape {found[name].shape} instead of {value.shape}"
    return {name: (np.asarray(found[name], float), np.asarray(value, float)) for name, value in expected.items()}


def _noise(model: ModelProto, feeds: Feeds, expected: Feeds, ulp: float) -> dict[str, float]:
    """What one ulp on weights and inputs does to each output, never below half an ulp of the output itself."""
    squares = dict.fromkeys(expected, 0.0)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        moved = jittered(as_float64(model), ulp, rng)
        for name, value in run_float64(moved, {k: _jitter(v, ulp, rng) for k, v in feeds.items()}).items():
            squares[name] += _rms(value - expected[name]) ** 2 / 3
    # What is 0 to the bit (padding seen alone) needn't be so as the sum of a shift and what undoes it.
    return {name: max(squares[name] ** 0.5, ulp / 2 * (_rms(value) or 1.0)) for name, value in expected.items()}


def jittered(model: ModelProto, ulp: float, rng: np.random.Generator) -> ModelProto:
    """A copy with every weight of ``model`` moved by the factor 1 + ``ulp`` or 1 - ``ulp``."""
    moved = ModelProto()
    moved.CopyFrom(model)
    settings = {name for node in moved.graph.node if node.op_type in UNMOVED for name in node.input[1:]}
    for tensor in all_tensors(moved):
        if tensor.data_type in ULP and tensor.name not in settings:
            tensor.CopyFrom(numpy_helper.from_array(_jitter(numpy_helper.to_array(tensor), ulp, rng), tensor.name))
    return moved


def _jitter(values: Array, ulp: float, rng: np.random.Generator) -> Array:
    if values.dtype.kind in "biu":
        return values
    return np.asarray(values * (1 + ulp * rng.choice([-1.0, 1.0], values.shape))).astype(values.dtype)


def _rms(values: Array) -> float:
    finite = values[np.isfinite(values)].astype(float)
    return float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0


# ------------------------------------------------------------------------------------------------ running
def run_native(model: ModelProto, feeds: Feeds) -> dict[str, Array] | None:
    """The outputs on ONNX Runtime without optimisations; None where it can't run the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip((o.name for o in session.get_outputs()), session.run(None, dict(feeds)), strict=True))
    except Exception:  # ONNX Runtime has no public exception classes
        return None
