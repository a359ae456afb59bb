"""From configurations to the rows of tables: plain data, no drawing.

A table holds seconds of one kind: `configurations.by_seconds` parts those that have both. Results of others that tell no
seconds stand beside either, with "-" for what nobody knows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from firesteel.bench import score, statistics, texts
from firesteel.bench.cells import (
    Cell,
    Table,
    goal,
    kind_of,
    median_cost,
    number,
    over_seeds,
    ranked,
    reached,
    row,
    said,
    until_target,
)
from firesteel.bench.configurations import HARDWARE, Configuration, families
from firesteel.bench.headline import headline
from firesteel.bench.results import Result

__all__ = [
    "Cell",
    "Table",
    "costs_by_method",
    "efficiency",
    "failures",
    "headline",
    "profiles",
    "ranking",
    "robustness",
    "settings",
    "speed_up",
    "staleness",
    "to_target",
]

FACTORS = (1.0, 1.5, 2.0, 4.0, math.inf)  # of performance profiles
EVERY = ("window", "period")  # what settings call the local steps between two meetings


def ranking(configurations: Sequence[Configuration]) -> Table | None:
    """Who reached the target first; those that did not come last, by their best metric."""
    if not configurations:
        return None
    kind, metric = kind_of(configurations), said(configurations[0].metric)
    rows = [
        row(
            one,
            one.label,
            number(one.workers, texts.count),
            until_target(one, "seconds", texts.digits),
            reached(one),
            over_seeds(one, score.best, texts.score),
            over_seeds(one, lambda run: score.total(run, "samples"), texts.count),
            over_seeds(one, lambda run: score.total(run, "bytes_sent"), texts.size),
            over_seeds(one, score.total, texts.digits),
        )
        for one in ranked(configurations)
    ]
    order = (
        f"By best {metric}; no target was set. "
        if configurations[0].target is None
        else f"By {kind} to {goal(configurations[0])}: of each run those of the first point that has it, the median over seeds "
        "with quartiles. A run that never has it counts as infinitely long; > says what was used up. "
    )
    about = f"{order}Best {metric}, samples, bytes sent by all workers and {kind} are medians of whole runs."
    columns = ("configuration", "workers", f"{kind} to target", "reached", f"best {metric}", "samples", "sent", kind)
    return Table(f"Ranking, {kind}", about, columns, tuple(rows))


def to_target(configurations: Sequence[Configuration]) -> Table | None:
    """Steps, samples and bytes to the target: what it costs whatever the speed of the machine."""
    if not any(score.reached(run) is not None for one in configurations for run in one.results):
        return None
    rows = [
        row(
            one,
            one.label,
            until_target(one, "step", texts.count),
            until_target(one, "samples", texts.count),
            until_target(one, "bytes_sent", texts.size),
            reached(one),
        )
        for one in ranked(configurations)
    ]
    about = (
        f"What was done until {goal(configurations[0])}: steps of each worker, samples and bytes sent of all workers together; "
        "medians over seeds with quartiles. > says what a run had done that never had it."
    )
    columns = ("configuration", "steps of each worker", "samples", "sent", "reached")
    return Table("Cost to the target", about, columns, tuple(rows))


def speed_up(configurations: Sequence[Configuration]) -> Table | None:
    """What more workers bring to each method that ran with several counts of them."""
    found = {label: family for label, family in families(configurations).items() if len(family) > 1}
    if not found:
        return None
    kind = kind_of(configurations)
    rows = [cells for label, family in found.items() for cells in _scaling(label, family)]
    about = (
        f"Speed-up: median {kind} to the target with the fewest workers over those with N, from {statistics.FEW} seeds on "
        "with a 95 % bootstrap interval. Efficiency: speed-up over how many times as many workers there are; hardware "
        "efficiency: the same of the seconds of an epoch. Statistical efficiency: samples to the target with the fewest "
        "workers over those with N."
    )
    columns = (
        *("configuration", "workers", "against", f"{kind} to target", "speed-up", "efficiency"),
        *("seconds per epoch", "hardware efficiency", "samples to target", "statistical efficiency"),
    )
    return Table(f"Speed-up, {kind}", about, columns, tuple(rows))


def _scaling(label: str, family: Sequence[Configuration]) -> list[tuple[Cell, ...]]:
    least = family[0]
    counts = [one.workers or 0 for one in family]
    gains = score.speed_up(dict(zip(counts, (median_cost(one) for one in family), strict=True)))
    samples = score.speed_up(dict(zip(counts, (median_cost(one, "samples") for one in family), strict=True)))
    epochs = score.speed_up(
        {
            n: statistics.median([score.seconds_per_epoch(run) for run in one.results])
            for n, one in zip(counts, family, strict=True)
        }
    )

    def gain(one: Configuration, n: int) -> Cell:
        found = statistics.compare(*([score.cost(run) for run in each.results] for each in (one, least)))
        cell = number(gains[n])
        tells = one is not least and cell.value is not None and found.seeds >= statistics.FEW
        return Cell(f"{cell.text} ({found.ends})", cell.value) if tells else cell

    return [
        row(
            one,
            label,
            number(n, texts.count),
            texts.workers(counts[0]),
            until_target(one, "seconds", texts.digits),
            gain(one, n),
            number(score.efficiency(gains)[n]),
            over_seeds(one, score.seconds_per_epoch, texts.digits),
            number(score.efficiency(epochs)[n]),
            until_target(one, "samples", texts.count),
            number(samples[n]),
        )
        for n, one in zip(counts, family, strict=True)
    ]


def efficiency(configurations: Sequence[Configuration], smoothed: bool = False) -> Table | None:
    """Temporal efficiency E(row, column) of each two, by the exact integral or in the thesis's smoothed form."""
    name = score.efficiency_of([run for one in configurations for run in one.results])
    if name is None:
        return None
    kind = kind_of(configurations)

    def cell(a: Configuration, b: Configuration) -> Cell:
        found = score.temporal_efficiencies(a.results, b.results, name, smoothed)
        middle = number(statistics.median(found))
        spread = f" ({texts.digits(min(found))} to {texts.digits(max(found))})" if len(found) > 1 and a is not b else ""
        return Cell(middle.text + spread, middle.value, a.external or b.external)

    rows = [(*row(a, a.label), *(cell(a, b) for b in configurations)) for a in configurations]
    form = (
        "means over a window and a spline through them"
        if smoothed
        else "the exact integral of the straight lines between points"
    )
    about = (
        f"E(row, column): the area under the row's {said(name)} in {kind}, divided by that under the column's, up to the end "
        f"of the shorter run (Hermans 2017); above 1 the row is better. By {form}; median and range over pairs of runs with "
        "the same seed, or over all pairs where no seeds match."
    )
    title = f"Temporal efficiency{', smoothed' if smoothed else ''}, {kind}"
    return Table(title, about, ("configuration", *(one.label for one in configurations)), tuple(rows))


