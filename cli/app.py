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

from . import options

Job = Callable[[], int | None]

ABOUT = """BatchNorm in ONNX models: fold it away and prove it, measure its statistics anew, put it in."""

EXAMPLES = """\b
Examples:
  bnfold inspect model.onnx            what is there, and what a fold would do
  bnfold fold model.onnx               writes model.folded.onnx
  bnfold verify a.onnx b.onnx          do both compute the same?
  bnfold recalibrate model.onnx --data images/     statistics from your own data
  bnfold insert model.onnx --data images/          gives it BatchNorm, without changing what it computes

\b
Exit codes:
  0    done (also when there was nothing to fold)
  1    not equivalent: a proof failed and nothing was written, or verify found a difference;
       inspect --check: a fold would remove BatchNorm
  2    bad input, usage or I/O, or an internal error
  3    verify cannot tell
  130  interrupted, nothing was left behind
"""

FOLD_EXAMPLES = """\b
Examples:
  bnfold fold model.onnx                          writes model.folded.onnx beside it
  bnfold fold model.onnx -o out.onnx --force      replaces out.onnx
  bnfold fold model.onnx --dry-run -v             what would become of each BatchNorm
  bnfold fold model.onnx --skip '*head*' --json   leaves these alone; the account as JSON
  bnfold fold models/*.onnx -o folded --jobs 4    many, four at once; the highest of their exit codes
  bnfold fold int8.onnx --requantize data.npz:x   BatchNorm behind rounded activations goes, too
"""

INSPECT_EXAMPLES = """\b
Examples:
  bnfold inspect model.onnx
  bnfold inspect model.onnx --json
  bnfold inspect models/*.onnx --check            exit code 1 if a fold would remove BatchNorm
"""

VERIFY_EXAMPLES = """\b
Examples:
  bnfold verify a.onnx b.onnx                     the verdict, and where they part
  bnfold verify a.onnx b.onnx --data inputs.npz   on your own data
  bnfold verify a.onnx --optimized                is ONNX Runtime's optimiser right about it?
  bnfold verify a.onnx b.onnx --certificate c.json; bnfold verify --check c.json

\b
Exit codes: 0 equal, 1 different, 2 bad input, 3 cannot tell; a rounding-scale difference is 0, with --strict 1.
"""

RECALIBRATE_EXAMPLES = """\b
Examples:
  bnfold recalibrate m.onnx --data data.npz:calib_x                writes m.recalibrated.onnx beside it
  bnfold recalibrate m.onnx --data images/ --resize 256 --crop 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  bnfold recalibrate m.onnx --data loader.py:make_loader --samples 1024
  bnfold recalibrate m.onnx --data d.npz:x --labels y --only-if-better --in-place --undo old.npz
  bnfold recalibrate m.onnx --restore old.npz

Use the preprocessing and the augmentation of training. What is measured on other images than the network was trained
on is wrong for it: plain images instead of augmented ones cost a healthy CIFAR-10 resnet20 3.5 points of accuracy.
"""

INSERT_EXAMPLES = """\b
Examples:
  bnfold insert m.onnx --data data.npz:calib_x      same function, with BatchNorm; writes m.bn.onnx beside it
  bnfold insert m.onnx --mode fresh                 gamma 1, beta 0: another function, to be trained
  bnfold insert m.onnx --data d.npz:x --where all --skip '*head*'
  bnfold insert m.onnx --data d.npz:x --training-nodes --upgrade
"""

KEPT = (
    "BN that can't go whole: 'reduce' it to an Add (Mul) where its scale (shift) can go; 'keep' it; 'affine': reduce, "
    "and write what stays as Mul and Add; 'auto': reduce, but not between Convs of images, where ONNX Runtime is "
    "slower with an Add."
)

