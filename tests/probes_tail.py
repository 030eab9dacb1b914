"""The long tail of the probe table: Reshapes, one BatchNorm in two places, recurrent layers, tables, Einsum.

Beside each that can go stands one that looks alike and can't.
"""

from __future__ import annotations

from probe_text import Probe

# parameters of 8 channels that are those of 4, twice over; and each of 4, two in a row
TILED = "g[8]={1,2,-3,4,1,2,-3,4}, b[8]={1,2,3,4,1,2,3,4}, m[8]={0,1,2,3,0,1,2,3}, v[8]={1,2,3,4,1,2,3,4}"
REPEATED = "g[8]={1,1,2,2,3,3,-4,-4}, b[8]={1,1,2,2,3,3,4,4}, m[8]={0,0,1,1,2,2,3,3}, v[8]={1,1,2,2,3,3,4,4}"

# --------------------------------------------------------------- BatchNorm between Reshapes: other axes are channels
RESHAPED = [
    # torch's InstanceNorm with tracked statistics: the batch goes into the channels
    Probe("instancenorm-tracked", "-----?",
          "x[2,3,5,5] -> y | h = Conv(x, w[4,3,3,3]); r = Reshape(h, p:int64[4]={1,8,3,3}); "
          f"n = BatchNormalization(r, {TILED}); y = Reshape(n, q:int64[4]={{2,4,3,3}})"),
    Probe("instancenorm-per-image", "-----?",
          "x[2,3,5,5] -> y | h = Conv(x, w[4,3,3,3]); r = Reshape(h, p:int64[4]={1,8,3,3}); n = BN8(r); "
          "y = Reshape(n, q:int64[4]={2,4,3,3})", 1, "conflict"),
    Probe("ghost", "-----?",
          "x[6,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); r = Reshape(h, p:int64[4]={3,8,4,4}); "
          f"n = BatchNormalization(r, {TILED}); y = Reshape(n, q:int64[4]={{6,4,4,4}})"),
    Probe("ghost-tokens", "-----?",
          "x[6,3] -> y | h = Gemm(x, w[3,4]); r = Reshape(h, p:int64[3]={2,3,4}); t = Transpose<perm=[0,2,1]>(r); "
          "n = BN4(t); u = Transpose<perm=[0,2,1]>(n); y = Reshape(u, q:int64[2]={6,4})"),
    # bands of the frequency axis are channels: a Conv has one weight for all of them, a Gemm has not
    Probe("subspectral-equal", "-----?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,1,1]); r = Reshape(h, p:int64[4]={0,8,3,5}); "
          f"n = BatchNormalization(r, {REPEATED}); y = Reshape(n, q:int64[4]={{0,4,6,5}})"),
    Probe("subspectral", "-----?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,1,1]); r = Reshape(h, p:int64[4]={0,8,3,5}); n = BN8(r); "
          "y = Reshape(n, q:int64[4]={0,4,6,5})", 1, "conflict"),
    Probe("subspectral-gemm", "-----?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,1,1]); r = Reshape(h, p:int64[4]={0,8,3,5}); n = BN8(r); "
          "s = Reshape(n, q:int64[4]={0,4,6,5}); t = ReduceMean<axes=[3], keepdims=0>(s); f = Flatten(t); "
          "y = Gemm(f, u[24,3])"),
]  # fmt: skip

