"""Mutation testing of bnfold's own code: does a test fail for every small change?

    python benchmarks/mutants.py [MODULE …] [--sample N] [--seed 0] [--minutes M]

Without a module: `model_file`, `external` and `atomic` whole, and a sample of `fold/`.  Each mutant is one change
(a comparison, an operator, a constant, a condition, a default, a statement that is left out), written into a copy of
the repository, where the tests of `TESTS` run, the quick ones first, until one fails.  Prints a line a survivor, to be
answered in docs/mutation.md, and a table.  Exit code 1 if a survivor is not answered there.

Why not mutmut or cosmic-ray: many tests start processes of their own (`python -m bnfold`, children that are killed),
which mutmut's trampolines in one process don't reach; cosmic-ray starts Python anew for every mutant, and importing
onnx and ONNX Runtime costs more than most mutants' tests. Here a process that has imported them forks for each.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
ANSWERS = REPO / "docs" / "mutation.md"
# What is mutated, and the tests that are about it, the quick ones first.
SAVING = ["tests/test_saving.py", "tests/test_saving_faults.py"]
TESTS: dict[str, list[str]] = {
    "bnfold/model_file.py": ["tests/test_external_data.py", "tests/test_model_file.py", *SAVING],
    "bnfold/external.py": ["tests/test_external_data.py", *SAVING],
    "bnfold/atomic.py": [*SAVING, "tests/test_external_data.py"],
}
# They take seconds, and would be run for every survivor: of memory, and of processes that are killed.
LEFT_OUT = ["tests/test_saving.py::test_memory_does_not_grow_with_the_weights",
            "tests/test_saving_faults.py::test_kill_at_every_step", "tests/test_saving.py::test_more_than_2_gib",
            "tests/test_model_file.py::test_twenty_thousand_nodes"]  # fmt: skip
FOLD = ["tests/test_ops_table.py", "tests/test_regressions.py", "tests/test_probes.py", "tests/test_fused.py",
        "tests/test_merge.py", "tests/test_sums.py", "tests/test_union_find.py"]  # fmt: skip
REQUANTIZE = ["tests/test_requantize.py"]
# Mutants of all of fold/ that are tried unless told otherwise.
SAMPLE = 40
SECONDS = 20  # of CPU, for a mutant that never ends; all tests of a module take half of it
WARM = ("numpy", "onnx", "onnx.reference", "onnx.helper", "onnxruntime", "hypothesis", "pytest", "PIL.Image")


@dataclass(frozen=True)
class Mutant:
    """One change of a file."""

    file: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: `{self.before}` → `{self.after}`"


# -- changes ----------------------------------------------------------------------------------------

COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
               ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}  # fmt: skip
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
             ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift,
             ast.MatMult: ast.Mult, ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}  # fmt: skip


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    new = copy.deepcopy(node)
    if isinstance(new, ast.Compare) and type(new.ops[0]) in COMPARISONS:
        new.ops[0] = COMPARISONS[type(new.ops[0])]()
        yield new
    elif isinstance(new, ast.BinOp | ast.BoolOp) and type(new.op) in OPERATORS:
        new.op = OPERATORS[type(new.op)]()
        yield new
    elif isinstance(new, ast.UnaryOp) and isinstance(new.op, ast.Not | ast.USub):
        yield new.operand
    elif isinstance(new, ast.Constant) and isinstance(new.value, bool):
        yield ast.Constant(not new.value)
    elif isinstance(new, ast.Constant) and isinstance(new.value, int | float):
        yield ast.Constant(new.value + 1)
    elif isinstance(new, ast.If | ast.While | ast.IfExp):
        new.test = ast.UnaryOp(ast.Not(), new.test)
        yield new
    elif isinstance(new, ast.Continue):
        yield ast.Break()
    elif isinstance(new, ast.Return) and new.value is not None and not _is_none(new.value):
        new.value = ast.Constant(None)
        yield new
    elif isinstance(new, ast.Raise | ast.AugAssign) or (isinstance(new, ast.Expr) and isinstance(new.value, ast.Call)):
        yield ast.Pass()


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def mutants(file: str) -> list[Mutant]:
    """Every change of a file.  Annotations and docstrings stay, and so do lines that only checkers of types read."""
    source = (REPO / file).read_text()
    tree = ast.parse(source)
    found = []
    for parent, name, index, node in _places(tree):
        for new in changed(node):
            _put(parent, name, index, ast.copy_location(new, node))
            text = ast.unparse(ast.fix_missing_locations(tree))
            _put(parent, name, index, node)
            before, after = (_short(part) for part in (node, new))
            found.append(Mutant(file, node.lineno, before, after, text))
    return found


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Each node that may be changed, with its place in its parent."""
    waiting = [tree]
    while waiting:
        parent = waiting.pop()
        for name, value in ast.iter_fields(parent):
            if name in ("annotation", "returns", "decorator_list") or _is_for_types(parent):
                continue
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, ast.AST):
                    waiting.append(node)
                    yield parent, name, index, node


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _put(parent: ast.AST, name: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[index] = node


def _short(node: ast.AST) -> str:
    if isinstance(node, ast.If | ast.While):
        return f"{'if' if isinstance(node, ast.If) else 'while'} {ast.unparse(node.test)}"
    return " ".join(ast.unparse(ast.fix_missing_locations(node)).split())[:100]


# -- runs -------------------------------------------------------------------------------------------


class Workshop:
    """A copy of the repository, in which one file after the other is changed and tested."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "repository"
        listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True).stdout
        for file in listed.splitlines():
            if (REPO / file).is_file():
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPO / file, self.folder / file)
        (self.folder / "bnfold" / "cli").symlink_to("../cli")  # as it is installed
        if (REPO.parent / "shared").exists():
            (folder / "shared").symlink_to(REPO.parent / "shared")

    def killed_by(self, mutant: Mutant | None, tests: list[str]) -> str:
        """The test that fails, or what else happens; '' if none does."""
        original = (self.folder / mutant.file).read_text() if mutant else ""
        if mutant:
            self._write(mutant.file, mutant.source)
        log = self.folder.parent / "log"
        try:
            child = os.fork()
            if not child:
                self._test(tests, log)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:
            if mutant:
                self._write(mutant.file, original)
        if code == 0:
            return ""
        failed = [line.split()[1] for line in log.read_text().splitlines() if line.startswith(("FAILED", "ERROR "))]
        return failed[0] if failed else f"exit code {code}"

    def _write(self, file: str, source: str) -> None:
        path = self.folder / file
        path.write_text(source)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):  # Python looks at seconds and sizes alone
            compiled.unlink()

    def _test(self, tests: list[str], log: Path) -> None:
        """Never returns."""
        try:
            os._exit(self._tested(tests, log))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)

    def _tested(self, tests: list[str], log: Path) -> int:
        os.chdir(self.folder)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(out, stream)
        signal.alarm(5 * SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        sys.path[:0] = [str(self.folder), str(self.folder / "tests")]
        os.environ["PYTHONPATH"] = str(self.folder)
        import pytest

        left_out = [f"--deselect={test}" for test in LEFT_OUT]
        temporary = f"--basetemp={self.folder.parent / 'tmp'}"
        warm = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is imported already
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *warm, temporary, *left_out, *tests]))


def main() -> int:
    """Try every mutant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("modules", nargs="*", help="files, e.g. bnfold/atomic.py; without: those of TESTS, and fold/")
    parser.add_argument("--sample", type=int, help="so many mutants at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}  # threads don't survive a fork
    for module in WARM:
        __import__(module)
    end = time.monotonic() + 60 * arguments.minutes
    answered = ANSWERS.read_text() if ANSWERS.exists() else ""
    rows, open_ones = [], 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        workshop = Workshop(Path(name))
        sound: list[list[str]] = []
        for label, chosen, tests in _chosen(arguments):
            if tests not in sound and (unsound := workshop.killed_by(None, tests)):
                print(f"{label}: the tests fail without any change: {unsound}")
                return 1
            sound.append(tests)
            tried, survivors = 0, []
            for mutant in chosen:
                if time.monotonic() > end:
                    break
                tried += 1
                if not workshop.killed_by(mutant, tests):
                    is_answered = f"`{mutant.before}` → `{mutant.after}`" in answered
                    survivors.append(mutant)
                    open_ones += not is_answered
                    print(f"{mutant}{'  (answered)' if is_answered else ''}", flush=True)
            rows.append(f"| {label} | {len(chosen)} | {tried} | {tried - len(survivors)} | {len(survivors)} |")
    print("\n| code | mutants | tried | killed | survived |\n|---|---|---|---|---|", *rows, sep="\n")
    return bool(open_ones)


def _chosen(arguments: argparse.Namespace) -> Iterator[tuple[str, list[Mutant], list[str]]]:
    """What is mutated: its name, the mutants, their tests."""
    draw = random.Random(arguments.seed)
    for file in arguments.modules or TESTS:
        found = mutants(file)
        some = draw.sample(found, min(arguments.sample, len(found))) if arguments.sample else found
        yield file, some, TESTS.get(file, REQUANTIZE if file.startswith("bnfold/requantize/") else FOLD)
    if not arguments.modules:
        files = sorted(str(path.relative_to(REPO)) for path in (REPO / "bnfold" / "fold").rglob("*.py"))
        found = [mutant for file in files for mutant in mutants(file)]
        yield "bnfold/fold/ (a sample)", draw.sample(found, arguments.sample or SAMPLE), FOLD


if __name__ == "__main__":
    sys.exit(main())
