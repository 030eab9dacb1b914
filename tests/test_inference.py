"""Shape inference: the onnx library's own, but that it must not end the process."""

from __future__ import annotations

import onnx
import pytest
from onnx import ModelProto
from onnx.parser import parse_model
from probe_text import Probe
from probes import PROBES
from small_models import run

from bnfold.inference import HIDDEN, hides, infer_shapes

HEAD = '<ir_version: 8, opset_import: ["": 17]> g (float[1,3,{size},9] x) => (float[a,b,c,d] y) '
SETTINGS = "<int64[1] b = {0}, int64[1] e = {2}, int64[1] a = {2}, bool[1] t = {1}>"
POOL = "MaxPool <kernel_shape = [3,3]>"
BODY = (
    "= If (t) <then_branch = p () => (float[i,j,k,l] p) {{ {0}p = {1} }},"
    " else_branch = q () => (float[i,j,k,l] q) {{ {0}q = {1} }}>"
)
CUT = "r = Constant <value_ints = [0]> () s = Constant <value_ints = [2]> () "

# Of a size of 1 a pool of 3 leaves -1, at which a Slice aborts; of 7 it leaves 5, and all sizes can be told.
MODELS = {
    "slice-of-a-pool": f"h = {POOL} (x) y = Slice (h, b, e, a)",
    "with-ops-between": f"h = {POOL} (x) r = Relu (h) s = Add (r, r) y = Slice (s, b, e, a)",
    "pool-between-slices": f"s = Slice (x, b, e, a) p = Pad (s, w) h = {POOL} (p) y = Slice (h, b, e, a)",
    "slices-in-a-row": f"h = {POOL} (x) s = Slice (h, b, e, a) r = Slice (s, b, e, a) y = Slice (r, b, e, a)",
    "slice-in-a-body": f"h = {POOL} (x) y {BODY.format(CUT, 'Slice (h, r, s, s)')}",
    "slice-below-a-body": f"h = {POOL} (x) i {BODY.format('', 'Relu (h)')} y = Slice (i, b, e, a)",
    "padded-too-little": "h = MaxPool <kernel_shape = [4,4], pads = [1,0,0,0]> (x) y = Slice (h, b, e, a)",
    "one-short-twice": "h = MaxPool <kernel_shape = [3,3], pads = [1,1,0,1]> (x) "
    "i = MaxPool <kernel_shape = [3,3], pads = [1,1,0,1]> (h) y = Slice (i, b, e, a)",
    "dilated": "h = MaxPool <kernel_shape = [3,3], dilations = [2,1], pads = [1,1,1,1]> (x) y = Slice (h, b, e, a)",
    "negative-pad": "h = Pad (x, m) y = Slice (h, b, e, a)",
}  # fmt: skip
NEVER = {
    # what is left by the first Slice, of any input, is too small for the second window
    "window-below-a-slice": f"h = {POOL} (x) s = Slice (h, b, e, a) p = MaxPool <kernel_shape = [4,4]> (s) "
    "y = Slice (p, b, e, a)",
}
PADS = "int64[8] w = {0,0,1,0,0,0,1,0}, int64[8] m = {0,0,-1,0,0,0,-1,0}"


def model(name: str, size: int | str) -> ModelProto:
    settings = SETTINGS.replace(">", f", {PADS}>")
    return parse_model(f"{HEAD.format(size=size)} {settings} {{ {(MODELS | NEVER)[name]} }}")


def shapes(proto: ModelProto) -> dict[str, list[int]]:
    infos = (*proto.graph.value_info, *proto.graph.output)
    return {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in infos}


def test_no_size_ends_the_process() -> None:
    script = """
        import sys
        sys.path[:0] = {path}
        from bnfold.inference import infer_shapes
        from test_inference import MODELS, NEVER, model
        for name in MODELS | NEVER:
            for size in (1, 2, 3, 7, -1, "N"):
                given = model(name, 5 if size == -1 else size)
                if size == -1:
                    given.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -1
                infer_shapes(given)
            print(name)
    """
    assert run(script).split() == [*MODELS, *NEVER]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_possible_is_known(name: str) -> None:
    given = model(name, 7)
    before = given.SerializeToString(deterministic=True)
    found = shapes(infer_shapes(given))
    assert found == shapes(onnx.shape_inference.infer_shapes(given, data_prop=True))
    assert found["y"][2] == 2
    assert given.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_same_as_the_library(probe: Probe) -> None:
    given = probe.model()
    assert shapes(infer_shapes(given)) == shapes(onnx.shape_inference.infer_shapes(given, data_prop=True))


def test_a_window_inside_of_a_body_hides_what_is_below() -> None:
    """Nobody tells its sizes: the Slice stays unknown, and its name is as it was."""
    inner = BODY.format("", f"{POOL} (x)")
    given = parse_model(f"{HEAD.format(size=7)} {SETTINGS} {{ i {inner} y = Slice (i, b, e, a) }}")
    inferred = infer_shapes(given)
    assert [node.op_type for node in given.graph.node] == ["If", "Slice"]
    assert [node.op_type for node in inferred.graph.node] == ["If", HIDDEN]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the library's inference is run."""
    found: list[int] = []
    plain = onnx.shape_inference.infer_shapes

    def counted(*arguments: object, **options: object) -> ModelProto:
        found.append(1)
        return plain(*arguments, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", counted)
    return found


def test_windows_that_are_padded_enough_cost_no_pass(passes: list[int]) -> None:
    """Blocks of a ShuffleNet: each Slice that is hidden would be shown in a pass of its own."""
    pool = "MaxPool <kernel_shape = [3,3], dilations = [2,1], pads = [2,1,2,1], strides = [2,1]>"
    blocks = "".join(f"h{i} = {pool} (s{i}) s{i + 1} = Slice (h{i}, b, e, a) " for i in range(5))
    given = parse_model(f"{HEAD.format(size='N')} {SETTINGS} {{ s0 = Relu (x) {blocks} y = Relu (s5) }}")
    infer_shapes(given)
    assert len(passes) == 1


def test_what_is_settled_costs_no_pass_again(passes: list[int]) -> None:
    """Blocks of a GhostNetV2: each Slice is shown in a pass of its own, but once for all rounds of an analysis."""
    block = "h{0} = {1} (p{0}) s{0} = Slice (h{0}, b, e, a) p{2} = Pad (s{0}, u) "
    blocks = "".join(block.format(i, POOL, i + 1) for i in range(3))
    settings = SETTINGS.replace(">", ", int64[8] u = {0,0,2,2,0,0,2,2}>")
    given = parse_model(f"{HEAD.format(size=9)} {settings} {{ p0 = Relu (x) {blocks} y = Relu (p3) }}")
    settled: set[str] = set()
    first = shapes(infer_shapes(given, settled))
    assert len(passes) == 4 and settled == {"s0", "s1", "s2"}
    assert shapes(infer_shapes(given, settled)) == first
    assert len(passes) == 5


def test_what_has_no_known_size_is_not_settled() -> None:
    """A later round may know it, and then it may be negative."""
    given = parse_model(f"{HEAD.format(size='N')} {SETTINGS} {{ h = {POOL} (x) y = Slice (h, b, e, a) }}")
    settled: set[str] = set()
    assert [node.op_type for node in infer_shapes(given, settled).graph.node] == ["MaxPool", "Slice"]
    assert not settled
    assert hides(infer_shapes(given, guess=False)) and not hides(infer_shapes(given))
