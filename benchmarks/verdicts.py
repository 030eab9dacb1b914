"""What `bnfold verify` says of right and wrong pairs, beside what fixed tolerances say of them.

    python benchmarks/verdicts.py --log FILE [--files GLOB] [--bugs N] [--slow SECONDS] [--minutes M]
    python benchmarks/verdicts.py --report FILE
    python benchmarks/verdicts.py --probes

Over the real models and network skeletons, small files first, each: right pairs (our fold, as it is and renamed; the
original re-saved, renamed, with Constant nodes, in channels-last layout; what the other tools that are installed make
of it) and wrong ones (a bug of `bugs.py` put in, then folded). Every row is kept in the log with a stamp of the code,
and what is there already with the same stamp is not done again. A model of which one comparison takes longer than
`--slow` is left out, and the log says so.

How large a bug is, is measured apart from any verdict: what it does to the outputs of the original, in double, relative
to what moving every weight by one unit in the last place does to them (`effect`). Bugs without any effect ('idle', in
dead channels) are told apart. The tolerances are those of other tools, on both models' own outputs for the same inputs.
Prints markdown tables; exit code 1 if there is a false alarm or more than 0.5 % of the bugs are missed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bugs import BELOW, BUGS, RIGHT, variants
from harness import HERE, REPO, files, ready, say, table
from onnx import ModelProto
from tools import TOOLS, installed
from verdict_tables import TOLERANCES, report

import bnfold
from bnfold.errors import BnfoldError
from bnfold.model_file import wrap
from bnfold.verify.inputs import drawn
from bnfold.verify.prepare import prepare
from bnfold.verify.runtime import CannotRun, Runner, cut_model
from bnfold.verify.sides import Side

PEERS = ("onnxslim", "onnxsim", "onnxoptimizer", "onnxscript", "ORT basic")
SEEDS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", help="glob of the files (default: every real model and every skeleton)")
    parser.add_argument("--bugs", type=int, default=len(BUGS), help="bugs a model, chosen by its name (default: all)")
    parser.add_argument("--slow", type=float, default=20.0, help="CPU seconds; slower models are left out")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no model after so long")
    parser.add_argument("--log", help="where every row is kept, as JSON lines")
    parser.add_argument("--report", help="only print the tables of such a file")
    parser.add_argument("--probes", action="store_true", help="instead: every installed tool on the probe table")
    arguments = parser.parse_args()
    if arguments.probes:
        return probes()
    if arguments.report:
        return report(_read(arguments.report))
    code, start = _stamp(), time.perf_counter()
    rows = [row for row in _read(arguments.log) if row["code"] == code]
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(files(arguments.files), key=lambda path: path.stat().st_size):
            if time.perf_counter() - start > 60 * arguments.minutes:
                break
            done = {(row["kind"], row["pair"]) for row in rows if row["model"] == path.name}
            if ("end", "") in done or ("left out", "") in done:
                continue
            with ready(path, folder) as file:
                for row in _judged(file, arguments.bugs, arguments.slow, done, Path(folder)):
                    rows.append({"model": path.name, "code": code, **row})
                    say(" | ".join(str(rows[-1].get(key, "")) for key in ("model", "kind", "pair", "verdict", "r")))
                    if arguments.log:
                        with open(arguments.log, "a", encoding="utf-8") as log:
                            print(json.dumps(rows[-1]), file=log)
    return report(rows)


def _stamp() -> str:
    """Of the code that verdicts depend on."""
    sources = [*sorted((REPO / "bnfold").rglob("*.py")), HERE / "bugs.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def _read(name: str | None) -> list[dict[str, Any]]:
    if name is None or not Path(name).exists():
        return []
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def _judged(
    file: Path, bugs: int, slow: float, done: set[tuple[str, str]], folder: Path
) -> Iterator[dict[str, Any]]:
    """A row for each pair of a model that isn't done."""
    model = onnx.load(file)
    effects = _Effects(model)
    for kind, pair, other, mutant in _pairs(model, file, bugs, folder):
        if {(kind, pair), ("idle", pair)} & done:
            continue
        effect = effects.of(mutant) if mutant is not None else None
        start = time.process_time()
        try:
            found = bnfold.verify(model, other)
            verdict, r, reason = found.verdict, found.worst, found.reason
            where = found.first.value if found.first else ""
        except BnfoldError as error:
            verdict, r, reason, where = "refused", 0.0, str(error), ""
        seconds = time.process_time() - start
        if seconds > slow:
            yield {"kind": "left out", "pair": "", "reason": f"one comparison takes {seconds:.0f} s of CPU"}
            return
        yield {
            "kind": "idle" if effect == 0 else kind, "pair": pair, "verdict": verdict, "r": float(f"{r:.4g}"),
            "reason": reason, "where": where, "seconds": round(seconds, 2), "effect": effect,
            "tolerances": _tolerances(model, other),
        }  # fmt: skip
    yield {"kind": "end", "pair": ""}


