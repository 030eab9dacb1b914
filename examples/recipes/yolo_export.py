"""Export a detector the way Ultralytics does, fold what is left, and see that the boxes stay where they are.

    python examples/recipes/yolo_export.py [OUT.onnx]

Needs torch. The network is a small one of YOLO's kind (Conv + BN + SiLU, C2f blocks, SPPF, upsampling, a head of boxes
and classes), exported with the BN in it, which `bnfold recalibrate` wants and `bnfold fold` removes.

Ultralytics' own export (`YOLO("yolov8n.pt").export(format="onnx")`) leaves no BN: it fuses Conv + BN, and so does the
exporter. To keep them, call the exporter as below (a yolov8n: BN 57 → 0, nodes 676 → 400):

    network = YOLO("yolov8n.pt").model.eval()
    network.model[-1].export, network.model[-1].format = True, "onnx"
    torch.onnx.export(network, (images,), "yolov8n.onnx", dynamo=False, training=torch.onnx.TrainingMode.PRESERVE)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import bnfold


def block(inputs: int, outputs: int, size: int = 1, stride: int = 1) -> nn.Sequential:
    """What Ultralytics calls Conv."""
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03), nn.SiLU())


class C2f(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.half = outputs // 2
        self.first = block(inputs, outputs)
        self.inner = nn.Sequential(block(self.half, self.half, 3), block(self.half, self.half, 3))
        self.last = block(3 * self.half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).split(self.half, 1)
        return self.last(torch.cat([a, b, b + self.inner(b)], 1))


class SPPF(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.pool = block(channels, channels // 2), nn.MaxPool2d(5, 1, 2)
        self.last = block(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """Two levels; boxes as distances to four sides, and 8 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, 16, 3, 2), block(16, 32, 3, 2), C2f(32, 32))
        self.deep = nn.Sequential(block(32, 64, 3, 2), C2f(64, 64), SPPF(64))
        self.up, self.join = nn.Upsample(scale_factor=2), C2f(96, 32)
        self.heads = nn.ModuleList(nn.Sequential(block(c, 32, 3), nn.Conv2d(32, 12, 1)) for c in (32, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shallow = self.stem(x)
        deep = self.deep(shallow)
        levels = (self.join(torch.cat([self.up(deep), shallow], 1)), deep)
        found = torch.cat([head(level).flatten(2) for head, level in zip(self.heads, levels, strict=True)], 2)
        distances, classes = found.split((4, 8), 1)
        return distances.exp(), classes.sigmoid()


def main() -> None:
    torch.manual_seed(0)
    network = Detector().train()
    with torch.no_grad():
        network(torch.rand(8, 3, 64, 64))  # statistics that are not 0 and 1
    with tempfile.TemporaryDirectory() as folder:
        exported, folded = (Path(folder) / name for name in ("yolo.onnx", "yolo.folded.onnx"))
        images = torch.rand(1, 3, 64, 64)
        torch.onnx.export(
            network.eval(), (images,), exported, dynamo=False, input_names=["images"], output_names=["boxes", "scores"],
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL, the default, lets the exporter fold Conv + BN
        )  # fmt: skip
        result = bnfold.fold(exported)
        result.save(folded)
        print(f"BN {result.report.before.batch_norms} → {result.report.after.batch_norms}, "
              f"nodes {result.report.nodes_before} → {result.report.nodes_after}")  # fmt: skip
        found = bnfold.verify(exported, folded)
        print(f"verify: {found.verdict}")
        for output in found.outputs:
            print(f"  {output.name}: at most {output.max_abs:.1e} off")
        if len(sys.argv) > 1:
            result.save(sys.argv[1], overwrite=True)


if __name__ == "__main__":
    main()
