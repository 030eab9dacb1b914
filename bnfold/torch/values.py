"""What a value is while a graph is compiled: a step of the program, or known: a tensor, or sizes in plain Python.

A step that makes sizes says so in its `meta`: `size` is its rank, 0 for one number and 1 for a list; `small` as in
`bnfold.torch.sizes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from onnx import AttributeProto, TensorProto, helper
from torch.fx import Node as Step

from bnfold.constants import MAX_ELEMENTS, Array, size_of_result
from bnfold.errors import ModelError, quoted
from bnfold.graph import Node
from bnfold.torch import sizes
from bnfold.torch.types import as_tensor
from bnfold.weights import Weights

Arg = Any

# A constant of more elements than this is no list of sizes.
MAX_SIZES = 64
# Types that sizes may have.
SIZED = frozenset({torch.int64, torch.int32, torch.float32, torch.float64})


def is_size(arg: Arg) -> bool:
    """Whether it is sizes: in Python, or a step that makes them."""
    if isinstance(arg, list):  # or a sequence of tensors
        return not any(isinstance(one, torch.Tensor) for one in arg)
    return "size" in arg.meta if isinstance(arg, Step) else isinstance(arg, (int, float))


def marked(result: Arg, rank: int, small: bool = False) -> Arg:
    """The result of arithmetic of sizes; a step remembers that it is that."""
    if isinstance(result, Step):
        result.meta.update(size=rank, small=small)
    return result


def operand_of(arg: Arg) -> sizes.Operand | None:
    """An input as arithmetic of sizes sees it; None if it is no size."""
    if isinstance(arg, Step):
        return sizes.Operand(arg.meta["size"], None, arg.meta.get("small", False)) if is_size(arg) else None
    if isinstance(arg, torch.Tensor):
        if arg.dim() > 1 or arg.numel() > MAX_SIZES or arg.is_complex():
            return None
        return sizes.Operand(arg.dim(), arg.tolist())
    return None if arg is None else sizes.Operand(int(isinstance(arg, list)), arg)


def leaves(args: Any) -> Iterator[Arg]:
    """What lists of lists hold."""
    for arg in args:
        if isinstance(arg, (list, tuple)):
            yield from leaves(arg)
        else:
            yield arg


def attributes_of(node: Node, given: dict[str, AttributeProto]) -> Iterator[tuple[str, AttributeProto]]:
    """A node's attributes, those that refer to the function's own resolved."""
    for attribute in node.proto.attribute:
        if not attribute.ref_attr_name:
            yield attribute.name, attribute
        elif attribute.ref_attr_name in given:
            resolved = AttributeProto()
            resolved.CopyFrom(given[attribute.ref_attr_name])
            resolved.name = attribute.name
            yield attribute.name, resolved


def plain_value(weights: Weights, attribute: AttributeProto) -> Any:
    """An attribute's value in Python."""
    if attribute.type == AttributeProto.TENSOR:
        return content_of(weights, attribute.t)
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type == AttributeProto.STRINGS:
        return [one.decode("utf-8", "replace") for one in value]
    return list(value) if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value


def content_of(weights: Weights, tensor: TensorProto) -> torch.Tensor:
    """What a tensor of the file holds."""
    if tensor.data_type == TensorProto.STRING:
        raise ModelError("is a tensor of strings, which torch has no type for", where=f"tensor {quoted(tensor.name)}")
    return as_tensor(weights.read(tensor))


def grows(node: Node, args: Sequence[Arg]) -> bool:
    """Whether what is computed of constants alone has more elements than are evaluated beforehand."""
    known = [arg for arg in args if arg is not None]
    if any(isinstance(arg, Step) for arg in leaves(known)):
        return False
    return size_of_result(node, [_as_sized(arg) for arg in known]) > MAX_ELEMENTS


def _as_sized(arg: Arg) -> Array:
    """An array of the shape of what is known, with its values if it may be a size."""
    if isinstance(arg, torch.Tensor):
        if arg.numel() <= MAX_SIZES and arg.dtype in SIZED:
            return arg.numpy(force=True)
        return np.broadcast_to(np.float32(0), tuple(arg.shape))
    return np.zeros(len(arg)) if isinstance(arg, list) and not is_size(arg) else np.asarray(arg)
