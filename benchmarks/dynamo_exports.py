"""BN that bnfold's pass and onnxscript's optimiser leave in torch's dynamo exports, without a file in between.

    python benchmarks/dynamo_exports.py [--networks NAME,…]

Needs torch, timm (no torchvision: `pip install --no-deps timm huggingface_hub safetensors pyyaml tqdm`) and onnxscript.
Weights are random, statistics and gammas drawn so that no BN is the identity. For each network of timm: BN as exported
(`optimize=False`), as `onnxscript.optimizer.optimize` leaves it, as `bnfold.passes.FoldBatchNormalization` does, and as
both do in an `onnx_ir.passes.Sequential`; what `bnfold verify` says of each against the export; how many of the tensors
that stay are the exporter's own objects. Exit code 1 if a fold is not equal.
"""

from __future__ import annotations

import argparse
import logging
import sys
import types
import warnings
from importlib.machinery import ModuleSpec
from typing import Any

from harness import table

NETWORKS = ("resnet18", "densenet121", "mobilenetv3_small_050", "efficientnet_b0", "repvgg_a0", "resnetv2_50", "dla34",
            "hgnetv2_b0")  # fmt: skip
SIZE = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names of timm's, separated by commas")
    names = parser.parse_args().networks.split(",")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows, failed = [], False
    for name in names:
        row, equal = measured(name)
        rows.append(row)
        failed |= not equal
        print("; ".join(row), file=sys.stderr, flush=True)
    makers = ["onnxscript", "bnfold", "both"]
    print(table(["network", "BN exported", *makers, *(f"verify: {maker}" for maker in makers), "own objects"], rows))
    return int(failed)


def measured(name: str) -> tuple[list[str], bool]:
    import onnx_ir as ir

    import bnfold
    from bnfold.passes import FoldBatchNormalization

    exported = export(name)
    fold = FoldBatchNormalization()
    folded = fold(exported).model
    script = Optimize()(exported).model
    both = ir.passes.Sequential(FoldBatchNormalization(), Optimize())(exported).model
    verdicts = [bnfold.verify(exported, model) for model in (script, folded, both)]
    told = [f"{found.verdict}, r {found.worst:.2g}" for found in verdicts]
    own = {id(value.const_value) for value in exported.graph.initializers.values()}
    same = sum(id(value.const_value) in own for value in folded.graph.initializers.values())
    counts = [str(count(model)) for model in (exported, script, folded, both)]
    shared = f"{same} of {len(folded.graph.initializers)}"
    return [name, *counts, *told, shared], verdicts[1].equal and verdicts[2].equal


def count(model: Any) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph)


class Optimize:
    """onnxscript's optimiser as a pass that leaves the given model alone."""

    def __new__(cls) -> Any:
        import onnx_ir as ir
        from onnxscript import optimizer

        class Pass(ir.passes.FunctionalPass):
            def call(self, model: Any) -> Any:
                made = model.clone()
                optimizer.optimize(made)
                return ir.passes.PassResult(made, True)

        return Pass()


def export(name: str) -> Any:
    import torch

    without_torchvision()
    import timm

    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    inputs = (torch.randn(1, 3, SIZE, SIZE),)
    program = torch.onnx.export(network, inputs, dynamo=True, optimize=False, verbose=False)
    assert program is not None
    return program.model


def without_torchvision() -> None:
    """timm imports it for data sets and for feature extraction, neither of which is needed here."""

    class Named(type):
        def __getattr__(cls, name: str) -> Any:
            return anything(name)

    def anything(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (), {})

    names = "transforms transforms.functional datasets datasets.folder models models.feature_extraction ops ops.misc"
    for name in ("torchvision", *(f"torchvision.{name}" for name in names.split())):
        module = types.ModuleType(name)
        module.__getattr__ = anything  # type: ignore[method-assign]
        module.__spec__, module.__path__ = ModuleSpec(name, None, is_package=True), []
        parent, _, child = name.rpartition(".")
        sys.modules[name] = module
        if parent:
            setattr(sys.modules[parent], child, module)


if __name__ == "__main__":
    sys.exit(main())
