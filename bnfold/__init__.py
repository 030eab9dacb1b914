"""bnfold: fold inference BatchNorm out of ONNX models, and prove that nothing changed.

    import bnfold

    result = bnfold.fold("model.onnx")       # or a ModelProto, onnx_ir.Model, …: the same kind comes back
    result.save("model.folded.onnx")

The public names below are imported when they are first used: `import bnfold` itself costs nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bnfold._version import __version__

if TYPE_CHECKING:
    from bnfold.api import FoldResult as FoldResult
    from bnfold.api import Verification as Verification
    from bnfold.api import fold as fold
    from bnfold.errors import BnfoldError as BnfoldError
    from bnfold.errors import CalibrationDataError as CalibrationDataError
    from bnfold.errors import ExternalDataError as ExternalDataError
    from bnfold.errors import ModelError as ModelError
    from bnfold.errors import NotEquivalentError as NotEquivalentError
    from bnfold.errors import OutputError as OutputError
    from bnfold.errors import UsageError as UsageError
    from bnfold.insert.api import Inserted as Inserted
    from bnfold.insert.api import InsertResult as InsertResult
    from bnfold.insert.api import insert as insert
    from bnfold.inspection import Inspection as Inspection
    from bnfold.inspection import inspect as inspect
    from bnfold.recalibrate.api import RecalibrationResult as RecalibrationResult
    from bnfold.recalibrate.api import recalibrate as recalibrate
    from bnfold.recalibrate.drift import Drift as Drift
    from bnfold.recalibrate.images import ImageOptions as ImageOptions
    from bnfold.report import Counts as Counts
    from bnfold.report import Entry as Entry
    from bnfold.report import FoldReport as FoldReport
    from bnfold.requantize.account import Requantization as Requantization
    from bnfold.verify.compare import verify as verify
    from bnfold.verify.comparison import Comparison as Comparison

# The public names by the modules that have them.
_HOMES = {
    "bnfold.api": ("FoldResult", "Verification", "fold"),
    "bnfold.errors": (
        "BnfoldError", "CalibrationDataError", "ExternalDataError", "ModelError", "NotEquivalentError", "OutputError",
        "UsageError",
    ),
    "bnfold.insert.api": ("InsertResult", "Inserted", "insert"),
    "bnfold.inspection": ("Inspection", "inspect"),
    "bnfold.recalibrate.api": ("RecalibrationResult", "recalibrate"),
    "bnfold.recalibrate.drift": ("Drift",),
    "bnfold.recalibrate.images": ("ImageOptions",),
    "bnfold.report": ("Counts", "Entry", "FoldReport"),
    "bnfold.requantize.account": ("Requantization",),
    "bnfold.verify.comparison": ("Comparison",),
    "bnfold.verify.compare": ("verify",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604 (names of a table)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`bnfold.fold` is the function, though a subpackage bears its name: importing that must not shadow it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
