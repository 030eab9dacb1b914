"""Values that no memory holds, found before ONNX Runtime tries to make them.

A file of a few hundred bytes can ask for a tensor of 10^12 elements, or double one sixty times. Nothing of that is
evaluated by bnfold itself; but where a model is run, running it would take the machine down.
"""

from __future__ import annotations

import math
import os

from onnx import ModelProto

from bnfold.errors import quoted
from bnfold.inference import infer_shapes
from bnfold.verify.runtime import CannotRun
from bnfold.weights import bits_of


def demand_room(model: ModelProto) -> None:
    """Of a model whose large weights are elsewhere.

    Raises: CannotRun if a value of the main graph is larger than this machine's memory, whatever it is fed.
    """
    inferred = infer_shapes(model)  # what has no shape is not judged
    largest = _memory()
    for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor = info.type.tensor_type
        # A size that is open counts as 1: the value can only be larger.
        size = math.prod(dim.dim_value for dim in tensor.shape.dim if dim.dim_value > 0)
        if size * (bits_of(tensor.elem_type) or 8) // 8 > largest:
            what = f"value {quoted(info.name)} has {size:.3g} elements, more than this machine's memory"
            raise CannotRun(f"{what} of {largest / 1e9:.3g} GB")


def _memory() -> float:
    """Bytes of memory that this machine has."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not everywhere
        return math.inf
