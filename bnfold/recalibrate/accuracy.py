"""How good a model is: what recalibration is for, so what it should be judged by.

For classifiers with labels, how often they are right; for all others, a function of the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from bnfold.errors import ModelError, UsageError, quoted
from bnfold.recalibrate.data import Data
from bnfold.verify.runtime import CannotRun, Runner, first_line

# Axes of an output of class scores: samples, classes; any behind them have to be of size 1.
CLASSES = 1


@dataclass(frozen=True)
class Accuracy:
    """`right` of `count` samples got the class of their label."""

    right: int
    count: int

    @property
    def fraction(self) -> float:
        """The same from 0 to 1."""
        return self.right / self.count

    def __str__(self) -> str:
        return f"{100 * self.fraction:.2f} % ({self.right} of {self.count})"


def accuracy(model: ModelProto, data: Data) -> Accuracy:
    """How often the largest value of the first output is that of the label.

    Args:
        model: its first output is (samples, classes).
        data: with labels.

    Raises:
        ModelError: the model can't be run.
        UsageError: its first output or the labels are something else.
    """
    name = model.graph.output[0].name
    right = count = 0
    try:
        runner = Runner(model, [name])
        for feeds, labels in data.labelled():
            scores = runner.run(feeds)[name]
            where = f"output {quoted(name)}"
            classes = scores.shape[CLASSES] if scores.ndim > CLASSES else 0
            if classes < 2 or scores.size != len(labels) * classes:
                what = f"is {list(scores.shape)} for {len(labels)} samples; labels need a score for each class"
                raise UsageError(what, where=where)
            if labels.min() < 0 or labels.max() >= classes:
                what = f"has {classes} classes; labels go from {labels.min()} to {labels.max()}"
                raise UsageError(what, where=where)
            found = np.asarray(scores, np.float64).reshape(len(labels), -1).argmax(axis=1)
            right += int((found == labels).sum())
            count += len(labels)
    except CannotRun as why:
        raise ModelError(str(why)) from why
    return Accuracy(right, count)


def metric(model: ModelProto, function: Callable[[Any], Any]) -> float:
    """What the user's function says of a model: it gets an onnxruntime.InferenceSession, and more is better.

    Raises:
        ModelError: the model can't be run.
        UsageError: the function fails, or gives no number.
    """
    try:
        session = Runner(model, optimized=True).session  # as users run it; it has all its weights
    except CannotRun as why:
        raise ModelError(str(why)) from why
    try:
        value = float(function(session))
    except (Exception, SystemExit) as error:  # the user's code
        text = first_line(error)
        raise UsageError(f"the metric raised {type(error).__name__}: {text}; --traceback shows where") from error
    if not np.isfinite(value):
        raise UsageError(f"the metric is {value}; a finite number is needed")
    return value
