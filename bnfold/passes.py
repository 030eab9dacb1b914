"""bnfold's verbs as passes of onnx_ir, beside those of onnxscript: for pipelines that hold an `onnx_ir.Model`.

    program = torch.onnx.export(network.eval(), inputs, dynamo=True)
    program.model = bnfold.passes.FoldBatchNormalization()(program.model).model

The passes are functional: the given model stays as it is, and the new one shares every tensor that didn't change, as
the same object (`bnfold.ir_model`).  What onnx_ir keeps in memory only, the `meta` of nodes and values, is not in it.

This module imports onnx_ir, which `import bnfold` doesn't: import it by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from bnfold.api import FoldResult, fold_with
from bnfold.errors import BnfoldError, NoPlaceError, UsageError
from bnfold.fold import Options
from bnfold.fold.kept import Kept, read_kept
from bnfold.frontends import open_model
from bnfold.graph import Node
from bnfold.insert.api import InsertResult, insert
from bnfold.insert.parameters import Mode
from bnfold.insert.sites import Where
from bnfold.report import FoldReport

__all__ = ["FoldBatchNormalization", "InsertBatchNormalization", "MergeBranches"]

Patterns = str | Sequence[str]


class _Pass(ir.passes.FunctionalPass):
    """Takes a sound model and gives a sound model."""

    def requires(self, model: ir.Model) -> None:
        """The model is sound: names, order, schemas, tensors that can be read."""
        _demand_sound(model, ir.passes.PreconditionError)

    def ensures(self, model: ir.Model) -> None:
        """So is the new one."""
        _demand_sound(model, ir.passes.PostconditionError)


def _demand_sound(model: ir.Model, kind: type[Exception]) -> None:
    try:
        open_model(model)
    except BnfoldError as error:
        raise kind(str(error)) from error


class _FoldingPass(_Pass):
    """A fold; `report` is that of the last call."""

    report: FoldReport | None = None

    def __init__(self, options: Options, verify: bool | Literal["full"], require_verify: bool) -> None:
        if require_verify and not verify:
            raise UsageError("the relation check can't be both required and left out; drop one of the two")
        self._options, self._verify, self._require_verify = options, verify, require_verify

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold.  Raises: NotEquivalentError if a check fails, ModelError."""
        result = fold_with(model, self._options, self._verify, self._require_verify)
        self.report = result.report
        return ir.passes.PassResult(result.model, _is_changed(result))


def _is_changed(result: FoldResult) -> bool:
    return bool(result.verification.static.tensors) or result.report.nodes_before != result.report.nodes_after


class FoldBatchNormalization(_FoldingPass):
    """Removes BatchNormalization without changing what the model computes: `bnfold.fold` as a pass.

    >>> from onnx_ir.passes.common import RemoveUnusedNodesPass
    >>> fold = FoldBatchNormalization(verify=False)
    >>> result = ir.passes.Sequential(fold, RemoveUnusedNodesPass())(ir.load("sample_models/digits_cnn.onnx"))
    >>> result.modified, len(fold.report.folded), len(fold.report.kept)
    (True, 7, 0)

    Args:
        only, skip, verify, require_verify, keep_overridable, merge, kept: as of `bnfold.fold`.

    Attributes:
        report: what became of every BatchNormalization of the last model; None before the first.
    """

    def __init__(
        self, *, only: Patterns = (), skip: Patterns = (), verify: bool | Literal["full"] = True,
        require_verify: bool = False, keep_overridable: bool = False, merge: bool = True,
        kept: Kept = "auto",
    ) -> None:  # fmt: skip
        read_kept(kept, "kept")
        options = Options(_listed(only), _listed(skip), keep_overridable, merge, kept)
        super().__init__(options, verify, require_verify)


class MergeBranches(_FoldingPass):
    """Makes one linear node of parallel branches (RepVGG, MobileOne), with the BatchNormalization inside of them.

    All other BatchNormalization stays. `FoldBatchNormalization` does this too, and needs no such pass before it.

    Args:
        only, skip: patterns of node names, as of `bnfold.fold`: with `only`, branches that have such a
            BatchNormalization; `skip` goes for all nodes.
        verify, require_verify, keep_overridable: as of `bnfold.fold`.

    Attributes:
        report: of the last model; `report.merges` are the nodes that stand for several.
    """

    def __init__(
        self, *, only: Patterns = (), skip: Patterns = (), verify: bool | Literal["full"] = True,
        require_verify: bool = False, keep_overridable: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(_Merging(_listed(only), _listed(skip), keep_overridable), verify, require_verify)


@dataclass(frozen=True)
class _Merging(Options):
    """Nothing is folded, and all that the patterns allow is merged."""

    def chosen(self, node: Node) -> bool:  # noqa: ARG002 (of any node)
        """No node goes by itself."""
        return False

    def mergeable(self, node: Node) -> bool:
        """As the patterns say."""
        return super().chosen(node) if node.op == "BatchNormalization" else super().mergeable(node)


class InsertBatchNormalization(_Pass):
    """Gives the layers of a model BatchNormalization: `bnfold.insert` as a pass.

    A model that has no place for one comes back as it is.

    Args:
        data, mode, where, only, skip, training_nodes, upgrade, batch_size, samples, seed, provider: as of
            `bnfold.insert`.

    Attributes:
        result: what was put in where, of the last model; None before the first, and if there was no place.
    """

    result: InsertResult | None = None

    def __init__(
        self, data: Any = None, *, mode: Mode = "preserve", where: Where = "before-activation", only: Patterns = (),
        skip: Patterns = (), training_nodes: bool = False, upgrade: bool = False, batch_size: int = 64,
        samples: int | None = None, seed: int = 0, provider: str = "cpu",
    ) -> None:  # fmt: skip
        self._data = data
        self._options: dict[str, Any] = {
            "mode": mode, "where": where, "only": only, "skip": skip, "training_nodes": training_nodes,
            "upgrade": upgrade, "batch_size": batch_size, "samples": samples, "seed": seed, "provider": provider,
        }  # fmt: skip

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert.  Raises: UsageError, ModelError."""
        try:
            self.result = insert(model, self._data, **self._options)
        except NoPlaceError:
            self.result = None
            return ir.passes.PassResult(model.clone(), False)
        return ir.passes.PassResult(self.result.model, True)


def _listed(patterns: Patterns) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
