"""Pictures of a run."""

from __future__ import annotations

import base64
import html as markup
import io
from typing import TYPE_CHECKING

from firesteel.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from firesteel.run import Run

_BLUE, _ORANGE, _GREY = "#2a6fbb", "#d9601a", "#8a8f98"


def learning_curves(run: Run) -> Figure:
    """Loss on the left; metrics of validation, if there are any, on the right; epochs below, wall seconds above."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'firesteel[bench]'.") from error
    table = run.history.to_pydict()
    metrics = [n for n in table if n.startswith("validation_") and n != "validation_loss"]
    figure = Figure(figsize=(11 if metrics else 6, 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if metrics else 1, squeeze=False)[0]
    epochs, seconds = table["epoch"], table["seconds"]
    _line(axes[0], epochs, table["train_loss"], "training", _BLUE)
    if "validation_loss" in table:
        _line(axes[0], epochs, table["validation_loss"], "validation", _ORANGE)
    _dress(axes[0], "loss", epochs, seconds)
    if metrics:
        for name, colour in zip(metrics, (_ORANGE, _BLUE, _GREY, "#3c8d40"), strict=False):
            _line(axes[1], epochs, table[name], name.removeprefix("validation_"), colour)
        _dress(axes[1], "validation", epochs, seconds)
    figure.suptitle(run.settings.get("title", ""), fontsize=10, color="#333")
    return figure


def _line(axes: Axes, x: list[float], y: list[float | None], label: str, colour: str) -> None:
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if not points:
        return
    label = f"{label} ({points[-1][1]:.4g})"
    _ = axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.8, marker="o", markersize=3)


def _dress(axes: Axes, ylabel: str, epochs: list[float], seconds: list[float]) -> None:
    _ = axes.set_xlabel("epochs")
    _ = axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["right"]].set_visible(False)
    _ = axes.legend(frameon=False, fontsize=9)
    if len(epochs) > 1 and epochs[-1] > 0:
        scale = seconds[-1] / epochs[-1]
        forth, back = (lambda e: e * scale), (lambda s: s / scale if scale else s)  # epochs to seconds, and back
        above = axes.secondary_xaxis("top", functions=(forth, back))  # pyright: ignore[reportArgumentType]
        _ = above.set_xlabel("wall seconds", fontsize=8)
        above.tick_params(labelsize=8)


def html(run: Run) -> str:
    """A run as a notebook shows it: a line, a small table, the curves."""
    rows = "".join(
        f"<tr><td style='text-align:left'>{markup.escape(name)}</td><td>{value:.5g}</td></tr>"
        for name, value in {**run.metrics, **run.timing}.items()
    )
    picture = ""
    try:
        sink = io.BytesIO()
        learning_curves(run).savefig(sink, format="png", dpi=96)
        picture = f"<img alt='learning curves' src='data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}'>"
    except UsageError:
        pass  # without matplotlib the table stands alone
    return f"<div><b>{markup.escape(str(run))}</b><br>{picture}<table>{rows}</table></div>"
