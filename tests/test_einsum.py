"""Einsum's equations, and tables of embeddings that several nodes read: what the probe table has no row for."""

from __future__ import annotations

import pytest
from oracle import assert_same_function, left
from probe_text import Probe

import bnfold
from bnfold.fold.ops.einsum import read_equation


@pytest.mark.parametrize(
    ("equation", "ranks", "expected"),
    [
        ("bsd,df->bsf", (3, 2), ("bsd", "df", "bsf")),
        (" b s d , d f -> b s f", (3, 2), ("bsd", "df", "bsf")),
        ("...d,df->...f", (4, 2), ("321d", "df", "321f")),
        ("...d,df->...f", (1, 2), ("d", "df", "f")),
        ("...d,...df->...f", (3, 3), ("21d", "1df", "21f")),
        ("b...d,df->b...f", (3, 2), ("b1d", "df", "b1f")),
        ("bsd,df", (3, 2), ("bsd", "df", "bfs")),
        ("...d,df", (3, 2), ("21d", "df", "21f")),
        ("BsD,DF", (3, 2), ("BsD", "DF", "BFs")),
        ("bd,d->", (2, 1), ("bd", "d", "")),
        ("bdd,do->bo", (3, 2), None),  # a diagonal
        ("bd,do->bbo", (2, 2), None),
        ("bd,do->bx", (2, 2), None),
        ("bsd,df->bsf", (4, 2), None),  # another rank
        ("bd->db", (2, 2), None),
        ("bd,df,fg->bg", (2, 2), None),
        ("b1,1f->bf", (2, 2), None),
        ("b....d,df->bf", (3, 2), None),
    ],
)
def test_equation(equation: str, ranks: tuple[int, int], expected: tuple[str, str, str] | None) -> None:
    assert read_equation(equation, ranks) == (None if expected is None else tuple(map(tuple, expected)))


DEAD = [1.0, 0.0, -1.0, 2.0]
CASES = [
    # rows in another order than the constant's: no rule, and above all no wrong one
    Probe("rows-exchanged", "??????",
          'x[N,2,3] -> y | h = Einsum<equation="bgi,gio->bog">(x, w[2,3,2]); '
          "f = Reshape(h, a:int64[2]={-1,4}); y = BN4(f)", 1, "no rule"),
    Probe("nothing-in-common", "??????",
          'x[N,3] -> y | h = BN3(x); y = Einsum<equation="bd,eo->bdo">(h, w[3,4])', 1, "no rule"),
    Probe("dead-columns", "??????",
          'x[N,4] -> y | h = BN4(x); y = Einsum<equation="bd,do->bo">(h, w[4,3])', values={"h_gamma": DEAD}),
    Probe("table-in-a-body", "??????",
          "i:int64[N] c:bool[] -> y, z | e = Gather(t[5,4], i); y = BN4(e); z = If(c) "
          "<then_branch = p () => (float[5,4] a) { a = Relu(t) }, else_branch = q () => (float[5,4] b) { b = Neg(t) }>",
          1, "shared"),
    Probe("table-read-in-a-body", "??????",
          "i:int64[N] c:bool[] -> y | o = Relu(t[5,4]); y = If(c) "
          "<then_branch = p () => (float[N,4] a) { e = Gather(t, i); a = BN4(e) }, "
          "else_branch = q () => (float[N,4] b) { b = Gather(o, i) }>", 1, "shared"),
    Probe("table-along-two-axes", "??????",
          "i:int64[N] -> y, z | e = Gather(t[4,4], i); y = BN4(e); "
          "f = Gather<axis=1>(t, i); g = Transpose<perm=[1,0]>(f); z = BN4(g)", 2, "shared"),
    Probe("table-dead", "??????",
          "i:int64[N] j:int64[N] -> y, z | e = Gather(t[5,4], i); y = BN4(e); f = Gather(t, j); z = Relu(f)",
          1, "shared", values={"y_gamma": DEAD}),
]  # fmt: skip


@pytest.mark.parametrize("probe", CASES, ids=lambda probe: probe.name)
def test_function_stays(probe: Probe) -> None:
    model = probe.model()
    result = bnfold.fold(model)
    assert_same_function(model, result.model, probe.batches())
    assert left(result.model).bn == probe.left


def test_two_readers_still_share_the_table() -> None:
    text = (
        "i:int64[N] j:int64[N] -> y, z | e = Gather(t[5,4], i); y = BatchNormalization(e, g[4], b[4], m[4], v_var[4]); "
        "f = Gather(t, j); z = BatchNormalization(f, g, b, m, v_var)"
    )
    result = bnfold.fold(Probe("embedding-two-readers", "??????", text).model())
    assert [tensor.name for tensor in result.model.graph.initializer] == ["t"]
