"""The four vectors of an inserted BN.

    y = gamma * (W u - mean) / sqrt(var + eps) + beta

*preserve*: y = W u + b asks for gamma = sqrt(var + eps) and beta = mean + b, whatever mean and var are. They are those
of W u on the data, so that a BN in training mode computes y too, as far as a batch is like the data. *fresh*: gamma = 1
and beta = 0, so y has mean 0 and variance 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from onnx import helper

from bnfold.constants import Array
from bnfold.insert.measure import as_measured
from bnfold.insert.sites import Site
from bnfold.recalibrate.moments import Floats, Moments
from bnfold.recalibrate.write import stored

Mode = Literal["preserve", "fresh"]
MODES: tuple[Mode, ...] = ("preserve", "fresh")

# ONNX's default, and that of the frameworks.
EPSILON = 1e-5

# In the order of the inputs of BatchNormalization, by the names that the tensors get.
ROLES = ("gamma", "beta", "running_mean", "running_var")
Parameters = Mapping[str, Array]


def preserving(site: Site, moments: Moments) -> Parameters:
    """With these the BN takes the place of the bias and changes nothing.

    Args:
        site: where.
        moments: of the value W u + b, (C,).

    Returns: arrays (C,) of the site's type, by `ROLES`. gamma and beta make up for the rounding of mean and variance.

    Raises: ModelError if one of them overflows its type.
    """
    mean, variance = _round(site, moments.mean - site.bias, "mean"), _round(site, moments.variance(), "variance")
    spread = np.sqrt(variance.astype(np.float64) + float(np.float32(EPSILON)))
    shift = mean.astype(np.float64) + site.bias
    return dict(zip(ROLES, (_round(site, spread, "gamma"), _round(site, shift, "beta"), mean, variance), strict=True))


def fresh(site: Site) -> Parameters:
    """Those of a new BN: 1, 0, 0, 1."""
    ones, zeros = (np.full(site.channels, value, dtype_of(site)) for value in (1, 0))
    return dict(zip(ROLES, (ones, zeros, zeros, ones), strict=True))


def dtype_of(site: Site) -> Any:
    """The numpy type of a site's values."""
    return helper.tensor_dtype_to_np_dtype(site.element_type)


def _round(site: Site, values: Floats, role: str) -> Array:
    return stored(values, dtype_of(site), as_measured(site), role)
