"""Scale: is the time linear in the size of the model?

    python benchmarks/scale.py [--part 1]

Prints a markdown table with one row for each way in which a model can be large: CPU seconds of planning and of the
whole fold at a quarter of the size and at the full size, and their ratio (4 is linear); and the same for verifying a
fold of `pairs`.  `tests/test_scale.py` checks the ratios at smaller sizes.  Exit code 1 when a limit is broken: 10,000
Conv + BN planned in 3 s, `bnfold --help` in 0.4 s, and any ratio at most `LARGEST_RATIO`.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable

import numpy as np
from harness import one_cpu, run, say, table
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.fold import Options, fold_model, plan_model
from bnfold.model_file import wrap

CHANNELS = 8
LARGEST_RATIO = 6.0
"""Of CPU times at n and n / 4.  Linear is 4, with a share of n log n and of caches that get too small."""
PLAN_SECONDS, HELP_SECONDS = 3.0, 0.4


class Builder:
    """A model that grows, on one input x of 8 channels."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []

    def constant(self, name: str, *shape: int, low: float, high: float) -> str:
        array = self.rng.uniform(low, high, shape).astype(np.float32)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        """Append a node; gives its output."""
        output = f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], f"node{len(self.nodes)}", **attributes))
        return output

    def batch_norm(self, x: str, channels: int = CHANNELS) -> str:
        """Gammas and variances near 1, so that thousands in a row multiply to what float32 can hold."""
        names = [f"{kind}{len(self.nodes)}" for kind in ("gamma", "beta", "mean", "var")]
        return self.node("BatchNormalization", [x, *(self.constant(n, channels, low=0.95, high=1.05) for n in names)])

    def conv(self, x: str, size: int = 1, pads: int = 0) -> str:
        weight = self.constant(f"w{len(self.nodes)}", CHANNELS, CHANNELS, size, size, low=-0.1, high=0.1)
        return self.node("Conv", [x, weight], pads=[pads] * 4)

    def model(self, outputs: list[str]) -> ModelProto:
        shape: list[str | int] = ["N", CHANNELS, 8, 8]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", *outputs)]
        graph = helper.make_graph(self.nodes, "scale", values[:1], values[1:], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pairs(count: int) -> ModelProto:
    """Conv, BN, Relu, again and again."""
    build, x = Builder(), "x"
    for _ in range(count):
        x = build.node("Relu", [build.batch_norm(build.conv(x, 3, pads=1))])
    return build.model([x])


def chained(count: int) -> ModelProto:
    """One BN after the other."""
    build, x = Builder(), "x"
    for _ in range(count):
        x = build.batch_norm(x)
    return build.model([x])


def many_norms(count: int) -> ModelProto:
    """One value that many BN read."""
    build = Builder()
    x = build.conv("x")
    return build.model([build.node("Relu", [build.batch_norm(x)]) for _ in range(count)])


def many_convs(count: int) -> ModelProto:
    """One BN that many Convs read."""
    build = Builder()
    x = build.batch_norm("x")
    return build.model([build.conv(x) for _ in range(count)])


def preactivation(count: int) -> ModelProto:
    """Residual blocks x + Conv(Relu(BN(x))): every BN reads the stream that all blocks before it have added to."""
    build = Builder()
    x = build.conv("x")
    for _ in range(count):
        x = build.node("Add", [x, build.conv(build.node("Relu", [build.batch_norm(x)]), 3, pads=1)])
    return build.model([x])


def wide_sum(count: int) -> ModelProto:
    """A BN (written out) of so many channels on the sum of two values: as many ties between three shifts."""
    build = Builder()
    sides = [build.node("MatMul", ["x", build.constant(name, CHANNELS, count, low=-0.1, high=0.1)]) for name in "pq"]
    x = build.node("Add", sides)
    for op in ("Mul", "Add"):
        x = build.node(op, [x, build.constant(op, count, low=0.95, high=1.05)])
    return build.model([build.node("MatMul", [x, build.constant("w", count, CHANNELS, low=-0.1, high=0.1)])])


def dense(count: int) -> ModelProto:
    """Concatenations that grow: BN number k reads k values at once, so the input itself is quadratic."""
    build = Builder()
    parts = [build.conv("x")]
    for _ in range(count):
        x = build.node("Concat", list(parts), axis=1)
        x = build.node("Relu", [build.batch_norm(x, CHANNELS * len(parts))])
        weight = build.constant(f"w{len(build.nodes)}", CHANNELS, CHANNELS * len(parts), 1, 1, low=-0.1, high=0.1)
        parts.append(build.node("Conv", [x, weight]))
    return build.model(parts[-1:])


SHAPES: dict[Callable[[int], ModelProto], int] = {
    pairs: 10_000, chained: 10_000, many_norms: 2_000, many_convs: 2_000, preactivation: 1_000,
    wide_sum: 10_000, dense: 120,
}  # fmt: skip
"""The full size of each, in BN (for `many_convs`: Convs; for `wide_sum`: channels)."""

VERIFIED = 800
"""Conv + BN that are compared with what becomes of them."""

QUADRATIC = (dense,)
"""Here the model's own size grows with the square of the count: 16 is linear."""


def seconds(work: Callable[[], object], runs: int = 3) -> float:
    """CPU seconds of this process, the best of some runs: what others do to the caches only adds."""
    best = float("inf")
    for _ in range(runs):
        gc.collect()
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def cost(build: Callable[[int], ModelProto], count: int) -> tuple[float, float]:
    """CPU seconds of planning, and of the whole fold, static proof included."""
    model = wrap(build(count))
    return seconds(lambda: plan_model(model, Options(), {})), seconds(lambda: fold_model(model, Options()))


def verifying(count: int) -> float:
    """CPU seconds of comparing a model of Conv + BN with its fold."""
    model = pairs(count)
    folded = bnfold.fold(model, verify=False).model
    return seconds(lambda: bnfold.verify(model, folded), runs=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", type=float, default=1.0, help="part of the full sizes to measure (default: 1)")
    part = parser.parse_args().part
    one_cpu()
    help_cost = min((run([sys.executable, "-m", "bnfold", "--help"]) for _ in range(3)), key=lambda cost: cost.cpu)
    rows, faults = [], [f"--help: {help_cost.cpu:.2f} s {help_cost.error}"] if help_cost.cpu > HELP_SECONDS else []
    cost(pairs, 50)  # imports, caches
    for build, full in SHAPES.items():
        count = max(int(full * part), 8)
        small, large = cost(build, count // 4), cost(build, count)
        ratios = [big / little for little, big in zip(small, large, strict=True)]
        rows.append([build.__name__, str(count), *(f"{s:.2f}" for pair in zip(small, large, strict=True) for s in pair),
                     *(f"{ratio:.1f}" for ratio in ratios)])  # fmt: skip
        say(" | ".join(rows[-1]))
        limit = LARGEST_RATIO * (4 if build in QUADRATIC else 1)
        if max(ratios) > limit:
            faults.append(f"{build.__name__}: {max(ratios):.1f} times the time at 4 times the size")
        if build is pairs and large[0] > PLAN_SECONDS * max(part, 0.1):
            faults.append(f"{count} Conv + BN took {large[0]:.2f} s to plan")
    print(table(["model", "n", "plan n/4", "plan n", "fold n/4", "fold n", "plan ratio", "fold ratio"], rows))
    count = max(int(VERIFIED * part), 40)
    quick, slow = verifying(count // 4), verifying(count)
    ratio = slow / quick
    if ratio > LARGEST_RATIO:
        faults.append(f"verify: {ratio:.1f} times the time at 4 times the size")
    print(f"\nverify of {count // 4} and {count} pairs: {quick:.1f} and {slow:.1f} CPU s, ratio {ratio:.1f}")
    print(f"\n`bnfold --help`: {help_cost.cpu:.2f} CPU s, {help_cost.peak:.0f} MB; {len(faults)} faults")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
