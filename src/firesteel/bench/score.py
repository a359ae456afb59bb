"""Scores of runs: pure functions of their curves.

A curve is the points of a run: seconds, samples or bytes against a metric. Between its points it is a straight line, before
the first it is zero, and beyond the last it is nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firesteel.bench.results import Result
from firesteel.errors import UsageError

Floats = NDArray[np.float64]
Curve = tuple[Sequence[float] | Floats, Sequence[float] | Floats]  # seconds and values, [n] each


def smaller_is_better(metric: str) -> bool:
    """Whether a metric is a loss or an error.

    >>> smaller_is_better("validation_loss"), smaller_is_better("validation_accuracy")
    (True, False)
    """
    return metric.split("_")[-1] in ("loss", "mse", "mae")


def to_target(xs: ArrayLike, ys: ArrayLike, target: float, smaller_is_better: bool) -> float | None:
    """The first x at which a point has reached the target; None if none has (the run is censored).

    No x between two points is made up: the target counts as reached where it was first seen. Points without y (NaN) are
    passed over; the x of the point that reached may be NaN: reached, but nobody knows when.

    >>> to_target([1.0, 2.0, 3.0], [0.5, 0.9, 0.8], 0.85, smaller_is_better=False)
    2.0
    """
    x, y = np.asarray(xs, float), np.asarray(ys, float)
    reached = np.flatnonzero(y <= target if smaller_is_better else y >= target)
    return float(x[reached[0]]) if len(reached) else None


def cost(result: Result, column: str = "seconds") -> float:
    """A run's seconds, samples, ... to its workload's target.

    Infinite where it did not reach it; NaN where that is unknown: the point that reached it does not tell, there is no target,
    or somebody else's run has no value of the metric at all.
    """
    values = result.column(result.metric)
    if result.target is None or (result.external and all(map(math.isnan, values))):
        return math.nan
    x = to_target(result.column(column), values, result.target, smaller_is_better(result.metric))
    return math.inf if x is None else x


def reached(result: Result) -> bool | None:
    """Whether a run reached its target; None where there is none, or nobody knows."""
    values = result.column(result.metric)
    if result.target is None or (result.external and all(map(math.isnan, values))):
        return None
    return to_target(values, values, result.target, smaller_is_better(result.metric)) is not None


def best(result: Result) -> float:
    """The best value of the metric; NaN where a run has none."""
    known = [x for x in result.column(result.metric) if math.isfinite(x)]
    return math.nan if not known else min(known) if smaller_is_better(result.metric) else max(known)


def total(result: Result, column: str = "seconds") -> float:
    """The seconds, samples, ... of the whole run, those of its last point that tells; NaN where none does."""
    known = [x for x in result.column(column) if math.isfinite(x)]
    return known[-1] if known else math.nan


def seconds_per_epoch(result: Result) -> float:
    """Over the whole run; NaN where seconds or epochs are unknown."""
    both = [(s, e) for s, e in zip(result.column("seconds"), result.column("epoch"), strict=True) if s >= 0 and e > 0]
    return both[-1][0] / both[-1][1] if both else math.nan


def curve(result: Result, name: str) -> Curve | None:
    """Seconds and values of the points that have both; None with less than two: that is no curve."""
    pairs = zip(result.column("seconds"), result.column(name), strict=True)
    known = [(s, v) for s, v in pairs if math.isfinite(s) and math.isfinite(v)]
    if len(known) < 2:
        return None
    return [s for s, _ in known], [v for _, v in known]


def integral(seconds: ArrayLike, values: ArrayLike, until: ArrayLike) -> Floats:
    """The exact integral from 0 to `until` of the piecewise linear trace, which is 0 before its first point.

    Args:
        seconds: [n], n > 0, not falling.
        values: [n].
        until: where to stop, of any shape, at most the last second: nothing is known beyond it.

    >>> float(integral([1.0, 3.0], [0.0, 1.0], 2.0))
    0.25

    Raises:
        UsageError: the seconds fall, or `until` is beyond the last.
    """
    t, f, stop = np.asarray(seconds, float), np.asarray(values, float), np.asarray(until, float)
    if len(t) == 0 or np.any(np.diff(t) < 0):
        raise UsageError("A trace has one point at least, and its seconds do not fall.")
    if np.any(stop > t[-1]):
        raise UsageError(f"integral(until={float(stop.max()):g}): the trace ends at {t[-1]:g} seconds. Stop there or before.")
    areas = np.concatenate(([0.0], np.cumsum(np.diff(t) * (f[1:] + f[:-1]) / 2)))  # [n], up to each point
    before = np.searchsorted(t, stop, side="right") - 1  # the last point at or before; -1: none
    left = np.maximum(before, 0)
    right = np.minimum(left + 1, len(t) - 1)
    width = t[right] - t[left]
    past = np.where(before < 0, 0.0, stop - t[left])
    slope = np.divide(f[right] - f[left], width, out=np.zeros_like(past), where=width > 0)
    return areas[left] + past * (f[left] + slope * past / 2)


def temporal_efficiency(a: Curve, b: Curve) -> float:
    """E(a, b), the integral of a over that of b, both up to the end of the shorter run (Hermans 2017, CERN-THESIS-2017-103).

    Above 1, a was the better model for most of the time; values are to be such that more is better.
    Infinite where b has no area and a has, NaN where neither has.

    >>> temporal_efficiency(([0.0, 2.0], [1.0, 1.0]), ([0.0, 4.0], [0.5, 0.5]))
    2.0
    """
    end = _shorter(a, b)
    return ratio(float(integral(*a, end)), float(integral(*b, end)))


WINDOW_SECONDS, GRID = 5.0, 5  # the thesis's window, and points of the grid in one window: one each second
SHORT_SECONDS = 100.0


def smoothed_temporal_efficiency(a: Curve, b: Curve, virtual: bool = False) -> float:
    """E(a, b) in the thesis's own form: means over a window, on a grid, a spline through them, its integral.

    The window is the 5 seconds before, the grid 1 second; of runs shorter than 100 seconds, and in virtual seconds, the
    window is a hundredth of the shorter run and the grid a fifth of the window. The thesis averages the workers' batch
    accuracies in the window; here it is the mean of the trace, which has a point for each published model.
    """
    from scipy.interpolate import CubicSpline

    end = _shorter(a, b)
    if end <= 0:
        return math.nan
    window = end / 100 if virtual or end < SHORT_SECONDS else WINDOW_SECONDS
    step = window / GRID
    grid = np.append(np.arange(0.0, end - step / 2, step), end)
    begins = np.maximum(grid[1:] - window, 0.0)

    def area(one: Curve) -> float:
        means = (integral(*one, grid[1:]) - integral(*one, begins)) / (grid[1:] - begins)
        first = np.interp(0.0, *one, left=0.0)
        return float(CubicSpline(grid, np.append(first, means)).integrate(0.0, end))

    return ratio(area(a), area(b))


def efficiency_of(results: Iterable[Result]) -> str | None:
    """What temporal efficiency is the integral of: training accuracy where each run with a curve has one, else the metric.

    None where no run has a curve, or the metric is such that less is better: the area under a loss says nothing.
    """
    found = list(results)
    metric = found[0].metric if found else "loss"
    both = [(curve(run, "training_accuracy"), curve(run, metric)) for run in found]
    if any(own for own, _ in both) and all(own for own, other in both if own or other):
        return "training_accuracy"
    return metric if any(other for _, other in both) and not smaller_is_better(metric) else None


def temporal_efficiencies(a: Sequence[Result], b: Sequence[Result], name: str, smoothed: bool = False) -> list[float]:
    """E(a, b) of each two runs with the same seed, or of every two where no seeds match; of those with a curve of it."""
    pairs = [(one, other) for one in a for other in b if one.seed is not None and one.seed == other.seed]
    found = list[float]()
    for one, other in pairs or [(one, other) for one in a for other in b]:
        own, beside = curve(one, name), curve(other, name)
        if own is not None and beside is not None:
            virtual = one.virtual or other.virtual
            found.append(smoothed_temporal_efficiency(own, beside, virtual) if smoothed else temporal_efficiency(own, beside))
    return found


def _shorter(a: Curve, b: Curve) -> float:
    return float(min(a[0][-1], b[0][-1]))


def ratio(a: float, b: float) -> float:
    """a / b of what is not negative: infinite over nothing, NaN of nothing over nothing.

    >>> ratio(3.0, 2.0), ratio(1.0, 0.0), ratio(0.0, 0.0)
    (1.5, inf, nan)
    """
    if b == 0:
        return math.inf if a > 0 else math.nan
    return a / b


def speed_up(costs: Mapping[int, float]) -> dict[int, float]:
    """The cost with the fewest workers over the cost with N: seconds to the target, seconds per epoch, or samples.

    0 where N workers never got there; NaN where the fewest never did, or a cost is unknown.

    >>> speed_up({1: 12.0, 4: 4.0})
    {1: 1.0, 4: 3.0}
    """
    base = costs[min(costs)]
    return {workers: base / cost if math.isfinite(base) and cost > 0 else math.nan for workers, cost in sorted(costs.items())}


def efficiency(speed_ups: Mapping[int, float]) -> dict[int, float]:
    """Speed-up over how many times as many workers there are: 1 where N workers are N times as fast as one.

    >>> efficiency({1: 1.0, 4: 3.0})
    {1: 1.0, 4: 0.75}
    """
    return {workers: gain * min(speed_ups) / workers for workers, gain in speed_ups.items()}


def performance_profile(costs: ArrayLike, factors: ArrayLike) -> Floats:
    """The share of workloads on which a method is within a factor of the best one (Dolan and Moré 2002).

    Args:
        costs: [methods, workloads], seconds to the target, say; infinite where a method did not reach it. NaN: it was not
            tried or nobody knows, which counts the same.
        factors: [k], 1 and above; infinite asks whether it reached the target at all.

    Returns:
        [methods, k], rising from the share of workloads on which the method is best.

    >>> performance_profile([[1.0, 4.0], [2.0, 2.0]], [1.0, 2.0]).tolist()
    [[0.5, 1.0], [0.5, 1.0]]
    """
    times, within = np.asarray(costs, float)[:, :, None], np.asarray(factors, float)  # [methods, workloads, 1], [k]
    times = np.where(np.isnan(times), np.inf, times)
    with np.errstate(invalid="ignore"):  # infinitely often zero seconds
        near = (times <= times.min(axis=0) * within) | np.isinf(within)
    return (near & np.isfinite(times)).mean(axis=1)


def staleness_counts(results: Iterable[Result]) -> dict[int, int]:
    """Pushes by their staleness, of all these runs together, in rising order."""
    counts = Counter[int]()
    for run in results:
        for tau, pushes in ((run.staleness or {}).get("steps") or {}).items():
            counts[int(tau)] += pushes
    return dict(sorted(counts.items()))


def staleness_quantiles(counts: Mapping[int, int], shares: Sequence[float] = (0.5, 0.95, 1.0)) -> tuple[float, list[int]]:
    """The mean staleness, and the smallest that the given shares of the pushes do not exceed.

    >>> staleness_quantiles({0: 1, 1: 2, 5: 1})
    (1.75, [1, 5, 5])
    """
    tau, pushes = np.array(sorted(counts)), np.array([counts[t] for t in sorted(counts)], float)
    reached = np.searchsorted(np.cumsum(pushes), np.asarray(shares) * pushes.sum() - 1e-9)
    return float(tau @ pushes / pushes.sum()), [int(t) for t in tau[reached]]


def distance_quantiles(results: Iterable[Result]) -> list[float] | None:
    """0, 5, 25, 50, 75, 95 and 100 % of the distances of pushes: of each the median over runs. None where none was recorded."""
    found = [run.staleness["distance"] for run in results if run.staleness and run.staleness.get("distance")]
    return np.median(np.asarray(found, float), axis=0).tolist() if found else None
