"""What a file of 2 GB costs: `bnfold fold` against `cp`, in time and in memory.

    python benchmarks/large_files.py                  fold, without the proof that runs the model
    python benchmarks/large_files.py --copy-only      only read and write: what is the floor?

Makes two models in a temporary folder, each a Conv and a row of 8192 x 8192 Gemms with BN behind
the Conv and behind two of the Gemms: 2.1 GB with external data, and a single file of 1.9 GB, which
is nearly all that protobuf can hold.  The files are in the page cache when the clock starts.  `cp`
leaves its output in the page cache as well; bnfold waits until it is on disk, so that time is given
for `cp` too (`cp; sync`).  Memory is RssAnon of the process, asked every 2 ms: what the system
can't have back, unlike pages of a mapped file.  The least time of several rounds counts: on a
virtual machine fresh pages can cost more than the copying.  Needs Linux and 7 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from bnfold.model_file import LoadedModel, Weights, save  # noqa: E402 (also from a checkout that isn't installed)

WIDTH = 8192  # one weight: 8192 x 8192 float32, 268 MB
WITH_BN = (0, 2)  # the Gemms that BN follows
ROWS = 256  # 8 MB of weights are drawn and repeated: only their number matters here

COPY = "import sys; from bnfold.model_file import load, save; save(load(sys.argv[1]), sys.argv[2])"


class Cost(NamedTuple):
    wall: float
    cpu: float
    anonymous: float = 0.0


def network(gemms: int) -> ModelProto:
    """Conv, BN, Relu, pool, then the Gemms; their weights "w0", "w1", … have dims and no content yet."""
    rng = np.random.default_rng(0)
    initializers: list[TensorProto] = []

    def constant(name: str, value: np.ndarray[Any, Any]) -> str:
        initializers.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def batch_norm(x: str, name: str, channels: int) -> Any:
        ends = {"gamma": (0.5, 2), "beta": (-1, 1), "mean": (-1, 1), "var": (0.5, 2)}
        params = [constant(f"{name}.{end}", rng.uniform(*span, channels)) for end, span in ends.items()]
        return helper.make_node("BatchNormalization", [x, *params], [name], name=name)

    conv = constant("conv.weight", rng.standard_normal((WIDTH, 3, 3, 3)) / 5)
    nodes = [
        helper.make_node("Conv", ["image", conv], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        batch_norm("conv", "bn", WIDTH),
        helper.make_node("Relu", ["bn"], ["relu"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["x0"], name="flatten"),
    ]
    for k in range(gemms):
        initializers.append(TensorProto(name=f"w{k}", dims=[WIDTH, WIDTH], data_type=TensorProto.FLOAT))
        nodes.append(helper.make_node("Gemm", [f"x{k}", f"w{k}"], [f"gemm{k}"], name=f"gemm{k}", transB=1))
        if k in WITH_BN:
            nodes.append(batch_norm(f"gemm{k}", f"bn{k}", WIDTH))
        nodes.append(helper.make_node("Relu", [nodes[-1].output[0]], [f"x{k + 1}"], name=f"relu{k}"))
    x = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info(f"x{gemms}", TensorProto.FLOAT, [1, WIDTH])
    graph = helper.make_graph(nodes, "large", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weight_blocks() -> Iterator[np.ndarray[Any, Any]]:
    block = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32) / np.float32(64)
    for _ in range(WIDTH // ROWS):
        yield block


def write_single_file(path: Path) -> None:
    model = LoadedModel(network(7), Weights(), None)
    for tensor in model.proto.graph.initializer:
        if list(tensor.dims) == [WIDTH, WIDTH]:
            model.weights.defer(tensor, weight_blocks)
    save(model, path)


def write_external(path: Path) -> None:
    proto = network(8)
    with path.with_name(f"{path.name}.data").open("wb") as file:
        for tensor in proto.graph.initializer:
            if list(tensor.dims) == [WIDTH, WIDTH]:
                tensor.data_location = TensorProto.EXTERNAL
                entries = {"location": f"{path.name}.data", "offset": file.tell(), "length": 4 * WIDTH * WIDTH}
                for key, value in entries.items():
                    tensor.external_data.add(key=key, value=str(value))
                file.writelines(block.data for block in weight_blocks())
    path.write_bytes(proto.SerializeToString())


def run(command: list[str]) -> Cost:
    """Time of the process, and the most anonymous memory that it was seen to have, in MB."""
    begin, peak = time.perf_counter(), 0
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                peak = max(peak, int(line.split()[1]))
        time.sleep(0.002)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return Cost(time.perf_counter() - begin, used.ru_utime + used.ru_stime, peak / 1024)


def once(commands: list[list[str]], target: Path) -> Cost:
    """These commands, one after the other, into an empty folder."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    return Cost(*(sum(column) for column in zip(*map(run, commands), strict=True)))


def compare(tasks: dict[str, list[list[str]]], target: Path, repeat: int) -> dict[str, Cost]:
    """The least time and the most memory of each task in `repeat` rounds, in which they take turns at being first."""
    order = list(tasks)
    rounds = []
    for _ in range(repeat):
        rounds.append({name: once(tasks[name], target) for name in order})
        order.append(order.pop(0))
    return {
        name: Cost(
            min(r[name].wall for r in rounds), min(r[name].cpu for r in rounds), max(r[name].anonymous for r in rounds)
        )
        for name in tasks
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copy-only", action="store_true", help="load and save instead of fold")
    parser.add_argument("--folder", help="where to put the files (default: the system's temporary folder)")
    parser.add_argument("--repeat", type=int, default=6)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        print(f"{'':26}{'wall s':>8}{'CPU s':>8}{'anonymous MB':>14}{'wall / cp':>11}{'wall / (cp; sync)':>19}")
        for title, write in (("external data", write_external), ("single file", write_single_file)):
            source, target = Path(name, "in"), Path(name, "out")
            source.mkdir()
            model, output = source / "model.onnx", target / "model.onnx"
            write(model)
            os.sync()
            files = list(source.iterdir())
            copy = ["cp", *map(str, files), str(target)]
            ours = [sys.executable, "-m", "bnfold", "fold", str(model), "-o", str(output), "--no-verify"]
            if arguments.copy_only:
                ours = [sys.executable, "-c", COPY, str(model), str(output)]
            tasks = {
                "cp": [copy],
                "cp; sync": [copy, ["sync", *(str(target / file.name) for file in files)]],
                "bnfold, load and save" if arguments.copy_only else "bnfold fold": [ours],
            }
            costs = compare(tasks, target, arguments.repeat)
            print(f"{title}, {sum(file.stat().st_size for file in files) / 1e9:.2f} GB")
            for label, cost in costs.items():
                print(
                    f"  {label:24}{cost.wall:8.2f}{cost.cpu:8.2f}{cost.anonymous:14.0f}"
                    f"{cost.wall / costs['cp'].wall:11.2f}{cost.wall / costs['cp; sync'].wall:19.2f}"
                )
            shutil.rmtree(source)


if __name__ == "__main__":
    main()
