"""Models of a few lines with weights that count, and how to look at what became of them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from conftest import REPO
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bnfold.model_file import LoadedModel


def array(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_model(**weights: np.ndarray[Any, Any]) -> ModelProto:
    """x → Identity → y, and these initializers."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], name="id")], "g", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def write(path: Path, **weights: np.ndarray[Any, Any]) -> Path:
    path.write_bytes(small_model(**weights).SerializeToString())
    return path


def write_external(path: Path, data_name: str = "", **weights: np.ndarray[Any, Any]) -> Path:
    """A model as onnx itself writes it with external data."""
    location = data_name or f"{path.name}.data"
    onnx.save(small_model(**weights), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def contents(proto: ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def same_weights(path: Path, **weights: np.ndarray[Any, Any]) -> bool:
    """Whether onnx itself finds these initializers, and nothing else, in the file."""
    found = contents(onnx.load(path))
    return found.keys() == weights.keys() and all(np.array_equal(found[name], weights[name]) for name in weights)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def zeroed(model: LoadedModel, name: str) -> None:
    """Edit a tensor: its content is to be zeros, made in two chunks when written."""
    tensor = next(tensor for tensor in model.proto.graph.initializer if tensor.name == name)
    count = int(np.prod(tensor.dims))
    chunks = (count // 2, count - count // 2)
    model.weights.defer(tensor, lambda: (np.zeros(chunk, np.float32) for chunk in chunks))


def model_with_tensors_everywhere() -> ModelProto:
    """A large tensor, each of another content, in every place where ONNX can keep one."""
    seeds = iter(range(100))

    def big(name: str) -> TensorProto:
        return numpy_helper.from_array(array(300, seed=next(seeds)), name)

    def constant(name: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=big(""), name=f"make {name}")

    def graph(name: str, *inner: onnx.GraphProto) -> onnx.GraphProto:
        nodes = [constant(f"{name}.c"), *(helper.make_node("If", ["b"], [], then_branch=body) for body in inner)]
        return helper.make_graph(nodes, name, [], [], [big(f"{name}.w")])

    def sparse(name: str) -> onnx.SparseTensorProto:
        return helper.make_sparse_tensor(big(name), numpy_helper.from_array(np.arange(300)), [1000])

    model = helper.make_model(graph("main", graph("then", graph("deep"))))
    model.graph.node.append(helper.make_node("Odd", [], ["o"], domain="my", many=[big("m0"), big("m1")]))
    model.graph.node[-1].attribute.append(helper.make_attribute("graphs", [graph("g0"), graph("g1")]))
    model.graph.node[-1].attribute.append(helper.make_attribute("sparse", sparse("s0")))
    model.graph.sparse_initializer.append(sparse("s1"))
    for overload in ("", "second"):
        function = helper.make_function("my", "f", [], ["y"], [constant("y")], [], overload=overload)
        function.attribute_proto.append(helper.make_attribute("default", big("d")))
        model.functions.append(function)
    model.training_info.add().algorithm.CopyFrom(graph("algorithm"))
    model.graph.quantization_annotation.add(tensor_name="main.w")
    # Fields that this onnx doesn't know, one of them a group that looks like an initializer inside.
    unknown = b"\xba\x3e\x05hello" + b"\xbb\x3e" + b"\x2a\x03\x4a\x01x" + b"\xbc\x3e"
    return ModelProto.FromString(model.SerializeToString() + unknown)


def git_lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def run(script: str, **values: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script).format(path=[str(REPO), str(REPO / "tests")], **values)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
