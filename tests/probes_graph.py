"""The rows of the probe table about what lies between: forks, joins, layout, pools, activations, constants."""

from __future__ import annotations

from probe_text import Probe, as_output

# --------------------------------------------------------------------- joins and forks: every reader has a say
BRANCHES = [
    Probe("concat-convs", "------",
          "x[N,3,6,5] -> y | p = Conv(x, w[2,3,3,3], b[2]); q = Conv(x, v[4,3,3,3]); c = Concat<axis=1>(p, q); "
          "y = BN6(c)"),
    Probe("concat-axis-2", "-----?",
          "x[N,3,6,5] -> y | p = Conv(x, w[4,3,3,3]); q = Conv(x, v[4,3,3,3]); c = Concat<axis=2>(p, q); y = BN4(c)"),
    Probe("concat-conv-also-conv", "-----?",
          "x[N,3,6,5] -> y, z | p = Conv(x, w[2,3,3,3]); q = Conv(x, v[4,3,3,3]); c = Concat<axis=1>(p, q); y = BN6(c);"
          "z = Conv(p, u[2,2,3,3])"),
    Probe("concat-conv-also-padded", "-----?",
          "x[N,3,6,5] -> y, z | p = Conv(x, w[2,3,3,3]); q = Conv(x, v[4,3,3,3]); c = Concat<axis=1>(p, q); y = BN6(c);"
          "z = Conv<pads=[1,1,1,1]>(p, u[2,2,3,3])", 1, "padding"),
    Probe("concat-conv-also-output", "-----?",
          "x[N,3,6,5] -> y, p | p = Conv(x, w[2,3,3,3]); q = Conv(x, v[4,3,3,3]); c = Concat<axis=1>(p, q); y = BN6(c)",
          1, "output"),
    Probe("concat-input", "-----?",
          "x[N,2,6,5] -> y | p = Conv(x, w[4,2,1,1]); c = Concat<axis=1>(x, p); y = BN6(c)", 1, "input"),
    Probe("concat-input-conv", "-----?",
          "x[N,2,6,5] -> y | p = Conv(x, w[4,2,1,1]); c = Concat<axis=1>(x, p); h = BN6(c); y = Conv(h, v[3,6,3,3])"),
    Probe("add-convs", "------",
          "x[N,3,6,5] -> y | p = Conv(x, w[4,3,3,3], b[4]); q = Conv(x, v[4,3,3,3]); s = Add(p, q); y = BN4(s)"),
    Probe("sub-convs", "-----?",
          "x[N,3,6,5] -> y | p = Conv(x, w[4,3,3,3], b[4]); q = Conv(x, v[4,3,3,3]); s = Sub(p, q); y = BN4(s)"),
    Probe("sum-convs", "-----?",
          "x[N,3,6,5] -> y | p = Conv(x, w[4,3,1,1]); q = Conv(x, v[4,3,1,1]); r = Conv(x, u[4,3,1,1], b[4]);"
          "s = Sum(p, q, r); y = BN4(s)"),
    Probe("add-same-twice", "-----?", "x[N,3,6,5] -> y | p = Conv(x, w[4,3,3,3]); s = Add(p, p); y = BN4(s)"),
    Probe("add-input", "-----?", "x[N,4,6,5] -> y | p = Conv(x, w[4,4,1,1]); s = Add(p, x); y = BN4(s)", 1, "input"),
    Probe("max-convs", "-----?",
          "x[N,3,6,5] -> y | p = Conv(x, w[4,3,3,3]); q = Conv(x, v[4,3,3,3]); s = Max(p, q); y = BN4+(s)"),
    Probe("max-convs-negative", "-----?",
          "x[N,3,6,5] -> y | p = Conv(x, w[4,3,3,3]); q = Conv(x, v[4,3,3,3]); s = Max(p, q); y = BN4(s)", 1, "sign"),
    Probe("split-bn-bn", "------",
          "x[N,3,6,5] -> y, z | h = Conv(x, w[8,3,3,3], b[8]); p, q = Split<axis=1>(h); y = BN4(p); z = BN4(q)"),
    # both halves of the picture are the same channels: one of the two can go, the other absorbs
    Probe("split-rows-bn-bn", "-----?",
          "x[N,4,6,6] -> y, z | h = Conv(x, w[4,4,3,3]); p, q = Split<axis=2>(h); y = BN4(p); z = BN4(q)",
          1, "conflict"),
    Probe("slice-bn", "-----?",
          "x[N,3,6,5] -> y | h = Conv(x, w[6,3,3,3]); s = Slice(h, a:int64[1]={1}, e:int64[1]={5}, k:int64[1]={1});"
          "y = BN4(s)"),
    Probe("gather-shuffle-bn", "-----?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3], b[4]); g = Gather<axis=1>(h, i:int64[4]={2,0,3,1}); y = BN4(g)"),
    Probe("gather-repeat-bn", "-----?",
          "x[N,3,6,5] -> y | h = Conv(x, w[3,3,3,3]); g = Gather<axis=1>(h, i:int64[4]={0,0,1,2}); y = BN4(g)",
          1, "conflict"),
    Probe("shuffle-bn", "-----?",
          "x[N,3,4,4] -> y | h = Conv(x, w[6,3,1,1], b[6]); r = Reshape(h, a:int64[5]={-1,2,3,4,4});"
          "t = Transpose<perm=[0,2,1,3,4]>(r); s = Reshape(t, c:int64[4]={-1,6,4,4}); y = BN6(s)"),
    Probe("conv-two-bns", "-----?",
          "x[N,3,6,5] -> y, z | h = Conv(x, w[4,3,3,3]); y = BN4(h); z = BN4(h)", 1, "conflict"),
    Probe("conv-two-equal-bns", "----+?",
          "x[N,3,6,5] -> y, z | h = Conv(x, w[4,3,3,3]); y = BatchNormalization(h, g[4], b[4], m[4], v_var[4]);"
          "z = BatchNormalization(h, g, b, m, v_var)"),
    Probe("conv-also-conv", "-----?",
          "x[N,3,6,5] -> y, z | h = Conv(x, w[4,3,3,3]); y = BN4(h); z = Conv(h, v[2,4,1,1])"),
    Probe("conv-also-padded-conv", "-----?",
          "x[N,3,6,5] -> y, z | h = Conv(x, w[4,3,3,3]); y = BN4(h); "
          "z = Conv<pads=[1,1,1,1]>(h, v[2,4,3,3])", 1, "padding"),
    Probe("conv-also-output", "-----x", "x[N,3,6,5] -> y, h | h = Conv(x, w[4,3,3,3]); y = BN4(h)", 1, "output"),
    Probe("residual-preact", "-----?",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,1,1]); a = BN4+(h); r = Relu(a); "
          "p = Conv<pads=[1,1,1,1]>(r, v[4,4,3,3]); s = Add(p, h); c = BN4+(s); d = Relu(c); "
          "y = Conv<pads=[1,1,1,1]>(d, u[2,4,3,3])"),
    # one stored stream can't be a positive and a negative multiple of what two Relus read
    Probe("residual-preact-negative", "-----?",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,1,1]); a = BN4+(h); r = Relu(a); "
          "p = Conv<pads=[1,1,1,1]>(r, v[4,4,3,3]); s = Add(p, h); c = BN4(s); d = Relu(c); "
          "y = Conv<pads=[1,1,1,1]>(d, u[2,4,3,3])", 1, "sign"),
    Probe("shared-weight", "++++--",
          "x[N,3,6,5] z[N,3,4,4] -> y, t | h = Conv(x, w[4,3,3,3]); y = BN4(h); k = Conv(z, w); t = BN4(k)"),
    Probe("shared-weight-same-bn", "++++-?",
          "x[N,3,6,5] z[N,3,4,4] -> y, t | h = Conv(x, w[4,3,3,3]); "
          "y = BatchNormalization(h, g[4], b[4], m[4], v_var[4]);"
          "k = Conv(z, w); t = BatchNormalization(k, g, b, m, v_var)"),
    Probe("shared-weight-one-bn", "++++-?",
          "x[N,3,6,5] z[N,3,4,4] -> y, t | h = Conv(x, w[4,3,3,3]); y = BN4(h); t = Conv(z, w)"),
    Probe("shared-bias", "+++++?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3], b[4]); y = BatchNormalization(h, b, b, b, v_var[4])"),
    Probe("weight-is-output", "++++x?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); y = BN4(h)", edit=as_output("w")),
]  # fmt: skip

