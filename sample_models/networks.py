"""The four sample networks, one for each place where real networks keep their BatchNorm.

`digits_cnn` has it between convolution and activation, `digits_mobile` around depthwise convolutions and on linear
bottlenecks that are added up, `digits_preact` in front of the activation on a residual stream that many BN read, and
`tabular_mlp` on the input and behind an activation. They are small on purpose: what is folded in them is what is
folded in their big siblings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps height and width (at stride 1), without bias: a BN follows that has one."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)


def digits_cnn() -> nn.Module:
    """Conv-BN-ReLU, three times two, then a BN between two linear layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in [(1, 24), (24, 24), (24, 32), (32, 32), (32, 48), (48, 48)]:
        layers += [conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU()]
        if inputs == outputs and outputs < 48:
            layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(48 * 4, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 up, depthwise 3x3, 1x1 down without activation; a skip where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        up = [conv(inputs, wide, 1), nn.BatchNorm2d(wide), nn.ReLU6()] if expansion > 1 else []
        depthwise = [conv(wide, wide, stride=stride, groups=wide), nn.BatchNorm2d(wide), nn.ReLU6()]
        down = [conv(wide, outputs, 1), nn.BatchNorm2d(outputs)]
        self.body = nn.Sequential(*up, *depthwise, *down)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        body: Tensor = self.body(x)
        return x + body if self.skip else body


def digits_mobile() -> nn.Module:
    """MobileNetV2 in small: inverted residuals, depthwise convolutions, ReLU6."""
    blocks = [
        InvertedResidual(16, 16, stride=1, expansion=1),
        InvertedResidual(16, 24, stride=2, expansion=4),
        InvertedResidual(24, 24, stride=1, expansion=4),
        InvertedResidual(24, 32, stride=2, expansion=4),
        InvertedResidual(32, 32, stride=1, expansion=4),
        InvertedResidual(32, 32, stride=1, expansion=4),
    ]
    stem = [conv(1, 16), nn.BatchNorm2d(16), nn.ReLU6()]
    head = [conv(32, 96, 1), nn.BatchNorm2d(96), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)]
    return nn.Sequential(*stem, *blocks, *head)


class PreActivation(nn.Module):
    """He's second residual block: (BN-ReLU-Conv) twice, added to a stream that nothing normalises."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.second = nn.Sequential(
            conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs), nn.ReLU(), conv(outputs, outputs)
        )
        self.project = conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.first(x)
        skip = self.project(active) if self.project is not None else x
        total: Tensor = skip + self.second(active)
        return total


def digits_preact() -> nn.Module:
    """A pre-activation residual network: three stages of two blocks, one BN at the very end."""
    shapes = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 48, 2), (48, 48, 1)]
    end = [nn.BatchNorm2d(48), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)]
    return nn.Sequential(conv(1, 16), *(PreActivation(*shape) for shape in shapes), *end)


def tabular_mlp() -> nn.Module:
    """An MLP that takes raw features: BN on the input, before an activation (with and without bias) and behind one."""
    return nn.Sequential(
        nn.BatchNorm1d(30),
        nn.Linear(30, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64, bias=False),
        nn.ReLU(),
        nn.BatchNorm1d(64),
        nn.Linear(64, 32, bias=False),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 2),
    )


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (N, 1, 8, 8) moved by -1, 0 or 1 pixels both ways, zeros coming in."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    down, right = torch.randint(0, 3, (2, len(images), 1, 1), generator=generator)
    rows = down + torch.arange(8).view(1, 8, 1)
    columns = right + torch.arange(8).view(1, 1, 8)
    return padded[torch.arange(len(images)).view(-1, 1, 1), 0, rows, columns].unsqueeze(1)
