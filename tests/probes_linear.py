"""The rows of the probe table about one linear node with a BatchNorm in front of it or behind it."""

from __future__ import annotations

from probe_text import Probe

# ------------------------------------------------------- a linear node in front: a(Wx + b) + c = (aW)x + (ab + c)
BEHIND_CONV = [
    Probe("conv-1d", "++++++", "x[N,3,9] -> y | h = Conv(x, w[4,3,3], b[4]); y = BN4(h)"),
    Probe("conv-2d", "++++++", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3], b[4]); y = BN4(h)"),
    Probe("conv-3d", "+++++?", "x[N,2,4,5,4] -> y | h = Conv(x, w[4,2,3,3,2], b[4]); y = BN4(h)"),
    Probe("conv-no-bias", "+++++?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); y = BN4(h)"),
    Probe("conv-empty-bias", "----!?", 'x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3], ""); y = BN4(h)'),
    Probe("conv-equal-channels", "+++++?", "x[N,4,4,4] -> y | h = Conv(x, w[4,4,1,1], b[4]); y = BN4(h)"),
    Probe("conv-depthwise", "++++++", "x[N,4,6,5] -> y | h = Conv<group=4>(x, w[4,1,3,3], b[4]); y = BN4(h)"),
    Probe("conv-depthwise-multiplier", "+++++?", "x[N,2,6,5] -> y | h = Conv<group=2>(x, w[6,1,3,3]); y = BN6(h)"),
    Probe("conv-groups", "+++++?", "x[N,4,6,5] -> y | h = Conv<group=2>(x, w[6,2,3,3], b[6]); y = BN6(h)"),
    Probe("conv-groups-equal", "+++++?", "x[N,4,6,5] -> y | h = Conv<group=2>(x, w[4,2,3,3]); y = BN4(h)"),
    Probe("conv-pads-strides-dilations", "+++++?",
          "x[N,3,9,9] -> y | h = Conv<pads=[2,1,0,1], strides=[2,1], dilations=[1,2]>(x, w[4,3,3,3]); y = BN4(h)"),
    Probe("conv-auto-pad", "+++++?", 'x[N,3,6,5] -> y | h = Conv<auto_pad="SAME_UPPER">(x, w[4,3,3,3]); y = BN4(h)'),
    Probe("conv-runtime-weight", "-----?", "x[N,3,6,5] w[4,3,3,3] -> y | h = Conv(x, w); y = BN4(h)", 1, "runtime"),
    Probe("convtranspose", "+-++++", "x[N,3,4,4] -> y | h = ConvTranspose(x, w[3,4,3,3], b[4]); y = BN4(h)"),
    Probe("convtranspose-equal", "+-+++?", "x[N,4,4,4] -> y | h = ConvTranspose(x, w[4,4,3,3]); y = BN4(h)"),
    Probe("convtranspose-groups", "+--++-",
          "x[N,4,4,4] -> y | h = ConvTranspose<group=2>(x, w[4,3,3,3], b[6]); y = BN6(h)"),
    Probe("convtranspose-groups-equal", "+--++?",
          "x[N,4,4,4] -> y | h = ConvTranspose<group=2>(x, w[4,2,3,3]); y = BN4(h)"),
    Probe("convtranspose-output-padding", "+-+++?",
          "x[N,3,4,4] -> y | h = ConvTranspose<strides=[2,2], output_padding=[1,1]>(x, w[3,4,3,3]); y = BN4(h)"),
]  # fmt: skip

