"""What a model is calibrated on: batches of inputs, from wherever the user has them.

Two kinds of sources. *Rows* can be picked (arrays, in memory or mapped from files; a folder of images): they are
shuffled, and the same seed gives the same order. A *stream* is gone through as it comes (a DataLoader, a generator
function, a CalibrationDataReader). Either way nothing but the current batch is held, and every batch is checked
against the model's inputs, so that what is wrong is told with the sample that it is wrong in.

Samples lie along the first axis. A few left over (fewer than `SHORT`) go with the batch before them: a batch of three
has no statistics to normalise by. Where the model's first dimension is fixed, that is the batch, and what is left over
isn't used.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from bnfold.constants import Array
from bnfold.errors import CalibrationDataError, UsageError, quoted
from bnfold.inspection import Port
from bnfold.recalibrate.images import ImageOptions, is_image_input

log = logging.getLogger("bnfold")

Feeds = dict[str, Array]
# The file, if any, and the place in it that a sample is at, for messages.
Place = tuple[str | None, str]

# A batch of fewer goes with the one before it.
SHORT = 8
# Samples that are too few: CIFAR-10 resnet20s lose 0.6 to 2 points of accuracy with 64 to 128 of them.
FEW = 128
# From here on, a source of unknown length may be one that never ends: no data set that is measured on is so large.
MANY = 1 << 21
# Items without a sample, one after the other, of a source that will give none any more.
MANY_EMPTY = 10_000
# The part of labelled samples that is held out where nobody says how many to calibrate on.
HELD_OUT = 4
# What is done with samples, for the progress.
MEASURING, EVALUATING = "measuring", "evaluating"
# Seconds between two lines of progress.
PROGRESS = 1.0


class Rows(Protocol):
    """Samples that can be picked."""

    @property
    def count(self) -> int:
        """Number of samples."""

    def take(self, rows: Array) -> Feeds:
        """The inputs of these samples, (len(rows), …) each."""

    def place(self, row: int) -> Place:
        """Where a sample is."""


class Stream(Protocol):
    """Samples that come in an order of their own."""

    def pieces(self) -> Iterator[Feeds]:
        """From the beginning: some samples at a time."""

    def place(self, row: int) -> Place:
        """Where a sample is."""


@dataclass
class Data:
    """Batches of inputs, checked against the model. Made by `open_data`.

    Attributes:
        source: where they come from.
        inputs: of the model.
        batch_size: samples in a batch.
        order: the rows that are used; None for a stream.
        limit: the most samples that are used of a stream.
        images: how uint8 images become what the model takes.
        seed: of the augmentation.
        labels: one for each row of the source; None if there are none.
        held_out: labelled rows that are not among `order`, never augmented.
        notices: what the user should know; complete after `batches` has been gone through.
    """

    source: Rows | Stream
    inputs: tuple[Port, ...]
    batch_size: int
    order: Array | None
    limit: int | None
    images: ImageOptions
    seed: int
    labels: Array | None = None
    held_out: Data | None = None
    notices: list[str] = field(default_factory=list)

    @property
    def count(self) -> int | None:
        """Number of samples that `batches` gives, None if only going through them tells."""
        if self.order is None:
            return None
        fixed = fixed_batch(self.inputs)
        return len(self.order) - (len(self.order) % fixed if fixed else 0)

    def batches(self, doing: str = MEASURING) -> Iterator[Feeds]:
        """The batches, input by name; from the beginning, and the same, every time.

        Args:
            doing: what is done with them, for the progress.

        Raises: UsageError if a batch doesn't fit the model.
        """
        for _, feeds, _ in self._batches(doing):
            yield feeds

    def numbered(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Feeds]]:
        """The batches whose number is `wanted`, with it; others of rows aren't even read.

        Raises: UsageError if a batch doesn't fit the model.
        """
        for number, feeds, _ in self._batches(MEASURING, wanted):
            yield number, feeds

    def labelled(self) -> Iterator[tuple[Feeds, Array]]:
        """The batches with their labels, (samples,) each."""
        source: Any = self.source
        for _, feeds, rows in self._batches(EVALUATING):
            yield feeds, np.asarray(source.labels)[rows] if self.labels is None else self.labels[rows]

    def _batches(
        self, doing: str, wanted: Callable[[int], bool] = lambda number: True
    ) -> Iterator[tuple[int, Feeds, Array]]:
        """Batches with their numbers and the rows that they are; a stream's are numbered as they come."""
        progress, done, given, number = _Progress(doing, self.count), 0, 0, 0
        for load, rows in self._picked() if self.order is not None else self._joined():
            given += len(rows)
            if len(rows) < (fixed_batch(self.inputs) or 0):
                continue
            done += len(rows)
            if wanted(number):
                feeds = load()
                self._check(feeds, rows)
                yield number, feeds, rows
                progress.tell(done)
            else:
                progress.skip(len(rows))
            number += 1
        self._take_stock(doing, done, given)

    def _picked(self) -> Iterator[tuple[Callable[[], Feeds], Array]]:
        assert self.order is not None
        start, slack = 0, _slack(self.inputs, self.batch_size)
        while start < len(self.order):
            left = len(self.order) - start
            rows = self.order[start : start + (left if left <= self.batch_size + slack else self.batch_size)]
            yield partial(self._taken, rows), rows
            start += len(rows)

    def _taken(self, rows: Array) -> Feeds:
        source: Any = self.source
        return self._prepared(source.take(rows), int(rows[0]))

    def _joined(self) -> Iterator[tuple[Callable[[], Feeds], Array]]:
        """A stream in batches of `batch_size`."""
        waiting, held, given = list[Feeds](), 0, 0
        slack = _slack(self.inputs, self.batch_size)
        for piece in self._limited():
            if waiting and any(value.shape[1:] != waiting[0][name].shape[1:] for name, value in piece.items()):
                yield partial(_concatenated, waiting), np.arange(given, given + held)  # samples of another size
                waiting, held, given = [], 0, given + held
            waiting.append(piece)
            held += _length(piece)
            while held > self.batch_size + slack or (held >= self.batch_size and not slack):
                joined = _concatenated(waiting)
                yield partial(_cut, joined, 0, self.batch_size), np.arange(given, given + self.batch_size)
                held, given = held - self.batch_size, given + self.batch_size
                waiting = [_cut(joined, self.batch_size, None)] if held else []
        if held:
            yield partial(_concatenated, waiting), np.arange(given, given + held)

    def _limited(self) -> Iterator[Feeds]:
        """The pieces of a stream, images prepared, up to the limit."""
        source: Any = self.source
        given = empty = 0
        for number, piece in enumerate(source.pieces()):
            empty = 0 if _length(piece) else empty + 1
            if empty == MANY_EMPTY:
                what = f"gave {MANY_EMPTY} items in a row without a sample; end it where there are no more"
                raise CalibrationDataError(what, file=source.place(given)[0])
            if self.limit is None and given < MANY <= given + _length(piece):
                log.warning("%d samples, and there are more: a source that never ends takes --samples", MANY)
            if self.limit is not None and given + _length(piece) > self.limit:
                piece = _cut(piece, 0, self.limit - given)
            given += _length(piece)
            if _length(piece):
                yield self._prepared(piece, number)
            if given == self.limit:
                return

    def _prepared(self, feeds: Feeds, number: int) -> Feeds:
        """The same with uint8 images made what the model takes; `number` makes the augmentation repeat."""
        rng = np.random.default_rng((self.seed, number))
        prepared = dict(feeds)
        for port in self.inputs:
            if is_image_input(feeds[port.name], port, self.images):
                prepared[port.name] = self.images.prepare(feeds[port.name], port, rng)
                if port.type != "uint8" and not self.images.mean and not self.images.std:
                    self._note(f"images are only multiplied by {self.images.scale:.4g}: no mean and std were given")
        return prepared

    def _check(self, feeds: Feeds, rows: Array) -> None:
        for port in self.inputs:
            value = feeds[port.name]
            file, sample = self.source.place(int(rows[0]))
            sample = "" if self.order is not None else sample  # rows are alike: no one of them is to blame
            tensor = f"input {quoted(port.name)}"
            if value.dtype.name != port.type:
                what = f"is {value.dtype.name}; the model takes {port.type}"
                raise CalibrationDataError(what, file=file, where=_where(sample, tensor))
            if not _fits(value, port):
                what = f"is {_shown(value.shape)} in a batch; the model takes {_shown(port.shape)}"
                raise CalibrationDataError(what, file=file, where=_where(sample, tensor))
            if value.dtype.kind in "fV" and not (finite := np.isfinite(value)).all():
                bad = np.flatnonzero(~finite.reshape(len(rows), -1).all(axis=1))[0]
                file, sample = self.source.place(int(rows[bad]))
                kind = "NaN" if np.isnan(value[bad]).any() else "an infinite value"
                raise CalibrationDataError(f"has {kind}; leave it out", file=file, where=_where(sample, tensor))

    def _take_stock(self, doing: str, done: int, given: int) -> None:
        """Demand that there was something, and note what the user should know."""
        fixed = fixed_batch(self.inputs)
        if not done:
            what = f"has {given} samples; the model takes {fixed} at a time" if given else "has no samples"
            raise CalibrationDataError(what, file=self.source.place(0)[0])
        if done < FEW and doing == MEASURING:
            self._note(f"{done} samples are few: from {FEW} on, better {2 * FEW}, statistics are good")
        if given > done:
            self._note(f"{given - done} samples were left over: the model takes {fixed} at a time")

    def _note(self, notice: str) -> None:
        if notice not in self.notices:
            self.notices.append(notice)


