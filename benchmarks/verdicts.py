"""What `bnfold verify` says of right and wrong pairs, beside what fixed tolerances say of them.

    python benchmarks/verdicts.py [--models N] [--minutes M] [--files GLOB] [--bugs N] [--log FILE]

Over the real models and network skeletons, each: right pairs (our fold, as it is and renamed; the original re-saved,
renamed, with Constant nodes, in channels-last layout; what the other tools that are installed make of it) and wrong
ones (a bug of `bugs.py` put in, then folded). 'idle' are bugs that no output shows on these inputs, not even in double:
dead channels. The tolerances are those of other tools, on both models' own outputs for the same inputs. Prints markdown
tables; exit code 1 if there is a false alarm or more than 0.5 % of the bugs are missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bugs import BELOW, BUGS, RIGHT, variants
from harness import HERE, REPO, files, ready, say, table
from onnx import ModelProto
from tools import TOOLS, installed

import bnfold
from bnfold.errors import BnfoldError

TOLERANCES = {
    "numpy": (1e-5, 1e-8), "torch.testing": (1.3e-6, 1e-5), "polygraphy": (1e-5, 1e-5), "onnxsim": (1e-4, 1e-5),
    "onnxslim": (1e-3, 1e-4),
}  # fmt: skip
"""rtol and atol by default."""

PEERS = ("onnxslim", "onnxsim", "onnxoptimizer", "onnxscript", "ORT basic")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=int, help="only so many, spread over the list")
    parser.add_argument("--minutes", type=float, help="take the models in a fixed shuffled order, none after so long")
    parser.add_argument("--files", help="glob of the files (default: every real model and every skeleton)")
    parser.add_argument("--bugs", type=int, default=len(BUGS), help="bugs a model, chosen by its name (default: all)")
    parser.add_argument("--max-mb", type=float, default=16, help="leave larger files out: this is not about size")
    parser.add_argument("--log", help="append each verdict to this file as a line of JSON")
    parser.add_argument("--report", help="only print the tables of such a file")
    parser.add_argument("--probes", action="store_true", help="instead: every installed tool on the probe table")
    arguments = parser.parse_args()
    if arguments.probes:
        return probes()
    if arguments.report:
        return report([json.loads(line) for line in Path(arguments.report).read_text().splitlines()])
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for path in _chosen(arguments.files, arguments.models, arguments.minutes):
            if arguments.minutes and time.perf_counter() - start > 60 * arguments.minutes:
                break
            with ready(path, folder) as file:
                if not arguments.files and file.stat().st_size > arguments.max_mb * 2**20:
                    continue
                for row in _judged(file, arguments.bugs, Path(folder)):
                    rows.append({"model": path.name, **row})
                    say(" | ".join(str(rows[-1][key]) for key in ("model", "kind", "pair", "verdict", "r", "seconds")))
                    if arguments.log:
                        with open(arguments.log, "a", encoding="utf-8") as log:
                            print(json.dumps(rows[-1]), file=log)
    return report(rows)


def _chosen(pattern: str | None, count: int | None, minutes: float | None) -> list[Path]:
    found = files(pattern)
    if minutes:
        found = [found[place] for place in np.random.default_rng(0).permutation(len(found))]
    if count is None or count >= len(found):
        return found
    return [found[int(place)] for place in np.linspace(0, len(found) - 1, count)]


def _judged(file: Path, bugs: int, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each pair of a model."""
    model = onnx.load(file)
    seed = sum(file.stem.encode())
    for kind, pair, other in _pairs(model, file, bugs, seed, folder):
        start = time.perf_counter()
        try:
            found = bnfold.verify(model, other)
            verdict, r, reason = found.verdict, found.worst, found.reason
            where = found.first.value if found.first else ""
        except BnfoldError as error:
            verdict, r, reason, where = "refused", 0.0, str(error), ""
        yield {
            "kind": kind, "pair": pair, "verdict": verdict, "r": float(f"{r:.4g}"), "reason": reason, "where": where,
            "seconds": round(time.perf_counter() - start, 2), "tolerances": _tolerances(model, other),
        }  # fmt: skip


def _pairs(
    model: ModelProto, file: Path, bugs: int, seed: int, folder: Path
) -> Iterator[tuple[str, str, ModelProto]]:
    folded = _folded(model)
    if folded is not None:
        yield "right", "fold", folded
        yield from (("right", f"fold, {name}", v) for name, v in variants(folded, {"renamed": RIGHT["renamed"]}, seed))
    yield from (("right", name, other) for name, other in variants(model, RIGHT, seed))
    for tool in PEERS:
        call = TOOLS[tool][1]
        if installed(tool) and call is not None:
            target = folder / "peer.onnx"
            target.unlink(missing_ok=True)
            try:
                call(str(file), str(target))
                yield "right", tool, onnx.load(target)
            except Exception as error:  # a stranger's code may raise anything
                say(f"{file.name} | {tool} | {type(error).__name__}")
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(len(BUGS))[:bugs])
    names = [list(BUGS)[index] for index in chosen]
    for kind, table_of in (("wrong", {name: BUGS[name] for name in names}), ("below", BELOW)):
        if kind == "below" and bugs < len(BUGS):
            continue
        for name, mutant in variants(model, table_of, seed):
            result = _folded(mutant)
            if result is not None:
                yield kind if _counts(model, mutant) else "idle", name, result


def _folded(model: ModelProto) -> ModelProto | None:
    try:
        return bnfold.fold(model, verify=False).model  # type: ignore[no-any-return]
    except BnfoldError as error:
        say(f"not folded: {error}")
        return None


