"""What each verb's page holds, made of the very data that `--json` prints, and of the drawing of the network.

Each function gives the parts of a page: title, subtitle, sections.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bnfold.page.document import Cell, Row, cards, details, facts, number, paragraph, section, table
from bnfold.page.drawings import (
    AMBER,
    BLUE,
    GREY,
    LONG,
    PURPLE,
    RED,
    REDS,
    SHAPES,
    SKY,
    TEAL,
    Group,
    Mark,
    drift_figure,
    gain_figure,
    network_figure,
    residual_figure,
)
from bnfold.page.network import Network
from bnfold.plain import finite
from bnfold.report import REASONS
from bnfold.verify import criterion

Report = Mapping[str, Any]
Parts = tuple[str, str, list[str]]

BATCH_NORM = "BatchNormalization"
ROUTES = {
    "backward": Group("folded backward", BLUE, "circle", 10),
    "forward": Group("folded forward", TEAL, "triangle-right", 11),
    "both ways": Group("folded both ways", PURPLE, "diamond", 12),
    "merged": Group("merged with its branch", SKY, "square", 13),
}
FOLDED = Group("folded", BLUE, "circle", 14)
REDUCED = Group("reduced to an Add or a Mul", AMBER, "hexagon", 9)
ARITHMETIC = Group("Mul, Add, Sub or Div that went", BLUE, "circle-open", 20)
# Scores of drift: what each says of the old statistics.
SCORES = (
    (0.01, Group("score < 0.01: as it was", BLUE, "circle", 13)),
    (0.1, Group("score < 0.1", TEAL, "circle", 12)),
    (1.0, Group("score < 1", AMBER, "diamond", 11)),
    (float("inf"), Group("score ≥ 1: stale", RED, "star", 10)),
)
UNMEASURED = Group("not measured", GREY, "x", 14)
EQUAL = Group(f"equal: r ≤ {criterion.EQUAL:g}", BLUE, "circle", 13)
ROUNDING = Group(f"rounding scale: r ≤ {criterion.DIFFERENT:g}", AMBER, "diamond", 12)
DIFFERENT = Group("different", RED, "x", 10)
MOVED = Group("in other coordinates, not judged", GREY, "circle-open", 14)
NORMED = Group("gets BatchNorm", BLUE, "circle", 10)
VERDICTS = {"equal": "good", "rounding-scale difference": "unsure", "different": "bad", "cannot tell": "unsure"}


# -- fold and inspect -------------------------------------------------------------------------------


def for_fold(report: Report, network: Network, digests: Mapping[str, str]) -> Parts:
    """The page of `bnfold fold`; `digests`: SHA-256 of the files, by name."""
    entries = report["entries"]
    found = _positions(network)
    marks = fates(entries, network)
    norms, ops, nodes = report["batch_norms"], report["per_channel_ops"], report["nodes"]
    sections = [
        section(
            "What a fold does" if not report["written"] else "What was done",
            cards([_change(norms, "BatchNorm"), _change(ops, "ops that only scale or shift"), _change(nodes, "nodes")]),
            _reasons(entry for entry in entries if entry["op"] == BATCH_NORM),
        ),
        _drawn(network, marks),
        section("How it is known", _proof(report["verification"]), _digests(digests)),
        section("Every BatchNorm", _entries(entries, found, norms=True)),
        section("Mul, Add, Sub and Div", _entries(entries, found, norms=False)),
        section("Nodes that became one", _merges(report["merges"])),
        section("Rounding that moved", *_rounding(report["requantization"])),
        _notices(report["notices"]),
    ]
    done = f"written to {report['output']}" if report["written"] else "nothing was written"
    return f"fold {report['input']}", done, sections


def for_inspect(report: Report, network: Network) -> Parts:
    """The page of `bnfold inspect`."""
    model, norms, fold = report["model"], report["batch_norms"], report["fold"]
    found = _positions(network)
    entries = [norm["fold"] for norm in norms]
    rows: list[Row] = []
    for norm in norms:
        entry, known = norm["fold"], norm["statistics"] or {}
        rows.append((
            _named(norm["name"], norm["scope"], found), _fate(entry).name, entry["sentence"],
            (norm["before"] or {"op": "nothing"})["op"],
            ", ".join(f"{count} {op}" if count > 1 else op
                      for op, count in Counter(one["op"] for one in norm["behind"]).items()) or "nothing",
            number(norm["channels"], 9), number(known.get("min_variance")), number(known.get("max_gain")),
            number(known.get("dead"), 9), number(known.get("negative"), 9), number(norm["epsilon"]),
        ))  # fmt: skip
    head = ("BatchNorm", "a fold", "how, or why not", "in front", "behind", "channels", "min var", "max gain",
            "γ = 0", "γ < 0", "epsilon")  # fmt: skip
    opsets = ", ".join(f"{domain or 'opset'} {version}" for domain, version in model["opsets"].items())
    ports = [(role, f"{port['name']} {port['type']} {_shape(port['shape'])}")
             for role, of in (("input", model["inputs"]), ("output", model["outputs"])) for port in of]  # fmt: skip
    sections = [
        section(
            "What a fold would do",
            cards([_change(fold["batch_norms"], "BatchNorm"),
                   _change(fold["per_channel_ops"], "ops that only scale or shift"), _change(fold["nodes"], "nodes")]),
            _reasons(entries),
        ),
        _drawn(network, fates(entries, network)),
        section("Variances and gains", gain_figure(norms) if any(norm["statistics"] for norm in norms) else ""),
        section("Every BatchNorm", table(head, rows)),
        section("Nodes that would become one", _merges(fold["merges"])),
        section("The file", facts([("format", f"{opsets}, IR {model['ir_version']}"), ("made by", model["producer"]),
                                   ("weights", f"{model['weights_bytes']:,} bytes"), *ports])),
        _notices(report["notices"]),
    ]  # fmt: skip
    return f"inspect {model['file'] or 'model'}", f"{len(norms)} BatchNorm, {model['nodes']} nodes", sections


def _fate(entry: Report) -> Group:
    """What became of a BN, as a group; a kept one's is that of its reason."""
    if entry["outcome"] == "kept":
        order = list(REASONS).index(entry["reason"]) if entry["reason"] in REASONS else len(REASONS)
        return Group(f"kept: {entry['reason']}", REDS[order % len(REDS)], SHAPES[order % len(SHAPES)], 1)
    if entry["op"] != BATCH_NORM:
        return ARITHMETIC
    return REDUCED if entry["outcome"] == "reduced" else ROUTES.get(entry["route"], FOLDED)


