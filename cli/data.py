"""The user's data, of what the command line says: where samples are, how many, how images are prepared."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from bnfold.errors import UsageError, quoted

if TYPE_CHECKING:
    from bnfold.recalibrate.data import Data
    from bnfold.recalibrate.images import ImageOptions

# Zeros around an image in the usual training of CIFAR-10.
PAD = 4


def opened(
    model: str, data: str, images: ImageOptions, *, batch_size: int, samples: int | None, seed: int,
    labels: str | None = None,
) -> Data:  # fmt: skip
    """Samples for a model, as batches.

    Raises: UsageError, ModelError.
    """
    from bnfold.frontends import naming, open_model
    from bnfold.recalibrate.data import open_data
    from bnfold.verify.inputs import ports

    loaded, _ = open_model(model)
    with naming(loaded.path):
        return open_data(
            data, ports(loaded.proto)[0], batch_size=batch_size, samples=samples, seed=seed, images=images,
            labels=labels,
        )  # fmt: skip


def file_of(given: str) -> str:
    """The file that FILE or FILE:NAME is about."""
    return given if os.path.exists(given) else given.rpartition(":")[0]


def image_options(
    resize: str | None, crop: str | None, mean: str | None, std: str | None,
    layout: str | None, scale: str | None, augment: str | None = None,
) -> ImageOptions:  # fmt: skip
    """The image options, of what the command line says.

    Raises: UsageError.
    """
    from bnfold.recalibrate.images import ImageOptions

    given: dict[str, Any] = {
        "resize": _size("--resize", resize), "crop": _size("--crop", crop), "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std), "augment_pad": _pad(augment),
    }  # fmt: skip
    if layout is not None:
        if layout.lower() not in ("nchw", "nhwc"):
            raise UsageError(f"--layout is nchw or nhwc, not {quoted(layout)}")
        given["layout"] = layout.lower()
    if scale is not None:
        upper, _, lower = scale.partition("/")
        given["scale"] = _number("--scale", upper) / (_number("--scale", lower) if lower else 1)
    said = any(value is not None for value in (resize, crop, mean, std, layout, scale, augment))
    return ImageOptions(**given, given=said)


def _size(option: str, text: str | None) -> int | tuple[int, int] | None:
    """'224' or '224x320' (height, width)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"{option} is a number of pixels or HEIGHTxWIDTH, not {quoted(text)}")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    return () if text is None else tuple(_number(option, part) for part in text.split(","))


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (value == 0 and option != "--mean"):
        raise UsageError(f"{option} takes numbers, as in 0.5 or 0.485,0.456,0.406, not {quoted(text)}")
    return value


def _pad(text: str | None) -> int | None:
    """'crop-flip' or 'crop-flip:4'."""
    if text is None:
        return None
    kind, colon, pad = text.partition(":")
    if kind != "crop-flip" or (colon and not pad.isdecimal()):
        raise UsageError(f"--augment is crop-flip or crop-flip:PIXELS, not {quoted(text)}")
    return int(pad) if colon else PAD