# Plain help: rich's boxes would take more than half of the time of `bnfold --help`.
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)]
Models = Annotated[list[str], typer.Argument(metavar="MODEL", help="ONNX files.", show_default=False)]
Jobs = Annotated[
    int | None, typer.Option("--jobs", metavar="N", min=1, help="So many models at once; a line for each.")
]
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
    models: Models,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Where to (of several models: a folder); by default NAME.folded.onnx beside MODEL.",
        ),
    ] = None,
    jobs: Jobs = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace MODEL itself.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output file.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write.")] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Don't run the models to compare them; the static proof stays.")
    ] = False,
    verify: Annotated[
        str, typer.Option("--verify", metavar="LEVEL", help="'full': judge the result as `bnfold verify` does, too.")
    ] = "usual",
    require_verify: Annotated[
        bool, typer.Option("--require-verify", help="Fail if ONNX Runtime can't run the models to compare them.")
    ] = False,
    keep_overridable: Annotated[
        bool, typer.Option("--keep-overridable", help="Leave initializers alone that are graph inputs too.")
    ] = False,
    no_merge: Annotated[
        bool, typer.Option("--no-merge", help="Keep parallel branches: don't make one node of several.")
    ] = False,
    kept: Annotated[
        str, typer.Option("--kept", metavar="HOW", help=KEPT)
    ] = "auto",
    norms: Annotated[
        bool, typer.Option("--norms", help="Fold the scale and bias of Layer-, RMS-, Group- and InstanceNorm, too.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PATTERN", help="Fold only nodes with such a name (* ? [...]); repeatable."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="PATTERN", help="Leave nodes with such a name alone; repeatable."),
    ] = None,
    requantize: options.Requantize = None,
    labels: options.Labels = None,
    batch_size: options.RequantizeBatchSize = None,
    samples: options.Samples = None,
    seed: options.RequantizeSeed = None,
    resize: options.Resize = None,
    crop: options.Crop = None,
    mean: options.Mean = None,
    std: options.Std = None,
    layout: options.Layout = None,
    scale: options.Scale = None,
    plot: options.PlotNetwork = None,
    html: options.Html = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on success.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="One line for each BatchNorm.")] = False,
) -> Job:
    """Remove BatchNorm from a model without changing its function."""
    from .fold import Request, run

    request = Request(
        models, jobs=jobs, output=output, in_place=in_place, force=force, dry_run=dry_run, verify=verify,
        no_verify=no_verify, require_verify=require_verify, keep_overridable=keep_overridable, no_merge=no_merge,
        kept=kept, norms=norms, only=only or (), skip=skip or (), requantize=requantize, labels=labels,
        batch_size=batch_size, samples=samples, seed=seed, plot=plot, html=html,
    )  # fmt: skip
    images = {"resize": resize, "crop": crop, "mean": mean, "std": std, "layout": layout, "scale": scale}
    return partial(run, request, images, json=json, quiet=quiet, verbose=verbose)


@app.command(epilog=INSPECT_EXAMPLES)
def inspect(
    models: Models,
    keep_overridable: Annotated[
        bool, typer.Option("--keep-overridable", help="As for fold: such initializers are no constants.")
    ] = False,
    no_merge: Annotated[bool, typer.Option("--no-merge", help="As for fold: parallel branches stay.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 if there is BatchNorm that a fold removes.")
    ] = False,
    jobs: Jobs = None,
    plot: options.PlotNetwork = None,
    html: options.Html = None,
    json: Json = False,
) -> Job:
    """Show every BatchNorm, and what a fold would do with it."""
    from .inspect import run

    return partial(
        run, models, keep_overridable=keep_overridable, no_merge=no_merge, check=check, jobs=jobs, plot=plot, html=html,
        json=json,
    )  # fmt: skip


@app.command(epilog=VERIFY_EXAMPLES)
def verify(
    a: Annotated[str | None, typer.Argument(metavar="A", help="The reference.", show_default=False)] = None,
    b: Annotated[str | None, typer.Argument(metavar="B", help="The model in question.", show_default=False)] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE.npz", help="Inputs, an array each; random ones without it.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of random inputs and of the noise.")] = 0,
    optimized: Annotated[
        bool, typer.Option("--optimized", help="Judge what ONNX Runtime's optimiser makes of B (or of A alone).")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A rounding-scale difference is one.")] = False,
    provider_a: Annotated[str, typer.Option("--provider-a", metavar="NAME", help="cpu, cuda, tensorrt.")] = "cpu",
    provider_b: Annotated[str, typer.Option("--provider-b", metavar="NAME", help="The same for B.")] = "cpu",
    certificate: Annotated[
        str | None, typer.Option("--certificate", metavar="FILE", help="Write the verdict, with both files' SHA-256.")
    ] = None,
    check: Annotated[
        str | None, typer.Option("--check", metavar="FILE", help="Compare again what a certificate is about.")
    ] = None,
    junit: Annotated[str | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML.")] = None,
    plot: Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw r by depth (.png, .svg).")] = None,
    html: options.Html = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing: the exit code tells.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="The r of every segment.")] = False,
) -> Job:
    """Tell whether two models compute the same, or where not."""
    from .verify import run

    return partial(
        run, a, b, data=data, seed=seed, optimized=optimized, strict=strict, provider_a=provider_a,
        provider_b=provider_b, certificate=certificate, check=check, junit=junit, plot=plot, html=html, json=json,
        quiet=quiet, verbose=verbose,
    )  # fmt: skip


