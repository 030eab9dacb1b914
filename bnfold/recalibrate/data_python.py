"""Samples from Python: arrays, tensors, loaders, generator functions, calibration readers; given, or named by a text.

What an iterable gives is one sample (an axis less than the model's input) or some of them, as a dict by input, as a
tuple or list that starts with the inputs (labels behind them are left out), or as the array of the only input. Tensors
are known by their methods: torch is never imported here.
"""

from __future__ import annotations

import bisect
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bnfold.constants import Array
from bnfold.errors import BnfoldError, CalibrationDataError, quoted
from bnfold.inspection import Port
from bnfold.recalibrate.data_files import ArrayRows, Part, choose

# The most of a foreign error message that is shown.
LONGEST = 200


class ObjectStream:
    """What an object of Python gives, from the beginning each time.

    Lists, and what can only be indexed (a torch Dataset), are shuffled: such sets are often sorted by class.

    Args:
        start: begins again.
        inputs: of the model.
        shown: how the user named it.
        seed: of the order.
        label: where in an item the class is: its name in a dict, its position in a tuple; None: nowhere.

    Attributes:
        labels: of the samples that were given so far.
    """

    def __init__(
        self, start: Callable[[], Any], inputs: Sequence[Port], shown: str | None, seed: int, label: str | None
    ) -> None:
        self._start, self._inputs, self._shown, self._seed, self._label = start, inputs, shown, seed, label
        self.labels: list[int] = []
        self._order: Array | None = None
        self._ends: list[int] = []  # of each item, in samples

    def pieces(self) -> Iterator[dict[str, Array]]:
        """Some samples at a time."""
        source = self._start()
        self._order = np.random.default_rng(self._seed).permutation(len(source)) if _is_sequence(source) else None
        self._ends, self.labels = [], []
        items = _items(source, self._order, self._shown)
        while True:
            given = self._ends[-1] if self._ends else 0
            try:
                item = next(items)
            except StopIteration:
                return
            except BnfoldError:
                raise
            except (Exception, SystemExit) as error:  # exit(0) in it is no success of ours
                what = f"raised {_line(error)}; --traceback shows where"
                raise CalibrationDataError(what, file=self._shown, where=self.place(given)[1]) from error
            try:
                piece = as_feeds(item, self._inputs)
                if self._label is not None:
                    self.labels += labels_of(item, self._label, len(next(iter(piece.values()))))
            except CalibrationDataError as error:
                raise CalibrationDataError(error.what, file=self._shown, where=self.place(given)[1]) from error
            self._ends.append(given + len(next(iter(piece.values()))))
            yield piece

    def place(self, row: int) -> tuple[str | None, str]:
        """Number of a sample; of what can be indexed, the index of the item that it is in."""
        item = bisect.bisect_right(self._ends, row)
        if self._order is None or item >= len(self._order):
            return self._shown, f"sample {row}"
        return self._shown, f"item {self._order[item]}"


def open_object(
    source: Any, inputs: Sequence[Port], shown: str | None, seed: int, label: str | None = None
) -> tuple[ArrayRows | ObjectStream, Array | None]:
    """Samples from an object, and their labels if these are an array of its own.

    Raises: CalibrationDataError if it gives none.
    """
    if isinstance(source, np.ndarray) or _is_tensor(source):
        source = {"": source}
    if isinstance(source, Mapping):
        arrays = {str(name): as_array(value) for name, value in source.items()}
        classes = None if label is None else labels_of(arrays, label, None)
        found = {name: Part(array.shape, array.dtype, array) for name, array in arrays.items()}
        if label is not None:
            found.pop(label)
        chosen = choose(found, None, inputs, shown)
        rows = ArrayRows({name: [part] for name, part in chosen.items()}, [shown])
        return rows, None if classes is None else np.asarray(classes)
    if not isinstance(source, (type, str, bytes)) and _gives_items(source):
        return ObjectStream(_Again(source), inputs, shown, seed, label), None
    if callable(source):
        return ObjectStream(lambda: _called(source, shown), inputs, shown, seed, label), None
    what = f"{type(source).__name__} gives no samples; an iterable, or a function that makes one, is needed"
    raise CalibrationDataError(what, file=shown)


def imported(path: str, name: str) -> Any:
    """The object that `path:name` means: of a file of Python, or of a module that can be imported from here.

    Raises: CalibrationDataError if there is none.
    """
    if path.endswith(".py") and not os.path.isfile(path):
        raise CalibrationDataError("there is no such file", file=path)
    try:
        value: Any = _run(path) if path.endswith(".py") else _module(path)
    except (Exception, SystemExit) as error:  # it is the user's code: anything may come
        raise CalibrationDataError(f"can't be imported: {_line(error)}", file=path) from error
    for part in name.split("."):
        if not hasattr(value, part):
            raise CalibrationDataError(f"has no {quoted(name)}", file=path)
        value = getattr(value, part)
    return value


