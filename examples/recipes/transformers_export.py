"""Export vision models of transformers that have BatchNorm, and fold them.

    python examples/recipes/transformers_export.py

Needs torch and transformers; weights are random, so nothing is downloaded. The exporter is told to leave BN. Without
`training=` it folds Conv + BN itself, and those that it can't fold are left.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import (
    LevitConfig,
    LevitForImageClassification,
    MobileViTConfig,
    MobileViTForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

import bnfold

SIZE = 64


def networks() -> dict[str, torch.nn.Module]:
    """Small ones: a ResNet, LeViT (BN behind every linear layer of its attention), MobileViT."""
    return {
        "resnet": ResNetForImageClassification(
            ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic", num_labels=10)
        ),
        "levit": LevitForImageClassification(
            LevitConfig(
                image_size=SIZE, hidden_sizes=[32, 48, 64], num_attention_heads=[2, 2, 2], depths=[1, 1, 1],
                key_dim=[8, 8, 8], down_ops=[["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 6, 4, 2, 2], [""]],
                num_labels=10,
            )
        ),
        "mobilevit": MobileViTForImageClassification(
            MobileViTConfig(image_size=SIZE, hidden_sizes=[32, 48, 64], neck_hidden_sizes=[8, 16, 24, 32, 48, 64, 96],
                            num_labels=10)
        ),
    }  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for name, network in networks().items():
            with torch.no_grad():
                network.train()(torch.rand(16, 3, SIZE, SIZE))  # statistics that are not 0 and 1
            path = Path(folder) / f"{name}.onnx"
            torch.onnx.export(
                network.eval(), (torch.rand(1, 3, SIZE, SIZE),), path, dynamo=False, input_names=["pixel_values"],
                output_names=["logits"], training=torch.onnx.TrainingMode.PRESERVE,
            )  # fmt: skip
            result = bnfold.fold(path)
            counts, verdict = result.report, bnfold.verify(path, result.model).verdict
            print(f"{name:<10}BN {counts.before.batch_norms} → {counts.after.batch_norms}, {verdict}")
            for entry in result.kept:
                print(f"          {entry.name} stays: {entry.sentence}")


if __name__ == "__main__":
    main()