def robustness(configurations: Sequence[Configuration]) -> Table | None:
    """The best metric by window and workers, of strategies that ran with several windows."""
    groups = {label: family for label, family in families(configurations).items() if _window(family[0]) is not None}
    windows = {(family[0].strategy, _window(family[0])) for family in groups.values()}
    several = {strategy for strategy, n in Counter(strategy for strategy, _ in windows).items() if n > 1}
    rows = {label: family for label, family in groups.items() if family[0].strategy in several}
    if not rows:
        return None
    counts = sorted({one.workers for family in rows.values() for one in family if one.workers is not None})

    def cell(family: Sequence[Configuration], n: int) -> Cell:
        return next((over_seeds(one, score.best, texts.score) for one in family if one.workers == n), Cell(texts.UNKNOWN))

    metric = said(configurations[0].metric)
    return Table(
        "Robustness",
        f"Best {metric} by window and workers, the median over seeds; the number of seeds where some have none.",
        ("configuration", "window", *map(texts.workers, counts)),
        tuple(
            row(family[0], label, number(_window(family[0]), texts.count), *(cell(family, n) for n in counts))
            for label, family in sorted(rows.items(), key=lambda each: (each[1][0].strategy or "", _window(each[1][0]) or 0))
        ),
    )


def _window(one: Configuration) -> float | None:
    return next((one.settings[name] for name in EVERY if isinstance(one.settings.get(name), int)), None)


def staleness(configurations: Sequence[Configuration]) -> Table | None:
    """How stale pushes were, in steps of the center and in distance."""
    rows = list[tuple[Cell, ...]]()
    for one in configurations:
        counts = score.staleness_counts(one.results)
        if not sum(counts.values()):
            continue
        mean, quantiles = score.staleness_quantiles(counts)
        distances = score.distance_quantiles(one.results)
        far = [distances[index] for index in (3, 5, 6)] if distances else [None] * 3
        steps = (number(sum(counts.values()), texts.count), number(mean), *(number(x, texts.count) for x in quantiles))
        rows.append(row(one, one.label, number(one.workers, texts.count), *steps, *map(number, far)))
    if not rows:
        return None
    about = (
        "Staleness of a push: how many others were merged since its sender pulled; all seeds together. Distance: how far the "
        "center pushed to was from the center pulled; the median over seeds of each quantile."
    )
    columns = ("configuration", "workers", "pushes", "mean", "median", "95 %", "largest")
    return Table("Staleness", about, (*columns, "median distance", "95 % distance", "largest distance"), tuple(rows))


