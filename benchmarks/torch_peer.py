"""The same network in torch, for comparison: an ONNX graph as a module with torch's own BatchNorm layers.

Knows the ops of `networks.py` and no more; shares no code with bnfold. `pooled_statistics` is what train-mode batches
say, merged by their counts; `torch.optim.swa_utils.update_bn` runs on the module too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

Tensor = torch.Tensor


def _conv(node: dict[str, Any], x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    pads = node.get("pads", [0, 0, 0, 0])
    return functional.conv2d(x, w, b, node.get("strides", 1), pads[:2], node.get("dilations", 1), node.get("group", 1))


def _max_pool(node: dict[str, Any], x: Tensor) -> Tensor:
    return functional.max_pool2d(x, node["kernel_shape"], node["strides"], node.get("pads", [0, 0])[:2])


OPS: dict[str, Callable[..., Tensor]] = {
    "Conv": _conv,
    "Relu": lambda node, x: functional.relu(x),
    "Clip": lambda node, x, low, high: functional.hardtanh(x, float(low), float(high)),
    "Add": lambda node, a, b: a + b,
    "Concat": lambda node, *parts: torch.cat(parts, node["axis"]),
    "MaxPool": _max_pool,
    "AveragePool": lambda node, x: functional.avg_pool2d(x, node["kernel_shape"], node["strides"]),
    "GlobalAveragePool": lambda node, x: x.mean((2, 3), keepdim=True),
    "Flatten": lambda node, x: x.flatten(1),
    "Gemm": lambda node, x, w, b: functional.linear(x, w, b),
}


class Network(nn.Module):
    """An ONNX model of known ops; BatchNorms are the submodules `norms`, in their order."""

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        self._nodes = [(node, {one.name: helper.get_attribute_value(one) for one in node.attribute})
                       for node in model.graph.node]  # fmt: skip
        self._input, self._output = model.graph.input[0].name, model.graph.output[0].name
        self._places: dict[str, str] = {}
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        constants |= {node.output[0]: numpy_helper.to_array(settings["value"])
                      for node, settings in self._nodes if node.op_type == "Constant"}  # fmt: skip
        for number, (name, array) in enumerate(constants.items()):
            self._places[name] = f"constant{number}"
            self.register_buffer(f"constant{number}", torch.from_numpy(array.copy()))
        self.norms = nn.ModuleList(self._norm(node, settings, constants) for node, settings in self._nodes
                                   if node.op_type == "BatchNormalization")  # fmt: skip

    @staticmethod
    def _norm(node: NodeProto, settings: dict[str, Any], constants: dict[str, Any]) -> nn.BatchNorm2d:
        scale, shift, mean, variance = (torch.from_numpy(constants[name].copy()) for name in node.input[1:])
        norm = nn.BatchNorm2d(len(scale), eps=settings.get("epsilon", 1e-5))
        norm.load_state_dict({"weight": scale, "bias": shift, "running_mean": mean, "running_var": variance,
                              "num_batches_tracked": torch.tensor(0)})  # fmt: skip
        return norm

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {self._input: x}
        norms = iter(self.norms)
        for node, settings in self._nodes:
            if node.op_type == "BatchNormalization":
                values[node.output[0]] = next(norms)(values[node.input[0]])
            elif node.op_type != "Constant":
                given = [values[name] if name in values else getattr(self, self._places[name]) for name in node.input]
                values[node.output[0]] = OPS[node.op_type](settings, *given)
        return values[self._output]


def pooled_statistics(network: Network, batches: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Mean and biased variance of each BatchNorm over batches in train mode: counts, means and M2 merged (Chan)."""
    network.train()
    counts: dict[nn.Module, int] = {}
    norms: list[Any] = list(network.norms)
    for norm in norms:
        norm.momentum = 1.0  # running statistics are the batch's, variance unbiased
        norm.register_forward_pre_hook(
            lambda module, given: counts.update({module: given[0].numel() // given[0].shape[1]})
        )
    merged: list[tuple[int, Any, Any]] = [(0, 0.0, 0.0)] * len(norms)
    kind = next(network.parameters()).dtype
    for batch in batches:
        with torch.no_grad():
            network(torch.from_numpy(batch).to(kind))
        for place, norm in enumerate(norms):
            n, new = merged[place][0], counts[norm]
            mean, m2 = norm.running_mean.double().numpy(), norm.running_var.double().numpy() * (new - 1)
            _, old, old_m2 = merged[place]
            away = mean - old
            merged[place] = n + new, old + away * new / (n + new), old_m2 + m2 + away**2 * n * new / (n + new)
    return [(mean, np.asarray(m2) / n) for n, mean, m2 in merged]
