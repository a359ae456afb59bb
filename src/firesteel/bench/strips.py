"""Pictures of single configurations, one under the other: seconds to the target, staleness, who computed and who waited."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from firesteel.bench import score, statistics
from firesteel.bench.figures import SHOWN, Picture, Series, axis_names, empty, sentence, short, words
from firesteel.bench.svg import HALO, INK, MUTED, WAITING, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


ROW = 32
"""Of a configuration, in px: a line of text and a bar under it."""


@styled
def to_target(group: Sequence[Series]) -> Picture | None:
    """A bar for each configuration: the median seconds to the target over its seeds, which are dots.

    One that has not reached it is hatched, as long as it ran.
    """
    first = group[0].one
    if first.target is None:
        return None
    costs = [[score.cost(result) for result in one.results] for one in (each.one for each in group)]
    medians = [statistics.median(cost) for cost in costs]
    if all(math.isnan(cost) for cost in medians):
        return None
    ran = [statistics.median([score.total(result) for result in one.results]) for one in (each.one for each in group)]
    figure, axes = empty(40 + ROW * len(group))
    for row, (each, cost, median, seconds) in enumerate(zip(group, costs, medians, ran, strict=True)):
        reached = math.isfinite(median)
        if reached:
            said = f"{median:.3g}"
            _bar(axes, row, median, each, hatched=False)
            dots = [value for value in cost if math.isfinite(value)]
            if len(cost) > 1:
                _ = axes.plot(dots, [row + 0.17] * len(dots), "o", color=INK, markersize=2.4, gid=each.gid)
        elif math.isnan(median):
            said = "unknown"
        elif math.isnan(seconds):
            said = "failed"
        else:
            said = f"not reached in {seconds:.3g}"
            _bar(axes, row, seconds, each, hatched=True)
        _row(axes, row, each, said)
    _rows(axes, len(group))
    if max((m for m in medians if math.isfinite(m)), default=0) > 0:
        axes.set_xlim(left=0)
    axis_names(axes, first.seconds)
    reached = [
        (median, one.label) for median, one in zip(medians, (each.one for each in group), strict=True) if math.isfinite(median)
    ]
    about = f"Bars: median of the seeds; dots: the seeds; hatched: {first.target:g} was not reached."
    about += f" First: {min(reached)[1]} after {min(reached)[0]:.3g} {first.seconds}." if reached else " Nobody reached it."
    title = f"{sentence(first.seconds)} to a {words(first.metric)} of {first.target:g}"
    return Picture("to-target", title, about, figure, rows=True)


def _bar(axes: Axes, row: int, length: float, of: Series, hatched: bool) -> None:
    external = of.one.external
    style: dict[str, Any] = {"color": of.colour}
    if external or hatched:
        style = {"facecolor": "none", "edgecolor": of.colour, "hatch": "////" if hatched else None}
        style["linestyle"] = (0, (4, 2.5)) if external else "-"
    (bar,) = axes.barh(row + 0.17, length, height=0.34, linewidth=1.1, **style)
    bar.set_gid(of.gid)


def _row(axes: Axes, row: float, of: Series, said: str, up: float = 0.12) -> None:
    """What stands over a bar: whose it is at the left, the figure at the right."""
    style: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "fontsize": 10, "gid": HALO, "zorder": 0.9}
    _ = axes.text(0, row - up, short(of.one.label, 60 - len(said)), color=INK, **style)
    _ = axes.text(1, row - up, said, color=MUTED, ha="right", **style)


def _rows(axes: Axes, count: int) -> None:
    axes.set_ylim(count - 0.5, -0.55)
    axes.set_yticks([])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


@styled
def staleness(group: Sequence[Series]) -> Picture | None:
    """A histogram for each configuration with a server: which share of its pushes met a center how many pushes older."""
    known = [(each, pushes) for each in group if (pushes := score.staleness_counts(each.one.results))]
    if not known:
        return None
    shown = known[: 2 * SHOWN]
    figure, axes = empty(44 + 46 * len(shown))
    means = list[tuple[float, str]]()
    width = max(1, math.ceil((1 + max(max(pushes) for _, pushes in shown)) / 60))
    for row, (each, pushes) in enumerate(shown):
        mean, _ = score.staleness_quantiles(pushes)
        binned = np.bincount([tau // width for tau in pushes], list(pushes.values()))
        at = np.flatnonzero(binned)
        bars = axes.bar(
            at * width + (width - 1) / 2, -0.5 * binned[at] / binned.max(), width * 0.86, bottom=row + 0.36, color=each.colour
        )
        for bar in bars:
            bar.set_gid(each.gid)
        _ = axes.plot([mean, mean], [row + 0.36, row - 0.14], color=INK, linewidth=1, gid=each.gid)
        _row(axes, row, each, f"mean {mean:.2f}", 0.2)
        means.append((mean, each.one.label))
    _rows(axes, len(shown))
    axis_names(axes, "staleness: pushes merged since the sender pulled")
    about = f"Share of the pushes by their staleness, all seeds together; the line is the mean. Least stale: {min(means)[1]}, "
    about += f"mean {min(means)[0]:.2f}; most: {max(means)[1]}, {max(means)[0]:.2f}."
    if len(shown) < len(known):
        about += f" The first {len(shown)} of {len(known)}; the table has all."
    return Picture("staleness", "Staleness", about, figure, rows=True)


@styled
def gantt(group: Sequence[Series]) -> Picture | None:
    """A strip for each drawn worker, computing, and waiting in a paler tone: the first seeds of the best that have strips."""
    drawn = [(each, result) for each in group for result in each.one.results[:1] if result.strips][:SHOWN]
    if not drawn:
        return None
    figure, axes = empty(36 + 13 * sum(1.6 + len(result.strips) for _, result in drawn))
    row, busy = 0.0, list[tuple[float, str]]()
    for each, result in drawn:
        computing, waiting = (
            sum(seconds for strip in result.strips for _, seconds in strip.get(name) or ()) for name in ("computing", "waiting")
        )
        share = computing / (computing + waiting) if computing + waiting else 0.0
        busy.append((share, each.one.label))
        _row(axes, row + 0.85, each, f"{share:.0%} computing", 0)
        row += 1.1
        for strip in result.strips:
            for name, tone in (("waiting", WAITING), ("computing", each.colour)):
                _ = axes.broken_barh(strip.get(name) or (), (row + 0.1, 0.8), color=tone, linewidth=0, gid=each.gid)
            row += 1
        row += 0.5
    axes.set_ylim(row - 0.3, -0.1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axis_names(axes, group[0].one.seconds)
    about = "A slice of one run for each: a strip for each worker, coloured where it computes, pale where it waits. "
    return Picture(
        "gantt", "Computing and waiting", f"{about}Busiest: {max(busy)[1]}, {max(busy)[0]:.0%} computing.", figure, rows=True
    )
