"""Numbers as tables and pictures show them."""

from __future__ import annotations

import math
from collections.abc import Mapping

UNKNOWN = "-"


def digits(x: float | None, significant: int = 3) -> str:
    """Three significant digits, thousands apart by commas; "-" where there is no number.

    >>> digits(0.01234), digits(12345.0), digits(None)
    ('0.0123', '12,300', '-')
    """
    if x is None or not math.isfinite(x):
        return UNKNOWN
    rounded = float(f"{x:.{significant}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (significant - 1) else f"{rounded:.{significant}g}"


def score(x: float | None) -> str:
    """A metric: four digits, that 0.9996 is not 1."""
    return digits(x, 4)


def count(x: float | None) -> str:
    """Steps and samples: whole below a million.

    >>> count(60000.0), count(2_400_000.0)
    ('60,000', '2.4 million')
    """
    if x is None or not math.isfinite(x):
        return UNKNOWN
    return f"{x:,.0f}" if abs(x) < 999_999.5 else f"{digits(x / 1e6)} million"


def size(x: float | None) -> str:
    """Bytes.

    >>> size(0.0), size(1234567.0)
    ('0 B', '1.23 MB')
    """
    if x is None or not math.isfinite(x):
        return UNKNOWN
    power = 0
    while abs(x) >= 999.5 and power < 5:
        x, power = x / 1000, power + 1
    return f"{digits(x)} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def workers(n: int | None) -> str:
    """
    >>> workers(1), workers(4), workers(None)
    ('1 worker', '4 workers', '-')
    """
    return UNKNOWN if n is None else f"{n} worker{'s' if n != 1 else ''}"


def heuristic(told: Mapping[str, object]) -> str:
    """
    >>> heuristic({"name": "vector-free", "on": True})
    'vector-free on'
    """
    return f"{told['name']} {'on' if told.get('on') else 'off'}"


def items(values: Mapping[str, object]) -> str:
    """Settings.

    >>> items({"window": 12, "alpha": 0.5}), items({})
    ('window=12, alpha=0.5', '-')
    """
    return ", ".join(f"{name}={value}" for name, value in values.items()) or UNKNOWN
