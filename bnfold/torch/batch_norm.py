"""BatchNormalization, and the one place where ONNX's conventions meet torch's.

|                              | ONNX                             | torch                               |
|------------------------------|----------------------------------|-------------------------------------|
| what `momentum` m is kept of | the old: m old + (1 - m) batch   | the batch: (1 - m) old + m batch    |
| default                      | 0.9                              | 0.1                                 |
| variance that is stored      | biased, sum of squares / n       | unbiased, sum of squares / (n - 1)  |
| variance that normalises     | biased                           | biased                              |

The file's convention counts: what a module keeps in its buffers is what belongs into the file, the biased variance.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnfold.torch.ops.linear import conv
from bnfold.torch.ops.table import op

# Defaults of the operator (https://onnx.ai/onnx/operators/onnx__BatchNormalization.html).
EPSILON, MOMENTUM = 1e-5, 0.9


@op("BatchNormalization", since=1)
def batch_norm_1(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = EPSILON,
    momentum: float = MOMENTUM, spatial: int = 1, is_test: int = 0, training: bool, outputs: int = 1,
) -> Any:  # fmt: skip
    """Before opset 7 a BN is in training mode unless `is_test` says otherwise."""
    always = 0 if is_test or outputs == 1 else 1
    return batch_norm(x, scale, shift, mean, variance, epsilon=epsilon, momentum=momentum, training_mode=always,
                      training=training, outputs=outputs)  # fmt: skip


@op("BatchNormalization", since=7)
def batch_norm(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = EPSILON,
    momentum: float = MOMENTUM, spatial: int = 1, training_mode: int = 0, training: bool, outputs: int = 1,
) -> Any:  # fmt: skip
    r"""Normalise per channel: y = scale (x - mean) / sqrt(variance + epsilon) + shift.

    In training (of the module, or of a node with training_mode=1) mean and variance are the batch's, and the running
    ones become m running + (1 - m) batch's. They are updated in place only while the module is in training mode.

    x is (N, C, ...) or (N, C); scale, shift, mean and variance are (C,).
    """
    if not (training or training_mode):
        y = F.batch_norm(x, mean, variance, scale, shift, False, 0.0, epsilon)
        return (y, mean, variance)[:outputs] if outputs > 1 else y
    new_mean, new_variance = (mean, variance) if training else (mean.clone(), variance.clone())
    y = _train(x, scale, shift, new_mean, new_variance, epsilon, momentum)
    return (y, new_mean, new_variance)[:outputs] if outputs > 1 else y


def _train(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, epsilon: float, momentum: float
) -> Tensor:
    """Normalise by the batch; `mean` and `variance` are updated in place, in ONNX's convention.

    torch's kernel adds n / (n - 1) times the biased variance. Given the old one times n / (n - 1) as well, its result
    is n / (n - 1) times what ONNX wants: m n/(n-1) old + (1-m) n/(n-1) biased.
    """
    count = x.numel() // x.shape[1]
    unbiasing = count / max(count - 1, 1)
    scaled = variance * unbiasing
    y = F.batch_norm(x, mean, scaled, scale, shift, True, 1.0 - momentum, epsilon)
    with torch.no_grad():
        variance.copy_(scaled * (1.0 / unbiasing))
    return y


def conv_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *,
    epsilon: float, **attributes: Any,
) -> Tensor:  # fmt: skip
    """Conv and a BN with frozen statistics, folded on the fly: W, b, scale and shift get their gradients as ever.

        BN(conv(x, W) + b) = conv(x, f W) + f (b - mean) + shift        f = scale / sqrt(variance + epsilon)

    But the convolution's result is not kept for the backward pass, and no pass is made over it (arXiv 2305.11624,
    "Tune" mode).
    """
    factor = scale * torch.rsqrt(variance + epsilon)
    moved = -mean if bias is None else bias - mean
    folded = weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
    return conv(x, folded, moved * factor + shift, **attributes)
