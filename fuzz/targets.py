"""What is fuzzed: one function for each reader of foreign bytes.

Each takes the bytes and a folder of its own, and returns what became of them in a word.  Whatever else it raises than a
BnfoldError is a bug, and so is a fold that isn't the same function.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.errors import BnfoldError, NotEquivalentError
from bnfold.model_file import load

SECRET = bytes(range(255, 0, -1)) * 8


def model(data: bytes, folder: Path, check: bool = False) -> str:
    """The bytes of a model: inspected, folded (`check`: and both run), written, read again."""
    path, out = folder / "m.onnx", folder / "o.onnx"
    path.write_bytes(data)
    try:
        bnfold.inspect(path).to_dict()
        result = bnfold.fold(path, verify=check)
    except NotEquivalentError:
        raise
    except BnfoldError as error:
        _demand_line(error)
        return "refused"
    result.save(out, overwrite=True)
    bnfold.inspect(out)
    return "folded" if result.folded else "left alone"


def layout(data: bytes, folder: Path) -> str:
    """Where three tensors say that their data are; above the model there is a file that it must not read."""
    (folder / "d").mkdir(exist_ok=True)
    (folder / "secret").write_bytes(SECRET)
    (folder / "d" / "w.bin").write_bytes(bytes(2048))
    tensors = []
    for index, fields in enumerate(data.split(b"\n")[:3]):
        tensor = TensorProto(name=f"w{index}", dims=[256], data_type=1, data_location=TensorProto.EXTERNAL)
        keys = ("location", "offset", "length", "checksum")
        for key, value in zip(keys, fields.split(b"|"), strict=False):
            tensor.external_data.add(key=key, value=value.decode("latin1"))
        tensors.append(tensor)
    x, y = (helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (folder / "d" / "m.onnx").write_bytes(proto.SerializeToString())
    try:
        files = bnfold.fold(folder / "d" / "m.onnx").save(folder / "d" / "o.onnx", overwrite=True)
    except BnfoldError as error:
        _demand_line(error)
        return "refused"
    assert not any(SECRET[:32] in file.read_bytes() for file in files), "bytes of a foreign file"
    load(files[0])
    return "read"


def samples(data: bytes, folder: Path) -> str:
    """The bytes of an .npz or .npy file, as recalibrate and verify read them."""
    from bnfold.inspection import Port
    from bnfold.recalibrate.data import open_data
    from bnfold.verify.data import from_file

    path = folder / "d.npz"
    path.write_bytes(data)
    port = Port("x", "float32", (None, 3))
    first = _said(lambda: sum(len(batch["x"]) for batch in open_data(str(path), [port]).batches()))
    second = _said(lambda: [batch["x"].sum() for batch in from_file(_taker(), path).batches])
    return first if first == second else f"{first} and {second}"


def _said(use: Callable[[], object]) -> str:
    try:
        with np.errstate(all="ignore"):
            use()
    except BnfoldError as error:
        _demand_line(error)
        return "refused"
    return "read"


TARGETS: dict[str, Callable[..., str]] = {"model": model, "layout": layout, "samples": samples}


def seeds(target: str) -> list[bytes]:
    """Where mutation begins."""
    if target == "layout":
        overflowing = b"w.bin|1\nw.bin|18446744073709551615|4"
        return [b"w.bin|0|1024\nw.bin|1024|1024", b"../secret|0|1024", overflowing, b"m.onnx", b"w.bin|1024"]
    if target == "samples":
        return _archives()
    return [_network(kind).SerializeToString() for kind in range(3)]


def _network(kind: int) -> ModelProto:
    """Conv, BN, Relu, a residual sum, a Gemm behind a Flatten; with a Constant, with an If, or of a function."""
    rng = np.random.default_rng(kind)
    tensors = {"w": (4, 3, 3, 3), "g": (4,), "b": (4,), "m": (4,), "v": (4,), "u": (4, 4, 1, 1), "f": (2, 144)}
    kept = [numpy_helper.from_array(rng.random(shape).astype(np.float32), name) for name, shape in tensors.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], name="bn", epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "u"], ["s"]),
        helper.make_node("Add", ["r", "s"], ["t"]),
        helper.make_node("BatchNormalization", ["t", "g", "b", "m", "v"], ["o"]),
        helper.make_node("Flatten", ["o"], ["l"]),
        helper.make_node("Gemm", ["l", "f"], ["y"], transB=1),
    ]
    functions = []
    if kind == 1:
        out = helper.make_tensor_value_info("z", 1, None)
        branches = [helper.make_graph([helper.make_node(op, ["n"], ["z"])], op, [], [out]) for op in ("Relu", "Abs")]
        nodes[2] = helper.make_node("If", ["yes"], ["r"], then_branch=branches[0], else_branch=branches[1])
        kept.append(numpy_helper.from_array(np.array(True), "yes"))
    if kind == 2:
        inner = [helper.make_node("Relu", ["a"], ["b"])]
        functions = [helper.make_function("f", "act", ["a"], ["b"], inner, [helper.make_opsetid("", 17)])]
        nodes[2] = helper.make_node("act", ["n"], ["r"], domain="f")
        nodes.insert(0, helper.make_node("Constant", [], ["g"], value=kept.pop(1)))
    x, y = helper.make_tensor_value_info("x", 1, ["N", 3, 8, 8]), helper.make_tensor_value_info("y", 1, ["N", 2])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    graph = helper.make_graph(nodes, "g", [x], [y], kept)
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8)


def _archives() -> list[bytes]:
    import io

    found, array = [], np.arange(60, dtype=np.float32).reshape(20, 3)
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, x=array, y=np.arange(20))
        found.append(buffer.getvalue())
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(array))
    return [*found, buffer.getvalue(), b"PK\x05\x06" + bytes(18), struct.pack("<4sHHI", b"PK\x03\x04", 20, 1, 0)]


def _taker() -> ModelProto:
    x, y = (helper.make_tensor_value_info(name, 1, ["N", 3]) for name in "xy")
    return helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]))


def _demand_line(error: BnfoldError) -> None:
    assert str(error).isprintable() and len(str(error)) < 5000, "more than a line"
