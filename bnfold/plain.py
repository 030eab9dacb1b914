"""Plain data, as JSON has it."""

from __future__ import annotations

from typing import Any


def finite(data: Any) -> Any:
    """Plain data whose numbers are all finite; others become None, since JSON has no word for them.

    >>> finite({"r": float("inf"), "worst": (0.5, float("nan"))})
    {'r': None, 'worst': [0.5, None]}
    """
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and data - data != 0 else data
