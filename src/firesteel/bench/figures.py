"""Pictures of a bench: a function for each, from configurations to a picture, or None where there is nothing to show.

The place of a configuration among those given is the number of its series: its colour, its marker, and the class
"series-<number>" of all that is drawn of it. What is somebody else's is dashed and hollow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from firesteel.bench.svg import COLOURS, HALO, INK, MUTED, PAPER, SERIES, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from firesteel.bench.configurations import Configuration

WIDTH = 400
"""Of a picture, in the px that text has at this width: two stand side by side on a screen, one on a phone."""
MARKERS = "os^Dv"


@final
@dataclass(frozen=True)
class Picture:
    """What is drawn, and what it says to who does not see it."""

    name: str
    title: str
    about: str
    """How to read it, and its key figure."""
    figure: Figure

    @property
    def width(self) -> int:
        """In px."""
        return round(self.figure.get_figwidth() * 72)


def empty(height: float = 260, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; sizes in px."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    figure.set_layout_engine("constrained", w_pad=2 / 72, h_pad=3 / 72)
    return figure, figure.subplots()


def series(number: int) -> str:
    """The class of what is drawn of a configuration."""
    return f"series-{number}"


def colour(number: int) -> str:
    return SERIES[number % COLOURS]


def marker(number: int) -> str:
    """Another shape for each, so that no two series share colour and shape before the fiftieth."""
    return MARKERS[(number + number // COLOURS) % len(MARKERS)]


def words(column: str) -> str:
    """What a column of points is called on an axis: "validation_accuracy" is "validation accuracy"."""
    return {"bytes_sent": "bytes sent", "train_loss": "loss of the batches"}.get(column, column.replace("_", " "))


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


@styled
def curves(configurations: Sequence[Configuration], x: str, y: str) -> Picture | None:
    """A quantity over seconds, samples or bytes: a line for each configuration.

    With up to three seeds: their median, bold, over a thin line for each. With more: the median over the band of the quartiles.
    The median goes as far as all seeds go.

    Args:
        configurations: of one workload and one kind of seconds.
        x: "seconds", "samples" or "bytes_sent"; y: any other column of the points.
    """
    figure, axes = empty()
    ends = list[tuple[float, str]]()
    reach, values = list[float](), list[float]()
    for number, one in enumerate(configurations):
        runs = [run for run in (_points(result.column(x), result.column(y)) for result in one.results) if run.size]
        if not runs:
            continue
        _seeds(axes, runs, number, one.external)
        ends.append((float(np.median([run[-1, 1] for run in runs])), one.label))
        reach.append(max(float(run[-1, 0]) for run in runs))
        values += [float(value) for run in runs for value in run[:, 1]]
    if not ends or max(reach) <= 0:
        return None
    first = configurations[0]
    unit = first.seconds if x == "seconds" else words(x)
    _scale_x(axes, x, unit, reach)
    _scale_y(axes, y, values)
    if y == first.metric and first.target is not None:
        target_line(axes, first.target)
    lower = y.endswith("loss")
    end, label = min(ends) if lower else max(ends)
    about = f"{sentence(words(y))} over {unit}. {'Lowest' if lower else 'Highest'} at the end: {label} with {end:.4g}."
    absent = [one.label for one in configurations if one.label not in {label for _, label in ends}]
    if absent:
        about += f" Not drawn, for want of figures: {', '.join(absent)}."
    return Picture(f"{y}-{x}".replace("_", "-"), f"{sentence(words(y))} over {unit}", about, figure)


def _points(x: list[float], y: list[float]) -> np.ndarray:
    """Those with both, [n, 2]."""
    both = np.array([x, y], dtype=float).reshape(2, -1).T
    return both[np.isfinite(both).all(axis=1)]


def _seeds(axes: Axes, runs: Sequence[np.ndarray], number: int, external: bool) -> None:
    if 1 < len(runs) <= 3:
        for run in runs:
            _ = axes.plot(*run.T, color=colour(number), linewidth=0.7, alpha=0.45, gid=series(number))
    grid, low, middle, high = _quartiles(runs)
    if len(runs) > 3:
        _ = axes.fill_between(grid, low, high, color=colour(number), alpha=0.18, linewidth=0, gid=series(number))
    plot(axes, grid, middle, number, external)


def _quartiles(runs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where all runs are: the x of their points, and there the quartiles of what lies on the straight lines between them."""
    begin, end = max(run[0, 0] for run in runs), min(run[-1, 0] for run in runs)
    grid = np.unique(np.concatenate([run[:, 0] for run in runs]))
    grid = grid[(grid >= begin) & (grid <= end)]
    if len(grid) > 400:
        grid = grid[np.linspace(0, len(grid) - 1, 400).astype(int)]
    return grid, *np.quantile([np.interp(grid, *run.T) for run in runs], (0.25, 0.5, 0.75), axis=0)


def plot(axes: Axes, x: Any, y: Any, number: int, external: bool, **more: Any) -> None:
    """A line in the style of its series; the markers are few, and not where another's are."""
    every = ((number * 0.037) % 0.2, 0.2) if len(x) > 6 else None
    face = PAPER if external else colour(number)
    style = {"linestyle": (0, (4, 2.5)) if external else "-", "markerfacecolor": face, "markeredgewidth": 1.2} | more
    _ = axes.plot(
        x, y, color=colour(number), linewidth=1.7, marker=marker(number), markersize=4.2, markevery=every, gid=series(number), **style
    )


def target_line(axes: Axes, target: float) -> None:
    _ = axes.axhline(target, color=INK, linewidth=0.9, linestyle=(0, (1.5, 2)))
    where = axes.get_yaxis_transform()
    _ = axes.text(0.995, target, f"target {target:g}", transform=where, ha="right", va="bottom", fontsize=10, color=INK, gid=HALO)


def axis_names(axes: Axes, below: str, above: str = "") -> None:
    """What runs to the right, at the right; what runs up, above."""
    _ = axes.set_xlabel(below, loc="right")
    if above:
        _ = axes.set_title(above, loc="left", fontsize=10.5, color=MUTED, pad=7)


def _scale_x(axes: Axes, x: str, unit: str, reach: Sequence[float]) -> None:
    from matplotlib.ticker import EngFormatter

    if max(reach) > 20 * float(np.median(reach)):
        axes.set_xscale("log")  # one slow run would press all the others to the left edge
        unit += ", log scale"
    elif axes.get_xlim()[0] > 0 or min(reach) > 0:
        axes.set_xlim(left=0)
    if x != "seconds":
        axes.xaxis.set_major_formatter(EngFormatter("B" if x == "bytes_sent" else "", sep=" " if x == "bytes_sent" else ""))
    axis_names(axes, unit)


def _scale_y(axes: Axes, y: str, values: Sequence[float]) -> None:
    name = words(y)
    if y.endswith("loss") and min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
        name += ", log scale"
    axes.grid(axis="y")
    _ = axes.set_title(name, loc="left", fontsize=10.5, color=MUTED, pad=7)
