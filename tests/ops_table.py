"""The table of ops: for each that folding declares, a model whose BatchNorm goes through it, and a hostile twin.

A row is either the name of a row of the probe table or a model in the notation of `probe_text`.  The twin looks like the
model but is another function to the algebra: there a per-channel op has to stay.
"""

from __future__ import annotations

from typing import NamedTuple

CONV = "x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1], b[4]); "


class Row(NamedTuple):
    """good: nothing per channel is left.  bad: the reason code of the BN that stays.

    code: 'reduced' where an Add or Mul is left of the BN, '' where what stays is arithmetic, of which no report tells.
    """

    good: str
    bad: str
    code: str
    opset: int = 17


def _scaled(node: str) -> Row:
    """An op that lets positive scales through and no shift: the Mul goes, with a negative factor it stays."""
    good, bad = (f"{CONV}r = {node}; y = Mul(r, c:float[4,1,1]={{{factors}}})" for factors in ("1,2,3,4", "1,-2,3,-4"))
    return Row(good, bad, "")


def _odd(op: str, nodes: str = "") -> Row:
    """A sign goes through an odd function, a scale does not."""
    start = CONV + (nodes or f"r = {op}(h)")
    return Row(f"{start}; y = Mul(r, c:float[4,1,1]={{1,-1,-1,1}})", f"{start}; y = BN4(r)", "scale-in-the-way")


def _ordered(node: str) -> Row:
    """Order is kept by a positive scale: with negative gammas in it, the shift alone goes."""
    return Row(f"{CONV}r = {node}; y = BN4+(r)", f"{CONV}r = {node}; y = BN4(r)", "reduced")


