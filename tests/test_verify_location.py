"""`bnfold.verify` names the layer that is wrong in a folded file, although the fold keeps names for other values."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

import bnfold

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"


@pytest.mark.parametrize(
    ("model", "weight"),
    [
        ("digits_preact.onnx", "2.second.0.weight"),
        ("digits_preact.onnx", "5.project.weight"),
        ("digits_mobile.onnx", "5.body.3.weight"),
    ],
)
def test_damaged_layer_of_a_fold(model: str, weight: str) -> None:
    original = onnx.load(SAMPLES / model)
    damaged = bnfold.fold(original, verify=False).model
    tensor = next(tensor for tensor in damaged.graph.initializer if tensor.name == weight)
    array = numpy_helper.to_array(tensor).copy()
    array[0] *= 1.001
    tensor.CopyFrom(numpy_helper.from_array(array, weight))
    reader = next(node.name for node in damaged.graph.node if weight in node.input)

    found = bnfold.verify(original, damaged)
    assert found.verdict == "different"
    assert found.first is not None
    assert (found.first.node, found.first.channels) == (reader, (0,))
