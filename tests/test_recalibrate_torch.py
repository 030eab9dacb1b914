"""Measured statistics beside torch's, on the same batches; needs torch, which CI does without."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from conftest import REPO
from recalibration_models import statistics_of

import bnfold

BATCH = 16
# Of a variance relative to itself, the largest of all channels; of a mean in deviations.
PARITY = 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "densenet121"])
def test_pooled_is_what_torch_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    peer: Any = __import__("torch_peer")
    model = __import__("networks").network(name)
    x = np.random.default_rng(3).standard_normal((2 * BATCH, 3, 96, 96)).astype(np.float32)
    batches = [x[:BATCH], x[BATCH:]]
    expected = peer.pooled_statistics(peer.Network(model), batches)
    found = statistics_of(bnfold.recalibrate(model, iter(batches), batch_size=BATCH).model)
    assert len(found) == len(expected)
    for (mean, variance), (their_mean, their_variance) in zip(found.values(), expected, strict=True):
        assert np.abs(variance / their_variance - 1).max() < PARITY
        assert (np.abs(mean - their_mean) / np.sqrt(their_variance)).max() < PARITY
    for module in ("torch_peer", "networks"):
        sys.modules.pop(module)
