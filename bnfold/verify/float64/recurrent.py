"""LSTM, GRU and RNN as a Scan over the steps, one per direction.

The gates' part that comes from the input is one MatMul for all steps.  A step that lies beyond its sample's
sequence_lens leaves the state as it is and gives 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto, helper

from bnfold.verify.float64.builder import Builder, Op, Term, Unsupported, declares

Activation = Callable[[Term], Term]
Step = Callable[["Cell", Term, list[Term]], list[Term]]


@dataclass(frozen=True)
class Cell:
    """What one direction's step needs, inside of the Scan's body."""

    recurrent: Term  # R, transposed: (hidden, gates * hidden)
    bias: Term | None  # of R alone: (gates * hidden,)
    peepholes: Term | None  # LSTM: (3 * hidden,)
    hidden: int
    activations: list[Activation]
    clip: float | None
    coupled: bool  # LSTM: forget gate = 1 - input gate
    reset_after: bool  # GRU: linear_before_reset

    def inside(self, body: Builder) -> Cell:
        """The same, with parameters as the body captures them."""
        bias, peepholes = (term and term.inside(body) for term in (self.bias, self.peepholes))
        return replace(self, recurrent=self.recurrent.inside(body), bias=bias, peepholes=peepholes)

    def part(self, gates: Term, index: int) -> Term:
        """One gate's columns."""
        return gates.slice([index * self.hidden], [(index + 1) * self.hidden], [-1], [1])

    def activate(self, function: int, x: Term) -> Term:
        """An activation of the clipped gate."""
        return self.activations[function](x if self.clip is None else x.above(-self.clip).below(self.clip))


def _rnn_step(cell: Cell, gates: Term, state: list[Term]) -> list[Term]:  # h' = f(W x + R h + b)
    total = gates + state[0] @ cell.recurrent
    return [cell.activate(0, total if cell.bias is None else total + cell.bias)]


def _lstm_step(cell: Cell, gates: Term, state: list[Term]) -> list[Term]:  # c' = f c + i c~,  h' = o h(c')
    hidden, memory = state
    total = gates + hidden @ cell.recurrent
    total = total if cell.bias is None else total + cell.bias
    parts = [cell.part(total, index) for index in range(4)]  # input, output, forget, cell

    def peeped(gate: int, seen: Term) -> Term:
        return parts[gate] if cell.peepholes is None else parts[gate] + cell.part(cell.peepholes, gate) * seen

    entered = cell.activate(0, peeped(0, memory))
    kept = 1.0 - entered if cell.coupled else cell.activate(0, peeped(2, memory))
    after = kept * memory + entered * cell.activate(1, parts[3])
    return [cell.activate(0, peeped(1, after)) * cell.activations[2](after), after]


def _gru_step(cell: Cell, gates: Term, state: list[Term]) -> list[Term]:  # h' = (1 - z) h~ + z h
    hidden = state[0]
    recurrent = [cell.part(cell.recurrent, index) for index in range(3)]  # update, reset, hidden
    bias = [None if cell.bias is None else cell.part(cell.bias, index) for index in range(3)]

    def seen(gate: int, what: Term) -> Term:
        total, extra = what @ recurrent[gate], bias[gate]
        return total if extra is None else total + extra

    update, reset = (cell.activate(0, cell.part(gates, gate) + seen(gate, hidden)) for gate in (0, 1))
    last = reset * seen(2, hidden) if cell.reset_after else seen(2, reset * hidden)
    proposed = cell.activate(1, cell.part(gates, 2) + last)
    return [(1.0 - update) * proposed + update * hidden]


@declares("RNN")
def rnn(op: Op) -> tuple[Term, ...]:
    """A plain recurrent layer."""
    return _layer(op, _rnn_step, gates=1, states=1, default=["Tanh"])


@declares("LSTM")
def lstm(op: Op) -> tuple[Term, ...]:
    """Long short-term memory."""
    return _layer(op, _lstm_step, gates=4, states=2, default=["Sigmoid", "Tanh", "Tanh"])


@declares("GRU")
def gru(op: Op) -> tuple[Term, ...]:
    """A gated recurrent unit."""
    return _layer(op, _gru_step, gates=3, states=1, default=["Sigmoid", "Tanh"])


def _layer(op: Op, step: Step, gates: int, states: int, default: list[str]) -> tuple[Term, ...]:
    """Both directions side by side: Y (steps, directions, batch, hidden), then the last states."""
    if op.attribute("layout", 0):
        raise Unsupported("layout=1")
    direction = op.attribute("direction", "forward")
    reversals = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[direction]
    results = [_scan(op, step, index, bool(back), gates, states, default) for index, back in enumerate(reversals)]
    builder = op.builder
    steps = builder.op("Concat", *(result[0].unsqueeze(1) for result in results), axis=1)
    last = [builder.op("Concat", *(r[1 + k].unsqueeze(0) for r in results), axis=0) for k in range(states)]
    return (steps, *last)


