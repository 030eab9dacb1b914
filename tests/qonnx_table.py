"""Weights that QONNX's ops round: models whose BatchNorm goes into their scale, and hostile twins where it can't.

The notation is that of `probe_text`, where `quant(...)` stands for one of QONNX's Quant ops and `bipolar(...)` for its
BipolarQuant; `code` is the reason of the BN that stays in the twin, 'reduced' where an Add or a Mul is left of it.
"""

from __future__ import annotations

from quantised_table import Row, Sum

CONV = "x[N,3,5,5] -> y | "
INTO = "h = Conv(x, d, b[4]); y = BN4(h)"
FLAT = "{0.1,-0.2,0.3,0.4,0.5,-0.6,0.7,0.8,0.9,0.1,-0.7,0.2}"
LOWEST = "{0.1,-0.2,0.3,-0.8,0.5,-0.6,0.7,0.7,0.7,0.1,-0.7,0.2}"  # -8 steps of 0.1 in a channel of negative gamma
HERE = "s[]={0.25}, z[]={0.0}, k[]={4.0}"
TIGHT = "s[]={0.1}, z[]={0.0}, k[]={4.0}"
ABOUT = "s[]={{0.1}}, z[]={{{}.0}}, k[]={{4.0}}".format
BIT = "s[]={0.1}, z[]={0.0}, k[]={1.0}"
KEPT = "quantised-weight"
PAIR = "x[N,3] -> y, z | d = quant(w[4,3]{}, s[]={{0.1}}, o[]={{0.0}}, k[]={{{}.0}}); h = Gemm<transB=1>(x, d); ".format

