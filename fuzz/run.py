"""Fuzz the readers for as long as you like.

    python fuzz/run.py --minutes 20 [--target model] [--models FOLDER] [--seed 0] [--check]
    python fuzz/run.py --atheris model -- -max_total_time=600        (pip install atheris)

Case number k is made from the seed and k, so every failure can be made again; its bytes are kept, too, under
`--keep`.  Each case runs in a process of its own, with 4 GB and 60 s: a crash or a bomb is a failure like others.
`--models` mutates these files beside the seeds; `--check` runs each folded model beside its original.  Exit code 1 if
anything failed.
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
from targets import TARGETS, seeds  # noqa: E402

SECONDS, SPACE = 60, 4 << 30
DONE = ("refused", "folded", "left alone", "read", "refused and read", "read and refused")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--cases", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, help="a folder of .onnx files")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for what failed")
    parser.add_argument("--atheris", choices=TARGETS)
    arguments, rest = parser.parse_known_args()
    if arguments.atheris:
        return _guided(arguments.atheris, [part for part in rest if part != "--"])
    counts, failed = fuzz(
        arguments.target or list(TARGETS), arguments.cases, time.monotonic() + 60 * arguments.minutes, arguments.seed,
        sorted(arguments.models.glob("*.onnx")) if arguments.models else [], arguments.check, arguments.keep,
    )  # fmt: skip
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    for what, cases in sorted(failed.items(), key=lambda item: -len(item[1])):
        print(f"{len(cases)} × {what}: {', '.join(cases[:5])}")
    return bool(failed)


def fuzz(
    targets: list[str], cases: int, end: float, seed: int, models: list[Path], check: bool = False,
    keep: Path | None = None,
) -> tuple[Counter[str], dict[str, list[str]]]:  # fmt: skip
    """How cases ended, by target; and failures: what happened, and in which cases."""
    for module in WARM:  # once, rather than in every process
        importlib.import_module(module)
    corpus = {target: seeds(target) for target in targets}
    counts: Counter[str] = Counter()
    failed: dict[str, list[str]] = {}
    for number in range(seed, seed + cases):
        if time.monotonic() > end:
            break
        rng = random.Random(number)
        target = targets[number % len(targets)]
        is_model = target == "model"
        chosen = rng.choice([*models, None]) if is_model and models else None
        begin = chosen.read_bytes() if chosen else rng.choice(corpus[target])
        data = mutated(begin, rng, corpus[target], tree=is_model)
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
    signal.alarm(3 * SECONDS)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        return TARGETS[target](data, folder, check) if check else TARGETS[target](data, folder)
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = "".join(c for c in str(error).split("\n")[0] if c.isalpha() or c in " '")[:80]
        return f"{type(error).__name__} in {Path(frame.filename).name} {frame.name}: {text}"


def _guided(target: str, options: list[str]) -> int:
    """Coverage-guided, by atheris."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds(target)):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: TARGETS[target](data, folder) and None)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
