"""Losses, in graphs that hold them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnfold.torch.ops.table import op

# torch ignores no label by default if given this one.
_NO_LABEL = -100


@op("NegativeLogLikelihoodLoss")
def nll_loss(
    scores: Tensor, labels: Tensor, weights: Tensor | None = None, *, ignore_index: int = _NO_LABEL,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    return F.nll_loss(scores, labels.to(torch.int64), weights, ignore_index=ignore_index, reduction=reduction)


@op("SoftmaxCrossEntropyLoss")
def cross_entropy(
    scores: Tensor, labels: Tensor, weights: Tensor | None = None, *, ignore_index: int = _NO_LABEL,
    reduction: str = "mean", outputs: int = 1,
) -> Any:  # fmt: skip
    logarithms = torch.log_softmax(scores, 1)
    loss = nll_loss(logarithms, labels, weights, ignore_index=ignore_index, reduction=reduction)
    return (loss, logarithms) if outputs > 1 else loss
