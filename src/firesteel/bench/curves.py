"""Pictures over an axis: what is learned over seconds, samples and bytes; what workers bring; profiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from firesteel.bench import score
from firesteel.bench.cells import median_cost
from firesteel.bench.configurations import Configuration, families
from firesteel.bench.figures import (
    SHOWN,
    WIDTH,
    Picture,
    Series,
    axis_names,
    empty,
    plot,
    sentence,
    series,
    short,
    target_line,
    words,
)
from firesteel.bench.svg import MUTED, styled
from firesteel.bench.tables import costs_by_method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


def learning(group: Sequence[Series]) -> tuple[Picture, ...]:
    """The metric, then losses and what else was evaluated, each over seconds, samples and bytes.

    The loss of the batches is drawn where nobody evaluated the training rows.
    """
    columns = dict.fromkeys(name for each in group for result in each.one.results for point in result.points for name in point)
    metric = group[0].one.metric
    rest = [name for part in ("validation_", "training_") for name in columns if name.startswith(part) and name != metric]
    batches = ["train_loss"] if "train_loss" in columns and "training_loss" not in columns else []
    pictures = (curves(group, x, y) for y in (metric, *rest, *batches) for x in ("seconds", "samples", "bytes_sent"))
    return tuple(picture for picture in pictures if picture is not None)


@styled
def curves(group: Sequence[Series], x: str, y: str) -> Picture | None:
    """A quantity over seconds, samples or bytes: a line for each configuration.

    With up to three seeds: their median, bold, over a thin line for each. With more: the median over the band of the quartiles.
    The median goes as far as all seeds go.

    Args:
        group: of one workload and one kind of seconds.
        x: "seconds", "samples" or "bytes_sent"; y: any other column of the points.
    """
    figure, axes = empty()
    ends = list[tuple[float, str]]()
    reach, values = list[tuple[bool, float]](), list[float]()
    for each in group:
        one = each.one
        runs = [run for run in (_points(result.column(x), result.column(y)) for result in one.results) if run.size]
        if not runs:
            continue
        _seeds(axes, runs, each)
        ends.append((float(np.median([run[-1, 1] for run in runs])), one.label))
        reach.append((each.shown, max(float(run[-1, 0]) for run in runs)))
        values += [float(value) for run in runs for value in run[:, 1]]
    if max((end for _, end in reach), default=0.0) <= 0:
        return None
    first = group[0].one
    unit = first.seconds if x == "seconds" else words(x)
    cut = _scale_x(axes, x, unit, reach)
    _scale_y(axes, y, values)
    if y == first.metric and first.target is not None:
        target_line(axes, first.target)
    lower = y.endswith("loss")
    end, label = min(ends) if lower else max(ends)
    about = f"{'Lowest' if lower else 'Highest'} at the end: {label} with {end:.4g}.{cut}"
    drawn = {label for _, label in ends}
    absent = [each.one.label for each in group if each.one.label not in drawn and any(run.points for run in each.one.results)]
    if absent:
        about += f" Not drawn, for want of figures: {', '.join(absent)}."
    return Picture(f"{y}-{x}".replace("_", "-"), f"{sentence(words(y))} over {unit}", about, figure)


def _points(x: list[float], y: list[float]) -> np.ndarray:
    """Those with both, [n, 2]."""
    both = np.array([x, y], dtype=float).reshape(2, -1).T
    return both[np.isfinite(both).all(axis=1)]


def _seeds(axes: Axes, runs: Sequence[np.ndarray], of: Series) -> None:
    if 1 < len(runs) <= 3:
        for run in runs:
            _ = axes.plot(*run.T, color=of.colour, linewidth=0.7, alpha=0.45, gid=of.gid)
    grid, low, middle, high = _quartiles(runs)
    if len(runs) > 3:
        _ = axes.fill_between(grid, low, high, color=of.colour, alpha=0.18, linewidth=0, gid=of.gid)
    plot(axes, grid, middle, of)


def _quartiles(runs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where all runs are: the x of their points, and there the quartiles of what lies on the straight lines between them."""
    begin, end = max(run[0, 0] for run in runs), min(run[-1, 0] for run in runs)
    grid = np.unique(np.concatenate([run[:, 0] for run in runs]))
    grid = grid[(grid >= begin) & (grid <= end)]
    if len(grid) > 400:
        grid = grid[np.linspace(0, len(grid) - 1, 400).astype(int)]
    return grid, *np.quantile([np.interp(grid, *run.T) for run in runs], (0.25, 0.5, 0.75), axis=0)