TABLE = {
    "BatchNormalization": Row("conv-2d", "training-mode", "training-mode"),
    "Mul": Row("conv-mul-add", "conv-mul-per-width", ""),
    "Add": Row("add-convs", "add-input", "reduced"),
    "Sub": Row("sub-convs", "x[N,4,4,4] -> y | h = Conv(x, w[4,4,1,1]); s = Sub(h, x); y = BN4(s)", "reduced"),
    "Div": Row("conv-sub-div-mul-add", "conv-constant-over", "fixed-input"),
    "Sum": Row("sum-convs", "x[N,4,4,4] -> y | h = Conv(x, w[4,4,1,1]); s = Sum(h, h, x); y = BN4(s)", "reduced"),
    "Mean": Row("x[N,3,4,4] -> y | p = Conv(x, w[4,3,1,1]); q = Conv(x, v[4,3,1,1]); s = Mean(p, q); y = BN4(s)",
                "x[N,4,4,4] -> y | p = Conv(x, w[4,4,1,1]); s = Mean(p, x); y = BN4(s)", "reduced"),
    "Max": Row("max-convs", "max-convs-negative", "reduced"),
    "Min": Row("x[N,3,4,4] -> y | p = Conv(x, w[4,3,1,1]); q = Conv(x, v[4,3,1,1]); s = Min(p, q); y = BN4+(s)",
               "x[N,3,4,4] -> y | p = Conv(x, w[4,3,1,1]); q = Conv(x, v[4,3,1,1]); s = Min(p, q); y = BN4(s)", "reduced"),
    "Relu": _scaled("Relu(h)"),
    "LeakyRelu": _scaled("LeakyRelu<alpha=0.2>(h)"),
    "Abs": _scaled("Abs(h)"),
    "PRelu": _scaled("PRelu(h, s[4,1,1])"),
    "Clip": Row(f"{CONV}r = Clip(h, lo[]={{0.}}); y = Mul(r, c_gain[4,1,1])",
                f"{CONV}r = Clip(h, lo[]={{0.}}, hi[]={{6.}}); y = BN4+(r)", "fixed-input"),
    **{op: _odd(op) for op in "Tanh Erf Sin Tan Atan Sinh Asinh Softsign".split()},
    **{op: _odd(op, f"q = Tanh(h); r = {op}(q)") for op in ("Asin", "Atanh")},
    "Neg": Row("neg", f"{CONV}n = Neg(h); r = Relu(n); y = BN4(r)", "sign"),
    "Identity": Row("identity", "x[N,3,4,4] -> y, i | h = Conv(x, w[4,3,1,1]); i = Identity(h); y = BN4(i)",
                    "graph-output"),
    "Dropout": Row("dropout", f"{CONV}r = Dropout(h, ratio[]={{0.}}, t:bool[]={{1}}); y = BN4(r)", "fixed-input"),
    "Cast": Row("cast-double", "cast-integer", "fixed-input"),
    "CastLike": Row(f"{CONV}r = CastLike(h, l:float[1]); y = BN4(r)",
                    f"{CONV}r = CastLike(h, l:int32[1]={{1}}); q = Cast<to=1>(r); y = BN4(q)", "fixed-input"),
    "Transpose": Row("transpose-hw", "transpose-channel-equal", "graph-output"),
    "Reshape": Row("matmul-reshape", "matmul-reshape-equal", "graph-output"),
    "Flatten": Row("flatten", "flatten-pixels", "graph-output"),
    "Squeeze": Row("x[N,3] -> y | h = Gemm(x, w[3,4]); u = Unsqueeze(h, a:int64[1]={2}); q = Squeeze(u, a); y = BN4(q)",
                   "x[1,3,4] -> y | h = Conv(x, w[4,3,1]); s = Squeeze(h, a:int64[1]={0}); y = BN4(s)", "graph-output"),
    "Unsqueeze": Row("x[N,3] -> y | h = Gemm(x, w[3,4]); u = Unsqueeze(h, a:int64[1]={2}); y = BN4(u)",
                     "x[4,3] -> y | h = Gemm(x, w[3,5]); u = Unsqueeze(h, a:int64[1]={0}); y = BN4(u)", "graph-output"),
    "Expand": Row("expand", "x[4,3] -> y | h = Gemm(x, w[3,4]); e = Expand(h, k:int64[3]={2,4,4}); y = BN4(e)", "graph-output"),
    "Tile": Row("tile", "tile-channels", "graph-output"),
    "Concat": Row("concat-convs", "concat-input", "graph-output"),
    "Split": Row("split-bn-bn", "split-rows-bn-bn", "graph-output"),
    "SplitToSequence": Row(
        "x[N,3,4,4] -> y | h = Conv(x, w[8,3,1,1]); q = SplitToSequence<axis=1>(h, k:int64[]={4}); "
        "p = SequenceAt(q, i:int64[]={1}); y = BN4(p)",
        "x[4,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); q = SplitToSequence<axis=1, keepdims=0>(h); "
        "p = SequenceAt(q, i:int64[]={1}); y = BN4(p)", "fixed-input"),
    "SequenceAt": Row(
        "x[N,3,4,4] -> y | h = Conv(x, w[8,3,1,1]); q = SplitToSequence<axis=1>(h, k:int64[2]={3,5}); "
        "p = SequenceAt(q, i:int64[]={-1}); y = BN5(p)",
        "x[N,3,4,4] i:int64[] -> y | h = Conv(x, w[12,3,1,1]); q = SplitToSequence<axis=1>(h, k:int64[]={4}); "
        "p = SequenceAt(q, i); y = BN4(p)", "fixed-input"),
    "Slice": Row("slice-bn", "x[N,3,4,4] -> y, z | h = Conv(x, w[4,3,1,1]); s = Slice(h, a:int64[1]={0}, e:int64[1]={2}, "
                 "k:int64[1]={2}); y = BN4(s); z = BN4(h)", "graph-output"),
    "DepthToSpace": Row("depthtospace", "x[N,3,4,4] -> y, z | h = Conv(x, w[8,3,1,1]); d = DepthToSpace<blocksize=2>(h); "
                        "y = BN2(d); z = BN8(h)", "graph-output"),
    "SpaceToDepth": Row("x[N,3,4,4] -> y | h = Conv(x, w[2,3,1,1]); d = SpaceToDepth<blocksize=2>(h); "
                        "y = Mul(d, c_gain[8,1,1]={1,2,1,2,1,2,1,2})", "spacetodepth", "graph-output"),
    "Pad": Row('x[N,3,4,4] -> y | h = BN3(x); p = Pad<mode="edge">(h, k:int64[8]={0,0,1,1,0,0,1,1}); '
               'y = Conv(p, w[4,3,3,3])', "bn-pad-value-conv", "graph-input"),
    "Conv": Row("bn-conv", "bn-conv-padded", "reduced"),
    "ConvTranspose": Row("bn-convtranspose-1x1", "bn-convtranspose", "reduced"),
    "Gemm": Row("gemm-trans-a", "bn-gemm-trans-a", "graph-input"),
    "MatMul": Row("matmul-tokens", "matmul-rank-3-equal", "graph-output"),
    "Einsum": Row("einsum-heads", "einsum-width-equal", "graph-output"),
    "Gather": Row("gather-shuffle-bn", "gather-repeat-bn", "graph-output"),
    "MaxPool": Row("maxpool-padded", "maxpool-negative", "reduced"),
    "GlobalMaxPool": _ordered("GlobalMaxPool(h)"),
    "AveragePool": Row("averagepool-padded", "averagepool-counted-pads", "reduced"),
    "GlobalAveragePool": Row("globalaveragepool",
                             "x[N,4,3,3] -> y | g = GlobalAveragePool(x); h = Mul(x, g); y = BN4(h)", "graph-output"),
    "ReduceMean": Row("reducemean", "x[N,3,4,4] -> y, z | h = Conv(x, w[4,3,1,1]); r = ReduceMean<axes=[1]>(h); "
                      "y = BN1(r); z = BN4(h)", "graph-output"),
    "ReduceMax": _ordered("ReduceMax<axes=[2,3]>(h)"),
    "ReduceMin": _ordered("ReduceMin<axes=[2,3]>(h)"),
    "ReduceSum": Row("reducesum", "x[N,3,H,4] -> y | h = BN3(x); s = ReduceSum(h, a:int64[2]={2,3}); y = Conv(s, w[4,3,1,1])",
                     "reduced"),
    "Resize": Row("resize-cubic", "resize-crop", "fixed-input"),
    "Upsample": Row(f"{CONV}r = Upsample(h, k:float[4]={{1,1,2,2}}); y = BN4(r)",
                    f"{CONV}r = Upsample(h, k:float[4]={{1,2,1,1}}); y = BN8(r)", "graph-output", 9),
    "QuantizeLinear": Row("x[N,4,4,4] -> y | g = Mul(x, c[]={2.}); q = QuantizeLinear(g, s_var[], z:uint8[]={90}); y = DequantizeLinear(q, s_var, z)",
                          "x[N,4,4,4] -> y | g = BN4+(x); q = QuantizeLinear(g, s_var[], z:uint8[]={90}); y = DequantizeLinear(q, s_var, z)",
                          "quantised-values", 19),
    "DequantizeLinear": Row("x[N,4,4,4] -> y | q = QuantizeLinear(x, s_var[], z:uint8[]={90}); d = DequantizeLinear(q, s_var, z); y = Mul(d, c[]={2.})",
                            "x[N,4,4,4] -> y | q = QuantizeLinear(x, s_var[], z:uint8[]={90}); d = DequantizeLinear(q, s_var, z); y = BN4+(d)",
                            "quantised-values", 19),
    "LayerNormalization": Row(
        "x[N,5,4] -> y | h = LayerNormalization(x, g[4], b[4]); t = Transpose<perm=[0,2,1]>(h); y = BN4(t)",
        "x[N,4,4] -> y | h = LayerNormalization(x, g[4], b[4]); y = BN4(h)", "graph-output"),
    "RMSNormalization": Row(
        "x[N,5,4] -> y | h = RMSNormalization(x, g[4]); y = Mul(h, k[4])",
        "x[N,4,4] -> y | h = RMSNormalization(x, g[4]); y = BN4(h)", "graph-output", 23),
    "InstanceNormalization": Row(
        "x[N,4,5,5] -> y | h = InstanceNormalization(x, g[4], b[4]); y = BN4(h)",
        "x[N,4,4,4] -> y | h = InstanceNormalization(x, g[4], b[4]); t = Transpose<perm=[0,2,1,3]>(h); y = BN4(t)",
        "graph-output"),
    "GroupNormalization": Row(
        "x[N,4,5,5] -> y | h = GroupNormalization<num_groups=2>(x, g[4], b[4]); y = BN4(h)",
        "x[N,4,4,4] -> y | h = GroupNormalization<num_groups=2>(x, g[4], b[4]); t = Transpose<perm=[0,2,1,3]>(h); "
        "y = BN4(t)", "graph-output", 21),
    "LSTM": Row("bn-lstm", "bn-lstm-equal", "graph-input"),
    "GRU": Row("bn-gru", "x[5,3,3] -> y | h = BN3(x); y = GRU<hidden_size=2>(h, w[1,6,3], r[1,6,2])", "graph-input"),
    "RNN": Row("bn-rnn", "x[5,3,3] -> y | h = BN3(x); y = RNN<hidden_size=2>(h, w[1,2,3], r[1,2,2])", "graph-input"),
}  # fmt: skip
