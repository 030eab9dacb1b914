"""Fold BatchNormalization behind rounded activations: move the rounding behind it, with steps measured on data.

A BN behind DequantizeLinear(QuantizeLinear(x)) has steps of another size in each channel, which no integer kernel
takes; no exact fold exists. With the pair out of the way it goes into the linear node in front, and what is rounded
then is what BN makes of the values:

    W x  →  Q  →  DQ  →  BN            becomes            (BN W) x  →  Q'  →  DQ'

    loosen    the pairs that are in the way become Identities, as few as will do
    fold      the rest is an ordinary fold, with its proof (`bnfold.fold`)
    finish    steps of the least error are measured, the pairs put back, the outputs compared

A pair goes for good where what reads it rounds anyway.  One that clips away what a Relu would (quantisers leave a Relu
out where the limits do the same) is part of the function and stays, and so does the BN behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bnfold.errors import quoted
from bnfold.fold import Folding, Options, fold_model
from bnfold.graph import Graph
from bnfold.model_file import LoadedModel
from bnfold.recalibrate.data import Data
from bnfold.report import FoldReport
from bnfold.requantize.account import OutputChange, Requantization, Requantized, rounding
from bnfold.requantize.measure import Tally, compare, count, watch
from bnfold.requantize.pairs import Pair, find_pairs, loosened, needed, put_back, sources
from bnfold.requantize.search import in_the_way, moved, scaled

__all__ = ["Loosened", "OutputChange", "Requantization", "Requantized", "finish", "loosen"]

# Values of each pair are in memory for so many samples.
SAMPLES_AT_A_TIME = 16
# The part of the variance that limits may clip away: calibration on percentiles or entropy clips some 0.1 %, a Relu
# of normal values around 0 half of it.
CLIPPED = 0.01


@dataclass(frozen=True)
class Loosened:
    """A model with the pairs out of the way.

    Attributes:
        model: with Identities in their place.
        pairs: those.
        tallies: what each does to the data, by its number.
        notices: what the user should know.
        plain: what a fold does if no pair goes out of the way.
    """

    model: LoadedModel
    pairs: tuple[Pair, ...]
    tallies: dict[int, Tally]
    notices: tuple[str, ...]
    plain: FoldReport


def loosen(original: LoadedModel, options: Options, data: Data) -> Loosened:
    """Take as few pairs out of the way as let all BN go that can go; the original itself if none has to.

    Raises: ModelError if the model isn't sound or can't be run; UsageError if the data don't fit it.
    """
    offered = find_pairs(original, options)
    plain = fold_model(original, options)
    notices: list[str] = []
    while True:
        pairs, maps = in_the_way(original, options, plain, offered)
        tallies = watch(original, pairs, maps, data) if pairs else {}
        clipping = [pair for pair in pairs if tallies[pair.number].clipped > CLIPPED]
        if not clipping:
            break
        notices += [_told(pair, tallies[pair.number]) for pair in clipping]
        offered = [pair for pair in offered if pair not in clipping]
    if not pairs:
        notices.append("no rounding had to move: the data were not needed")
    model = loosened(original, pairs) if pairs else original
    return Loosened(model, tuple(pairs), tallies, tuple(notices), plain.report)


def _told(pair: Pair, tally: Tally) -> str:
    return (
        f"{quoted(pair.name)} clips {100 * tally.clipped:.2g} % of its values' variance away, as a Relu would: it is "
        f"part of the function and stays, with the BN behind it"
    )


def finish(original: LoadedModel, folding: Folding, loose: Loosened, data: Data) -> tuple[Folding, Requantization]:
    """Put the pairs back into a folded model, with new steps, and compare the outputs.

    Raises: ModelError if the model can't be run, or a value isn't finite.
    """
    changed = moved(folding, loose.pairs)
    steps = {pair.number: scaled(folding, pair) for pair in loose.pairs if pair not in changed}
    wanted, names = needed(folding.model) & {pair.number for pair in changed}, sources(folding.model)
    seen = count(folding.model, {number: names[number] for number in wanted}, data)
    changes: list[Requantized] = []
    for pair in changed:
        before, after = rounding(pair.steps, loose.tallies[pair.number].noise), None
        if pair.number in seen:
            steps[pair.number], noise = seen[pair.number].best_steps(pair.steps)
            after = rounding(steps[pair.number], noise)
        changes.append(Requantized(pair.name, pair.source.name, before, after))
    result = folding.model.copy()
    put_back(result, original, loose.pairs, steps)
    compared, outputs = compare(original, result, data.held_out or data)
    nodes = sum(len(scope.nodes) for scope in Graph(result.proto).scopes)
    report = replace(folding.report, nodes_before=loose.plain.nodes_before, nodes_after=nodes)
    found = Requantization(data.count or compared, tuple(changes), outputs, compared)
    return replace(folding, model=result, report=report), found
