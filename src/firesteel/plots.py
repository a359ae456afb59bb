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


def staleness_histogram(run: Run) -> Figure:
    """How stale pushes were, by worker; the dashed line is N - 1, which N equal workers come to on average."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'firesteel[bench]'.") from error
    table = run.staleness()
    workers = sorted(set(table["worker"].to_pylist()))
    stale, by = table["staleness"].to_pylist(), table["worker"].to_pylist()
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    most = max(stale, default=0)
    step = max(1, (most + 1) // 40)
    edges = [edge - 0.5 for edge in range(0, most + step + 1, step)]
    parts = [[s for s, w in zip(stale, by, strict=True) if w == worker] for worker in workers]
    labels = [f"worker {w}, mean {sum(p) / len(p):.2f}" for w, p in zip(workers, parts, strict=True)]
    few = len(workers) <= 8
    if few:
        colours = [_BLUE, _ORANGE, "#3c8d40", _GREY, "#7a4fb5", "#b8860b", "#2aa6a6", "#b5446e"][: len(workers)]
        _ = axes.hist(parts, edges, stacked=True, label=labels, color=colours)
    else:
        _ = axes.hist(stale, edges, color=_BLUE, label=f"{len(workers)} workers, mean {sum(stale) / len(stale):.2f}")
    _ = axes.axvline(len(workers) - 1, color="#333", linestyle="--", linewidth=1, label=f"N - 1 = {len(workers) - 1}")
    _ = axes.set_xlabel("staleness: pushes merged since the sender pulled")
    _ = axes.set_ylabel("pushes")
    axes.spines[["right", "top"]].set_visible(False)
    _ = axes.legend(frameon=False, fontsize=9)
    figure.suptitle(run.settings.get("title", ""), fontsize=10, color="#333")
    return figure


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