@styled
def speed_up(group: Sequence[Series]) -> Picture | None:
    """Median seconds to the target with the fewest workers over those with N: a line for each method; the ideal is dashed."""
    of = {each.one.label: each for each in group}
    figure, axes = empty(280)
    counts, gained = set[int](), list[tuple[float, str]]()
    for family in families(each.one for each in group).values():
        costs = {one.workers or 0: median_cost(one) for one in family}
        gains = {workers: gain for workers, gain in score.speed_up(costs).items() if math.isfinite(gain) and gain > 0}
        ends = [(one.workers or 0, gains[one.workers or 0], of[one.label]) for one in family if one.workers in gains]
        if len(ends) < 2:
            continue
        best = min((each for *_, each in ends), key=lambda each: each.number)
        plot(axes, [workers for workers, *_ in ends], [gain for _, gain, _ in ends], best, gid=f"family-{best.family}")
        gained += [(gain, each.one.label) for _, gain, each in ends]
        counts |= set(gains)
    if not counts:
        return None
    ideal = sorted(counts)
    _ = axes.plot(ideal, [n / ideal[0] for n in ideal], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    _ = axes.annotate("ideal", (ideal[-1], ideal[-1] / ideal[0]), (-6, -1), textcoords="offset points", ha="right", color=MUTED)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    _ = axes.set_xticks(ideal, [str(n) for n in ideal])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y")
    axis_names(axes, "workers", f"speed-up over {ideal[0]} worker{'s' if ideal[0] != 1 else ''}")
    unit = group[0].one.seconds
    about = f"{sentence(unit)} to the target with the fewest workers over those with more; dashed: the ideal."
    return Picture("speed-up", "Speed-up over workers", f"{about} Most: {max(gained)[1]}, {max(gained)[0]:.3g}.", figure)


@styled
def legend(group: Sequence[Series]) -> Picture:
    """Lines and their names, for pictures that stand alone."""
    figure, axes = empty(12 + 19 * math.ceil(len(group) / 2), 2 * WIDTH)
    for place, each in enumerate(group):
        x, y = place % 2, place // 2
        plot(axes, [x, x + 0.03, x + 0.06], [y] * 3, each, markevery=[1])
        _ = axes.text(x + 0.08, y, short(each.one.label, 56), va="center")
    axes.set_xlim(-0.02, 2)
    axes.set_ylim(math.ceil(len(group) / 2) - 0.4, -0.6)
    axes.set_axis_off()
    return Picture("legend", "Legend", "; ".join(each.one.label for each in group), figure)


def methods(configurations: Sequence[Configuration]) -> tuple[Series, ...]:
    """A series for each method, whatever its workload and its workers."""
    found: dict[str, Configuration] = {}
    for one in configurations:
        label = f"{one.method} (external)" if one.external else one.method
        _ = found.setdefault(label, replace(one, label=label, workers=None))
    return series(list(found.values()))


@styled
def profile(drawn: Sequence[Series], configurations: Sequence[Configuration]) -> Picture:
    """The share of workloads on which a method is within a factor of the fastest: a staircase for each (Dolan and Moré 2002).

    Args:
        drawn: of `methods`.
        configurations: of several workloads and one kind of seconds.
    """
    names, workloads, costs = costs_by_method(configurations)
    figure, axes = empty(280)
    best = np.nanmin(np.where(np.isfinite(costs), costs, np.nan), axis=0)
    ratios = np.asarray(costs) / best
    factors = np.unique(np.append(ratios[np.isfinite(ratios)], 1.0))
    factors = np.append(factors, factors[-1] * 1.1)
    shares = score.performance_profile(costs, factors)
    for each in drawn:
        if each.one.label in names:
            plot(axes, factors, shares[names.index(each.one.label)], each, drawstyle="steps-post", marker="")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(left=1)
    axes.set_ylim(-0.03, 1.05)
    axes.grid(axis="y")
    axis_names(axes, "times the fastest method's seconds, log scale", "share of the workloads")
    most = max(range(len(names)), key=lambda k: (shares[k][0], shares[k][-1]))
    kind = configurations[0].seconds
    about = f"How often a method's {kind} to the target are within a factor of the fastest's, over {len(workloads)} workloads."
    about += f" Fastest most often: {names[most]}, on {shares[most][0]:.0%} of them."
    return Picture(f"profile-{kind.replace(' ', '-')}", f"Performance profile, {kind}", about, figure)


def _scale_x(axes: Axes, x: str, unit: str, reach: Sequence[tuple[bool, float]]) -> str:
    """Room for those that are shown at first; returns what is to be said of the others."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    every = [end for _, end in reach]
    shown = [end for drawn, end in reach if drawn] or every
    cut = ""
    if max(shown) > 20 * float(np.median(shown)):
        axes.set_xscale("log")  # one slow run would press all the others to the left edge
        _plain(axes.xaxis)
        unit += ", log scale"
    else:
        axes.set_xlim(0, max(shown) * 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if max(every) > max(shown) * 1.03:
            cut = f" The axis ends where the best {SHOWN} end; others run on to {EngFormatter(places=0, sep='')(max(every))}."
    if x != "seconds":
        axes.xaxis.set_major_formatter(EngFormatter("B" if x == "bytes_sent" else "", sep=" " if x == "bytes_sent" else ""))
    axis_names(axes, unit)
    return cut


def _plain(axis: Axis) -> None:
    """Numbers where a logarithmic axis would have powers of ten, which need mathematical type."""
    from matplotlib.ticker import NullFormatter

    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _scale_y(axes: Axes, y: str, values: Sequence[float]) -> None:
    name = words(y)
    if y.endswith("loss") and min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
        _plain(axes.yaxis)
        name += ", log scale"
    axes.grid(axis="y")
    _ = axes.set_title(name, loc="left", fontsize=10.5, color=MUTED, pad=7)
