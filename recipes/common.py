"""What several recipes read from results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from firesteel.bench.claims import Verdict
from firesteel.bench.results import Result


def ran(results: Iterable[Result]) -> list[Result]:
    """Ours that trained, whatever came of it: one that diverged says something of the method, one that failed does not."""
    return [r for r in results if not r.external and r.status != "failed"]


def named(results: Iterable[Result], strategy: str) -> list[Result]:
    """Those of one strategy."""
    return [r for r in results if r.header.get("strategy") == strategy]


def best(result: Result) -> float:
    """The best value of an accuracy; NaN where the run has none."""
    return max((v for v in result.column(result.metric) if not math.isnan(v)), default=math.nan)


def last(result: Result, name: str) -> float:
    return result.column(name)[-1] if result.points else math.nan


def seconds_per_epoch(result: Result) -> float:
    return last(result, "seconds") / last(result, "epoch")


def at(result: Result, axis: str, where: float, name: str) -> float:
    """The value of the last point at or before `where` on an axis; NaN before the first."""
    found = [v for x, v in zip(result.column(axis), result.column(name), strict=True) if x <= where * (1 + 1e-9)]
    return found[-1] if found else math.nan


def median(values: Iterable[float]) -> float:
    """NaN of none."""
    known = [v for v in values if not math.isnan(v)]
    return statistics.median(known) if known else math.nan


def times(ratio: float) -> str:
    return f"{ratio:.2f} times"


def judged(shown: bool, *figures: float) -> Verdict:
    """The verdict on figures; where one of them is missing nothing was measured."""
    return "not measured" if any(map(math.isnan, figures)) else "shown" if shown else "not shown"
