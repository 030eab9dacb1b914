"""Weights kept as integers: models whose BatchNorm goes into their scale, and hostile twins where it can't.

`good` and `bad` are models in the notation of `probe_text`; `code` is the reason of the BN that stays in the twin,
'reduced' where an Add or a Mul is left of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from probe_text import Probe

CONV = "x[N,3,5,5] -> y | "
Q = "q:int8[4,3,1,1]={1,-2,3,4,5,-6,7,8,9,10,-11,12}"
FLAT = "{1,-2,3,4,5,-6,7,8,9,10,-11,12}"
INTO = "h = Conv(x, d, b[4]); y = BN4(h)"
STIFF = "{1,-2,3,-128,5,-6,7,8,9,10,-11,12}"  # -128 in a channel of negative gamma
KEPT = "quantised-weight"


class Row(NamedTuple):
    good: str
    bad: str
    code: str
    opset: int = 17
    bad_opset: int | None = None
    values: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it)


TABLE = {
    "scale of each channel": Row(
        f"{CONV}d = DequantizeLinear<axis=0>({Q}, s_var[4], z:int8[4]={{0,0,0,0}}); {INTO}",
        "x[N,4,5,5] -> y | d = DequantizeLinear<axis=1>(q:int8[4,4,1,1]={1,-2,3,4,5,-6,7,8,9,10,-11,12,1,2,3,4}, "
        "s_var[4], z:int8[4]={0,0,0,0}); h = Conv(x, d, b[4]); y = BN4(h)", "reduced"),
    "one scale becomes one of each channel": Row(
        f"{CONV}d = DequantizeLinear({Q}, s_var[], z:int8[]={{3}}); {INTO}",
        f"{CONV}d = DequantizeLinear({Q}, s_var[], z:int8[]={{3}}); {INTO}", "reduced", 13, 12),
    "negated integers": Row(
        f"{CONV}d = DequantizeLinear<axis=0>(q:int8[4,3,1,1]={{-128,-2,3,4,5,-6,7,-128,9,10,-11,12}}, s_var[4]); {INTO}",
        f"{CONV}d = DequantizeLinear<axis=0>(q:int8[4,3,1,1]={STIFF}, s_var[4]); {INTO}", "reduced"),
    "negated about a zero point": Row(
        f"{CONV}d = DequantizeLinear<axis=0>(q:uint8[4,3,1,1]={{1,2,3,128,5,6,7,8,9,10,11,12}}, s_var[4], "
        f"z:uint8[4]={{100,128,3,9}}); {INTO}",
        f"{CONV}d = DequantizeLinear<axis=0>(q:uint8[4,3,1,1]={{1,2,3,201,5,6,7,8,9,10,11,12}}, s_var[4], "
        f"z:uint8[4]={{100,100,3,9}}); {INTO}", "reduced"),
    "int16": Row(
        f"{CONV}d = DequantizeLinear<axis=0>(q:int16[4,3,1,1]={{1,2,3,-32767,5,6,7,7,0,1,1,2}}, s_var[4]); {INTO}",
        f"{CONV}d = DequantizeLinear<axis=0>(q:int16[4,3,1,1]={{1,2,3,-32768,5,6,7,7,0,1,1,2}}, s_var[4]); {INTO}",
        "reduced", 21),
    "8-bit floats": Row(
        f"{CONV}d = DequantizeLinear<axis=0>(q:float8e4m3fn[4,3,1,1], s_var[4]); {INTO}",
        f"{CONV}d = DequantizeLinear<axis=2>(q:float8e4m3fn[4,3,2,1], s_var[2]); {INTO}", "reduced", 19),
    "Gemm": Row(
        f"x[N,3] -> y | d = DequantizeLinear<axis=0>(q:int8[4,3]={FLAT}, s_var[4]); "
        "h = Gemm<transB=1, alpha=0.5, beta=0.25>(x, d, b[4]); y = BN4(h)",
        f"x[N,3] -> y | d = DequantizeLinear<axis=0>(q:int8[3,4]={FLAT}, s_var[3]); h = Gemm(x, d, b[4]); y = BN4(h)",
        "reduced"),
    "MatMul": Row(
        f"x[N,3] -> y | d = DequantizeLinear<axis=-1>(q:int8[3,4]={FLAT}, s_var[4]); h = MatMul(x, d); y = BN4(h)",
        f"x[N,3] -> y | d = DequantizeLinear<axis=-2>(q:int8[3,4]={FLAT}, s_var[3]); h = MatMul(x, d); y = BN4(h)", KEPT),
    "MatMul on the left": Row(
        f"x[3,5] -> y | d = DequantizeLinear(q:int8[4,3]={FLAT}, s_var[]); h = MatMul(d, x); y = Mul(h, m[4,1])",
        f"x[3,5] -> y | d = DequantizeLinear<axis=1>(q:int8[4,3]={FLAT}, s_var[3]); h = MatMul(d, x); y = Mul(h, m[4,1])",
        ""),
    "MatMul with heads": Row(
        "x[2,4,3] -> y | d = DequantizeLinear(q:int8[1,3,2]={1,2,-3,4,5,6}, s_var[]); h = MatMul(x, d); y = Mul(h, m[2])",
        "x[2,4,3] -> y | d = DequantizeLinear(q:int8[2,3,2]={1,2,-3,4,5,6,7,8,9,1,2,3}, s_var[]); h = MatMul(x, d); "
        "y = Mul(h, m[2])", ""),
    "blocks of a row": Row(
        f"x[N,6] -> y | d = DequantizeLinear<axis=0, block_size=2>(q:int8[6,2]={FLAT}, s_var[3,2]); "
        "h = Gemm(x, d, b[2]); y = BN2(h)",
        f"x[N,3] -> y | d = DequantizeLinear<axis=1, block_size=2>(q:int8[3,4]={FLAT}, s_var[3,2]); "
        "h = Gemm(x, d, b[4]); y = BN4(h)", "reduced", 21),
    "blocks with a zero point": Row(
        f"x[N,6] -> y | d = DequantizeLinear<axis=0, block_size=2>(q:int8[6,2]={FLAT}, s_var[3,2], "
        "z:int8[3,2]={1,2,3,4,5,6}); h = Gemm(x, d, b[2]); y = BN2(h)",
        f"x[N,6] -> y | d = DequantizeLinear<axis=0, block_size=2>(q:int8[6,2]={FLAT}, s_var[3,2], "
        "z:int8[3,2]={1,2,3,4,5,-64}); h = Gemm(x, d, b[2]); y = BN2(h)", "reduced", 21),
    "ConvTranspose": Row(
        f"x[N,3,4,4] -> y | d = DequantizeLinear<axis=1>(q:int8[3,4,1,1]={FLAT}, s_var[4]); "
        "h = ConvTranspose(x, d); y = BN4(h)",
        "x[N,4,4,4] -> y | d = DequantizeLinear<axis=1>(q:int8[4,2,1,1]={1,-2,3,4,5,-6,7,8}, s_var[2]); "
        "h = ConvTranspose<group=2>(x, d); y = BN4(h)", "reduced"),
    "depthwise takes both": Row(
        "x[N,4,5,5] -> y | g = BN4(x); d = DequantizeLinear<axis=0>(q:int8[4,1,1,1]={1,-2,3,4}, s_var[4]); "
        "h = Conv<group=4>(g, d, b[4]); y = BN4(h)",
        "x[N,4,5,5] -> y | g = BN4(x); d = DequantizeLinear<axis=0>(q:int8[4,2,1,1]={1,-2,3,4,1,2,3,4}, s_var[4]); "
        "h = Conv<group=2>(g, d, b[4]); y = BN4(h)", "reduced"),
    "one factor in front": Row(
        f"{CONV}g = Mul(x, c[]); d = DequantizeLinear<axis=0>({Q}, s_var[4]); y = Conv(g, d)",
        f"{CONV}g = Mul(x, c[3,1,1]); d = DequantizeLinear<axis=0>({Q}, s_var[4]); y = Conv(g, d)", ""),
    "a shift in front": Row(
        f"{CONV}g = Add(x, c[3,1,1]); d = DequantizeLinear<axis=0>({Q}, s_var[4]); y = Conv(g, d)",
        f"{CONV}g = Add(x, c[3,1,1]); d = DequantizeLinear<axis=0>({Q}, s_var[4]); y = Conv<pads=[1,1,1,1]>(g, d)", ""),
    "negative factor in front": Row(
        f"{CONV}g = Mul(x, c[]={{-2.0}}); d = DequantizeLinear<axis=0>({Q}, s_var[4]); y = Conv(g, d)",
        f"{CONV}g = Mul(x, c[]={{-2.0}}); d = DequantizeLinear<axis=0>(q:int8[4,3,1,1]={STIFF}, s_var[4]); y = Conv(g, d)",
        ""),
    "dead channels": Row(
        f"{CONV}d = DequantizeLinear({Q}, s_var[], z:int8[]={{1}}); {INTO}",
        f"{CONV}d = DequantizeLinear({Q}, s_var[], z:int8[]={{1}}); {INTO}", KEPT, 13, 12,
        {"y_gamma": [1.0, 0.0, -2.0, 0.0]}),
    "dead columns": Row(
        f"{CONV}e = Conv(x, v[3,3,1,1]); g = BN3(e); r = Relu(g); d = DequantizeLinear<axis=0>({Q}, s_var[4]); "
        "y = Conv(r, d)",
        f"{CONV}e = Conv(x, v[3,3,1,1]); k = Relu(e); g = BN3(k); u = Relu(g); i = Sigmoid(k); r = Add(u, i); "
        f"d = DequantizeLinear<axis=0>({Q}, s_var[4]); y = Conv(r, d)", "dead-channel",
        values={"g_gamma": [1.0, 0.0, 2.0]}),
    "behind dead columns": Row(
        f"{CONV}g = BN3(x); r = Relu(g); d = DequantizeLinear<axis=0>({Q}, s_var[4]); h = Conv(r, d); y = BN4(h)",
        f"{CONV}g = BN3(x); r = Sigmoid(g); d = DequantizeLinear<axis=0>({Q}, s_var[4]); h = Conv(r, d); y = BN4(h)",
        "dead-channel", values={"g_gamma": [0.0, 2.0, 2.0], "g_var": 1.0 - 1e-5, "g_beta": 0.0, "g_mean": 0.0}),
    "two readers of the weight": Row(
        f"x[N,3,5,5] -> y, z | d = DequantizeLinear<axis=0>({Q}, s_var[4]); h = Conv(x, d, b[4]); y = BN4(h); "
        "g = Conv(x, d); z = BN4(g)",
        f"x[N,3,5,5] -> y, z | d = DequantizeLinear<axis=1>({Q}, s_var[3]); h = Conv(x, d, b[4]); y = BN4(h); "
        "g = Conv(x, d); z = BN4(g)", "reduced"),
    "two readers, one BN": Row(
        f"x[N,3,5,5] -> y, z | d = DequantizeLinear<axis=0>({Q}, s_var[4]); h = Conv(x, d, b[4]); y = BN4(h); z = Conv(x, d)",
        f"x[N,3,5,5] -> y, z | d = DequantizeLinear<axis=0>(q:int8[4,3,1,1]={STIFF}, s_var[4]); h = Conv(x, d, b[4]); "
        "y = BN4(h); z = Conv(x, d)", "reduced"),
    "a scale that two weights share": Row(
        f"x[N,3,5,5] -> y, z | d = DequantizeLinear<axis=0>({Q}, s_var[4], k:int8[4]={{0,0,0,0}}); h = Conv(x, d, b[4]); "
        f"y = BN4(h); e = DequantizeLinear<axis=0>(p:int8[4,3,1,1]={FLAT}, s_var, k); g = Conv(x, e); z = BN4(g)",
        f"x[N,3,5,5] -> y, z | d = DequantizeLinear<axis=0>({Q}, s_var[4], k:int8[4]={{0,0,0,0}}); h = Conv(x, d, b[4]); "
        f"y = BN4(h); e = DequantizeLinear<axis=0>(p:int8[4,3,1,1]={STIFF}, s_var, k); g = Conv(x, e); z = BN4(g)",
        "reduced"),
    "a weight that is seen": Row(
        f"x[N,3,5,5] -> y, d | d = DequantizeLinear<axis=0>({Q}, s_var[4]); {INTO}",
        f"x[N,3,5,5] -> y, h | d = DequantizeLinear<axis=0>({Q}, s_var[4]); {INTO}", "graph-output"),
    "Constant nodes": Row(
        f"{CONV}q = Constant<value = int8[4,3,1,1] {FLAT}>(); d = DequantizeLinear(q, s_var[]); {INTO}",
        f"x[N,3,5,5] s[] -> y | q = Constant<value = int8[4,3,1,1] {FLAT}>(); d = DequantizeLinear(q, s); {INTO}",
        "dynamic-weight"),
    "directly behind": Row(
        f"x[N,3] -> y | d = DequantizeLinear(q:int8[3,4]={FLAT}, s_var[]); h = MatMul(x, d); y = BN4(h)",
        f"x[N,3] -> y | d = DequantizeLinear(q:int8[4,3]={FLAT}, s_var[]); t = Reshape(d, r:int64[2]={{3,4}}); "
        "h = MatMul(x, t); y = BN4(h)", KEPT),
    "behind a Transpose": Row(
        f"x[N,3] -> y | d = DequantizeLinear<axis=0>(q:int8[4,3]={FLAT}, s_var[4], z:int8[4]={{0,0,1,2}}); "
        "t = Transpose(d); h = MatMul(x, t); y = BN4(h)",
        f"x[N,3] -> y | d = DequantizeLinear<axis=1>(q:int8[4,3]={FLAT}, s_var[3], z:int8[3]={{0,0,1}}); "
        "t = Transpose<perm=[1,0]>(d); h = MatMul(x, t); y = BN4(h)", KEPT),
    "behind a Transpose, with one scale": Row(
        f"x[N,3] -> y | d = DequantizeLinear(q:int8[4,3]={FLAT}, s_var[], z:int8[]={{1}}); t = Transpose<perm=[1,0]>(d); "
        "h = MatMul(x, t); y = BN4+(h)",
        f"x[N,3] -> y | d = DequantizeLinear(q:int8[4,3]={STIFF}, s_var[], z:int8[]={{1}}); "
        "t = Transpose<perm=[1,0]>(d); h = MatMul(x, t); y = BN4(h)", KEPT),
    "behind a Transpose, in blocks": Row(
        f"x[N,6] -> y | d = DequantizeLinear<axis=1, block_size=2>(q:int8[2,6]={FLAT}, s_var[2,3], "
        "z:int8[2,3]={1,2,3,4,5,6}); t = Transpose(d); h = MatMul(x, t); y = BN2(h)",
        f"x[N,6] -> y | d = DequantizeLinear<axis=1, block_size=2>(q:int8[2,6]={FLAT}, s_var[2,3], "
        "z:int8[2,3]={1,2,3,4,5,-64}); t = Transpose(d); h = MatMul(x, t); y = BN2(h)", KEPT, 21),
    "behind two of them, of a kernel": Row(
        f"x[N,3,5,5] -> y | d = DequantizeLinear<axis=3>(q:int8[3,1,1,4]={FLAT}, s_var[4]); i = Identity(d); "
        "t = Transpose<perm=[0,3,1,2]>(i); u = Transpose<perm=[1,0,2,3]>(t); h = Conv(x, u, b[4]); y = BN4(h)",
        f"x[N,3,5,5] -> y | d = DequantizeLinear<axis=0>(q:int8[3,1,1,4]={FLAT}, s_var[3]); i = Identity(d); "
        "t = Transpose<perm=[0,3,1,2]>(i); u = Transpose<perm=[1,0,2,3]>(t); h = Conv(x, u, b[4]); y = BN4(h)",
        "reduced"),
    "one reads it turned, one doesn't": Row(
        f"x[N,3] v[N,4] -> y, z | d = DequantizeLinear<axis=0>(q:int8[4,3]={FLAT}, s_var[4]); t = Transpose(d); "
        "h = MatMul(x, t); y = BN4(h); z = MatMul(v, d)",
        f"x[N,3] v[N,4] -> y, z | d = DequantizeLinear<axis=0>(q:int8[4,3]={STIFF}, s_var[4]); t = Transpose(d); "
        "h = MatMul(x, t); y = BN4(h); z = MatMul(v, d)", KEPT),
    "both have BN": Row(
        f"x[N,3] v[N,4] -> y, z | d = DequantizeLinear(q:int8[4,3]={FLAT}, s_var[]); t = Transpose(d); "
        "h = MatMul(x, t); y = BN4(h); g = MatMul(v, d); z = BN3(g)",
        f"x[N,3] v[N,4] -> y, z | d = DequantizeLinear(q:int8[4,3]={STIFF}, s_var[]); t = Transpose(d); "
        "h = MatMul(x, t); y = BN4(h); g = MatMul(v, d); z = BN3(g)", KEPT),
    "both have BN, of the same size": Row(
        "x[N,4] -> y, z | d = DequantizeLinear(q:int8[4,4]={1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}, s_var[]); "
        "t = Transpose(d); h = MatMul(x, t); y = BN4(h); g = MatMul(x, d); z = BN4(g)",
        "x[N,4] -> y, z | d = DequantizeLinear<axis=0>(q:int8[4,4]={1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}, s_var[4]); "
        "t = Transpose(d); h = MatMul(x, t); y = BN4(h); g = MatMul(x, d); z = BN4(g)", KEPT),
    "integers that a Transpose makes": Row(
        f"{CONV}p = Transpose<perm=[3,2,0,1]>(q:int8[1,1,3,4]={FLAT}); d = DequantizeLinear<axis=0>(p, s_var[4]); {INTO}",
        f"x[N,3,5,5] q:int8[1,1,3,4] -> y | p = Transpose<perm=[3,2,0,1]>(q); d = DequantizeLinear<axis=0>(p, s_var[4]); "
        f"{INTO}", "dynamic-weight"),
    "in a body": Row(
        f"x[N,3,5,5] c:bool[] -> y | y = If(c) <then_branch = t () => (float[N,4,5,5] p) {{ "
        f"d = DequantizeLinear({Q}, s_var[]); g = Conv(x, d); p = BN4(g) }}, else_branch = e () => (float[N,4,5,5] r) {{ "
        "f = DequantizeLinear(q, s_var); r = Conv(x, f) }>",
        f"x[N,3,5,5] c:bool[] -> y | d = DequantizeLinear({Q}, s_var[]); y = If(c) <then_branch = t () => "
        "(float[N,4,5,5] p) { g = Conv(x, d); p = BN4(g) }, else_branch = e () => (float[N,4,5,5] r) { r = Conv(x, d) }>",
        KEPT),
    "floats rounded while the model runs": Row(
        f"{CONV}i = QuantizeLinear<axis=0>(w[4,3,1,1], s_var[4], z:int8[4]={{0,0,0,0}}); "
        f"d = DequantizeLinear<axis=0>(i, s_var, z); {INTO}",
        f"{CONV}i = QuantizeLinear<axis=1>(w[4,3,1,1], s_var[3], z:int8[3]={{0,0,0}}); "
        f"d = DequantizeLinear<axis=1>(i, s_var, z); {INTO}", "reduced", values={"s_var": 0.01}),
    "int32 bias, scaled": Row(
        f"{CONV}d = DequantizeLinear<axis=0>({Q}, s_var[4]); c = DequantizeLinear(b:int32[4]={{100,-2000,30,0}}, e_var[]); "
        "h = Conv(x, d, c); y = Mul(h, m[4,1,1])",
        f"x[N,3,5,5] c[4] -> y | d = DequantizeLinear<axis=0>({Q}, s_var[4]); h = Conv(x, d, c); y = Mul(h, m[4,1,1])", ""),
    "int32 bias in steps of its own": Row(
        f"{CONV}d = DequantizeLinear<axis=0>({Q}, s_var[4]); c = DequantizeLinear(b:int32[4]={{100,-2000,30,0}}, e_var[]); "
        "h = Conv(x, d, c); y = BN4(h)",
        f"{CONV}d = DequantizeLinear<axis=1>({Q}, s_var[3]); c = DequantizeLinear(b:int32[4]={{100,-2000,30,0}}, e_var[]); "
        "h = Conv(x, d, c); y = BN4(h)", "reduced"),
    "float16": Row(
        f"{CONV}d = DequantizeLinear<axis=0>({Q}, s_var[4]); {INTO}",
        f"{CONV}d = DequantizeLinear<axis=0>({Q}, s_gain[4]); {INTO}", "unrepresentable", 19,
        values={"s_gain": 7e-5}),
}  # fmt: skip


def probe_of(name: str, row: Row, *, good: bool) -> Probe:
    opset = row.opset if good else row.bad_opset or row.opset
    dtype = "float16" if name == "float16" else "float"
    return Probe(f"quantised-{name}", "", row.good if good else row.bad, opset=opset, values=row.values, dtype=dtype)


class Sum(NamedTuple):
    """A model, how many of its per-channel operations are left, and which."""

    text: str
    left: int
    ops: list[str]


# Sums of integers that are scaled while the model runs, and values that are rounded.
DYNAMIC = "x[N,3,5,5] -> y | u, k, z = DynamicQuantizeLinear(x); i = ConvInteger(u, "
SUMS = {
    "ConvInteger, scales of channels": Sum(
        f"{DYNAMIC}{Q}, z); f = Cast<to=1>(i); g = Mul(k, s[1,4,1,1]); m = Mul(f, g); a = Add(m, b[4,1,1]); y = BN4(a)", 1,
        ["Add"]),
    "ConvInteger, one scale": Sum(
        f"{DYNAMIC}{Q}, z); f = Cast<to=1>(i); g = Mul(k, s[]); m = Mul(f, g); y = BN4(m)", 1, ["BatchNormalization"]),
    "ConvInteger, constant scale": Sum(
        f"x[N,3,5,5] -> y | u = QuantizeLinear(x, k_var[], z:uint8[]={{90}}); i = ConvInteger(u, {Q}, z); "
        "f = Cast<to=1>(i); m = Mul(f, s[4,1,1]); y = BN4(m)", 1, ["BatchNormalization"]),
    "MatMulInteger": Sum(
        f"x[N,3] -> y | u, k, z = DynamicQuantizeLinear(x); i = MatMulInteger(u, q:int8[3,4]={FLAT}, z); "
        "f = Cast<to=1>(i); g = Mul(s[4], k); m = Mul(g, f); a = Add(b[4], m); y = BN4(a)", 1, ["Add"]),
    "a product that is seen": Sum(
        f"x[N,3] -> y, g | u, k, z = DynamicQuantizeLinear(x); i = MatMulInteger(u, q:int8[3,4]={FLAT}, z); "
        "f = Cast<to=1>(i); g = Mul(s[4], k); m = Mul(g, f); y = BN4(m)", 1, ["BatchNormalization"]),
    "a product of what may not change": Sum("x[N,1,5,5] -> y | g = BN1(x); y = Mul(g, c[4,1,1])", 1, ["BatchNormalization"]),
    "QLinearConv": Sum(
        f"x[N,3,5,5] -> y | u = QuantizeLinear(x, k_var[], z:uint8[]={{90}}); i = QLinearConv(u, k_var, z, {Q}, s_var[4], "
        "w:int8[4]={0,0,0,0}, o_var[], p:uint8[]={100}); f = DequantizeLinear(i, o_var, p); y = BN4(f)", 1,
        ["BatchNormalization"]),
    "one scale through rounded values": Sum(
        "x[N,3,5,5] -> y | c = Conv(x, w[4,3,1,1]); u = QuantizeLinear(c, k_var[], z:uint8[]={90}); "
        "d = DequantizeLinear(u, k_var, z); r = Relu(d); y = Mul(r, m[]={2.5})", 0, []),
    "not a negative one": Sum(
        "x[N,3,5,5] -> y | c = Conv(x, w[4,3,1,1]); u = QuantizeLinear(c, k_var[], z:uint8[]={90}); "
        "d = DequantizeLinear(u, k_var, z); y = Mul(d, m[]={-2.5})", 1, ["Mul"]),
    "not a shift": Sum(
        "x[N,3,5,5] -> y | c = Conv(x, w[4,3,1,1]); u = QuantizeLinear(c, k_var[], z:uint8[]={90}); "
        "d = DequantizeLinear(u, k_var, z); y = Add(d, m[]={2.5})", 1, ["Add"]),
    "not a shift from in front": Sum(
        "x[N,3,5,5] -> y | a = Add(x, c[3,1,1]); u = QuantizeLinear(a, k_var[], z:uint8[]={90}); "
        "d = DequantizeLinear(u, k_var, z); y = Conv(d, v[2,3,1,1])", 1, ["Add"]),
    "steps of each channel": Sum(
        "x[N,3,5,5] -> y | c = Conv(x, w[4,3,1,1]); u = QuantizeLinear<axis=1>(c, k_var[4], z:uint8[4]={90,1,2,3}); "
        "d = DequantizeLinear<axis=1>(u, k_var, z); y = Mul(d, m[]={2.5})", 1, ["Mul"]),
}  # fmt: skip