TABLE = {
    "one scale becomes one of each channel": Row(
        f"{CONV}d = quant(w[4,3,1,1], {HERE}); {INTO}",
        f"x[N,3,5,5] s[] -> y | d = quant(w[4,3,1,1], s, z[]={{0.0}}, k[]={{4.0}}); {INTO}", "dynamic-weight"),
    "scale of each channel": Row(
        f"{CONV}d = quant(w[4,3,1,1], s_var[4,1,1,1], z[]={{0.0}}, k[]={{4.0}}); {INTO}",
        f"x[N,3,5,5] k[] -> y | d = quant(w[4,3,1,1], s_var[4,1,1,1], z[]={{0.0}}, k); {INTO}", "dynamic-weight",
        values={"s_var": 0.25}),
    "scale along the inputs": Row(
        f"{CONV}d = quant(w[4,3,1,1], s_var[1,3,1,1], z[]={{0.0}}, k[]={{4.0}}); {INTO}",
        f"{CONV}d = quant(w[4,3,1,1], s_var[3,1,1], z[]={{0.0}}, k[]={{4.0}}); {INTO}", KEPT,
        values={"s_var": 0.25}),
    "scale of each element": Row(
        f"{CONV}d = quant(w[4,3,2,2], s_var[4,3,1,2], z[]={{0.0}}, k[]={{4.0}}); {INTO}",
        f"{CONV}d = quant(w[4,3,2,2], s_var[4,3,1,2], z[]={{0.5}}, k[]={{4.0}}); {INTO}", KEPT,
        values={"s_var": 0.25}),
    "negated integers": Row(
        f"{CONV}d = quant<narrow=1>(w[4,3,1,1]={LOWEST}, {TIGHT}); {INTO}",
        f"{CONV}d = quant<narrow=0>(w[4,3,1,1]={LOWEST}, {TIGHT}); {INTO}", "reduced"),
    "the lowest integer by default": Row(
        f"{CONV}d = quant(w[4,3,1,1]={FLAT}, {TIGHT}); {INTO}",
        f"{CONV}d = quant(w[4,3,1,1]={LOWEST}, {TIGHT}); {INTO}", "reduced"),
    "unsigned about a zero point": Row(
        f"{CONV}d = quant<signed=0>(w[4,3,1,1]={FLAT}, {ABOUT(8)}); {INTO}",
        f"{CONV}d = quant<signed=0>(w[4,3,1,1]={FLAT}, {ABOUT(3)}); {INTO}", "reduced"),
    "unsigned without zero point": Row(
        f"{CONV}d = quant<signed=0>(w[4,3,1,1]={FLAT}, {TIGHT}); h = Conv(x, d, b[4]); y = BN4+(h)",
        f"{CONV}d = quant<signed=0>(w[4,3,1,1]={FLAT}, {TIGHT}); {INTO}", "reduced"),
    "unsigned and narrow": Row(
        f"{CONV}d = quant<signed=0, narrow=1>(w[4,3,1,1]={FLAT}, {ABOUT(7)}); {INTO}",
        f"{CONV}d = quant<signed=0, narrow=1>(w[4,3,1,1]={FLAT}, {ABOUT(8)}); {INTO}", "reduced"),
    "zero point of each channel": Row(
        f"{CONV}d = quant(w[4,3,1,1]={FLAT}, s[]={{0.1}}, z[4,1,1,1]={{0.0,0.0,-1.0,2.0}}, k[]={{5.0}}); {INTO}",
        f"{CONV}d = quant(w[4,3,1,1]={FLAT}, s[]={{0.1}}, z[4,1,1,1]={{0.0,0.0,-1.0,12.0}}, k[]={{5.0}}); {INTO}",
        "reduced"),
    "1 bit": Row(
        f"{CONV}d = quant<signed=0>(w[4,3,1,1]={FLAT}, {BIT}); h = Conv(x, d, b[4]); y = BN4+(h)",
        f"{CONV}d = quant<signed=1>(w[4,3,1,1]={FLAT}, {BIT}); h = Conv(x, d, b[4]); y = BN4+(h)", KEPT),
    "width in bits": Row(
        f"{CONV}d = quant(w[4,3,1,1], s[]={{0.1}}, z[]={{0.0}}, k[1]={{8.0}}); {INTO}",
        f"{CONV}d = quant(w[4,3,1,1], s[]={{0.1}}, z[]={{0.0}}, k[]={{2.5}}); {INTO}", KEPT),
    "known rounding": Row(
        f"{CONV}d = quant<rounding_mode=\"floor\">(w[4,3,1,1], {HERE}); {INTO}",
        f"{CONV}d = quant<rounding_mode=\"dither\">(w[4,3,1,1], {HERE}); {INTO}", KEPT),
    "more digits than a float has": Row(
        f"{CONV}d = quant(w[4,3,1,1], s[]={{1e-5}}, z[]={{0.0}}, k[]={{20.0}}); {INTO}",
        f"{CONV}d = quant(w[4,3,1,1], s[]={{1e-9}}, z[]={{0.0}}, k[]={{32.0}}); {INTO}", "unrepresentable"),
    "Gemm": Row(
        f"x[N,3] -> y | d = quant(w[4,3], {HERE}); h = Gemm<transB=1, alpha=0.5, beta=0.25>(x, d, b[4]); y = BN4(h)",
        f"x[N,3] -> y | d = quant(w[3,4], {HERE}); t = Reshape(d, r:int64[2]={{4,3}}); "
        "h = Gemm<transB=1>(x, t, b[4]); y = BN4(h)", KEPT),
    "behind a Transpose": Row(
        "x[N,3] -> y | d = quant(w[4,3], s_var[4,1], z[1,3]={0.0,-1.0,1.0}, k[]={5.0}); t = Transpose(d); "
        "h = MatMul(x, t); y = BN4(h)",
        f"x[N,3] -> y | d = quant(w[4,3]={LOWEST}, {TIGHT}); t = Transpose(d); h = MatMul(x, t); y = BN4(h)", KEPT,
        values={"s_var": 0.25}),
    "floats that others make": Row(
        f"x[N,3] -> y | t = Transpose(w[4,3]); d = quant(t, {HERE}); h = MatMul(x, d); y = BN4(h)",
        f"x[N,3] w[3,4] -> y | t = Transpose(w); d = quant(t, {TIGHT}); h = Gemm<transB=1>(x, d); y = BN4(h)",
        "dynamic-weight"),
    "MatMul": Row(
        f"x[N,3] -> y | d = quant(w[3,4], {HERE}); h = MatMul(x, d); y = BN4(h)",
        f"x[N,3] -> y | d = quant<narrow=0>(w[3,4]={LOWEST}, {TIGHT}); h = MatMul(x, d); y = BN4(h)", KEPT),
    "ConvTranspose with groups": Row(
        f"x[N,4,4,4] -> y | d = quant(w[4,2,1,1], {HERE}); h = ConvTranspose<group=2>(x, d); y = BN4(h)",
        f"x[N,4,4,4] -> y | d = quant<signed=0>(w[4,2,1,1]={{0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8}}, {HERE}); "
        "h = ConvTranspose<group=2>(x, d); y = BN4(h)", "reduced"),
    "depthwise takes both": Row(
        f"x[N,4,5,5] -> y | g = BN4(x); d = quant(w[4,1,1,1], {HERE}); h = Conv<group=4>(g, d, b[4]); y = BN4(h)",
        f"x[N,4,5,5] -> y | g = BN4(x); d = quant(w[4,2,1,1], {HERE}); h = Conv<group=2>(g, d, b[4]); y = BN4(h)",
        "reduced"),
    "a shift and one factor in front": Row(
        f"{CONV}g = Add(x, c[3,1,1]); f = Mul(g, e[]); d = quant(w[4,3,1,1], {HERE}); y = Conv(f, d)",
        f"{CONV}g = Add(x, c[3,1,1]); f = Mul(g, e[3,1,1]); d = quant(w[4,3,1,1], {HERE}); y = Conv(f, d)", ""),
    "dead channels": Row(
        f"{CONV}d = quant<signed=0>(w[4,3,1,1]={FLAT}, {ABOUT(8)}); {INTO}",
        f"{CONV}d = quant<signed=0>(w[4,3,1,1]={FLAT}, {ABOUT(99)}); {INTO}", KEPT,
        values={"y_gamma": [1.0, 0.0, -2.0, 0.0]}),
    "dead columns": Row(
        f"{CONV}e = Conv(x, v[3,3,1,1]); g = BN3(e); r = Relu(g); d = quant(w[4,3,1,1], {HERE}); y = Conv(r, d)",
        f"{CONV}e = Conv(x, v[3,3,1,1]); k = Relu(e); g = BN3(k); u = Relu(g); i = Sigmoid(k); r = Add(u, i); "
        f"d = quant(w[4,3,1,1], s[]={{0.1}}, z[]={{0.0}}, n[]={{4.0}}); y = Conv(r, d)", "dead-channel",
        values={"g_gamma": [1.0, 0.0, 2.0]}),
    "two readers of the weight": Row(
        f"{PAIR('', 6)}y = BN4(h); g = Gemm<transB=1>(x, d, b[4]); z = BN4(g)",
        f"{PAIR(f'={LOWEST}', 4)}y = BN4(h); z = Gemm<transB=1>(x, d, b[4])", "reduced"),
    "two readers, one BN": Row(
        f"{PAIR('', 6)}y = BN4(h); z = Gemm<transB=1>(x, d, b[4])",
        f"{PAIR(f'={LOWEST}', 4)}y = BN4(h); g = Gemm<transB=1>(x, d, b[4]); z = BN4+(g)", "reduced"),
    "floats that two share": Row(
        f"{PAIR('', 6)}y = BN4(h); e = quant(w, t[]={{0.2}}, o, k); z = Gemm<transB=1>(x, e)",
        f"{PAIR(f'={LOWEST}', 4)}y = BN4(h); z = Gemm<transB=1>(x, w)", "reduced"),
    "a weight that is seen": Row(
        f"x[N,3,5,5] -> y, d | d = quant(w[4,3,1,1], {HERE}); {INTO}",
        f"x[N,3,5,5] -> y, h | d = quant(w[4,3,1,1], {HERE}); {INTO}", "graph-output"),
    "in a body": Row(
        f"x[N,3,5,5] c:bool[] -> y | y = If(c) <then_branch = t () => (float[N,4,5,5] p) {{ "
        f"d = quant(w[4,3,1,1], {HERE}); g = Conv(x, d); p = BN4(g) }}, else_branch = e () => (float[N,4,5,5] r) {{ "
        "f = quant(w, s, z, k); r = Conv(x, f) }>",
        f"x[N,3,5,5] c:bool[] -> y | d = quant(w[4,3,1,1], {HERE}); y = If(c) <then_branch = t () => "
        "(float[N,4,5,5] p) { g = Conv(x, d); p = BN4(g) }, "
        "else_branch = e () => (float[N,4,5,5] r) { r = Conv(x, d) }>",
        KEPT),
    "bias, only multiplied": Row(
        f"{CONV}d = quant(w[4,3,1,1], {HERE}); c = quant(b[4], t[]={{0.01}}, z, e[]={{8.0}}); h = Conv(x, d, c); "
        "y = Mul(h, m[4,1,1])",
        f"x[N,3,5,5] b[4] -> y | d = quant(w[4,3,1,1], {HERE}); c = quant(b, t[]={{0.01}}, z, e[]={{8.0}}); "
        "h = Conv(x, d, c); y = Mul(h, m[4,1,1])", ""),
    "bias of a dead channel": Row(
        f"{CONV}d = quant(w[4,3,1,1], {HERE}); c = quant(b[4], t[]={{0.01}}, z, e[]={{8.0}}); h = Conv(x, d, c); "
        "y = Mul(h, m[4,1,1]={1.0,0.0,-3.0,0.0})",
        f"x[N,3,5,5] t[] -> y | d = quant(w[4,3,1,1], {HERE}); c = quant(b[4], t, z, e[]={{8.0}}); h = Conv(x, d, c); "
        "y = Mul(h, m[4,1,1]={1.0,0.0,-3.0,0.0})", ""),
    "bias that takes a shift": Row(
        f"{CONV}d = quant(w[4,3,1,1], {HERE}); c = quant(b[4], t[]={{0.01}}, z, e[]={{8.0}}); h = Conv(x, d, c); "
        "y = BN4(h)",
        f"x[N,3,5,5] t[] -> y | d = quant(w[4,3,1,1], {HERE}); c = quant(b[4], t, z, e[]={{8.0}}); h = Conv(x, d, c); "
        "y = BN4(h)", "dynamic-bias"),
    "bias without a negative": Row(
        f"{CONV}d = quant(w[4,3,1,1], {HERE}); c = quant(b[4]={{1.0,-1.28,0.5,-1.28}}, t[]={{0.01}}, z, e[]={{8.0}}); "
        "h = Conv(x, d, c); y = Mul(h, m[4,1,1]={1.0,-2.0,3.0,-4.0})",
        f"{CONV}d = quant(w[4,3,1,1], {HERE}); c = quant(b[4], t[]={{0.01}}, z, e[]={{8.5}}); h = Conv(x, d, c); "
        "y = Mul(h, m[4,1,1])", ""),
    "bias of signs": Row(
        f"{CONV}d = quant(w[4,3,1,1], {HERE}); c = bipolar(b[4], t[]={{0.01}}); h = Conv(x, d, c); "
        "y = Mul(h, m[4,1,1]={1.0,-2.0,0.0,-4.0})",
        f"x[N,3,5,5] b[4] -> y | d = quant(w[4,3,1,1], {HERE}); c = bipolar(b, t[]={{0.01}}); h = Conv(x, d, c); "
        "y = Mul(h, m[4,1,1])", ""),
    "bias in the steps of an integer kernel": Row(
        f"{CONV}u = QuantizeLinear(x, i[]={{0.5}}, j:uint8[]={{128}}); f = DequantizeLinear(u, i, j); "
        f"d = quant(w[4,3,1,1], {HERE}); c = quant(b[4], t[]={{0.125}}, z, e[]={{8.0}}); h = Conv(f, d, c); y = BN4(h)",
        f"{CONV}u = QuantizeLinear(x, i[]={{0.5}}, j:uint8[]={{128}}); f = DequantizeLinear(u, i, j); "
        f"d = quant(w[4,3,1,1], {HERE}); h = Conv(f, d); v = QuantizeLinear(h, i, j); g = DequantizeLinear(v, i, j); "
        "y = BN4(g)", "quantised-values"),
    "signs": Row(
        f"{CONV}d = bipolar(w[4,3,1,1], s[]={{0.1}}); {INTO}",
        f"x[N,3,5,5] w[4,3,1,1] -> y | d = bipolar(w, s[]={{0.1}}); {INTO}", "dynamic-weight"),
    "signs of zeros": Row(
        f"{CONV}d = bipolar(w[4,3,1,1]={{0,-0.2,0.3,0,0.5,-0.6,-0.0,0.8,0,-0.0,-0.7,0}}, s_var[4,1,1,1]); {INTO}",
        f"{CONV}d = bipolar(w[4,3,1,1], s_var[4,3]); {INTO}", KEPT),
    "signs of dead channels": Row(
        f"{CONV}d = bipolar(w[4,3,1,1], s[]={{0.1}}); {INTO}",
        f"{CONV}d = bipolar(w[4,3,1,1], s[]={{0.1}}); h = Conv(x, d, b[4]); p = BN4(h); y = Add(p, h)",
        "dead-channel", values={"y_gamma": [1.0, 0.0, -2.0, 0.0], "p_gamma": [1.0, 0.0, -2.0, 0.0]}),
    "signs of dead columns": Row(
        f"{CONV}e = Conv(x, v[3,3,1,1]); g = BN3(e); r = Relu(g); d = bipolar(w[4,3,1,1], s[]={{0.1}}); y = Conv(r, d)",
        f"{CONV}e = Conv(x, v[3,3,1,1]); k = Relu(e); g = BN3(k); u = Relu(g); i = Sigmoid(k); r = Add(u, i); "
        "d = bipolar(w[4,3,1,1], s[]={0.1}); y = Conv(r, d)", "dead-channel", values={"g_gamma": [1.0, 0.0, 2.0]}),
}  # fmt: skip

