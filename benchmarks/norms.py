"""What --norms does: networks with other norms than BatchNorm, as both torch exporters write them.

    python benchmarks/norms.py FOLDER

Exports a ViT (LayerNorm ahead of attention and MLP), a BERT (LayerNorm behind the skips), a Llama (RMSNorm, gated
MLP), a ConvNeXt, a ResNet with GroupNorm and a style transfer net with InstanceNorm, all with random scales and biases,
into FOLDER; those of opset 17 by the tracing exporter, of 18 and more by the other.  Each is folded without and with
--norms; the latter is compared with the original as `bnfold verify` does.  Prints a markdown table: norms that torch
has written as such; of them, those that end as 1 and 0, those whose scale or bias alone does, and those that stay;
nodes of the file, folded without and with --norms; the verdict.

FOLDER/NAME.plain.onnx are the files folded without it: `latency.py --files 'FOLDER/*.plain.onnx' --norms` times what
--norms alone does.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import torch
from harness import say, table
from torch import Tensor, nn

import bnfold

HEAD = ["file", "norms", "1 and 0", "in part", "stay", "nodes", "--norms", "verdict"]
WIDTH, HEADS, TOKENS, DEPTH = 192, 3, 64, 4


class Attention(nn.Module):
    """Softmax attention, with or without biases."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5, -1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """Llama's MLP: down(silu(gate(x)) * up(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))


class Transformer(nn.Module):
    """Blocks of attention and MLP, each with a norm ahead of it, or behind the skip."""

    def __init__(self, norm: Callable[[], nn.Module], inner: Callable[[], nn.Module], post: bool, bias: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part for _ in range(DEPTH) for part in (Attention(bias), inner()))
        self.norms = nn.ModuleList(norm() for _ in self.parts)
        self.last, self.head, self.post = norm(), nn.Linear(WIDTH, 10, bias=bias), post

    def forward(self, x: Tensor) -> Tensor:
        for part, norm in zip(self.parts, self.norms, strict=True):
            x = norm(x + part(x)) if self.post else x + part(norm(x))
        return self.head(self.last(x).mean(1))


class ChannelsLast(nn.Module):
    """LayerNorm over the channels of a feature map, as ConvNeXt has it between its stages."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """7x7 depthwise, LayerNorm, MLP along the channels, skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.up, self.down = (
            nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.down(nn.functional.gelu(self.up(y))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 48, 4, 4), ChannelsLast(48)]
    for channels in (48, 96):
        layers += [ConvNextBlock(channels), ConvNextBlock(channels)]
        layers += [ChannelsLast(channels), nn.Conv2d(channels, 2 * channels, 2, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 10))


class Residual(nn.Module):
    """Two 3x3 Convs with a norm each, and a skip: pre-activation."""

    def __init__(self, norm: Callable[[int], nn.Module], channels: int) -> None:
        super().__init__()
        half = [(norm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2)]
        self.body = nn.Sequential(*half[0], *half[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def resnet(norm: Callable[[int], nn.Module]) -> nn.Module:
    blocks = [Residual(norm, 64) for _ in range(4)]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    return nn.Sequential(nn.Conv2d(3, 64, 3, 2), *blocks, norm(64), *head)


def style() -> nn.Module:
    """Johnson's: reflection padding, so that a shift is the same at the border."""

    def conv(inside: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        return [nn.ReflectionPad2d(kernel // 2), nn.Conv2d(inside, out, kernel, stride)]

    layers = conv(3, 32, 9)
    for inside, out in ((32, 64), (64, 64), (64, 64)):
        layers += [nn.InstanceNorm2d(inside, affine=True), nn.ReLU(), *conv(inside, out, 3)]
    return nn.Sequential(*layers, nn.InstanceNorm2d(64, affine=True), *conv(64, 3, 9))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vit": (lambda: Transformer(lambda: nn.LayerNorm(WIDTH), mlp, False, True), (TOKENS, WIDTH)),
    "bert": (lambda: Transformer(lambda: nn.LayerNorm(WIDTH), mlp, True, True), (TOKENS, WIDTH)),
    "llama": (lambda: Transformer(lambda: nn.RMSNorm(WIDTH), Gated, False, False), (TOKENS, WIDTH)),
    "convnext": (convnext, (3, 64, 64)),
    "groupnorm": (lambda: resnet(lambda channels: nn.GroupNorm(8, channels)), (3, 64, 64)),
    "style": (style, (3, 64, 64)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(exist_ok=True)
    warnings.simplefilter("ignore")
    rows = []
    for name in NETWORKS:
        for opset in (17, 18, 23):
            path = folder / f"{name}{opset}.onnx"
            try:
                export(name, opset, path)
            except Exception as error:  # an exporter that has no such op
                say(f"{path.name}: {str(error).strip().splitlines()[0]}")
                continue
            rows.append(study(path))
            say(" | ".join(rows[-1]))
    print(table(HEAD, rows))
    return int(any(row[-1].split(",")[0] != "equal" for row in rows))


def export(name: str, opset: int, path: Path) -> None:
    """A network with random scales and biases, and so with weights as if it had learnt them."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = make().eval()
    with torch.no_grad():
        for module in net.modules():
            if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
                module.weight.uniform_(0.2, 2.0)  # type: ignore[union-attr, operator]
                if getattr(module, "bias", None) is not None:
                    module.bias.normal_(0, 0.3)  # type: ignore[union-attr, operator]
    inputs = (torch.randn(2, *shape),)
    with redirect_stdout(sys.stderr):  # both exporters talk
        torch.onnx.export(net, inputs, str(path), opset_version=opset, dynamo=opset > 17, external_data=False)  # type: ignore[arg-type]


def study(path: Path) -> list[str]:
    """One row of the table."""
    plain = bnfold.fold(path)
    plain.save(path.with_suffix(".plain.onnx"), overwrite=True)
    result = bnfold.fold(path, norms=True)
    result.save(path.with_suffix(".norms.onnx"), overwrite=True)
    found = bnfold.verify(path, path.with_suffix(".norms.onnx"))
    outcomes = [entry.outcome for entry in result.report.norms]
    counts = [str(outcomes.count(outcome)) for outcome in ("folded", "reduced", "kept")]
    nodes = f"{plain.report.nodes_before} → {plain.report.nodes_after}"
    verdict = f"{found.verdict}, r ≤ {found.worst:.2f}"
    return [path.name, str(len(outcomes)), *counts, nodes, str(result.report.nodes_after), verdict]


if __name__ == "__main__":
    sys.exit(main())
