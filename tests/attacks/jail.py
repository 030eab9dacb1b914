"""A cell for hostile input: each job runs in a process of its own, with little memory and little time.

`Jail` starts this file as a server that has imported everything once; for every job it forks, limits the child,
and tells what became of it.  A bomb that goes off is a failed test, not a dead test run.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Of a child, in seconds of CPU and of the clock, and in bytes on top of what the server has.
CPU, CLOCK, SPACE = 20, 60, 4 << 30


class Jail:
    """The server, seen from the tests."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, verb: str, path: Path, **options: Any) -> dict[str, Any]:
        """What `verb` made of the file at `path`: see `_outcome`."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps({"verb": verb, "path": str(path), **options}) + "\n")
        self._server.stdin.flush()
        result: dict[str, Any] = json.loads(self._server.stdout.readline())
        return result

    def close(self) -> None:
        """End the server."""
        self._server.communicate()


# -- the server ---------------------------------------------------------------------------------------


def _fold(path: str, **options: Any) -> dict[str, Any]:
    import bnfold

    result = bnfold.fold(path, **options)
    result.save(Path(path).with_name("out.onnx"), overwrite=True)
    json.dumps(result.to_dict())
    check = result.verification
    return {"left": result.report.after.batch_norms, "gone": len(result.folded),
            "reasons": [entry.reason for entry in result.kept],
            "checked": check.relation is not None, "skipped": check.skipped}  # fmt: skip


def _inspect(path: str) -> dict[str, Any]:
    import bnfold

    return {"found": len(json.dumps(bnfold.inspect(path).to_dict()))}


def _verify(path: str, **options: Any) -> dict[str, Any]:
    import bnfold

    found = bnfold.verify(path, options.pop("other", path), **options)
    json.dumps(found.to_dict())
    return {"verdict": found.verdict, "reason": found.reason}


def _recalibrate(path: str, data: Any = None, **options: Any) -> dict[str, Any]:
    import bnfold

    if data is None:
        import numpy as np

        data = {"x": np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)}
    result = bnfold.recalibrate(path, data, **options)
    result.save(Path(path).with_name("out.onnx"), overwrite=True)
    return {"measured": len(result.drift), "unmeasured": len(result.unmeasured)}


def _plan(path: str) -> dict[str, Any]:
    return _fold(path, verify=False)


VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "fold": _fold, "plan": _plan, "inspect": _inspect, "verify": _verify, "recalibrate": _recalibrate,
}  # fmt: skip


def _outcome(order: dict[str, Any]) -> dict[str, Any]:
    """'done', 'refused' with its message, or 'crashed'; and megabytes and seconds of it."""
    from bnfold.errors import BnfoldError

    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        result = {"outcome": "done", **VERBS[order.pop("verb")](order.pop("path"), **order)}
    except BnfoldError as error:
        result = {"outcome": "refused", "kind": type(error).__name__, "message": str(error)}
    except BaseException as error:
        result = {"outcome": "crashed", "message": f"{type(error).__name__}: {error}"[:500],
                  "trace": traceback.format_exc()[-3000:]}  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_SELF)
    result["megabytes"] = (after.ru_maxrss - before.ru_maxrss) // 1024
    result["seconds"] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)
    return result


def _jailed(order: dict[str, Any]) -> dict[str, Any]:
    """Run an order in a child."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, used + SPACE))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU + 1))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            with os.fdopen(theirs, "w") as pipe:
                pipe.write(json.dumps(_outcome(order)))
        finally:
            os._exit(0)
    os.close(theirs)
    watch = threading.Timer(CLOCK, os.kill, (child, signal.SIGKILL))
    watch.start()
    with os.fdopen(ours) as pipe:
        told = pipe.read()
    watch.cancel()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not told:
        return {"outcome": "died", "message": signal.Signals(-status).name if status < 0 else f"exit code {status}"}
    result: dict[str, Any] = json.loads(told)
    return result


def _serve() -> None:
    for module in ("onnx.reference", "onnxruntime", "bnfold.api", "bnfold.recalibrate.api", "bnfold.verify.relation"):
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(_jailed(json.loads(line))), flush=True)


if __name__ == "__main__":
    _serve()
