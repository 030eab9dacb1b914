"""`bnfold recalibrate` beside torch: the same statistics from the same batches, and what `update_bn` costs.

    python benchmarks/recalibration_torch.py parity [NETWORK …] [--size 96] [--samples 32]
    python benchmarks/recalibration_torch.py cost [NETWORK …] [--size 128] [--samples 192] [--runs 3]

`parity`: the largest relative difference of a variance, of all channels of all BatchNorms: pooled against torch's
train-mode batches in float32 and in float64, exact against one float64 batch of everything; and torch's own float32
against its float64, which tells what of a difference is rounding. Exit code 1 above 2e-5 (pooled, torch in float32)
or 1e-5 (exact).

`cost`: CPU seconds (user + system), in one process, interleaved, one thread each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import one_cpu, say, table
from networks import NETWORKS, network

POOLED, EXACT = 2e-5, 1e-5


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("verb", choices=["parity", "cost"])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    one_cpu()
    import numpy as np
    import torch

    torch.set_num_threads(1)
    size, samples = (96, 32) if arguments.verb == "parity" else (128, 192)
    shape = (arguments.batch, 3, arguments.size or size, arguments.size or size)
    rng = np.random.default_rng(3)
    count = (arguments.samples or samples) // arguments.batch
    data = [rng.standard_normal(shape, np.float32) for _ in range(count)]
    return parity(arguments.networks, data) if arguments.verb == "parity" else cost(arguments, data)


def parity(names: list[str], data: list[Any]) -> int:
    import numpy as np
    from torch_peer import Network, pooled_statistics

    rows, worst = [], 0.0
    for name in names:
        model = network(name)
        single, double = (pooled_statistics(net, data) for net in (Network(model), Network(model).double()))
        whole = pooled_statistics(Network(model).double(), [np.concatenate(data)])
        pooled, exact = (_measured(model, data, method) for method in ("pooled", "exact"))
        found = [_apart(pooled, single), _apart(pooled, double), _apart(exact, whole), _apart(single, double)]
        worst = max(worst, found[0] / POOLED, found[2] / EXACT)
        rows.append([name, *(f"{value:.1e}" for value in found)])
        say(" ".join(rows[-1]))
    head = ["network", "pooled, torch float32", "pooled, torch float64", "exact, torch float64",
            "torch float32, torch float64"]  # fmt: skip
    print(table(head, rows))
    return int(worst > 1)


def _measured(model: Any, data: list[Any], method: Any) -> list[tuple[Any, Any]]:
    import bnfold

    result = bnfold.recalibrate(model, iter(data), batch_size=len(data[0]), method=method)
    return [(one.new_mean, one.new_var) for one in result.drift]


def _apart(some: list[tuple[Any, Any]], others: list[tuple[Any, Any]]) -> float:
    """Largest relative difference of a variance."""
    return max(float(abs(one[1] / other[1] - 1).max()) for one, other in zip(some, others, strict=True))


def cost(arguments: argparse.Namespace, data: list[Any]) -> int:
    import onnx
    import torch
    from torch.optim.swa_utils import update_bn
    from torch_peer import Network

    import bnfold

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.networks:
            model = Path(folder) / f"{name}.onnx"
            onnx.save(network(name), model)
            net = Network(onnx.load(model))
            tensors = [torch.from_numpy(batch) for batch in data]
            ratios, seconds = [], []
            for _ in range(arguments.runs + 1):
                start = time.process_time()
                bnfold.recalibrate(model, iter(data), batch_size=arguments.batch)
                middle = time.process_time()
                update_bn(tensors, net)
                ratios.append((middle - start) / (time.process_time() - middle))
                seconds.append(middle - start)
            low, *_, high = sorted(ratios[1:])  # the first run imports
            ratio = f"{statistics.median(ratios[1:]):.2f} ({low:.2f} to {high:.2f})"
            rows.append([name, f"{statistics.median(seconds[1:]):.2f}", ratio])
            say(" ".join(rows[-1]))
    print(table(["network", "pooled, s", "pooled / update_bn"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