def costs_by_method(configurations: Sequence[Configuration]) -> tuple[list[str], list[str], list[list[float]]]:
    """Methods, workloads with a target, and each method's seconds to each target, those of its best configuration.

    Infinite where it did not reach the target, NaN where that is unknown or it did not run.
    """
    names = [one.workload for one in configurations if one.target is not None]
    targets = list(dict.fromkeys(names))
    found: dict[str, dict[str, float]] = {}
    for one in configurations:
        costs = found.setdefault(f"{one.method} (external)" if one.external else one.method, {})
        costs[one.workload] = float(np.fmin(costs.get(one.workload, math.nan), median_cost(one)))
    return list(found), targets, [[costs.get(name, math.nan) for name in targets] for costs in found.values()]


def profiles(configurations: Sequence[Configuration]) -> Table | None:
    """On which share of several workloads a method is within a factor of the fastest one."""
    methods, targets, costs = costs_by_method(configurations)
    if len(targets) < 2:
        return None
    kind = kind_of(configurations)
    shares = score.performance_profile(costs, FACTORS).tolist()
    rows = list[tuple[Cell, ...]]()
    for method, known, each in zip(methods, costs, shares, strict=True):
        cells = [Cell(texts.UNKNOWN) if np.isnan(known).all() else number(share) for share in each]
        rows.append(tuple(replace(cell, external=method.endswith("(external)")) for cell in (Cell(method), *cells)))
    about = (
        f"The share of the {len(targets)} workloads with a target on which a method's {kind} to it, the median over seeds of "
        "its best configuration, are within a factor of the fastest method's (Dolan and Moré 2002). A method that did not "
        "reach a target, or did not run on a workload, is within none there."
    )
    columns = ("method", "fastest", *(f"within {factor:g} times" for factor in FACTORS[1:-1]), "reached at all")
    return Table(f"Performance profiles, {kind}", about, columns, tuple(rows))


def settings(configurations: Sequence[Configuration]) -> Table | None:
    """What each configuration was, and what it ran on."""
    if not configurations:
        return None
    rows = [
        row(
            one,
            one.label,
            one.strategy or one.method,
            texts.items(one.settings),
            one.optimizer,
            texts.heuristic(one.heuristic) if one.heuristic else None,
            number(one.batch_size, texts.count),
            one.world,
            number(one.workers, texts.count),
            ", ".join(str(run.seed) for run in one.results if run.seed is not None),
            texts.items(one.results[0].header.get("limits") or {}),
            _environment(one, ("firesteel", "python", "torch")),
            _environment(one, ("git",)),
            _environment(one, (*HARDWARE, "memory_bytes")),
            one.source,
        )
        for one in configurations
    ]
    columns = (
        *("configuration", "strategy", "settings", "optimizer", "heuristic", "batch of a worker", "world", "workers", "seeds"),
        *("limits", "versions", "commit", "hardware", "source"),
    )
    about = "What each configuration was and what it ran on; where its seeds ran on several, all of them."
    return Table("Settings", about, columns, tuple(rows))


def _environment(one: Configuration, names: Sequence[str]) -> str:
    def text(name: str, value: object) -> str:
        match name:
            case "memory_bytes" if isinstance(value, int | float):
                return texts.size(value)
            case "cores":
                return f"{value} cores"
            case "cpu" | "gpu" | "git":
                return str(value)
            case _:
                return f"{name} {value}"

    told = list[str]()
    for run in one.results:
        environment = run.header.get("environment") or {}
        told.append(", ".join(text(name, environment[name]) for name in names if environment.get(name) is not None))
    return "; ".join(dict.fromkeys(filter(None, told)))


def failures(results: Iterable[Result]) -> Table | None:
    """Runs that failed or diverged, and why."""
    rows = [
        row(
            run,
            run.id,
            run.workload,
            run.method,
            run.status,
            error.get("type"),
            (error.get("message") or "").partition("\n")[0],
        )
        for run in results
        if not run.ended_well
        for error in (run.error or {},)
    ]
    if not rows:
        return None
    about = (
        "Runs that failed or diverged, with the first line of what they said; they count as runs that did not reach the target."
    )
    return Table("Failures", about, ("run", "workload", "method", "status", "error", "message"), tuple(rows))
