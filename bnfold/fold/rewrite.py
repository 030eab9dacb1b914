"""Carry out a plan: new parameters, ops removed, names kept.

Nothing is decided here.  Parameters first (`_Store`), then every edit of nodes and names, then what
nobody reads any more is swept out.  A name goes on meaning what it meant wherever a tensor with that
meaning is left: the output of Conv + BN bears the BN's name, not the Conv's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto

from bnfold.constants import Array, unit_roundoff
from bnfold.fold.ops.affine import epsilon_of
from bnfold.fold.parameters import last_digit, new_bias, shifted, spread, stored, type_of, weight_blocks
from bnfold.fold.plan import AffineEdit, LinearEdit, Plan, StepEdit
from bnfold.fold.quantised import Quantised
from bnfold.fold.rescale import Changes, bias_changes, stays_integer, weight_changes
from bnfold.fold.union_find import Floats
from bnfold.fold.wiring import Wiring, freeze, own_producer, read_names, relied_on, remove_beta, set_axis, sweep
from bnfold.graph import Graph, Node, Scope, Value
from bnfold.storage import fill, new_tensor, tensors_of
from bnfold.weights import Weights

# What a new parameter is made for.
Edit = LinearEdit | AffineEdit | StepEdit


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A new parameter: where it is, which edit made it, and what it was made of."""

    tensor: TensorProto
    node: Node
    edit: Edit
    role: str  # weight, bias, constant, scale, mean …
    source: Array | None  # the old weight
    noise: Any  # of a weight: rounding noise of the rows' outputs from elsewhere; of a bias: what tells its own
    bias: Array | None = None  # the old bias, of a bias


@dataclass(eq=False)
class _Request:
    """A parameter that an input of a node asks for."""

    node: Node
    index: int
    edit: Edit
    role: str
    source: Value | None  # the constant that stood there
    key: bytes  # equal keys of one source: equal content
    dims: tuple[int, ...]
    content: Array | Callable[[], Any]  # an array, or a maker of blocks
    dtype: Any
    wanted: str  # name where no name can be kept
    old: Array | None = None  # content of the weight
    noise: Any = 0.0
    bias: Array | None = None


@dataclass(frozen=True, eq=False)
class Rescaled:
    """A weight or bias whose integers, or their scale, are new."""

    edit: LinearEdit
    role: str  # weight or bias
    node: Node  # what makes numbers of the integers, as it is now
    old: Quantised
    weight: Array  # the old weight and bias, as numbers
    bias: Array | None
    rounding: float  # of a bias: the largest
    tensors: dict[str, TensorProto]  # what the scope's names stand for afterwards


@dataclass
class Rewrite:
    """What a rewrite did, for proofs and reports."""

    rescaled: list[Rescaled] = field(default_factory=list)
    rewritten: list[Rewritten] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)  # initializers that could be fed and now can't


def rewrite(graph: Graph, weights: Weights, plans: list[Plan]) -> Rewrite:
    """Edit the model in place.

    Raises:
        Unrepresentable: a result that the stored type can't hold; the model may be half edited then, and the
            caller starts again from a fresh copy.
    """
    result = Rewrite()
    requests: list[_Request] = []
    before = read_names(graph)
    for plan in plans:
        requests += [r for edit in plan.linears for r in _linear_requests(plan, edit)]
        requests += [r for edit in plan.linears for r in _integer_requests(graph, plan, edit, result)]
        requests += [r for edit in plan.affines for r in _affine_requests(plan, edit)]
        requests += [r for edit in plan.steps for r in _step_requests(plan, edit)]
    store = _Store(graph, weights, result)
    store.place(requests)
    if result.rescaled:
        tensors = {scope.label: tensors_of(scope) for scope in graph.scopes}
        for item in result.rescaled:
            item.tensors.update(tensors[item.node.scope.label])
    for plan in plans:
        Wiring(graph, plan, store.created).run()
    sweep(graph, before)
    result.frozen.extend(freeze(graph, (value for plan in plans for value in relied_on(plan))))
    return result


# -- parameters -------------------------------------------------------------------------------------


