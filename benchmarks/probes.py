"""The probe table: bnfold beside the existing tools, one idea per row.

    python benchmarks/probes.py [--recorded] [--update]

Tools that are installed run now (in a process of their own, a crash is a result), the others show what
`tests/probes.py` has on record.  ``+`` folded as far as the algebra allows and right, ``~`` some of it, ``-`` left
alone, ``x`` wrong numbers or a file that can't be used, ``!`` crash; ``?`` not tried.  "possible" is how few
per-channel operations the function can be computed with.  ``--recorded`` runs bnfold only; ``--update`` writes
what the other tools did back into tests/probes.py.  Exit code 1 when bnfold is wrong anywhere, or leaves more
than the algebra demands (in the two rows with NaN parameters others fold the NaN into the weights; we don't).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import HERE, REPO, say, table
from tools import TOOLS, installed

sys.path.insert(0, str(REPO / "tests"))

import onnx
from oracle import assert_same_function, left
from probe_text import Probe
from probes import PEERS, PROBES

import bnfold

LENIENT = 5.0
"""Other tools fold in the type of the weights: they are called wrong beyond 5 times what we ask of ourselves,
where a rounding-scale difference ends (20 ulps of the weights)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recorded", action="store_true", help="run bnfold only")
    parser.add_argument("--update", action="store_true", help="write the other tools' signs into tests/probes.py")
    arguments = parser.parse_args()
    signs = {"bnfold": ours()}
    for index, peer in enumerate(PEERS):
        if not arguments.recorded and peer in TOOLS and installed(peer):
            signs[peer] = theirs(peer)
        else:
            say(f"{peer}: on record")
            signs[peer] = {probe.name: probe.peers[index] for probe in PROBES}
    if arguments.update:
        _write({probe.name: "".join(signs[peer][probe.name] for peer in PEERS) for probe in PROBES})
    rows = [[p.name, str(left(p.model()).total), str(p.left), *(signs[c][p.name] for c in signs)] for p in PROBES]
    print(table(["case", "per-channel", "possible", *signs], rows))
    counts = [[sign, *(str([*column.values()].count(sign)) for column in signs.values())] for sign in "+~-x!?"]
    print("\n" + table(["", *signs], counts) + "\n")
    behind = [p.name for p in PROBES if signs["bnfold"][p.name] in "x!~" or _could_go(p, signs["bnfold"][p.name])]
    print(f"bnfold is wrong or behind on: {', '.join(behind)}" if behind else "bnfold is right, and nowhere behind")
    return 1 if behind else 0


def _could_go(probe: Probe, ours: str) -> bool:
    return ours == "-" and left(probe.model()).total > probe.left


def ours() -> dict[str, str]:
    """bnfold's sign for every probe."""
    signs = {}
    for probe in PROBES:
        model = probe.model()
        try:
            folded = bnfold.fold(model, verify=False, **probe.options).model
        except Exception as error:  # any exception is the result of this row
            say(f"bnfold: {probe.name}: {type(error).__name__}: {error}")
            signs[probe.name] = "!"
        else:
            signs[probe.name] = sign(probe, folded, 1.0)
    return signs


def theirs(tool: str) -> dict[str, str]:
    """The sign of an installed tool for every probe."""
    say(f"{tool} ...")
    signs = {}
    with tempfile.TemporaryDirectory() as folder:
        pairs = {}
        for probe in PROBES:
            onnx.save(probe.model(), f"{folder}/{probe.name}.onnx")
            pairs[probe.name] = (f"{folder}/{probe.name}.onnx", f"{folder}/{probe.name}.out.onnx")
        answers = answers_of(tool, list(pairs.values()))
        for probe, answer in zip(PROBES, answers, strict=True):
            target = Path(pairs[probe.name][1])
            if not target.exists():
                say(f"{tool}: {probe.name}: {answer}")
                signs[probe.name] = "!"
            else:
                signs[probe.name] = sign(probe, onnx.load(target), LENIENT)
    return signs


def answers_of(tool: str, pairs: list[tuple[str, str]]) -> list[str]:
    """One answer per pair; the process that a tool took down with it is started again for the next."""
    answers: list[str] = []
    while len(answers) < len(pairs):
        lines = "".join(f"{a}\t{b}\n" for a, b in pairs[len(answers) :])
        done = subprocess.run([sys.executable, str(HERE / "tools.py"), tool], input=lines, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, check=False)  # fmt: skip
        answers += done.stdout.splitlines()
        if len(answers) < len(pairs):
            answers.append(f"crash, exit code {done.returncode}")
    return answers


def sign(probe: Probe, result: onnx.ModelProto, lenient: float) -> str:
    """Judge one result (the meaning of the signs is in the module's docstring)."""
    model = probe.model()
    try:
        assert_same_function(model, result, probe.batches(), lenient)
    except AssertionError as error:
        say(f"  {probe.name}: {error}")
        return "x"
    before, after = left(model).total, left(result).total
    if after >= before:
        return "-"
    return "+" if after <= probe.left else "~"


def _write(columns: dict[str, str]) -> None:
    for path in sorted((REPO / "tests").glob("probes*.py")):
        text = path.read_text()
        for name, signs in columns.items():
            text = re.sub(rf'(Probe\("{re.escape(name)}", )"[^"]*"', rf'\1"{signs}"', text)
        path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
