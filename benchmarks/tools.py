"""The existing tools, each behind the same door: `python tools.py TOOL SOURCE TARGET`.

Every tool runs in a process of its own, so that its cost is the cost of the whole process, imports included,
and so that a crash is a result like another.  A tool gets the cheapest settings that fold BatchNorm; where its
own checks cost extra (onnxsim's), both are listed.

    python tools.py TOOL SOURCE TARGET       one file
    python tools.py TOOL < PAIRS             many in one process: "SOURCE<tab>TARGET" lines in,
                                             one line out for each: "ok" or the error

Only the standard library is imported until a tool is asked for.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable


def bnfold(source: str, target: str) -> None:
    """What `bnfold fold --no-verify` does: the fold and its static proof."""
    import bnfold

    bnfold.fold(source, verify=False).save(target)


def onnxslim(source: str, target: str) -> None:
    import onnxslim

    onnxslim.slim(source, target)


def onnxsim(source: str, target: str) -> None:
    """What the command does by default."""
    import onnx
    import onnxsim

    onnx.save(onnxsim.simplify(source)[0], target)


def onnxsim_checked(source: str, target: str) -> None:
    """The same, and the result is compared on three random inputs."""
    import onnx
    import onnxsim

    onnx.save(onnxsim.simplify(source, check_n=3)[0], target)


def onnxoptimizer(source: str, target: str) -> None:
    """The one pass that folds BatchNorm."""
    import onnx
    import onnxoptimizer

    onnx.save(onnxoptimizer.optimize(onnx.load(source), ["fuse_bn_into_conv"]), target)


def onnxscript(source: str, target: str) -> None:
    """What torch.onnx.export(dynamo=True) runs after an export: optimize, then the default rewrite rules."""
    import onnx_ir
    from onnxscript import optimizer, rewriter

    model = onnx_ir.load(source)
    optimizer.optimize(model)
    onnx_ir.save(rewriter.rewrite(model), target)


def ort_basic(source: str, target: str) -> None:
    """ONNX Runtime's optimised model, written out at the level BASIC."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = target
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def load_save(source: str, target: str) -> None:
    """The floor of every tool that reads a model as a whole."""
    import onnx

    onnx.save(onnx.load(source), target)


TOOLS: dict[str, tuple[str, Callable[[str, str], None] | None]] = {
    "bnfold": ("bnfold", bnfold),
    "onnxslim": ("onnxslim", onnxslim),
    "onnxsim": ("onnxsim", onnxsim),
    "onnxsim checked": ("onnxsim", onnxsim_checked),
    "onnxoptimizer": ("onnxoptimizer", onnxoptimizer),
    "onnxscript": ("onnxscript", onnxscript),
    "ORT basic": ("onnxruntime", ort_basic),
    "load+save": ("onnx", load_save),
    "cp": ("", None),
}
"""Name in the tables: the package it needs, and how it is called in Python (None: by its command only)."""


def installed(tool: str) -> bool:
    """Whether the package behind ``tool`` can be imported."""
    package = TOOLS[tool][0]
    return not package or importlib.util.find_spec(package) is not None


def command(tool: str, source: str, target: str) -> list[str]:
    """The command line whose cost is the tool's cost."""
    if tool == "bnfold":
        return [sys.executable, "-m", "bnfold", "fold", source, "-o", target, "--no-verify", "--force", "-q"]
    if tool == "cp":
        return [shutil.which("cp") or "cp", source, target]
    return [sys.executable, __file__, tool, source, target]


def _serve(call: Callable[[str, str], None]) -> None:
    """Answer every line of stdin by one line, whatever the tool prints or raises."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        source, target = line.rstrip("\n").split("\t")
        try:
            call(source, target)
            answer = "ok"
        except Exception as error:  # a stranger's code may raise anything: that is its result
            answer = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    function = TOOLS[sys.argv[1]][1]
    if function is None:
        sys.exit(f"{sys.argv[1]}: has no Python call")
    if len(sys.argv) == 4:
        function(sys.argv[2], sys.argv[3])
    else:
        _serve(function)