# ------------------------------------------------------------------- one BatchNorm, or one value, in several places
SHARED = [
    Probe("one-bn-two-convs", "+++++?",
          "x[N,3,6,5] z[N,3,6,5] -> y, t | h = Conv(x, w[4,3,3,3]); "
          "y = BatchNormalization(h, g[4], b[4], m[4], v_var[4]); "
          "k = Conv(z, u[4,3,3,3]); t = BatchNormalization(k, g, b, m, v_var)"),
    Probe("one-bn-conv-and-input", "+++++?",
          "x[N,3,6,5] z[N,4,6,5] -> y, t | h = Conv(x, w[4,3,3,3]); "
          "y = BatchNormalization(h, g[4], b[4], m[4], v_var[4]); "
          "t = BatchNormalization(z, g, b, m, v_var)", 1, "input"),
    Probe("bn-also-output", "+++++?",
          "x[N,3,6,5] -> y, h | c = Conv(x, w[4,3,3,3]); h = BN4(c); r = Relu(h); y = Conv(r, u[2,4,1,1])"),
    Probe("bn-of-input-also-output", "-----?",
          "x[N,3,6,5] -> y, h | h = BN3(x); y = Conv(h, u[2,3,1,1])", 1, "output"),
    Probe("concat-stream", "-----?",
          "x[N,3,4,4] -> y | a = Conv(x, w[4,3,1,1]); p = BN4(a); b = Conv(p, v[2,4,1,1]); c = Concat<axis=1>(a, b); "
          "d = BN6(c); f = Conv(d, u[2,6,1,1]); g = Concat<axis=1>(c, f); i = BN8(g); y = Conv(i, t[3,8,1,1])"),
    # behind Relus every BN wants its own shift of the stream, and only one of them can have it
    Probe("concat-stream-relu", "-----?",
          "x[N,3,4,4] -> y | a = Conv(x, w[4,3,1,1]); p = BN4+(a); q = Relu(p); b = Conv(q, v[2,4,1,1]); "
          "c = Concat<axis=1>(a, b); d = BN6+(c); e = Relu(d); y = Conv(e, u[2,6,1,1])", 1, "conflict"),
    Probe("paths-add", "--+--?",
          "x[N,3,4,4] -> y | a = Conv(x, w[4,3,1,1]); r = Relu(a); q = Add(r, a); p = Mul(q, k_gain[4,1,1]); "
          "y = Conv(p, v[2,4,1,1])"),
    Probe("paths-add-shift", "-----?",
          "x[N,3,4,4] -> y | a = Conv(x, w[4,3,1,1]); r = Relu(a); q = Add(r, a); y = BN4+(q)", 1, "relu"),
    Probe("paths-concat", "-----?",
          "x[N,3,4,4] -> y | a = Conv(x, w[4,3,1,1]); c = Concat<axis=1>(a, a); d = BN8(c); y = Conv(d, v[2,8,1,1])"),
    Probe("paths-concat-output", "-----?",
          "x[N,3,4,4] -> y | a = Conv(x, w[4,3,1,1]); c = Concat<axis=1>(a, a); y = BN8(c)", 1, "conflict"),
    Probe("paths-square", "-----?",
          "x[N,3,4,4] -> y | a = Conv(x, w[4,3,1,1]); c = Mul(a, a); d = BN4(c); y = Conv(d, v[2,4,1,1])"),
    Probe("convtranspose-output-padding-ahead", "-----?",
          "x[N,3,4,4] -> y | h = BN3(x); y = ConvTranspose<strides=[2,2], output_padding=[1,1]>(h, w[3,4,2,2], b[4])",
          values={"h_beta": 0, "h_mean": 0}),
    # the padding at the end of the output sees no input at all
    Probe("convtranspose-output-padding-shift", "-----?",
          "x[N,3,4,4] -> y | h = BN3(x); y = ConvTranspose<strides=[2,2], output_padding=[1,1]>(h, w[3,4,2,2], b[4])",
          1, "padding"),
]  # fmt: skip

