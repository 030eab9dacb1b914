"""The options of `bnfold recalibrate` and `bnfold insert`, which have many, and of all verbs: help, by name."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Text: TypeAlias = str | None
Patterns: TypeAlias = list[str] | None


def _option(*names: str, metavar: str, text: str) -> object:
    return typer.Option(*names, metavar=metavar, help=text)


_DATA = (
    "What to measure on: an .npz, .npy or a folder of them (FILE.npz:KEY names the array), a folder of images, or "
    "FILE.py:NAME or MODULE:NAME of an iterable, a loader, a function that makes one, or a calibration reader."
)
_METHOD = (
    "pooled: one pass; exact: each BatchNorm under the final statistics of those before it; blend: with the old ones."
)
_LABELS = (
    "The array of classes in the .npz, an .npy of them, or, for a folder of images, 'folders' (each is a class, in "
    "the order of their names): accuracy before and after, on samples that are not measured on (without --samples, a "
    "quarter is held out)."
)

_REQUANTIZE = (
    "Move rounding of activations that is in the way of BatchNorm behind it, in steps measured on this: arrays, images "
    "or Python, as --data of recalibrate. This changes what is rounded; the account says by how much. The options "
    "from here to --scale are about it."
)

Data = Annotated[Text, _option("--data", metavar="DATA", text=_DATA)]
Output = Annotated[Text, _option("-o", "--output", metavar="FILE", text="By default NAME.recalibrated.onnx.")]
InPlace = Annotated[bool, typer.Option("--in-place", help="Replace MODEL itself.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Do everything but write.")]
Method = Annotated[str, _option("--method", metavar="NAME", text=_METHOD)]
SourceWeight = Annotated[
    float | None, typer.Option("--source-weight", min=0, help="blend: samples that the old statistics count for.")
]
Unbiased = Annotated[bool, typer.Option("--unbiased", help="Divide variances by n - 1; ONNX has n.")]
Freeze = Annotated[
    bool, typer.Option("--freeze", help="Make BatchNorms in training mode inference ones, with what is measured.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Samples at a time, if the model leaves it open.")]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="Use at most so many.", show_default=False)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the order of the samples, and of --augment.")]
Only = Annotated[Patterns, _option("--only", metavar="PATTERN", text="Only nodes of such a name (* ?); repeatable.")]
Skip = Annotated[Patterns, _option("--skip", metavar="PATTERN", text="Leave such names alone; repeatable.")]
Requantize = Annotated[Text, _option("--requantize", metavar="DATA", text=_REQUANTIZE)]
RequantizeBatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Samples at a time, if the model leaves it open; 16.")
]
RequantizeSeed = Annotated[int | None, typer.Option("--seed", min=0, help="Of the order of the samples; 0.")]
Provider = Annotated[str, _option("--provider", metavar="NAME", text="cpu, cuda, tensorrt.")]
CacheSize = Annotated[
    int | None,
    typer.Option("--cache-size", metavar="MB", min=0, help="exact, blend: keep so much in memory, the rest in files."),
]
Checkpoint = Annotated[
    Text, _option("--checkpoint", metavar="FILE", text="Keep the progress there: a killed run goes on from it.")
]
Engine = Annotated[
    str, _option("--engine", metavar="NAME", text="local, or ray: batches go to workers of a Ray cluster.")
]
Address = Annotated[Text, _option("--address", metavar="HOST:PORT", text="ray: of the cluster; Ray's own choice.")]
Resize = Annotated[Text, _option("--resize", metavar="SIZE", text="Images: N (the shorter side) or HEIGHTxWIDTH.")]
Crop = Annotated[Text, _option("--crop", metavar="SIZE", text="Images: the middle, N or HEIGHTxWIDTH.")]
Mean = Annotated[Text, _option("--mean", metavar="M[,M,M]", text="Images: subtracted, after --scale.")]
Std = Annotated[Text, _option("--std", metavar="S[,S,S]", text="Images: divided by, after --mean.")]
Layout = Annotated[Text, _option("--layout", metavar="nchw|nhwc", text="Images: of the model; its input tells.")]
Scale = Annotated[Text, _option("--scale", metavar="X", text="Images: what a pixel is multiplied by; 1/255.")]
Augment = Annotated[
    Text, _option("--augment", metavar="crop-flip[:PAD]", text="Images: cut at random out of zeros around, and flip.")
]
Labels = Annotated[Text, _option("--labels", metavar="KEY", text=_LABELS)]
Test = Annotated[Text, _option("--test", metavar="FILE.npz[:KEY]", text="Evaluate on this instead, with its labels.")]
Metric = Annotated[
    Text, _option("--metric", metavar="FILE.py:NAME", text="A function of an InferenceSession; more is better.")
]
Plot = Annotated[Text, _option("--plot", metavar="FILE", text="Draw the drift by depth (.png, .svg).")]
PlotNetwork = Annotated[Text, _option("--plot", metavar="FILE", text="Draw the network by depth (.png, .svg).")]
Html = Annotated[
    Text, _option("--html", metavar="FILE", text="Write a page: the network drawn, plots, tables; needs bnfold[html].")
]
OnlyIfBetter = Annotated[
    bool, typer.Option("--only-if-better", help="Write only what --labels and --metric find better.")
]
Undo = Annotated[Text, _option("--undo", metavar="FILE", text="Keep the old statistics there.")]
Restore = Annotated[Text, _option("--restore", metavar="FILE", text="Put back what --undo kept; measures nothing.")]

_MODE = (
    "preserve: the function stays, gamma and beta undo what mean and variance do; fresh: gamma 1, beta 0, to train."
)
_WHERE = (
    "before-activation: outputs of Conv, ConvTranspose, Gemm and MatMul that go into an activation, through a residual "
    "Add too; all: every such output but the last."
)

InsertMode = Annotated[str, _option("--mode", metavar="NAME", text=_MODE)]
Where = Annotated[str, _option("--where", metavar="NAME", text=_WHERE)]
TrainingNodes = Annotated[
    bool, typer.Option("--training-nodes", help="BatchNorms in training mode, with three outputs; takes opset 14.")
]
Upgrade = Annotated[
    bool, typer.Option("--upgrade", help="Convert a model whose opset is too low, by onnx's version converter.")
]
OnlyBehind = Annotated[
    Patterns, _option("--only", metavar="PATTERN", text="Only behind nodes of such a name (* ?); repeatable.")
]
SkipBehind = Annotated[Patterns, _option("--skip", metavar="PATTERN", text="None behind such nodes; repeatable.")]