# Computed values that are rounded: how many per-channel operations are left, and which.
ROUNDED = "x[N,3,5,5] -> y | c = Conv(x, w[4,3,1,1]); "
SUMS = {
    "one scale goes through": Sum(
        f"{ROUNDED}q = quant(c, s[]={{0.25}}, z[]={{1.0}}, k[]={{6.0}}); r = Relu(q); y = Mul(r, m[]={{2.5}})", 0, []),
    "not a negative one": Sum(
        f"{ROUNDED}q = quant(c, s[]={{0.25}}, z[]={{1.0}}, k[]={{6.0}}); y = Mul(q, m[]={{-2.5}})", 1, ["Mul"]),
    "not one of each channel": Sum(
        f"{ROUNDED}q = quant(c, s[]={{0.25}}, z[]={{1.0}}, k[]={{6.0}}); y = BN4(q)", 1, ["BatchNormalization"]),
    "not a BN that only shifts": Sum(
        f"{ROUNDED}q = quant(c, s[]={{0.25}}, z[]={{1.0}}, k[]={{6.0}}); "
        "y = BatchNormalization<epsilon=0.0>(q, g[4]={1,1,1,1}, e[4], m[4], v[4]={1,1,1,1})", 1, ["Add"]),
    "not a shift": Sum(
        f"{ROUNDED}q = quant(c, s[]={{0.25}}, z[]={{1.0}}, k[]={{6.0}}); y = Add(q, m[]={{2.5}})", 1, ["Add"]),
    "not a shift from in front": Sum(
        "x[N,3,5,5] -> y | a = Add(x, c[3,1,1]); q = quant(a, s[]={0.25}, z[]={1.0}, k[]={6.0}); "
        "y = Conv(q, v[2,3,1,1])",
        1, ["Add"]),
    "not into scales of each channel": Sum(
        f"{ROUNDED}q = quant(c, s_var[4,1,1], z[]={{1.0}}, k[]={{6.0}}); y = Mul(q, m[]={{2.5}})", 1, ["Mul"]),
    "not through signs": Sum(f"{ROUNDED}q = bipolar(c, s[]={{0.25}}); y = Mul(q, m[]={{2.5}})", 1, ["Mul"]),
    "in front of it, a BN goes": Sum(
        f"{ROUNDED}b = BN4(c); q = quant(b, s[]={{0.25}}, z[]={{1.0}}, k[]={{6.0}}); y = Conv(q, v[2,4,1,1])", 0, []),
    "what others truncate stays": Sum(
        f"{ROUNDED}q = onnx.brevitas.Trunc(c, s[]={{0.25}}, z[]={{1.0}}, k[]={{6.0}}, j[]={{4.0}}); y = BN4(q)", 1,
        ["BatchNormalization"]),
}  # fmt: skip