def _pairs(
    model: ModelProto, file: Path, bugs: int, folder: Path
) -> Iterator[tuple[str, str, ModelProto, ModelProto | None]]:
    """Kind, name, the model to compare with, and the original with the bug."""
    seed = sum(file.stem.encode())
    folded = _folded(model)
    if folded is not None:
        yield "right", "fold", folded, None
        for name, other in variants(folded, {"renamed": RIGHT["renamed"]}, seed):
            yield "right", f"fold, {name}", other, None
    for name, other in variants(model, RIGHT, seed):
        yield "right", name, other, None
    for tool in PEERS:
        call = TOOLS[tool][1]
        if installed(tool) and call is not None:
            target = folder / "peer.onnx"
            target.unlink(missing_ok=True)
            try:
                call(str(file), str(target))
                other = onnx.load(target)
                yield "right" if _loads(other) else "broken", tool, other, None
            except Exception as error:  # a stranger's code may raise anything
                say(f"{file.name} | {tool} | {type(error).__name__}")
    chosen = sorted(np.random.default_rng(seed).permutation(len(BUGS))[:bugs])
    names = [list(BUGS)[index] for index in chosen]
    for kind, table_of in (("wrong", {name: BUGS[name] for name in names}), ("below", BELOW)):
        if kind == "below" and bugs < len(BUGS):
            continue
        for name, mutant in variants(model, table_of, seed):
            result = _folded(mutant)
            if result is not None:
                yield kind, name, result, mutant


def _loads(model: ModelProto) -> bool:
    """Whether it is a model at all: some tools write files that can't be loaded."""
    try:
        Runner(model)
    except CannotRun:
        return False
    return True


def _folded(model: ModelProto) -> ModelProto | None:
    try:
        return bnfold.fold(model, verify=False).model  # type: ignore[no-any-return]
    except BnfoldError as error:
        say(f"not folded: {error}")
        return None


class _Effects:
    """What bugs do to the outputs of a model in double, in units of what moving all its weights does."""

    def __init__(self, model: ModelProto) -> None:
        self.noise: list[dict[str, float]] | None = None
        try:
            self.batches = drawn(proto := prepare(wrap(model)), 0).batches
            side = Side(proto, self.batches[0])
            names = [name for name in side.double_makers if name in {info.name for info in side.model.graph.output}]
            runner = Runner(cut_model(side.model, {}, names, side.loose), names)
            feeds = [side.double_feeds(batch) for batch in self.batches]
            self.exact = [runner.run(given | _weights(side, runner, None)) for given in feeds]
            self.noise = [
                {n: _rms([noisy[n] - values[n] for noisy in runs]) for n in names if _is_float(values[n])}
                for given, values in zip(feeds, self.exact, strict=True)
                for runs in [[runner.run(given | _weights(side, runner, seed)) for seed in range(SEEDS)]]
            ]
        except (CannotRun, BnfoldError) as error:
            say(f"effects can't be measured: {error}")

    def of(self, mutant: ModelProto) -> float | None:
        """The largest over the outputs; 0 if none shows anything, None if it can't be measured."""
        if self.noise is None:
            return None
        largest = 0.0
        try:
            side = Side(prepare(wrap(mutant)), self.batches[0])
            runner = Runner(side.model)
            for batch, exact, noise in zip(self.batches, self.exact, self.noise, strict=True):
                found = runner.run(side.double_feeds(batch))
                for name, other in found.items():
                    if name not in noise:
                        largest = max(largest, float(np.any(exact.get(name, other) != other)))
                    elif (error := _rms([other - exact[name]])) > 0:
                        largest = max(largest, error / noise[name] if noise[name] else float("inf"))
        except (CannotRun, BnfoldError):
            return None
        return float(f"{largest:.4g}")


def _weights(side: Side, runner: Runner, seed: int | None) -> dict[str, Any]:
    return {name: side.weight(name, seed) for name in runner.inputs if name in side.loose}


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _rms(values: list[Any]) -> float:
    finite = [np.where(np.isfinite(value), value, 0.0) for value in values]
    return float(np.sqrt(np.mean(np.square(finite)))) if finite[0].size else 0.0


def _tolerances(a: ModelProto, b: ModelProto) -> dict[str, bool] | None:
    """Which tolerances let the pair pass; None if it can't be run."""
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


if __name__ == "__main__":
    sys.exit(main())
