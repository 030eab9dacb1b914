"""Where mutation begins: sound files of each kind, and beside them every attack that `tests/attacks` knows.

python fuzz/seeds.py FOLDER            writes FOLDER/model/…, FOLDER/layout/…, a folder for each target
"""

from __future__ import annotations

import io
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper, numpy_helper

TESTS = Path(__file__).resolve().parent.parent / "tests"
# Larger attacks are bombs by their size; fuzzing them would only be slow.
LARGEST = 100_000
# Of the run whose checkpoint is fuzzed.
SIGNATURE = {"model": "network", "method": "exact"}


def seeds(target: str) -> list[bytes]:
    """Sound files, or nearly."""
    return SEEDS[target]()


def corpus(target: str) -> list[bytes]:
    """The seeds, and the attacks."""
    return [*seeds(target), *(data for data in ATTACKS.get(target, list)() if 0 < len(data) < LARGEST)]


# -- models -----------------------------------------------------------------------------------------


def network(kind: int) -> ModelProto:
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
        helper.make_node("BatchNormalization", ["t", "g", "b", "m", "v"], ["o"], name="last"),
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


# -- external data ----------------------------------------------------------------------------------


def _layouts() -> list[bytes]:
    """A line a tensor: location|offset|length."""
    overflowing = b"w.bin|1\nw.bin|18446744073709551615|4"
    return [b"w.bin|0|1024\nw.bin|1024|1024", b"../secret|0|1024", overflowing, b"m.onnx", b"w.bin|1024"]


# -- data files -------------------------------------------------------------------------------------


def _saved(save: Callable[..., Any], *arrays: Any, **named: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def _archives() -> list[bytes]:
    array = np.arange(60, dtype=np.float32).reshape(20, 3)
    found = [_saved(save, x=array, y=np.arange(20)) for save in (np.savez, np.savez_compressed)]
    found.append(_saved(np.save, np.asfortranarray(array)))
    return [*found, b"PK\x05\x06" + bytes(18), struct.pack("<4sHHI", b"PK\x03\x04", 20, 1, 0)]


def _images() -> list[bytes]:
    import PIL.Image

    picture = PIL.Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    return [_saved(picture.save, format=kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP")]


def _statistics() -> list[bytes]:
    """What `recalibrate --undo` writes for `network(0)`."""
    half = np.full(4, 0.5)
    arrays = {f"{number}.{role}": half for number in (0, 1) for role in ("mean", "variance")}
    return [_saved(np.savez, names=np.array(["bn", "last"]), scopes=np.array(["", ""]), **arrays)]


def _checkpoints() -> list[bytes]:
    from bnfold.recalibrate.checkpoint import Checkpoint, Progress
    from bnfold.recalibrate.moments import Moments, Trace

    moments = Moments(4, np.arange(3.0), np.ones(3))
    progress = Progress([Trace(moments, [moments], 2, 2)], 2, 16, 1, 7, 9, ["few"], [{"v": "1.npy"}, {"v": "2.npy"}])
    with tempfile.TemporaryDirectory() as folder:
        Checkpoint(Path(folder) / "c.npz", SIGNATURE).write(progress)
        return [(Path(folder) / "c.npz").read_bytes()]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "model": lambda: [network(kind).SerializeToString() for kind in range(3)],
    "layout": _layouts, "samples": _archives, "image": _images, "undo": _statistics, "checkpoint": _checkpoints,
}  # fmt: skip


# -- attacks ----------------------------------------------------------------------------------------


def _attack_tables() -> tuple[Any, Any]:
    sys.path[:0] = [str(TESTS), str(TESTS / "attacks")]
    import hostile_graphs
    import hostile_samples

    return hostile_graphs, hostile_samples


def _hostile_models() -> Iterator[bytes]:
    graphs, _ = _attack_tables()
    for table in ("TENSORS", "NAMES", "STRUCTURE", "BOMBS", "OPERATORS", "NUMBERS"):
        for attack in getattr(graphs, table).values():
            yield attack.make().SerializeToString()


def _hostile_files(table: str) -> Iterator[bytes]:
    """What the builders write that make regular files and no bomb."""
    _, samples = _attack_tables()
    for name, (build, _) in getattr(samples, table).items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "d.npz"
            if "bomb" not in name:
                build(path)
            if path.is_file() and not path.is_symlink():
                yield path.read_bytes()


ATTACKS: dict[str, Callable[[], Any]] = {
    "model": _hostile_models,
    "samples": lambda: _hostile_files("HOSTILE_SAMPLES"),
    "image": lambda: _hostile_files("IMAGES"),
}


def main() -> None:
    """Write everything as files."""
    for target in SEEDS:
        folder = Path(sys.argv[1]) / target
        folder.mkdir(parents=True, exist_ok=True)
        found = corpus(target)
        for number, data in enumerate(found):
            (folder / f"seed-{number:03}").write_bytes(data)
        print(f"{len(found)} files in {folder}")


if __name__ == "__main__":
    main()
