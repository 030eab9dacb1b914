"""The sample models are what their README says: valid, small, BN in place, as accurate as in its table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "sample_models"
BN_COUNTS = {"digits_cnn": 7, "digits_mobile": 19, "digits_preact": 13, "tabular_mlp": 4}


def test_folder_holds_these_models() -> None:
    assert {path.stem for path in FOLDER.glob("*.onnx") if ".folded" not in path.name} == set(BN_COUNTS)


@pytest.mark.parametrize("name", BN_COUNTS)
def test_file(name: str) -> None:
    path = FOLDER / f"{name}.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert path.stat().st_size < 1_000_000
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == BN_COUNTS[name]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("name", BN_COUNTS)
def test_nothing_of_the_machine_that_made_it(name: str) -> None:
    content = (FOLDER / f"{name}.onnx").read_bytes()
    assert not re.search(rb"\.py\b|site-packages|/(home|root|tmp|usr|work|Users)/", content)


@pytest.mark.parametrize(("name", "shape"), [("digits", (1, 8, 8)), ("cancer", (30,))])
def test_data(name: str, shape: tuple[int, ...]) -> None:
    with np.load(FOLDER / f"{name}.npz") as data:
        assert data["calib_x"].shape == (256, *shape)
        assert data["test_x"].shape == (len(data["test_y"]), *shape)
        assert data["calib_x"].dtype == data["test_x"].dtype == np.float32
        assert data["test_y"].dtype == np.int64
        calibration, test = ({sample.tobytes() for sample in data[key]} for key in ("calib_x", "test_x"))
    assert not calibration & test  # nothing is tested on what it was calibrated with


def test_table_of_the_readme_is_what_is_measured() -> None:
    command = [sys.executable, str(FOLDER / "train.py"), "--evaluate"]
    measured = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    assert measured.count("\n") == 2 + len(BN_COUNTS)
    assert measured in (FOLDER / "README.md").read_text(encoding="utf-8")
