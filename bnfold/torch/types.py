"""Element types and tensors of ONNX as torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto

from bnfold.constants import Array

# TensorProto data types that torch has.
DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32, TensorProto.UINT8: torch.uint8, TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16, TensorProto.INT16: torch.int16, TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64, TensorProto.BOOL: torch.bool, TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64, TensorProto.UINT32: torch.uint32, TensorProto.UINT64: torch.uint64,
    TensorProto.COMPLEX64: torch.complex64, TensorProto.COMPLEX128: torch.complex128,
    TensorProto.BFLOAT16: torch.bfloat16, TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz, TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}  # fmt: skip

# The types that a module can be moved between: `module.double()`, `module.to(torch.bfloat16)`.
MOVABLE = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def as_tensor(array: Array) -> torch.Tensor:
    """A copy of an array; types that numpy has from ml_dtypes come as torch's own, 4-bit integers as bytes.

    Raises: TypeError if torch has no such type.
    """
    array = np.array(array, order="C", copy=True)
    if array.dtype.name in ("int4", "uint4", "int2", "uint2"):
        array = array.astype(np.uint8 if array.dtype.name.startswith("u") else np.int8)
    if array.dtype.kind in "biufc":
        return torch.from_numpy(array)
    dtype = DTYPES.get(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
    if dtype is None:
        raise TypeError(f"torch has no type like {array.dtype.name}")
    return torch.from_numpy(array.view(np.int16 if array.itemsize == 2 else np.uint8)).view(dtype)


def as_array(tensor: torch.Tensor, dtype: Any) -> Array:
    """The content of a tensor as an array of another type, rounded once."""
    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16 or tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        tensor = tensor.to(torch.float32)  # exact
    result: Array = tensor.contiguous().numpy().astype(dtype)
    return result
