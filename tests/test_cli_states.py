"""Commands in any order on files in any state: whatever is asked for, inputs and earlier outputs stay whole.

Between commands the world changes: files go, become links, become read-only.  Runs in this process: a thousand
commands take less than a process each would.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import conv_bn
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import bnfold
from bnfold.cli import _end, _run
from bnfold.errors import BnfoldError
from bnfold.model_file import load
from bnfold.recalibrate.undo import keep_old

# What commands are about; some are there from the beginning, some are never.
FILES = (
    "m.onnx", "e.onnx", "shared.onnx", "bare.onnx", "link.onnx", "hard.onnx", "dangling.onnx", "text.onnx", "folder",
    "e.onnx.data", "d.npz", "undo.npz", "out.onnx", "out.onnx.data", "m.folded.onnx", "nowhere/out.onnx",
)  # fmt: skip
MODELS = ("m.onnx", "e.onnx", "shared.onnx", "bare.onnx", "link.onnx")
TARGETS = st.sampled_from(FILES)
VERBS = ("fold", "recalibrate", "insert", "restore")
DEFAULTS = {"fold": "folded", "recalibrate": "recalibrated", "insert": "bn", "restore": "restored"}


def mostly(*usual: str | None) -> st.SearchStrategy[str | None]:
    """These, and in a third of the cases any file at all."""
    return st.one_of(st.sampled_from(usual), st.sampled_from(usual), TARGETS)


def make_world(folder: Path) -> None:
    """Models with their weights inside and outside, one without BN, links, samples, and what is no model."""
    model = conv_bn()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    external = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save(external, folder / "e.onnx", save_as_external_data=True, location="e.onnx.data", size_threshold=0)
    shutil.copy(folder / "e.onnx", folder / "shared.onnx")
    (folder / "rounded.onnx").write_bytes(rounded(model).SerializeToString())
    bn = model.graph.node[1]
    bn.CopyFrom(onnx.helper.make_node("Identity", bn.input[:1], bn.output, name="was"))
    (folder / "bare.onnx").write_bytes(model.SerializeToString())
    (folder / "link.onnx").symlink_to("m.onnx")
    os.link(folder / "bare.onnx", folder / "hard.onnx")
    (folder / "dangling.onnx").symlink_to("gone.onnx")
    (folder / "text.onnx").write_text("no model")
    (folder / "folder").mkdir()
    np.savez(folder / "d.npz", x=np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32))
    measured = bnfold.recalibrate(folder / "m.onnx", folder / "d.npz")
    measured.save(folder / "out.onnx")
    keep_old(measured.drift, folder / "undo.npz")


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose BN reads values that are rounded."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    conv, bn, relu = (onnx.NodeProto.FromString(node.SerializeToString()) for node in copy.graph.node)
    steps = ["step", "zero"]
    copy.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.05), steps[0]))
    copy.graph.initializer.append(onnx.numpy_helper.from_array(np.uint8(128), steps[1]))
    pair = [
        onnx.helper.make_node("QuantizeLinear", [conv.output[0], *steps], ["integers"], name="round"),
        onnx.helper.make_node("DequantizeLinear", ["integers", *steps], ["rounded"], name="back"),
    ]
    bn.input[0] = "rounded"
    del copy.graph.node[:]
    copy.graph.node.extend([conv, *pair, bn, relu])
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, behind links too."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def whole(folder: Path) -> dict[str, dict[str, bytes]]:
    """The files of every model that can be read: its own and those of its data."""
    found = {}
    for path in folder.glob("*.onnx"):
        try:
            model = load(path)
        except BnfoldError:
            continue
        files = {path.name, *(file.path.name for file in model.weights.files())}
        found[path.name] = {name: (folder / name).read_bytes() for name in files}
    return found


class Text(io.StringIO):
    """A stream that has a descriptor, which the command closes after an error of the system."""

    def fileno(self) -> int:
        return os.open(os.devnull, os.O_WRONLY)


@contextmanager
def caught() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = Text(), Text()
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def command(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command, run here."""
    with caught() as (out, err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bnfold", *arguments])
        try:
            code = _run(list(arguments))
        except BaseException as error:
            code = _end(error)
    return code, out.getvalue(), err.getvalue()


class Commands(RuleBasedStateMachine):
    """A folder of files, and what people do to it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="states-"))
        make_world(self.folder)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(
        verb=st.sampled_from(VERBS), model=mostly(*MODELS), data=mostly("d.npz"), output=mostly(None, "out.onnx"),
        undo=mostly(None, "undo.npz"), force=st.booleans(), in_place=st.sampled_from([False, False, True]),
        dry_run=st.sampled_from([False] * 5 + [True]),
    )  # fmt: skip
    def write(
        self, verb: str, model: str, data: str, output: str | None, undo: str | None, force: bool, in_place: bool,
        dry_run: bool,
    ) -> None:  # fmt: skip
        """A command that makes a model of a model."""
        model = "bare.onnx" if verb == "insert" and model == "m.onnx" else model
        arguments = {"fold": ["fold", self.at(model), "--no-verify"], "insert": ["insert", self.at(model)],
                     "recalibrate": ["recalibrate", self.at(model)],
                     "restore": ["recalibrate", self.at(model), "--restore", self.at("undo.npz")]}[verb]  # fmt: skip
        result = model if in_place else output or f"{Path(model).stem}.{DEFAULTS[verb]}.onnx"
        outputs = {result}
        if verb in ("recalibrate", "insert"):
            arguments += ["--data", self.at(data)]
        if verb == "recalibrate" and undo is not None:
            arguments += ["--undo", self.at(undo)]
            outputs.add(undo)
        for option, wanted in (("--force", force), ("--in-place", in_place), ("--dry-run", dry_run)):
            arguments += [option] * wanted
        output = None if in_place and force else output  # both at once are refused
        arguments += ["-o", self.at(output)] if output is not None else []
        inputs = {model} - ({model} if in_place else set()) | ({data} if "--data" in arguments else set())
        inputs |= {"undo.npz"} if verb == "restore" else set()
        if dry_run:
            self.check(arguments, set(), inputs, replaces=False)
        else:
            self.check(arguments, outputs, inputs, replaces=force or in_place,
                       result=result if result.endswith(".onnx") else "")  # fmt: skip

    @rule(a=st.sampled_from(MODELS), b=TARGETS, report=TARGETS, kind=st.sampled_from(["--certificate", "--junit"]))
    def verify(self, a: str, b: str, report: str, kind: str) -> None:
        """Two models compared, with a report."""
        self.check(["verify", self.at(a), self.at(b), kind, self.at(report)], {report}, {a, b}, replaces=True)

    @rule(name=TARGETS, how=st.sampled_from(["gone", "read-only", "link to m.onnx", "empty"]))
    def happen(self, name: str, how: str) -> None:
        """Something that others do to a file."""
        path = self.folder / name
        if name == "folder" or not path.parent.exists():
            return
        if how == "read-only":
            if path.exists():
                path.chmod(0o444)
            return
        path.unlink(missing_ok=True)
        if how.startswith("link") and name != "m.onnx":
            path.symlink_to("m.onnx")
        elif how == "empty":
            path.touch()

    def at(self, name: str) -> str:
        return str(self.folder / name)

    def check(
        self, arguments: list[str], outputs: set[str], inputs: set[str], *, replaces: bool, result: str = "",
    ) -> None:  # fmt: skip
        """Run a command, and see that it did what it said, and nothing else."""
        before, models = contents(self.folder), whole(self.folder)
        code, _, error = command(*arguments, "-q")
        after = contents(self.folder)
        assert code in (0, 1, 2, 3), code
        assert "internal error" not in error, error
        if code == 2:
            assert error.count("\n") == 1 and error.endswith("\n") and error.startswith("bnfold: "), error
            assert after == before
            return
        assert error == "", error
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        beside = {f"{name}{number}.data" for name in outputs for number in ("", ".1", ".2", ".3", ".4", ".5")}
        through = {name for name in FILES if (self.folder / name).is_symlink()}
        assert changed <= outputs | beside | through, changed
        assert not inputs & changed - through, "an input is whole"
        if not replaces:
            assert not changed & before.keys() - through, "an earlier output is whole"
        left = whole(self.folder)
        for name, content in models.items():
            if not content.keys() & (outputs | through):  # what was named is the user's decision
                assert left.get(name) == content, f"{name} is whole"
        assert not result or result in left, "what was written is whole"

    @invariant()
    def nothing_is_left_over(self) -> None:
        assert not [path for path in self.folder.rglob("*") if path.name.endswith(".tmp")]


TestCommands = Commands.TestCase
TestCommands.settings = settings(
    max_examples=35, stateful_step_count=12, derandomize=True, deadline=None, database=None, print_blob=False
)
