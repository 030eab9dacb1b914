"""From uint8 pixels to what a model takes: resize, crop, augment, scale, normalise, lay out.

The order and the meaning of each step are those that training pipelines have (torchvision's, by name): `resize` to an
int is the length of the shorter side, `crop` cuts from the centre, mean and std apply to what `scale` leaves. Pillow
reads and resizes, so it is needed for a folder of images, or where arrays are resized, and only then.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from bnfold.constants import Array
from bnfold.errors import CalibrationDataError, UsageError, quoted
from bnfold.inspection import Port
from bnfold.mapped import Refused, open_regular

Size = int | tuple[int, int]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Ranks and channels that images have.
RANK, CHANNELS = 4, (1, 3)
# That decode images; more only wait for the disk.
THREADS = 8


@dataclass(frozen=True)
class ImageOptions:
    """How uint8 images become an input of the model.

    Attributes:
        resize: the length of the shorter side, or (height, width); None: as they are.
        crop: the part in the middle that is used, a square's side or (height, width); None: all.
        mean, std: one for all channels or one for each, of the scaled pixels; (): none.
        layout: of the model's input; None: its shape tells.
        scale: what a pixel is multiplied by.
        augment_pad: zeros around an image, out of which a part of its size is cut at random, flipped half of the time;
            None: no augmentation.
        given: whether the user said anything of images.
    """

    resize: Size | None = None
    crop: Size | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Literal["nchw", "nhwc"] | None = None
    scale: float = 1 / 255
    augment_pad: int | None = None
    given: bool = False

    def __post_init__(self) -> None:
        if 0 in self.std:
            raise UsageError("a std of 0 can't be divided by")

    def prepare(self, pixels: Array, port: Port, rng: np.random.Generator) -> Array:
        """Pixels (N, H, W), (N, H, W, C) or (N, C, H, W), uint8, as a batch for `port`.

        Raises: UsageError if they aren't images of its channels.
        """
        layout = self.layout_of(port)
        images = _nhwc(pixels, self.channels_of(port), port)
        if self.resize is not None or self.crop is not None:
            images = np.stack([self.shaped(_picture(image)) for image in images])
        if self.augment_pad is not None:
            images = _crop_flip(images, self.augment_pad, rng)
        if port.type != "uint8":
            images = self._normalised(images, port)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2) if layout == "nchw" else images)

    def shaped(self, image: Any) -> Array:
        """A Pillow image resized and cropped, (H, W, C)."""
        if self.resize is not None:
            image = image.resize(_resized(image.size, self.resize), resample=2)  # bilinear, antialiased
        if self.crop is not None:
            height, width = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            if left < 0 or top < 0:
                raise UsageError(f"is {image.height}×{image.width}, smaller than the crop; resize first")
            image = image.crop((left, top, left + width, top + height))
        array: Array = np.asarray(image)
        return array[..., None] if array.ndim == RANK - 2 else array

    def layout_of(self, port: Port) -> str:
        """'nchw' or 'nhwc'."""
        if self.layout is not None or port.shape is None or port.shape[1] in CHANNELS:
            return self.layout or "nchw"
        return "nhwc" if port.shape[-1] in CHANNELS else "nchw"

    def channels_of(self, port: Port) -> int:
        """1 or 3."""
        size = None if port.shape is None else port.shape[1 if self.layout_of(port) == "nchw" else -1]
        if isinstance(size, int) and size > 0 and size not in CHANNELS:
            raise UsageError(f"has {size} channels; images have 1 or 3 (does --layout fit?)", where=_input(port))
        return size if isinstance(size, int) and size > 0 else 3

    def _normalised(self, images: Array, port: Port) -> Array:
        dtype = np.float64 if port.type == "float64" else np.float32
        values: Array = images.astype(dtype) * dtype(self.scale)
        for numbers, what in ((self.mean, "mean"), (self.std, "std")):
            if len(numbers) not in (0, 1, images.shape[-1]):
                raise UsageError(f"{what} has {len(numbers)} numbers; the images have {images.shape[-1]} channels")
        if self.mean:
            values -= np.asarray(self.mean, dtype)
        if self.std:
            values /= np.asarray(self.std, dtype)
        result: Array = values.astype(np.dtype(port.type), copy=False)
        return result


def is_image_input(value: Array, port: Port, options: ImageOptions) -> bool:
    """Whether these are pixels that `ImageOptions.prepare` is for."""
    if value.dtype != np.uint8 or (port.shape is not None and len(port.shape) != RANK):
        return False
    return "float" in port.type or (port.type == "uint8" and options.given)


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder and those below it, in the order of their names.

    Attributes:
        files: of the images.
        port: the input that they are for.
        options: how they are resized, cropped.
    """

    files: Sequence[str]
    port: Port
    options: ImageOptions
    folder: str
    _mode: str = field(init=False)

    def __post_init__(self) -> None:
        _pillow()
        object.__setattr__(self, "_mode", "L" if self.options.channels_of(self.port) == 1 else "RGB")

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.files)

    def take(self, rows: Array) -> dict[str, Array]:
        """These images, resized and cropped: (N, H, W, C), uint8; in threads: Pillow decodes without Python's lock."""
        with _quietly(), ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
            images = list(threads.map(lambda row: self._read(self.files[row]), rows))
        for row, image in zip(rows, images, strict=True):
            if image.shape != images[0].shape:
                (h, w, _), (height, width, _) = image.shape, images[0].shape
                what = f"is {h}×{w}, another is {height}×{width}; give --resize HxW, or --resize N and --crop N"
                raise CalibrationDataError(what, file=self.files[row])
        return {self.port.name: np.stack(images)}

    def place(self, row: int) -> tuple[str | None, str]:
        """The file of an image."""
        return (self.files[row] if self.files else self.folder), ""

    def _read(self, file: str) -> Array:
        image_module = _pillow()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd metadata; what can't be read raises
                with open_regular(file) as opened, image_module.open(opened) as image:
                    picture = image.convert(self._mode)
        except Refused as why:
            raise CalibrationDataError(str(why), file=file) from None
        except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            what = "can't be decoded as an image; remove it or make it again"
            raise CalibrationDataError(what, file=file) from error
        try:
            return self.options.shaped(picture)
        except UsageError as error:
            raise UsageError(error.what, file=file) from None


