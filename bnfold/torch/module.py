"""A model as a torch module."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from onnx import ModelProto

from bnfold.errors import UsageError, quoted
from bnfold.frontends import naming, open_model
from bnfold.graph import Graph
from bnfold.model_file import LoadedModel
from bnfold.shapes import Shapes
from bnfold.torch import ops  # noqa: F401 (fills the table)
from bnfold.torch.compiled import Compiled
from bnfold.torch.program import Parts, Shared, compile_main, demand_known, state_content
from bnfold.torch.state import Choice, State, find_state
from bnfold.torch.types import DTYPES, MOVABLE


class OnnxModule(Compiled):
    """An ONNX graph as a torch module; made by `to_module`.

    `forward` takes the graph's inputs, in order or by name, and gives its output, or a tuple of them. Everything that
    works with a module works with it: `train()` and `eval()`, `to()`, optimisers, `state_dict`, `torch.compile`,
    `copy.deepcopy`.

    Attributes:
        names: for each key of `state_dict()` the tensor's name in the file. They are the same but where torch can't
            use the name.
        input_names, output_names: those of the graph.
        code: the source of the program that runs, to be read.
    """

    def __init__(self, shared: Shared) -> None:
        super().__init__(compile_main(shared))
        self.names: dict[str, str] = {tensor.key: tensor.name for tensor in shared.state.tensors}
        proto = shared.graph.model.graph
        initial = {tensor.name for tensor in proto.initializer}
        self.input_names: tuple[str, ...] = tuple(info.name for info in proto.input if info.name not in initial)
        self.output_names: tuple[str, ...] = tuple(info.name for info in proto.output)
        self._fill(shared.state, shared)
        self._adopt(shared.parts)

    def _fill(self, state: State, shared: Shared) -> None:
        for tensor in state.tensors:
            owner, _, leaf = tensor.key.rpartition(".")
            holder, content = _submodule(self, owner), state_content(shared, tensor)
            if tensor.buffer:
                holder.register_buffer(leaf, content)
            else:
                holder.register_parameter(leaf, torch.nn.Parameter(content, requires_grad=tensor.trains))

    def _adopt(self, parts: Parts) -> None:
        for path, constant in parts.constants.items():
            owner, _, leaf = path.rpartition(".")
            _submodule(self, owner).register_buffer(leaf, constant, persistent=False)
        for dtype, path in parts.like.items():
            owner, _, leaf = path.rpartition(".")
            _submodule(self, owner).register_buffer(leaf, torch.empty(0, dtype=dtype), persistent=False)
        for path, body in parts.bodies.items():
            owner, _, leaf = path.rpartition(".")
            _submodule(self, owner).add_module(leaf, body)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the model.

        Args:
            inputs: tensors for the graph's inputs, in its order.
            named: those for further inputs, by their names.

        Raises: UsageError if inputs are missing, or there are too many.
        """
        if named or len(inputs) != len(self.input_names):
            inputs = self._arranged(inputs, named)
        return self._run(self, *inputs)

    def _arranged(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        rest = self.input_names[len(inputs) :]
        listed = ", ".join(quoted(name) for name in self.input_names)
        if len(inputs) > len(self.input_names) or set(named) != set(rest):
            raise UsageError(f"the model takes {len(self.input_names)} inputs: {listed}")
        return (*inputs, *(named[name] for name in rest))


# Names at a module's top that are not for tensors.
_RESERVED = frozenset({"code", "names", "input_names", "output_names", "constants_", "like_", "bodies_"})


def reserved(name: str) -> bool:
    """Whether a module needs this name for itself."""
    return name in _RESERVED or hasattr(OnnxModule, name)


def _submodule(module: torch.nn.Module, path: str) -> torch.nn.Module:
    """The submodule at a path, made if it isn't there."""
    for part in path.split(".") if path else ():
        children = dict(module.named_children())
        if part not in children:
            children[part] = torch.nn.Module()
            module.add_module(part, children[part])
        module = children[part]
    return module


def to_module(model: Any, *, train: Choice = None, frozen_statistics: bool = False) -> OnnxModule:
    """Make a torch module of an ONNX model.

    >>> module = to_module("sample_models/digits_cnn.onnx").train()
    >>> module(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])

    Its parameters and buffers bear the names of the file's tensors, so that `write_back` knows where they go. In
    training mode every BatchNormalization normalises by its batch and updates its statistics, and Dropout is active;
    `eval()` computes what ONNX Runtime computes. The module starts in evaluation mode.

    Args:
        model: a path, onnx.ModelProto, onnx_graphsurgeon.Graph, onnx_ir.Model or torch.onnx.ONNXProgram;
            it is not changed.
        train: which tensors train: a pattern of names (`*`, `?`, `[...]`), several, or a function of the name. By
            default those that stand where layers keep weights. Others stay as they are (requires_grad is False).
        frozen_statistics: whether BN uses the file's statistics in training too, and never updates them. BN behind a
            convolution is then folded into it on the fly.

    Raises:
        UsageError: no model, or a pattern that matches no tensor.
        ModelError: the model isn't sound, or has operators that can't be computed: all of them are named.
    """
    original, _ = open_model(model)
    with naming(original.path):
        shared = share(original, train)
        shared.frozen = frozen_statistics
        demand_known(shared)
        return OnnxModule(shared).eval()


def share(original: LoadedModel, train: Choice) -> Shared:
    """What compiling needs to know of a model."""
    proto = ModelProto()
    proto.CopyFrom(original.proto)
    model = LoadedModel(proto, original.weights, original.path)
    graph = Graph(proto)
    state = find_state(graph, model.weights, train, reserved)
    functions = {
        (function.domain if function.domain != "ai.onnx" else "", function.name, function.overload): scope
        for function, scope in zip(
            proto.functions, (scope for scope in graph.scopes if scope.is_function), strict=True
        )
    }
    return Shared(graph, model.weights, Shapes(graph, model), state, Parts(), functions, _main_type(state))


def _main_type(state: State) -> torch.dtype:
    """The floating type that most of the model's tensors have."""
    types = Counter(DTYPES[tensor.tensor.data_type] for tensor in state.tensors)
    return next((dtype for dtype, _ in types.most_common() if dtype in MOVABLE), torch.float32)