def as_feeds(item: Any, inputs: Sequence[Port]) -> dict[str, Array]:
    """What an iterable gave, by input, samples along the first axis.

    Raises: CalibrationDataError if it isn't what the model takes.
    """
    if isinstance(item, (tuple, list)):
        if item and isinstance(item[0], (tuple, list, dict)):  # ((inputs), labels)
            return as_feeds(item[0], inputs)
        if len(item) < len(inputs):
            raise CalibrationDataError(f"{len(item)} values; the model has {len(inputs)} inputs")
        item = {port.name: value for port, value in zip(inputs, item, strict=False)}
    elif not isinstance(item, Mapping):
        if len(inputs) != 1:
            raise CalibrationDataError(f"a {type(item).__name__}; the model has {len(inputs)} inputs: give a dict")
        item = {inputs[0].name: item}
    feeds = {}
    for port in inputs:
        if port.name not in item:
            has = ", ".join(quoted(name) for name in item)
            raise CalibrationDataError(f"has no input {quoted(port.name)}; it has {has or 'nothing'}")
        value = as_array(item[port.name], port.name)
        single = value.ndim == 0 or (port.shape is not None and value.ndim == len(port.shape) - 1)
        feeds[port.name] = value[None] if single else value
    if len({len(value) for value in feeds.values()}) != 1:
        raise CalibrationDataError("its inputs have different numbers of samples along the first axis")
    return feeds


def labels_of(item: Any, label: str, count: int | None) -> list[int]:
    """The classes that an item has, by name or position; `count`: how many there have to be.

    Raises: CalibrationDataError if they aren't there, or are no integers.
    """
    try:
        value = item[label] if isinstance(item, Mapping) else item[int(label)]
    except (LookupError, ValueError, TypeError):
        what = "the name of one in a dict, or its position in a tuple (1: the second)"
        raise CalibrationDataError(f"has no labels {quoted(label)}; say {what}") from None
    labels = np.asarray(value) if isinstance(value, (int, np.integer)) else as_array(value)
    if labels.dtype.kind not in "iu" or labels.ndim > 1 or (count is not None and labels.size != count):
        what = f"is {labels.dtype} {list(labels.shape)}; labels are integers, one for each sample"
        raise CalibrationDataError(what, where=f"label {quoted(label)}")
    return [int(one) for one in labels.reshape(-1)]


def as_array(value: Any, name: str = "") -> Array:
    """An array, or the array of a tensor.

    Raises: CalibrationDataError if it is neither.
    """
    if _is_tensor(value):
        for step in ("detach", "cpu"):
            value = getattr(value, step)() if hasattr(value, step) else value
        try:
            value = value.numpy()
        except TypeError as error:  # torch gives no array of bfloat16
            if not str(value.dtype).endswith("bfloat16"):
                raise CalibrationDataError(f"can't be made an array: {_line(error)}") from error
            value = value.float().numpy().astype(np.dtype("bfloat16"))
    elif not isinstance(value, (np.ndarray, np.generic)):
        what = f"input {quoted(name)} is a {type(value).__name__}; arrays or tensors are needed"
        raise CalibrationDataError(what if name else f"a {type(value).__name__}; arrays or tensors are needed")
    array = np.asarray(value)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


class _Again:
    """Begins again with the same object: something iterable, or a reader that rewinds."""

    def __init__(self, source: Any) -> None:
        self._source, self._begun = source, False

    def __call__(self) -> Any:
        again, self._begun = self._begun, True
        if again and hasattr(self._source, "rewind"):
            self._source.rewind()
        elif again and (hasattr(self._source, "get_next") or isinstance(self._source, Iterator)):
            what = "the samples can be gone through only once, and are needed again"
            raise CalibrationDataError(f"{what}; give a function that makes them, or a reader with rewind()")
        return self._source


def _gives_items(source: Any) -> bool:
    return hasattr(source, "get_next") or isinstance(source, Iterable) or hasattr(source, "__getitem__")


def _is_sequence(source: Any) -> bool:
    """Whether it is a list, or has a length and can be indexed, and can't be gone through in another way."""
    if isinstance(source, (list, tuple)):
        return True
    return hasattr(source, "__len__") and hasattr(source, "__getitem__") and not hasattr(source, "__iter__")


def _items(source: Any, order: Array | None, shown: str | None) -> Iterator[Any]:
    if order is not None:
        return (source[int(index)] for index in order)
    if hasattr(source, "get_next"):
        return _read(source)
    if not _gives_items(source):
        raise CalibrationDataError(f"gave a {type(source).__name__}, which can't be iterated over", file=shown)
    return iter(source)


def _read(reader: Any) -> Iterator[Any]:
    while (item := reader.get_next()) is not None:
        yield item


def _called(source: Callable[[], Any], shown: str | None) -> Any:
    try:
        return source()
    except (Exception, SystemExit) as error:  # the user's code
        raise CalibrationDataError(f"raised {_line(error)}; --traceback shows where", file=shown) from error


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "numpy") and hasattr(value, "dtype") and not isinstance(value, type)


def _run(path: str) -> Any:
    """The module that a file of Python is, run as `python FILE` would: its neighbours can be imported."""
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    if spec is None or spec.loader is None:
        raise ImportError("is no file of Python")
    module = importlib.util.module_from_spec(spec)
    _look_in(os.path.dirname(os.path.abspath(path)))
    sys.modules.setdefault(spec.name, module)  # what it pickles for worker processes is looked up there
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> Any:
    _look_in(os.getcwd())
    return importlib.import_module(name)


def _look_in(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _line(error: BaseException) -> str:
    """An exception as part of a line."""
    text = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    return "".join(c if c.isprintable() else " " for c in message)[:LONGEST]