def _scan(op: Op, step: Step, index: int, back: bool, gates: int, states: int, default: list[str]) -> tuple[Term, ...]:
    """One direction: (steps, batch, hidden) and the last states (batch, hidden)."""
    builder, hidden = op.builder, op.shape(2)[2]
    bias, lengths, width = op.optional(3), op.optional(4), gates * hidden

    def own(position: int) -> Term | None:
        term = op.optional(position)
        return None if term is None else term.gather(index, 0)

    both = None if bias is None else bias.gather(index, 0)
    x = op.input(0) @ op.input(1).gather(index, 0).transpose([1, 0])
    x = x if both is None else x + both.slice([0], [width], [0], [1])
    batch = op.input(0).dims(1, 2)
    zero = builder.op("ConstantOfShape", builder.joined(batch, hidden), value=_zero())
    initial = [own(5 + k) or zero for k in range(states)]
    recurrent = op.input(2).gather(index, 0).transpose([1, 0])
    cell = Cell(
        recurrent=recurrent,
        bias=None if both is None else both.slice([width], [2 * width], [0], [1]),
        peepholes=own(7) if states == 2 else None,
        hidden=hidden,
        activations=_activations(op, index, default),
        clip=op.attribute("clip"),
        coupled=bool(op.attribute("input_forget", 0)),
        reset_after=bool(op.attribute("linear_before_reset", 0)),
    )
    numbers = None
    if lengths is not None:  # number of each step, to be compared with the lengths
        count = op.input(0).op("Shape").gather(0, 0)
        numbers = builder.op("Range", builder.constant(0), count, builder.constant(1))
    return _loop(builder, step, cell, initial, [x, numbers], lengths, back)


def _zero() -> TensorProto:
    return helper.make_tensor("value", TensorProto.DOUBLE, [1], [0.0])


def _loop(
    builder: Builder, step: Step, cell: Cell, initial: list[Term], scanned: list[Term | None], lengths: Term | None,
    back: bool,
) -> tuple[Term, ...]:  # fmt: skip
    """The Scan: its states, then the step's output."""
    body = Builder(builder.opset, {}, {}, {}, builder.taken)
    wide, whole = TensorProto.DOUBLE, TensorProto.INT64
    states = [Term(body, body.fresh("float64/state")) for _ in initial]
    gates, number = (Term(body, body.fresh("float64/step")) for _ in range(2))
    after = step(cell.inside(body), gates, states)
    shown = after[0]
    if lengths is not None:
        active = number.op("Less", lengths.inside(body).cast(whole)).unsqueeze(-1)
        after = [active.op("Where", new, old) for new, old in zip(after, states, strict=True)]
        shown = active.op("Where", shown, body.constant(0.0))
    inputs = [*states, gates, *([] if lengths is None else [number])]
    outputs = [term.op("Identity") for term in (*after, shown)]
    graph = helper.make_graph(
        body.nodes, "step",
        [helper.make_tensor_value_info(t.name, whole if t is number else wide, None) for t in inputs],
        [helper.make_tensor_value_info(t.name, wide, None) for t in outputs],
    )  # fmt: skip
    sources = [term for term in scanned if term is not None]
    *last, steps = builder.ops(
        "Scan", [*initial, *sources], len(outputs), body=graph, num_scan_inputs=len(sources),
        scan_input_directions=[int(back)] * len(sources), scan_output_directions=[int(back)],
    )  # fmt: skip
    return (steps, *last)


def _activations(op: Op, index: int, default: list[str]) -> list[Activation]:
    """The functions of one direction, by the node's names and parameters."""
    names = [name.decode() if isinstance(name, bytes) else name for name in op.attribute("activations") or []]
    names = (names[index * len(default) :] or default)[: len(default)] if names else default
    if op.attribute("activation_alpha") or op.attribute("activation_beta"):
        raise Unsupported("activation_alpha and activation_beta")
    found = {name.lower(): function for name, function in FUNCTIONS.items()}
    if any(name.lower() not in found for name in names):
        raise Unsupported(f"activations {', '.join(names)}")
    return [found[name.lower()] for name in names]


# HardSigmoid's alpha, which is a float.
FIFTH = float(np.float32(0.2))
# Those without parameters.
FUNCTIONS: dict[str, Activation] = {
    "Sigmoid": lambda x: x.op("Sigmoid"),
    "Tanh": lambda x: x.op("Tanh"),
    "Relu": lambda x: x.op("Relu"),
    "Softsign": lambda x: x / (1.0 + abs(x)),
    "Softplus": lambda x: x.op("Relu") + (1.0 + (-abs(x)).op("Exp")).op("Log"),
    "HardSigmoid": lambda x: (FIFTH * x + 0.5).above(0.0).below(1.0),
    "Elu": lambda x: x.op("Relu") + x.below(0.0).op("Exp") - 1.0,
}
