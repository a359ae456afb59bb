"""From the rows of a foreign table to runs: numbers in our units, facts of a run, points in order."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, final

from firesteel.bench.columns import FACTS, ORDER, Column, assign, is_accuracy
from firesteel.bench.foreign import Row, Tell
from firesteel.bench.results import ENDED_WELL
from firesteel.bench.tracking import SETTING
from firesteel.errors import UsageError

_WHOLE = ("step", "samples", "rounds", "bytes_sent", "workers", "batch_size", "seed")
_NOTHING = ("", "-", "nan", "na", "n/a", "null", "none")
STATUSES = (*ENDED_WELL, "failed", "diverged")


@final
@dataclass(frozen=True)
class Gathered:
    """A run, as far as the table tells it."""

    facts: dict[str, Any]
    """By the names of `columns.FACTS`."""
    settings: dict[str, Any]
    """What else is said of the whole run."""
    points: list[dict[str, Any]] = field(default_factory=list)
    wheres: list[str] = field(default_factory=list)
    """Where each point stands."""


class _Unreadable(Exception):
    """A row's fault; the message says which."""


def gather(
    rows: list[Row],
    mapping: Mapping[str, str],
    units: Mapping[str, str],
    given: dict[str, Any],
    final: bool,
    refuse: Callable[[str], None],
    tell: Tell,
) -> list[Gathered]:
    """The runs in a table's rows: rows with the same facts are a run, or each row is one, where `final`.

    Args:
        rows: at least one.
        mapping: field to column.
        units: field to unit.
        given: facts that go before the table's.
        refuse: is told of a row that cannot be read; if it returns, the row is left out.
        tell: what is to be known though it is no error.

    Raises:
        UsageError: with file and line.
    """
    table = rows[0].named or rows[0].where
    told = {name for row in rows for name in row.about}
    cells = dict.fromkeys(name for row in rows for name in row.cells)
    of_runs = {name: fact for fact, name in mapping.items() if fact in FACTS and name in told and name not in cells}
    of_runs |= {name: name for name in told if name in FACTS}
    rest = {name: column for name, column in mapping.items() if column not in of_runs}
    columns = assign(cells, rest, units, given.get("metric"), table)
    texts = {
        column.name for column in columns if not column.known and not all(_readable(row.cells.get(column.name)) for row in rows)
    }
    runs: dict[Any, Gathered] = {}
    varied = set[str]()
    for number, row in enumerate(rows):
        try:
            facts = {fact: _fact(fact, row.about[name], name) for name, fact in of_runs.items() if name in row.about}
            facts |= {c.field: _fact(c.field, row.cells.get(c.name), c.name) for c in columns if c.field in FACTS}
            facts = {name: value for name, value in facts.items() if value is not None} | given
            point = {
                c.field: _figure(c, row)
                for c in columns
                if c.field not in FACTS and c.name not in texts and c.name in row.cells
            }
        except _Unreadable as error:
            refuse(f"{row.where}, {error}")
            continue
        key = number if final else (row.about.get("run"), tuple(sorted(facts.items())))
        run = runs.setdefault(key, Gathered(facts, {}))
        run.points.append(point)
        run.wheres.append(row.where)
        about = {name.removeprefix(SETTING): value for name, value in row.about.items() if name not in of_runs}
        about = {name: _plain(value) for name, value in about.items()} | {name: row.cells.get(name) for name in texts}
        for name, value in about.items():
            if value is not None and run.settings.setdefault(name, value) != value:
                varied.add(name)
    if not runs:
        raise UsageError(f"{table}: no row is left to import.")
    for name in sorted(varied):
        tell(f"{table}: column {name!r} holds texts that change within a run; it is left out.")
    for run in runs.values():
        for name in varied:
            _ = run.settings.pop(name, None)
        _check_order(run)
    _check_metric(list(runs.values()), [column.name for column in columns], table, tell)
    return list(runs.values())


def _check_order(run: Gathered) -> None:
    growing = [name for name in ORDER if any(point.get(name) is not None for point in run.points)]
    if len(run.points) > 1 and not growing:
        raise UsageError(
            f"{run.wheres[1]}: a second row of the same run, and nothing tells which is later: no {', '.join(ORDER[:4])}. "
            "If each row is a run of its own, say --final; else name the column that tells them apart: --map run=COLUMN."
        )
    for name in growing:
        last: float = -math.inf
        for point, where in zip(run.points, run.wheres, strict=True):
            value = point.get(name)
            if value is not None and value < last:
                raise UsageError(
                    f"{where}: {name} goes back from {last:g} to {value:g} within a run. If these are several runs, name the "
                    "column that tells them apart: --map run=COLUMN, or say --final if each row is a run of its own."
                )
            last = last if value is None else value


def _check_metric(runs: list[Gathered], columns: list[str], table: str, tell: Tell) -> None:
    scored = False
    for run in runs:
        metric = run.facts.setdefault("metric", "validation_accuracy")
        if any(point.get(metric) is not None for point in run.points):
            scored = True
        else:
            tell(f"{run.wheres[0]}: this run has no {metric}.")
    if not scored:
        metric = runs[0].facts["metric"]
        raise UsageError(
            f"{table}: no column is {metric}; --map {metric}=COLUMN names it, or --metric FIGURE scores by another. "
            f"Columns: {', '.join(columns)}."
        )


def _fact(name: str, value: Any, column: str) -> Any:
    if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
        return None
    if name == "virtual":
        if str(value).lower() not in ("true", "false"):
            raise _Unreadable(f"column {column!r}: {value!r} is neither true nor false.")
        return str(value).lower() == "true"
    if name == "target":
        return _number(value, column)
    if name in _WHOLE:
        number = _number(value, column)
        if number is not None and int(number) != number:
            raise _Unreadable(f"column {column!r}: {value!r} is no whole number.")
        return None if number is None else int(number)
    if name == "status" and value not in STATUSES:
        raise _Unreadable(f"column {column!r}: {value!r} is no end of a run; one of {', '.join(STATUSES)}.")
    return str(value)


def _figure(column: Column, row: Row) -> float | None:
    raw = _number(row.cells[column.name], column.name)
    if raw is None:
        return None
    value = raw if column.factor == 1 else float(Fraction(str(raw)) * column.factor)  # 98.18 per cent is 0.9818
    if column.known and is_accuracy(column.field):
        if raw > 1 and column.factor == 1:
            raise UsageError(f"{row.where}, column {column.name!r}: {raw:g} is more than 1; if these are per cent, say --unit "
                             f"{column.field}=percent.")  # fmt: skip
        if not 0 <= value <= 1:
            raise _Unreadable(f"column {column.name!r}: {raw:g} is no accuracy.")
    return int(value) if column.field in _WHOLE and value == int(value) else value


def _number(value: Any, column: str) -> float | None:
    """None for what is missing, and for infinity and NaN, which a result cannot hold."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str) or (isinstance(value, str) and "_" in value):
            raise ValueError
        number = int(value) if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value) else float(value)
    except ValueError:
        comma = " (a decimal comma is to be a point)" if isinstance(value, str) and re.fullmatch(r"\d+,\d+", value) else ""
        raise _Unreadable(f"column {column!r}: {json.dumps(value, default=str)} is no number{comma}.") from None
    return number if math.isfinite(number) else None


def _readable(value: Any) -> bool:
    try:
        _ = _number(value, "")
    except _Unreadable:
        return False
    return True


def _plain(value: Any) -> Any:
    """A parameter: MLflow keeps numbers as text."""
    if not _readable(value):
        return value
    number = _number(value, "")
    return value if number is None else int(number) if number == int(number) else number
