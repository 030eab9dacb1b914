"""A cell for hostile input: each file is worked on in a process of its own, with little memory and little time.

`Jail` starts this file as a server that has imported everything once; for every file it forks, limits the child, lets
it do one verb after the other, and tells what became of each.  A bomb that goes off is a failed test, not a dead test
run: of a child that dies, the verbs that it did not get through are told as 'died'.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Of a verb, in seconds of CPU and of the clock; of a child, in bytes on top of what the server has.
CPU, CLOCK, SPACE = 20, 60, 4 << 30

Result = dict[str, Any]


class Jail:
    """The server, seen from the tests."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, verb: str, path: Path, **options: Any) -> Result:
        """What `verb` made of the file at `path`: see `_outcome`."""
        return self._told([{"verb": verb, "path": str(path), **options}])[0]

    def run_all(self, files: Mapping[str, Path]) -> dict[str, Result]:
        """What verbs made of a file each, one after the other in one child."""
        told = self._told([{"verb": verb, "path": str(path)} for verb, path in files.items()])
        return dict(zip(files, told, strict=True))

    def _told(self, orders: list[dict[str, Any]]) -> list[Result]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(orders) + "\n")
        self._server.stdin.flush()
        results: list[Result] = json.loads(self._server.stdout.readline())
        return results

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

    result = bnfold.recalibrate(path, _samples(path) if data is None else data, **options)
    result.save(Path(path).with_name("out.onnx"), overwrite=True)
    return {"measured": len(result.drift), "unmeasured": len(result.unmeasured)}


def _insert(path: str, data: Any = None, **options: Any) -> dict[str, Any]:
    import bnfold

    result = bnfold.insert(path, _samples(path) if data is None else data, **options)
    result.save(Path(path).with_name("out.onnx"), overwrite=True)
    json.dumps(result.to_dict())
    return {"put in": len(result.sites), "change": result.difference.worst if result.difference else 0}


def _torch(path: str) -> dict[str, Any]:
    """To torch and back; what was not trained has to be what it was."""
    import onnx

    import bnfold.torch

    module = bnfold.torch.to_module(path)
    trained = bnfold.torch.write_back(path, module)
    same = [a == b for a, b in zip(trained.graph.initializer, onnx.load(path).graph.initializer, strict=True)]
    return {"tensors": len(module.names), "same": all(same)}


def _samples(path: str) -> dict[str, Any]:
    """What fits the models of `hostile_graphs`, whatever their type."""
    import numpy as np
    import onnx

    dtype: Any = np.float32
    with contextlib.suppress(Exception):  # a file that is none, or has no such input: the verb will say so
        kind = onnx.ModelProto.FromString(Path(path).read_bytes() if Path(path).is_file() else b"")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.graph.input[0].type.tensor_type.elem_type)
    return {"x": np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(dtype)}


def _plan(path: str) -> dict[str, Any]:
    return _fold(path, verify=False)


VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "fold": _fold, "plan": _plan, "inspect": _inspect, "verify": _verify, "recalibrate": _recalibrate,
    "insert": _insert, "torch": _torch,
}  # fmt: skip


def _outcome(order: dict[str, Any]) -> Result:
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


def _jailed(orders: list[dict[str, Any]]) -> list[Result]:
    """Run the orders in a child."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, used + SPACE))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            with os.fdopen(theirs, "w") as pipe:
                for order in orders:
                    _allow_time()
                    print(json.dumps(_outcome(order)), file=pipe, flush=True)
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        results: list[Result] = [json.loads(line) for line in pipe]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    death = {"outcome": "died", "message": signal.Signals(-status).name if status < 0 else f"exit code {status}"}
    return results + [death] * (len(orders) - len(results))


def _allow_time() -> None:
    """The system ends this process unless it is done, or has got more time, before this is up."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU, resource.RLIM_INFINITY))
    signal.alarm(CLOCK)


def _serve() -> None:
    modules = ["onnx.reference", "onnxruntime", "bnfold.api", "bnfold.recalibrate.api", "bnfold.insert.api"]
    modules += ["bnfold.verify.relation", *(["bnfold.torch"] if importlib.util.find_spec("torch") else [])]
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(_jailed(json.loads(line))), flush=True)


if __name__ == "__main__":
    _serve()
