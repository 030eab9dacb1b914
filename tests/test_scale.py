"""Time grows with the size of the model, whichever way it is large, and no depth is a recursion.

Ratios of CPU times at two sizes, not seconds: they hold on slow and busy machines too.  `benchmarks/scale.py` has the
full sizes and the limits in seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from conftest import REPO
from onnx import ModelProto
from small_models import run

import bnfold
from bnfold.fold import Options, fold_model
from bnfold.model_file import wrap
from bnfold.verify import runtime

sys.path.append(str(REPO / "benchmarks"))
import harness
import scale

SIZES = {scale.pairs: 800, scale.chained: 3200, scale.many_norms: 400, scale.many_convs: 800, scale.preactivation: 160}
LARGEST_RATIO = 7.0
"""Of times at n and n / 4: 4 is linear, 16 quadratic; what is beyond 4 is left to noise."""


def folding_time(build: Callable[[int], ModelProto], count: int) -> float:
    model = wrap(build(count))
    return scale.seconds(lambda: fold_model(model, Options()))


@pytest.mark.parametrize("build", SIZES, ids=lambda build: build.__name__)
def test_time_is_linear(build: Callable[[int], ModelProto]) -> None:
    folding_time(build, 8)
    for _ in range(3):  # a neighbour may have disturbed one of the two
        ratio = folding_time(build, SIZES[build]) / folding_time(build, SIZES[build] // 4)
        if ratio <= LARGEST_RATIO:
            return
    pytest.fail(f"{ratio:.1f} times the time at 4 times the size")


def test_verify_loads_a_large_model_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """In double 100 Conv are 3,000 nodes, and loading them takes ONNX Runtime a time quadratic in their number."""
    sizes: list[int] = []
    real = runtime._session

    def counting(model: ModelProto, *rest: object) -> object:
        sizes.append(len(model.graph.node))
        return real(model, *rest)

    monkeypatch.setattr(runtime, "_session", counting)
    model = scale.pairs(100)
    assert bnfold.verify(model, model).equal
    assert len(sizes) > 20
    assert max(sizes) < 1000


LEFT = {scale.pairs: 0, scale.chained: 1, scale.many_norms: 49, scale.many_convs: 0, scale.preactivation: 0}
"""BN or Mul and Add that 50 of each can't do without: one chain is one BN, one value has one scale and shift."""


@pytest.mark.parametrize("build", LEFT, ids=lambda build: build.__name__)
def test_large_models_are_folded_like_small_ones(build: Callable[[int], ModelProto]) -> None:
    report = fold_model(wrap(build(50)), Options()).report
    assert report.after.per_channel_ops == LEFT[build]


def test_depth_is_no_recursion() -> None:
    """1,800 nodes in a row, with room for 200 calls in all."""
    script = """
        import sys
        sys.path[:0] = {path} + [{benchmarks!r}]
        import scale
        from bnfold.fold import Options, fold_model
        from bnfold.model_file import wrap
from bnfold.verify import runtime
        fold_model(wrap(scale.pairs(2)), Options())
        sizes = [(scale.pairs, 600), (scale.chained, 2000), (scale.preactivation, 150)]
        models = [wrap(build(count)) for build, count in sizes]
        sys.setrecursionlimit(200)
        print([fold_model(model, Options()).report.after.batch_norms for model in models])
    """
    assert run(script, benchmarks=str(REPO / "benchmarks")).strip() == "[0, 1, 0]"


def test_help_takes_no_time() -> None:
    """0.4 CPU seconds of the whole process, which waits for neither numpy nor onnx."""
    costs = [harness.run([sys.executable, "-m", "bnfold", "--help"]) for _ in range(3)]
    assert not costs[0].error
    assert min(cost.cpu for cost in costs) < 0.4
