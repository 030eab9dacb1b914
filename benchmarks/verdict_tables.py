"""The tables of `verdicts.py`, from the rows that it keeps."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from harness import table

TOLERANCES = {
    "numpy": (1e-5, 1e-8), "torch.testing": (1.3e-6, 1e-5), "polygraphy": (1e-5, 1e-5), "onnxsim": (1e-4, 1e-5),
    "onnxslim": (1e-3, 1e-4),
}  # fmt: skip
"""rtol and atol by default."""

CHOSE = frozenset(
    """cifar-resnet20-fp16.onnx mesonet.onnx mlp_post.legacy13.onnx mlp_pre_nobias.legacyF17.onnx mlperf-ad01.onnx
    mnist-cnn-bn.onnx tab_resnet.dynamo18.onnx""".split()
)
"""Models whose figures were seen before the limits were set: they are told apart."""

WRONG_OF_PEERS = {("hand_bn_training_mode.hand15.onnx", "onnxscript"): "takes training mode for inference"}
"""What other tools really do wrong on these files, by model and tool: counted as bugs."""

FLOOR = 1.0
"""Bugs whose effect is smaller do less to every output than moving all weights by one unit in the last place."""


def report(rows: list[dict[str, Any]]) -> int:
    """Print the tables."""
    rows = [row | {"kind": _kind(row)} for row in rows]
    seen = [row for row in rows if row["model"] in CHOSE]
    rows = [row for row in rows if row["model"] not in CHOSE]
    right, wrong = ([row for row in rows if row["kind"] == kind] for kind in ("right", "wrong"))
    large = [row for row in wrong if row["effect"] is None or row["effect"] >= FLOOR]
    small = [row for row in wrong if row not in large]
    head = ["", "right pairs: false alarms", "wrong pairs: missed", f"effect ≥ {FLOOR:g}: missed", "smaller: missed"]
    lines = [[
        "bnfold verify",
        _share([row["verdict"] in ("different", "rounding-scale difference") for row in right]),
        *(_share([row["verdict"] == "equal" for row in group]) for group in (wrong, large, small)),
    ]]  # fmt: skip
    for name, (rtol, atol) in TOLERANCES.items():
        alarms = [not row["tolerances"][name] for row in right if row["tolerances"]]
        missed = ([row["tolerances"][name] for row in group if row["tolerances"]] for group in (wrong, large, small))
        lines.append([f"{name} (rtol {rtol:g}, atol {atol:g})", _share(alarms), *map(_share, missed)])
    print(table(head, lines))
    print()
    _by_pair(rows)
    models = {row["model"] for row in rows if row["kind"] == "end"}
    skipped = {row["model"]: row["reason"] for row in rows if row["kind"] == "left out"}
    unknown = Counter(row["verdict"] for row in [*right, *wrong] if row["verdict"] in ("cannot tell", "refused"))
    codes = ", ".join({row["code"] for row in rows})
    print(f"\n{len(models)} models, {len(right)} right and {len(wrong)} wrong pairs, code {codes}; {dict(unknown)}")
    broken = sum(row["kind"] == "broken" for row in rows)
    print(f"{broken} results of tools or bugs can't be loaded and are counted nowhere")
    print("\n".join(f"left out: {model}, {reason}" for model, reason in skipped.items()))
    alarms, missed = _against(rows)
    count = len({row["model"] for row in seen})
    both = " and ".join(str(len(found)) for found in _against(seen))
    print(f"{count} more models chose a constant; false alarms and missed bugs on these: {both}")
    for what, found in (("false alarm", alarms), ("missed", missed)):
        for row in found:
            print(f"{what}: {row['model']}, {row['pair']}: r = {row['r']}, effect {row['effect']}, {row['reason']}")
    return int(bool(alarms) or len(missed) > 0.005 * len(wrong))


def _kind(row: dict[str, Any]) -> str:
    """A bug after which there is no model any more says nothing; a peer's may be one."""
    if row["kind"] == "wrong" and row["reason"].startswith("B can't be run"):
        return "broken"
    return "wrong" if (row["model"], row["pair"]) in WRONG_OF_PEERS else str(row["kind"])


def _against(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """False alarms, and bugs that were missed."""
    alarms = [
        row for row in rows if row["kind"] == "right" and row["verdict"] in ("different", "rounding-scale difference")
    ]
    return alarms, [row for row in rows if row["kind"] == "wrong" and row["verdict"] == "equal"]


def _share(flags: list[bool]) -> str:
    return f"{sum(flags)} of {len(flags)} ({100 * sum(flags) / max(len(flags), 1):.1f} %)"


def _by_pair(rows: list[dict[str, Any]]) -> None:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in (row for row in rows if "verdict" in row):
        groups[row["kind"], row["pair"]].append(row)
    lines = []
    for (kind, pair), group in groups.items():
        verdicts = Counter(row["verdict"] for row in group)
        told = [row["r"] for row in group if row["verdict"] != "cannot tell"]
        extreme = (max if kind == "right" else min)(told, default=0.0)
        passed = [sum(row["tolerances"][name] for row in group if row["tolerances"]) for name in TOLERANCES]
        lines.append([kind, pair, *(str(verdicts[v]) for v in ("equal", "rounding-scale difference", "different",
                      "cannot tell")), f"{extreme:.3g}", *map(str, passed)])  # fmt: skip
    head = ["", "pair", "equal", "rounding", "different", "cannot tell", "max r (right), min r",
            *(f"{name} passes" for name in TOLERANCES)]  # fmt: skip
    print(table(head, lines))


