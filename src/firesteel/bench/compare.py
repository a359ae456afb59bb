"""Two folders of results beside each other: what changed from the left to the right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from firesteel.bench import markdown, score, statistics, texts
from firesteel.bench.cells import Cell, Table, number, over_seeds, said, until_target
from firesteel.bench.configurations import HARDWARE, Configuration, by_seconds, configurations
from firesteel.bench.results import Result, read


def compare(left: str | Path, right: str | Path, skip_bad: Callable[[str], None] | None = None) -> str:
    """The comparison of two folders, as Markdown.

    Raises:
        UsageError: a folder holds no results or bad ones; a workload has not the same metric and target in both.
    """
    return "\n\n".join(block for table in tables(left, right, skip_bad) for block in markdown.table(table)) + "\n"


def show(left: str | Path, right: str | Path, markdown: bool = False, skip_bad: Callable[[str], None] | None = None) -> None:
    """Print it: Markdown, or tables as wide as the terminal."""
    if markdown:
        print(compare(left, right, skip_bad), end="")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    console = Console(highlight=False)
    for one in tables(left, right, skip_bad):
        drawn = Drawn(
            title=Text(one.title), caption=Text(one.about), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left"
        )
        for name in one.columns:
            drawn.add_column(Text(name), overflow="fold")
        for row in one.rows:
            drawn.add_row(*(Text(cell.text) for cell in row))
        console.print(drawn)


def tables(left: str | Path, right: str | Path, skip_bad: Callable[[str], None] | None = None) -> list[Table]:
    """A table for each workload and kind of seconds, and one of what only one of the two has.

    Results belong together that differ in nothing but seed, versions and machine; where the machine differs, the table says so.
    """
    sides = [read(folder, skip_bad) for folder in (left, right)]
    found = configurations(_bare(result, name) for name, side in zip(SIDES, sides, strict=True) for result in side)
    parted = [(one, *(tuple(r for r in one.results if r.id.startswith(name)) for name in SIDES)) for one in found]
    both = {(one.workload, one.label): (a, b) for one, a, b in parted if a and b}
    machines = [", ".join(dict.fromkeys(filter(None, map(_machine, side)))) for side in sides]
    note = "" if machines[0] == machines[1] else f" Left ran on {machines[0] or '-'}, right on {machines[1] or '-'}."
    made = list[Table]()
    for workload in dict.fromkeys(one.workload for one, a, b in parted if a and b):
        shared = [one for one, a, b in parted if a and b and one.workload == workload]
        for kind, members in by_seconds(shared).items():
            rows = [row for one in members for row in _rows(one, *both[workload, one.label], kind)]
            about = f"Left: {left}. Right: {right}. Medians over seeds.{note}"
            made.append(Table(f"{workload}, {kind}", about, COLUMNS, tuple(rows)))
    alone = [
        (
            Cell(one.label, None, one.external),
            Cell(one.workload),
            Cell(str(left if a else right)),
            number(len(one.results), texts.count),
        )
        for one, a, b in parted
        if not (a and b)
    ]
    if alone:
        made.append(Table("In one folder only", "", ("configuration", "workload", "where", "runs"), tuple(alone)))
    return made


SIDES = ("left ", "right ")
COLUMNS = ("configuration", "figure", "left", "right", "right / left", "verdict")


def _bare(result: Result, side: str) -> Result:
    """Without its machine and versions, which are what a comparison is often about; its side stands before its id."""
    return replace(result, id=f"{side}{result.id}", header={**result.header, "environment": {}})


def _machine(result: Result) -> str:
    environment = result.header.get("environment") or {}
    return " ".join(str(environment[name]) for name in HARDWARE if environment.get(name) is not None)


def _rows(one: Configuration, left: Sequence[Result], right: Sequence[Result], kind: str) -> list[tuple[Cell, ...]]:
    sides = [replace(one, results=tuple(side)) for side in (left, right)]
    figures: list[tuple[str, Callable[[Result], float], Any]] = [
        (f"best {said(one.metric)}", score.best, texts.score),
        (f"{kind} per epoch", score.seconds_per_epoch, texts.digits),
        ("bytes sent", lambda run: score.total(run, "bytes_sent"), texts.size),
    ]
    found = list[tuple[Cell, ...]]()
    if one.target is not None:
        cells = [until_target(side, "seconds", texts.digits) for side in sides]
        times = [[score.cost(run) for run in side.results] for side in sides]
        verdict = statistics.verdict(times[0], times[1], "left", "right")
        found.append(_row(one, f"{kind} to {one.target:g}", cells, times, verdict))
    for name, of, shown in figures:
        values = [[of(run) for run in side.results] for side in sides]
        if all(map(statistics.known, values)):
            cells = [over_seeds(side, of, shown) for side in sides]
            found.append(_row(one, name, cells, values, _verdict(*values)))
    return found


def _row(
    one: Configuration, name: str, cells: Sequence[Cell], values: Sequence[Sequence[float]], verdict: str
) -> tuple[Cell, ...]:
    ratio = statistics.compare(*values).ratio
    return (Cell(one.label, None, one.external), Cell(name), *cells, number(ratio), Cell(verdict))


def _verdict(left: Sequence[float], right: Sequence[float]) -> str:
    """Whether the right differs, where more may be good or bad."""
    found = statistics.compare(left, right)
    if found.seeds < statistics.FEW:
        return statistics.few(found.seeds)
    if not found.shown:
        return "no difference shown"
    return f"right is {texts.digits(found.ratio)} times left (95 % interval {found.ends})"
