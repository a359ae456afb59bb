"""Whether a strategy's settings are what they can be, said before anything starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from firesteel.errors import UsageError


def positive(strategy: object, *names: str) -> None:
    """Raise UsageError unless these settings are numbers greater than 0, or tuples of such."""
    for name in names:
        value = getattr(strategy, name)
        for v in value if isinstance(value, tuple) else (value,):
            if not (isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and v > 0):
                _refuse(strategy, name, value, "must be a number greater than 0")


def whole(strategy: object, **least: int) -> None:
    """Raise UsageError unless these settings are whole numbers, at least so large."""
    for name, lowest in least.items():
        value = getattr(strategy, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            _refuse(strategy, name, value, f"must be a whole number, at least {lowest}")


def one_of(strategy: object, **choices: Sequence[Any]) -> None:
    """Raise UsageError unless these settings are among their choices."""
    for name, known in choices.items():
        value = getattr(strategy, name)
        if not any(value is each or (isinstance(each, str) and value == each) for each in known):
            _refuse(strategy, name, value, f"must be one of {', '.join(map(str, known))}")


def _refuse(strategy: object, name: str, value: object, said: str) -> None:
    raise UsageError(f"{type(strategy).__name__}({name}={value!r}): {name} {said}.")