def fates(entries: Iterable[Report], network: Network) -> dict[int, Mark]:
    """What became of each node, by its position in the drawing; of the JSON's `entries`."""
    places: dict[tuple[str, str, str], list[int]] = {}
    for position, place in reversed(list(enumerate(network.places))):
        places.setdefault((place.scope, place.name, place.op), []).append(position)
    marks = {}
    for entry in entries:  # in the order of the nodes, which counts where several bear one name
        if same := places.get((entry["scope"], entry["name"], entry["op"])):
            marks[same.pop()] = Mark(_fate(entry), entry["sentence"])
    return marks


def _reasons(entries: Iterable[Report]) -> str:
    kept = Counter(entry["reason"] for entry in entries if entry["outcome"] == "kept")
    rows = [(number(count, 9), reason, REASONS.get(reason, "")) for reason, count in kept.most_common()]
    return paragraph("What stays, and why:") + table(("kept", "reason", "what it means"), rows) if rows else ""


def _entries(entries: Iterable[Report], found: Callable[[str, str], int | None], *, norms: bool) -> str:
    """What became of every BN, or of every other op."""
    rows = [(_named(entry["name"], entry["scope"], found), _fate(entry).name if norms else entry["outcome"],
             entry["sentence"], ", ".join(entry["into"]), entry["obstacle"] or "")
            for entry in entries if (entry["op"] == BATCH_NORM) == norms]  # fmt: skip
    return table(("BatchNorm" if norms else "node", "what became of it", "how, or why not", "into", "in the way"), rows)


