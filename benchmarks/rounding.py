"""Where the outputs of a quantised model and of its fold part: random networks, followed rounding by rounding.

    python benchmarks/rounding.py [--nets 1500]

A QuantizeLinear makes a whole step of a last digit where a value lies at the edge of two, and what is behind it makes
more of that.  So each folded network is run twice: as it is, and with the original's integers in place of what each of
its QuantizeLinear gives.  Then every difference is one that its own segment made.

Prints a markdown table, a row for each kind of network: those whose int32 biases stay to the bit, those where one took
a shift (it is rounded to the steps of an integer kernel, by half a step at most, which the report announces), and the
latter with these biases as floats.  Columns: networks and BatchNorm folded; values that are rounded and how many come
out as another integer; the largest difference in front of a rounding, over the largest value there; the same of the
outputs (rms); and the outputs' with all roundings as they fall.  Exit code 1 if anything but a rounded bias makes a
difference of more than 2e-6.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from harness import say, table
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

# Of float32, over a few hundred terms: 5.3e-7 was the largest of 1500 networks.
NOISE = 2e-6
KINDS = ("biases as they were", "a bias rounded", "the same, with biases of floats")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nets", type=int, default=1500)
    nets = parser.parse_args().nets
    found: dict[str, list[Parting]] = {kind: [] for kind in KINDS}
    for seed in range(nets):
        model = network(seed)
        parting = part(model, seed)
        found[KINDS[parting.rounds_bias]].append(parting)
        if parting.rounds_bias:
            found[KINDS[2]].append(part(with_float_biases(model), seed))
        if seed % 100 == 99:
            say(f"{seed + 1} networks")
    header = ["network", "nets", "BN folded", "rounded values", "others", "in front", "output", "as they fall"]
    print(table(header, [[kind, *_row(partings)] for kind, partings in found.items()]))
    exact = [parting for kind in (KINDS[0], KINDS[2]) for parting in found[kind]]
    return int(any(max(parting.in_front, parting.output) > NOISE or parting.rounds_bias for parting in exact))


def _row(partings: list[Parting]) -> list[str]:
    counts = [len(partings), *(sum(getattr(p, name) for p in partings) for name in ("folded", "values", "others"))]
    sizes = [max((getattr(p, name) for p in partings), default=0.0) for name in ("in_front", "output", "as_they_fall")]
    return [f"{count}" for count in counts] + [f"{size:.1e}" for size in sizes]


# -- networks ----------------------------------------------------------------------------------------


@dataclass
class Net:
    """A graph that grows node by node, by chance."""

    seed: int
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.opset = int(self.rng.choice([12, 13, 17, 21]))
        self.domain = "com.microsoft" if self.chance(0.25) else ""  # of the quantisation

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def store(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        output, domain = f"v{len(self.nodes)}", self.domain if op.endswith("izeLinear") else None
        self.nodes.append(helper.make_node(op, list(inputs), [output], name, domain=domain, **attributes))
        return output

    def rounded(self, value: str) -> tuple[str, float]:
        """A value behind QuantizeLinear and DequantizeLinear, and the size of the steps."""
        step = np.float32(self.rng.uniform(0.02, 0.06))
        parameters = self.store(step), self.store(self.rng.integers(90, 160), np.uint8)
        whole = self.add("QuantizeLinear", value, *parameters)
        return self.add("DequantizeLinear", whole, *parameters), float(step)

    def weight(self, shape: tuple[int, ...]) -> tuple[str, Array | None]:
        """A weight, and its scale if it is kept as integers."""
        kind = self.rng.choice(["int8", "int8", "uint8", "float"])
        if kind == "float":
            return self.store(self.rng.normal(0, 0.5, shape)), None
        low, high, zero = (0, 256, 128) if kind == "uint8" else (-128 + self.chance(0.5), 128, 0)
        of_channels = self.chance(0.6) and (self.opset >= 13 or bool(self.domain))
        scale = self.rng.uniform(0.005, 0.02, shape[:1] if of_channels else ()).astype(np.float32)
        inputs = [self.store(self.rng.integers(low, high, shape), kind), self.store(scale)]
        inputs += [self.store(np.full(scale.shape, zero), kind)] if zero or self.chance(0.5) else []
        return self.add("DequantizeLinear", *inputs, **({"axis": 0} if of_channels else {})), scale

    def bias(self, rows: int, step: float, scale: Array | None) -> list[str]:
        """None, floats, or int32 in the steps of an integer kernel."""
        if self.chance(0.4):
            return []
        if scale is None or not step or self.chance(0.2):
            return [self.store(self.rng.normal(0, 1, rows))]
        steps = np.asarray(np.float32(step) * scale, np.float32)
        if not steps.ndim and (self.opset >= 13 or self.domain) and self.chance(0.5):
            steps = np.full(rows, steps)
        inputs = self.store(self.rng.integers(-500, 500, rows), np.int32), self.store(steps)
        return [self.add("DequantizeLinear", *inputs, **({"axis": 0} if steps.ndim else {}))]

    def conv(self, value: str, channels: int) -> tuple[str, int]:
        """A Conv, maybe behind a rounding, maybe grouped."""
        value, step = self.rounded(value) if self.chance(0.5) else (value, 0.0)
        groups = channels if self.chance(0.25) else 1
        rows = int(self.rng.integers(1, 3)) * channels if groups > 1 else int(self.rng.integers(1, 6))
        size = int(self.rng.choice([1, 3]))
        weight, scale = self.weight((rows, channels // groups, size, size))
        bias = self.bias(rows, step, scale)
        return self.add("Conv", value, weight, *bias, group=groups, pads=[size // 2] * 4), rows

    def norm(self, value: str, channels: int) -> str:
        """A BatchNorm with signs, and now and then a dead channel."""
        gamma = self.rng.uniform(0.5, 2, channels) * self.rng.choice([1, 1, 1, -1], channels)
        gamma *= self.rng.random(channels) > 0.05
        vectors = gamma, *self.rng.normal(0, 0.5, (2, channels)), self.rng.uniform(0.5, 2, channels)
        return self.add("BatchNormalization", value, *map(self.store, vectors))


def network(seed: int) -> ModelProto:
    """Up to four Convs with BN, Mul, Relu and residual sums, weights and values rounded here and there."""
    net = Net(seed)
    first = channels = int(net.rng.integers(1, 5))
    value = "x"
    for _ in range(int(net.rng.integers(1, 5))):
        made, rows = net.conv(value, channels)
        made = net.norm(made, rows) if net.chance(0.8) else made
        made = net.add("Mul", made, net.store(net.rng.choice([2.0, -0.5, 3.0]))) if net.chance(0.2) else made
        made = net.add("Relu", made) if net.chance(0.5) else made
        made = net.add("Add", made, value) if rows == channels and net.chance(0.4) else made
        value, channels = made, rows
    if net.chance(0.3):
        value, _ = net.rounded(value)
    net.nodes.append(helper.make_node("Identity", [value], ["y"]))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size, 6, 6]) for name, size in
             (("x", first), ("y", channels))]  # fmt: skip
    graph = helper.make_graph(net.nodes, "net", ports[:1], ports[1:], net.tensors)
    opsets = [helper.make_opsetid("", net.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8 if net.opset < 21 else 10)


def with_float_biases(model: ModelProto) -> ModelProto:
    """The same with what int32 biases stand for."""
    copy = ModelProto()
    copy.CopyFrom(model)
    stored = _stored(copy)
    for node in list(copy.graph.node):
        if node.op_type == "DequantizeLinear" and node.input[0] in stored and stored[node.input[0]].dtype == np.int32:
            content = stored[node.input[0]].astype(np.float32) * stored[node.input[1]]
            copy.graph.initializer.append(numpy_helper.from_array(content, node.output[0]))
            copy.graph.node.remove(node)
    return copy


# -- runs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parting:
    """How a fold differs from its original.

    folded: BatchNorm that went; values: rounded ones; others: those that become another integer, though all that was
    rounded before is the original's; in_front: largest difference there in front of a rounding, over the largest value;
    output: of the outputs, over their size (rms); as_they_fall: the same where nothing is put in place;
    rounds_bias: whether an int32 bias took a shift.
    """

    folded: int
    values: int
    others: int
    in_front: float
    output: float
    as_they_fall: float
    rounds_bias: bool


def part(model: ModelProto, seed: int) -> Parting:
    """Fold a network and compare, on one random batch."""
    import bnfold

    result = bnfold.fold(model)
    counts = result.report.before.batch_norms - result.report.after.batch_norms
    rounds_bias = any("int32 bias" in notice for notice in result.report.notices)
    channels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    x = np.random.default_rng(seed).normal(0, 1.5, (2, channels, 6, 6)).astype(np.float32)
    original, folded = (_roundings(side) for side in (model, result.model))
    assert original.keys() == folded.keys(), "a QuantizeLinear is gone"
    expected = _run(model, {"x": x}, [name for node in original.values() for name in (node.input[0], node.output[0])])
    alone = _run(result.model, {"x": x}, [])
    given = {node.output[0]: expected[original[name].output[0]] for name, node in folded.items()}
    held = _run(_without(result.model, folded), {"x": x} | given, [node.input[0] for node in folded.values()])
    in_front, others, values = 0.0, 0, 0
    for name, node in folded.items():
        before, after = (
            run[one.input[0]].astype(np.float64) / _stored(side)[one.input[1]]
            for run, one, side in ((expected, original[name], model), (held, node, result.model))
        )
        zero = int(_stored(result.model)[node.input[2]])
        seen = np.clip(np.rint(after.astype(np.float32)) + zero, 0, 255)
        others += int((seen != expected[original[name].output[0]]).sum())
        in_front = max(in_front, float(np.abs(after - before).max() / max(np.abs(before).max(), 1.0)))
        values += seen.size
    rms = float(np.sqrt(np.mean(np.square(expected["y"], dtype=np.float64)))) or 1.0
    output, as_they_fall = (
        float(np.sqrt(np.mean(np.square(run["y"] - expected["y"], dtype=np.float64)))) / rms for run in (held, alone)
    )
    return Parting(counts, values, others, in_front, output, as_they_fall, rounds_bias)


def _stored(model: ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _roundings(model: ModelProto) -> dict[str, NodeProto]:
    """Every QuantizeLinear of computed values, by its name."""
    stored = _stored(model)
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return {node.name: node for node in nodes if node.input[0] not in stored}


def _without(model: ModelProto, roundings: dict[str, NodeProto]) -> ModelProto:
    """The model with what its roundings give as inputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for node in list(copy.graph.node):
        if node.name in roundings:
            copy.graph.input.append(helper.make_tensor_value_info(node.output[0], TensorProto.UINT8, None))
            copy.graph.node.remove(node)
    return copy


def _run(model: ModelProto, feeds: dict[str, Array], names: list[str]) -> dict[str, Array]:
    """The output y, these values and what is fed, without ONNX Runtime's optimisations."""
    import onnxruntime

    copy = ModelProto()
    copy.CopyFrom(model)
    wanted = [name for name in dict.fromkeys(names) if name not in feeds and name != "y"]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = {given.name: feeds[given.name] for given in session.get_inputs()}
    return feeds | dict(zip(["y", *wanted], session.run(["y", *wanted], taken), strict=True))


if __name__ == "__main__":
    sys.exit(main())
