"""What a Python program calls: give a model BatchNorm, get it back with an account of where."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bnfold.constants import unit_roundoff
from bnfold.errors import NoPlaceError, UsageError, quoted
from bnfold.fold import Options
from bnfold.frontends import GiveBack, ModelResult, naming, open_model
from bnfold.graph import Graph
from bnfold.insert.difference import Difference, difference
from bnfold.insert.double import needs_double
from bnfold.insert.measure import Remembering, measure, measure_fresh
from bnfold.insert.ops import LINEAR
from bnfold.insert.parameters import MODES, Mode, dtype_of, fresh, preserving
from bnfold.insert.place import Placed, place, to_training
from bnfold.insert.sites import REASONS, WHERE, Left, Site, Where, find_sites
from bnfold.insert.upgrade import demand_opset, opset_of
from bnfold.model_file import LoadedModel
from bnfold.recalibrate.data import open_data
from bnfold.recalibrate.measure import Measured
from bnfold.shapes import Shapes
from bnfold.verify.inputs import ports
from bnfold.verify.runtime import demand_providers

log = logging.getLogger("bnfold")

# The schema of `to_dict()`; raised when a field changes its meaning or goes.
SCHEMA_VERSION = 1

# Outputs this many units of roundoff apart are told: the worst of 109 networks with random weights had 170.
SUSPICIOUS = 256

NOTHING = Measured([], 0, ())


@dataclass(frozen=True)
class Inserted:
    """A BN that the model has now.

    Attributes:
        name: the BN's.
        node, op: name and op of the linear node in front of it.
        activation: the first activation behind it, its name; None if there is none.
        output: the name of the normalised tensor, the same that it had before.
        channels: C.
        parameters: names of gamma, beta, running mean and running variance, (C,) each.
        bias: what became of the bias: 'moved' into beta, 'dropped' (fresh: the mean takes it away), 'kept' where it is
            computed or no vector of one number per channel, '' if there was none.
        transposed: whether its channels are not on axis 1, so that a Transpose stands before and behind it.
    """

    name: str
    node: str
    op: str
    activation: str | None
    output: str
    channels: int
    parameters: tuple[str, ...]
    bias: str
    transposed: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self) | {"parameters": list(self.parameters)}


@dataclass(frozen=True)
class InsertResult(ModelResult):
    """A model with BatchNorm.

    Attributes:
        mode: 'preserve' or 'fresh'.
        samples: how many samples were measured; 0 without data.
        sites: the BNs put in, in the model's order.
        left: the linear nodes that got none, each with the reason; without those that `only` and `skip` leave out.
        difference: how far the outputs are from those of the given model on the first batch; None in 'fresh'.
    """

    mode: str
    samples: int
    sites: tuple[Inserted, ...]
    left: tuple[Left, ...]
    difference: Difference | None
    _notices: tuple[str, ...] = field(repr=False)
    _model: LoadedModel = field(repr=False)
    _give_back: GiveBack = field(repr=False)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know besides, `save`'s own notices included."""
        return (*self._notices, *self._model.notices)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "mode": self.mode,
            "samples": self.samples,
            "sites": [site.to_dict() for site in self.sites],
            "left": [asdict(one) for one in self.left],
            "difference": None if self.difference is None else asdict(self.difference),
            "notices": list(self.notices),
        }


def insert(
    model: Any,
    data: Any = None,
    *,
    mode: Mode = "preserve",
    where: Where = "before-activation",
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    training_nodes: bool = False,
    upgrade: bool = False,
    batch_size: int = 64,
    samples: int | None = None,
    seed: int = 0,
    provider: str = "cpu",
) -> InsertResult:
    """Give a network BatchNormalization behind its linear nodes, where Ioffe & Szegedy put it.

        y = gamma * (W u - mean) / sqrt(var + eps) + beta        per channel, in the place of y = W u + b

    >>> import bnfold
    >>> folded = bnfold.fold("sample_models/digits_cnn.onnx").model
    >>> result = insert(folded, "sample_models/digits.npz:calib_x")
    >>> len(result.sites), result.sites[0].name, result.sites[0].channels, result.difference.worst < 2e-6
    (7, '/0/Conv.bn', 24, True)

    Args:
        model: a path, onnx.ModelProto, onnx_graphsurgeon.Graph, onnx_ir.Model or torch.onnx.ONNXProgram;
            it is not changed.
        data: whatever `bnfold.recalibrate.data.open_data` takes: arrays, a file or folder of them, an iterable.
        mode: 'preserve': mean and var are those of W u on the data, gamma = sqrt(var + eps) and beta = mean + b, so
            that the function stays, and in training mode stays too on a batch that is like the data. 'fresh':
            gamma = 1, beta = 0, to be trained; mean and var are measured, or 0 and 1 without data.
        where: 'before-activation': outputs of Conv, ConvTranspose, Gemm and MatMul (+ Add) that go into an activation,
            directly or through a residual Add, pooling or layout. 'all': every such output but the network's last.
        only: patterns (`*`, `?`, `[...]`) of names of linear nodes; if given, no others get a BN.
        skip: patterns of names of linear nodes that get none.
        training_nodes: whether the BNs are in training mode, with three outputs; takes opset 14.
        upgrade: whether a model of an opset that is too low is converted by onnx's version converter.
        batch_size: samples at a time, of a model that leaves it open.
        samples: use at most so many.
        seed: of the order of the data.
        provider: 'cpu', 'cuda' or 'tensorrt'.

    Raises:
        UsageError: no model, no data where they are needed, or arguments that make no sense.
        ModelError: the model isn't sound, can't be run, has no place for a BN, or its opset is too low.
    """
    _demand_sense(data, mode, where)
    demand_providers(provider)
    only, skip = ((patterns,) if isinstance(patterns, str) else tuple(patterns) for patterns in (only, skip))
    options = Options(only, skip)
    given, give_back = open_model(model)
    with naming(given.path):
        original = demand_opset(given, training_nodes, upgrade)
        work = original.copy()
        graph = Graph(work.proto)
        sites, left = find_sites(graph, Shapes(graph, work), where, options.chosen)
        _demand_sites(sites, left)
        linear = (node.name for scope in graph.scopes for node in scope.nodes if node.op in LINEAR)
        misspelt = list(options.unmatched(linear, "linear node"))  # before the names change
        opened = None if data is None else _opened(data, original, batch_size, samples, seed)
        measured, found = NOTHING, None
        if mode == "preserve" and opened is not None:
            measured = measure(original.copy(), sites, opened, provider)
            parameters = [preserving(site, seen.total) for site, seen in zip(sites, measured.traces, strict=True)]
        else:
            parameters = [fresh(site) for site in sites]
        placed = place(graph, sites, parameters)
        if mode == "preserve" and opened is not None:
            found = difference(original, work, opened.first, provider, double=needs_double(sites))
        elif opened is not None:
            measured = measure_fresh(work, {one.name for one in placed}, opened, provider)
        if training_nodes:
            to_training(work.proto, placed)
    inserted = tuple(_inserted(site, one, mode) for site, one in zip(sites, placed, strict=True))
    had = sum(node.op == "BatchNormalization" for scope in graph.scopes for node in scope.nodes)
    told = (*_told(given, original, work, mode, data, training_nodes, had), *_told_of(inserted, sites, found))
    notices = (*told, *measured.notices, *misspelt)
    return InsertResult(mode, measured.samples, inserted, tuple(left), found, notices, work, give_back)


