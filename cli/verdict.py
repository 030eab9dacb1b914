"""How a verdict looks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import quoted

from . import render

if TYPE_CHECKING:
    from bnfold import Comparison
    from bnfold.inspection import Port
    from bnfold.verify.comparison import OutputReport, SegmentReport

# What is shown without -v.
NOTES, PORTS = 4, 8


def show(found: Comparison, a: str, b: str | None, files: Sequence[str], *, verbose: bool) -> None:
    """Print a verdict, the signatures first."""
    rows = [("A", _named(a))]
    second = f"{_named(b) if b else 'A itself'}{_by_runtime(found)}"
    rows += [("B", second)] if b or found.settings["optimized"] else []
    for role, pairs in (("input", found.signature.inputs), ("output", found.signature.outputs)):
        rows += _ports(role, pairs)
    rows += [("differs", sentence) for sentence in found.signature.differences]
    if found.inputs:
        rows.append(("fed", found.inputs))
    rows.append(("verdict", f"{found.verdict}: {found.reason}" if found.reason else found.verdict))
    if found.first is not None:
        rows += _where(found.first)
    notes = found.notes if verbose else found.notes[:NOTES]
    rows += [("note", note) for note in notes]
    if len(notes) < len(found.notes):
        rows.append(("", f"and {len(found.notes) - len(notes)} more; -v shows all"))
    if found.verdict == "rounding-scale difference":
        rows.append(("warning", "counted as equal; --strict counts it as different"))
    rows += [("wrote", ", ".join(files))] if files else []
    render.show(rows)
    if found.outputs:
        print()
        render.table(_outputs(found.outputs))
    if verbose and found.segments:
        print()
        render.table(_segments(found.segments))


def _named(name: str) -> str:
    return render.file(Path(name)) if os.path.isfile(name) else name


def _by_runtime(found: Comparison) -> str:
    return ", as ONNX Runtime's optimiser leaves it" if found.settings["optimized"] else ""


def _ports(role: str, pairs: Sequence[tuple[Port, Port | None]]) -> Iterator[render.Row]:
    from bnfold.verify.signature import shown

    for place, (ours, theirs) in enumerate(pairs[:PORTS]):
        same = theirs is not None and (ours.name, ours.type, ours.shape) == (theirs.name, theirs.type, theirs.shape)
        other = "" if same else "; not in B" if theirs is None else f"; in B {quoted(theirs.name)} {shown(theirs)}"
        yield role if place == 0 else "", f"{quoted(ours.name)} {shown(ours)}{other}"
    if len(pairs) > PORTS:
        yield "", f"and {len(pairs) - PORTS} more"


def _where(segment: SegmentReport) -> Iterator[render.Row]:
    """The first segment that differs."""
    other = "" if segment.value == segment.value_b else f", in B {quoted(segment.value_b)}"
    yield "first", f"node {quoted(segment.node)} ({segment.op}), value {quoted(segment.value)}{other}"
    if segment.channels:
        channels = ", ".join(map(str, segment.channels))
        more = f" and {segment.bad - len(segment.channels)} more" if segment.bad > len(segment.channels) else ""
        if segment.bad > 1:
            yield "", f"channels {channels}{more} of {segment.count} (axis {segment.axis}), the worst first"
        else:
            yield "", f"channel {channels} of {segment.count} (axis {segment.axis})"
    if segment.batch_norms:
        names = ", ".join(map(quoted, segment.batch_norms[:3]))
        more = f" and {len(segment.batch_norms) - 3} more" if len(segment.batch_norms) > 3 else ""
        yield "", f"it covers BatchNorm {names}{more} of A"


def _outputs(outputs: Sequence[OutputReport]) -> Iterator[tuple[str, ...]]:
    yield "max abs", "max rel", "rms rel", "SQNR dB", "cosine", "argmax", "output"
    for output in outputs:
        if output.differing is not None:
            what = "equal" if not output.differing else f"{output.differing} elements differ"
            yield what, "", "", "", "", f"{output.ties} ties" if output.ties else "", quoted(output.name)
            continue
        yield (
            f"{output.max_abs:.2g}", f"{output.max_rel:.2g}", f"{output.rms_rel:.2g}",
            "exact" if output.sqnr_db is None else f"{output.sqnr_db:.1f}",
            "?" if output.cosine is None else f"{output.cosine:.9g}",
            "" if output.argmax is None else f"{100 * output.argmax:.4g} %",
            quoted(output.name),
        )  # fmt: skip


def _segments(segments: Sequence[SegmentReport]) -> Iterator[tuple[str, ...]]:
    yield "r", "channels off", "paired by", "op", "value"
    for segment in segments:
        other = "" if segment.value == segment.value_b else f" = {quoted(segment.value_b)}"
        off = f"{segment.bad} of {segment.count}" if segment.bad else ""
        yield f"{segment.r:.3g}", off, segment.basis, segment.op, f"{quoted(segment.value)}{other}"
