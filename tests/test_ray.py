"""Batches on a Ray cluster: what comes out is what one process gives, whatever becomes of the workers."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import MODEL, bnfold, refused
from recalibration_models import CHANNELS, conv_net, samples

import bnfold as package
from bnfold.errors import ModelError, UsageError

X = samples(160, CHANNELS, 6, 6)


def test_what_makes_no_sense() -> None:
    for options, message in (
        ({"engine": "dask"}, "there is no engine 'dask'; the engines are local, ray"),
        ({"address": "auto"}, "choose the engine ray"),
        ({"engine": "ray", "method": "exact"}, "runs on one machine; use the method pooled"),
    ):
        with pytest.raises(UsageError, match=message):
            package.recalibrate(conv_net(), X, **options)  # type: ignore[arg-type]


def test_without_ray_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageError, match=r"needs Ray; pip install 'bnfold\[ray\]'"):
        package.recalibrate(conv_net(), X, engine="ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a CPU each, on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray.cluster_utils import Cluster

        os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.other = made.add_node(num_cpus=1)
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()


pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


def assert_same(found: Any, expected: Any) -> None:
    assert found.samples == expected.samples
    for one, other in zip(found.drift, expected.drift, strict=True):
        np.testing.assert_allclose(one.new_mean, other.new_mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(one.new_var, other.new_var, rtol=1e-6)
        assert one.count == other.count


def test_two_nodes_give_what_one_process_gives(cluster: Any) -> None:
    local = package.recalibrate(conv_net(), X, batch_size=16)
    assert_same(package.recalibrate(conv_net(), X, batch_size=16, engine="ray"), local)


def test_the_command(cluster: Any, model: Path) -> None:
    words = ("recalibrate", model, "--data", f"{MODEL.parent / 'digits.npz'}:calib_x", "--json")
    here = bnfold(*words, "-o", model.with_name("a.onnx"), timeout=300)
    there = bnfold(
        *words, "-o", model.with_name("b.onnx"), "--engine", "ray", "--address", cluster.address, timeout=300
    )
    assert here.returncode == there.returncode == 0, there.stderr
    assert model.with_name("a.onnx").read_bytes() == model.with_name("b.onnx").read_bytes()


def test_a_model_that_cannot_run_is_told(cluster: Any) -> None:
    model = conv_net()
    model.graph.node[0].attribute[0].ints[:] = [1, 1, 1, 1, 1]
    with pytest.raises(ModelError, match="ONNX Runtime can't"):
        package.recalibrate(model, X, batch_size=16, engine="ray")


def wait_for_two_workers() -> None:
    """Of the CPUs of a cluster that has just begun, or whose last workers have just ended, it learns after a moment."""
    import ray

    for _ in range(300):
        if ray.available_resources().get("CPU") == 2:
            return
        time.sleep(0.1)


def test_a_worker_is_lost(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node goes in the middle of the data, with the worker that it has: its batches go to the other."""
    from bnfold.recalibrate import engine_ray

    wait_for_two_workers()
    given = []
    submit = engine_ray._Pool._submit
    monkeypatch.setattr(engine_ray._Pool, "_submit", lambda pool, number: (given.append(number), submit(pool, number)))

    def batches(lose: bool) -> Iterator[Any]:
        for number in range(60):
            if lose and number == 20:
                cluster.remove_node(cluster.other, allow_graceful=False)
            if lose and number > 20:
                time.sleep(0.2)  # its worker goes on for a moment before Ray ends it
            yield X[:16] + np.float32(number / 10)

    local = package.recalibrate(conv_net(), batches(lose=False), batch_size=16)
    assert_same(package.recalibrate(conv_net(), batches(lose=True), batch_size=16, engine="ray"), local)
    assert set(given) == set(range(60)) and len(given) > 60


def test_no_cluster_there(model: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    words = ("recalibrate", model, "--data", f"{MODEL.parent / 'digits.npz'}:calib_x", "--engine", "ray")
    refused(bnfold(*words, "--address", "nowhere", timeout=300), "there is no Ray cluster at nowhere")
