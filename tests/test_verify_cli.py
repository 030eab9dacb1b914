"""`bnfold verify` as a process: what it prints, writes and exits with."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from conftest import REPO
from onnx import numpy_helper

import bnfold

MODEL = REPO / "sample_models" / "tabular_mlp.onnx"
Bnfold = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its fold, one with a bug, one at rounding scale, one of another signature, one that is none."""
    place = tmp_path_factory.mktemp("verify")
    (place / "a.onnx").write_bytes(MODEL.read_bytes())
    bnfold.fold(MODEL, verify=False).save(place / "b.onnx")
    for name, factor in (("bug", 1e-2), ("scaled", 1.2e-6)):
        model = onnx.load(MODEL)
        tensor = next(t for t in model.graph.initializer if len(t.dims) == 2)
        values = numpy_helper.to_array(tensor).copy()
        values[0] *= np.float32(1 + factor)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(model, place / f"{name}.onnx")
    model = onnx.load(MODEL)
    model.graph.output.extend([onnx.ValueInfoProto(name=model.graph.node[0].output[0])])
    model.graph.output[-1].CopyFrom(onnx.helper.make_tensor_value_info(model.graph.node[0].output[0], 1, None))
    onnx.save(model, place / "more.onnx")
    (place / "none.onnx").write_text("no model")
    name = onnx.load(MODEL).graph.input[0]
    columns = name.type.tensor_type.shape.dim[1].dim_value
    rows = np.random.default_rng(0).standard_normal((40, columns)).astype(np.float32)
    np.savez(place / "data.npz", **{name.name: rows})
    np.savez(place / "wrong.npz", **{name.name: rows[:, :1]})
    np.savez(place / "names.npz", image=rows, label=rows)
    np.save(place / "one.npy", rows)
    (place / "cut.npz").write_bytes((place / "data.npz").read_bytes()[:-40])
    return place


@pytest.fixture
def run(folder: Path) -> Bnfold:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bnfold", "verify", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)

    return call