def _linear_requests(plan: Plan, edit: LinearEdit) -> Iterable[_Request]:
    linear, node = edit.linear, edit.linear.node
    weight = plan.ties.array(linear.weight)
    assert weight is not None
    index = next(k for k, value in enumerate(node.inputs) if value is linear.weight)
    bias = None
    if not linear.table and edit.changes_bias and not stays_integer(plan.ties, edit):
        has_one = linear.bias_input is not None and node.input(linear.bias_input) is not None
        bias = _bias_request(plan, edit, weight) if has_one or edit.needs_bias else None
    if linear.quantised is None and (edit.changes_weight or (linear.table and edit.changes_bias)):
        shift = (edit.b + edit.shift).tobytes() if linear.table else b""
        key = b"".join(
            (edit.factor.tobytes(), edit.column_scale.tobytes(), edit.dead_columns.tobytes(), shift,
             repr((linear.view, linear.row_axes)).encode())
        )  # fmt: skip
        # What is added to a row's output is rounded too, so that a weight far below it needs no more digits.
        noise = unit_roundoff(weight.dtype) * spread(linear, _added(edit, bias), linear.row_axes)
        yield _Request(
            node, index, edit, "weight", linear.weight, key, weight.shape, weight_blocks(edit, weight, noise),
            weight.dtype, linear.weight.name, weight, noise,
        )  # fmt: skip
    if bias is not None:
        yield bias


def _bias_noise(edit: LinearEdit, weight: Array, dtype: Any) -> Any:
    """Rounding noise of each row's output: a last digit of its weights, times an input of size one."""
    if edit.linear.row_shape == ():
        return unit_roundoff(dtype)
    linear = edit.linear
    others = tuple(axis for axis in range(len(linear.view)) if axis not in linear.row_axes)
    largest = np.abs(weight.reshape(linear.view)).max(axis=others).astype(np.float64).ravel()
    noise = unit_roundoff(dtype) * largest * np.abs(edit.factor)
    return noise.reshape(linear.row_shape) if linear.bias_input is None else noise


def _added(edit: LinearEdit, bias: _Request | None) -> Floats:
    """Size of what each row adds, 0 where nothing is known of it."""
    count = edit.scale.size
    if bias is None or callable(bias.content) or edit.linear.row_shape == ():
        return np.zeros(count)
    content = np.abs(np.asarray(bias.content, np.float64))
    return content.reshape(-1, count).max(axis=0) if content.size % count == 0 else np.zeros(count)


def _bias_request(plan: Plan, edit: LinearEdit, weight: Array) -> _Request:
    linear, node = edit.linear, edit.linear.node
    value = None if linear.bias_input is None else node.input(linear.bias_input)
    bias = plan.ties.array(value)
    if node.op in ("LSTM", "GRU", "RNN"):
        exact = np.zeros((linear.view[0], 2 * linear.view[1])) if bias is None else np.array(bias, np.float64)
        exact[:, : linear.view[1]] -= shifted(linear, edit.column_shift, weight).reshape(linear.view[:2])
    else:
        exact = new_bias(edit, weight, bias)
        if linear.bias_input is None:
            exact = exact.reshape(linear.row_shape)
    dtype = weight.dtype if bias is None else bias.dtype
    content = stored(exact, dtype, node, lambda: _bias_noise(edit, weight, dtype))
    wanted = linear.weight.name if linear.quantised is None else _name_of_integers(linear.quantised)
    wanted = wanted[: -len(".weight")] + ".bias" if wanted.endswith(".weight") else f"{wanted}_bias"
    return _Request(
        node, -1 if linear.bias_input is None else linear.bias_input, edit, "bias", value, content.tobytes(),
        content.shape, content, dtype, value.name if value is not None else wanted, weight,
        partial(_bias_noise, edit, weight, dtype), bias,
    )  # fmt: skip


def _name_of_integers(quantised: Quantised) -> str:
    """What the float weight was probably called."""
    value = quantised.node.input(0)
    assert value is not None
    return value.name.removesuffix("_quantized")