def _merges(merges: list[Report]) -> str:
    rows = [(merge["name"], merge["op"], ", ".join(merge["parts"]), number(merge["multiply_adds"][0], 4),
             number(merge["multiply_adds"][1], 4)) for merge in merges]  # fmt: skip
    return table(("node", "op", "stands for", "multiply-adds before", "after"), rows)


def _rounding(found: Report | None) -> list[str]:
    if found is None:
        return []
    rows: list[Row] = [
        (pair["name"], number(pair["before"]["step"]), number(pair["before"]["noise"]),
         "gone: what follows rounds" if pair["after"] is None else number(pair["after"]["step"]),
         "" if pair["after"] is None else number(pair["after"]["noise"]))
        for pair in found["pairs"]
    ]  # fmt: skip
    outputs: list[Row] = [
        (one["name"], number(one["change"]), number(one["rounding_before"]), number(one["rounding_after"]),
         "" if one["same_class"] is None else f"{one['same_class']} of {found['compared']}")
        for one in found["outputs"]
    ]  # fmt: skip
    told = f"Steps measured on {found['samples']} samples. Distances are root mean squares over the values' own."
    return [
        paragraph(told),
        table(("output", "from the original's", "without rounding: original", "result", "same class"), outputs),
        table(("QuantizeLinear", "step", "noise", "new step", "new noise"), rows),
    ]


def _proof(verification: Report) -> str:
    static, relation = verification["static"], verification["relation"]
    ulp = f"each within {static['worst_ulp']:.2g} unit in the last place"
    made = f"{static['tensors']} new tensors, recomputed in float64, {ulp}"
    rows = [("proof", made if static["tensors"] else "no tensor was changed")]
    if relation is None:
        rows.append(("check", f"not made: {verification['skipped']}"))
    else:
        noise = f"worst {relation['worst']:.2g} × the model's own rounding noise (limit {relation['limit']:g})"
        rows.append(("check", f"{relation['values']} values of both models obey v' = s (v + t); {noise}"))
    full = verification.get("comparison")
    if full is not None:
        rows.append(("verify", f"{full['verdict']}: {full['reason']}"))
    return facts(rows)


# -- recalibrate ------------------------------------------------------------------------------------


def for_recalibrate(report: Report, network: Network, digests: Mapping[str, str]) -> Parts:
    """The page of `bnfold recalibrate`."""
    norms = report["batch_norms"]
    found = _positions(network)
    marks = {place: Mark(_staleness(norm), f"score {norm['score']:.3g}") for norm in norms
             if (place := found(norm["scope"], norm["name"])) is not None}  # fmt: skip
    marks |= {place: Mark(UNMEASURED, one["why"]) for one in report["unmeasured"]
              if (place := found("", one["name"])) is not None}  # fmt: skip
    judged = [(f"{_percent(report[key]['before'], key)} → {_percent(report[key]['after'], key)}", key)
              for key in ("accuracy", "metric") if key in report]  # fmt: skip
    rows: list[Row] = [
        (_named(norm["name"], norm["scope"], found), number(norm["score"]), number(_mean(norm["shift"])),
         number(max(norm["shift"])), number(min(norm["ratio"])), number(max(norm["ratio"])), number(norm["error"]),
         number(norm["channels"], 9), number(norm["dead"], 9),
         ", ".join(what for key, what in (("rough", "known badly"), ("unsettled", "not settled")) if norm[key]))
        for norm in norms
    ]  # fmt: skip
    head = ("BatchNorm", "score", "mean |Δmean|/σ", "largest", "min σ new/old", "max", "± σ", "channels", "dead",
            "warning")  # fmt: skip
    sections = [
        section("What was measured",
                cards([*judged, (str(len(norms)), "BatchNorm measured"), (str(report["samples"]), "samples"),
                       (report["method"], "method")])),
        _drawn(network, marks),
        section("Drift", drift_figure(norms) if norms else "",
                paragraph("Line: the median channel. Shaded: the middle half. Red: the largest. The score is the "
                          "symmetric Kullback-Leibler divergence of old and new, averaged over the channels.")
                if norms else ""),
        section("Every BatchNorm", table(head, rows)),
        section("Not measured", table(("BatchNorm", "why"),
                                      [(one["name"], one["why"]) for one in report["unmeasured"]])),
        section("Files", _digests(digests)),
        _notices(report["notices"]),
    ]  # fmt: skip
    done = f"on {report['data']}; " + (f"written: {', '.join(report['written'])}" if report["written"]
                                       else "nothing was written")  # fmt: skip
    return f"recalibrate {report['input']}", done, sections


