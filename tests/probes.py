"""The probe table: one idea per row, each with what algebra allows and what the existing tools did.

A row says how few per-channel operations (BatchNorm, or Mul/Add by one number per channel) the function can
be computed with; where the answer is 0 the BatchNorm can go entirely.  Every kind of case that can be folded
has hostile twins beside it: equal sizes on another axis, groups, beta other than 1, auto_pad, rank 3, a shared
weight, a graph output in the middle.  Looking the same and being the same are told apart only by the algebra,
which is given where it is not plain from the row.

The second field is the record of the tools named in `PEERS`, in that order (signs: `Probe.peers`), measured
with `benchmarks/probes.py`; AIMET's column is from its published behaviour on the same cases, where known.
The notation of the third is explained in `probe_text`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, helper
from probe_text import Probe
from probes_graph import BRANCHES, CHAINS, THROUGH
from probes_linear import AHEAD, BEHIND_CONV, BEHIND_GEMM
from probes_tail import TAIL

PEERS = ("ORT basic", "onnxoptimizer", "onnxsim", "onnxslim", "onnxscript", "AIMET")
"""The columns of `Probe.peers`: onnxruntime 1.31.1, 0.4.2, 0.8.1, 0.1.98, 0.7.2, aimet_onnx 2.42."""


# ---------------------------------------------------------------------------- what text can't say: edits
def overridable(*names: str) -> Callable[[ModelProto], None]:
    """List these initializers as graph inputs, too: the caller may feed others."""

    def edit(model: ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name in names:
                model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    return edit


def as_constants(model: ModelProto) -> None:
    """Every initializer becomes a Constant node, as Paddle2ONNX writes them."""
    nodes = _constant_nodes(model) + list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)


def behind_identity(model: ModelProto) -> None:
    """Every initializer is read through an Identity, as torch's exporter merges equal ones."""
    nodes = []
    for tensor in model.graph.initializer:
        nodes.append(helper.make_node("Identity", [f"raw_{tensor.name}"], [tensor.name]))
        tensor.name = f"raw_{tensor.name}"
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def as_function(model: ModelProto) -> None:
    """Move the whole graph into a local function that is called once."""
    graph, opset = model.graph, model.opset_import[0].version
    inputs, outputs = [v.name for v in graph.input], [v.name for v in graph.output]
    body = FunctionProto(domain="local", name="Block", input=inputs, output=outputs,
                         node=_constant_nodes(model) + list(graph.node),
                         opset_import=[helper.make_opsetid("", opset)])  # fmt: skip
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("local", 1))
    del graph.initializer[:], graph.node[:]
    graph.node.append(helper.make_node("Block", inputs, outputs, domain="local"))


def _constant_nodes(model: ModelProto) -> list[NodeProto]:
    return [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]


# --------------------------------------------------------------------- BatchNorm itself: versions, modes, numbers
CONV_BN = "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3], b[4]); y = BN4(h)"
FORMS = [
    Probe("opset-6-test", "!++!+?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); y = BN4<is_test=1>(h)", opset=6),
    # before opset 7 the default is training
    Probe("opset-6-training", "!xx!x?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); y = BN4(h)", 1, "training", opset=6),
    Probe("opset-7", "+++++?", CONV_BN, opset=7),
    Probe("opset-8-spatial", "+++++?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); y = BN4<spatial=1>(h)", opset=8),
    Probe("opset-8-per-pixel", "-!!!!?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]);"
          "y = BatchNormalization<spatial=0>(h, g[4,4,3], b[4,4,3], m[4,4,3], v_var[4,4,3])", 1, "axis", opset=8),
    Probe("opset-9", "+++++?", CONV_BN, opset=9),
    Probe("opset-14", "+++++?", CONV_BN, opset=14),
    Probe("opset-21", "+++++?", CONV_BN, opset=21),
    Probe("training-mode", "----xx",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); "
          "y, running_mean, running_var = BN4<training_mode=1>(h)", 1, "training"),
    Probe("runtime-scale", "-----?", "x[N,3,6,5] g[4] -> y | h = Conv(x, w[4,3,3,3]);"
          "y = BatchNormalization(h, g, b[4], m[4], v_var[4])", 1, "runtime"),
    Probe("epsilon-zero", "+++++x",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); y = BN4<epsilon=0.>(h)", values={"y_var": 0.01}),
    Probe("epsilon-default", "+++++?", CONV_BN, values={"y_var": 1e-5}),
    Probe("epsilon-large", "+++++?", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); y = BN4<epsilon=0.8>(h)"),
    Probe("variance-tiny", "+++++?", CONV_BN, values={"y_var": 1e-12}),
    Probe("variance-denormal", "+++++?", CONV_BN, values={"y_var": 5.6e-45}),
    Probe("variance-huge", "+++++?", CONV_BN, values={"y_var": 1e10}),
    # the NaN could move into the weights, as others do: refused, it is a broken file
    Probe("variance-negative", "+++++?", CONV_BN, 1, "not-finite", values={"y_var": [1.0, -1.0, 1.0, 1.0]}),
    Probe("mean-nan", "+++++?", CONV_BN, 1, "not-finite", values={"y_mean": [0.0, np.nan, 0.0, 0.0]}),
    Probe("dead-conv-bn", "+++++?", CONV_BN, values={"y_gamma": [1.0, 0.0, -0.5, 0.0]}),
    Probe("dead-bn-conv", "-----?",
          "x[N,4,6,5] -> y | h = BN4(x); y = Conv(h, w[3,4,3,3])", values={"h_gamma": [1.0, 0.0, -0.5, 0.0]}),
    Probe("dead-conv-relu-bn-conv", "-----?",
          "x[N,3,6,6] -> y | p = Conv(x, w[4,3,3,3]); r = Relu(p); h = BN4(r); y = Conv(h, v[2,4,3,3])",
          values={"h_gamma": [1.0, 0.0, -0.5, 0.0]}),
    Probe("fp64", "!++++?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3], b[4]); y = BN4<epsilon=0.0009765625>(h)", dtype="double"),
    # attributes are float32: the default is float32(1e-5), 2.5e-8 less than the double
    Probe("fp64-epsilon", "!++xx?", CONV_BN, dtype="double"),
    Probe("fp16", "+++++?", CONV_BN, dtype="float16"),
    Probe("bf16", "!++++?", CONV_BN, dtype="bfloat16", opset=22),
    Probe("fp16-fp32-bn", "---xxx", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]);"
          "y = BatchNormalization(h, g:float[4], b:float[4], m:float[4], v_var:float[4])", dtype="float16"),
    # 300 * 300 is no float16: the weight would be infinite where the values never are
    Probe("fp16-overflow", "xxxxxx", CONV_BN, 1, "overflow", dtype="float16", scale=1e-3,
          values={"w": 300.0, "b": 0.0, "y_gamma": 300.0, "y_mean": 0.0, "y_var": 1.0}),
    Probe("fp16-epsilon", "xx+xx!", "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3], b[4]); y = BN4<epsilon=1e-8>(h)",
          dtype="float16", scale=0.1, values={"y_var": 0.0, "b": 0.0, "y_mean": 0.0}),
    # the folded weights are subnormal, their error far below what rounding does to beta
    Probe("fp16-subnormal", "+++++?", CONV_BN, dtype="float16", values={"y_gamma": 1e-6}),
    # the same weights with large inputs and nothing added: their error is all there is
    Probe("fp16-subnormal-no-shift", "xxxxx?", CONV_BN, 1, "underflow", dtype="float16", scale=3e3,
          values={"y_gamma": 2e-7, "b": 0, "y_beta": 0, "y_mean": 0, "y_var": 1}),
]  # fmt: skip