# ---------------------------------------------- through nodes without weights: may the scale pass, may the shift?
THROUGH = [
    Probe("averagepool", "------",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,3,3]); p = AveragePool<kernel_shape=[2,2]>(h); y = BN4(p)"),
    Probe("averagepool-padded", "-----?",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,3,3]); p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(h); "
          "y = BN4(p)"),
    # counted zeros take part in the mean
    Probe("averagepool-counted-pads", "-----?",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,3,3]); "
          "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(h);"
          "y = BN4(p)", 1, "padding"),
    Probe("maxpool", "------",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,3,3]); p = MaxPool<kernel_shape=[2,2]>(h); y = BN4+(p)"),
    Probe("maxpool-padded", "-----?",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,3,3]); p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(h); y = BN4+(p)"),
    Probe("maxpool-negative", "-----?",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,3,3]); p = MaxPool<kernel_shape=[2,2]>(h); y = BN4(p)", 1, "sign"),
    Probe("globalaveragepool", "-----?",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,3,3]); p = GlobalAveragePool(h); y = BN4(p)"),
    Probe("globalmaxpool", "-----?", "x[N,3,6,6] -> y | h = Conv(x, w[4,3,3,3]); p = GlobalMaxPool(h); y = BN4+(p)"),
    Probe("reducemean", "-----?",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,3,3]); p = ReduceMean<axes=[2,3], keepdims=0>(h); y = BN4(p)"),
    Probe("reducesum", "-----?",
          "x[N,3,6,6] -> y | h = Conv(x, w[4,3,3,3]); p = ReduceSum<keepdims=0>(h, a:int64[2]={2,3}); y = BN4(p)"),
    Probe("resize-nearest", "------",
          'x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); p = Resize<mode="nearest">(h, "", k:float[4]={1,1,2,2}); '
          'y = BN4(p)'),
    Probe("resize-linear", "------",
          'x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); p = Resize<mode="linear">(h, "", k:float[4]={1,1,2,2}); '
          'y = BN4(p)'),
    Probe("resize-cubic", "-----?",
          'x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); p = Resize<mode="cubic">(h, "", k:float[4]={1,1,2,2}); '
          'y = BN4(p)'),
    # what lies outside of the picture is 0.3, not a channel's own value
    Probe("resize-crop", "-----?",
          'x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); p = Resize<mode="linear", extrapolation_value=0.3, '
          'coordinate_transformation_mode="tf_crop_and_resize">'
          '(h, o:float[8]={0,0,-0.5,0,1,1,1.5,1}, k:float[4]={1,1,2,1}); y = BN4(p)', 1, "padding"),
    Probe("transpose-hw", "------",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); t = Transpose<perm=[0,1,3,2]>(h); y = BN4(t)"),
    Probe("transpose-channel-equal", "-----?",
          "x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); t = Transpose<perm=[0,2,1,3]>(h); y = BN4(t)", 1, "axis"),
    Probe("flatten", "-----?", "x[N,3,3,3] -> y | h = Conv(x, w[4,3,3,3]); f = Flatten(h); y = BN4(f)"),
    # a BatchNorm over pixels, not over channels
    Probe("flatten-pixels", "-----?",
          "x[N,3,4,3] -> y | h = Conv(x, w[2,3,3,3]); f = Flatten(h); y = BN4(f)", 1, "conflict"),
    Probe("flatten-pixels-gemm", "-----?",
          "x[N,3,4,3] -> y | h = Conv(x, w[2,3,3,3]); f = Flatten(h); g = BN4(f); y = Gemm(g, v[4,2], b[2])"),
    Probe("unsqueeze-squeeze", "-----?",
          "x[N,3] -> y | h = Gemm(x, w[3,4], b[4]); u = Unsqueeze(h, a:int64[1]={2}); g = BN4(u); y = Squeeze(g, a)"),
    Probe("expand", "-----?",
          "x[N,3,3,3] -> y | h = Conv(x, w[4,3,3,3]); e = Expand(h, k:int64[4]={1,4,2,3}); y = BN4(e)"),
    Probe("tile", "-----?", "x[N,3,3,3] -> y | h = Conv(x, w[4,3,3,3]); e = Tile(h, k:int64[4]={1,1,2,3}); y = BN4(e)"),
    Probe("tile-channels", "-----?",
          "x[N,3,3,3] -> y | h = Conv(x, w[2,3,1,1]); e = Tile(h, k:int64[4]={1,2,1,1}); y = BN4(e)", 1, "conflict"),
    Probe("depthtospace", "-----?",
          "x[N,3,4,4] -> y | h = Conv(x, w[8,3,1,1], b[8]); d = DepthToSpace<blocksize=2>(h); y = BN2(d)"),
    Probe("depthtospace-crd", "-----?",
          'x[N,3,4,4] -> y | h = Conv(x, w[8,3,1,1]); d = DepthToSpace<blocksize=2, mode="CRD">(h); y = BN2(d)'),
    Probe("spacetodepth", "-----?",
          "x[N,3,4,4] -> y | h = Conv(x, w[2,3,1,1]); d = SpaceToDepth<blocksize=2>(h); y = BN8(d)", 1, "conflict"),
    Probe("identity", "+-+++?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); i = Identity(h); y = BN4(i)"),
    Probe("dropout", "+-++++", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); d = Dropout(h); y = BN4(d)"),
    Probe("cast-double", "------", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); c = Cast<to=11>(h);"
          "d = BatchNormalization(c, g:double[4], b:double[4], m:double[4], v_var:double[4]); y = Cast<to=1>(d)"),
    Probe("cast-half", "-----?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); c = Cast<to=10>(h);"
          "d = BatchNormalization(c, g:float16[4], b:float16[4], m:float16[4], v_var:float16[4]); y = Cast<to=1>(d)"),
    Probe("cast-integer", "-----?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); c = Cast<to=6>(h); d = Cast<to=1>(c); y = BN4(d)", 1, "fixed"),
    Probe("neg", "-----?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); n = Neg(h); y = BN4(n)"),
    Probe("abs", "-----?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); n = Abs(h); y = BN4(n)", 1, "fixed"),
    Probe("relu", "-----?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); r = Relu(h); y = BN4+(r)", 1, "relu"),
    Probe("relu-negative", "-----?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); r = Relu(h); y = BN4(r)", 1, "sign"),
    Probe("prelu", "-----?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); r = PRelu(h, s[4,1,1]); y = BN4+(r)", 1, "relu"),
    Probe("tanh", "-----?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); r = Tanh(h); y = BN4(r)", 1, "fixed"),
    Probe("softmax", "-----?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); r = Softmax<axis=1>(h); y = BN4(r)", 1, "fixed"),
    Probe("swish", "+++++?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); a = BN4(h); s = Sigmoid(a); y = Mul(a, s)"),
    # a gate that changes from picture to picture scales the shift, too
    Probe("gate", "-----?",
          "x[N,3,6,5] g[N,4,1,1] -> y | h = Conv(x, w[4,3,3,3]); a = Mul(h, g); y = BN4(a)", 1, "gate"),
    Probe("gate-conv", "-----?",
          "x[N,3,6,5] g[N,4,1,1] -> y | h = Conv(x, w[4,3,3,3]); a = Mul(h, g); c = BN4(a); y = Conv(c, v[2,4,1,1])"),
]  # fmt: skip