def _staleness(norm: Report) -> Group:
    return next((group for limit, group in SCORES if norm["score"] < limit), SCORES[-1][1])


# -- insert -----------------------------------------------------------------------------------------


def for_insert(report: Report, network: Network, digests: Mapping[str, str]) -> Parts:
    """The page of `bnfold insert`; the drawing is of the model as it was."""
    found = _positions(network)
    marks = {place: Mark(NORMED, site["name"]) for site in report["sites"]
             if (place := found("", site["node"])) is not None}  # fmt: skip
    groups = {reason: Group(f"none: {reason}", REDS[k % len(REDS)], SHAPES[k % len(SHAPES)], 20)
              for k, reason in enumerate(dict.fromkeys(one["reason"] for one in report["left"]))}  # fmt: skip
    marks |= {place: Mark(groups[one["reason"]], one["sentence"]) for one in report["left"]
              if (place := found("", one["name"])) is not None}  # fmt: skip
    sites = [(site["name"], _named(site["node"], "", found), site["op"], number(site["channels"], 9),
              site["bias"] or "none", site["activation"] or "nothing") for site in report["sites"]]  # fmt: skip
    left = [(_named(one["name"], "", found), one["reason"], one["sentence"]) for one in report["left"]]
    change = report["difference"]
    sections = [
        section("What was put in",
                cards([(str(len(sites)), "BatchNorm put in"), (str(len(left)), "layers without"),
                       (report["mode"], "mode"), (str(report["samples"]), "samples")]),
                paragraph(f"Change of the function: {change['worst']:.2g} × rms of output {change['output']}, on "
                          f"{change['samples']} samples.") if change else ""),
        _drawn(network, marks),
        section("Every BatchNorm", table(("BatchNorm", "behind", "op", "channels", "bias", "before"), sites)),
        section("Layers without", table(("layer", "reason", "why"), left)),
        section("Files", _digests(digests)),
        _notices(report["notices"]),
    ]  # fmt: skip
    done = f"written: {', '.join(report['written'])}" if report["written"] else "nothing was written"
    return f"insert {report['input']}", done, sections


# -- verify -----------------------------------------------------------------------------------------