def _integer_requests(graph: Graph, plan: Plan, edit: LinearEdit, result: Rewrite) -> Iterable[_Request]:
    """Scales, and integers where they change, of a weight or bias that is kept as integers."""
    linear = edit.linear
    weight, bias = plan.ties.array(linear.weight), None
    assert weight is not None
    found: list[tuple[str, Value, Quantised, Changes]] = []
    if linear.quantised is not None and edit.changes_weight:
        found.append(("weight", linear.weight, linear.quantised, weight_changes(edit, linear.quantised)))
    if linear.quantised_bias is not None and edit.changes_bias and stays_integer(plan.ties, edit):
        assert linear.bias_input is not None
        value = linear.node.input(linear.bias_input)
        assert value is not None
        bias = plan.ties.array(value)
        exact = np.broadcast_to(new_bias(edit, weight, bias), edit.scale.shape)
        found.append(("bias", value, linear.quantised_bias, bias_changes(edit, linear.quantised_bias, exact)))
        remove_beta(linear.node)
    for role, value, old, changes in found:
        node = own_producer(graph, linear.node, value, old.node)
        if changes.axis is not None:
            set_axis(node, changes.axis)
        result.rescaled.append(Rescaled(edit, role, node, old, weight, bias, changes.rounding, {}))
        for change in changes.changes:
            source = old.node.input(change.index)
            assert source is not None
            yield _Request(
                node, change.index, edit, change.role, source, change.key, change.dims, change.content,
                change.dtype, source.name,
            )  # fmt: skip


def _affine_requests(plan: Plan, edit: AffineEdit) -> Iterable[_Request]:
    """Parameters of what is left of an affine op: one BN, or Mul and Add."""
    if edit.left in ("", "same"):
        return
    norm = next((node for node in edit.op.nodes if node.op == "BatchNormalization"), None)
    if edit.left == "all" and norm is not None:
        yield from _norm_requests(plan, edit, norm)
        return
    for role in edit.ops_left:
        exact = edit.a if role == "Mul" else edit.b  # also of b - x
        node = edit.op.nodes[-1]
        dtype = type_of(plan.ties, edit.op)
        if norm is not None:
            exact = _written_out(plan, edit, norm, exact)
        noise = partial(last_digit, edit.b, dtype)
        content = stored(exact, dtype, node, noise)
        ops = (role, {"Mul": "Div", "Add": "Sub"}.get(role))
        name = next((n.name for n in edit.op.nodes if n.op in ops), node.name)
        yield _Request(
            node, -1, edit, role, None, content.tobytes(), content.shape, content, dtype, f"{name}.{role}", None, noise
        )


def _step_requests(plan: Plan, edit: StepEdit) -> Iterable[_Request]:
    """Steps of another size or another factor, for a value that is stored in another scale."""
    node, index = edit.step.node, edit.step.index
    source, old = node.input(index), plan.ties.array(node.input(index))
    assert source is not None
    assert old is not None
    if (edit.factor != 1).any():
        content = stored(old.astype(np.float64) * edit.factor, old.dtype, node, lambda: np.zeros(()))
        yield _Request(
            node, index, edit, "step", source, content.tobytes(), content.shape, content, old.dtype, source.name, old
        )


def _norm_requests(plan: Plan, edit: AffineEdit, norm: Node) -> Iterable[_Request]:
    """A BN that stays: its variance does too, y' = gamma' (x' - mean') / sqrt(var + eps) + beta'."""
    arrays = [plan.ties.array(norm.input(k)) for k in range(1, 5)]
    gamma, _, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    shape = gamma.shape
    a, b, scale, shift = (_channels(edit, shape, part) for part in (edit.a, edit.b, *edit.source))
    new_mean = scale * (mean + shift)
    contents = {
        1: ("scale", a * np.sqrt(variance + epsilon_of(norm))),
        2: ("bias", b + a * new_mean),
        3: ("mean", new_mean),
    }
    last = edit.op.nodes[-1]
    for index, (role, exact) in contents.items():
        old, value = arrays[index - 1], norm.input(index)
        assert old is not None
        assert value is not None
        if np.array_equal(exact, np.asarray(old, np.float64)) and last is norm:
            continue
        content = stored(exact, old.dtype, norm, partial(last_digit, exact, old.dtype))
        yield _Request(last, index, edit, role, value, content.tobytes(), shape, content, old.dtype, value.name)


def _channels(edit: AffineEdit, shape: tuple[int, ...], values: Floats) -> Floats:
    """Values of a BN's channels in the shape of its parameters; along other axes the ties have made them even."""
    rank = edit.op.a.ndim
    values = values.reshape((1,) * (rank - values.ndim) + values.shape[max(values.ndim - rank, 0) :])
    one = slice(0, 1)
    values = values[tuple(slice(None) if 0 < axis <= len(shape) else one for axis in range(rank))]
    return np.broadcast_to(values, (1, *shape, *(1,) * (rank - 1 - len(shape)))).reshape(shape)


