"""BatchNorm behind rounded activations: models that it leaves with `--requantize`, and hostile twins that keep it.

`good` and `bad` are models in the notation of `probe_text`; of the good one no BN is left.
"""

from __future__ import annotations

from typing import Any, NamedTuple

CONV = "x[N,3,5,5] -> y | c = Conv(x, w[4,3,3,3], b[4]); "
Q = "i = QuantizeLinear(c, s[]={0.1}, z:uint8[]={120}); d = DequantizeLinear(i, s, z); "
LAST = "y = Sigmoid(n)"


class Row(NamedTuple):
    """Attributes: pairs: how many the good one has afterwards; opset: of both; values: of both."""

    good: str
    bad: str
    pairs: int = 1
    opset: int = 17
    values: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it)


TABLE = {
    "behind a Conv": Row(
        f"{CONV}{Q}n = BN4(d); {LAST}",
        # the limits do what a Relu would
        f"{CONV}i = QuantizeLinear(c, s[]={{0.1}}, z:uint8[]={{0}}); d = DequantizeLinear(i, s, z); n = BN4(d); {LAST}"),
    "behind an int8 weight": Row(
        "x[N,3,5,5] -> y | v = DequantizeLinear<axis=0>(q:int8[4,3,1,1]={1,-2,3,4,5,-6,7,8,9,10,-11,12}, k_var[4]); "
        f"c = Conv(x, v, b[4]); {Q}n = BN4(d); {LAST}",
        "x[N,3,5,5] -> y | v = DequantizeLinear<axis=1>(q:int8[4,3,1,1]={1,-2,3,4,5,-6,7,8,9,10,-11,12}, k_var[3]); "
        f"c = Conv(x, v, b[4]); {Q}n = BN4(d); {LAST}", values={"k_var": 0.1}),
    "behind a Gemm": Row(
        f"x[N,3] -> y | c = Gemm(x, w[3,4], b[4]); {Q}n = BN4(d); {LAST}",
        f"x[N,4] -> y | c = Sigmoid(x); {Q}n = BN4(d); {LAST}"),
    "what follows rounds": Row(
        f"{CONV}{Q}n = BN4(d); r = Relu(n); j = QuantizeLinear(r, t[]={{0.1}}, z0:uint8[]={{0}}); "
        "y = DequantizeLinear(j, t, z0)",
        f"{CONV}{Q}n = BN4(d); r = Relu(n); j = QuantizeLinear(r, t[]={{0.1}}, z0:uint8[]={{0}}); "
        "e = DequantizeLinear(j, t, z0); y = Add(e, d)"),
    "what follows rounds, but not for all": Row(
        f"{CONV}{Q}n = BN4(d); r = Relu(n); j = QuantizeLinear(r, t[]={{0.1}}, z0:uint8[]={{0}}); "
        "e = DequantizeLinear(j, t, z0); y = Add(e, n)",
        # what is seen may not change
        "x[N,3,5,5] -> y, d | c = Conv(x, w[4,3,3,3], b[4]); "
        f"{Q}n = BN4(d); y = Relu(n)", 2),
    "through a pool": Row(
        f"{CONV}{Q}p = MaxPool<kernel_shape=[2,2]>(d); n = BN4+(p); {LAST}",
        f"{CONV}{Q}p = MaxPool<kernel_shape=[2,2]>(d); n = BN4(p); {LAST}"),
    "two pairs in a row": Row(
        f"{CONV}{Q}r = Relu(d); j = QuantizeLinear(r, t[]={{0.1}}, z); e = DequantizeLinear(j, t, z); n = BN4+(e); {LAST}",
        f"{CONV}{Q}r = Relu(d); j = QuantizeLinear(r, t[]={{0.1}}, z); e = DequantizeLinear(j, t, z); n = BN4(e); {LAST}",
        values={"n_beta": 0.0, "n_mean": 0.0}),
    "two readers of the integers": Row(
        "x[N,3,5,5] -> y, u | c = Conv(x, w[4,3,3,3], b[4]); "
        f"{Q}e = DequantizeLinear(i, s, z); n = BN4(d); y = Sigmoid(n); g = Conv(e, h[2,4,1,1]); u = Sigmoid(g)",
        "x[N,3,5,5] -> y, u | c = Conv(x, w[4,3,3,3], b[4]); "
        f"{Q}n = BN4(d); y = Sigmoid(n); u = Cast<to=1>(i)", 1),
    "symmetric": Row(
        f"{CONV}i = QuantizeLinear(c, s[]={{0.1}}, z:int8[]={{0}}); d = DequantizeLinear(i, s, z); n = BN4(d); {LAST}",
        f"{CONV}i = QuantizeLinear(c, s[]={{0.1}}, z:int8[]={{0}}); d = DequantizeLinear(i, s2[]={{0.11}}, z); n = BN4(d); "
        f"{LAST}"),
    "no zero point": Row(
        f"{CONV}r = Relu(c); i = QuantizeLinear(r, s[]={{0.1}}); d = DequantizeLinear(i, s); n = BN4+(d); {LAST}",
        f"{CONV}r = Relu(c); i = QuantizeLinear(r, s[]={{0.1}}); d = DequantizeLinear(i, s); n = BN4(d); {LAST}",
        values={"n_beta": 0.0, "n_mean": 0.0}),
    "16 bits": Row(
        f"{CONV}i = QuantizeLinear(c, s[]={{0.0005}}, z:int16[]={{5}}); d = DequantizeLinear(i, s, z); n = BN4(d); {LAST}",
        f"{CONV}i = QuantizeLinear<axis=1>(c, s[4]={{0.0005,0.0005,0.0005,0.0005}}, z:int16[4]={{5,5,5,5}}); "
        f"d = DequantizeLinear<axis=1>(i, s, z); n = BN4(d); {LAST}", opset=21),
    "4 bits": Row(
        f"{CONV}i = QuantizeLinear(c, s[]={{1.6}}, z:int4[]={{0}}); d = DequantizeLinear(i, s, z); n = BN4(d); {LAST}",
        # nothing says what so few steps let through
        f"{CONV}i = QuantizeLinear(c, s[]={{0.1}}, z:int4[]={{0}}); d = DequantizeLinear(i, s, z); n = BN4(d); {LAST}",
        opset=21),
    "Constant nodes": Row(
        f"{CONV}s = Constant<value = float {{0.1}}>(); z = Constant<value = uint8 {{120}}>(); "
        f"i = QuantizeLinear(c, s, z); d = DequantizeLinear(i, s, z); n = BN4(d); {LAST}",
        "x[N,3,5,5] s[] -> y | c = Conv(x, w[4,3,3,3], b[4]); "
        f"i = QuantizeLinear(c, s, z:uint8[]={{120}}); d = DequantizeLinear(i, s, z); n = BN4(d); {LAST}"),
    "steps that others share": Row(
        f"{CONV}{Q}n = BN4(d); j = QuantizeLinear(n, s, z); e = DequantizeLinear(j, s, z); g = Conv(e, h[2,4,1,1]); "
        "k = QuantizeLinear(g, s, z); y = DequantizeLinear(k, s, z)",
        f"{CONV}{Q}n = BN4(d); j = QuantizeLinear(n, s, z); e = DequantizeLinear(j, s, z); u = Sigmoid(d); y = Add(u, e)", 2),
    "in front of a Conv": Row(
        "x[N,4,5,5] -> y | c = BN4(x); i = QuantizeLinear(c, s[]={0.1}, z:uint8[]={120}); d = DequantizeLinear(i, s, z); "
        "y = Conv(d, w[2,4,3,3])",
        "x[N,4,5,5] -> y | c = BN4(x); i = QuantizeLinear(c, s[]={0.1}, z:uint8[]={120}); d = DequantizeLinear(i, s, z); "
        "y = Conv<pads=[1,1,1,1]>(d, w[2,4,3,3])"),
    "a merge takes them in": Row(
        "x[N,4,5,5] -> y | c = Conv<pads=[1,1,1,1]>(x, w[4,4,3,3]); "
        f"{Q}n = BN4(d); e = Conv(x, v[4,4,1,1]); j = QuantizeLinear(e, s, z); f = DequantizeLinear(j, s, z); m = BN4(f); "
        "a = Add(n, m); y = Sigmoid(a)",
        "x[N,4,5,5] -> y | c = Conv<pads=[1,1,1,1]>(x, w[4,4,3,3]); "
        f"{Q}n = BN4(d); e = Sigmoid(x); a = Add(n, d); y = Mul(e, a)", 0),
    "a zero point that is computed": Row(
        f"{CONV}k:uint8[] = Constant<value = uint8 {{120}}>(); i = QuantizeLinear(c, s[]={{0.1}}, k); "
        f"d = DequantizeLinear(i, s, k); n = BN4(d); {LAST}".replace("k:uint8[] =", "k ="),
        f"{CONV}o = ReduceMin<keepdims=0>(x); a = Abs(o); k = Cast<to=2>(a); i = QuantizeLinear(c, s[]={{0.1}}, k); "
        f"d = DequantizeLinear(i, s, k); n = BN4(d); {LAST}"),
    "in the main graph": Row(
        f"x[N,3,5,5] -> y | c = Conv(x, w[4,3,3,3], b[4]); {Q}n = BN4(d); o = ReduceMin<keepdims=0>(x); v = Cast<to=9>(o); y = If(v) <then_branch = a () => "
        "(float[N,4,3,3] p) { p = Sigmoid(n) }, else_branch = e () => (float[N,4,3,3] r) { r = Relu(n) }>",
        "x[N,3,5,5] -> y | o = ReduceMin<keepdims=0>(x); v = Cast<to=9>(o); y = If(v) <then_branch = a () => (float[N,4,3,3] p) { "
        f"c = Conv(x, w[4,3,3,3], b[4]); {Q}n = BN4(d); p = Sigmoid(n) }}, else_branch = e () => (float[N,4,3,3] r) {{ "
        "r = Conv(x, w) }>"),
}  # fmt: skip