BEHIND_GEMM = [
    Probe("gemm", "----++", "x[N,3] -> y | h = Gemm(x, w[3,4], b[4]); y = BN4(h)"),
    Probe("gemm-trans-b", "----++", "x[N,3] -> y | h = Gemm<transB=1>(x, w[4,3], b[4]); y = BN4(h)"),
    Probe("gemm-trans-a", "----+?", "x[3,N] -> y | h = Gemm<transA=1>(x, w[3,4], b[4]); y = BN4(h)"),
    Probe("gemm-equal", "----+?", "x[4,4] -> y | h = Gemm<transA=1, transB=1>(x, w[4,4], b[4]); y = BN4(h)"),
    Probe("gemm-alpha", "----+?", "x[N,3] -> y | h = Gemm<alpha=0.3>(x, w[3,4], b[4]); y = BN4(h)"),
    Probe("gemm-beta", "----+x", "x[N,3] -> y | h = Gemm<beta=0.5>(x, w[3,4], b[4]); y = BN4(h)"),
    Probe("gemm-alpha-beta", "----+?", "x[N,3] -> y | h = Gemm<alpha=0.3, beta=-2.>(x, w[3,4], b[4]); y = BN4(h)"),
    Probe("gemm-beta-zero", "----+?", "x[N,3] -> y | h = Gemm<beta=0.>(x, w[3,4], b[4]); y = BN4(h)"),
    Probe("gemm-no-bias", "----+?", "x[N,3] -> y | h = Gemm(x, w[3,4]); y = BN4(h)"),
    Probe("gemm-empty-bias", "----!!", 'x[N,3] -> y | h = Gemm(x, w[3,4], ""); y = BN4(h)'),
    Probe("gemm-scalar-bias", "----+x", "x[N,3] -> y | h = Gemm(x, w[3,4], b[]); y = BN4(h)"),
    Probe("gemm-row-bias", "----+?", "x[N,3] -> y | h = Gemm(x, w[3,4], b[1,4]); y = BN4(h)"),
    # the bias of row i becomes a[c] * b[i] + c[c]: a full matrix
    Probe("gemm-column-bias", "----+x", "x[4,3] -> y | h = Gemm(x, w[3,4], b[4,1]); y = BN4(h)"),
    Probe("gemm-full-bias", "----+?", "x[4,3] -> y | h = Gemm(x, w[3,4], b[4,4]); y = BN4(h)"),
    # here the constant gives the rows, the channel is the input's own
    Probe("gemm-constant-left", "-----?", "x[4,4] -> y | h = Gemm(w[4,4], x, b[4,4]); y = BN4(h)", 1, "input"),
    Probe("matmul", "+----+", "x[N,3] -> y | h = MatMul(x, w[3,4]); y = BN4(h)"),
    Probe("matmul-add", "------", "x[N,3] -> y | p = MatMul(x, w[3,4]); h = Add(p, b[4]); y = BN4(h)"),
    Probe("matmul-add-left", "-----?", "x[N,3] -> y | p = MatMul(x, w[3,4]); h = Add(b[1,4], p); y = BN4(h)"),
    Probe("matmul-tokens", "-----?",
          "x[N,5,3] -> y | h = MatMul(x, w[3,4]); t = Transpose<perm=[0,2,1]>(h); y = BN4(t)"),
    Probe("matmul-tokens-flat", "-----?",
          "x[N,5,3] -> y | h = MatMul(x, w[3,4]); f = Reshape(h, a:int64[2]={-1,4}); g = BN4(f);"
          "y = Reshape(g, z:int64[3]={-1,5,4})"),
    Probe("matmul-constant-left", "-----?", "x[N,3,5] -> y | h = MatMul(w[4,3], x); y = BN4(h)"),
    Probe("matmul-constant-rank-3", "-----?",
          "x[N,5,3] -> y | h = MatMul(x, w[1,3,4]); t = Transpose<perm=[0,2,1]>(h); y = BN4(t)"),
    Probe("matmul-rank-3-equal", "-----x", "x[N,4,3] -> y | h = MatMul(x, w[3,4]); y = BN4(h)", 1, "axis"),
    Probe("matmul-transpose-equal", "x-----",
          "x[6,4] -> y | h = MatMul(x, w[4,6]); t = Transpose<perm=[1,0]>(h); y = BN6(t)", 1, "axis"),
    Probe("matmul-reshape-equal", "x-----",
          "x[6,4] -> y | h = MatMul(x, w[4,6]); r = Reshape(h, a:int64[3]={1,6,6}); y = BN6(r)", 1, "axis"),
    Probe("matmul-reshape", "+----?",
          "x[N,4] -> y | h = MatMul(x, w[4,6]); r = Reshape(h, a:int64[3]={-1,6,1}); y = BN6(r)"),
    Probe("matmul-reshape-heads", "-----?",
          "x[N,4] -> y | h = MatMul(x, w[4,12]); r = Reshape(h, a:int64[3]={-1,6,2}); y = BN6(r)"),
]  # fmt: skip

