"""The command line: verbs, options, help.

A verb's function here only says what its arguments are and gives back the work to be done.  Nothing
heavy is imported for `--help`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from bnfold._version import __version__

Job = Callable[[], None]

ABOUT = """Fold inference BatchNorm out of ONNX models, without changing what they compute, and prove it."""

EXAMPLES = """\b
Examples:
  bnfold inspect model.onnx            what is there, and what a fold would do
  bnfold fold model.onnx               writes model.folded.onnx

\b
Exit codes:
  0    done (also when there was nothing to fold)
  1    not equivalent: a proof failed, nothing was written
  2    bad input, usage or I/O, or an internal error
  130  interrupted, nothing was left behind
"""

FOLD_EXAMPLES = """\b
Examples:
  bnfold fold model.onnx                          writes model.folded.onnx beside it
  bnfold fold model.onnx -o out.onnx --force      replaces out.onnx
  bnfold fold model.onnx --dry-run -v             what would become of each BatchNorm
  bnfold fold model.onnx --skip '*head*' --json   leaves these alone; the account as JSON
"""

INSPECT_EXAMPLES = """\b
Examples:
  bnfold inspect model.onnx
  bnfold inspect model.onnx --json
"""

# Plain help: rich's boxes would take more than half of the time of `bnfold --help`.
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout, and nothing else there.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bnfold {__version__}")
        raise typer.Exit


@app.callback(help=ABOUT, epilog=EXAMPLES)
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The command itself."""


@app.command(epilog=FOLD_EXAMPLES)
def fold(
    model: Model,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to; by default NAME.folded.onnx beside MODEL."),
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace MODEL itself.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output file.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write.")] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Don't run the models to compare them; the static proof stays.")
    ] = False,
    require_verify: Annotated[
        bool, typer.Option("--require-verify", help="Fail if ONNX Runtime can't run the models to compare them.")
    ] = False,
    keep_overridable: Annotated[
        bool, typer.Option("--keep-overridable", help="Leave initializers alone that are graph inputs too.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PATTERN", help="Fold only nodes with such a name (* ? [...]); repeatable."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="PATTERN", help="Leave nodes with such a name alone; repeatable."),
    ] = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on success.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="One line for each BatchNorm.")] = False,
) -> Job:
    """Remove BatchNorm from a model without changing its function."""
    from .fold import run

    return partial(
        run, model, output=output, in_place=in_place, force=force, dry_run=dry_run, verify=not no_verify,
        require_verify=require_verify, keep_overridable=keep_overridable, only=only or (), skip=skip or (),
        json=json, quiet=quiet, verbose=verbose,
    )  # fmt: skip


@app.command(epilog=INSPECT_EXAMPLES)
def inspect(
    model: Model,
    keep_overridable: Annotated[
        bool, typer.Option("--keep-overridable", help="As for fold: such initializers are no constants.")
    ] = False,
    json: Json = False,
) -> Job:
    """Show every BatchNorm of a model: neighbours, statistics, and what a fold would do with it."""
    from .inspect import run

    return partial(run, model, keep_overridable=keep_overridable, json=json)
