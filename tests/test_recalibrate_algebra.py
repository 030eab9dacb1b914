"""Statistics that follow from others: each case equals float64, and is what it says it is, derived or measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper
from recalibration_models import bn, model_of, reference, samples, statistics_of
from test_recalibrate import assert_close, in_order

from bnfold.frontends import open_model
from bnfold.graph import Graph
from bnfold.recalibrate.levels import Levels, flattened
from bnfold.recalibrate.sites import find_sites
from bnfold.shapes import Shapes

WIDE = 12


def levels_of(model: ModelProto) -> Levels:
    opened = open_model(model)[0]
    graph = Graph(opened.proto)
    sites, _ = find_sites(graph, Shapes(graph, opened), lambda node: True, False)
    return Levels(flattened(opened, sites), sites, plain=False)


def inverted_residual(
    rank: int = 4, opset: int = 17, narrow: int = 3, wide: int = WIDE, bias: bool = True, kernel: int = 1,
    **attributes: Any,
) -> ModelProto:  # fmt: skip
    """BN -> 1 × 1 Conv -> BN -> Relu -> 1 × 1 Conv -> BN, the middle one wide."""
    rng = np.random.default_rng(rank)
    spatial = [kernel] * (rank - 2)
    groups = attributes.get("group", 1)
    arrays = {
        "w1": rng.normal(size=(wide, narrow // groups, *spatial)), "b1": rng.normal(size=wide),
        "w2": rng.normal(size=(narrow, wide, *[1] * (rank - 2))),
    }  # fmt: skip
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    nodes, widths = [], {"first": narrow, "wide": wide, "last": narrow}
    norms = {name: bn(f"{name}.in", f"{name}.out", name, channels=width) for name, width in widths.items()}
    nodes = [
        helper.make_node("Tanh", ["x"], ["first.in"]),
        norms["first"][0],
        helper.make_node("Conv", ["first.out", "w1", *(["b1"] if bias else [])], ["wide.in"], **attributes),
        norms["wide"][0],
        helper.make_node("Relu", ["wide.out"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["last.in"]),
        norms["last"][0],
        helper.make_node("Identity", ["last.out"], ["y"]),
    ]
    tensors += [tensor for _, parameters in norms.values() for tensor in parameters]
    return model_of(nodes, tensors, (None, narrow, *[5] * (rank - 2)), opset)


def widened(model: ModelProto) -> set[str]:
    return {one.value for one in levels_of(model).observed if one.widening is not None}


@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 3}, {"rank": 5}, {"bias": False}, {"opset": 9}, {"opset": 12}, {"opset": 13}, {"opset": 18},
     {"strides": [1, 1], "pads": [0, 0, 0, 0]}],
    ids=str,
)  # fmt: skip
def test_a_widening_conv_is_not_computed_to_be_measured(options: dict[str, Any]) -> None:
    model = inverted_residual(**options)
    assert widened(model) == {"wide.in"}
    x = samples(40, *shape_of(model))
    found = in_order(model, x, 16, method="exact")
    newer = inverted_residual(**options | {"opset": 17})  # where a BN in training mode gives its statistics out
    assert_close(statistics_of(found.model), reference(newer, [x]), 5e-6)


def test_the_widest_values_are_not_kept() -> None:
    levels = levels_of(inverted_residual())
    kept = [levels.to_cache(level) for level in range(len(levels.readings_at))]
    assert kept == [["first.in"], ["first.out"], []]  # and neither wide.in nor wide.out


def test_an_unbiased_variance_counts_the_positions() -> None:
    model = inverted_residual()
    x = samples(4, *shape_of(model))
    biased, unbiased = (
        statistics_of(in_order(model, x, 2, method="exact", only="wide", unbiased=one).model)["wide"][1]
        for one in (False, True)
    )
    assert np.allclose(unbiased / biased, 100 / 99, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"narrow": 4, "group": 2}, {"kernel": 3}, {"narrow": 7},
     {"narrow": 20, "wide": 24}, {"narrow": 50, "wide": 120}],
    ids=str,
)  # fmt: skip
def test_what_is_no_widening_conv_is_measured(options: dict[str, Any]) -> None:
    model = inverted_residual(**options)
    assert not widened(model)
    x = samples(40, *shape_of(model))
    found = in_order(model, x, 16, method="exact")
    assert_close(statistics_of(found.model), reference(model, [x]), 5e-6)


def test_a_weight_that_is_computed_from_the_data_is_measured() -> None:
    model = inverted_residual()
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    size = helper.make_node("Size", ["x"], ["n"])
    one = helper.make_node("Div", ["n", "n"], ["one"])
    cast = helper.make_node("Cast", ["one"], ["factor"], to=1)
    product = helper.make_node("Mul", ["w1", "factor"], ["w1.now"])
    conv.input[1] = "w1.now"
    nodes = [size, one, cast, product, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert not widened(model)
    x = samples(40, *shape_of(model))
    assert_close(statistics_of(in_order(model, x, 16, method="exact").model), reference(model, [x]), 5e-6)


def test_a_mean_a_thousand_deviations_away_costs_a_widening_conv_no_digits() -> None:
    model = inverted_residual()
    for tensor in model.graph.initializer:
        if tensor.name == "first.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full(3, 1000, np.float32), tensor.name))
        if tensor.name == "w1":  # the difference of channels, so that the large mean is gone behind it
            weight = np.zeros((WIDE, 3, 1, 1), np.float32)
            weight[:, 0], weight[:, 1] = np.arange(1, WIDE + 1)[:, None, None], -np.arange(1, WIDE + 1)[:, None, None]
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    x = samples(40, *shape_of(model))
    found = statistics_of(in_order(model, x, 16, method="exact", only="wide").model)
    first = np.tanh(x.astype(np.float64))
    parameters = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    gain = parameters["first.scale"] / np.sqrt(parameters["first.var"] + 1e-5)
    column = (-1, 1, 1)
    y = (first - parameters["first.mean"].reshape(column)) * gain.reshape(column) + 1000
    wide = np.einsum("oi,nihw->nohw", parameters["w1"][:, :, 0, 0], y) + parameters["b1"].reshape(column)
    # what BN gives is rounded to float32 at 1000: 6e-5 of a deviation of about 1
    assert np.abs(found["wide"][1] / wide.var((0, 2, 3)) - 1).max() < 1e-5


def rows_of_norms(count: int, **attributes: Any) -> ModelProto:
    """`count` BNs, one right behind the other, and a Relu, Conv and BN behind them."""
    tensors = [numpy_helper.from_array(np.random.default_rng(5).normal(size=(4, 4, 1, 1)).astype(np.float32), "w")]
    nodes, value = [], "x"
    for k in range(count):
        node, parameters = bn(value, f"v{k}", f"bn{k}", **attributes)
        nodes.append(node)
        tensors += parameters
        value = f"v{k}"
    node, parameters = bn("c", "y", "last")
    nodes += [helper.make_node("Relu", [value], ["r"]), helper.make_node("Conv", ["r", "w"], ["c"]), node]
    return model_of(nodes, [*tensors, *parameters], (None, 4, 5, 5))


def stem_net(channels: int = 12, kernel: int = 3, **attributes: Any) -> ModelProto:
    """Conv of few channels -> BN -> Relu -> MaxPool, and the Conv's own output added."""
    size = (channels, 3 // attributes.get("group", 1), kernel, kernel)
    weight = np.random.default_rng(3).normal(size=size).astype(np.float32)
    node, parameters = bn("c", "n", "bn", channels=channels)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], **attributes), node,
        helper.make_node("Relu", ["n"], ["r"]), helper.make_node("Add", ["r", "c"], ["a"]),
    ]  # fmt: skip
    last, more = bn("a", "y", "last", channels=channels)
    return model_of([*nodes, last], [numpy_helper.from_array(weight, "w"), *parameters, *more], (None, 3, 9, 9))


