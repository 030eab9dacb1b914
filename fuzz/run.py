"""Fuzz the readers for as long as you like.

    python fuzz/run.py --minutes 20 [--target model] [--models FOLDER] [--each N] [--seed 0] [--check]
    python fuzz/run.py --atheris model [--corpus FOLDER] [--keep FOLDER] -- -max_total_time=600

Case number k is made from the seed and k, so every failure can be made again; its bytes are kept, too, under
`--keep`.  Each case runs in a process of its own, with 4 GB and 60 s: a crash or a bomb is a failure like others.
`--models` mutates these files beside the seeds, or each of them N times and nothing else; `--check` runs each folded
model beside its original.  Exit code 1 if anything failed.

`--atheris` lets coverage lead the way (of the extra `dev`, on Linux): it begins with what `seeds.py` makes, adds what
leads to new lines to the corpus, and stops at the first failure, which it keeps.  libFuzzer gets what is behind `--`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

WARM = ("bnfold.api", "bnfold.recalibrate.data", "bnfold.verify.data", "bnfold.verify.relation", "onnx.reference")
if "--atheris" in sys.argv:  # what it is to follow has to be imported under its eyes
    import atheris

    with atheris.instrument_imports(include=["bnfold"]):
        for module in WARM:
            importlib.import_module(module)

from mutations import mutated  # noqa: E402
from seeds import corpus, seeds  # noqa: E402
from targets import TARGETS  # noqa: E402

SECONDS, SPACE = 60, 4 << 30
DONE = ("refused", "folded", "left alone", "read", "refused and read", "read and refused")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--cases", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, help="a folder of .onnx files")
    parser.add_argument("--each", type=int, default=0, help="so many mutants of each of these files")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for what failed")
    parser.add_argument("--atheris", choices=TARGETS)
    parser.add_argument("--corpus", type=Path, help="a folder that outlives the run (--atheris)")
    arguments, rest = parser.parse_known_args()
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    if arguments.atheris:
        options = [part for part in rest if part != "--"]
        return _guided(arguments.atheris, options, arguments.corpus, arguments.keep)
    models = sorted(arguments.models.glob("*.onnx")) if arguments.models else []
    end = time.monotonic() + 60 * arguments.minutes
    targets, cases, in_order = arguments.target or list(TARGETS), arguments.cases, bool(arguments.each)
    if in_order:
        targets, models = ["model"], [model for model in models for _ in range(arguments.each)]
        cases = len(models)
    counts, failed = fuzz(targets, cases, end, arguments.seed, models, arguments.check, arguments.keep, in_order)
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    for what, cases in sorted(failed.items(), key=lambda item: -len(item[1])):
        print(f"{len(cases)} × {what}: {', '.join(cases[:5])}")
    return bool(failed)


def fuzz(
    targets: list[str], cases: int, end: float, seed: int, models: list[Path], check: bool = False,
    keep: Path | None = None, in_order: bool = False,
) -> tuple[Counter[str], dict[str, list[str]]]:  # fmt: skip
    """How cases ended, by target; and failures: what happened, and in which cases.

    `models` are files to begin with, beside the seeds; `in_order`: a case of each, and no others.
    """
    for module in WARM:  # once, rather than in every process
        importlib.import_module(module)
    sound = {target: seeds(target) for target in targets}
    counts: Counter[str] = Counter()
    failed: dict[str, list[str]] = {}
    for number in range(seed, seed + cases):
        if time.monotonic() > end:
            break
        rng = random.Random(number)
        target = targets[number % len(targets)]
        is_model = target == "model"
        chosen = rng.choice([*models, None]) if is_model and models else None
        if in_order:
            chosen = models[number - seed]
        begin = chosen.read_bytes() if chosen else rng.choice(sound[target])
        data = mutated(begin, rng, sound[target], tree=is_model)
        word = _alone(target, data, check and is_model)
        if word in DONE:
            counts[f"{target} {word}"] += 1
            continue
        failed.setdefault(word, []).append(f"{target} {number}")
        if keep is not None:
            (keep / f"{target}-{number}").write_bytes(data)
    return counts, failed


def _alone(target: str, data: bytes, check: bool) -> str:
    """What a target says of the bytes, or how its process ended."""
    ours, theirs = os.pipe()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        child = os.fork()
        if not child:
            try:
                word = _limited(target, data, Path(folder), check)
                os.write(theirs, word.encode()[:4000])
            finally:
                os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            word = pipe.read().decode()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return word or f"the process died: {signal.Signals(-status).name if status < 0 else status}"


def _limited(target: str, data: bytes, folder: Path, check: bool) -> str:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, used + SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    signal.alarm(10 * SECONDS)  # of the clock: machines are busy
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        return TARGETS[target](data, folder, check) if check else TARGETS[target](data, folder)
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = "".join(c for c in str(error).split("\n")[0] if c.isalpha() or c in " '")[:80]
        return f"{type(error).__name__} in {Path(frame.filename).name} {frame.name}: {text}"


def _guided(target: str, options: list[str], corpus_folder: Path | None, keep: Path | None) -> int:
    """Coverage-guided, by atheris, which never returns: in a child."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        child = os.fork()
        if not child:
            _follow_coverage(target, options, corpus_folder or Path(name) / "corpus", Path(name), keep)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _follow_coverage(target: str, options: list[str], units: Path, folder: Path, keep: Path | None) -> None:
    units.mkdir(exist_ok=True, parents=True)
    for number, data in enumerate(corpus(target)):
        (units / f"seed-{number:03}").write_bytes(data)
    sound = seeds(target)

    def mutator(data: bytes, largest: int, seed: int) -> bytes:
        """libFuzzer knows bytes; of models, we know fields."""
        if target == "model" and seed % 2:
            changed = mutated(data, random.Random(seed), sound, tree=True)
            return changed if len(changed) <= largest else data
        guided: bytes = atheris.Mutate(data, largest)
        return guided

    options = [*options, f"-artifact_prefix={keep}/{target}-"] if keep else options
    arguments = [sys.argv[0], *options, str(units)]
    atheris.Setup(arguments, lambda data: TARGETS[target](data, folder) and None, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
