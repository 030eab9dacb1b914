"""Models that broke the engine once, each cut down to what it takes and with the cause in a comment.

The notation is that of `probe_text`; the last number is how many per-channel operations the function itself demands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from oracle import assert_same_function, left
from probe_text import Probe
from probes import overridable

from bnfold.constants import unit_roundoff
from bnfold.fold import Options, fold_model
from bnfold.fold.union_find import UnionFind
from bnfold.model_file import to_proto, wrap

RANKS = [
    # Expand may add axes in front; the rank known of its input was taken for the output's
    Probe("expand-adds-an-axis", "",
          "x[4,3] -> y | h = Gemm(x, w[3,4], b[4]); e = Expand(h, k:int64[3]={2,4,4}); y = BN4(e)", 1),
    # so does a zero of rank 5 in Max
    Probe("max-zero-adds-an-axis", "",
          "x[4,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); r = Max(h, z[1,1,1,1,1]); y = BN4+(r)", 1, values={"z": 0.0}),
    # the rank of a MatMul's result is that of its larger side, not that of the weight
    Probe("matmul-left-rank-4", "", "x[N,4,3,5] -> y | h = MatMul(w[1,4,3], x); y = BN4(h)", 1),
    Probe("matmul-left-heads-rank-4", "", "x[N,4,3,5] -> y | h = MatMul(w[4,4,3], x); y = BN4(h)"),
    # a vector on one side: its axis is gone from the result
    Probe("matmul-left-vector", "",
          "x[4,3,2] -> y | h = MatMul(x, v[2,2]); m = ReduceMean<axes=[0,2], keepdims=0>(h); q = MatMul(w[5,3], m);"
          "r = Mul(q, k[5]); y = Add(r, l[5])"),
    Probe("matmul-heads-vector", "",
          "x[4,3,2] -> y | h = MatMul(x, v[2,2]); m = ReduceMean<axes=[0,2], keepdims=0>(h); q = MatMul(m, w[2,3,5]);"
          "y = BN5(q)"),
    Probe("matmul-one-head-vector", "",
          "x[4,3,2] -> y | h = MatMul(x, v[2,2]); m = ReduceMean<axes=[0,2], keepdims=0>(h); q = MatMul(m, w[1,3,5]);"
          "y = BN5(q)"),
]  # fmt: skip

SIDES = [
    # coordinates along the axis that a pool slides over have to be one; the pool keeps the size, so shapes don't tell
    Probe("average-over-the-columns", "",
          "x[N,3,4,4] -> y | h = MatMul(x, w[4,4]); p = AveragePool<kernel_shape=[1,3], pads=[0,1,0,1]>(h);"
          "t = Transpose<perm=[0,3,1,2]>(p); y = BN4(t)", 1),
    # a constant that is as long as the channels, but makes the value larger: it does more than scale
    Probe("constant-that-widens", "",
          "x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); p = GlobalAveragePool(h); q = Mul(p, k[1,1,4]);"
          "y = Conv(q, v[2,4,1,1])", 1, values={"k": 2.0}),
    # only the first input was tied: the scales of Resize are computed and may not be rescaled
    Probe("resize-computed-scales", "",
          'x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); s = Shape<start=0, end=1>(x); f = Cast<to=1>(s); o = Div(f, f);'
          'k = Mul(f, m[1]); n = Concat<axis=0>(o, o, k, k); z = Resize<mode="nearest">(h, "", n); y = BN4(z)', 1,
          values={"m": 1.1}),
    Probe("lstm-computed-recurrence", "",
          "x[5,N,3] q[1,16,4] -> y | k = Mul(q, s[]); h, y, c = LSTM<hidden_size=4>(x, w[1,16,3], k)", 1),
    # the same value as sequence and as initial state: a dead channel is a constant to the one, not to the other
    Probe("lstm-input-is-state", "",
          'x[1,N,4] -> y | h = MatMul(x, v[4,4]); t = Transpose<perm=[0,2,1]>(h); g = BN4(t);'
          'u = Transpose<perm=[0,2,1]>(g); q, y, c = LSTM<hidden_size=4>(u, w[1,16,4], r[1,16,4], "", "", u)', 1,
          values={"g_gamma": [1.0, 1.0, 0.0, 1.0]}),
]  # fmt: skip

SIZES = [
    # from 0 down to 6 before the end: nothing at the sizes that shapes are inferred with, one column at smaller ones
    Probe("slice-not-always-empty", "",
          "x[2,3,4,N] -> y | h = Conv(x, w[4,3,1,1]); s = Slice(h, b:int64[1]={0}, e:int64[1]={-6}, ax:int64[1]={3},"
          "st:int64[1]={-2}); c = Concat<axis=3>(s, s); y = BN4(c)"),
    # the first 32 columns may be fewer: no constant can be a number of columns
    Probe("slice-not-always-full", "",
          "x[2,3,4,N] -> y | h = Conv(x, w[4,3,1,1]); s = Slice(h, b:int64[1]={0}, e:int64[1]={32}, ax:int64[1]={3});"
          "r = ReduceSum(s, az:int64[1]={3}); y = BN4(r)", 1),
    Probe("shape-of-a-slice", "",
          "x[2,3,4,N] -> y | h = Conv(x, w[4,3,1,1]); s = Slice(h, b:int64[1]={0}, e:int64[1]={32}, ax:int64[1]={3});"
          "r = ReduceSum(s, az:int64[1]={3}); n = Shape<start=3>(s); f = Cast<to=1>(n); y = Div(r, f)", 1),
]  # fmt: skip

DEAD = [
    # a dead channel along an axis that MatMul sums beside: made even, one channel stood for all
    Probe("dead-beside-matmul-first", "", "x[N,3,4] -> y | h = BN3(x); y = MatMul(h, w[4,5])", 1,
          values={"h_gamma": [0.0, 1.0, 1.0], "h_mean": 0.0, "h_beta": [0.5, 0.0, 0.0], "h_var": 1.0 - 1e-5}),
    Probe("dead-beside-matmul-last", "", "x[N,3,4] -> y | h = BN3(x); y = MatMul(h, w[4,5])", 1,
          values={"h_gamma": [1.0, 1.0, 0.0], "h_mean": 0.0, "h_beta": 0.0, "h_var": 1.0 - 1e-5}),
    # one pixel of a channel is dead, another is alive: the row that makes both has to stay
    Probe("dead-pixel", "",
          "x[N,3,1,2] -> y | h = Conv(x, w[2,3,1,1]); f = Flatten(h); g = BN4(f); y = Relu(g)", 1,
          values={"g_gamma": [0.0, 1.0, 1.0, 1.0], "g_mean": 0.0, "g_beta": [0.5, 0.0, 0.0, 0.0],
                  "g_var": 1.0 - 1e-5}),
    Probe("dead-scalar-and-vector", "",
          "x[N,4,4,4] -> y | a = Mul(x, c[]); h = Add(a, k[4,1,1]); y = Conv(h, w[2,4,1,1])", values={"c": 0.0}),
    # a dead channel can go into the producer's row by way of a pool (nothing needed that route)
    Probe("dead-before-a-pool", "", "x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); p = GlobalAveragePool(h); y = BN4(p)",
          values={"y_gamma": [1.0, 0.0, -1.0, 1.0]}),
    # rows of an LSTM have no coordinates
    Probe("dead-behind-lstm", "",
          "x[5,N,3] -> y | h, a, c = LSTM<hidden_size=4>(x, w[1,16,3], r[1,16,4]); s = Squeeze(h, ax:int64[1]={1});"
          "t = Transpose<perm=[1,2,0]>(s); g = BN4(t); y = Relu(g)", 1, values={"g_gamma": [1.0, 1.0, 0.0, 1.0]}),
]  # fmt: skip

KEPT = [
    # k - h in scaled coordinates is no longer one Add or Mul
    Probe("kept-constant-minus", "",
          "x[N,3,4,4] -> y, z | p = Conv(x, w[4,3,1,1]); h = Relu(p); z = Mul(h, m_var[4,1,1]); "
          "s = Sub(k[4,1,1], h); r = Relu(s); y = Conv(r, u[2,4,1,1])", 1),
    # the MatMul's new bias has to bear the name that the removed BN's output had
    Probe("matmul-left-batch-norm-behind", "", "x[N,4,3,5] -> y | h = MatMul(w[4,6,3], x); y = BN4(h)"),
]  # fmt: skip

NUMBERS = [
    # b / a of a nearly dead channel is a shift of a million on a stream of ones: nothing is left of the digits
    Probe("tiny-gamma-on-a-stream", "",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,1,1]); a = BN4+(h); r = Relu(a); "
          "p = Conv<pads=[1,1,1,1]>(r, v[4,4,3,3]); s = Add(p, h); c = BN4+(s); d = Relu(c); "
          "y = Conv<pads=[1,1,1,1]>(d, u[2,4,3,3])", 1, values={"a_gain": [1e-6, 1.0, 1.0, 1.0]}),

    # … but what is stored as BN gives it is as good as ever, whatever went in
    Probe("tiny-gamma-into-the-conv-in-front", "",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,1,1]); p = MaxPool<kernel_shape=[2,2]>(h); g = BN4+(p); y = Relu(g)",
          values={"g_gain": [1e-6, 1.0, 1.0, 1.0]}),
    # two channels of nearly the same a that share a shift ask for one of hundreds, though nobody else reads the value
    Probe("nearly-equal-scales-of-one-row", "",
          "x[2,2,3,3,2] -> y | h = MatMul(w[3,2,3], x); s = Sub(h, k[2,1,1,1]); m = Mul(s, l[2,1,1,1]);"
          "n = Mul(m, j[2,1,1,1]); y = MatMul(u[4,2], n)", 1,
          values={"k": [[[[0.3]]], [[[-0.39]]]], "l": [[[[1.7907]]], [[[1.7877]]]], "j": 1.0}),
    # two in a row that stay become one, unless their product is no float32: that was a crash
    Probe("chain-underflows", "", "x[N,4,3,3] -> y | h = BN4(x); y = BN4(h)", 2,
          values={"h_gamma": 1e-25, "y_gamma": 1e-25, "h_var": 1.0, "y_var": 1.0}),
    Probe("chain-overflows", "", "x[N,4,3,3] -> y | h = BN4(x); r = Sigmoid(h); y = BN4(r)", 2, scale=1e-25,
          values={"h_gamma": 1e25, "y_gamma": 1e25, "h_var": 1.0, "y_var": 1.0, "h_beta": 0, "h_mean": 0}),
    Probe("chain-overflows-together", "", "x[N,4,3,3] -> y | h = BN4(x); y = BN4(h)", 2, scale=1e-25,
          values={"h_gamma": 1e25, "y_gamma": 1e25, "h_var": 1.0, "y_var": 1.0, "h_beta": 0, "h_mean": 0}),
    # t + a t = b with a near -1 asks for as much; and the BN reads the stream through a Slice, as its only reader
    Probe("nearly-opposite-behind-a-slice", "",
          "x[N,4,6] -> y | h = Conv(x, w[4,4,1]); s = Slice(h, b:int64[1]={0}, e:int64[1]={6}, ax:int64[1]={2});"
          "g = BN4(s); m = Add(h, g); y = Conv<pads=[1,1]>(m, u[2,4,3])", 1,
          values={"g_gamma": [-0.999999, -0.5, -0.5, -0.5], "g_var": 1.0 - 1e-5}),
]  # fmt: skip


def _seen_through_identity(model: ModelProto) -> None:
    model.graph.node.insert(0, onnx.helper.make_node("Identity", ["raw_w"], ["w"]))
    next(tensor for tensor in model.graph.initializer if tensor.name == "w").name = "raw_w"
    overridable("raw_w")(model)


def _of_old(model: ModelProto) -> None:
    model.ir_version = 3
    overridable(*(tensor.name for tensor in model.graph.initializer))(model)


OUTSIDE = [
    # a weight that can be fed, read through an Identity: the bias was made from it, and it could still be fed
    Probe("overridable-behind-identity", "", "x[N,3] -> y | h = Sub(x, k[3]); m = MatMul(h, w[3,4]); y = Add(m, b[4])",
          edit=_seen_through_identity),
    # two BN share their scale, one goes: before IR 4 the scale stays an input, so it has to have another name
    Probe("overridable-shared-by-a-kept-one", "",
          "x[N,3,4,4] -> y, z | y = BatchNormalization(x, g_var[3], b[3], m[3], v_var[3]);"
          "h = BatchNormalization(x, g_var, b, m, w_var[3]); z = Conv(h, k[4,3,1,1])", 1, edit=_of_old, opset=8),
    # the type of a captured value is known outside only: the Add that is left of a mixed BN took the BN's own
    Probe("captured-float16", "",
          "x[N,3,4,4] c:bool[] -> y | h = Sigmoid(x); y = If(c) <then_branch = t () => (float16[N,2,4,4] p) {"
          "g = BatchNormalization(h, a_var:float[3], b:float[3], m:float[3], v_var:float[3]); r = Relu(g);"
          "p = Conv(r, w[2,3,1,1]) }, else_branch = e () => (float16[N,2,4,4] q) { q = Conv(h, w) }>", 1,
          dtype="float16"),
]  # fmt: skip

ADDS = [
    # one column unknown, four different -b: the first of them won, the first Add stayed and a second one came
    Probe("bias-moves-in-part", "",
          "x[3,2] -> y | h = MatMul(x, w[1,2,2]); a = Add(b[2], h); y = MatMul(v[1,4,3], a)"),
    # what a MatMul's row has to take is W t, not 0: then it goes on into the Gemm, and no Add is made
    Probe("bias-goes-on-into-gemm", "",
          "x[N,4] -> y | h = BN4(x); m = MatMul(h, w[4,3]); y = Gemm(m, v[3,5], c[5])"),
    # the same into a MatMul that has an Add already
    Probe("bias-goes-on-into-matmul", "",
          "x[N,4] -> y | g = BN4(x); m = MatMul(g, v[4,3]); n = MatMul(m, u[3,4]); y = Add(n, k[4])"),
    # the second MatMul needs its Add whatever happens: it may as well take that of the first
    Probe("bias-where-an-add-is-anyway", "",
          "x[N,4,2] -> y | e = ReduceSum<keepdims=1>(x, ax:int64[1]={2}); g = BN4(e); m = MatMul(w[4,4], g);"
          "n = MatMul(u[4,4], m); f = Unsqueeze(n, az:int64[1]={1}); y = BN1(f)"),
    # the first MatMul asks for a shift with which it needs no Add; the next one took that for 0, and kept its own
    Probe("bias-known-to-the-next", "",
          "x[N,1,1] -> y | h = MatMul(x, w[1,2]); g = BN1(h); m = MatMul(g, v[2,2]); a = Add(m, k[2]);"
          "n = MatMul(a, u[2,2]); y = Add(n, l[2])"),
    # the shifts in front of the second MatMul and behind it are one unknown: it asked for 0 on both sides
    Probe("bias-on-both-sides-is-one", "",
          "x[N,3,2] -> y | g = BN3(x); m = MatMul(w[1,1,3], g); r = ReduceSum(m, ax:int64[2]={1,-1}); e = BN1(r);"
          "n = MatMul(e, v[1,1]); y = Sum(n, m)"),
    # columns that can't be 0 together can still be what the rows let pass
    Probe("bias-that-columns-share", "",
          "x[4,3,2] -> y | h = Conv(x, c[4,3,1]); t = Transpose<perm=[1,2,0]>(h); g = BN2(t); m = MatMul(w[4,2], g);"
          "y = Conv(m, u[2,4,1])"),
    # a shift with a value has one class with the identity: nobody was asked for the Add that a half removed BN makes
    Probe("add-for-half-a-removal", "",
          "x[N,1,3] -> y | f = Floor(x); g = BN1(f); s = Sub(f, g); y = MatMul(s, w[3,2])", 1),
    # the shift of one BN, half removed, went through the sum into the other's MatMul: an Add more than before
    Probe("add-beyond-a-sum", "",
          "x[N,4,6] -> y, z | a = BN4+(x); b = BN4+(x); y = MatMul(w[1,2,4], b); z = Add(a, b)", 2),
    # through a MatMul that needs no Add into one that needs it: a Mul was left, and an Add came
    Probe("add-beyond-a-matmul", "",
          "x[N,3,4,5] -> y | h = Conv(x, w[1,3,1,1]); c = Concat<axis=1>(h, h); f = Unsqueeze(c, az:int64[1]={4});"
          "g = BN2(f); m = MatMul(g, v[1,1]); y = MatMul(u[1,1,5], m)", 1),
]  # fmt: skip

CONDITIONS = [
    # conditions that could be dropped without any test failing: columns of a table that is read along its other axis
    Probe("table-read-along-its-columns", "",
          "x[N,2] -> y | i = Cast<to=7>(x); e = Gather<axis=1>(w[4,2], i); y = Mul(e, k[2])", 1, scale=0.3),
    # a value that only tells a type may be stored anyhow
    Probe("type-is-told-by-a-value", "",
          "x[N,3,4,4] -> y, z | h = Conv(x, w[4,3,1,1]); p = GlobalMaxPool(h); z = CastLike(c[4], p); y = BN4+(p)"),
    # … or by another constant
    Probe("type-is-told-by-a-constant", "",
          "x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); k = CastLike(c[4,1,1], w); y = Mul(h, k)"),
    # reflected channels are other channels
    Probe("channels-are-reflected", "",
          'x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); p = Pad<mode="reflect">(h, a:int64[2]={1,1}, "", b:int64[1]={1});'
          "y = BN6(p)", 1, opset=18),
    Probe("reflected-axes-are-named", "",
          'x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); '
          'p = Pad<mode="reflect">(h, a:int64[8]={0,0,0,1,0,0,0,1}, "", b:int64[4]={0,2,3,1}); y = BN6(p)', 1,
          opset=18),
    Probe("zeros-along-a-named-axis", "",
          'x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); p = Pad(h, a:int64[2]={1,1}, "", b:int64[1]={2}); '
          "y = Mul(p, k[4,1,1])", opset=18),
    # one channel twice: what holds for it holds for both
    Probe("one-channel-beside-itself", "",
          "x[N,3,4,4] -> y, z | h = Conv(x, w[1,3,1,1]); c = Concat<axis=1>(h, h); y = Relu(c); z = BN1(h)", 1),
    Probe("borders-are-reflected", "",
          'x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); p = Pad<mode="reflect">(h, a:int64[8]={0,0,1,1,0,0,1,1});'
          "y = BN4(p)"),
]  # fmt: skip

CASES = [*RANKS, *SIDES, *SIZES, *DEAD, *KEPT, *NUMBERS, *ADDS, *OUTSIDE, *CONDITIONS]


def check_inputs(model: ModelProto, folded: ModelProto) -> None:
    """What has to be fed is the same; before IR 4 every initializer is an input, since then none becomes one."""
    (before, given), (after, stored) = (
        [{entry.name for entry in entries} for entries in (m.graph.input, m.graph.initializer)] for m in (model, folded)
    )
    assert after - stored == before - given
    assert stored <= after if model.ir_version < 4 else after <= before


@pytest.mark.parametrize("probe", CASES, ids=lambda probe: probe.name)
def test_regression(probe: Probe) -> None:
    model = probe.model()
    folding = fold_model(wrap(model), Options())
    folded = to_proto(folding.model)
    onnx.checker.check_model(folded, full_check=True)
    assert_same_function(model, folded, probe.batches())
    assert left(folded).total <= probe.left
    check_inputs(model, folded)
    assert sum(left(folded)) <= sum(left(model)), "more Adds were made than ops removed"
    again = to_proto(fold_model(wrap(folded), Options()).model)
    assert left(again) == left(folded), "folding twice is not folding once"


def test_untouched_bias_behind_matmul_stays_as_it_is() -> None:
    """It was taken for a new one: another initializer, another input of the Add, though nothing had changed."""
    text = "x[N,3,5,5] -> y, z | h = Conv(x, w[4,3,3,3]); y = BN4(h); m = MatMul(x, v[5,2]); z = Add(m, k[2])"
    model = Probe("untouched-matmul-add", "", text).model()
    folded = to_proto(fold_model(wrap(model), Options()).model)
    assert list(folded.graph.node)[-2:] == list(model.graph.node)[-2:]
    kept = {tensor.name: tensor for tensor in folded.graph.initializer}
    assert all(kept[tensor.name] == tensor for tensor in model.graph.initializer if tensor.name in ("v", "k"))
    alone = Probe("matmul-add-alone", "", "x[N,5] -> z | m = MatMul(x, v[5,2]); z = Add(m, k[2])").model()
    assert to_proto(fold_model(wrap(alone), Options()).model) == alone


def test_untouched_table_stays_as_it_is() -> None:
    model = Probe("table", "", "x[N,2] -> y | i = Cast<to=7>(x); y = Gather(w[4,2], i)").model()
    folding = fold_model(wrap(model), Options())
    assert folding.rewrite.rewritten == []
    assert to_proto(folding.model) == model


def test_dead_channel_needs_no_add() -> None:
    """What a dead channel gives goes on through a MatMul without a bias into the Gemm behind it."""
    text = "x[N,4] -> y | h = BN4(x); m = MatMul(h, w[4,3]); y = Gemm(m, v[3,5], c[5])"
    model = Probe("dead-goes-on", "", text, values={"h_gamma": [0.0, 1.0, -1.0, 0.5], "h_beta": 0.7}).model()
    assert sum(left(to_proto(fold_model(wrap(model), Options()).model))) == 0


def test_one_image_is_a_batch() -> None:
    """The first two images of a batch of 2 and of 3 are two, but of one they are one."""
    text = (
        "x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); "
        "s = Slice(h, b:int64[1]={0}, e:int64[1]={2}, ax:int64[1]={0}); n = Shape<end=1>(s); f = Cast<to=1>(n); "
        "y = Div(h, f)"
    )
    model = Probe("first-two-images", "", text).model()
    folded = to_proto(fold_model(wrap(model), Options()).model)
    assert_same_function(model, folded, [{"x": np.ones((1, 3, 4, 4), np.float32)}])


def test_values_of_dead_channels_obey_no_relation() -> None:
    """From the removed op down to the node that takes their place, and no further."""
    text = (
        "x[N,3,4,4] -> y, z | h = Conv(x, w[4,3,1,1]); z = Sigmoid(h); g = BN4(h); r = GlobalMaxPool(g); "
        "y = Conv(r, v[2,4,1,1])"
    )
    model = Probe("dead", "", text, values={"g_gamma": [0.0, 1.0, 0.5, 2.0]}).model()
    folding = fold_model(wrap(model), Options())
    assert folding.report.after.batch_norms == 0
    assert folding.plans[0].arbitrary == {"h", "g", "r"}


def test_new_constants_are_named_after_what_they_replace() -> None:
    """The scale goes into the Conv, the shift can't: it is the Sub's."""
    text = "x[N,3,4,4] -> y | d = Div(x, k[3,1,1]); s = Sub(d, b[3,1,1]); y = Conv<pads=[1,1,1,1]>(s, w[2,3,3,3])"
    model = Probe("named", "", text).model()
    for node in model.graph.node:
        node.name = f"the {node.op_type}"
    folded = to_proto(fold_model(wrap(model), Options()).model)
    assert [node.op_type for node in folded.graph.node] == ["Add", "Conv"]
    assert "the Sub.Add" in {tensor.name for tensor in folded.graph.initializer}


def test_every_new_value_is_proved() -> None:
    model = Probe("proof", "", "x[N,3,4,4] -> y | h = Conv(x, w[4,3,3,3]); y = BN4(h)").model()
    folding = fold_model(wrap(model), Options())
    assert (folding.proof.tensors, folding.proof.values) == (2, 4 * 3 * 9 + 4)


def test_what_cancels_is_zero() -> None:
    """A shift of 1e-17, the rounding error of one that cancelled, had an Add made for it."""
    shifts = UnionFind(signed=False)
    ids = shifts.new(2)
    shifts.unite(ids[:1], ids[1:], -0.1, 0.3)
    shifts.pin(ids[1:], 3.0)
    assert -0.1 * 3.0 + 0.3 != 0
    assert shifts.values(ids[:1]) == 0


def test_unit_roundoff() -> None:
    """Half an ulp of 1: every noise floor is made of it."""
    assert [unit_roundoff(np.dtype(name)) for name in ("float16", "float32", "float64")] == [2**-11, 2**-24, 2**-53]


@pytest.mark.parametrize(("spatial", "ops"), [(1, ["Conv"]), (4, ["Conv", "BatchNormalization", "Conv"])])
def test_a_norm_of_each_position_between_convs(spatial: int, ops: list[str]) -> None:
    """Before opset 9 with spatial = 0, parameters are (C, D1): the proof refused (C, 1), one for each channel."""
    text = (
        f"x[2,2,{spatial + 2}] -> y | h = Conv(x, w[3,2,3]); "
        f"n = BatchNormalization<spatial=0>(h, s[3,{spatial}], b[3,{spatial}], m[3,{spatial}], v[3,{spatial}]); "
        "y = Conv(n, u[3,3,1], f[3])"
    )
    probe = Probe("positions", "", text, opset=8, values={"v": 1.0})
    model = probe.model()
    folded = to_proto(fold_model(wrap(model), Options()).model)
    assert [node.op_type for node in folded.graph.node] == ops
    assert_same_function(model, folded, probe.batches())


@pytest.mark.parametrize(
    ("text", "left", "given"),
    [
        ("x[N,3,4,4] i:int64[2] -> y | h = Conv(x, w[4,3,1,1]); g = Gather<axis=3>(h, i); y = BN4(g)", 0, [3, 0]),
        ("x[N,3,4] i:int64[2,1] -> y | h = Conv(x, w[4,3,1]); g = Gather<axis=2>(h, i); y = BN4(g)", 0, [[3], [1]]),
        ("x[N,3,4,4] i:int64[4] -> y | h = Conv(x, w[4,3,1,1]); g = Gather<axis=1>(h, i); y = BN4(g)", 1, [2, 2, 0, 1]),
        ("x[N,4,6] i:int64[3] -> y | h = Conv(x, w[4,4,1]); r = Reshape(h, i); y = BN4(r)", 1, [6, 4, 2]),
        ("x[N,4,6] -> y | n = BN4(x); y = Reshape(n, s:int64[3]={0,6,4})", 1, None),
        # a map of each position would be too large
        ("x[1,4,600,600] -> y | n = BN4(x); y = Reshape(n, s:int64[4]={0,600,600,4})", 1, None),
    ],
)
def test_data_that_move_where_no_map_follows(text: str, left: int, given: Any) -> None:
    """No test noticed changes of these rules: along an axis of one coordinate data may go anywhere, else not."""
    model = Probe("given", "", text).model()
    folded = to_proto(fold_model(wrap(model), Options()).model)
    assert [node.op_type for node in folded.graph.node].count("BatchNormalization") == left
    shape = (2, *(axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim[1:]))
    feeds = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    if given is not None:
        feeds["i"] = np.array(given)
    assert_same_function(model, folded, [feeds])