def for_verify(report: Report, network: Network, certificate: Mapping[str, Any], title: str) -> Parts:
    """The page of `bnfold verify`; the drawing is of A."""
    segments = report["segments"]
    groups = [_judged(segment) for segment in segments]
    makers = {name: k for k, place in enumerate(network.places) if not place.scope for name in place.outputs}
    marks = {makers[segment["value"]]: Mark(group, _about(segment))
             for segment, group in zip(segments, groups, strict=True) if segment["value"] in makers}  # fmt: skip
    found = _positions(network)
    for segment, group in zip(segments, groups, strict=True):
        for name in segment["batch_norms"]:
            place = found("", name)
            if place is not None and place not in marks:
                marks[place] = Mark(group, f"covered by the segment of {segment['value']}: {_about(segment)}")
    rows: list[Row] = [
        (number(segment["r"]), group.name,
         Cell(segment["value"], focus=makers.get(segment["value"])),
         segment["value_b"] if segment["value_b"] != segment["value"] else "", segment["op"], segment["node"],
         Cell(f"{segment['bad']} of {segment['count']}", segment["bad"]), segment["basis"], segment["problem"],
         ", ".join(segment["batch_norms"]))
        for segment, group in zip(segments, groups, strict=True)
    ]  # fmt: skip
    head = ("r", "judged", "value", "in B", "op", "node of B", "channels off", "paired by", "problem", "BatchNorm of A")
    first = report["first"]
    sections = [
        section("Verdict", paragraph(f"{report['verdict']}: {report['reason']}" if report["reason"]
                                     else report["verdict"], VERDICTS[report["verdict"]]),
                paragraph(f"The first node that differs is {first['node']} ({first['op']}), in channels "
                          f"{', '.join(map(str, first['channels']))} of {first['count']}.") if first else "",
                "".join(paragraph(sentence) for sentence in report["signature"]["differences"]),
                paragraph(f"Both were fed {report['inputs']}.") if report["inputs"] else ""),
        _drawn(network, marks),
        section("Residuals", residual_figure(segments, groups) if segments else ""),
        section("Outputs", _outputs(report["outputs"])),
        section("Every segment", table(head, rows)),
        section("Certificate", details("the certificate as JSON, which bnfold verify --check takes",
                                       json.dumps(finite(certificate), indent=2)) if certificate else "",
                facts((key, str(value)) for key, value in report["settings"].items())),
        _notices(report["notes"]),
    ]  # fmt: skip
    return f"verify {title}", report["verdict"], sections


def _judged(segment: Report) -> Group:
    if segment["basis"] == "coordinates":
        return MOVED
    if segment["problem"] or segment["r"] > criterion.DIFFERENT:
        return DIFFERENT
    return EQUAL if segment["r"] <= criterion.EQUAL else ROUNDING


def _about(segment: Report) -> str:
    return segment["problem"] or f"r = {segment['r']:.3g}"


def _outputs(outputs: list[Report]) -> str:
    rows = [(output["name"], number(output["max_abs"]), number(output["max_rel"]), number(output["rms_rel"]),
             number(output["sqnr_db"]), number(output["cosine"], 9),
             number(None if output["argmax"] is None else 100 * output["argmax"]),
             "" if output["differing"] is None else f"{output['differing']} elements differ") for output in outputs]
    return table(("output", "max abs", "max rel", "rms rel", "SQNR dB", "cosine", "argmax %", "others"), rows)


# -- parts of several -------------------------------------------------------------------------------


def _positions(network: Network) -> Callable[[str, str], int | None]:
    """Finds a node by scope and name; of several of one name the first."""
    places: dict[tuple[str, str], int] = {}
    for position, place in enumerate(network.places):
        places.setdefault((place.scope, place.name), position)
    return lambda scope, name: places.get((scope, name))


def _drawn(network: Network, marks: Mapping[int, Mark]) -> str:
    if not network.places:
        return ""
    what = f"The network by depth: {len(network.places)} nodes, constants left out."
    how = "Drag to move, pull the ends of the strip to zoom, point at a node to ask."
    if network.depth <= LONG:
        how = "Point at a node to ask."
    return section("The network", paragraph(f"{what} {how}"), network_figure(network, marks, what))


def _named(name: str, scope: str, found: Callable[[str, str], int | None]) -> Cell:
    return Cell(f"{name} in {scope}" if scope else name, focus=found(scope, name))


def _notices(notices: Iterable[str]) -> str:
    return section("Notices", "".join(map(paragraph, notices)))


def _digests(digests: Mapping[str, str]) -> str:
    return table(("file", "SHA-256"), list(digests.items()))


def _change(counts: Mapping[str, int], what: str) -> tuple[str, str]:
    return f"{counts['before']} → {counts['after']}", what


def _shape(shape: list[Any] | None) -> str:
    return "of unknown rank" if shape is None else f"[{', '.join('?' if n is None else str(n) for n in shape)}]"


def _percent(value: float | None, key: str) -> str:
    if value is None:
        return "?"
    return f"{100 * value:.1f} %" if key == "accuracy" else f"{value:.4g}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