# ------------------------------------------------------------------------- where constants and nodes may live
SCOPES = [
    Probe("constant-nodes", "+++++?", CONV_BN, edit=as_constants),
    Probe("behind-identity", "+-+++?", CONV_BN, edit=behind_identity),
    Probe("overridable-weight", "--++-+", CONV_BN, edit=overridable("w")),
    Probe("overridable-bn", "--++-?", CONV_BN, edit=overridable("y_gamma", "y_beta", "y_mean", "y_var")),
    Probe("overridable-weight-kept", "--++-?", CONV_BN, 1, "runtime", edit=overridable("w"),
          options={"keep_overridable": True}),
    # torch's dynamo exporter: a zero bias made from the weight's shape and the activation's type
    Probe("zero-bias-chain", "----+?",
          "x[N,3,6,5] -> y | s = Shape<start=0, end=1>(w[4,3,3,3]); o = Constant<value=float[1] {0.}>(); "
          "l = CastLike(o, x); b = Expand(l, s); h = Conv(x, w, b); y = BN4(h)"),
    Probe("transposed-weight", "-----?",
          "x[N,3] -> y | t = Transpose<perm=[1,0]>(w[4,3]); p = MatMul(x, t); h = Add(p, b[4]); y = BN4(h)"),
    Probe("expanded-vectors", "+-+++?",
          "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3]); k = Constant<value=int64[1] {4}>(); g = Expand(a[1], k); "
          "v = Tile(q_var[2], t:int64[1]={2}); y = BatchNormalization(h, g, b[4], m[4], v)"),
    Probe("int8-weight", "-----!",
          "x[N,3,6,5] -> y | d = DequantizeLinear<axis=0>(q:int8[4,3,1,1]={1,-2,3,4,5,-6,7,8,9,10,-11,12}, "
          "s_var[4], z:int8[4]={0,0,0,0}); h = Conv(x, d, b[4]); y = BN4(h)", opset=19),
    Probe("in-if", "+--++-",
          "x[N,3,6,5] c:bool[] -> y | y = If(c) <then_branch = t () => (float[N,4,4,3] p) { g = Conv(x, w[4,3,3,3]); "
          "p = BN4(g) }, else_branch = e () => (float[N,4,4,3] q) { q = Conv(x, v[4,3,3,3]) }>"),
    Probe("conv-outside-if", "-----?",
          "x[N,3,6,5] c:bool[] -> y | h = Conv(x, w[4,3,3,3]); "
          "y = If(c) <then_branch = t () => (float[N,4,4,3] p) { p = BN4(h) },"
          " else_branch = e () => (float[N,4,4,3] q) { q = Neg(h) }>", 1, "captured"),
    Probe("in-loop", "+--++?",
          "x[N,3,6,5] -> y | y = Loop(n:int64[]={2}, t:bool[]={1}, x) <body = l (int64 i, bool c, float[N,3,6,5] s)"
          " => (bool o, float[N,3,6,5] p) { o = Identity(c); g = Conv<pads=[1,1,1,1]>(s, w[3,3,3,3]); p = BN3(g) }>"),
    Probe("in-function", "+---+?", CONV_BN, edit=as_function),
]  # fmt: skip

PROBES = [*BEHIND_CONV, *BEHIND_GEMM, *AHEAD, *BRANCHES, *THROUGH, *CHAINS, *FORMS, *SCOPES, *TAIL]
