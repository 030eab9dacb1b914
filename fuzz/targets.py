"""What is fuzzed: one function for each reader of foreign bytes.

Each takes the bytes and a folder of its own, and returns what became of them in a word.  Whatever else it raises than a
BnfoldError is a bug, and so is a fold that isn't the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper
from seeds import network

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


def image(data: bytes, folder: Path) -> str:
    """The bytes of an image, alone in a folder, as recalibrate and insert read it."""
    from bnfold.inspection import Port
    from bnfold.recalibrate.data import open_data
    from bnfold.recalibrate.images import ImageOptions

    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "a.png").write_bytes(data)
    port, options = Port("x", "float32", (None, 3, 8, 8)), ImageOptions(resize=(8, 8))
    return _said(lambda: list(open_data(str(folder / "images"), [port], images=options).batches()))


def undo(data: bytes, folder: Path) -> str:
    """The bytes of a file of old statistics, as `recalibrate --restore` reads it."""
    from bnfold.recalibrate.undo import put_back

    path, model = folder / "undo.npz", folder / "network.onnx"
    path.write_bytes(data)
    if not model.exists():
        model.write_bytes(network(0).SerializeToString())
    return _said(lambda: put_back(model, path))


def checkpoint(data: bytes, folder: Path) -> str:
    """The bytes of a checkpoint, and the cache of values that it tells of."""
    from seeds import SIGNATURE

    from bnfold.recalibrate.cache import Cache
    from bnfold.recalibrate.checkpoint import Checkpoint

    path, precious = folder / "c.npz", folder / "precious.npy"
    path.write_bytes(data)
    precious.write_bytes(b"precious")

    def resume() -> None:
        found = Checkpoint(path, SIGNATURE)
        assert found.found is not None
        with Cache(0, found.folder, found.found.cached) as cache:
            for batch, names in enumerate(cache.files()):
                cache.get(batch)
                cache.drop(batch, names)
            cache.sweep()

    (folder / "c.npz.cache").mkdir(exist_ok=True)
    for name in ("1.npy", "2.npy"):
        np.save(folder / "c.npz.cache" / name, np.ones(4))
    word = _said(resume)
    assert precious.read_bytes() == b"precious", "a file outside of the cache"
    return word


def _said(use: Callable[[], object]) -> str:
    try:
        with np.errstate(all="ignore"):
            use()
    except BnfoldError as error:
        _demand_line(error)
        return "refused"
    return "read"


TARGETS: dict[str, Callable[..., str]] = {
    "model": model, "layout": layout, "samples": samples, "image": image, "undo": undo, "checkpoint": checkpoint,
}  # fmt: skip


def _taker() -> ModelProto:
    x, y = (helper.make_tensor_value_info(name, 1, ["N", 3]) for name in "xy")
    return helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]))


def _demand_line(error: BnfoldError) -> None:
    assert str(error).isprintable() and len(str(error)) < 5000, "more than a line"