# --------------------------------------------------------------------- recurrent layers take both at their X alone
TOKENS = "t = Transpose<perm=[0,2,1]>(x); n = BN3(t); u = Transpose<perm=[0,2,1]>(n); "
RECURRENT = [
    Probe("bn-lstm-bidirectional", "-----?", f"x[5,2,3] -> y | {TOKENS}"
          'y = LSTM<hidden_size=2, direction="bidirectional">(u, w[2,8,3], r[2,8,2], b[2,16])'),
    Probe("bn-lstm-layout", "!----?",
          "x[2,3,5] -> y | h = BN3(x); u = Transpose<perm=[0,2,1]>(h); "
          "y = LSTM<hidden_size=2, layout=1>(u, w[1,8,3], r[1,8,2], b[1,16])"),
    Probe("bn-gru-reset", "-----?", f"x[5,2,3] -> y | {TOKENS}"
          'y = GRU<hidden_size=2, direction="reverse", linear_before_reset=1>(u, w[1,6,3], r[1,6,2], b[1,12])'),
    Probe("lstm-bn-gru", "-----?",
          "x[5,2,3] -> z | y = LSTM<hidden_size=2>(x, w[1,8,3], r[1,8,2], b[1,16]); s = Squeeze(y, a:int64[1]={1}); "
          "t = Transpose<perm=[0,2,1]>(s); n = BN2(t); u = Transpose<perm=[0,2,1]>(n); "
          "z = GRU<hidden_size=3>(u, k[1,9,2], l[1,9,3])"),
    # the last step is the first state of the recurrence, which has weights of its own
    Probe("bn-rnn-also-state", "-----?", f"x[5,2,3] -> y | {TOKENS}"
          "l = Slice(u, s:int64[1]={4}, e:int64[1]={5}, k:int64[1]={0}); "
          'y = RNN<hidden_size=3>(u, w[1,3,3], r[1,3,3], b[1,6], "", l)', 1, "fixed"),
    Probe("bn-rnn-state", "-----?",
          "x[5,2,3] z[1,3,2] -> y | n = BN3(z); u = Transpose<perm=[0,2,1]>(n); "
          'y = RNN<hidden_size=3>(x, w[1,3,3], r[1,3,3], b[1,6], "", u)', 1, "fixed"),
    Probe("gru-bn", "-----?",
          "x[5,2,3] -> z | y, h = GRU<hidden_size=4>(x, w[1,12,3], r[1,12,4]); s = Squeeze(h, a:int64[1]={0}); "
          "z = BN4(s)", 1, "fixed"),
]  # fmt: skip

# ------------------------------------------------------------------------------ embeddings: into the table itself
EMBEDDINGS = [
    Probe("embedding", "-----?",
          "i:int64[N,3] -> y | e = Gather(t[5,4], i); p = Transpose<perm=[0,2,1]>(e); n = BN4(p); y = Relu(n)"),
    Probe("embedding-columns", "-----?",
          "i:int64[N] -> y | e = Gather<axis=1>(t[4,5], i); p = Transpose<perm=[1,0]>(e); y = BN4(p)"),
    Probe("embedding-matrices", "-----?",
          "i:int64[N] -> y | e = Gather(t[5,2,2], i); f = Reshape(e, s:int64[2]={0,4}); y = BN4(f)"),
    # a number for each place in the sentence is none for each column of the table
    Probe("embedding-positions", "-----?",
          "i:int64[4,3] -> y | e = Gather(t[5,4], i); f = Transpose<perm=[1,0,2]>(e); y = BN4(f)", 1, "axis"),
    Probe("embedding-two-readers", "-----?",
          "i:int64[N] j:int64[N] -> y, z | e = Gather(t[5,4], i); f = Gather(t, j); "
          "y = BatchNormalization(e, g[4], b[4], m[4], v_var[4]); z = BatchNormalization(f, g, b, m, v_var)"),
    Probe("embedding-two-readers-forward", "-----?",
          "i:int64[N] j:int64[N] -> y, z | e = Gather(t[5,4], i); p = BN4(e); y = Gemm(p, u[4,2]); "
          "f = Gather(t, j); q = BN4(f); z = Gemm(q, v[4,2])"),
    Probe("embedding-two-readers-differ", "-----?",
          "i:int64[N] j:int64[N] -> y, z | e = Gather(t[5,4], i); y = BN4(e); f = Gather(t, j); z = BN4(f)",
          1, "conflict"),
    # a language model's last layer reads the table, transposed
    Probe("embedding-tied", "-----?",
          "i:int64[N] -> y, z | e = Gather(t[5,4], i); y = BN4(e); s = Transpose<perm=[1,0]>(t); r = Relu(y); "
          "z = MatMul(r, s)", 1, "shared"),
]  # fmt: skip

