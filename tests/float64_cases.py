"""Random nodes of every op that has a double form: what tests/test_float64.py runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rng = np.random.Generator


@dataclass
class Case:
    """One node: attributes and inputs (None: left out; parameters come first in no order, all are graph inputs)."""

    inputs: list[Array | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    constants: tuple[int, ...] = ()  # inputs that are initializers
    outputs: int = 1
    reference: bool = True  # False: the reference evaluator is known to be wrong or not to support it


Maker = Callable[[Rng], Case]


def _x(rng: Rng, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def _pick(rng: Rng, *options: Any) -> Any:
    return options[rng.integers(len(options))]


def elementwise(
    low: float = -6.0, high: float = 6.0, opset: int = 17, reference: bool = True, **ranges: tuple[float, float]
) -> Maker:
    """A function of one tensor, with float attributes from ranges, or left out."""

    def make(rng: Rng) -> Case:
        x = rng.uniform(low, high, (3, 50)).astype(np.float32)
        x[0, 0] = 0.0 if low <= 0 <= high else low
        given = {name: float(rng.uniform(*bounds)) for name, bounds in ranges.items()} if rng.random() < 0.7 else {}
        return Case([x], given, opset, reference=reference)

    return make


def _space(rng: Rng, rank: int, least: int = 5, most: int = 11) -> list[int]:
    return [int(n) for n in rng.integers(least, most, rank)]


def _window(rng: Rng, rank: int, dilated: bool = True) -> tuple[list[int], dict[str, Any]]:
    kernel = [int(n) for n in rng.integers(1, 4, rank)]
    attributes: dict[str, Any] = {"strides": [int(n) for n in rng.integers(1, 4, rank)]}
    if dilated and rng.random() < 0.4:
        attributes["dilations"] = [int(n) for n in rng.integers(1, 3, rank)]
    return kernel, attributes


def conv(rng: Rng) -> Case:
    rank, groups = int(rng.integers(1, 4)), int(_pick(rng, 1, 1, 2, 3, 4))
    kernel, attributes = _window(rng, rank)
    inner, outer = groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 4))
    padding = _pick(rng, "pads", "none", "SAME_UPPER", "SAME_LOWER", "VALID")
    if padding == "pads":
        attributes["pads"] = [int(n) for n in rng.integers(0, 3, 2 * rank)]
    elif padding != "none":
        attributes["auto_pad"] = padding
        if padding.startswith("SAME"):
            attributes.pop("dilations", None)
    if rng.random() < 0.5:
        attributes["kernel_shape"] = kernel
    if groups > 1:
        attributes["group"] = groups
    weight = _x(rng, outer, inner // groups, *kernel)
    bias = _x(rng, outer) if rng.random() < 0.5 else None
    constants = (1, 2) if rng.random() < 0.6 else ()
    inputs = [_x(rng, int(rng.integers(1, 3)), inner, *_space(rng, rank)), weight, bias]
    # The evaluator pads SAME_LOWER as SAME_UPPER, and takes 3-d convolutions for others in places.
    return Case(
        inputs, attributes, int(_pick(rng, 11, 17, 22)), constants, reference=padding in ("pads", "none", "VALID")
    )


def conv_transpose(rng: Rng) -> Case:
    rank, groups = int(rng.integers(1, 4)), int(_pick(rng, 1, 1, 2, 3))
    kernel, attributes = _window(rng, rank)
    strides = attributes["strides"]
    inner, outer, space = groups * int(rng.integers(1, 3)), int(rng.integers(1, 4)), _space(rng, rank, 3, 6)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, attributes.get("dilations", [1] * rank), strict=True)]
    padding = _pick(rng, "pads", "none", "SAME_UPPER", "SAME_LOWER", "output_shape")
    if padding == "pads":
        attributes["pads"] = [int(rng.integers(0, min(span, 3))) for span in spans] * 2
    elif padding == "output_shape":
        full = [s * (n - 1) + span for n, s, span in zip(space, strides, spans, strict=True)]
        attributes["output_shape"] = [
            n - int(rng.integers(0, min(span, 3))) for n, span in zip(full, spans, strict=True)
        ]
    elif padding != "none":
        attributes["auto_pad"] = padding
    if padding in ("pads", "none") and rng.random() < 0.5:
        attributes["output_padding"] = [int(rng.integers(0, s)) for s in strides]
    if groups > 1:
        attributes["group"] = groups
    inputs = [_x(rng, 2, inner, *space), _x(rng, inner, outer, *kernel)]
    if rng.random() < 0.5:
        inputs.append(_x(rng, outer * groups))
    simple = padding in ("pads", "none") and groups == 1 and rank < 3
    return Case([*inputs], attributes, int(_pick(rng, 11, 17)), reference=simple)


def pool(power: bool = False) -> Maker:
    """AveragePool or LpPool."""

    def make(rng: Rng) -> Case:
        rank = int(rng.integers(1, 4))
        opset = int(_pick(rng, 11, 17) if power else _pick(rng, 11, 17, 19, 22))
        kernel, attributes = _window(rng, rank, dilated=opset >= 19)
        attributes["kernel_shape"] = kernel
        padding = _pick(rng, "pads", "none", "SAME_UPPER", "SAME_LOWER")
        if padding == "pads":
            attributes["pads"] = [int(rng.integers(0, k)) for k in kernel] * 2
        elif padding != "none":
            attributes["auto_pad"] = padding
            attributes.pop("dilations", None)
        if power:
            attributes["p"] = int(rng.integers(1, 4))
        else:
            attributes["count_include_pad"] = int(rng.integers(0, 2))
            attributes["ceil_mode"] = int(padding in ("pads", "none") and rng.random() < 0.4)
        plain = padding in ("pads", "none") and not attributes.get("ceil_mode") and not power
        return Case([_x(rng, 2, 3, *_space(rng, rank))], attributes, opset, reference=plain)

    return make


def over_space(reference: bool = False, **attributes: int) -> Maker:
    """A global pool.  The evaluator knows one of the three."""
    return lambda rng: Case([_x(rng, 2, 3, *_space(rng, int(rng.integers(1, 4))))], attributes, reference=reference)


def instance_normalization(rng: Rng) -> Case:
    inputs = [_x(rng, 2, 3, *_space(rng, int(rng.integers(1, 4)))), _x(rng, 3), _x(rng, 3)]
    return Case([*inputs], {"epsilon": 1e-3} if rng.random() < 0.5 else {})


def layer_normalization(rng: Rng) -> Case:
    x, axis = _x(rng, 2, 3, 4, 5), int(_pick(rng, -1, -2, 1, 3))
    shape = x.shape[axis % 4 :]
    inputs = [x, _x(rng, *shape), *([_x(rng, *shape)] if rng.random() < 0.5 else [])]
    return Case([*inputs], {"axis": axis}, outputs=int(_pick(rng, 1, 3)))


def lrn(rng: Rng) -> Case:
    attributes = {"size": int(rng.integers(1, 6)), "alpha": 0.3, "beta": 0.6, "bias": 1.5}
    return Case(
        [_x(rng, 2, 7, 4, 4)], attributes if rng.random() < 0.7 else {"size": attributes["size"]}, reference=False
    )


def prelu(rng: Rng) -> Case:
    return Case([_x(rng, 2, 3, 4, 4), _x(rng, *_pick(rng, (1,), (3, 1, 1), (2, 3, 4, 4)))])


def mean(rng: Rng) -> Case:
    return Case([_x(rng, 2, 3), *([_x(rng, 3)] * int(rng.integers(0, 3)))])


def hardmax(rng: Rng) -> Case:
    return Case([np.round(_x(rng, 3, 4, 5))], {"axis": int(rng.integers(-3, 3))})


def gelu_tanh(rng: Rng) -> Case:
    return Case([_x(rng, 3, 40)], {"approximate": "tanh"}, 20, reference=False)


def one_hot(rng: Rng) -> Case:
    inputs = [rng.integers(-4, 4, (2, 3)), np.array([4]), _x(rng, 2)]
    return Case([*inputs], {"axis": int(rng.integers(-1, 3))}, 11, reference=False)


def mean_variance(rng: Rng) -> Case:
    return Case([_x(rng, 2, 3, 4, 4)], _pick(rng, {}, {"axes": [1, 2]}), 13, reference=False)


def non_zero(rng: Rng) -> Case:
    return Case([np.round(_x(rng, 3, 4))])


def resize(rng: Rng) -> Case:
    mode = _pick(rng, "nearest", "linear", "cubic")
    attributes: dict[str, Any] = {"mode": mode}
    opset = int(_pick(rng, 11, 13, 18, 19))
    shape = [1, 2, *_space(rng, 2, 4, 9)]
    coordinates = _pick(rng, "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "tf_crop_and_resize",
                        *(["half_pixel_symmetric"] if opset >= 19 else []))  # fmt: skip
    attributes["coordinate_transformation_mode"] = coordinates
    if mode == "nearest":
        attributes["nearest_mode"] = _pick(rng, "round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    if mode == "cubic":
        attributes["cubic_coeff_a"] = float(_pick(rng, -0.75, -0.5))
        attributes["exclude_outside"] = int(rng.integers(0, 2))
    roi = None
    if coordinates == "tf_crop_and_resize":
        attributes["extrapolation_value"] = 2.0
        roi = np.array([0, 0, *rng.uniform(0, 0.3, 2), 1, 1, *rng.uniform(0.7, 1.2, 2)], np.float32)
    elif opset >= 18 and mode != "nearest" and rng.random() < 0.4:
        attributes["antialias"] = 1
    factors = [_pick(rng, 0.5, 0.5, 2.0, 2.0, 1.5, 0.75, 3.0, 0.4) for _ in range(2)]
    if rng.random() < 0.5:
        how = [None, np.array([1, 1, *factors], np.float32)]
    else:
        how = [
            None,
            None,
            np.array([1, 2, *(max(1, int(n * f)) for n, f in zip(shape[2:], factors, strict=True))], np.int64),
        ]
    how[0] = roi if roi is not None else (np.zeros(0, np.float32) if opset < 13 else None)
    if opset < 13 and how[1] is None:
        how[1] = np.zeros(0, np.float32)
    exact = len(how) == 2 and set(factors) <= {0.5, 2.0, 4.0}  # the evaluator divides by scales in float32
    return Case([_x(rng, *shape), *how], attributes, opset, constants=(1, 2, 3), reference=exact)


def resize_10(rng: Rng) -> Case:
    scales = np.array([1, 1, _pick(rng, 2.0, 0.5), _pick(rng, 2.0, 3.0, 1.5)], np.float32)
    return Case([_x(rng, 1, 2, 6, 6), scales], {"mode": _pick(rng, "nearest", "linear")}, 10, (1,), reference=False)


def upsample(rng: Rng) -> Case:
    scales = np.array([1, 1, _pick(rng, 2.0, 1.0), _pick(rng, 2.0, 3.0)], np.float32)
    mode = {"mode": _pick(rng, "nearest", "linear")}
    if rng.random() < 0.5:
        return Case([_x(rng, 1, 2, 4, 6)], {**mode, "scales": scales.tolist()}, 7, reference=False)
    return Case([_x(rng, 1, 2, 4, 6), scales], mode, 9, (1,), reference=False)


def recurrent(gates: int) -> Maker:
    """RNN (1), GRU (3) or LSTM (4)."""

    def make(rng: Rng) -> Case:
        steps, batch, size, hidden = (int(n) for n in rng.integers(2, 6, 4))
        direction = _pick(rng, "forward", "reverse", "bidirectional")
        count = 2 if direction == "bidirectional" else 1
        attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
        inputs: list[Array | None] = [
            _x(rng, steps, batch, size), _x(rng, count, gates * hidden, size), _x(rng, count, gates * hidden, hidden),
            *[None] * (3 if gates < 4 else 5),
        ]  # fmt: skip
        if rng.random() < 0.7:
            inputs[3] = _x(rng, count, 2 * gates * hidden)
        lengths = rng.random() < 0.4
        if lengths:
            inputs[4] = np.array([steps, *rng.integers(1, steps + 1, batch - 1)], np.int32)
        if rng.random() < 0.5:
            inputs[5] = _x(rng, count, batch, hidden)
            if gates == 4:
                inputs[6] = _x(rng, count, batch, hidden)
        if gates == 4 and rng.random() < 0.5:
            inputs[7] = _x(rng, count, 3 * hidden)
        if gates == 3:
            attributes["linear_before_reset"] = int(rng.integers(0, 2))
        if rng.random() < 0.3:
            attributes["clip"] = 0.5
        outputs = int(rng.integers(1, 3 if gates < 4 else 4))
        return Case(inputs, attributes, int(_pick(rng, 7, 14)), outputs=outputs, reference=False)

    return make


def roi_align(rng: Rng) -> Case:
    regions = np.array([[0, 0, 4, 4], [1, 1, 6, 5]], np.float32)
    inputs = [_x(rng, 1, 2, 8, 8), regions, np.zeros(2, np.int64)]
    return Case([*inputs], {"output_height": 2, "output_width": 3, "sampling_ratio": 2}, 16, reference=False)


def softmax(rng: Rng) -> Case:
    return Case(
        [_x(rng, 2, 3, 4)], {"axis": int(rng.integers(0, 3))} if rng.random() < 0.7 else {}, 11, reference=False
    )


def old(attributes: Callable[[Rng], dict[str, Any]], opset: int, outputs: int = 1, *shape: int) -> Maker:
    """An op as it was before some opset, where all but the data is attributes."""
    return lambda rng: Case([_x(rng, *(shape or (2, 3, 4, 6)))], attributes(rng), opset, outputs=outputs)


def fused_conv(rng: Rng) -> Case:
    plain = [(name, []) for name in ("Relu", "Tanh", "Sigmoid")]
    name, parameters = _pick(rng, *plain, ("LeakyRelu", [0.1]), ("Clip", [-0.5, 0.5]), ("HardSigmoid", [0.2, 0.5]))
    attributes = {"activation": name, "pads": [1, 1, 0, 0], "strides": [2, 1]}
    attributes |= {"activation_params": parameters} if parameters else {}
    return Case([_x(rng, 2, 3, 6, 7), _x(rng, 4, 3, 2, 3), _x(rng, 4)], attributes, reference=False)


def fused_gemm(rng: Rng) -> Case:
    attributes = {"activation": _pick(rng, "Relu", "Tanh", "LeakyRelu"), "activation_alpha": 0.1}
    inputs = [_x(rng, 3, 4), _x(rng, 5, 4), *([_x(rng, 5)] if rng.random() < 0.7 else [])]
    return Case(inputs, attributes | {"transB": 1, "alpha": 0.5, "beta": 2.0}, reference=False)


def fused_matmul(rng: Rng) -> Case:
    first, second = rng.integers(0, 2, 2)
    left, right = ((2, 5, 3), (2, 3, 5))[first], ((2, 3, 4), (2, 4, 3))[second]
    attributes = {"transA": int(first), "transB": int(second), "alpha": 0.5}
    return Case([_x(rng, *left), _x(rng, *right)], attributes, reference=False)


def biased(*sizes: int, **attributes: Any) -> Maker:
    """A function of a tensor and vectors along its last axis, the last of which may be left out."""

    def make(rng: Rng) -> Case:
        vectors = [_x(rng, *((2, 5, 8) if size == 3 else (8,))) for size in sizes]
        return Case([_x(rng, 2, 5, 8), *vectors], attributes, reference=False)

    return make


def _quantisation(rng: Rng, shape: tuple[int, ...], kind: str) -> tuple[list[Array], dict[str, Any]]:
    axis = int(rng.integers(-1, len(shape)))
    size = () if axis < 0 else (shape[axis],)
    zero = rng.integers(np.iinfo(kind).min // 4, np.iinfo(kind).max // 4 + 1, size).astype(kind)
    return [rng.uniform(0.01, 0.1, size).astype(np.float32), zero], {"axis": axis} if axis >= 0 else {}


def quantize(rng: Rng) -> Case:
    kind, x = _pick(rng, "int8", "uint8"), 3 * _x(rng, 3, 4, 5)
    (scale, zero), attributes = _quantisation(rng, x.shape, kind)
    if kind == "uint8" and rng.random() < 0.3:
        return Case([x, scale], attributes, reference=False)
    return Case([x, scale, zero], attributes, reference=False)


def dequantize(rng: Rng) -> Case:
    kind = _pick(rng, "int8", "uint8")
    x = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (3, 4, 5)).astype(kind)
    (scale, zero), attributes = _quantisation(rng, x.shape, kind)
    return Case([x, scale] if rng.random() < 0.3 else [x, scale, zero], attributes, reference=False)


CASES: dict[str, list[Maker]] = {
    "com.microsoft:FusedConv": [fused_conv],
    "com.microsoft:FusedGemm": [fused_gemm],
    "com.microsoft:FusedMatMul": [fused_matmul],
    "com.microsoft:Gelu": [elementwise(reference=False)],
    "com.microsoft:BiasGelu": [biased(1)],
    "com.microsoft:FastGelu": [biased(), biased(1)],
    "com.microsoft:QuickGelu": [elementwise(reference=False, alpha=(1, 2))],
    "com.microsoft:SkipLayerNormalization": [biased(3, 1), biased(3, 1, 1, epsilon=1e-3), biased(3, 1, 1, 1)],
    "com.microsoft:QuantizeLinear": [quantize],
    "com.microsoft:DequantizeLinear": [dequantize],
    "QuantizeLinear": [quantize],
    "DequantizeLinear": [dequantize],
    "LeakyRelu": [elementwise(alpha=(-0.5, 0.5))],
    "PRelu": [prelu],
    "ThresholdedRelu": [elementwise(alpha=(-1, 2))],
    "Elu": [elementwise(alpha=(0.1, 2))],
    "Selu": [elementwise(alpha=(0.5, 2), gamma=(0.5, 2))],
    "Celu": [elementwise(alpha=(0.3, 2))],
    "HardSigmoid": [elementwise(alpha=(0.1, 0.5), beta=(0.2, 0.8))],
    "HardSwish": [elementwise()],
    "Softplus": [elementwise(-40, 40)],
    "Mish": [elementwise(opset=18)],
    "Softsign": [elementwise()],
    "Swish": [elementwise(opset=24, alpha=(0.5, 2))],
    "Erf": [elementwise(-7, 7, reference=False)],
    "Gelu": [elementwise(opset=20, reference=False), gelu_tanh],
    "Mean": [mean],
    "Cos": [elementwise()],
    "Tan": [elementwise(-1.4, 1.4)],
    "Sinh": [elementwise()],
    "Cosh": [elementwise()],
    "Asinh": [elementwise(-100, 100)],
    "Acosh": [elementwise(1, 50)],
    "Atanh": [elementwise(-0.99, 0.99)],
    "Atan": [elementwise(-50, 50), elementwise(-1, 1)],
    "Asin": [elementwise(-1, 1)],
    "Acos": [elementwise(-1, 1)],
    "NonZero": [non_zero],
    "Hardmax": [hardmax],
    "OneHot": [one_hot],
    "Conv": [conv],
    "ConvTranspose": [conv_transpose],
    "AveragePool": [pool()],
    "LpPool": [pool(power=True)],
    "GlobalAveragePool": [over_space(reference=True)],
    "GlobalMaxPool": [over_space()],
    "GlobalLpPool": [over_space(p=3), over_space()],
    "InstanceNormalization": [instance_normalization],
    "LayerNormalization": [layer_normalization],
    "MeanVarianceNormalization": [mean_variance],
    "LRN": [lrn],
    "Resize": [resize, resize_10],
    "Upsample": [upsample],
    "RNN": [recurrent(1)],
    "GRU": [recurrent(3)],
    "LSTM": [recurrent(4)],
    # What older opsets say otherwise.
    "Softmax": [softmax],
    "LogSoftmax": [softmax],
    "Squeeze": [old(lambda rng: _pick(rng, {}, {"axes": [0]}), 11, 1, 1, 3, 4)],
    "Unsqueeze": [old(lambda rng: {"axes": [0, 3]}, 11)],
    "ReduceSum": [old(lambda rng: _pick(rng, {}, {"axes": [1, 2]}, {"axes": [-1], "keepdims": 0}), 11)],
    "Split": [old(lambda rng: _pick(rng, {"axis": 3}, {"axis": 3, "split": [1, 5]}), 11, 2)],
    "Dropout": [old(lambda rng: {"ratio": 0.4}, 10)],
    "Clip": [old(lambda rng: _pick(rng, {}, {"min": -0.5}, {"max": 0.3}, {"min": -0.2, "max": 0.7}), 10)],
    "Pad": [old(lambda rng: {"pads": [0, 1, 2, 0, 0, 0, 1, 1], "mode": _pick(rng, "constant", "reflect", "edge")}, 10)],
    "Slice": [old(lambda rng: {"starts": [1, -3], "ends": [9, -1], "axes": [1, 3]}, 9)],
    "TopK": [old(lambda rng: {"k": 2, "axis": int(rng.integers(-1, 3))}, 9, 2)],
    # Ops that stay, and that onnx's own node tests don't try in double.
    "Compress": [lambda rng: Case([_x(rng, 3, 4), np.array([True, False, True])], {"axis": 0})],
    "CumSum": [lambda rng: Case([_x(rng, 3, 4), np.array(1)])],
    "DepthToSpace": [old(lambda rng: {"blocksize": 2}, 13, 1, 1, 8, 2, 3)],
    "SpaceToDepth": [old(lambda rng: {"blocksize": 2}, 13, 1, 1, 2, 4, 6)],
    "Einsum": [lambda rng: Case([_x(rng, 3, 4), _x(rng, 4, 5)], {"equation": "ij,jk->ki"})],
    "EyeLike": [old(lambda rng: _pick(rng, {}, {"k": 1, "dtype": 1}), 13, 1, 3, 4)],
    "ReduceLogSum": [lambda rng: Case([np.abs(_x(rng, 3, 4)) + 1])],
    "ReduceLogSumExp": [lambda rng: Case([_x(rng, 3, 4)])],
    "ReverseSequence": [lambda rng: Case([_x(rng, 4, 3), np.array([1, 2, 4])])],
    "RoiAlign": [roi_align],
    "Trilu": [lambda rng: Case([_x(rng, 3, 4)])],
    "Unique": [lambda rng: Case([np.round(_x(rng, 20))], outputs=4)],
}  # fmt: skip
