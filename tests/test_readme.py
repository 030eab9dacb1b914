"""What the README and the examples say is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import MODEL, bnfold, ok

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")


def test_fold_of_the_readme(tmp_path: Path) -> None:
    (tmp_path / "resnet.onnx").write_bytes((REPO / "sample_models" / "digits_preact.onnx").read_bytes())
    shown = re.search(r"    \$ bnfold (fold resnet.onnx)\n((?:    .*\n)+)", README)
    assert shown
    printed = ok(*shown[1].split(), cwd=tmp_path)
    told = "".join(line[4:] + "\n" for line in shown[2].splitlines())
    worst = re.compile(r"worst [\d.]+")  # depends on the processor
    assert worst.sub("", printed) == worst.sub("", told)


@pytest.mark.parametrize("command", re.findall(r"^    bnfold (.*?)(?:  .*)?$", README, re.MULTILINE))
def test_commands_of_the_readme(tmp_path: Path, command: str) -> None:
    (tmp_path / "model.onnx").write_bytes(MODEL.read_bytes())
    (tmp_path / "digits.npz").write_bytes((REPO / "sample_models" / "digits.npz").read_bytes())
    if "model.folded.onnx" in command:
        ok("fold", "model.onnx", "--no-verify", cwd=tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "one.onnx").write_bytes(MODEL.read_bytes())
    (tmp_path / "models" / "two.onnx").write_bytes(MODEL.read_bytes())
    words = command.replace("models/*.onnx", "models/one.onnx models/two.onnx").split()  # as a shell does
    result = bnfold(*words, cwd=tmp_path)
    assert result.returncode == ("--check" in words), result.stderr
    assert result.stdout


# What each example prints, among other things.
SAID = {
    "fold_in_a_pipeline": "13 BatchNorm -> 0",
    "recalibrate_quantized_weights": "recalibrated          98",
    "repair_merged_networks": "nodes                  13, the same as before",
}


def test_links_of_the_documents_lead_somewhere() -> None:
    documents = [path for path in REPO.glob("**/*.md") if not any(part.startswith(".") for part in path.parts)]
    links = [(path, link) for path in documents for link in re.findall(r"\]\(([^)#:]+)[)#]", path.read_text("utf-8"))]
    assert links
    assert [(path.name, link) for path, link in links if not (path.parent / link).exists()] == []


ELSEWHERE = {"mnist_life_cycle"}  # in test_torch.py, since it takes torch
EXAMPLES = [path for path in sorted((REPO / "examples").glob("*.py")) if path.stem not in ELSEWHERE]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path) -> None:
    result = subprocess.run([sys.executable, str(example)], check=False, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    assert SAID[example.stem] in result.stdout
