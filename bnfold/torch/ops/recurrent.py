"""LSTM, GRU and RNN: torch's fused kernels where these are the same function, else a loop over the cell.

ONNX and torch order the gates differently (LSTM: i o f c against i f g o; GRU: z r h against r z n), ONNX's GRU by
default multiplies by the reset gate before the product with R (torch: after it), and ONNX also has peepholes, other
activations, clipping and lengths per sample.  Weights stay in ONNX's layout and are reordered at each call: that is
small beside the recurrence, and gradients find their way back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnfold.torch.ops.table import op

# Positions of torch's gates among ONNX's.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}

# name: (function of x, alpha, beta; default alpha; default beta)
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor, float, float], Tensor], float, float]] = {
    "sigmoid": (lambda x, a, b: torch.sigmoid(x), 0, 0),
    "tanh": (lambda x, a, b: torch.tanh(x), 0, 0),
    "relu": (lambda x, a, b: torch.relu(x), 0, 0),
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, b: F.leaky_relu(x, a), 0.01, 0),
    "thresholdedrelu": (lambda x, a, b: torch.where(x > a, x, 0), 1.0, 0),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: torch.clamp(a * x + b, 0, 1), 0.2, 0.5),
    "elu": (lambda x, a, b: F.elu(x, a), 1.0, 0),
    "softsign": (lambda x, a, b: F.softsign(x), 0, 0),
    "softplus": (lambda x, a, b: F.softplus(x), 0, 0),
}


@dataclass(frozen=True)
class _Layer:
    """What a call is made with, time first."""

    x: Tensor  # (T, N, I)
    w: Tensor  # (D, G H, I)
    r: Tensor  # (D, G H, H)
    b: Tensor | None  # (D, 2 G H)
    lengths: Tensor | None
    h: Tensor  # (D, N, H)
    c: Tensor | None
    p: Tensor | None
    direction: str
    activations: Sequence[Callable[[Tensor], Tensor]]  # of all directions
    clip: float
    linear_before_reset: int
    input_forget: int

    @property
    def directions(self) -> int:
        return int(self.w.shape[0])


def _activations(names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]) -> list[Any]:
    """The functions; alphas and betas are handed out in order to those that have such a parameter."""
    alphas, betas, result = list(alphas), list(betas), []
    for name in names:
        function, alpha, beta = _ACTIVATIONS[name.lower()]
        alpha = alphas.pop(0) if alpha and alphas else alpha
        beta = betas.pop(0) if beta and betas else beta
        result.append(lambda x, f=function, a=alpha, b=beta: f(x, a, b))
    return result


def _run(
    kind: str, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None, h: Tensor | None,
    c: Tensor | None, p: Tensor | None, *, activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (), activations: Sequence[str] = (), clip: float = 0.0,
    direction: str = "forward", hidden_size: int | None = None, input_forget: int = 0, layout: int = 0,
    linear_before_reset: int = 0, output_sequence: int = 0,
) -> tuple[Tensor, ...]:  # fmt: skip
    if layout:  # batch first
        x, h, c = x.transpose(0, 1), None if h is None else h.transpose(0, 1), None if c is None else c.transpose(0, 1)
    directions, hidden = w.shape[0], r.shape[-1]
    names = list(activations) or _DEFAULTS[kind] * directions
    zero = x.new_zeros(directions, x.shape[1], hidden)
    layer = _Layer(
        x, w, r, b, lengths, zero if h is None else h, zero if c is None and kind == "LSTM" else c, p, direction,
        _activations(names, activation_alpha, activation_beta), clip, linear_before_reset, input_forget,
    )  # fmt: skip
    plain = lengths is None and p is None and not clip and not input_forget and direction != "reverse"
    usual = [name.lower() for name in names] == [name.lower() for name in _DEFAULTS[kind]] * directions
    if plain and usual and (kind != "GRU" or linear_before_reset):
        y, *last = _fused(kind, layer)
    else:
        y, *last = _looped(kind, layer)
    if layout:
        return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last)
    return y, *last


def _fused(kind: str, layer: _Layer) -> tuple[Tensor, ...]:
    """torch's kernel; y as (T, D, N, H)."""
    weights = []
    for d in range(layer.directions):
        w, r = (_reordered(kind, matrix[d]) for matrix in (layer.w, layer.r))
        weights += [w, r]
        if layer.b is not None:
            weights += [_reordered(kind, half) for half in layer.b[d].chunk(2)]
    function = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh}[kind]
    state = [layer.h, layer.c] if kind == "LSTM" else layer.h
    y, *last = function(layer.x, state, weights, layer.b is not None, 1, 0.0, False, layer.directions == 2, False)
    return y.reshape(*y.shape[:2], layer.directions, -1).transpose(1, 2), *last


def _reordered(kind: str, gates: Tensor) -> Tensor:
    parts = gates.chunk(len(_GATES[kind]))
    return torch.cat([parts[i] for i in _GATES[kind]])


