"""Data and model parallelism: speed-up of four architectures over workers, data size and number of parameters.

Shrivastava, Chaudhury and Jayadeva 2017 (arXiv 1708.05840) split fully connected, convolutional, recurrent and LSTM
networks over Spark workers, and report up to 11 times the speed of one. Here the rows are MNIST's: one epoch of SGD with
momentum, measured on one and two workers of this machine, and on a simulated cluster of hosts behind 10 Gbit/s.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from common import judged, median, ran, seconds_per_epoch

from firesteel import SGD, Cluster, Compute, Local, Network, NeuronParallel, Simulated, Single, SyncSGD, datasets
from firesteel.bench.claims import Claim
from firesteel.bench.results import Result
from firesteel.bench.trial import Trial
from firesteel.bench.workload import Budget, Workload, flat_mnist, workload
from firesteel.models import MLP, LeNet, LSTMClassifier, RNNClassifier

PUBLISHED = {"shrivastava-2017": {}}
OPTIMIZER = SGD(lr=0.02, momentum=0.9)
# Per architecture: the network for a width, its data, and seconds a row takes one core here (measured once, for the simulator).
NETWORKS: dict[str, tuple[Callable[[float], Any], Any, float]] = {
    "FC": (lambda w: functools.partial(MLP, 784, int(512 * w), int(512 * w), 10), flat_mnist, 6e-5),
    "CNN": (lambda w: LeNet, datasets.mnist, 2.5e-4),
    "RNN": (lambda w: functools.partial(RNNClassifier, 28, int(128 * w), 10), datasets.mnist, 1.5e-4),
    "LSTM": (lambda w: functools.partial(LSTMClassifier, 28, int(64 * w), 10), datasets.mnist, 2.5e-4),
}
STRATEGIES = (SyncSGD(), NeuronParallel())
WORKERS = (1, 2, 4, 8, 16)


def matrix(seeds: int = 3) -> list[Trial]:
    trials = []
    for kind in NETWORKS:
        base = network(kind)
        for seed in range(seeds):
            trials.append(Trial(base, Single(), Local(1, threads=1), seed, score_training=None))
            trials += [Trial(base, s, Local(2, threads=1), seed, score_training=None) for s in STRATEGIES]
        for workers in WORKERS:
            trials += [Trial(base, s, simulated(kind, workers), score_training=None) for s in STRATEGIES]
        for rows, width in ((500, 1.0), (4_000, 1.0), *(((2_000, 0.5), (2_000, 2.0)) if kind != "CNN" else ())):
            other = network(kind, rows, width)
            for workers in (1, 8):
                trials += [Trial(other, s, simulated(kind, workers, width), score_training=None) for s in STRATEGIES]
    return trials


def network(kind: str, rows: int = 2_000, width: float = 1.0) -> Workload:
    make, data, _ = NETWORKS[kind]
    name = f"{kind}, {rows:,} rows" + (f", width x {width:g}" if width != 1.0 else "")
    return replace(
        workload("mnist-mlp"),
        name=name,
        model=make(width),
        data=data,
        rows=rows,
        target=0.8,
        budget=Budget(2),
        optimizer=OPTIMIZER,
        batch_size=32,
        points_per_epoch=1,
    )


def simulated(kind: str, workers: int, width: float = 1.0) -> Simulated:
    """Hosts behind 10 Gbit/s with 50 microseconds of latency; a wider network takes longer by its number of weights."""
    row = NETWORKS[kind][2] * width**2
    return Simulated(Cluster(workers, Compute(row, 2e-4), Network(5e-5, 1.25e9), all_reduce="halving_doubling"))


def claims(results: list[Result]) -> list[Claim]:
    found, largest = [], math.nan
    for kind in NETWORKS:
        base = [r for r in ran(results) if r.workload == network(kind).name and r.ended_well]
        alone = median(seconds_per_epoch(r) for r in base if r.header["world"] == "Local" and r.workers == 1)
        for strategy in STRATEGIES:
            name = type(strategy).__name__
            mine = [r for r in base if r.header["strategy"] == name]
            two = median(seconds_per_epoch(r) for r in mine if r.header["world"] == "Local" and r.workers == 2)
            virtual = {r.workers: seconds_per_epoch(r) for r in mine if r.virtual}
            way = f"{kind}, {'data' if name == 'SyncSGD' else 'model'} parallelism"
            if two and alone:
                found.append(
                    Claim(
                        f"{way}: two workers of this machine are faster than one",
                        "more workers are faster",
                        f"{alone / two:.2f} times, {alone:.3f} s and {two:.3f} s an epoch (medians of seeds)",
                        "no difference shown" if 0.95 < alone / two < 1.05 else judged(alone > two, alone, two),
                        "batches of 32 rows and a small network: meetings take longer than what they save"
                        if alone < two
                        else "",
                    )
                )
            if 1 not in virtual or len(virtual) < 2:
                continue
            ups = {w: virtual[1] / s for w, s in sorted(virtual.items()) if w}
            largest = max([*ups.values(), *([] if math.isnan(largest) else [largest])])
            top = max(ups, key=lambda w: ups[w])
            found.append(
                Claim(
                    f"{way}: many simulated workers are faster than one",
                    "up to 11 times, architecture by architecture not to be had",
                    ", ".join(f"{up:.1f} with {w}" for w, up in ups.items() if w > 1),
                    "shown" if ups[top] > 1.1 else "not shown",
                    f"most with {top}",
                )
            )
    found.append(
        Claim(
            "up to 11 times as fast as one worker",
            "11 times (a CNN)",
            f"{largest:.1f} times, the largest of all architectures at up to {WORKERS[-1]} workers, simulated",
            judged(largest >= 11, largest),
            "" if largest >= 11 else "see the table of speed-ups for where it saturates",
        )
    )
    return found