@pytest.mark.parametrize(
    ("options", "kept"),
    [({}, ["x"]), ({"group": 3}, ["x"]), ({"channels": 48, "strides": [2, 2]}, ["x"]), ({"strides": [2, 2]}, ["c"]),
     ({"channels": 9}, ["c"]), ({"kernel": 8}, ["c"])],
    ids=str,
)  # fmt: skip
def test_a_stem_is_run_again_rather_than_kept(options: dict[str, Any], kept: list[str]) -> None:
    model = stem_net(**options)
    levels = levels_of(model)
    assert [name for name in ("x", "c") if levels.last_read(name) > levels_of_value(levels, name)] == kept
    x = samples(40, 3, 9, 9)
    found = in_order(model, x, 16, method="exact")
    assert_close(statistics_of(found.model), reference(model, [x]), 5e-6)


def levels_of_value(levels: Levels, name: str) -> int:
    return levels._level[name]


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.5}], ids=str)
def test_a_norm_behind_a_norm_is_not_measured(options: dict[str, Any]) -> None:
    model = rows_of_norms(3, **options)
    levels = levels_of(model)
    assert [one.value for one in levels.observed] == ["x", "c"]
    assert len(levels.readings_at) == 2
    x = samples(40, 4, 5, 5)
    found = in_order(model, x, 16, method="exact")
    assert_close(statistics_of(found.model), reference(model, [x]), 5e-6)


def test_a_norm_behind_one_that_is_skipped_is_measured() -> None:
    model = rows_of_norms(2)
    x = samples(40, 4, 5, 5)
    found = statistics_of(in_order(model, x, 16, method="exact", skip="bn0").model)
    old = statistics_of(model)
    scale, shift = (
        next(numpy_helper.to_array(one) for one in model.graph.initializer if one.name == f"bn0.{role}")
        for role in ("scale", "bias")
    )
    gain = scale.astype(np.float64) / np.sqrt(old["bn0"][1] + 1e-5)
    assert np.abs(found["bn1"][1] / (gain**2 * x.astype(np.float64).var((0, 2, 3))) - 1).max() < 5e-6
    mean = gain * (x.astype(np.float64).mean((0, 2, 3)) - old["bn0"][0]) + shift
    assert np.abs(found["bn1"][0] - mean).max() < 5e-6


def test_blended_statistics_are_what_the_next_norm_sees() -> None:
    model = rows_of_norms(2)
    x = samples(40, 4, 5, 5)
    blended = statistics_of(in_order(model, x, 16, method="blend", source_weight=40).model)
    first = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in first.graph.initializer:
        for role, value in zip(("mean", "var"), blended["bn0"], strict=True):
            if tensor.name == f"bn0.{role}":
                tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    measured = statistics_of(in_order(first, x, 16, method="exact", only="bn1").model)
    old = statistics_of(model)
    for mine, new, before in zip(blended["bn1"], measured["bn1"], old["bn1"], strict=True):
        assert np.allclose(mine, (new + before) / 2, rtol=5e-6, atol=5e-6)


def test_a_long_row_of_norms_takes_linear_time() -> None:
    model = rows_of_norms(2000)
    assert len(levels_of(model).readings_at) == 2


def shape_of(model: ModelProto) -> Sequence[int]:
    return [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