def _looped(kind: str, layer: _Layer) -> tuple[Tensor, ...]:
    """One step after the other, in plain torch."""
    ys, hs, cs = [], [], []
    for d in range(layer.directions):
        backward = layer.direction == "reverse" or d == 1
        y, h, c = _one_direction(kind, layer, d, backward)
        ys.append(y)
        hs.append(h)
        cs.append(c)
    last = [torch.stack(hs)] + ([torch.stack(cs)] if kind == "LSTM" else [])
    return torch.stack(ys, 1), *last


def _one_direction(kind: str, layer: _Layer, d: int, backward: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    steps, hidden = layer.x.shape[0], layer.r.shape[-1]
    h, c = layer.h[d], layer.c[d] if layer.c is not None else None
    bias = layer.b[d] if layer.b is not None else layer.x.new_zeros(2 * layer.w.shape[1])
    each = len(layer.activations) // layer.directions
    cell = _CELLS[kind](layer, d, bias, layer.activations[d * each : (d + 1) * each])
    projected = layer.x @ layer.w[d].t()
    result: list[Any] = [None] * steps
    for t in reversed(range(steps)) if backward else range(steps):
        new_h, new_c = cell(projected[t], h, c)
        if layer.lengths is not None:  # what is beyond a sample's end leaves its state, and gives 0
            alive = (t < layer.lengths).unsqueeze(1)
            result[t] = torch.where(alive, new_h, 0)
            new_h = torch.where(alive, new_h, h)
            new_c = torch.where(alive, new_c, c) if c is not None else None
        else:
            result[t] = new_h
        h, c = new_h, new_c
    return torch.stack(result) if steps else layer.x.new_zeros(0, layer.x.shape[1], hidden), h, c


Cell = Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]]


def _clipper(clip: float) -> Callable[[Tensor], Tensor]:
    return (lambda x: x.clamp(-clip, clip)) if clip else (lambda x: x)


def _lstm_cell(layer: _Layer, d: int, bias: Tensor, activations: Sequence[Any]) -> Cell:
    both, r, cut = bias.chunk(2), layer.r[d], _clipper(layer.clip)
    f, g, k = activations
    p_i, p_o, p_f = layer.p[d].chunk(3) if layer.p is not None else (0, 0, 0)

    def cell(x: Tensor, h: Tensor, c: Any) -> tuple[Tensor, Any]:
        i, o, forget, candidate = (x + h @ r.t() + both[0] + both[1]).chunk(4, -1)
        i = f(cut(i + p_i * c))
        forget = 1 - i if layer.input_forget else f(cut(forget + p_f * c))
        c = forget * c + i * g(cut(candidate))
        return f(cut(o + p_o * c)) * k(c), c

    return cell


def _gru_cell(layer: _Layer, d: int, bias: Tensor, activations: Sequence[Any]) -> Cell:
    (w_z, w_r, w_h), (r_z, r_r, r_h) = (half.chunk(3) for half in bias.chunk(2))
    m_z, m_r, m_h = layer.r[d].chunk(3)
    f, g = activations
    cut = _clipper(layer.clip)

    def cell(x: Tensor, h: Tensor, c: Any) -> tuple[Tensor, Any]:
        z, reset, candidate = x.chunk(3, -1)
        z = f(cut(z + h @ m_z.t() + w_z + r_z))
        reset = f(cut(reset + h @ m_r.t() + w_r + r_r))
        if layer.linear_before_reset:
            inner = reset * (h @ m_h.t() + r_h)
        else:
            inner = (reset * h) @ m_h.t() + r_h
        return (1 - z) * g(cut(candidate + inner + w_h)) + z * h, c

    return cell


def _rnn_cell(layer: _Layer, d: int, bias: Tensor, activations: Sequence[Any]) -> Cell:
    both, r, (f,), cut = bias.chunk(2), layer.r[d], activations, _clipper(layer.clip)
    return lambda x, h, c: (f(cut(x + h @ r.t() + both[0] + both[1])), c)


_CELLS: dict[str, Callable[[_Layer, int, Tensor, Sequence[Any]], Cell]] = {
    "LSTM": _lstm_cell, "GRU": _gru_cell, "RNN": _rnn_cell,
}  # fmt: skip


@op("LSTM")
def lstm(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None, h: Tensor | None = None,
    c: Tensor | None = None, p: Tensor | None = None, **attributes: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _run("LSTM", x, w, r, b, lengths, h, c, p, **attributes)


@op("GRU")
def gru(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None, h: Tensor | None = None,
    **attributes: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _run("GRU", x, w, r, b, lengths, h, None, None, **attributes)


@op("RNN")
def rnn(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None, h: Tensor | None = None,
    **attributes: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _run("RNN", x, w, r, b, lengths, h, None, None, **attributes)
