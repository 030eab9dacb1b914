"""The recipes of `examples/recipes` run as they are and do what they say, each where its packages are installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

RECIPES = REPO / "examples" / "recipes"

# What each needs, and what it prints, among other things.
SAID = {
    "fold_after_torch_export": (["torch", "onnxscript", "onnx_ir"], ["BN 2 → 0", "verify: equal", "2 of 7 tensors"]),
    "keras_with_tf2onnx": (["tensorflow", "tf2onnx"], ["channels 6 → 1", "from Keras"]),
    "olive_pass": (["olive"], ["BN 13 → 0"]),
    "openvino_consumer": (["openvino"], ["digits_preact        BN 13 → 0", "OpenVINO"]),
    "prune_then_recalibrate": ([], ["80% pruned          10.0%, recalibrated  99.6%, folded  99.6%"]),
    "transformers_export": (["torch", "transformers"], ["levit     BN 27 → 0, equal", "mobilevit BN 32 → 0, equal"]),
    "yolo_export": (["torch"], ["BN 19 → 0", "verify: equal"]),
}


def test_each_recipe_is_run() -> None:
    assert {path.stem for path in RECIPES.glob("*.py")} == SAID.keys()


@pytest.mark.parametrize("recipe", SAID)
def test_recipe(recipe: str, tmp_path: Path) -> None:
    needed, said = SAID[recipe]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    path = RECIPES / f"{recipe}.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(path)], cwd=tmp_path, env=env, check=False, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [text for text in said if text not in done.stdout] == [], done.stdout
