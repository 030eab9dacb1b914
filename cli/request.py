"""What verbs that write a model ask of their options: where the result goes, and that no two contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bnfold.errors import UsageError


def choose_one(*options: tuple[str, bool]) -> None:
    """Raises: UsageError if more than one of these options was given."""
    given = [name for name, is_given in options if is_given]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} contradict each other; choose one")


def demand_with(option: str, is_given: bool, others: Mapping[str, object]) -> None:
    """Raises: UsageError if an option that says more about another one was given without it."""
    extra = [f"--{name}" for name, value in others.items() if value is not None]
    if extra and not is_given:
        raise UsageError(f"{' and '.join(extra)} {'is' if len(extra) == 1 else 'are'} of {option}; give that, too")


def target(model: str, output: str | None, in_place: bool, verb: str) -> Path:
    """Where the result goes: MODEL itself, OUTPUT, or NAME.VERB.onnx beside MODEL."""
    source = Path(model)
    if in_place:
        return source
    if output is None:
        return source.with_name((source.stem if source.suffix == ".onnx" else source.name) + f".{verb}.onnx")
    found = Path(output)
    if found.exists() and source.exists() and found.samefile(source):
        raise UsageError("--output is the model itself; --in-place replaces it", file=source)
    return found