@app.command(epilog=RECALIBRATE_EXAMPLES)
def recalibrate(
    model: Model,
    data: options.Data = None,
    output: options.Output = None,
    in_place: options.InPlace = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    method: options.Method = "pooled",
    source_weight: options.SourceWeight = None,
    unbiased: options.Unbiased = False,
    freeze: options.Freeze = False,
    batch_size: options.BatchSize = 64,
    samples: options.Samples = None,
    seed: options.Seed = 0,
    only: options.Only = None,
    skip: options.Skip = None,
    provider: options.Provider = "cpu",
    cache_size: options.CacheSize = None,
    checkpoint: options.Checkpoint = None,
    engine: options.Engine = "local",
    address: options.Address = None,
    resize: options.Resize = None,
    crop: options.Crop = None,
    mean: options.Mean = None,
    std: options.Std = None,
    layout: options.Layout = None,
    scale: options.Scale = None,
    augment: options.Augment = None,
    labels: options.Labels = None,
    test: options.Test = None,
    metric: options.Metric = None,
    plot: options.Plot = None,
    html: options.Html = None,
    only_if_better: options.OnlyIfBetter = False,
    undo: options.Undo = None,
    restore: options.Restore = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on success.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Every BatchNorm, and how far it is.")] = False,
) -> Job:
    """Measure every BatchNorm's statistics anew, on your data."""
    from .recalibrate import Request, run

    request = Request(
        model, data=data, output=output, in_place=in_place, force=force, dry_run=dry_run, method=method,
        source_weight=source_weight, unbiased=unbiased, freeze=freeze, batch_size=batch_size, samples=samples,
        seed=seed, only=only or (), skip=skip or (), provider=provider, cache_size=cache_size,
        checkpoint=checkpoint, engine=engine, address=address, labels=labels, test=test, metric=metric, plot=plot,
        html=html, only_if_better=only_if_better, undo=undo, restore=restore,
    )  # fmt: skip
    images = {"resize": resize, "crop": crop, "mean": mean, "std": std, "layout": layout, "scale": scale,
              "augment": augment}  # fmt: skip
    return partial(run, request, images, json=json, quiet=quiet, verbose=verbose)


@app.command(epilog=INSERT_EXAMPLES)
def insert(
    model: Model,
    data: options.Data = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="By default NAME.bn.onnx beside MODEL.")
    ] = None,
    in_place: options.InPlace = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    mode: options.InsertMode = "preserve",
    where: options.Where = "before-activation",
    training_nodes: options.TrainingNodes = False,
    upgrade: options.Upgrade = False,
    only: options.OnlyBehind = None,
    skip: options.SkipBehind = None,
    batch_size: options.BatchSize = 64,
    samples: options.Samples = None,
    seed: options.Seed = 0,
    provider: options.Provider = "cpu",
    resize: options.Resize = None,
    crop: options.Crop = None,
    mean: options.Mean = None,
    std: options.Std = None,
    layout: options.Layout = None,
    scale: options.Scale = None,
    augment: options.Augment = None,
    html: options.Html = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on success.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Every BatchNorm, every layer without.")] = False,
) -> Job:
    """Give a model BatchNorm without changing its function."""
    from .insert import Request, run

    request = Request(
        model, data=data, output=output, in_place=in_place, force=force, dry_run=dry_run, mode=mode, where=where,
        training_nodes=training_nodes, upgrade=upgrade, batch_size=batch_size, samples=samples, seed=seed,
        only=only or (), skip=skip or (), provider=provider, html=html,
    )  # fmt: skip
    images = {"resize": resize, "crop": crop, "mean": mean, "std": std, "layout": layout, "scale": scale,
              "augment": augment}  # fmt: skip
    return partial(run, request, images, json=json, quiet=quiet, verbose=verbose)
