"""What `bnfold insert` is good for where BatchNorm was folded away long ago: a folded file can be recalibrated again.

    python benchmarks/insertion.py

A trained CIFAR-10 resnet20 is folded, and then its weights are rounded or pruned, as deployment does. Top-1 on 1,017
test images: the damaged file as it is, and repaired on 1,024 augmented training images. To repair is: insert into the
healthy folded file, damage the weights (the same ones, in the same way), recalibrate, fold; each by the command line.
Exit code 1 if a repaired network is not better, or has other nodes than the folded one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import say, table
from recalibration import CALIBRATION, IMAGES, REFERENCE, WEIGHTS, module_at, top1

Array = Any


def rounded(bits: int) -> Callable[[Array], Array]:
    """To so many bits, one step size for each output channel."""

    def damage(weight: Array) -> Array:
        import numpy as np

        axes = tuple(range(1, weight.ndim))
        step = np.abs(weight).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1)
        return (np.rint(weight / step) * step).astype(weight.dtype)

    return damage


def pruned(part: float) -> Callable[[Array], Array]:
    """The smallest weights of each layer to zero."""

    def damage(weight: Array) -> Array:
        import numpy as np

        return np.where(np.abs(weight) < np.quantile(np.abs(weight), part), 0, weight).astype(weight.dtype)

    return damage


DAMAGE = {
    "4 bits": rounded(4), "3 bits": rounded(3), "50 % pruned": pruned(0.5), "60 % pruned": pruned(0.6),
    "70 % pruned": pruned(0.7),
}  # fmt: skip


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    import numpy as np

    if not REFERENCE.exists():
        sys.exit(f"{REFERENCE}: no such file")
    reference, images = module_at(REFERENCE), dict(np.load(IMAGES))
    chosen = images["calib_x"][np.random.default_rng(20).permutation(len(images["calib_x"]))[:CALIBRATION]]
    test = reference.shift(images["test_x"], "none", 1001), images["test_y"]
    rows, faults = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, REFERENCE, "models", WEIGHTS, folder], check=True)
        np.savez(folder / "data.npz", x=reference.shift(reference.augment(chosen), "none", 1003))
        folded, inserted = folder / "folded.onnx", folder / "bn.onnx"
        bnfold("fold", folder / "resnet20_clean.onnx", "-o", folded)
        bnfold("insert", folded, "--data", f"{folder / 'data.npz'}:x", "-o", inserted)
        say(f"folded {top1(folded, *test):.2f}, with BatchNorm {top1(inserted, *test):.2f}")
        for name, damage in DAMAGE.items():
            plain = damaged(folded, damage, folder / "plain.onnx")
            measured, repaired = folder / "measured.onnx", folder / "repaired.onnx"
            source = damaged(inserted, damage, folder / "damaged.onnx")
            bnfold("recalibrate", source, "--data", f"{folder / 'data.npz'}:x", "-o", measured, "--force")
            bnfold("fold", measured, "-o", repaired, "--force")
            found = [top1(path, *test) for path in (plain, source, repaired)]
            rows.append([name, *(f"{value:.2f}" for value in (found[0], found[2]))])
            if found[2] <= found[0] or ops(repaired) != ops(folded):
                faults.append(f"{name}: {found}, {len(ops(repaired))} nodes, not {len(ops(folded))}")
            if abs(found[0] - found[1]) > 0.2:
                faults.append(f"{name}: {found[0]:.2f} without BatchNorm, {found[1]:.2f} with it")
    print(table(["folded, then", "as it is", "insert, damage, recalibrate, fold"], rows))
    say("\n".join(faults))
    return bool(faults)


def bnfold(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "bnfold", *map(str, words), "-q"], check=True)


def damaged(model: Path, damage: Callable[[Array], Array], target: Path) -> Path:
    """The model with the weights of its convolutions damaged."""
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(model)
    weights = {node.input[1] for node in proto.graph.node if node.op_type == "Conv"}
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(damage(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(proto, target)
    return target


def ops(model: Path) -> list[str]:
    import onnx

    return [node.op_type for node in onnx.load(model).graph.node]


if __name__ == "__main__":
    sys.exit(main())
