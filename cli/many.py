"""A verb over many models: a process for each, so many at once, told in the order of the arguments.

Processes, not threads: a model that takes all memory, or that crashes ONNX Runtime, costs itself only, and what a
model took is given back.  Each is the very command for one model, with `--json`, so that one model and many can't
differ.  Together they use as many threads as the machine has cores.

Rows come in the order of the arguments, so that two runs can be compared, each as soon as it and all before it are
there.
"""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bnfold.errors import UsageError, quoted

FAILED = 2

# Isolated: with -m, a file in the current folder could stand for one of our modules. The path is this process's own.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from bnfold.cli import main; main()"

# What numpy's linear algebra goes by; ONNX Runtime goes by the first (bnfold.verify.runtime).
_THREADS = ("BNFOLD_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

WINDOWS = os.name == "nt"


@dataclass(frozen=True)
class Outcome:
    """How the command for one model ended.

    Attributes:
        code: its exit code.
        data: what it gave as JSON; None if it failed.
        error: why, one line without the `bnfold: ` in front; '' if it didn't.
    """

    code: int
    data: dict[str, Any] | None
    error: str = ""


def models(names: Sequence[str], *, expand: bool = WINDOWS) -> list[str]:
    """The models that are meant: each once, and where no shell does it (on Windows), patterns as what they match.

    Raises: UsageError if nothing matches.

    >>> models(["b.onnx", "a.onnx", "./b.onnx", "*.onnx"], expand=False)
    ['b.onnx', 'a.onnx', '*.onnx']
    """
    found: dict[str, str] = {}
    for name in names:
        is_pattern = expand and glob.has_magic(name) and not os.path.exists(name)
        matches = sorted(glob.glob(name)) if is_pattern else [name]
        if not matches:
            raise UsageError(f"no file matches {quoted(name)}")
        for match in matches:
            found.setdefault(os.path.normcase(os.path.abspath(match)), match)
    return list(found.values())


def words(**options: object) -> list[str]:
    """Options as they are typed.

    >>> words(no_merge=True, force=False, kept="keep", only=["a*", "b"])
    ['--no-merge', '--kept=keep', '--only=a*', '--only=b']
    """
    typed: list[str] = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            typed += [option] if value else []
        elif value is not None:
            values = value if isinstance(value, (list, tuple)) else [value]
            typed += [f"{option}={each}" for each in values]
    return typed


def outcomes(verb: str, models: Iterable[tuple[str, Sequence[str]]], jobs: int) -> Generator[Outcome, None, None]:
    """Run a verb on models, each with its options, so many at once; what becomes of them, in their order.

    If it is left early (Ctrl-C), those that run are told to end as Ctrl-C ends them, and waited for.
    """
    children = _Children(_environment(jobs))
    with ThreadPoolExecutor(jobs) as threads:
        try:
            yield from threads.map(children.run, ([verb, *options, "--json", "--", name] for name, options in models))
        finally:
            children.stop()


def _environment(jobs: int) -> Mapping[str, str]:
    """The cores, shared out; what the user has set stays."""
    share = str(max(1, (os.cpu_count() or 1) // jobs))
    return dict.fromkeys(_THREADS, share) | os.environ


class _Children:
    """The processes that run, from several threads."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, command: Sequence[str]) -> Outcome:
        """Run a command to its end."""
        from . import INTERRUPTED, TRACEBACK

        traceback = [TRACEBACK] if TRACEBACK in sys.argv else []
        with self._lock:
            if self._stopped:
                return Outcome(INTERRUPTED, None, "interrupted")
            child = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", "-c", _START, json.dumps(sys.path), *traceback, *command],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self._environment,
                encoding="utf-8", errors="replace",
                # Ctrl-C in the terminal reaches this process only, which tells them once: a second signal would
                # interrupt their cleaning up. Windows has no such message; there it reaches them all by itself.
                start_new_session=not WINDOWS,
            )  # fmt: skip
            self._running.add(child)
        try:
            out, said = child.communicate()
        finally:
            with self._lock:
                self._running.discard(child)
        return _outcome(child.returncode, out, said)

    def stop(self) -> None:
        """Start no more, and end those that run."""
        with self._lock:
            self._stopped = True
            for child in () if WINDOWS else self._running:
                child.terminate()


def _outcome(code: int, out: str, said: str) -> Outcome:
    if out and code >= 0:
        return Outcome(code, json.loads(out))
    said = said.strip().removeprefix("bnfold: ")
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        said = f"its process was ended by {name}; is there enough memory? Fewer --jobs take less"
        code = FAILED
    return Outcome(code, None, said or f"ended with exit code {code} and said nothing")