def _counts(model: ModelProto, mutant: ModelProto) -> bool:
    """Whether a bug reaches an output at all, in double, on the inputs that the verdict is found with."""
    from bnfold.model_file import wrap
    from bnfold.verify.inputs import drawn
    from bnfold.verify.prepare import prepare
    from bnfold.verify.runtime import CannotRun, Runner
    from bnfold.verify.sides import Side

    try:
        proto = prepare(wrap(model))
        batches = drawn(proto, 0).batches
        sides = [Side(proto, batches[0]), Side(prepare(wrap(mutant)), batches[0])]
        for batch in batches:
            x, y = (Runner(side.model).run(side.double_feeds(batch)) for side in sides)
            if any(not np.array_equal(value, y[name]) for name, value in x.items()):
                return True
    except (CannotRun, BnfoldError):
        return True
    return False


def _tolerances(a: ModelProto, b: ModelProto) -> dict[str, bool] | None:
    """Which tolerances let the pair pass; None if it can't be run."""
    from bnfold.model_file import wrap
    from bnfold.verify.inputs import drawn
    from bnfold.verify.prepare import prepare
    from bnfold.verify.runtime import CannotRun, Runner

    try:
        left, right = prepare(wrap(a)), prepare(wrap(b))
        feeds = drawn(left, 0).batches[0]
        x, y = Runner(left).run(feeds), Runner(right).run(feeds)
    except (CannotRun, BnfoldError):
        return None
    floats = [(p, q) for p, q in zip(x.values(), y.values(), strict=True) if p.dtype.kind == "f"]
    return {
        name: all(p.shape == q.shape and np.allclose(p, q, rtol, atol, equal_nan=True) for p, q in floats)
        for name, (rtol, atol) in TOLERANCES.items()
    }


def probes() -> int:
    """What the other tools make of the probe table, which has an oracle of its own: do verdict and oracle agree?"""
    sys.path.insert(0, str(REPO / "tests"))
    spec = importlib.util.spec_from_file_location("probe_table", HERE / "probes.py")  # tests/ has a probes.py, too
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    counts: Counter[tuple[str, str]] = Counter()
    against = []
    with tempfile.TemporaryDirectory() as folder:
        places = [(f"{folder}/{probe.name}.onnx", f"{folder}/{probe.name}.out.onnx") for probe in bench.PROBES]
        for probe, (source, _) in zip(bench.PROBES, places, strict=True):
            onnx.save(probe.model(), source)
        for tool in (name for name in PEERS if installed(name)):
            say(f"{tool} ...")
            bench.answers_of(tool, places)
            for probe, (source, target) in zip(bench.PROBES, places, strict=True):
                if not Path(target).exists():
                    continue
                wrong = bench.sign(probe, onnx.load(target), bench.LENIENT) == "x"
                try:
                    found = bnfold.verify(source, target)
                    verdict, reason = found.verdict, found.reason
                except BnfoldError as error:
                    verdict, reason = "refused", str(error)
                counts["wrong" if wrong else "right", verdict] += 1
                if (verdict == "equal") == wrong or verdict == "cannot tell":
                    against.append(f"{tool}, {probe.name}: {'wrong' if wrong else 'right'}, {verdict}: {reason}")
                Path(target).unlink()
    print(table(["oracle", "verdict", "results"], [[*key, str(count)] for key, count in sorted(counts.items())]))
    print("\n".join(["", *against]))
    return int(bool(counts["wrong", "equal"] or counts["right", "different"]))


def report(rows: list[dict[str, Any]]) -> int:
    """Print the tables."""
    right = [row for row in rows if row["kind"] == "right"]
    wrong = [row for row in rows if row["kind"] == "wrong"]
    head = ["", "right pairs: false alarms", "wrong pairs: missed"]
    lines = [[
        "bnfold verify",
        _share([row["verdict"] in ("different", "rounding-scale difference") for row in right]),
        _share([row["verdict"] == "equal" for row in wrong]),
    ]]  # fmt: skip
    for name, (rtol, atol) in TOLERANCES.items():
        alarms = [not row["tolerances"][name] for row in right if row["tolerances"]]
        missed = [row["tolerances"][name] for row in wrong if row["tolerances"]]
        lines.append([f"{name} (rtol {rtol:g}, atol {atol:g})", _share(alarms), _share(missed)])
    print(table(head, lines))
    print()
    _by_pair(rows)
    models = {row["model"] for row in rows}
    unknown = Counter(row["verdict"] for row in rows if row["verdict"] in ("cannot tell", "refused"))
    print(f"\n{len(models)} models, {len(right)} right and {len(wrong)} wrong pairs; {dict(unknown)}")
    alarms = [row for row in right if row["verdict"] in ("different", "rounding-scale difference")]
    missed = [row for row in wrong if row["verdict"] == "equal"]
    for what, found in (("false alarm", alarms), ("missed", missed)):
        for row in found:
            print(f"{what}: {row['model']}, {row['pair']}: r = {row['r']}, {row['reason']}")
    return int(bool(alarms) or len(missed) > 0.005 * len(wrong))


def _share(flags: list[bool]) -> str:
    return f"{sum(flags)} of {len(flags)} ({100 * sum(flags) / max(len(flags), 1):.1f} %)"


def _by_pair(rows: list[dict[str, Any]]) -> None:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
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


if __name__ == "__main__":
    sys.exit(main())
