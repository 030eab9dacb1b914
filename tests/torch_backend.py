"""ONNX's own node tests, run through `bnfold.torch`: which of them pass, and why the others don't.

    python tests/torch_backend.py            the count, and every case that does not pass, with the reason
    python tests/torch_backend.py PATTERN    those whose names match

Cases whose result is random by nature are not counted, whatever they give.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install bnfold[torch]")

RANDOM = ("test_bernoulli*", "test_training_dropout*")


def cases() -> Iterator[Any]:
    """All node tests that this version of onnx brings along."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases overflow on purpose
        yield from collect_testcases(None)


def as_torch(value: Any) -> Any:
    from bnfold.torch.types import as_tensor

    if isinstance(value, list):
        return [as_torch(one) for one in value]
    return None if value is None else as_tensor(np.asarray(value))


def difference(expected: Any, found: Any, rtol: float, atol: float) -> str:
    """How a result is not what it should be; '' if it is."""
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return "is another sequence"
        return next((why for e, f in zip(expected, found, strict=True) if (why := difference(e, f, rtol, atol))), "")
    if expected is None or found is None:
        return "" if expected is None and found is None else "is there or not"
    expected = as_torch(expected)
    if not isinstance(found, torch.Tensor):
        return f"is a {type(found).__name__}"
    if expected.shape != found.shape:
        return f"has shape {list(found.shape)}, not {list(expected.shape)}"
    if expected.dtype != found.dtype:
        return f"has type {found.dtype}, not {expected.dtype}"
    wide = torch.complex128 if expected.is_complex() else torch.float64
    if not torch.allclose(found.to(wide), expected.to(wide), rtol, atol, equal_nan=True):
        return f"is off by up to {(found.to(wide) - expected.to(wide)).abs().max().item():.3g}"
    return ""


def trouble(case: Any) -> str:
    """Why a case doesn't pass; '' if it does."""
    from bnfold.errors import BnfoldError
    from bnfold.torch import to_module

    if any(fnmatchcase(case.name, pattern) for pattern in RANDOM):
        return "its result is random"
    try:
        module = to_module(case.model)
        for inputs, outputs in case.data_sets:
            with torch.no_grad():
                found = module(*map(as_torch, inputs))
            found = found if isinstance(found, tuple) and len(module.output_names) > 1 else (found,)
            for name, e, f in zip(module.output_names, outputs, found, strict=True):
                if why := difference(e, f, case.rtol, case.atol):
                    return f"output {name} {why}"
    except BnfoldError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ""


def main() -> None:
    pattern = sys.argv[1] if len(sys.argv) > 1 else "*"
    torch.set_num_threads(1)
    passed, others = 0, []
    for case in cases():
        if fnmatchcase(case.name, pattern):
            why = trouble(case)
            passed += not why
            others += [f"{case.name}: {why}"] if why else []
    print("\n".join([*others, f"{passed} of {passed + len(others)} pass"]))


if __name__ == "__main__":
    main()
