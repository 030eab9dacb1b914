"""What becomes of a BN that can't go whole: `fold(kept=…)`, `bnfold fold --kept`.

    keep     it stays a BN
    reduce   where its scale alone can go an Add is left of it, where its shift alone can go a Mul; else it stays
    auto     reduce, but not where ONNX Runtime computes the BN in the blocked layout of its Convs
    affine   reduce, and what else stays is written as Mul and Add

`auto` is what `benchmarks/remains.py` measures.  Between Convs of images ONNX Runtime's CPU provider computes a BN,
with the Relu behind it, in the layout that its Convs work in (NCHWc).  It has no Add or Mul by a constant there: values
are brought out of that layout and back, which costs more than the BN did.  Elsewhere an Add costs what a BN does, or
less (0.9 times it in an MLP).

`affine` is for runtimes and quantisers without BN.  BN of mean 0, variance 1 and epsilon 0 is no form of its own: it is
the same op for every runtime, and statistics measured for it later would be divided out a second time.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

from bnfold.errors import UsageError, quoted
from bnfold.fold.ties import Affine
from bnfold.graph import Scope, Value

Kept = Literal["auto", "reduce", "keep", "affine"]

MUL_ADD_RANGE = "mul-add-range"  # the code of a BN that can't be written as Mul and Add

# Ops after which a value of rank 4 is in the blocked layout, and those that hand it on or become part of a Conv
# (nchwc_transformer.cc and conv_activation_fusion.cc of ONNX Runtime 1.31).
_MAKES_BLOCKED = frozenset({"Conv", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"})
_HANDS_ON = frozenset(
    "Relu LeakyRelu Clip Sigmoid HardSigmoid Tanh Add Sum Mul Concat BatchNormalization Resize Upsample Identity "
    "Dropout".split()
)


def read_kept(word: str, option: str) -> Kept:
    """The word, if it is one of `Kept`.

    Raises:
        UsageError: it is none.
    """
    *first, last = (quoted(known) for known in get_args(Kept))
    if word not in get_args(Kept):
        raise UsageError(f"{option} is {', '.join(first)} or {last}, not {quoted(word)}")
    return cast("Kept", word)


def blocked_values(scope: Scope) -> set[Value]:
    """Values that ONNX Runtime has in the blocked layout, if they are of rank 4."""
    blocked: set[Value] = set()
    for node in scope.nodes:
        if node.op in _MAKES_BLOCKED or (node.op in _HANDS_ON and any(value in blocked for value in node.inputs)):
            blocked.update(value for value in node.outputs[:1] if value is not None)
    return blocked


def stays_blocked(op: Affine, blocked: set[Value]) -> bool:
    """True if an Add or a Mul in place of this op would leave the blocked layout."""
    return op.is_norm and op.a.ndim == 4 and op.source in blocked
