"""Measuring models of float64 and bfloat16, for which ONNX Runtime has few CPU kernels.

They are computed in the double form that `bnfold.verify` compares models in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from onnx import TensorProto

from bnfold.errors import ModelError, quoted
from bnfold.insert.sites import Site
from bnfold.model_file import LoadedModel
from bnfold.recalibrate.moments import Moments
from bnfold.verify.prepare import prepare
from bnfold.verify.runtime import CannotRun, Feeds, Runner
from bnfold.verify.sides import Side

WIDE = frozenset({TensorProto.DOUBLE, TensorProto.BFLOAT16})


def needs_double(sites: Sequence[Site]) -> bool:
    """Whether a site is of a type that is measured in double."""
    return any(site.element_type in WIDE for site in sites)


def measure_in_double(model: LoadedModel, sites: Sequence[Site], data: Iterable[Feeds]) -> list[Moments]:
    """As `bnfold.insert.measure.measure`; all values of a batch are held."""
    moments, at = [Moments() for _ in sites], {site.target.name: number for number, site in enumerate(sites)}
    for number, feeds in enumerate(data):
        try:
            values = _values(model, list(at), feeds)
        except CannotRun as why:
            raise ModelError(str(why)) from why
        for name, value in values.items():
            site = sites[at[name]]
            if not np.isfinite(value).all():
                what = f"what it puts out is not finite in batch {number}; leave that data out"
                raise ModelError(what, where=f"node {quoted(site.name)}")
            axes = tuple(axis for axis in range(value.ndim) if axis != site.axis)
            moments[at[name]].add(value.size // site.channels, value.mean(axes), value.var(axes))
    return moments


def outputs_in_double(model: LoadedModel, feeds: Feeds) -> Feeds:
    """The outputs of a model, computed in double.

    Raises: CannotRun.
    """
    return _values(model, [info.name for info in model.proto.graph.output], feeds)


def _values(model: LoadedModel, names: Sequence[str], feeds: Feeds) -> Feeds:
    side = Side(prepare(model), feeds)
    return Runner(side.model, names).run(side.double_feeds(feeds))