def _written_out(plan: Plan, edit: AffineEdit, norm: Node, values: Floats) -> Floats:
    """A constant of a Mul or Add that a BN becomes: (1, C, 1, 1), or (C,) before opset 7 (attributes align it)."""
    gamma = plan.ties.array(norm.input(1))
    assert gamma is not None
    values = _channels(edit, gamma.shape, values)
    return values if norm.opset < 7 else values.reshape((1, *gamma.shape, *(1,) * (edit.op.a.ndim - 1 - gamma.ndim)))


class _Store:
    """Puts new parameters where the old ones were, or beside them."""

    def __init__(self, graph: Graph, weights: Weights, result: Rewrite) -> None:
        self._graph = graph
        self._weights = weights
        self._result = result
        self.created: dict[tuple[Edit, str], str] = {}
        self._home = {value: scope for scope in graph.scopes for value in scope.values.values()}

    def place(self, requests: list[_Request]) -> None:
        """Give every request a tensor; equal requests share one."""
        by_source: dict[Value | str, list[_Request]] = {}
        for request in requests:
            source = request.source
            while source is not None and source.outer is not None:
                source = source.outer
            home = request.node.scope.label
            by_source.setdefault(source if source is not None else f"{home}//{request.wanted}", []).append(request)
        for key, group in by_source.items():
            groups: dict[bytes, list[_Request]] = {}
            for request in group:
                groups.setdefault(request.role.encode() + request.key, []).append(request)
            old = key if isinstance(key, Value) else None
            for same in groups.values():
                self._put(old, same, only=len(groups) == 1)

    def _put(self, old: Value | None, same: list[_Request], only: bool) -> None:
        """One tensor for equal requests: in place of the old one if nobody else reads it."""
        first = same[0]
        asked = {(request.node, request.index) for request in same}
        holder = None if old is None else self._holder(old)
        alone = only and old is not None and not (old.captured or old.is_output) and set(old.readers()) == asked
        if alone and old is not None and holder is not None and not self._listed_as_input(old):
            if list(holder.dims) != list(first.dims):
                self._forget_shape(old)
            self._fill(holder, first)
            name = old.name
        else:
            scope = self._home.get(old, first.node.scope) if old is not None else first.node.scope
            name = self._graph.unique_name(first.wanted)
            self._create(scope, name, first)
        for request in same:
            self._hand_out(request, name)

    def _hand_out(self, request: _Request, name: str) -> None:
        inputs = request.node.proto.input
        if request.index < 0:  # of an Add or Mul that is yet to be made
            self.created[request.edit, request.role] = name
            return
        while len(inputs) <= request.index:
            inputs.append("")
        inputs[request.index] = name
        if request.role == "bias":
            remove_beta(request.node)

    def _holder(self, value: Value) -> TensorProto | None:
        """The tensor that stores a constant itself (not an expression of it)."""
        if value.tensor is not None:
            return value.tensor
        if value.producer is not None and value.producer.op == "Constant":
            return next((a.t for a in value.producer.proto.attribute if a.name == "value"), None)
        return None

    def _forget_shape(self, value: Value) -> None:
        """A scale for all channels that becomes one for each: what the file says of its shape is wrong then."""
        proto = self._home[value].proto
        for position, info in reversed(list(enumerate(proto.value_info))):
            if info.name == value.name:
                del proto.value_info[position]

    def _listed_as_input(self, value: Value) -> bool:
        """Before IR 4 every initializer is an input: new content gets a new name, so that feeding the old one fails."""
        return value.is_input and self._graph.model.ir_version < 4

    def _create(self, scope: Scope, name: str, request: _Request) -> None:
        self._fill(new_tensor(self._graph, scope, name, request.dtype, request.dims), request)

    def _fill(self, tensor: TensorProto, request: _Request) -> None:
        fill(self._weights, tensor, request.dtype, request.dims, request.content)
        self._result.rewritten.append(
            Rewritten(tensor, request.node, request.edit, request.role, request.old, request.noise, request.bias)
        )