# ------ a linear node behind: W(ax + c) + b = (Wa)x + (Wc + b), if every element of the result sees every tap
AHEAD = [
    Probe("bn-conv", "-----+", "x[N,3,6,5] -> y | h = BN3(x); y = Conv(h, w[4,3,3,3], b[4])"),
    Probe("bn-conv-1x1", "-----+", "x[N,3,6,5] -> y | h = BN3(x); y = Conv(h, w[4,3,1,1])"),
    Probe("bn-conv-strides", "-----?",
          "x[N,3,9,9] -> y | h = BN3(x); y = Conv<strides=[2,2], dilations=[2,1]>(h, w[4,3,3,3])"),
    Probe("bn-conv-depthwise", "-----?", "x[N,4,6,5] -> y | h = BN4(x); y = Conv<group=4>(h, w[4,1,3,3])"),
    Probe("bn-conv-groups", "-----?", "x[N,4,6,5] -> y | h = BN4(x); y = Conv<group=2>(h, w[4,2,3,3], b[4])"),
    Probe("bn-conv-valid", "-----?", 'x[N,3,6,5] -> y | h = BN3(x); y = Conv<auto_pad="VALID">(h, w[4,3,3,3])'),
    # at the border some taps see a zero that is no c: the shift has to stay, as an Add
    Probe("bn-conv-padded", "------",
          "x[N,3,6,5] -> y | h = BN3(x); y = Conv<pads=[1,1,1,1]>(h, w[4,3,3,3])", 1, "padding"),
    Probe("bn-conv-same", "-----x",
          'x[N,3,6,5] -> y | h = BN3(x); y = Conv<auto_pad="SAME_UPPER">(h, w[4,3,3,3], b[4])', 1, "padding"),
    Probe("bn-conv-same-1x1", "-----?", 'x[N,3,6,5] -> y | h = BN3(x); y = Conv<auto_pad="SAME_LOWER">(h, w[4,3,1,1])'),
    Probe("bn-conv-padded-no-shift", "-----?",
          "x[N,3,6,5] -> y | h = BN3(x); y = Conv<pads=[1,1,1,1]>(h, w[4,3,3,3])", values={"h_beta": 0, "h_mean": 0}),
    Probe("bn-pad-reflect-conv", "-----?",
          'x[N,3,6,5] -> y | h = BN3(x); p = Pad<mode="reflect">(h, k:int64[8]={0,0,1,1,0,0,1,1}); '
          'y = Conv(p, w[4,3,3,3])'),
    Probe("bn-pad-edge-conv", "-----?",
          'x[N,3,6,5] -> y | h = BN3(x); p = Pad<mode="edge">(h, k:int64[8]={0,0,1,1,0,0,1,1}); '
          'y = Conv(p, w[4,3,3,3])'),
    Probe("bn-pad-zero-conv", "-----?",
          "x[N,3,6,5] -> y | h = BN3(x); p = Pad(h, k:int64[8]={0,0,1,1,0,0,1,1}); "
          "y = Conv(p, w[4,3,3,3])", 1, "padding"),
    Probe("bn-pad-value-conv", "-----?",
          "x[N,3,6,5] -> y | h = BN3(x); p = Pad(h, k:int64[8]={0,0,1,1,0,0,1,1}, v[]={0.7}); y = Conv(p, w[4,3,3,3])",
          1, "padding"),
    Probe("bn-convtranspose-1x1", "-----?", "x[N,3,4,4] -> y | h = BN3(x); y = ConvTranspose(h, w[3,4,1,1], b[4])"),
    # the border of a ConvTranspose is reached by fewer taps
    Probe("bn-convtranspose", "-----?", "x[N,3,4,4] -> y | h = BN3(x); y = ConvTranspose(h, w[3,4,3,3])", 1, "padding"),
    Probe("bn-gemm", "-----+", "x[N,3] -> y | h = BN3(x); y = Gemm(h, w[3,4], b[4])"),
    Probe("bn-gemm-trans-b", "-----?", "x[N,3] -> y | h = BN3(x); y = Gemm<transB=1, alpha=2.>(h, w[4,3])"),
    Probe("bn-gemm-beta", "-----?", "x[N,3] -> y | h = BN3(x); y = Gemm<beta=0.5, alpha=2.>(h, w[3,4], b[4])"),
    # Gemm sums over the batch here, the channel is a row of the result
    Probe("bn-gemm-trans-a", "-----?", "x[4,4] -> y | h = BN4(x); y = Gemm<transA=1>(h, w[4,4], b[4,4])", 1, "axis"),
    Probe("bn-matmul", "-----+", "x[N,3] -> y | h = BN3(x); y = MatMul(h, w[3,4])"),
    Probe("bn-matmul-add", "-----?", "x[N,3] -> y | h = BN3(x); p = MatMul(h, w[3,4]); y = Add(p, b[4])"),
    Probe("bn-matmul-rank-3-equal", "-----?", "x[N,4,4] -> y | h = BN4(x); y = MatMul(h, w[4,4])", 1, "axis"),
    Probe("bn-flatten-gemm", "-----+", "x[N,3,2,2] -> y | h = BN3(x); f = Flatten(h); y = Gemm(f, w[12,4], b[4])"),
    Probe("bn-reshape-gemm", "-----+",
          "x[N,3,2,2] -> y | h = BN3(x); f = Reshape(h, k:int64[2]={-1,12}); y = Gemm<transB=1>(f, w[4,12])"),
    Probe("bn-gap-flatten-gemm", "------",
          "x[N,3,6,5] -> y | h = BN3(x); g = GlobalAveragePool(h); f = Flatten(g); y = Gemm(f, w[3,4], b[4])"),
    Probe("bn-two-convs", "------",
          "x[N,3,6,5] -> y, z | h = BN3(x); y = Conv(h, w[4,3,3,3], b[4]); z = Conv(h, v[2,3,1,1])"),
    Probe("bn-conv-and-padded-conv", "-----?",
          "x[N,3,6,5] -> y, z | h = BN3(x); y = Conv(h, w[4,3,3,3]); "
          "z = Conv<pads=[1,1,1,1]>(h, v[2,3,3,3])", 1, "padding"),
    Probe("bn-conv-and-output", "-----?", "x[N,3,6,5] -> y, h | h = BN3(x); y = Conv(h, w[4,3,3,3])", 1, "output"),
    Probe("bn-conv-and-shape", "-----?", "x[N,3,6,5] -> y, s | h = BN3(x); y = Conv(h, w[4,3,3,3]); q = Shape(h); "
          "s = Cast<to=1>(q)"),
    Probe("bn-maxpool-conv", "-----?",
          "x[N,3,6,6] -> y | h = BN3+(x); p = MaxPool<kernel_shape=[2,2]>(h); y = Conv(p, w[4,3,3,3])"),
    Probe("bn-maxpool-conv-negative", "-----?",
          "x[N,3,6,6] -> y | h = BN3(x); p = MaxPool<kernel_shape=[2,2]>(h); y = Conv(p, w[4,3,3,3])", 1, "sign"),
    Probe("bn-relu-conv", "-----?", "x[N,3,6,5] -> y | h = BN3+(x); r = Relu(h); y = Conv(r, w[4,3,3,3])", 1, "relu"),
    Probe("bn-lstm", "-----?", "x[N,3,5] -> y | h = BN3(x); t = Transpose<perm=[2,0,1]>(h);"
          "y = LSTM<hidden_size=2>(t, w[1,8,3], r[1,8,2], b[1,16])"),
    Probe("bn-gru", "-----?", "x[N,3,5] -> y | h = BN3(x); t = Transpose<perm=[2,0,1]>(h);"
          "y = GRU<hidden_size=2>(t, w[1,6,3], r[1,6,2])"),
    Probe("bn-rnn", "-----?", "x[N,3,5] -> y | h = BN3(x); t = Transpose<perm=[2,0,1]>(h);"
          "y = RNN<hidden_size=2>(t, w[1,2,3], r[1,2,2], b[1,4])"),
    # axis 1 of what an LSTM reads is the batch
    Probe("bn-lstm-equal", "-----?",
          "x[5,3,3] -> y | h = BN3(x); y = LSTM<hidden_size=2>(h, w[1,8,3], r[1,8,2], b[1,16])", 1, "axis"),
    Probe("conv-relu-bn-conv", "-----+",
          "x[N,3,6,6] -> y | p = Conv(x, w[4,3,3,3], b[4]); r = Relu(p); h = BN4(r); y = Conv(h, v[2,4,3,3])"),
    Probe("conv-relu-bn-conv-padded", "-----?",
          "x[N,3,6,6] -> y | p = Conv(x, w[4,3,3,3]); r = Relu(p); h = BN4(r); y = Conv<pads=[1,1,1,1]>(h, v[2,4,3,3])",
          1, "padding"),
    Probe("conv-leakyrelu-bn-conv", "-----?",
          "x[N,3,6,6] -> y | p = Conv(x, w[4,3,3,3]); r = LeakyRelu(p); h = BN4(r); y = Conv(h, v[2,4,3,3])"),
    Probe("conv-sigmoid-bn-gemm", "-----?",
          "x[N,3,3,3] -> y | p = Conv(x, w[4,3,3,3]); r = Sigmoid(p); h = BN4(r); f = Flatten(h); y = Gemm(f, v[4,2])"),
    Probe("conv-clip-bn-conv", "-----?",
          "x[N,3,6,6] -> y | p = Conv(x, w[4,3,3,3]); r = Clip(p, lo[]={0.}, hi[]={6.}); h = BN4(r); "
          "y = Conv(h, v[2,4,1,1])"),
]  # fmt: skip
