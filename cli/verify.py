"""`bnfold verify`: do two models compute the same?"""

from __future__ import annotations

import json as jsonlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import UsageError, quoted
from bnfold.plain import finite

from . import page, render, verdict
from .request import choose_one

if TYPE_CHECKING:
    from bnfold import Comparison

PICTURES = (".png", ".svg", ".pdf")


def run(
    a: str | None,
    b: str | None,
    *,
    data: str | None,
    seed: int,
    optimized: bool,
    strict: bool,
    provider_a: str,
    provider_b: str,
    certificate: str | None,
    check: str | None,
    junit: str | None,
    plot: str | None,
    html: str | None,
    json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Do what the command line asks for (see `bnfold verify --help`); returns the exit code."""
    choose_one(("--quiet", quiet), ("--verbose", verbose))
    if check is None:
        _demand_models(a, b, optimized)
    elif a is not None or certificate is not None:
        raise UsageError("--check takes the files that the certificate names; leave the others out")
    files = [name for name in (certificate, junit, plot) if name is not None]
    inputs = [name for name in (a, b, data, check) if name is not None]
    _demand_places(files, plot, inputs)
    page.demand(html, files, inputs)

    with render.progress(quiet=quiet, verbose=verbose):
        import bnfold

        if check is not None:
            from bnfold.verify.certificate import check as check_again

            found = check_again(check)
        else:
            found = bnfold.verify(
                a, b, data=data, seed=seed, optimized=optimized, provider_a=provider_a, provider_b=provider_b
            )
    title = check or " and ".join(os.path.basename(name) for name in (a, b) if name)
    if certificate is not None:
        assert a is not None
        _certify(found, a, b, data, certificate)
    if junit is not None:
        from bnfold.verify.junit import junit as as_junit

        _write(junit, as_junit(found, title, strict))
    if plot is not None:
        from bnfold.verify.plot import plot as draw

        draw(found, plot, title)
    code = found.exit_code(strict)
    report = {"a": a, "b": b, "exit_code": code} | found.to_dict()
    if html is not None:
        with render.progress(quiet=quiet, verbose=verbose):
            _show_page(html, report, found, check, data, title)
        files.append(html)
    if json:
        render.as_json("verify", report)
    elif not quiet:
        verdict.show(found, a or f"what {check} certifies", b, files, verbose=verbose)
    return code


def _demand_models(a: str | None, b: str | None, optimized: bool) -> None:
    if a is None:
        raise UsageError("two models are needed: bnfold verify A B")
    if b is None and not optimized:
        raise UsageError("a second model is needed, or --optimized for what ONNX Runtime's optimiser makes of this one")


def _demand_places(files: Sequence[str], plot: str | None, inputs: Sequence[str]) -> None:
    """Soon, rather than after minutes of work: can the files be written?"""
    if not files:
        return
    from importlib.util import find_spec

    from bnfold.atomic import check_output, demand_apart
    from bnfold.model_file import data_files

    if plot is not None and find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib; pip install 'bnfold[plot]'")
    if plot is not None and not plot.lower().endswith(PICTURES):
        raise UsageError(f"--plot writes {', '.join(PICTURES)}, by the end of the name; {quoted(plot)} has another")
    for name in files:
        check_output(Path(name), True, [])
    demand_apart(files, [*inputs, *data_files(inputs)])


def _certify(found: Comparison, a: str, b: str | None, data: str | None, path: str) -> None:
    from bnfold.verify.certificate import certificate

    content = certificate(found, a, b, data, Path(path).absolute().parent)
    _write(path, jsonlib.dumps(finite(content), indent=2) + "\n")


def _show_page(
    html: str, report: dict[str, Any], found: Comparison, check: str | None, data: str | None, title: str
) -> None:
    """The page, which holds the certificate too; of `--check` the very one that was checked."""
    from bnfold.page import for_verify
    from bnfold.verify.certificate import certificate, read

    folder = Path(check or html).absolute().parent
    known = read(check) if check is not None else certificate(found, report["a"], report["b"], data, folder)
    network = page.drawn(os.path.join(folder, next(iter(known["a"]))), html)
    assert network is not None
    page.write(html, for_verify(report, network, known, title))


def _write(path: str, text: str) -> None:
    from bnfold.atomic import write_file

    write_file(path, text.encode("utf-8", "replace"), overwrite=True)