def open_data(
    source: Any,
    inputs: Sequence[Port],
    *,
    batch_size: int = 64,
    samples: int | None = None,
    seed: int = 0,
    images: ImageOptions | None = None,
    labels: str | None = None,
) -> Data:
    """Samples from any source, as batches for a model with these inputs.

    >>> data = open_data("sample_models/digits.npz:calib_x", [Port("input", "float32", (None, 1, 8, 8))])
    >>> data.count, [batch["input"].shape for batch in data.batches()][0]
    (256, (64, 1, 8, 8))

    Args:
        source: an .npz or .npy file or a folder of them (`file.npz:KEY` names the array); a folder of images;
            `file.py:name` or `package.module:name` of something iterable, or a function or class that makes it;
            an array or tensor, or a dict of them; any iterable of dicts, tuples, arrays or tensors, of one sample
            or of some; an object with `get_next` (ONNX Runtime's CalibrationDataReader). Or a Data: it is taken as
            it is, and the other arguments do not count.
        inputs: of the model.
        batch_size: of models that leave it open.
        samples: use at most so many.
        seed: of the order and the augmentation.
        images: how uint8 images become what the model takes; by default they are multiplied by 1/255.
        labels: where the class of each sample is: the name of an array in the .npz or the dict; 'folders' of images;
            the path of an .npy. Those that aren't calibrated on are in `held_out` then: without `samples`, a quarter.

    Raises: UsageError if there is no such source, or it has no samples, or doesn't fit the model.
    """
    if isinstance(source, Data):
        return source
    if batch_size < 1 or (samples is not None and samples < 1):
        raise UsageError("the size of a batch and the number of samples are at least 1")
    size = fixed_batch(inputs) or batch_size
    found, classes = _opened(source, inputs, images or ImageOptions(), labels, seed)
    data = Data(found, tuple(inputs), size, None, samples, images or ImageOptions(), seed, classes)
    if not hasattr(found, "take"):
        if labels is not None:
            raise UsageError("samples that come one after the other can't be held out; evaluate on others (--test)")
        return data
    order = np.random.default_rng(seed).permutation(found.count)
    if not len(order):
        raise CalibrationDataError("has no samples", file=found.place(0)[0])
    used = min(samples or len(order), len(order))
    if classes is not None:
        used = samples or len(order) - max(1, len(order) // HELD_OUT)
        if used >= len(order):
            what = f"has {len(order)} samples: none are left to evaluate on"
            raise CalibrationDataError(what, file=found.place(0)[0])
        rest = np.sort(order[used:])
        data.held_out = replace(data, order=rest, images=replace(data.images, augment_pad=None), notices=[])
    data.order = order[:used]
    return data


def open_labelled(
    source: Any, inputs: Sequence[Port], labels: str, *, batch_size: int = 64, images: ImageOptions | None = None
) -> Data:
    """Samples to evaluate on, all of them in their order, with their labels; never augmented.

    `labels` is as in `open_data`; of what gives tuples or dicts, the position or the name of the class in these.

    Raises: UsageError.
    """
    images = replace(images or ImageOptions(), augment_pad=None)
    found, classes = _opened(source, inputs, images, labels, 0)
    order = np.arange(found.count) if hasattr(found, "take") else None
    return Data(found, tuple(inputs), fixed_batch(inputs) or batch_size, order, None, images, 0, classes)


def fixed_batch(inputs: Sequence[Port]) -> int | None:
    """The batch that a model insists on, None if it leaves it open."""
    sizes = {size for port in inputs if port.shape and isinstance(size := port.shape[0], int) and size > 0}
    if len(sizes) > 1:
        raise UsageError("its inputs have different first dimensions; samples are needed along the first axis of each")
    return next(iter(sizes), None)


def _opened(
    source: Any, inputs: Sequence[Port], images: ImageOptions, labels: str | None, seed: int
) -> tuple[Any, Array | None]:
    from bnfold.recalibrate import data_files, data_python

    if labels is not None and labels.endswith(".npy"):
        found, _ = _opened(source, inputs, images, None, seed)
        if not hasattr(found, "take"):
            raise UsageError("labels in a file are for samples in files or arrays", file=labels)
        return found, data_files.open_labels(labels, found.count)
    if isinstance(source, (str, os.PathLike)):
        path, key = _split(os.fspath(source))
        if os.path.exists(path) and not (key is not None and path.endswith(".py")):
            return data_files.open_path(path, key, inputs, images, labels)
        if key is None or path.endswith((".npz", ".npy")) or (os.sep in path and not path.endswith(".py")):
            raise CalibrationDataError("there is no such file or folder", file=path)
        source = data_python.imported(path, key)
        shown: str | None = f"{path}:{key}"
    else:
        shown = None
    return data_python.open_object(source, inputs, shown, seed, labels)


def _split(source: str) -> tuple[str, str | None]:
    """'digits.npz:calib_x' in its two parts; a file may have a colon in its name."""
    path, colon, key = source.rpartition(":")
    return (source, None) if os.path.exists(source) or not colon or not path else (path, key)


# -- batches ----------------------------------------------------------------------------------------


def _slack(inputs: Sequence[Port], batch_size: int) -> int:
    """How many samples more a last batch may have."""
    return 0 if fixed_batch(inputs) else min(SHORT, batch_size) - 1


def _length(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))


