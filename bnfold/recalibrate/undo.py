"""The statistics that a recalibration replaced, in a file, and the way back.

The file is an .npz of plain arrays: `names` and `scopes` of the BNs, and `0.mean`, `0.variance`, `1.mean`, … in
float64, which holds whatever type the model keeps them in.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from bnfold.atomic import write_file
from bnfold.errors import CalibrationDataError, UsageError, quoted
from bnfold.frontends import naming
from bnfold.graph import Graph
from bnfold.mapped import Refused, open_regular
from bnfold.model_file import LoadedModel, load
from bnfold.recalibrate.data_files import DAMAGED, demand_stored, is_of_system
from bnfold.recalibrate.drift import Drift, Floats
from bnfold.recalibrate.sites import Site, find_sites
from bnfold.recalibrate.write import Writer, stored
from bnfold.shapes import Shapes

Statistics = dict[tuple[str, str], tuple[Floats, Floats]]


def keep_old(drift: Sequence[Drift], path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the old statistics, from which `put_back` restores them.

    Raises: OutputError.
    """
    buffer = io.BytesIO()
    arrays = {f"{number}.{role}": values for number, one in enumerate(drift)
              for role, values in (("mean", one.old_mean), ("variance", one.old_var))}  # fmt: skip
    arrays["names"] = np.array([one.name for one in drift], np.str_)
    arrays["scopes"] = np.array([one.scope for one in drift], np.str_)
    np.savez(buffer, allow_pickle=False, **arrays)
    write_file(path, buffer.getbuffer(), overwrite=overwrite)


def put_back(model: str | os.PathLike[str], undo: str | os.PathLike[str]) -> tuple[LoadedModel, int]:
    """A model with the statistics that `keep_old` wrote, and the number of BNs that got them.

    Raises:
        UsageError: the file is something else, or is about BNs that the model doesn't have.
        ModelError: the model isn't sound.
    """
    old = _read(undo)
    original = load(os.fsdecode(model))
    with naming(original.path):
        proto = ModelProto()
        proto.CopyFrom(original.proto)
        result = LoadedModel(proto, original.weights, original.path)
        graph = Graph(proto)
        shapes = Shapes(graph, result)
        writer = Writer(graph, result.weights, shapes)
        sites, _ = find_sites(graph, shapes, lambda node: True, False)
        count = sum(_restored(site, old, writer) for site in sites)
        writer.finish()
        if old:
            what = f"has no BatchNormalization {quoted(next(iter(old))[0])} of as many channels, which {undo} is about"
            raise UsageError(what)
    return result, count


def _restored(site: Site, old: Statistics, writer: Writer) -> bool:
    """Give a site its old statistics, and take them from `old`."""
    key = (site.name, site.scope.label)
    if key not in old or old[key][0].shape != site.mean.shape:
        return False
    roles = zip(old.pop(key), writer.types(site), ("mean", "variance"), strict=True)
    mean, variance = (stored(values, dtype, site, role) for values, dtype, role in roles)
    writer.put(site, mean, variance)
    return True


def _read(undo: str | os.PathLike[str]) -> Statistics:
    try:
        with open_regular(undo) as opened, np.load(opened, allow_pickle=False) as file:
            demand_stored(file)
            keys = zip(file["names"].tolist(), file["scopes"].tolist(), strict=True)
            return {key: (file[f"{number}.mean"], file[f"{number}.variance"]) for number, key in enumerate(keys)}
    except Refused as why:
        raise CalibrationDataError(str(why), file=os.fspath(undo)) from None
    except (OSError, AttributeError, *DAMAGED) as error:  # AttributeError: a .npy is no archive
        if is_of_system(error):
            raise
        raise UsageError("is no file that --undo wrote", file=os.fspath(undo)) from None
