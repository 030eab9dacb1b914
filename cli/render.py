"""How results look: rows of a label and a text, and one table.

Texts hold names from files that nobody vouches for: all that is shown goes through `clean`, in terminal.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import clean, quoted
from bnfold.plain import finite

from .terminal import Row, progress, show, table

__all__ = [
    "Row", "as_json", "clean", "file", "folded", "inspected", "more", "number", "page", "progress", "show", "size",
    "table",
]  # fmt: skip

if TYPE_CHECKING:
    from bnfold import Entry, FoldResult, Inspection
    from bnfold.inspection import BatchNorm, Neighbour, Port
    from bnfold.report import Merge
    from bnfold.requantize import Requantization

    from .judgement import Judgement

PER_CHANNEL = "that only scale and shift channels (BN; Mul, Add, Sub, Div by constants)"

USUAL_EPSILON = 1e-5

# What an account shows without -v: reasons, names for each, notices. It is 20 lines at most then, whatever the model.
REASONS, NAMES, NOTICES = 3, 3, 3
# Inputs, and outputs, that inspect shows.
PORTS = 8


def size(nbytes: int) -> str:
    """A number of bytes for people.

    >>> size(285245), size(87_000_000), size(999)
    ('285 kB', '87.0 MB', '999 bytes')
    """
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.1f} {name}"
    return f"{nbytes / 1000:.0f} kB" if nbytes >= 1000 else f"{nbytes} bytes"


def file(path: Path) -> str:
    """A file and its size."""
    return f"{path} ({size(path.stat().st_size)})"


def page(files: Iterable[Path]) -> Iterator[Row]:
    """A row for what `--plot` and `--html` wrote."""
    for one in files:
        yield "page", file(one)


def more(count: int) -> Iterator[Row]:
    """A row that says how many are left out, if any are."""
    if count > 0:
        yield "", f"and {count} more; -v shows all"


def as_json(kind: str, data: dict[str, Any]) -> None:
    """Print plain data as JSON; numbers that JSON doesn't have become null.

    `bnfold/schema.json` describes it under the name that comes first: bnfold, the kind, its version.
    """
    import json

    name = f"bnfold:{kind}:{data.get('schema_version', 1)}"
    print(json.dumps({"schema": name, **finite(data)}, indent=2))


# -- fold -------------------------------------------------------------------------------------------


def folded(
    result: FoldResult, model: Path, target: Path, files: Sequence[Path], *, pages: Sequence[Path],
    judgements: Sequence[Judgement], verbose: bool, needs_force: bool, norms: bool,
) -> None:  # fmt: skip
    """Print the account of a fold; `files` is empty if no model was written; `norms`: whether they count."""
    rows = list(_counts(result, norms))
    rows += _checks(result)
    if result.requantization is not None:
        rows += _requantized(result.requantization, verbose)
    rows += [(one.label, one.shown) for one in judgements]
    if verbose:
        rows += [(entry.outcome, _entry(entry)) for entry in result.report.entries]
        rows += [("merged", _merge(merge)) for merge in result.report.merges]
    else:
        rows += _kept((*result.kept, *(entry for entry in result.report.norms if entry.outcome == "kept")))
    notices = result.notices if verbose or len(result.notices) <= NOTICES else result.notices[:NOTICES]
    rows += [("notice", notice) for notice in notices]
    if len(notices) < len(result.notices):
        rows.append(("", f"and {len(result.notices) - len(notices)} more; -v shows all"))
    if files:
        rows.append(("wrote", ", ".join(map(file, files))))
    else:
        exists = " (exists: that will take --force)" if needs_force and target.exists() else ""
        rows.append(("dry run", f"nothing was written; it would be {target}{exists}"))
    show([("read", file(model)), *rows, *page(pages)])


def _counts(result: FoldResult, norms: bool) -> Iterator[Row]:
    report = result.report
    reduced = sum(entry.outcome == "reduced" for entry in report.folded)
    note = f", {reduced} of them to Add or Mul" if reduced else ""
    yield "BN", _change(report.before.batch_norms, report.after.batch_norms) + note
    yield "ops", f"{_change(report.before.per_channel_ops, report.after.per_channel_ops)} {PER_CHANNEL}"
    if norms:
        yield "norms", _norms(report.norms)
    yield "nodes", _change(report.nodes_before, report.nodes_after)
    yield from _merged(report.merges)


def _norms(entries: Sequence[Entry]) -> str:
    """How many norms still scale and shift."""
    reduced = sum(entry.outcome == "reduced" for entry in entries)
    left = sum(entry.outcome != "folded" for entry in entries)
    note = f", {reduced} of them with one of the two" if reduced else ""
    return f"{_change(len(entries), left)} that have a scale or bias of their own{note}"


def _merged(merges: Sequence[Merge]) -> Iterator[Row]:
    """What merging saves, in all; of nodes whose size is unknown it is known for one position of their output."""
    if not merges:
        return
    pairs = [(merge.nodes, merge.multiply_adds, merge.weight_bytes) for merge in merges]
    nodes, work, bytes_ = ([sum(pair[k] for pair in of) for k in (0, 1)] for of in zip(*pairs, strict=True))
    done = f"{number(work[0])} → {number(work[1])} multiply-adds {_per(merges[0])}, "
    if len({merge.per_image for merge in merges}) > 1:
        done = ""
    yield "merged", f"{nodes[0]} nodes → {nodes[1]}: {done}{size(bytes_[0])} → {size(bytes_[1])} of weights"


def _per(merge: Merge) -> str:
    return "an image" if merge.per_image else "a position"


def number(count: int) -> str:
    """A number for people.

    >>> number(950), number(64_000), number(1_234_000_000)
    ('950', '64 k', '1.2 G')
    """
    for unit, name in ((10**9, "G"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1000:.0f} k" if count >= 1000 else str(count)


def _merge(merge: Merge) -> str:
    others = [name for name in merge.parts if name != merge.name]
    shown = ", ".join(quoted(name) for name in others[:NAMES])
    shown += f" and {len(others) - NAMES} more" if len(others) > NAMES else ""
    work = f"{number(merge.multiply_adds[0])} → {number(merge.multiply_adds[1])} multiply-adds"
    return f"{merge.op} {quoted(merge.name)}  took in {shown}: {work} {_per(merge)}"


def _change(before: int, after: int) -> str:
    return f"{before} → {after}" if before else "none"


def _checks(result: FoldResult) -> Iterator[Row]:
    proof, found = result.verification.static, result.verification.relation
    if proof.tensors:
        ulp = f"{proof.worst_ulp:.2g} ulp of the exact result (float64)"
        yield "proof", f"{_plural(proof.tensors, 'new tensor')}, each within {ulp}"
    else:
        yield "proof", "no tensor was changed"
    full = result.verification.comparison
    if full is not None:
        yield "verify", f"{full.verdict}: {full.reason}"
    if found is None:
        yield "check", f"not made: {result.verification.skipped}"
    else:
        noise = f"worst {found.worst:.2g} × the model's own rounding noise (limit {found.limit:g})"
        apart = "" if result.requantization is None else ", the rounding that moved left out"
        yield "check", f"{_plural(found.values, 'value')} obey v' = s(v + t){apart}; {noise}"


def _requantized(found: Requantization, verbose: bool) -> Iterator[Row]:
    """Where rounding went, and what that changes."""
    gone, left = len(found.gone), len(found.pairs) - len(found.gone)
    parts = [f"{left} with steps measured on {_plural(found.samples, 'sample')}"] if left else []
    parts += [f"{gone} gone, since what follows rounds"] if gone else []
    yield "rounding", f"{_plural(len(found.pairs), 'pair')} moved behind BN: {', '.join(parts)}"
    for pair in found.pairs if verbose else ():
        old, new = pair.before, pair.after
        noise = "gone" if new is None else f"noise {_share(old.noise)} → {_share(new.noise)}"
        yield "", f"{quoted(pair.name)}  {noise}" + (f", step {old.step:.3g} → {new.step:.3g}" if new else "")
    for output in found.outputs:
        apart = f"{_share(output.rounding_before)} before, {_share(output.rounding_after)} now"
        kept = f"; {output.same_class} of {_plural(found.compared, 'sample')} keep their class"
        text = f"moved by {_share(output.change)} (rms); from the model without rounding: {apart}"
        yield "output", f"{quoted(output.name)} {text}{'' if output.same_class is None else kept}"


def _share(part: float) -> str:
    return f"{100 * part:.2g} %"


def _kept(entries: Sequence[Entry]) -> Iterator[Row]:
    """What stays, by reason, the most frequent first."""
    reasons: dict[str, list[Entry]] = {}
    for entry in entries:
        reasons.setdefault(entry.reason, []).append(entry)
    ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
    for code, group in ordered[:REASONS]:
        names = ", ".join(_name(entry) for entry in group[:NAMES])
        more = f" and {len(group) - NAMES} more" if len(group) > NAMES else ""
        yield "kept", f"{len(group)} {code}: {names}{more}"
        example = "e.g. " if len({entry.sentence for entry in group}) > 1 else ""
        yield "", f"{example}{group[0].sentence}"
    if rest := sum(len(group) for _, group in ordered[REASONS:]):
        yield "kept", f"{rest} for other reasons: {', '.join(code for code, _ in ordered[REASONS:])}; -v shows all"


def _entry(entry: Entry) -> str:
    code = f"{entry.reason}: " if entry.outcome == "kept" else ""
    op = "" if entry.op == "BatchNormalization" else f"{entry.op} "
    return f"{op}{_name(entry)}  {code}{entry.sentence}"


def _name(of: Entry | BatchNorm) -> str:
    return f"{quoted(of.name)} in {quoted(of.scope)}" if of.scope else quoted(of.name)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


# -- inspect ----------------------------------------------------------------------------------------


def inspected(found: Inspection, pages: Sequence[Path]) -> None:
    """Print what was found in a model."""
    facts = found.facts
    opsets = ", ".join(f"{quoted(domain) if domain else 'opset'} {number}" for domain, number in facts.opsets.items())
    where = [f"{facts.file} ({size(facts.file_bytes)})"] if facts.file and facts.file_bytes is not None else []
    where += [f"{quoted(name)} ({size(nbytes)})" for name, nbytes in facts.data_files.items()]
    inside = f"{facts.nodes} nodes"
    if facts.scopes > 1:
        inside += f" in {facts.scopes} graphs and functions"
    before, after = found.before, found.after
    rows = [
        ("file", ", ".join(where)),
        ("format", f"{opsets}, IR {facts.ir_version}" + (f", by {facts.producer}" if facts.producer else "")),
        ("inside", f"{inside}, {size(facts.weights_bytes)} of weights"),
        *_ports("input", facts.inputs),
        *([("", f"{facts.overridable} initializers are inputs too")] if facts.overridable else []),
        *_ports("output", facts.outputs),
        ("BN", f"{before.batch_norms}; a fold leaves {after.batch_norms}" if before.batch_norms else "none"),
        ("ops", f"{before.per_channel_ops} {PER_CHANNEL}; a fold leaves {after.per_channel_ops}"),
        *_merged(found.merges),
        *_kept([norm.fold for norm in found.batch_norms if norm.fold.outcome == "kept"]),
        *page(pages),
    ]
    show(rows)
    if found.batch_norms:
        print()
        _table(found.batch_norms)


def _ports(label: str, ports: Sequence[Port]) -> Iterator[Row]:
    for position, port in enumerate(ports[:PORTS]):
        yield label if position == 0 else "", f"{quoted(port.name)} {port.type} {_shape(port)}"
    if len(ports) > PORTS:
        yield "", f"and {len(ports) - PORTS} more"


def _shape(port: Port) -> str:
    if port.shape is None:
        return "of unknown rank"
    sizes = ("?" if size is None else quoted(size) if isinstance(size, str) else str(size) for size in port.shape)
    return f"[{', '.join(sizes)}]"


def _table(norms: Iterable[BatchNorm]) -> None:
    """One line a BN; names come last and whole, since --only and --skip want them."""
    rows: list[tuple[str, ...]] = [("a fold", "between", "channels", "min var", "max gain", "stands out", "BatchNorm")]
    for norm in norms:
        entry, found = norm.fold, norm.statistics
        rows.append((
            f"{entry.outcome}, {entry.reason if entry.outcome == 'kept' else entry.route}",
            f"{norm.before.op if norm.before else 'nothing'} … {_ops(norm.behind) or 'nothing'}",
            "?" if norm.channels is None else str(norm.channels),
            "?" if found is None or found.min_variance is None else f"{found.min_variance:.2g}",
            "?" if found is None or found.max_gain is None else f"{found.max_gain:.2g}",
            ", ".join(_conspicuous(norm)),
            _name(norm),
        ))  # fmt: skip
    table(rows)


def _conspicuous(norm: BatchNorm) -> Iterator[str]:
    """What most BN don't have."""
    found = norm.statistics
    if norm.epsilon != USUAL_EPSILON:
        yield f"epsilon {norm.epsilon:g}"
    if found is None:
        yield "parameters are no constants, or don't fit"
        return
    for count, what in (
        (found.dead, "dead"),
        (found.negative, "γ < 0"),
        (found.small_variance, "var < 1e-5"),
        (found.invalid, "invalid"),
    ):
        if count:
            yield f"{count} {what}"


def _ops(neighbours: Sequence[Neighbour]) -> str:
    """Ops of neighbours, each with its number: 'Relu, 3 Conv'."""
    counts: dict[str, int] = {}
    for neighbour in neighbours:
        counts[neighbour.op] = counts.get(neighbour.op, 0) + 1
    return ", ".join(op if count == 1 else f"{count} {op}" for op, count in counts.items())
