"""Fold a network on its way out of torch: exporter, bnfold and onnxscript's optimiser on one onnx_ir.Model.

    python examples/recipes/fold_after_torch_export.py [OUT.onnx]

Needs torch and onnxscript. Nothing is written but OUT.onnx, and tensors that no pass changes are never copied.
"""

from __future__ import annotations

import sys

import onnx_ir as ir
import torch
from onnxscript import optimizer

import bnfold
from bnfold.passes import FoldBatchNormalization


def network() -> torch.nn.Module:
    """A residual block with BN before its Convs (ResNetV2), which a Conv-BN pattern can't fold."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 16, 3, padding=1)
            self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(16) for _ in range(2))
            self.convs = torch.nn.ModuleList(torch.nn.Conv2d(16, 16, 3, bias=False) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            y = self.convs[1](self.norms[1](self.convs[0](self.norms[0](x).relu())).relu())
            return torch.nn.functional.adaptive_avg_pool2d(x, 1) + torch.nn.functional.adaptive_avg_pool2d(y, 1)

    torch.manual_seed(0)
    made = Block().train()
    made(torch.randn(64, 3, 32, 32))  # statistics that are not 0 and 1
    return made.eval()


def main() -> None:
    inputs = (torch.randn(1, 3, 32, 32),)
    program = torch.onnx.export(network(), inputs, dynamo=True, optimize=False, verbose=False)
    assert program is not None
    exported = program.model

    fold = FoldBatchNormalization()
    program.model = fold(exported).model
    optimizer.optimize(program.model)  # in place

    assert fold.report is not None
    print(f"BN {fold.report.before.batch_norms} → {fold.report.after.batch_norms}")
    for entry in fold.report.kept:
        print(f"  {entry.name} stays: {entry.sentence}")
    print(f"verify: {bnfold.verify(exported, program.model).verdict}")
    shared = {id(value.const_value) for value in exported.graph.initializers.values()}
    same = sum(id(value.const_value) in shared for value in program.model.graph.initializers.values())
    print(f"{same} of {len(program.model.graph.initializers)} tensors are the exporter's own objects")
    if len(sys.argv) > 1:
        ir.save(program.model, sys.argv[1])


if __name__ == "__main__":
    main()
