"""`bnfold fold` and `bnfold inspect` with several models: one after the other or at once, as processes."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from command import MODEL, Result, batch_norms, conv_bn, files, interruptible
from conftest import REPO
from test_cli_states import command

from bnfold.cli import batch, many
from bnfold.errors import UsageError
from bnfold.verify import runtime

QUICK = ("--no-verify", "--jobs", "2")


def bnfold(*arguments: str) -> Result:
    """The command, run here; what it starts are processes."""
    return Result(arguments, *command(*arguments))


def ok(*arguments: str) -> str:
    """The same, which must succeed without a word on stderr; returns its stdout."""
    result = bnfold(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: two models with BN, one without, one that is cut short."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        onnx.save(conv_bn(name), tmp_path / f"{name}.onnx")
    plain = conv_bn()
    plain.graph.node[1].op_type = "Identity"
    del plain.graph.node[1].input[1:]
    onnx.save(plain, tmp_path / "plain.onnx")
    (tmp_path / "cut.onnx").write_bytes(MODEL.read_bytes()[:1000])
    return tmp_path


def test_each_goes_into_the_folder_under_its_name_and_gets_a_line(world: Path) -> None:
    out = ok("fold", "b.onnx", "plain.onnx", "a.onnx", "-o", "out", "--jobs", "3").splitlines()
    assert [line[:14].strip() for line in out[:3]] == ["BN 1 → 0", "BN none", "BN 1 → 0"]
    assert " of 16 " in out[0] and "unchanged" in out[1]
    arrows = [f"{name}.onnx → {Path('out', name)}.onnx" for name in ("b", "plain", "a")]  # as they were named
    assert all(line.endswith(arrow) for line, arrow in zip(out, arrows, strict=False))
    assert out[3:] == ["3 models: 2 folded; 1 unchanged; BN 2 → 0"]
    assert sorted(files(world / "out")) == ["a.onnx", "b.onnx", "plain.onnx"]
    assert batch_norms(world / "out" / "a.onnx") == []
    assert (world / "out" / "plain.onnx").read_bytes() == (world / "plain.onnx").read_bytes()


def test_the_example_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (REPO / "docs" / "pipelines.md").read_text("utf-8")
    shown = re.search(r"    \$ bnfold (fold sample_models/\S+ (.*))\n((?:    .*\n)+)", page)
    assert shown
    (tmp_path / "sample_models").mkdir()
    models = sorted((REPO / "sample_models").glob("*.onnx"))
    for model in models:
        (tmp_path / "sample_models" / model.name).write_bytes(model.read_bytes())
    out = ok("fold", *(f"sample_models/{model.name}" for model in models), *shown[2].split())
    told = "".join(line[4:] + "\n" for line in shown[3].splitlines())
    noise = re.compile(r"[\d.]+ of 16 *")  # depends on the processor
    assert noise.sub("", out) == noise.sub("", told)


def test_batch_norm_that_an_exporter_wrote_as_mul_and_add(world: Path) -> None:
    proto = conv_bn()
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name in ("gamma", "beta"):
        tensors[name].dims[:] = [1, 4, 1, 1]
    mul = onnx.helper.make_node("Mul", ["c", "gamma"], ["m"], name="mul")
    add = onnx.helper.make_node("Add", ["m", "beta"], ["b"], name="add")
    conv, _, relu = list(proto.graph.node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (conv, mul, add, relu)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, world / "m.onnx")
    out = ok("fold", "m.onnx", "--jobs", "1", "-o", "out", "--no-verify")
    assert out.startswith("ops 2 → 0     not checked     m.onnx → ")


def test_the_same_bytes_as_of_one_model(world: Path) -> None:
    ok("fold", "a.onnx", "-o", "one.onnx", "--skip", "nothing*", "--no-verify", "-q")
    ok("fold", "a.onnx", "b.onnx", "-o", "out", "--skip", "nothing*", *QUICK, "-q")
    assert (world / "out" / "a.onnx").read_bytes() == (world / "one.onnx").read_bytes()


def test_options_reach_every_model(world: Path) -> None:
    out = ok("fold", "a.onnx", "b.onnx", "-o", "out", "--skip", "a", "--skip", "c", *QUICK)
    assert "2 models: 1 folded; 1 unchanged; BN 2 → 1" in out
    assert batch_norms(world / "out" / "a.onnx") == ["a"] and batch_norms(world / "out" / "b.onnx") == []


def test_a_broken_model_does_not_stop_the_others(world: Path) -> None:
    result = bnfold("fold", "a.onnx", "cut.onnx", "gone.onnx", "b.onnx", "-o", "out", *QUICK)
    assert result.returncode == 2
    cut, gone = result.stderr.splitlines()
    assert cut.startswith("bnfold: cut.onnx: is not an ONNX model") and gone == "bnfold: gone.onnx: no such file"
    assert "4 models: 2 folded; 2 failed; BN 2 → 0" in result.stdout
    assert sorted(files(world / "out")) == ["a.onnx", "b.onnx"]


def test_json_of_many(world: Path) -> None:
    result = bnfold("fold", "cut.onnx", "a.onnx", "-o", "out", *QUICK, "--json")
    assert (result.returncode, result.stderr) == (2, "")
    data = json.loads(result.stdout)
    cut, a = data["models"]
    assert (data["schema"], data["exit_code"]) == ("bnfold:fold-many:1", 2)
    assert (cut["input"], cut["exit_code"], cut["result"]) == ("cut.onnx", 2, None)
    assert cut["error"].startswith("cut.onnx: is not an ONNX model")
    assert (a["exit_code"], a["error"], a["result"]["schema"]) == (0, None, "bnfold:fold:1")
    assert a["result"]["written"] == [str(Path("out", "a.onnx"))]


def test_without_a_folder_each_lies_beside_its_model(world: Path) -> None:
    ok("fold", "a.onnx", "b.onnx", *QUICK, "-q")
    assert {"a.folded.onnx", "b.folded.onnx"} < files(world).keys()
    ok("fold", "a.onnx", "--in-place", *QUICK, "-q")
    assert batch_norms(world / "a.onnx") == []


@pytest.mark.parametrize("arguments", [("-o", "out/"), ("-o", "out", "--jobs", "1")], ids=["slash", "jobs"])
def test_one_model_into_a_folder(world: Path, arguments: tuple[str, ...]) -> None:
    """What a pattern of the shell that matches one file comes to."""
    assert "1 model: 1 folded; BN 1 → 0" in ok("fold", "a.onnx", "--no-verify", *arguments)
    assert list(files(world / "out")) == ["a.onnx"]


def test_dry_run_makes_no_folder(world: Path) -> None:
    before = sorted(world.iterdir())
    assert "dry run: nothing was written" in ok("fold", "a.onnx", "b.onnx", "-o", "out", "--dry-run", *QUICK)
    assert sorted(world.iterdir()) == before


def test_a_folder_for_nothing_goes_again(world: Path) -> None:
    assert bnfold("fold", "cut.onnx", "gone.onnx", "-o", "out", *QUICK).returncode == 2
    assert not (world / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.onnx", "sub/a.onnx", "-o", "out"], "'a.onnx' and 'sub/a.onnx' would both be written there"),
        (["a.onnx", "b.onnx", "-o", "plain.onnx"], "plain.onnx: is no folder"),
        (["a.onnx", "b.onnx", "-o", "no/out"], "there is no folder 'no'; create it first"),
        (["a.onnx", "b.onnx", "-o", ".", "--force"], "a.onnx: --output is the model itself; --in-place replaces it"),
        (["a.onnx", "sub/b.onnx", "-o", "sub", "--force"], "sub/b.onnx: --output is the model itself"),
        (["a.onnx", "a.folded.onnx", "--force"], "a.folded.onnx: is one of the models"),
        (["a.onnx", "b.onnx", "-v"], "several models and --verbose"),
        (["a.onnx", "b.onnx", "-o", "out", "--in-place"], "contradict"),
        (["a.onnx", "--jobs", "0"], "--jobs"),
    ],
    ids=" ".join,
)
def test_what_is_wrong_with_the_command_is_told_before_any_work(
    world: Path, arguments: list[str], message: str
) -> None:
    (world / "sub").mkdir()
    for name in ("a.onnx", "b.onnx"):
        (world / "sub" / name).write_bytes((world / name).read_bytes())
    (world / "a.folded.onnx").write_bytes((world / "a.onnx").read_bytes())
    before = files(world), files(world / "sub")
    code, out, said = command("fold", *arguments, "--no-verify")
    assert (code, out) == (2, "")
    assert said.count("\n") == 1 and message in said.replace(os.sep, "/")
    assert (files(world), files(world / "sub")) == before and not (world / "out").exists()


def test_inspect_of_many_and_its_check(world: Path) -> None:
    result = bnfold("inspect", "plain.onnx", "a.onnx", "--check")
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.endswith("2 models; 1 with BN that a fold removes; BN 1 → 0\n")
    assert [line[14:30].strip() for line in result.stdout.splitlines()[:2]] == ["fine", "a fold removes"]
    assert bnfold("inspect", "a.onnx", "--check").returncode == 1
    ok("inspect", "plain.onnx", "--check")


def test_check_is_content_with_what_no_fold_removes(world: Path) -> None:
    proto = conv_bn()
    proto.graph.node[1].attribute.extend([onnx.helper.make_attribute("training_mode", 1)])
    onnx.save(proto, world / "training.onnx")
    out = ok("inspect", "training.onnx", "--check", "--jobs", "1")
    assert out.startswith("BN 1 → 1      fine            training.onnx\n")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_interrupted_between_models(tmp_path: Path, number: signal.Signals) -> None:
    names = [f"{k}.onnx" for k in range(8)]
    for name in names:
        (tmp_path / name).write_bytes(MODEL.read_bytes())
    child = subprocess.Popen(
        [sys.executable, "-m", "bnfold", "fold", *names, "-o", "out", "--no-verify", "--jobs", "2"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=interruptible,  # noqa: PLW1509 (one thread)
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()  # the first is done, others are at work
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (130, b"bnfold: interrupted\n")
    done = files(tmp_path / "out")
    assert 1 <= len(done) < len(names) and all(name.endswith(".onnx") for name in done)
    assert all(batch_norms(tmp_path / "out" / name) == [] for name in done)
    assert len(set(done.values())) == 1


# -- pre-commit ---------------------------------------------------------------------------------------


def hook(name: str) -> tuple[list[str], re.Pattern[str]]:
    """The entry of a hook, and the files that it is for."""
    text = (REPO / ".pre-commit-hooks.yaml").read_text("utf-8")
    found = re.search(rf"- id: {name}\n(?:  .*\n)*?  entry: bnfold (.*)\n(?:  .*\n)*?  files: (.*)\n", text)
    assert found
    return found[1].split(), re.compile(found[2])


def test_hook_that_inspects(world: Path) -> None:
    entry, chosen = hook("bnfold-inspect")
    names = [name for name in files(world) if chosen.search(name) and name != "cut.onnx"]
    assert sorted(names) == ["a.onnx", "b.onnx", "plain.onnx"]
    result = bnfold(*entry, *names)
    assert result.returncode == 1 and "3 models; 2 with BN that a fold removes" in result.stdout


def test_hook_that_checks_a_certificate(world: Path) -> None:
    entry, _ = hook("bnfold-certificate")
    ok("fold", "a.onnx", "-q", "--no-verify")
    ok("verify", "a.onnx", "a.folded.onnx", "--certificate", "a.json", "-q")
    ok(*entry, "a.json")
    (world / "a.folded.onnx").write_bytes((world / "b.onnx").read_bytes())
    result = bnfold(*entry, "a.json")
    assert result.returncode == 1 and "is not the file that was certified" in result.stderr


# -- its parts ----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_process_that_is_killed_costs_its_own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    start = "import os, sys; os.kill(os.getpid(), 9) if sys.argv[-1] == 'b' else print('{}')"
    monkeypatch.setattr(many, "_START", start)
    first, killed, last = many.outcomes("fold", [(name, ()) for name in "abc"], jobs=2)
    assert first == last == many.Outcome(0, {})
    assert killed.code == 2 and killed.data is None and "SIGKILL" in killed.error


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_leaving_early_ends_what_runs_and_starts_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start = f"import pathlib, sys, time; pathlib.Path({str(tmp_path)!r}, sys.argv[-1]).touch(); "
    monkeypatch.setattr(many, "_START", start + "print('{}') if sys.argv[-1] == 'a' else time.sleep(600)")
    begun = time.monotonic()
    outcomes = many.outcomes("fold", [(name, ()) for name in "abcdef"], jobs=2)
    assert next(outcomes).code == 0
    while not {"b", "c"} <= {path.name for path in tmp_path.iterdir()}:
        time.sleep(0.05)
    outcomes.close()
    assert time.monotonic() - begun < 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_nothing_in_the_current_folder_is_run(world: Path) -> None:
    for name in ("json.py", "numpy.py", "signal.py"):
        (world / name).write_text("raise SystemExit('run')")
    code = "import sys; sys.path.remove(''); from bnfold.cli import main; main()"
    typed = [sys.executable, "-c", code, "fold", "a.onnx", "b.onnx", "-o", "out", "--no-verify"]
    result = subprocess.run(typed, cwd=world, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_patterns_are_expanded_where_no_shell_does_it(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    assert many.models(["b.onnx", "[ab].onnx"], expand=True) == ["b.onnx", "a.onnx"]
    (world / "[x].onnx").touch()
    assert many.models(["[x].onnx"], expand=True) == ["[x].onnx"]  # a file of that very name
    with pytest.raises(UsageError, match="no file matches 'no"):
        many.models(["no*.onnx"], expand=True)


def test_the_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name in many._THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    found = many._environment(3)
    assert (found["BNFOLD_THREADS"], found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == ("2", "2", "5")
    assert many._environment(20)["BNFOLD_THREADS"] == "1"


def test_threads_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNFOLD_THREADS", "1")
    assert runtime.Runner(conv_bn()).session.get_session_options().intra_op_num_threads == 1
    monkeypatch.setenv("BNFOLD_THREADS", "many")
    with pytest.raises(UsageError, match="BNFOLD_THREADS is a number of threads, not 'many'"):
        runtime.threads()


def test_none_is_started_once_they_were_stopped() -> None:
    children = many._Children({})
    children.stop()
    assert children.run(["fold", "m.onnx"]) == many.Outcome(130, None, "interrupted")


REQUANTIZE = {"requantize", "labels", "batch_size", "samples", "seed"}  # of one model's inputs


@pytest.mark.parametrize(
    ("verb", "own"),
    [
        ("fold", {"models", "jobs", "output", "plot", "html", *REQUANTIZE}),
        ("inspect", {"models", "jobs", "plot", "html", "json"}),
    ],
)
def test_every_option_reaches_the_processes(verb: str, own: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one has to be handed on, or to be refused for several models and named here."""
    module = importlib.import_module(f"bnfold.cli.{verb}")
    seen: dict[str, object] = {}
    monkeypatch.setattr(many, "words", lambda **options: seen.update(options))
    monkeypatch.setattr(batch, verb, lambda *_, **__: 0)
    names = inspect.signature(module.Request if verb == "fold" else module.run).parameters.keys()
    known = {"models": ["m.onnx"], "jobs": 1, "output": None, "verify": "usual", "kept": "reduce"}
    known |= {"plot": None, "html": None, **dict.fromkeys(REQUANTIZE)}
    given = {name: known.get(name, False) for name in names}
    if verb == "fold":
        module.run(module.Request(**given), {}, json=False, quiet=False, verbose=False)
    else:
        module.run(**given)
    assert seen.keys() == names - own
