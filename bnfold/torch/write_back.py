"""Trained weights and statistics into the file, by name, and nothing else changed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from bnfold.constants import Array
from bnfold.errors import ModelError, TooLargeError, UsageError, quoted
from bnfold.frontends import GiveBack, naming, open_model
from bnfold.graph import Graph, remove_nodes
from bnfold.model_file import LoadedModel, save
from bnfold.storage import add_tensor
from bnfold.torch.module import OnnxModule, reserved
from bnfold.torch.state import StateTensor, find_state
from bnfold.torch.types import as_array
from bnfold.weights import Weights


def write_back(model: Any, module: torch.nn.Module | Mapping[str, torch.Tensor]) -> Any:
    """Put a module's parameters and statistics into the model that it was made of.

    >>> from bnfold.torch import to_module
    >>> module = to_module("sample_models/digits_cnn.onnx")
    >>> trained = write_back("sample_models/digits_cnn.onnx", module)
    >>> trained.graph.initializer[0].name in module.state_dict()
    True

    Every tensor keeps the element type that it has in the file, rounded once; one that has not changed stays as it is,
    to the byte. A tensor that the file shared by accident (see `bnfold.torch.state`) and that has been trained to
    several values becomes several.

    Args:
        model: what `to_module` was given, in whatever form; it is not changed.
        module: what `to_module` gave, compiled or wrapped or not, or its `state_dict()`.

    Returns: the model, of the kind that was given (of a path: an onnx.ModelProto), with all its weights.

    Raises:
        UsageError: not such a module.
        ModelError: the model has no such tensor, or a trained one is not finite or doesn't fit.
        TooLargeError: the model is larger than 2 GiB; `save_back` writes it all the same.
    """
    work, give_back = _trained(model, module)
    try:
        with naming(work.path):
            return give_back(work)
    except TooLargeError as error:
        what = "is larger than 2 GiB, which no protobuf can hold; use save_back"
        raise TooLargeError(what, file=error.file) from None


def save_back(
    model: Any,
    module: torch.nn.Module | Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> list[Path]:
    """As `write_back`, but into a file, however large; weights that were in a data file go into a new one beside it.

    Args:
        model: what `to_module` was given.
        module: what it gave, or its `state_dict()`.
        path: where to; the folder must exist.
        overwrite: whether an existing file may be replaced, the given model's own included.

    Returns: the files written, the model first.

    Raises:
        UsageError, ModelError: see `write_back`.
        OutputError: whatever goes wrong, the input and an earlier output stay as they were.
    """
    work, _ = _trained(model, module)
    return save(work, path, overwrite=overwrite)


def _trained(model: Any, module: torch.nn.Module | Mapping[str, torch.Tensor]) -> tuple[LoadedModel, GiveBack]:
    """A copy of the model with the module's tensors."""
    original, give_back = open_model(model)
    with naming(original.path):
        proto = ModelProto()
        proto.CopyFrom(original.proto)
        work = LoadedModel(proto, original.weights, original.path)
        graph = Graph(proto)
        trained = list(_matched(graph, work.weights, module))
        for target, content in trained:
            if not target.is_copy:
                _replace(work.weights, target, _stored(work.weights, target, content))
        for target, content in trained:  # after the tensors that they are copies of
            if target.is_copy:
                _separate(graph, work.weights, target, _stored(work.weights, target, content))
    return work, give_back


def _matched(
    graph: Graph, weights: Weights, module: torch.nn.Module | Mapping[str, torch.Tensor]
) -> Iterator[tuple[StateTensor, torch.Tensor]]:
    """What of the file each tensor of the module belongs to."""
    if isinstance(module, Mapping):
        known = {tensor.key: tensor for tensor in find_state(graph, weights, None, reserved).tensors}
        content, names = dict(module), {key: key for key in module}
    else:
        while not isinstance(module, OnnxModule):  # compiled, or wrapped for several devices
            inner = getattr(module, "_orig_mod", None) or getattr(module, "module", None)
            if not isinstance(inner, torch.nn.Module):
                raise UsageError(f"{type(module).__qualname__} is not what to_module gives")
            module = inner
        known = {tensor.name: tensor for tensor in find_state(graph, weights, lambda _: True, reserved).tensors}
        content, names = dict(module.state_dict()), module.names
    for key, tensor in content.items():
        target = known.get(names.get(key, key))
        if target is None:
            raise ModelError("is not in the model; the module was made of another", where=f"tensor {quoted(key)}")
        yield target, tensor


def _stored(weights: Weights, target: StateTensor, content: torch.Tensor) -> Array:
    """The content in the file's type.

    Raises: ModelError if it has another shape, is not finite, or overflows.
    """
    old, where = weights.read(target.tensor), f"tensor {quoted(target.name)}"
    if tuple(content.shape) != old.shape:
        what = f"has shape {list(content.shape)} in the module and {list(old.shape)} in the model"
        raise ModelError(f"{what}; the module was made of another", where=where)
    with np.errstate(over="ignore"):
        new = as_array(content, old.dtype)
    if not np.isfinite(new).all() and np.isfinite(old).all():
        finite = bool(torch.isfinite(content).all())
        why = f"overflows {old.dtype.name}, its type in the file" if finite else "is not finite: the training diverged"
        raise ModelError(f"{why}; nothing was written", where=where)
    return new


def _same(a: Array, b: Array) -> bool:
    """To the bit."""
    return a.tobytes() == b.tobytes()


def _replace(weights: Weights, target: StateTensor, content: Array) -> None:
    if not _same(weights.read(target.tensor), content):
        weights.defer(target.tensor, partial(_once, content))


def _once(content: Array) -> Iterator[Array]:
    yield content


def _separate(graph: Graph, weights: Weights, target: StateTensor, content: Array) -> None:
    """Make a copy a tensor of its own, if it differs from what it was copied from by now."""
    if _same(weights.read(target.tensor), content):
        return
    nodes = [target.identity] if target.identity is not None else [node for node, _ in target.readers]
    scope = nodes[0].scope
    add_tensor(graph, scope, target.name, content)
    if target.identity is not None:
        remove_nodes(scope, [target.identity])
    for node, index in target.readers:
        node.proto.input[index] = target.name
