"""Models as ONNX Runtime's own quantiser writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

Array = np.ndarray[Any, Any]

SMALL = (
    "x[N,3,8,8] -> y | c = Conv<pads=[1,1,1,1]>(x, w[8,3,3,3]); n = BN8(c); r = Relu(n); "
    "d = Conv<pads=[1,1,1,1], group=8>(r, v[8,1,3,3], e[8]); m = BN8(d); s = Add(m, r); p = GlobalAveragePool(s); "
    "f = Flatten(p); g = Gemm<transB=1>(f, u[5,8], b[5]); y = BN5(g)"
)


class Calibration:
    def __init__(self, model: ModelProto, shape: tuple[int, ...]) -> None:
        name, rng = model.graph.input[0].name, np.random.default_rng(0)
        self.feeds = iter([{name: rng.normal(0, 1, shape).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.feeds, None)


def quantised(
    model: ModelProto, shape: tuple[int, ...], tmp_path: Path, *, per_channel: bool, outputs: bool,
    weights: str = "QInt8",
) -> ModelProto:  # fmt: skip
    """What ONNX Runtime's own quantiser makes of a model; `outputs`: it rounds those of Conv and Gemm, too."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    onnx.save(model, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "qdq.onnx", Calibration(model, shape), quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "Add", "Relu"], per_channel=per_channel,
        weight_type=QuantType[weights], activation_type=QuantType.QUInt8,
        extra_options={} if outputs else {"OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"]},
    )  # fmt: skip
    return onnx.load(tmp_path / "qdq.onnx")
