"""Digits in a minute: five methods, one to sixteen workers.

Handwritten digits (1,433 rows) and a small network, on this machine and on simulated clusters: a first look at what the
bench does. Nothing is claimed; the rows are too few for that.
"""

from __future__ import annotations

from firesteel import AEASGD, Cluster, Compute, Downpour, DynSGD, Local, ModelAveraging, Network, Simulated, Single, SyncSGD
from firesteel.bench.trial import Trial
from firesteel.bench.workload import workload


def matrix(seeds: int = 3) -> list[Trial]:
    digits = workload("digits-mlp")
    trials = [Trial(digits, Single(), Local(1, threads=1), seed) for seed in range(seeds)]
    for strategy in (SyncSGD(), ModelAveraging(period=4), DynSGD(), AEASGD(window=8)):
        trials += [Trial(digits, strategy, Local(2, threads=1), seed) for seed in range(seeds)]
    for workers in (1, 2, 4, 8):
        on = Simulated(cluster(workers))
        trials += [Trial(digits, strategy, on, epochs=10) for strategy in (SyncSGD(), ModelAveraging(period=4))]
    for workers in (2, 8, 16):
        on = Simulated(cluster(workers))
        trials += [Trial(digits, Downpour(window), on, epochs=10) for window in (1, 5, 20)]
        trials += [Trial(digits, DynSGD(window), on, epochs=10) for window in (1, 5, 20)]
    return trials


def cluster(workers: int) -> Cluster:
    """Hosts of one worker each behind 1 Gbit/s; 20 microseconds a row."""
    return Cluster(workers, Compute(row_seconds=2e-5, step_seconds=2e-4), Network(latency_seconds=1e-4, bandwidth=125e6))
