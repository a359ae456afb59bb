"""Speed-up of data and model parallelism for four architectures: against workers, data size and number of parameters.

Measured with one and two workers of this machine, with the prediction beside it; to 64 workers by simulation, calibrated here.
The paper that the split is from (Shrivastava, Chaudhury and Jayadeva 2017, arXiv 1708.05840) plots the same, and reports up
to 11 times.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import firesteel
from benchmarks import report
from firesteel import models

BATCH, ROWS, REPETITIONS = 64, 60_000, 3
MEASURED_ROWS = 3_200
WORKERS = [1, 2, 4, 8, 16, 32, 64]
STRATEGIES = {"data": firesteel.SyncSGD(), "model": firesteel.NeuronParallel()}
OPTIMIZER = firesteel.SGD(lr=0.01, momentum=0.9)
WIRE = firesteel.Network(latency_seconds=5e-5, bandwidth=1.25e9)  # of 10 Gbit/s, assumed beyond this machine
PICTURE = Path(__file__).parents[1] / "docs" / "speed-up.png"
Make = Callable[[float], nn.Module]  # of a width multiplier
ARCHITECTURES: dict[str, tuple[Make, tuple[int, ...]]] = {
    "fully connected": (lambda w: models.MLP(784, int(1024 * w), int(1024 * w), 10), (784,)),
    "CNN": (lambda w: models.VGG(11, width=0.25 * w), (3, 32, 32)),
    "RNN": (lambda w: models.RNNClassifier(28, int(256 * w), 10), (28, 28)),
    "LSTM": (lambda w: models.LSTMClassifier(28, int(256 * w), 10), (28, 28)),
}
WIDTHS = (0.5, 1.0, 2.0)
SIZES = (6_000, 60_000, 600_000)
AT = 8  # workers, for data size and parameters


def seconds(make: Make, data: Any, strategy: Any, workers: int) -> float:
    """Wall seconds per epoch, from one epoch's end to the next one's."""
    run = firesteel.train(
        lambda: make(1.0),
        data,
        strategy=strategy,
        optimizer=OPTIMIZER,
        on=firesteel.Local(workers, threads=1),
        batch_size=BATCH,
        epochs=3,
        validation=None,
        progress="none",
    )
    ends = run.history["seconds"].to_pylist()
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def main() -> None:
    _ = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rng = np.random.default_rng(0)
    here: list[list[str]] = []
    tables: dict[str, list[list[str]]] = {"workers": [], "rows": [], "parameters": []}
    curves: dict[str, dict[str, list[float]]] = {}
    points: dict[str, dict[str, float]] = {}
    for name, (make, shape) in ARCHITECTURES.items():
        data = rng.standard_normal((MEASURED_ROWS, *shape), np.float32), rng.integers(0, 10, MEASURED_ROWS)
        cluster = firesteel.calibrate(
            lambda make=make: make(1.0), data, on=firesteel.Local(2, threads=1), batch_size=BATCH, optimizer=OPTIMIZER
        )

        def planned(cluster: Any, workers: list[int], rows: int, width: float, make: Make = make, shape: Any = shape) -> Any:
            strategies = list(STRATEGIES.values())
            return firesteel.plan(
                make(width), cluster, rows, strategies, workers, batch_size=BATCH, optimizer=OPTIMIZER, inputs=shape
            )

        said = planned(cluster, [2], MEASURED_ROWS, 1.0)
        took: dict[str, list[float]] = {"alone": [], **{kind: [] for kind in STRATEGIES}}
        for _ in range(REPETITIONS):
            took["alone"].append(seconds(make, data, firesteel.Single(), 1))
            for kind, strategy in STRATEGIES.items():
                took[kind].append(seconds(make, data, strategy, 2))
        alone = statistics.median(took["alone"])
        points[name] = {kind: alone / statistics.median(took[kind]) for kind in STRATEGIES}
        for kind, prediction in zip(STRATEGIES, said.predictions, strict=True):
            spread = f"{alone / max(took[kind]):.2f} - {alone / min(took[kind]):.2f}"
            here.append([f"{name}, {kind}", f"{points[name][kind]:.2f}", spread, f"{said.speed_up(prediction):.2f}"])
            print(here[-1], flush=True)
        far = dataclasses.replace(cluster, network=WIRE)
        plan = planned(far, WORKERS, ROWS, 1.0)
        curves[name] = {kind: [] for kind in STRATEGIES}
        for kind, strategy in STRATEGIES.items():
            found = [plan.speed_up(p) for p in plan.predictions if p.strategy == strategy]
            curves[name][kind] = found
            tables["workers"].append([f"{name}, {kind}", *(f"{x:.1f}" for x in found)])
        for kind, strategy in STRATEGIES.items():
            cells = []
            for rows in SIZES:
                plan = planned(far, [AT], rows, 1.0)
                cells.append(f"{next(plan.speed_up(p) for p in plan.predictions if p.strategy == strategy):.1f}")
            tables["rows"].append([f"{name}, {kind}", *cells])
            cells = []
            for width in WIDTHS:
                # A wider network computes longer, by as much as it has more weights to multiply with.
                more = _flops(make(width), shape) / _flops(make(1.0), shape)
                slower = dataclasses.replace(far.compute, row_seconds=_times(far, more))
                plan = planned(dataclasses.replace(far, compute=slower), [AT], ROWS, width)
                cells.append(f"{next(plan.speed_up(p) for p in plan.predictions if p.strategy == strategy):.1f}")
            counts = [sum(p.numel() for p in make(width).parameters()) for width in WIDTHS]
            tables["parameters"].append(
                [f"{name}, {kind}", *(f"{c} ({n / 1e6:.2f} M)" for c, n in zip(cells, counts, strict=True))]
            )
        print(tables["workers"][-2:], flush=True)
    picture(curves, points)
    best = max(max(found) for kinds in curves.values() for found in kinds.values())
    text = "\n\n".join(
        [
            "## Speed-up of four architectures",
            f"Seconds per epoch of one worker alone over those of N, batches of {BATCH} rows a worker, SGD with momentum; "
            "`make bench-speed-up`. *data*: SyncSGD; *model*: NeuronParallel, convolutions whole and the head split. Random "
            "inputs of MNIST's and CIFAR-10's shapes: 784-1024-1024-10, VGG-11 of a quarter of its width, and recurrent "
            "networks of 256 units over 28 steps.",
            f"Measured with two workers of this machine's two cores ({MEASURED_ROWS:,} rows, {REPETITIONS} repetitions "
            "in turn), and predicted:",
            report.table(["", "measured", "range", "predicted"], here),
            f"Simulated, {ROWS:,} rows, each worker a host of its own behind 10 Gbit/s with 50 us of latency (assumed; "
            "computing as calibrated here):",
            report.table(["workers", *map(str, WORKERS)], tables["workers"]),
            "![Speed-up over workers](speed-up.png)",
            f"Against data size, {AT} workers:",
            report.table(["rows", *(f"{n:,}" for n in SIZES)], tables["rows"]),
            f"Against the number of parameters, {AT} workers, units and channels times {', '.join(map(str, WIDTHS))}:",
            report.table(["width", *map(str, WIDTHS)], tables["parameters"]),
            f"The published framework reports up to 11 times; here the largest is {best:.1f} at {WORKERS[-1]} workers. "
            "Recurrent networks that are split meet at every step of a sequence, so latency holds them up long before "
            "computing does; with data parallelism they meet once. An epoch of more workers has fewer and larger batches, "
            "which teach less.",
        ]
    )
    print(text)
    report.write("bench-speed-up", text)


def _flops(module: nn.Module, shape: tuple[int, ...]) -> float:
    import torch

    from firesteel.parts.network import network

    return network(module.to("meta"), (torch.empty(2, *shape, device="meta"),), "this bench").flops


def _times(cluster: firesteel.Cluster, factor: float) -> float:
    each = cluster.row_seconds(0)
    return factor * sum(each) / len(each)


def picture(curves: dict[str, dict[str, list[float]]], points: dict[str, dict[str, float]]) -> None:
    """One panel for each architecture: simulated lines, measured points, the ideal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for ax, (name, kinds) in zip(axes.flat, curves.items(), strict=True):
        ax.plot(WORKERS, WORKERS, color="0.7", linestyle=":", label="ideal")
        for (kind, found), color in zip(kinds.items(), ("#1f77b4", "#d95f02"), strict=True):
            ax.plot(WORKERS, found, marker="o", markersize=3, color=color, label=f"{kind}, simulated")
            ax.plot([2], [points[name][kind]], marker="x", markersize=9, color=color, linestyle="", label=f"{kind}, measured")
        ax.set(xscale="log", yscale="log", title=name, xticks=WORKERS, yticks=WORKERS)
        ax.set_xticklabels(map(str, WORKERS))
        ax.set_yticklabels(map(str, WORKERS))
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    for ax in axes[1]:
        ax.set_xlabel("workers")
    for ax in axes[:, 0]:
        ax.set_ylabel("speed-up")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(PICTURE, dpi=144)


if __name__ == "__main__":
    main()
