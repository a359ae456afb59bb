"""What the pictures of a bench have in common.

`curves`, `strips` and `maps` have a function for each picture: it returns a `Picture`, or None where there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from firesteel.bench.configurations import families
from firesteel.bench.svg import COLOURS, HALO, INK, MUTED, PAPER, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from firesteel.bench.configurations import Configuration

SHOWN = 8
"""How many configurations of a workload are drawn at first, the best of its ranking, and what is somebody else's; the others
wait in the legend."""
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
    rows: bool = False
    """Whether each configuration has a row: one that is not shown is then faded, where a line would go."""

    @property
    def width(self) -> int:
        """In px."""
        return round(self.figure.get_figwidth() * 72)


@final
@dataclass(frozen=True)
class Series:
    """How a configuration is drawn in all pictures: the colour tells the method, the shape and the width the workers.

    What is somebody else's is dashed and hollow.
    """

    one: Configuration
    number: int
    family: int
    """The number of the best of those that differ from it in their workers alone."""
    hue: int
    shape: int
    width: float
    """Of its line, in px."""

    @property
    def shown(self) -> bool:
        """Whether it is drawn at first."""
        return self.number < SHOWN or self.one.external

    @property
    def gid(self) -> str:
        """The class of all that is drawn of it."""
        return f"series-{self.number}"

    @property
    def colour(self) -> str:
        return SERIES[self.hue % COLOURS]

    @property
    def marker(self) -> str:
        return MARKERS[(self.shape + self.hue // COLOURS) % len(MARKERS)]


def series(configurations: Sequence[Configuration]) -> tuple[Series, ...]:
    """Of the configurations of one workload, in this order."""
    places = {one.label: number for number, one in enumerate(configurations)}
    counts = sorted({one.workers for one in configurations if one.workers is not None})
    method = {one.label: places[one.label] for one in configurations}
    for family in families(configurations).values():
        method |= dict.fromkeys((one.label for one in family), min(places[one.label] for one in family))
    hues = {first: hue for hue, first in enumerate(sorted(set(method.values())))}
    made = list[Series]()
    for number, one in enumerate(configurations):
        shape = 0 if one.workers is None else counts.index(one.workers)
        width = 1.7 if len(counts) < 2 else 1.2 + shape / (len(counts) - 1)
        made.append(Series(one, number, method[one.label], hues[method[one.label]], shape, width))
    return tuple(made)


def empty(height: float = 260, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; sizes in px."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    figure.set_layout_engine("constrained", w_pad=2 / 72, h_pad=3 / 72)
    return figure, figure.subplots()


def words(column: str) -> str:
    """What a column of points is called on an axis: "validation_accuracy" is "validation accuracy"."""
    return {"bytes_sent": "bytes sent", "train_loss": "loss of the batches"}.get(column, column.replace("_", " "))


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def short(label: str, most: int) -> str:
    """A label of at most so many letters: its end tells configurations apart as often as its beginning.

    >>> short("AEASGD(window=32), 4 workers", 20)
    'AEASGD(wi… 4 workers'
    """
    if len(label) <= most:
        return label
    head = (most - 1) // 2
    return f"{label[:head]}…{label[len(label) - (most - 1 - head) :]}"


def plot(axes: Axes, x: Any, y: Any, of: Series, **more: Any) -> None:
    """A line in the style of its series; the markers are few, and not where another's are."""
    every = ((of.number * 0.037) % 0.2, 0.2) if len(x) > 6 else None
    style = {
        "color": of.colour,
        "linewidth": of.width,
        "linestyle": (0, (4, 2.5)) if of.one.external else "-",
        "marker": of.marker,
        "markersize": 4.4,
        "markevery": every,
        "markerfacecolor": PAPER if of.one.external else of.colour,
        "markeredgewidth": 1.2,
        "gid": of.gid,
    }
    _ = axes.plot(x, y, **style | more)


def target_line(axes: Axes, target: float) -> None:
    _ = axes.axhline(target, color=INK, linewidth=0.9, linestyle=(0, (1.5, 2)))
    where = axes.get_yaxis_transform()
    _ = axes.text(0.01, target, f"target {target:g}", transform=where, va="bottom", fontsize=10, color=INK, gid=HALO)


def axis_names(axes: Axes, below: str, above: str = "") -> None:
    """What runs to the right, at the right; what runs up, above."""
    _ = axes.set_xlabel(below, loc="right")
    if above:
        _ = axes.set_title(above, loc="left", fontsize=10.5, color=MUTED, pad=7)