def _demand_sense(data: Any, mode: str, where: str) -> None:
    for what, found, known in (("mode", mode, MODES), ("place", where, WHERE)):
        if found not in known:
            raise UsageError(f"there is no {what} {quoted(found)}; choose from {', '.join(known)}")
    if data is None and mode == "preserve":
        what = "to keep the function, what the layers put out has to be measured"
        raise UsageError(f"{what}; give data, or the mode 'fresh', which changes the function")


def _demand_sites(sites: Sequence[Site], left: Sequence[Left]) -> None:
    if sites:
        return
    if not left:
        raise NoPlaceError("has no Conv, ConvTranspose, Gemm or MatMul with a weight (or only and skip leave none)")
    counts = Counter(REASONS[one.reason] for one in left).most_common()
    why = "; ".join(f"{reason} ({count} of {len(left)} linear nodes)" for reason, count in counts)
    raise NoPlaceError(f"has no place for a BatchNormalization: {why}")


def _opened(data: Any, model: LoadedModel, batch_size: int, samples: int | None, seed: int) -> Remembering:
    inputs, _ = ports(model.proto)
    return Remembering(**vars(open_data(data, inputs, batch_size=batch_size, samples=samples, seed=seed)))


def _inserted(site: Site, placed: Placed, mode: str) -> Inserted:
    activation = None if site.activation is None else site.activation.name
    had = site.drops_bias or bool(site.adds)
    slot = LINEAR[site.node.op].bias
    kept = not site.drops_bias and slot is not None and site.node.input(slot) is not None
    bias = "kept" if kept else ("moved" if mode == "preserve" else "dropped") if had else ""
    return Inserted(
        placed.name, site.name, site.node.op, activation, site.target.name, site.channels, placed.parameters,
        bias, site.transposed,
    )  # fmt: skip


def _told(
    given: LoadedModel, original: LoadedModel, work: LoadedModel, mode: str, data: Any, training: bool, had: int
) -> Iterator[str]:
    """What the user should know of the model; `had`: the number of BNs that it had."""
    if original is not given:
        before, after = opset_of(given.proto), opset_of(original.proto)
        yield f"converted from opset {before} to {after} by onnx's version converter"
    if mode == "fresh":
        measured = "mean and variance were measured" if data is not None else "mean and variance are 0 and 1"
        yield f"the function is another one now: gamma is 1, beta 0, biases are gone, {measured}; train it"
        if had:
            yield f"the model's own BatchNormalizations ({had}) keep their statistics; `bnfold recalibrate` renews them"
    if training:
        yield "the new BatchNormalizations normalise by each batch; `bnfold recalibrate --freeze` ends that"
    gone = {info.name for info in original.proto.graph.input} - {info.name for info in work.proto.graph.input}
    if gone:
        yield f"{_listed(sorted(gone))} was an input too, so a caller could override it; it is none now"


def _told_of(inserted: Sequence[Inserted], sites: Sequence[Site], found: Difference | None) -> Iterator[str]:
    """What the user should know of the BNs."""
    if found is not None and found.worst > SUSPICIOUS * max(unit_roundoff(dtype_of(site)) for site in sites):
        yield "the outputs are further apart than rounding usually makes them; `bnfold verify` tells where it begins"
    last = [site.name for site in sites if site.is_last]
    if last:
        yield f"{_listed(last)} is the last linear node on its way; --skip leaves it as it was"
    kept = [one.node for one in inserted if one.bias == "kept"]
    if kept:
        yield f"{_listed(kept)} keeps its bias, which is no constant per channel: beta does the same"
    turned = [one.node for one in inserted if one.transposed]
    if turned:
        yield f"{_listed(turned)} has its channels last: a Transpose stands before and behind its BatchNormalization"


def _listed(names: Sequence[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{quoted(names[0])}{more}"
