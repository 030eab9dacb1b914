"""A module whose forward is generated source, and the functions that such source calls besides."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import count
from types import ModuleType
from typing import Any

import torch
import torch.fx


def to_tensor(value: Any, like: torch.Tensor) -> torch.Tensor:
    """Sizes as a tensor."""
    first = value[0] if isinstance(value, list) and value else value
    dtype = like.dtype if isinstance(first, float) else torch.int64 if value == [] else None
    return torch.tensor(value, dtype=dtype, device=like.device)


def to_typed(value: Any, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """Sizes as a tensor of the type that the model's output is declared with."""
    return torch.tensor(value, dtype=dtype, device=like.device)


def to_list(tensor: torch.Tensor) -> Any:
    """The content of a tensor that a shape or axes are taken from: it has to be waited for."""
    return tensor.reshape(-1).tolist()


def to_number(tensor: torch.Tensor) -> Any:
    """The only element of a tensor, for Python to decide by."""
    return tensor.item()


def to_numbers(tensor: torch.Tensor) -> Any:
    """A number, or the list of them."""
    return tensor.tolist()


def bind(body: torch.nn.Module, captured: Sequence[Any]) -> Callable[..., list[Any]]:
    """A body as a function of its own inputs."""
    return lambda *inputs: body(*inputs, *captured)


class Compiled(torch.nn.Module):
    """A module whose forward is generated source."""

    _numbers = count()

    def __init__(self, graph: torch.fx.Graph) -> None:
        super().__init__()
        code = graph.python_code(root_module="self")
        self.code: str = code.src
        # Modules among them by their names, since the program has to be copied and pickled.
        self._imports = {name: one.__name__ for name, one in code.globals.items() if isinstance(one, ModuleType)}
        self._globals = {name: one for name, one in code.globals.items() if name not in self._imports}
        self._bring_to_life()

    def _bring_to_life(self) -> None:
        filename = f"<bnfold.torch program {next(self._numbers)}>"
        linecache.cache[filename] = (len(self.code), None, self.code.splitlines(keepends=True), filename)
        names = self._globals | {name: import_module(module) for name, module in self._imports.items()}
        exec(compile(self.code, filename, "exec"), names)
        self._run = names["forward"]

    def __getstate__(self) -> dict[str, Any]:
        """Generated functions can't be pickled; their source and what it refers to can."""
        return {name: value for name, value in self.__dict__.items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bring_to_life()

    def forward(self, *inputs: Any) -> Any:
        """Run the program."""
        return self._run(self, *inputs)
