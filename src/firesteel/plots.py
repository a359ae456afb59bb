"""Pictures of a run."""

from __future__ import annotations

import base64
import html as markup
import io
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from firesteel.errors import UsageError
from firesteel.outcome import brief

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from firesteel.run import Run
    from firesteel.sim.planner import Plan

_BLUE, _ORANGE, _GREY, _SAND = "#2a6fbb", "#d9601a", "#8a8f98", "#e9dcc9"
_COLOURS = [_BLUE, _ORANGE, "#3c8d40", _GREY, "#7a4fb5", "#b8860b", "#2aa6a6", "#b5446e"]
_STYLES = ("-", "-.", ":")  # where there are more lines than colours; the ideal is dashed


def learning_curves(run: Run) -> Figure:
    """Loss on the left; metrics, if there are any, on the right; epochs below, seconds above. What published models reach on
    rows they were trained on is dashed."""
    table = run.history.to_pydict()
    scored = [n.partition("_") for n in table if n.startswith(("validation_", "training_"))]
    metrics = list(dict.fromkeys(name for _, _, name in scored if name != "loss"))
    figure, _ = _empty((11 if metrics else 6, 4.2), columns=2 if metrics else 1)
    axes = figure.axes
    epochs, seconds = table["epoch"], table["seconds"]
    _line(axes[0], epochs, table["train_loss"], "training", _BLUE)
    if "validation_loss" in table:
        _line(axes[0], epochs, table["validation_loss"], "validation", _ORANGE)
    if "training_loss" in table:
        _line(axes[0], epochs, table["training_loss"], "training, evaluated", _BLUE, "--")
    unit = _unit(run)
    _dress(axes[0], "loss", epochs, seconds, unit)
    if metrics:
        for name, colour in zip(metrics, (_ORANGE, _BLUE, _GREY, "#3c8d40"), strict=False):
            for kind, style in (("validation", "-"), ("training", "--")):
                if f"{kind}_{name}" in table:
                    _line(axes[1], epochs, table[f"{kind}_{name}"], f"{kind} {name}", colour, style)
        _dress(axes[1], "metrics", epochs, seconds, unit)
    _title(figure, run)
    return figure


def _line(axes: Axes, x: list[float], y: list[float | None], label: str, colour: str, style: str = "-") -> None:
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if not points:
        return
    label = f"{label} ({points[-1][1]:.4g})"
    _ = axes.plot(
        *zip(*points, strict=True), color=colour, label=label, linestyle=style, linewidth=1.8, marker="o", markersize=3
    )


def _dress(axes: Axes, ylabel: str, epochs: list[float], seconds: list[float], unit: str) -> None:
    _ = axes.set_xlabel("epochs")
    _ = axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    _ = axes.legend(frameon=False, fontsize=9)
    if len(epochs) > 1:
        # Seconds are no multiple of epochs: a worker was away, or the last ones go on alone.
        def seconds_at(epoch: float, _: float) -> str:
            return f"{np.interp(epoch, [0.0, *epochs], [0.0, *seconds]):.3g}" if 0 <= epoch <= epochs[-1] else ""

        above = axes.secondary_xaxis("top")
        above.xaxis.set_major_formatter(seconds_at)
        _ = above.set_xlabel(unit, fontsize=8)
        above.tick_params(labelsize=8)


def _unit(run: Run) -> str:
    return "virtual seconds" if run.settings.get("on", "").startswith("Simulated") else "wall seconds"


