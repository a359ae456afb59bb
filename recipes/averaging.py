"""Parallel mini-batch back-propagation: five local epochs, then the average; over random splits, beside one worker alone.

The poster "Distributed neural networks: a parallel approach" trains on Hadoop: for N random splits into training and test
rows, every mapper samples a mini-batch of its own rows and trains on it for five epochs, an all-reduce averages the
networks, and so on. Its output is the list of accuracies over the splits, parallel against sequential, and the time against
the number of mappers. Here the mappers are workers of one gang; "sequential" is the same rule on one worker.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
from common import at, best, judged, last, median, ran
from methods import ParallelMiniBatch

from firesteel import Cluster, Compute, Local, Network, Simulated, datasets
from firesteel.bench.claims import Claim
from firesteel.bench.results import Result
from firesteel.bench.trial import Trial
from firesteel.bench.workload import Budget, Workload, flat_mnist, workload
from firesteel.datasets import Dataset
from firesteel.models import MLP

PUBLISHED = {"su-chen-2015": {}}
METHOD = ParallelMiniBatch(local_epochs=5)
MAPPERS = (1, 2, 4, 8, 16, 32)


def matrix(splits: int = 10) -> list[Trial]:
    trials = []
    for seed in range(splits):
        trials += [Trial(digits(), METHOD, Local(workers, threads=1), seed) for workers in (1, 2)]
    trials += [Trial(mnist(), METHOD, Local(workers, threads=1), seed) for workers in (1, 2) for seed in range(3)]
    return trials + [Trial(mnist(), METHOD, Simulated(cluster(workers))) for workers in MAPPERS]


def digits() -> Workload:
    return replace(
        workload("digits-mlp"),
        name="digits-mlp, random splits",
        data=split_digits,
        splits=True,
        budget=Budget(10),
        batch_size=64,
    )


def mnist() -> Workload:
    return replace(
        workload("mnist-mlp"),
        name="mnist-mlp, 20,000 rows",
        model=functools.partial(MLP, 784, 128, 10),
        data=flat_mnist,
        rows=20_000,
        target=0.93,
        budget=Budget(2),
        batch_size=128,
        points_per_epoch=8,
    )


def split_digits(seed: int) -> Dataset:
    """All 1,797 digits, another random fifth for testing with every seed."""
    data: Any = datasets.digits()
    x, y = (np.concatenate(parts) for parts in zip(data.train, data.test, strict=True))
    mixed = np.random.default_rng(seed).permutation(len(x))
    test, train = mixed[: len(x) // 5], mixed[len(x) // 5 :]
    return Dataset("digits", (x[train], y[train]), (x[test], y[test]), data.classes)


def cluster(workers: int) -> Cluster:
    """Hosts of one worker each behind 1 Gbit/s; 40 microseconds a row."""
    return Cluster(workers, Compute(row_seconds=4e-5, step_seconds=2e-4), Network(latency_seconds=1e-4, bandwidth=125e6))


def claims(results: list[Result]) -> list[Claim]:
    own = [r for r in ran(results) if r.ended_well]
    splits = [r for r in own if r.workload == digits().name]
    one = {r.seed: r for r in splits if r.workers == 1}
    two = {r.seed: r for r in splits if r.workers == 2}
    both = sorted(one.keys() & two.keys())
    listed = ", ".join(f"{best(two[s]):.3f}/{best(one[s]):.3f}" for s in both)
    metric = digits().described()["metric"]
    found = [
        Claim(
            "the list of accuracies over random splits, parallel/sequential",
            "a list of the same kind",
            f"{listed}; medians {median(best(two[s]) for s in both):.3f}/{median(best(one[s]) for s in both):.3f}",
            _level(median(best(two[s]) - best(one[s]) for s in both), 0.01),
        )
    ]
    for name, described in ((digits().name, "digits"), (mnist().name, "MNIST")):
        here = [r for r in own if r.workload == name and r.header["world"] == "Local"]
        pairs = [(a, b) for a in here for b in here if a.workers == 1 and b.workers == 2 and a.seed == b.seed]
        for axis, words in (("seconds", "equal time"), ("samples", "equal samples")):
            gains = []
            for alone, together in pairs:
                until = min(last(alone, axis), last(together, axis))
                gains.append(at(together, axis, until, metric) - at(alone, axis, until, metric))
            gain = median(gains)
            found.append(
                Claim(
                    f"{described}: two workers are further than one at {words}",
                    "parallel at least as good as sequential",
                    f"{100 * gain:+.2f} points of accuracy, median of {len(gains)} pairs",
                    _level(gain, 0.005),
                    "an average of two networks has taken half of the steps" if axis == "samples" and gain < 0.005 else "",
                )
            )
    virtual = {r.workers: last(r, "seconds") for r in own if r.workload == mnist().name and r.virtual and r.workers}
    if 1 in virtual and len(virtual) > 1:
        listed = ", ".join(f"{w}: {s:.2f} s" for w, s in sorted(virtual.items()))
        found.append(
            Claim(
                "time falls with the number of mappers",
                "a falling curve",
                f"virtual seconds of {mnist().budget.epochs:g} passes, {listed}",
                "shown" if virtual[max(virtual)] < 0.5 * virtual[1] else "not shown",
                "on Hadoop each round is a job; here it is an all-reduce",
            )
        )
    return found


def _level(gain: float, tolerance: float) -> Any:
    return "no difference shown" if abs(gain) <= tolerance else judged(gain > 0, gain)
