"""What tables are made of: cells, and what several tables show or say alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import final

from firesteel.bench import score, statistics, texts
from firesteel.bench.configurations import Configuration, by_seconds
from firesteel.bench.results import Result
from firesteel.errors import UsageError

Show = Callable[[float | None], str]


@final
@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    value: float | None = None
    """What sorts; None sorts last."""
    external: bool = False


@final
@dataclass(frozen=True)
class Table:
    """A title, what it says and how it is computed, the names of the columns, the rows."""

    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def row(one: Configuration | Result, *cells: Cell | str | None) -> tuple[Cell, ...]:
    """Cells of one configuration or run, marked if it is somebody else's; a text stands for itself, None for unknown."""
    made = (cell if isinstance(cell, Cell) else Cell(cell or texts.UNKNOWN) for cell in cells)
    return tuple(replace(cell, external=one.external) for cell in made)


def said(metric: str) -> str:
    """ "validation accuracy"."""
    return metric.replace("_", " ")


def goal(one: Configuration) -> str:
    """ "0.9 validation accuracy"."""
    return f"{'a' if one.target is None else format(one.target, 'g')} {said(one.metric)}"


def kind_of(configurations: Sequence[Configuration]) -> str:
    """ "wall seconds" or "virtual seconds".

    Raises:
        UsageError: there are both.
    """
    kinds = list(by_seconds(configurations))
    if len(kinds) > 1:
        raise UsageError(f"{' and '.join(kinds)} have no common table: make one for each part of by_seconds(configurations).")
    return kinds[0]


def median_cost(one: Configuration, column: str = "seconds") -> float:
    """The median over seeds of the seconds, samples, ... to the target; infinite or NaN as `score.cost` is."""
    return statistics.median([score.cost(run, column) for run in one.results])


def ranked(configurations: Iterable[Configuration]) -> list[Configuration]:
    """By median seconds to the target; those that did not reach it after them, by their best metric."""

    def place(one: Configuration) -> tuple[float, float]:
        seconds, best = median_cost(one), statistics.median([score.best(run) for run in one.results])
        worth = best if score.smaller_is_better(one.metric) else -best
        return (seconds if math.isfinite(seconds) else math.inf, worth if math.isfinite(worth) else math.inf)

    return sorted(configurations, key=place)


def number(x: float | None, show: Show = texts.digits) -> Cell:
    """A number; "-" where there is none."""
    return Cell(show(x), x if x is not None and math.isfinite(x) else None)


def over_seeds(one: Configuration, of: Callable[[Result], float], show: Show) -> Cell:
    """The median of a figure of whole runs; with the number of seeds if some have none."""
    values = [of(run) for run in one.results]
    cell, having = number(statistics.median(values), show), len(statistics.known(values))
    return replace(cell, text=f"{cell.text} ({having} of {len(values)} seeds)") if 0 < having < len(values) else cell


def until_target(one: Configuration, column: str, show: Show) -> Cell:
    """The median of seconds, samples, ... to the target, with its quartiles; "> ..." where the median run never got there."""
    values = [score.cost(run, column) for run in one.results]
    used = [max(score.total(run, column), 0.0) if math.isinf(x) else x for x, run in zip(values, one.results, strict=True)]
    middle = statistics.median(values)

    def text(share: float) -> str:
        x = statistics.quantile(values, share)
        least = max(statistics.quantile(used, share), middle if math.isfinite(middle) else 0.0)
        return show(x) if math.isfinite(x) else f"> {show(least)}" if least > 0 else "not reached"

    if math.isnan(middle):
        return Cell(texts.UNKNOWN)
    spread = f" ({text(0.25)} to {text(0.75)})" if math.isfinite(middle) and len(statistics.known(values)) > 1 else ""
    return Cell(text(0.5) + spread, middle if math.isfinite(middle) else None)


def reached(one: Configuration) -> Cell:
    """How many of the seeds reached the target."""
    found = [score.reached(run) for run in one.results]
    if None in found:
        return Cell(texts.UNKNOWN)
    return Cell(f"{sum(map(bool, found))} of {len(found)}", sum(map(bool, found)) / len(found))
