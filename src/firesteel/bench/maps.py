"""Heat maps, from the tables that hold their numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from firesteel.bench.figures import WIDTH, Picture, empty, short
from firesteel.bench.svg import BETTER, INK, MUTED, WORSE, styled
from firesteel.bench.texts import UNKNOWN, digits, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from firesteel.bench.cells import Table

STRONGEST = 0.62
"""Of a cell's colour, so that its number can be read on it, in the light and in the dark."""
MOST = 24  # configurations that a picture of all pairs has room for
CELL_WIDTH, CELL_HEIGHT = 38, 25  # px: room for "0.987"


@styled
def efficiency(table: Table) -> Picture | None:
    """E(a, b) for every two: blue where the row is better than the column, orange where it is worse, white at 1.

    Columns are the rows' numbers. Colours follow log E; the strongest is that of the largest factor, or of 1.1 if that is more.
    """
    known = [place for place, row in enumerate(table.rows) if any(cell.value is not None for cell in row[1:])]
    shown = known[:MOST]
    names = [table.rows[i][0].text for i in shown]
    values = [[table.rows[i][j + 1].value for j in shown] for i in shown]
    if len(names) < 2:
        return None
    factors = [abs(math.log(v)) for row in values for v in row if v is not None and v > 0 and math.isfinite(v)]
    largest = max([math.log(1.1), *factors])
    count = len(names)
    texts = [[digits(value) for value in row] for row in values]
    figure, axes = _grid(
        [f"{number}  {name}" for number, name in enumerate(names, 1)], [str(n + 1) for n in range(count)], texts
    )
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is not None and value > 0 and i != j:
                strength = min(1.0, abs(math.log(value)) / largest) if math.isfinite(value) else 1.0
                _fill(axes, i, j, BETTER if value > 1 else WORSE, strength)
    found = [
        (v, i, j) for i, row in enumerate(values) for j, v in enumerate(row) if v is not None and math.isfinite(v) and i != j
    ]
    about = "E(row, column): above 1, in blue, the row was the better model for most of the time; below, in orange, the column."
    if found:
        value, i, j = max(found)
        about += f" Largest: {names[i]} over {names[j]}, {value:.3g}."
    if len(known) < len(table.rows):
        about += f" Without a curve: {', '.join(row[0].text for i, row in enumerate(table.rows) if i not in known)}."
    if len(shown) < len(known):
        about += f" The first {len(shown)} of {len(known)}; the table has all."
    return Picture("efficiency", "Temporal efficiency E(a, b)", about, figure)


@styled
def robustness(table: Table, metric: str) -> Picture:
    """What is reached by each method and window (down) with each number of workers (across); the deeper, the better."""
    names = [row[0].text for row in table.rows]
    values = [[cell.value for cell in row[2:]] for row in table.rows]
    texts = [[score(value) for value in row] for row in values]
    figure, axes = _grid(names, list(table.columns[2:]), texts)
    known = [v for row in values for v in row if v is not None and math.isfinite(v)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is not None and math.isfinite(value):
                part = (value - low) / (high - low) if high > low else 1.0
                _fill(axes, i, j, BETTER, 1 - part if metric.endswith("loss") else part)
    return Picture("robustness", table.title, f"{table.about} From {low:.4g} to {high:.4g}.", figure)


def _grid(rows: list[str], columns: list[str], texts: list[list[str]]) -> tuple:
    """Axes with a cell for each text."""
    rows = [short(name, 40) for name in rows]
    widest = max(len(text) for line in [columns, *texts] for text in line)
    cell = max(CELL_WIDTH, 6.6 * widest + 8)
    labels = 6.7 * max(map(len, rows)) + 12
    figure, axes = empty(
        40 + CELL_HEIGHT * len(rows), max(min(WIDTH, labels + 64 * len(columns)), labels + cell * len(columns))
    )
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.tick_top()
    _ = axes.set_xticks(range(len(columns)), columns)
    _ = axes.set_yticks(range(len(rows)), rows, color=INK)
    axes.spines[["left", "bottom"]].set_visible(False)
    for i, line in enumerate(texts):
        for j, text in enumerate(line):
            _ = axes.text(j, i, text, ha="center", va="center", fontsize=10, color=MUTED if text == UNKNOWN else INK)
    return figure, axes


def _fill(axes: Axes, row: int, column: int, tone: str, strength: float) -> None:
    from matplotlib.patches import Rectangle

    place = (column - 0.48, row - 0.47)
    _ = axes.add_patch(Rectangle(place, 0.96, 0.94, color=tone, alpha=STRONGEST * strength, linewidth=0))
