"""The static proof finds every new weight and bias that is not the exact one, rounded; without any data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO
from onnx import numpy_helper
from probes import Probe

from bnfold.errors import NotEquivalentError
from bnfold.fold import Folding, Options, fold_model
from bnfold.model_file import LoadedModel, load, wrap
from bnfold.verify.static import prove

TEXTS = {
    "BN behind Conv": "x[N,3,6,5] -> y | h = Conv(x, w[4,3,3,3], b[4]); y = BN4(h)",
    "BN before Conv": "x[N,3,6,5] -> y | h = BN3(x); y = Conv(h, w[4,3,3,3], b[4])",
    "groups": "x[N,4,6,5] -> y | g = BN4(x); h = Conv<group=2>(g, w[6,2,3,3]); y = BN6(h)",
    "ConvTranspose": "x[N,3,4,4] -> y | h = ConvTranspose<group=1>(x, w[3,4,2,2], b[4]); y = BN4(h)",
    "Gemm": "x[N,6] -> y | g = BN6(x); h = Gemm<alpha=0.5, beta=2.0>(g, w[6,4], b[4]); y = BN4(h)",
    "MatMul": "x[N,6] -> y | g = BN6(x); h = MatMul(g, w[6,4]); y = BN4(h)",
    "GRU": "x[5,N,3] -> y | t = Transpose<perm=[1,2,0]>(x); g = BN3(t); u = Transpose<perm=[2,0,1]>(g);"
    "y, c = GRU<hidden_size=4>(u, w[1,12,3], r[1,12,4], b[1,24])",
}
PLACES = {**dict.fromkeys(TEXTS), "digits_preact": REPO / "sample_models" / "digits_preact.onnx"}


def opened(name: str) -> LoadedModel:
    place = PLACES[name]
    return wrap(Probe(name.replace(" ", "-"), "", TEXTS[name]).model()) if place is None else load(Path(place))


def moved_by(ulps: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(content: np.ndarray) -> np.ndarray:
        changed = content.copy()
        largest = np.argmax(np.abs(changed))
        changed.reshape(-1)[largest : largest + 1].view(np.int32)[:] += ulps
        return changed

    return change


@pytest.mark.parametrize("role", ["weight", "bias"])
@pytest.mark.parametrize("name", PLACES)
def test_a_few_units_in_the_last_place_are_seen(name: str, role: str) -> None:
    original = opened(name)
    count = sum(item.role == role for item in fold_model(original, Options()).rewrite.rewritten)
    if role == "bias":
        assert count
    for place in range(min(count, 2)):
        for change in (moved_by(3), np.zeros_like):
            folding = fold_model(original, Options())
            assert prove(folding.rewrite, folding.model.weights).worst_ulp <= 1
            spoil(folding, role, place, change)
            with pytest.raises(NotEquivalentError, match="units in the last place"):
                prove(folding.rewrite, folding.model.weights)


def spoil(folding: Folding, role: str, place: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = [item for item in folding.rewrite.rewritten if item.role == role][place].tensor
    content = change(folding.model.weights.read(tensor))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(content), tensor.name))