def open_folder(folder: str, files: Sequence[str], inputs: Sequence[Port], options: ImageOptions) -> ImageFolder:
    """The images of a folder for a model with one input.

    Raises: UsageError if they can't be, or Pillow is missing.
    """
    if len(inputs) != 1:
        raise UsageError(f"images are one input; the model has {len(inputs)}", file=folder)
    port = inputs[0]
    if port.shape is not None and len(port.shape) != RANK:
        raise UsageError(f"images need an input of rank 4; {quoted(port.name)} has rank {len(port.shape)}", file=folder)
    if port.type != "uint8" and "float" not in port.type:
        raise UsageError(f"images can't be made {port.type}", file=folder, where=_input(port))
    options = ImageOptions(**{**vars(options), "given": True})
    return ImageFolder([os.path.join(folder, file) for file in files], port, options, folder)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings of odd metadata: what can't be read raises. Not in each thread: they share the filters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError:
        raise UsageError("images need Pillow; pip install 'bnfold[images]'") from None
    return PIL.Image


def _picture(image: Array) -> Any:
    return _pillow().fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _resized(size: tuple[int, int], wanted: Size) -> tuple[int, int]:
    """Width and height."""
    if not isinstance(wanted, int):
        return wanted[1], wanted[0]
    width, height = size
    short = min(size)
    return max(1, int(wanted * width / short)), max(1, int(wanted * height / short))


def _nhwc(pixels: Array, channels: int, port: Port) -> Array:
    if pixels.ndim == RANK - 1 and channels == 1:
        return pixels[..., None]
    if pixels.ndim == RANK and pixels.shape[-1] == channels:
        return pixels
    if pixels.ndim == RANK and pixels.shape[1] == channels:
        transposed: Array = pixels.transpose(0, 2, 3, 1)
        return transposed
    raise UsageError(f"uint8 {list(pixels.shape)} are no images of {channels} channels", where=_input(port))


def _crop_flip(images: Array, pad: int, rng: np.random.Generator) -> Array:
    """Each image out of itself with zeros around it, at random, flipped half of the time."""
    count, height, width, _ = images.shape
    padded: Array = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    result: Array = np.empty_like(images)
    tops, lefts, flips = (rng.integers(0, n, count) for n in (2 * pad + 1, 2 * pad + 1, 2))
    for image, (top, left, flip) in enumerate(zip(tops, lefts, flips, strict=True)):
        part = padded[image, top : top + height, left : left + width]
        result[image] = part[:, ::-1] if flip else part
    return result


def _input(port: Port) -> str:
    return f"input {quoted(port.name)}"
