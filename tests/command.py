"""Running the command as people run it: as a process, judged by exit code, stdout, stderr and the files it leaves."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

MODEL = Path(__file__).resolve().parent.parent / "sample_models" / "digits_cnn.onnx"
Result = subprocess.CompletedProcess[str]


def bnfold(*arguments: object, **options: Any) -> Result:
    """Run the command."""
    command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 60, **options}
    return subprocess.run(command, check=False, **options)


def ok(*arguments: object, **options: Any) -> str:
    """Run the command, which must succeed without a word on stderr; returns its stdout."""
    result = bnfold(*arguments, **options)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(result: Result, message: str, code: int = 2) -> None:
    """One line on stderr that has `message`, nothing on stdout."""
    assert result.stdout == ""
    assert re.fullmatch(r"bnfold: [^\n]+\n", result.stderr), result.stderr
    assert message in result.stderr
    assert result.returncode == code


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def batch_norms(path: Path) -> list[str]:
    return [node.name for node in onnx.load(path).graph.node if node.op_type == "BatchNormalization"]


def conv_bn(name: str = "bn", domain: str = "", overridable: bool = False) -> ModelProto:
    """x → Conv → BN → Relu → y; `domain`: of the Relu, "" for one that ONNX Runtime knows."""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 1, 1), "gamma": (4,), "beta": (4,), "mean": (4,), "var": (4,)}
    tensors = [numpy_helper.from_array(rng.random(shape).astype(np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"], name=name),
        helper.make_node("Relu", ["b"], ["y"], name="relu", domain=domain),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])]
    if overridable:
        inputs += [helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims) for tensor in tensors]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(nodes, "g", inputs, [output], tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def interruptible() -> None:
    """For a child process before it starts: a shell's background job would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