def staleness_histogram(run: Run) -> Figure:
    """How stale pushes were, by worker; the dashed line is N - 1, which N equal workers come to on average."""
    table = run.staleness()
    workers = sorted(set(table["worker"].to_pylist()))
    stale, by = table["staleness"].to_pylist(), table["worker"].to_pylist()
    figure, axes = _empty((7, 4.2))
    most = max(stale, default=0)
    step = max(1, (most + 1) // 40)
    edges = [edge - 0.5 for edge in range(0, most + step + 1, step)]
    parts = [[s for s, w in zip(stale, by, strict=True) if w == worker] for worker in workers]
    labels = [f"worker {w}, mean {sum(p) / len(p):.2f}" for w, p in zip(workers, parts, strict=True)]
    few = len(workers) <= 8
    if few:
        _ = axes.hist(parts, edges, stacked=True, label=labels, color=_COLOURS[: len(workers)])
    else:
        _ = axes.hist(stale, edges, color=_BLUE, label=f"{len(workers)} workers, mean {sum(stale) / len(stale):.2f}")
    _ = axes.axvline(len(workers) - 1, color="#333", linestyle="--", linewidth=1, label=f"N - 1 = {len(workers) - 1}")
    _ = axes.set_xlabel("staleness: pushes merged since the sender pulled")
    _ = axes.set_ylabel("pushes")
    _ = axes.legend(frameon=False, fontsize=9)
    _title(figure, run)
    return figure


def speed_up(plan: Plan) -> Figure:
    """Predicted speed-up over workers, a line for each strategy, and what most workers reach; the dashed line is the ideal."""
    figure, axes = _empty((8.4, 4.6))
    counts = sorted({p.workers for p in plan.predictions})
    _ = axes.plot(counts, counts, color="#333", linestyle="--", linewidth=1, label="ideal")
    names = list(dict.fromkeys(repr(p.strategy) for p in plan.predictions))
    short = [name.partition("(")[0] for name in names]
    for number, name in enumerate(names):
        found = [p for p in plan.predictions if repr(p.strategy) == name]
        label = short[number] if short.count(short[number]) == 1 else brief(found[0].strategy)
        label = f"{label}: {plan.speed_up(found[-1]):.1f}"
        x, y = [p.workers for p in found], [plan.speed_up(p) for p in found]
        style, marker = _STYLES[number // len(_COLOURS) % len(_STYLES)], "os^Dv"[number % 5]
        colour = _COLOURS[number % len(_COLOURS)]
        _ = axes.plot(x, y, color=colour, linestyle=style, marker=marker, markersize=4, linewidth=1.6, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    _ = axes.set_xticks(counts, [str(n) for n in counts])
    ticks = axes.get_yticks()
    low, high = axes.get_ylim()
    _ = axes.set_yticks([t for t in ticks if low <= t <= high], [f"{t:g}" for t in ticks if low <= t <= high])
    _ = axes.set_xlabel("workers")
    _ = axes.set_ylabel("speed-up over one worker")
    axes.grid(alpha=0.25)
    _ = figure.legend(frameon=False, fontsize=9, loc="outside right upper")
    return figure


def gantt(run: Run, most_workers: int = 32) -> Figure:
    """A strip for each worker: when it computed, when it waited, when it sent; of the first `most_workers` workers.

    Waiting is drawn where an await blocked; a tick marks the moment at which a message's verb was over, its height the bytes.
    Nothing is drawn while a worker is away, nor for a step that it did not end.
    """
    events: dict[int, list[dict[str, Any]]] = {}
    for event in run.trace.to_pylist():
        events.setdefault(event["rank"], []).append(event)
    ranks = sorted(events)[:most_workers]
    absent = len(events) - len(ranks)
    figure, axes = _empty((10, 1.2 + 0.32 * (len(ranks) + bool(absent))))
    largest = max(run.trace["bytes"].to_pylist(), default=0) or 1
    for row, rank in enumerate(ranks):
        computing, waiting = strips(events[rank])
        _ = axes.broken_barh(computing, (row - 0.32, 0.64), color=_BLUE, linewidth=0)
        _ = axes.broken_barh(waiting, (row - 0.32, 0.64), color=_SAND, linewidth=0)
        sent = [event for event in events[rank] if event["bytes"] > 0]
        heights = [0.64 * event["bytes"] / largest for event in sent]
        at = [event["seconds"] for event in sent]
        _ = axes.vlines(at, [row - 0.32] * len(at), [row - 0.32 + h for h in heights], color=_ORANGE, linewidth=0.8)
    names = [f"worker {r}" for r in ranks] + ([f"and {absent} more"] if absent else [])
    _ = axes.set_yticks(range(len(names)), names, fontsize=8)
    _ = axes.set_ylim(len(names) - 0.4, -0.6)
    _ = axes.set_xlabel(_unit(run))
    handles = [_patch(_BLUE, "computing"), _patch(_SAND, "waiting"), _patch(_ORANGE, "sent")]
    _ = figure.legend(handles=handles, frameon=False, fontsize=8, ncols=3, loc="outside lower right")
    _title(figure, run)
    return figure


def strips(events: list[dict[str, Any]]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """When a worker computed and when it waited, as (begin, seconds)."""
    computing: list[list[float]] = []  # begin and end; steps without anything between them are one strip
    waiting: list[tuple[float, float]] = []
    before = 0.0
    for event in events:
        end, waited = event["seconds"], event["waited_seconds"]
        if waited > 0:
            waiting.append((end - waited, waited))
        if end - waited > before and event["kind"] != "join":  # until then it was away
            if computing and computing[-1][1] == before:
                computing[-1][1] = end - waited
            else:
                computing.append([before, end - waited])
        before = end
    return [(begin, end - begin) for begin, end in computing], waiting


def against(run: Run) -> Figure:
    """Loss against seconds (virtual ones, of a simulated run) and against samples."""
    table = run.history.to_pydict()
    figure, _ = _empty((11, 4.2), columns=2)
    for axes, name in zip(figure.axes, ("seconds", "samples"), strict=True):
        _line(axes, table[name], table["train_loss"], "training", _BLUE)
        if "validation_loss" in table:
            _line(axes, table[name], table["validation_loss"], "validation", _ORANGE)
        _ = axes.set_xlabel(_unit(run) if name == "seconds" else name)
        _ = axes.set_ylabel("loss")
        axes.grid(alpha=0.25)
        _ = axes.legend(frameon=False, fontsize=9)
    _title(figure, run)
    return figure


def _empty(size: tuple[float, float], columns: int = 1) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'firesteel[bench]'.") from error
    figure = Figure(figsize=size, layout="constrained")
    for axes in figure.subplots(1, columns, squeeze=False)[0]:
        axes.spines[["right", "top"]].set_visible(False)
    return figure, figure.axes[0]


def _title(figure: Figure, run: Run) -> None:
    width = round(13 * figure.get_figwidth())
    title = textwrap.fill(run.settings.get("title", ""), width, max_lines=3, placeholder=" ...")
    _ = figure.suptitle(title, fontsize=10, color="#333")


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


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
