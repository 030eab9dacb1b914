"""The operators, one module a family; importing this package fills the table."""

from bnfold.torch import batch_norm
from bnfold.torch.ops import (
    control,
    creation,
    elementwise,
    layout,
    linear,
    loss,
    normalization,
    pooling,
    recurrent,
    reduction,
    resize,
)

__all__ = [
    "batch_norm", "control", "creation", "elementwise", "layout", "linear", "loss", "normalization", "pooling",
    "recurrent", "reduction", "resize",
]  # fmt: skip