# ----------------------------------------------------- Mul, Add, Sub, Div by constants: BatchNorm taken to pieces
CHAINS = [
    Probe("bn-bn", "------", "x[N,3,6,5] -> y | h = BN3(x); y = BN3(h)", 1, "input"),
    Probe("conv-bn-bn", "+~+++?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); a = BN4(h); y = BN4(a)"),
    Probe("conv-add-bn", "+-++--", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); a = Add(h, k[1,4,1,1]); y = BN4(a)"),
    Probe("conv-add-rank-3-bn", "-----?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); a = Add(k[4,1,1], h); y = BN4(a)"),
    Probe("conv-mul-add", "+-~+--",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3], b[4]); a = Mul(h, k[1,4,1,1]); y = Add(a, l[1,4,1,1])"),
    Probe("conv-sub-div-mul-add", "------",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); a = Sub(h, k[1,4,1,1]); c = Div(a, d_var[1,4,1,1]); "
          "e = Mul(c, f[1,4,1,1]); y = Add(e, g[1,4,1,1])"),
    Probe("conv-constant-minus", "-----?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); a = Sub(k[1,4,1,1], h); y = BN4(a)"),
    Probe("conv-constant-over", "-----?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3], b[4]); a = Exp(h); c = Div(k[1,4,1,1], a); "
          "y = BN4(c)", 1, "fixed"),
    Probe("conv-mul-scalar-bn", "+-+--?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); a = Mul(h, k[]); y = BN4(a)"),
    Probe("conv-mul-per-width", "---x-?", "x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); y = Mul(h, k[4])", 1, "axis"),
    Probe("conv-mul-per-height", "---x-?",
          "x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); y = Mul(h, k[1,1,4,1])", 1, "axis"),
    # a[c] * (h + k[w]) + b[c] needs a constant per channel and column; 1 is enough, 2 is not wrong
    Probe("conv-add-per-width-bn", "-----?",
          "x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); a = Add(h, k[4]); y = BN4(a)", 2, "axis"),
    Probe("conv-nhwc-mul-add", "+----?",
          "x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); t = Transpose<perm=[0,2,3,1]>(h); a = Mul(t, k[4]); "
          "c = Add(a, l[4]); y = Transpose<perm=[0,3,1,2]>(c)"),
    # tf2onnx's trap: the shapes fit, the axis is the height
    Probe("conv-transpose-mul-add-equal", "-----?",
          "x[N,3,4,4] -> y | h = Conv(x, w[4,3,1,1]); t = Transpose<perm=[0,2,1,3]>(h); a = Mul(t, k[1,4,1,1]);"
          "c = Add(a, l[1,4,1,1]); r = Relu(c); y = Transpose<perm=[0,2,1,3]>(r)", 2, "axis"),
    Probe("mul-add-conv", "-----?",
          "x[N,3,6,5] -> y | a = Mul(x, k[3,1,1]); h = Add(a, l[3,1,1]); y = Conv(h, w[4,3,3,3])"),
    Probe("matmul-add-mul-add", "-----?",
          "x[N,3] -> y | p = MatMul(x, w[3,4]); h = Add(p, b[4]); a = Mul(h, k[4]); y = Add(a, l[4])"),
]  # fmt: skip