def test_equal(run: Bnfold) -> None:
    done = run("a.onnx", "b.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    labels = [line[:9].strip() for line in lines]
    assert labels.index("input") < labels.index("output") < labels.index("verdict")
    assert "verdict  equal: each of " in done.stdout
    assert any(line.startswith("max abs") for line in lines)


def test_different(run: Bnfold) -> None:
    done = run("a.onnx", "bug.onnx")
    assert (done.returncode, done.stderr) == (1, "")
    assert "verdict  different: " in done.stdout and "first    node '" in done.stdout


def test_a_rounding_scale_difference_is_a_warning(run: Bnfold) -> None:
    done = run("a.onnx", "scaled.onnx", "--json")
    verdict = json.loads(done.stdout)["verdict"]
    assert (done.returncode, verdict) == (0, "rounding-scale difference")
    assert run("a.onnx", "scaled.onnx", "--strict", "-q").returncode == 1
    assert "warning  " in run("a.onnx", "scaled.onnx").stdout


def test_signatures_that_differ(run: Bnfold) -> None:
    done = run("a.onnx", "more.onnx")
    assert done.returncode == 1
    assert "is in B only" in done.stdout


def test_quiet_and_verbose(run: Bnfold) -> None:
    assert run("a.onnx", "b.onnx", "-q").stdout == ""
    done = run("a.onnx", "b.onnx", "-v")
    assert "channels off" in done.stdout and "paired by" in done.stdout
    assert "bnfold: " in done.stderr  # what is going on


def test_json(run: Bnfold) -> None:
    done = run("a.onnx", "b.onnx", "--json")
    found = json.loads(done.stdout)
    assert (found["a"], found["b"], found["exit_code"], found["verdict"]) == ("a.onnx", "b.onnx", 0, "equal")
    assert found["settings"]["seed"] == 0 and found["settings"]["versions"]["onnxruntime"]
    assert all(segment["r"] <= 3 for segment in found["segments"])


def test_data_and_seed(run: Bnfold) -> None:
    assert "40 samples of data.npz" in run("a.onnx", "b.onnx", "--data", "data.npz").stdout
    assert "seed 7" in run("a.onnx", "b.onnx", "--seed", "7").stdout


def test_optimized(run: Bnfold) -> None:
    done = run("a.onnx", "--optimized")
    assert done.returncode == 0
    assert "as ONNX Runtime's optimiser leaves it" in done.stdout


def test_certificates(run: Bnfold, folder: Path) -> None:
    assert run("a.onnx", "b.onnx", "--certificate", "c.json").returncode == 0
    content = json.loads((folder / "c.json").read_text())
    assert content["verdict"] == "equal" and list(content["a"]) == ["a.onnx"] and len(content["a"]["a.onnx"]) == 64
    done = run("--check", "c.json")
    assert (done.returncode, done.stderr) == (0, "")
    content["b"]["b.onnx"] = content["a"]["a.onnx"]
    (folder / "forged.json").write_text(json.dumps(content))
    content["b"] = {"gone.onnx": "0" * 64}
    (folder / "gone.json").write_text(json.dumps(content))
    done = run("--check", "gone.json")
    assert (done.returncode, done.stderr) == (2, "bnfold: gone.json: certifies 'gone.onnx', which isn't there\n")
    done = run("--check", "forged.json")
    assert done.returncode == 1
    assert done.stderr == "bnfold: forged.json: 'b.onnx' is not the file that was certified\n"


def test_certificates_of_external_data(folder: Path, run: Bnfold) -> None:
    onnx.save(onnx.load(MODEL), folder / "e.onnx", save_as_external_data=True, location="e.bin", size_threshold=0)
    assert run("e.onnx", "b.onnx", "--certificate", "e.json").returncode == 0
    assert list(json.loads((folder / "e.json").read_text())["a"]) == ["e.onnx", "e.bin"]
    with open(folder / "e.bin", "r+b") as file:
        file.write(b"\1\1\1\1")
    assert run("--check", "e.json").returncode == 1


def test_junit(run: Bnfold, folder: Path) -> None:
    assert run("a.onnx", "bug.onnx", "--junit", "j.xml").returncode == 1
    suite = ElementTree.parse(folder / "j.xml").getroot()
    cases = suite.findall("testcase")
    assert cases[0].get("name") == "verdict" and cases[0].find("failure") is not None
    assert int(suite.get("tests", "0")) == len(cases)
    assert int(suite.get("failures", "0")) == len(suite.findall("testcase/failure"))


def test_plots(run: Bnfold, folder: Path) -> None:
    done = run("a.onnx", "bug.onnx", "--plot", "p.png")
    if importlib.util.find_spec("matplotlib") is None:
        assert done.returncode == 2
        assert done.stderr == "bnfold: --plot needs matplotlib; pip install 'bnfold[plot]'\n"
    else:
        assert done.returncode == 1
        assert (folder / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize("other", ["b.onnx", "bug.onnx"])
def test_pictures(folder: Path, suffix: str, other: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws them")
    from bnfold.verify.plot import plot

    found = bnfold.verify(folder / "a.onnx", folder / other)
    plot(found, folder / f"picture{suffix}", "costs $2 and $3")  # which is no formula
    content = (folder / f"picture{suffix}").read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    assert len(content) > 5000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "two models are needed"),
        (["a.onnx"], "a second model is needed"),
        (["a.onnx", "missing.onnx"], "missing.onnx"),
        (["a.onnx", "none.onnx"], "none.onnx: "),
        (["none.onnx", "a.onnx"], "none.onnx: "),
        (["a.onnx", "b.onnx", "-q", "-v"], "contradict"),
        (["a.onnx", "b.onnx", "--data", "missing.npz"], "missing.npz"),
        (["a.onnx", "b.onnx", "--data", "a.onnx"], "a.onnx: is no .npz"),
        (["a.onnx", "b.onnx", "--data", "wrong.npz"], "wrong.npz: "),
        (["a.onnx", "b.onnx", "--provider-b", "tpu"], "'tpu' is no provider"),
        (["a.onnx", "b.onnx", "--junit", "nowhere/j.xml"], "there is no folder 'nowhere'"),
        (["a.onnx", "b.onnx", "--junit", "b.onnx"], "b.onnx: is an input of this very command"),
        (["a.onnx", "b.onnx", "--data", "data.npz", "--certificate", "data.npz"], "data.npz: is an input of"),
        (["a.onnx", "b.onnx", "--data", "names.npz"], "names.npz: has no array for input"),
        (["a.onnx", "b.onnx", "--data", "cut.npz"], "cut.npz: is no .npz file of plain arrays"),
        (["a.onnx", "b.onnx", "--data", "one.npy"], "one.npy: is one array"),
        (["a.onnx", "b.onnx", "--seed", "-1"], "--seed"),
        (["--check", "a.onnx"], "a.onnx: is no certificate"),
        (["--check", "missing.json"], "missing.json"),
        (["a.onnx", "--check", "c.json"], "--check takes the files"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line(run: Bnfold, arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bnfold: ") and done.stderr.count("\n") == 1
    assert words in done.stderr


def test_providers_that_are_not_there(run: Bnfold) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has it")
    done = run("a.onnx", "b.onnx", "--provider-b", "cuda")
    assert (done.returncode, done.stderr) == (2, "bnfold: this ONNX Runtime has no provider 'cuda'; it has cpu\n")


def test_fold_with_a_full_verdict(folder: Path) -> None:
    command = [sys.executable, "-m", "bnfold", "fold", "a.onnx", "-o", "full.onnx", "--verify"]
    done = subprocess.run([*command, "full"], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "verify   equal: each of " in done.stdout
    done = subprocess.run([*command, "some"], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (2, "bnfold: --verify is 'usual' or 'full', not 'some'\n")