def _cut(feeds: Feeds, start: int, stop: int | None) -> Feeds:
    return {name: value[start:stop] for name, value in feeds.items()}


def _concatenated(pieces: Sequence[Feeds]) -> Feeds:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _fits(value: Array, port: Port) -> bool:
    if port.shape is None:
        return True
    return len(port.shape) == value.ndim and all(
        not isinstance(size, int) or size < 1 or size == found
        for size, found in zip(port.shape, value.shape, strict=True)
    )


def _shown(shape: Sequence[int | str | None] | None) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape or ()) + "]"


def _where(sample: str, tensor: str) -> str:
    return f"{sample}, {tensor}" if sample else tensor


class _Progress:
    """Tells, now and then, how far it is."""

    def __init__(self, doing: str, count: int | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._doing, self._count, self._clock = doing, count, clock
        self._start = self._told = clock()
        self._skipped = 0

    def skip(self, samples: int) -> None:
        """These were measured before: they count for what is left, not for the rate."""
        self._skipped += samples

    def tell(self, done: int) -> None:
        now = self._clock()
        if now - self._told < PROGRESS:
            return
        self._told = now
        rate = (done - self._skipped) / (now - self._start)
        if self._count is None:
            log.info("%s: %d samples, %.3g a second", self._doing, done, rate)
        else:
            left = (self._count - done) / rate
            log.info("%s: %d of %d samples, %.3g a second, %.0f s left", self._doing, done, self._count, rate, left)