# ------------------------------------------------------------------------------- Einsum: rows and columns by label
EINSUM = [
    Probe("einsum-tokens", "-----?",
          'x[N,5,3] -> y | h = Einsum<equation="bsd,df->bsf">(x, w[3,4]); t = Transpose<perm=[0,2,1]>(h); y = BN4(t)'),
    Probe("einsum-channels", "-----?", 'x[N,3,4,4] -> y | h = Einsum<equation="bchw,oc->bohw">(x, w[4,3]); y = BN4(h)'),
    Probe("einsum-width-equal", "-----?",
          'x[N,4,4,4] -> y | h = Einsum<equation="bchw,ow->bcho">(x, w[4,4]); y = BN4(h)', 1, "axis"),
    Probe("einsum-constant-left", "-----?",
          'x[N,3,5] -> y | h = Einsum<equation="oi, bin -> bon">(w[4,3], x); y = BN4(h)'),
    Probe("bn-einsum", "-----?", 'x[N,3,4,4] -> y | h = BN3(x); y = Einsum<equation="bchw,oc->bohw">(h, w[4,3])'),
    Probe("bn-einsum-transposed", "-----?",
          'x[N,3,2,2] -> y | h = Reshape(x, k:int64[3]={0,3,4}); n = BN3(h); r = Reshape(n, l:int64[4]={0,3,2,2}); '
          'y = Einsum<equation="bchw,whco->bo">(r, w[2,2,3,4])'),
    Probe("bn-einsum-vector", "-----?",
          'x[N,3] -> y | h = BN3(x); e = Einsum<equation="bd,d->b">(h, w[3]); y = Exp(e)'),
    Probe("einsum-heads", "-----?",
          'x[N,5,3] -> y | h = Einsum<equation="...sd,dhk->...shk">(x, w[3,2,2]); f = Reshape(h, a:int64[3]={0,0,4}); '
          't = Transpose<perm=[0,2,1]>(f); y = BN4(t)'),
    Probe("einsum-groups", "-----?",
          'x[N,2,3] -> y | h = Einsum<equation="bgi,gio->bgo">(x, w[2,3,2]); f = Reshape(h, a:int64[2]={-1,4}); '
          'y = BN4(f)'),
    # the order of the alphabet: rows, then groups, behind b
    Probe("einsum-implicit", "-----?",
          'x[N,3,5] -> y | h = Einsum<equation="bin,io">(x, w[3,4]); t = Transpose<perm=[0,2,1]>(h); y = BN4(t)'),
    Probe("einsum-relu-mul", "-----?",
          'x[N,3,4,4] -> y | h = Einsum<equation="bchw,oc->bohw">(x, w[4,3]); r = Relu(h); '
          'y = Mul(r, k_gain[4,1,1])'),
    # what is summed over in x alone counts a shift as often as there are elements
    Probe("bn-einsum-sum", "-----?",
          'x[N,3,5] -> y | h = BN3(x); y = Einsum<equation="bdn,do->bo">(h, w[3,4])', 1, "axis"),
    # a constant of size 1 is repeated: one weight for all channels
    Probe("bn-einsum-repeated", "-----?",
          'x[N,3,5] -> y | h = BN3(x); y = Einsum<equation="bdn,do->bno">(h, w[1,4])', 1, "axis"),
    Probe("add-einsum-repeated", "??????",
          'x[N,3,5] -> y | h = Add(x, k[]); y = Einsum<equation="bdn,do->bno">(h, w[1,4])', 1, "axis"),
    Probe("bn-einsum-diagonal", "-----?",
          'x[N,3,3] -> y | h = BN3(x); y = Einsum<equation="bdd,do->bo">(h, w[3,4])', 1, "axis"),
    Probe("einsum-three", "-----?",
          'x[N,3,5] -> y | h = BN3(x); y = Einsum<equation="bdn,do,o->bno">(h, w[3,4], v[4])', 1, "axis"),
    Probe("einsum-computed", "-----?",
          'x[N,3,5] z[3,4] -> y | h = BN3(x); y = Einsum<equation="bdn,do->bno">(h, z)', 1, "fixed"),
]  # fmt: skip

TAIL = [*RESHAPED, *SHARED, *RECURRENT, *EMBEDDINGS, *EINSUM]
