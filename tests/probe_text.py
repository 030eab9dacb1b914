"""A small model in one line of text: the notation of the probe table.

    x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3], b[4]); y = BN4(h)

is ONNX's own text format with four abbreviations:

    x[N,3] -> y, z |    graph inputs and outputs (output shapes are left open)
    w[4,3]              among a node's inputs: an initializer of this shape, its values drawn from a fixed seed
    k:int64[2]={0,-1}   the same of another type and, after ``=``, with these values; k[] is a scalar
    y = BN4(h)          BatchNormalization over 4 channels with gammas of both signs; BN4+: all positive

`Probe.model` expands it, `Probe.batches` draws inputs for it: two batch sizes where the batch is open.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx.parser
from onnx import ModelProto, TensorProto, helper, numpy_helper
from referee import Array

BN = re.compile(r"(\w+)((?:, *\w+)*) *= *BN(\d+)(\+?)(<[^>]*>)?\(([^)]*)\)")
TENSOR = re.compile(r"(\w+)(?::(\w+))?\[([\w, ]*)\](=\{[^}]*\})?")
TYPES = ("float", "float16", "bfloat16", "double", "int64", "int32", "int8", "uint8", "bool")
BATCHES = (2, 3)


@dataclass(frozen=True)
class Probe:
    """One row of the table.

    Attributes:
        name: the readable id.
        peers: what the existing tools did, one sign per name of `PEERS`: ``+`` folded rightly, ``-`` left it,
            ``~`` folded some of it, ``x`` wrong, ``!`` crash or unusable file, ``?`` not tried.
        text: the model in the notation of this module.
        left: how many per-channel operations the function itself demands: none can be right with fewer.
        why: what forbids more, one of the keys of `test_probes.CODES`, or empty.
        values: values of initializers that are not left to chance (a number fills the tensor).
        edit: last change to the model, for what text can't say.
        scale: standard deviation of the float inputs.
        options: keyword arguments for ``bnfold.fold``.
    """

    name: str
    peers: str
    text: str
    left: int = 0
    why: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    edit: Callable[[ModelProto], None] | None = None
    opset: int = 17
    dtype: str = "float"
    scale: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def model(self) -> ModelProto:
        """The model that the text stands for, checked."""
        inputs, outputs, body = re.split(r" -> | \| ", self.text, maxsplit=2)
        body, tensors = self._declare(BN.sub(self._batch_normalization, body))
        heads = ", ".join(_declaration(row) for row in self._tensors(inputs))
        tails = ", ".join(f"{self.dtype}[] {name.strip()}" for name in outputs.split(","))
        holes = ", ".join(_declaration(row) for row in tensors)
        ir_version = 8 if self.opset < 21 else 10
        model = onnx.parser.parse_model(
            f'<ir_version: {ir_version}, opset_import: ["" : {self.opset}]> '
            f"probe ({heads}) => ({tails}) <{holes}> {{ {body} }}".replace(";", " ")
        )
        self._fill(model)
        if self.edit:
            self.edit(model)
        typed = onnx.shape_inference.infer_shapes(model)
        for output, inferred in zip(model.graph.output, typed.graph.output, strict=True):
            output.type.tensor_type.shape.CopyFrom(inferred.type.tensor_type.shape)  # the checker wants one
        onnx.checker.check_model(model, full_check=True)
        return model

    def batches(self) -> list[dict[str, Array]]:
        """Random inputs: one dict per batch, the same on every call."""
        fixed = {tensor.name for tensor in self.model().graph.initializer}
        return [{value.name: self._input(value, size, seed) for value in self.model().graph.input
                 if value.name not in fixed} for seed, size in enumerate(BATCHES)]  # fmt: skip

    def _batch_normalization(self, match: re.Match[str]) -> str:
        y, more, size, positive, attributes, inputs = match.groups()
        gamma = "gain" if positive else "gamma"
        vectors = ", ".join(f"{y}_{part}[{size}]" for part in (gamma, "beta", "mean", "var"))
        return f"{y}{more} = BatchNormalization{attributes or ''} ({inputs}, {vectors})"

    def _declare(self, body: str) -> tuple[str, list[tuple[str, str, str, str]]]:
        """Take the declarations out of the node inputs."""
        found = {row[0]: row for row in self._tensors(body)}

        def name_only(match: re.Match[str]) -> str:
            return match.group(0) if match.group(1) in TYPES else match.group(1)

        return TENSOR.sub(name_only, body), list(found.values())

    def _tensors(self, text: str) -> list[tuple[str, str, str, str]]:
        """Name, type, dimensions and ``={values}`` of every declaration."""
        rows = (match.groups() for match in TENSOR.finditer(text))
        return [(name, kind or self.dtype, dims, value or "") for name, kind, dims, value in rows if name not in TYPES]

    def _fill(self, model: ModelProto) -> None:
        """Give values to the initializers declared without."""
        graph = model.graph
        produced = {name for node in graph.node for name in node.output}
        for value in [v for v in graph.value_info if v.name not in produced]:
            graph.value_info.remove(value)
            shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
            array = np.asarray(self._draw(value.name, shape)).astype(
                helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            )
            graph.initializer.append(numpy_helper.from_array(array, value.name))

    def _draw(self, name: str, shape: list[int]) -> Array:
        if name in self.values:
            return np.broadcast_to(np.asarray(self.values[name]), shape)
        rng = np.random.default_rng(zlib.crc32(f"{self.name}/{name}".encode()))
        if name.endswith(("_var", "_gain", "_gamma")):
            signs = np.where(np.arange(max(shape)) % 2, -1.0, 1.0) if name.endswith("_gamma") else 1.0
            return np.asarray(rng.uniform(0.5, 2.0, shape) * signs)
        return np.asarray(rng.normal(0.0, 0.5, shape))

    def _input(self, value: onnx.ValueInfoProto, batch: int, seed: int) -> Array:
        kind = value.type.tensor_type
        shape = [batch if dim.dim_param else dim.dim_value for dim in kind.shape.dim]
        rng = np.random.default_rng(zlib.crc32(f"{self.name}/{value.name}/{seed}".encode()))
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if kind.elem_type == TensorProto.BOOL:
            return np.asarray(rng.integers(0, 2, shape) == seed, dtype)
        if dtype.kind == "i":
            return np.asarray(rng.integers(0, 3, shape), dtype)
        return np.asarray(rng.normal(0.0, self.scale, shape)).astype(dtype)


def _declaration(row: tuple[str, str, str, str]) -> str:
    """``float[4,3] w`` in ONNX's order of words, where a scalar has no brackets."""
    name, kind, dims, values = row
    return f"{kind}[{dims}] {name} {values}" if dims else f"{kind} {name} {values}"


def as_output(name: str) -> Callable[[ModelProto], None]:
    """Make this initializer a graph output, too."""

    def edit(model: ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        model.graph.output.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))

    return edit
