"""Pictures of single configurations, one under the other: seconds to the target, staleness, who computed and who waited."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from firesteel.bench import score, statistics
from firesteel.bench.figures import Picture, axis_names, colour, empty, series
from firesteel.bench.svg import HALO, INK, MUTED, WAITING, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from firesteel.bench.configurations import Configuration

ROW = 32
"""Of a configuration, in px: a line of text and a bar under it."""


@styled
def to_target(configurations: Sequence[Configuration]) -> Picture | None:
    """A bar for each configuration: the median seconds to the target over its seeds, which are dots.

    One that has not reached it is hatched, as long as it ran.
    """
    first = configurations[0]
    if first.target is None:
        return None
    costs = [[score.of_result(result) for result in one.results] for one in configurations]
    medians = [statistics.median(cost) for cost in costs]
    if all(math.isnan(cost) for cost in medians):
        return None
    ran = [statistics.median([score.last(result.column("seconds")) for result in one.results]) for one in configurations]
    figure, axes = empty(40 + ROW * len(configurations))
    for number, (one, cost, median, seconds) in enumerate(zip(configurations, costs, medians, ran, strict=True)):
        reached = math.isfinite(median)
        if reached:
            said = f"{median:.3g}"
            _bar(axes, number, median, one.external, hatched=False)
            dots = [value for value in cost if math.isfinite(value)]
            if len(cost) > 1:
                _ = axes.plot(dots, [number + 0.17] * len(dots), "o", color=INK, markersize=2.4, gid=series(number))
        elif math.isnan(median):
            said = "unknown"
        elif math.isnan(seconds):
            said = "failed"
        else:
            said = f"not reached in {seconds:.3g}"
            _bar(axes, number, seconds, one.external, hatched=True)
        _row(axes, number, one.label, said)
    _rows(axes, len(configurations))
    if max((m for m in medians if math.isfinite(m)), default=0) > 0:
        axes.set_xlim(left=0)
    axis_names(axes, first.seconds)
    reached = [(median, one.label) for median, one in zip(medians, configurations, strict=True) if math.isfinite(median)]
    about = f"Bars: median of the seeds; dots: the seeds; hatched: {first.target:g} was not reached."
    about += f" First: {min(reached)[1]} after {min(reached)[0]:.3g} {first.seconds}." if reached else " Nobody reached it."
    name = first.metric.replace("_", " ")
    return Picture("to-target", f"{first.seconds.capitalize()} to a {name} of {first.target:g}", about, figure)


def _bar(axes: Axes, number: int, length: float, external: bool, hatched: bool) -> None:
    hollow = {"facecolor": "none", "edgecolor": colour(number), "linestyle": (0, (4, 2.5)) if external else "-"}
    style = hollow | {"hatch": "////" if hatched else None} if external or hatched else {"color": colour(number)}
    _ = axes.barh(number + 0.17, length, height=0.34, linewidth=1.1, gid=series(number), **style)


def _row(axes: Axes, number: int, label: str, said: str, up: float = 0.08) -> None:
    """What stands over a bar: whose it is at the left, the figure at the right."""
    where = axes.get_yaxis_transform()
    _ = axes.text(0, number - up, short(label, 60 - len(said)), transform=where, fontsize=10, color=INK, gid=HALO)
    _ = axes.text(1, number - up, said, transform=where, fontsize=10, color=MUTED, ha="right", gid=HALO)


def _rows(axes: Axes, count: int) -> None:
    axes.set_ylim(count - 0.5, -0.55)
    axes.set_yticks([])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def short(label: str, most: int) -> str:
    """A label of at most so many letters: its end tells configurations apart as often as its beginning.

    >>> short("AEASGD(window=32), 4 workers", 20)
    'AEASGD(wi… 4 workers'
    """
    if len(label) <= most:
        return label
    head = (most - 1) // 2
    return f"{label[:head]}…{label[len(label) - (most - 1 - head) :]}"


@styled
def staleness(configurations: Sequence[Configuration]) -> Picture | None:
    """A histogram for each configuration with a server: which share of its pushes met a center how many pushes older."""
    counts = [_pushes(one) for one in configurations]
    shown = [number for number, count in enumerate(counts) if count]
    if not shown:
        return None
    figure, axes = empty(44 + 46 * len(shown))
    means = list[tuple[float, str]]()
    most = max(max(count) for count in counts if count)
    width = max(1, math.ceil((most + 1) / 60))
    for row, number in enumerate(shown):
        tau = np.array(sorted(counts[number]))
        pushes = np.array([counts[number][t] for t in tau], dtype=float)
        mean = float(tau @ pushes / pushes.sum())
        binned = np.bincount(tau // width, pushes)
        at = np.flatnonzero(binned) * width + (width - 1) / 2
        heights = 0.6 * binned[binned > 0] / binned.max()
        _ = axes.bar(at, -heights, width * 0.86, bottom=row + 0.36, color=colour(number), linewidth=0, gid=series(number))
        _ = axes.plot([mean, mean], [row + 0.36, row - 0.24], color=INK, linewidth=1, gid=series(number))
        _row(axes, row, configurations[number].label, f"mean {mean:.2f}", 0.26)
        means.append((mean, configurations[number].label))
    _rows(axes, len(shown))
    axis_names(axes, "staleness: pushes merged since the sender pulled")
    about = f"Share of the pushes by their staleness, all seeds together; the line is the mean. Least stale: {min(means)[1]}, "
    return Picture("staleness", "Staleness", f"{about}mean {min(means)[0]:.2f}; most: {max(means)[1]}, {max(means)[0]:.2f}.", figure)


def _pushes(one: Configuration) -> dict[int, int]:
    """Of all seeds: pushes by staleness."""
    total: dict[int, int] = {}
    for steps in (result.staleness.get("steps") or {} for result in one.results if result.staleness):
        for tau, pushes in steps.items():
            total[int(tau)] = total.get(int(tau), 0) + pushes
    return total


@styled
def gantt(configurations: Sequence[Configuration]) -> Picture | None:
    """A strip for each drawn worker of each configuration's first run that has them: computing, and waiting in a paler tone."""
    drawn = [(number, result) for number, one in enumerate(configurations) for result in one.results[:1] if result.strips]
    if not drawn:
        return None
    lines = sum(1.6 + len(result.strips) for _, result in drawn)
    figure, axes = empty(36 + 13 * lines)
    row, busy = 0.0, list[tuple[float, str]]()
    for number, result in drawn:
        label = configurations[number].label
        computing = sum(seconds for strip in result.strips for _, seconds in strip.get("computing", ()))
        waiting = sum(seconds for strip in result.strips for _, seconds in strip.get("waiting", ()))
        share = computing / (computing + waiting) if computing + waiting else 0.0
        busy.append((share, label))
        where = axes.get_yaxis_transform()
        _ = axes.text(0, row + 0.85, short(label, 44), transform=where, fontsize=10, color=INK)
        _ = axes.text(1, row + 0.85, f"{share:.0%} computing", transform=where, fontsize=10, color=MUTED, ha="right")
        row += 1.1
        for strip in result.strips:
            for name, tone in (("waiting", WAITING), ("computing", colour(number))):
                _ = axes.broken_barh(strip.get(name, ()), (row + 0.1, 0.8), color=tone, linewidth=0, gid=series(number))
            row += 1
        row += 0.5
    axes.set_ylim(row - 0.3, -0.1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axis_names(axes, configurations[0].seconds)
    about = "A slice of one run for each: a strip for each worker, coloured where it computes, pale where it waits. "
    return Picture("gantt", "Computing and waiting", f"{about}Busiest: {max(busy)[1]}, {max(busy)[0]:.0%} computing.", figure)
