"""Front doors: a model in any form that people have it in, and the same form back.

Inside there is one form, `LoadedModel`.  A path stays a file until somebody asks for the model
itself; what is in memory already goes through its own ModelProto, made by its own library.  Such a
library is only looked for among the modules that are imported already: who holds an
`onnx_ir.Model` has imported onnx_ir, and nobody else has to wait for it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError, UsageError, quoted
from bnfold.model_file import LoadedModel, load, save, to_proto, wrap
from bnfold.soundness import demand_sound

log = logging.getLogger("bnfold")

GiveBack = Callable[[LoadedModel], Any]

ACCEPTED = "a path, onnx.ModelProto, onnx_graphsurgeon.Graph, onnx_ir.Model or torch.onnx.ONNXProgram"


class ModelResult:
    """A model that was made of the user's, and how it is given back; a base of what the verbs return."""

    _model: LoadedModel
    _give_back: GiveBack

    @cached_property
    def model(self) -> Any:
        """The model, of the kind that was given (of a path: an onnx.ModelProto), with all its weights.

        Raises: ModelError if it is larger than 2 GiB; `save` writes it all the same.
        """
        return self._give_back(self._model)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write the model; weights that were in a data file go into a new one beside it.

        The output appears whole or not at all.

        Args:
            path: where to; the folder must exist.
            overwrite: whether an existing file may be replaced, the given model's own included.

        Returns: the files written, the model first.

        Raises: OutputError; whatever goes wrong, the input and an earlier output stay as they were.
        """
        log.info("writing %s", quoted(path))
        return save(self._model, path, overwrite=overwrite)


def open_model(model: Any) -> tuple[LoadedModel, GiveBack]:
    """A model of any accepted kind, and the function that makes the same kind of an edited one.

    The given object is never changed, nor is the LoadedModel a copy of it: edit a copy of its proto.

    Args:
        model: a path (str or os.PathLike; the kind that comes back is onnx.ModelProto), onnx.ModelProto,
            onnx_graphsurgeon.Graph, onnx_ir.Model or torch.onnx.ONNXProgram.

    Raises:
        UsageError: it is something else.
        ModelError: it is no sound model.
    """
    loaded, give_back = _opened(model)
    with naming(loaded.path):
        demand_sound(loaded.proto)
    return loaded, give_back


def _opened(model: Any) -> tuple[LoadedModel, GiveBack]:
    if isinstance(model, (str, os.PathLike)):
        return load(os.fsdecode(model)), to_proto
    for module, name, opener in _KINDS:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(model, kind):
            return opener(model)
    raise UsageError(f"{type(model).__module__}.{type(model).__qualname__} is no model; give {ACCEPTED}")


@contextmanager
def naming(file: Path | None) -> Iterator[None]:
    """Errors that don't know whose file they are about learn it here."""
    try:
        yield
    except BnfoldError as error:
        if error.file is not None or file is None:
            raise
        raise error.of(file) from error


def _proto(model: Any) -> tuple[LoadedModel, GiveBack]:
    return wrap(model), to_proto


def _graphsurgeon(graph: Any) -> tuple[LoadedModel, GiveBack]:
    import onnx_graphsurgeon

    # Exporting adds the domains that nodes use to `import_domains`, in place: it gets a list of its own.
    holders = [graph, *graph.functions]
    domains = [holder.import_domains for holder in holders]
    try:
        for holder, own in zip(holders, domains, strict=True):
            holder.import_domains = None if own is None else list(own)
        proto = onnx_graphsurgeon.export_onnx(graph, do_type_check=False)
    finally:
        for holder, own in zip(holders, domains, strict=True):
            holder.import_domains = own
    return wrap(proto), lambda folded: onnx_graphsurgeon.import_onnx(to_proto(folded))


def _onnx_ir(model: Any) -> tuple[LoadedModel, GiveBack]:
    from bnfold.ir_model import opened

    return opened(model)


def _onnx_program(program: Any) -> tuple[LoadedModel, GiveBack]:
    loaded, give_back = _onnx_ir(program.model)
    # A new program: the given one may have a session open on the model that it came with.
    return loaded, lambda folded: type(program)(give_back(folded), program.exported_program)


# Module and name of each kind, and what opens it.
_KINDS: tuple[tuple[str, str, Callable[[Any], tuple[LoadedModel, GiveBack]]], ...] = (
    ("onnx", "ModelProto", _proto),
    ("onnx_graphsurgeon", "Graph", _graphsurgeon),
    ("onnx_ir", "Model", _onnx_ir),
    ("torch.onnx", "ONNXProgram", _onnx_program),
)
