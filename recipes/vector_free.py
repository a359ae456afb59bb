"""The vector-free heuristic, on and off: L-BFGS, Adam and AdaGrad on an MLP, VGG-16 and an LSTM.

Chen, Wang and Zhou 2014 keep L-BFGS's history in shares and compute with dot products alone; Khamitov and Popova 2018 carry the
idea to Adam and AdaGrad and train three networks on several platforms. *On*: VectorFreeLBFGS, and the basis form of
VectorFreeAdam and VectorFreeAdaGrad, whose second moment is one number a layer. *Off*: L-BFGS with its history on one worker,
and the plain optimizers with an all-reduce of gradients. Each workload has fewer rows than the experiments had, so that two
cores train it in seconds; GPU runs can be imported beside these (`firesteel bench import`).
"""

from __future__ import annotations

from dataclasses import replace

from common import best, judged, median, named, ran, seconds_per_epoch, times
from methods import CentralLBFGS

from firesteel import (
    Adagrad,
    Adam,
    Cluster,
    Compute,
    Local,
    Network,
    Simulated,
    Spark,
    SyncSGD,
    VectorFreeAdaGrad,
    VectorFreeAdam,
    VectorFreeLBFGS,
)
from firesteel.bench.claims import Claim
from firesteel.bench.results import Result
from firesteel.bench.trial import Heuristic, Trial
from firesteel.bench.workload import Budget, Workload, workload

PUBLISHED = {"chen-2014": {}}
RATES = {"mnist-mlp": 1e-3, "cifar10-vgg16": 5e-4, "mnist-lstm": 3e-3}


def matrix(seeds: int = 3) -> list[Trial]:
    trials = []
    for each in workloads():
        worlds = [(Local(2, threads=1), seeds), (Spark(2), 1), (Simulated(cluster(8)), 1)]
        for on, count in worlds:
            for seed in range(count):
                trials += pairs(each, on, seed)
    return trials


def workloads() -> list[Workload]:
    mlp, vgg, lstm = workload("mnist-mlp"), workload("cifar10-vgg16"), workload("mnist-lstm")
    return [
        replace(mlp, name="mnist-mlp, 6,000 rows", rows=6_000, target=0.93, budget=Budget(10), points_per_epoch=1),
        replace(vgg, name="cifar10-vgg16, 300 rows", rows=300, target=0.2, budget=Budget(4), points_per_epoch=1),
        replace(lstm, name="mnist-lstm, 1,000 rows", rows=1_000, target=0.60, budget=Budget(8), points_per_epoch=1),
    ]


def pairs(each: Workload, on: Local | Spark | Simulated, seed: int) -> list[Trial]:
    """Each method with the heuristic and without, as many passes over the rows as the budget has (L-BFGS: iterations)."""
    iterations = 2 * each.budget.epochs
    rate = RATES[each.name.partition(",")[0]]
    on_, off = Heuristic("vector-free", True), Heuristic("vector-free", False)
    return [
        Trial(each, VectorFreeLBFGS(), on, seed, heuristic=on_, epochs=iterations),
        Trial(each, CentralLBFGS(), on, seed, heuristic=off, epochs=iterations),
        Trial(each, VectorFreeAdam(form="basis"), on, seed, Adam(lr=rate), heuristic=on_),
        Trial(each, VectorFreeAdam(), on, seed, Adam(lr=rate), heuristic=on_, note="sharded"),
        Trial(each, SyncSGD(), on, seed, Adam(lr=rate), heuristic=off, note="Adam"),
        Trial(each, VectorFreeAdaGrad(form="basis"), on, seed, Adagrad(lr=10 * rate), heuristic=on_),
        Trial(each, SyncSGD(), on, seed, Adagrad(lr=10 * rate), heuristic=off, note="AdaGrad"),
    ]


def cluster(workers: int) -> Cluster:
    """Hosts of one worker each behind 1 Gbit/s; 50 microseconds a row."""
    return Cluster(workers, Compute(row_seconds=5e-5, step_seconds=3e-4), Network(latency_seconds=1e-4, bandwidth=125e6))


def claims(results: list[Result]) -> list[Claim]:
    found = []
    for each in workloads():
        here = [r for r in ran(results) if r.workload == each.name and r.header["world"] == "Local"]
        spread, central = named(here, "VectorFreeLBFGS"), named(here, "CentralLBFGS")
        found.append(_same(each.name, "L-BFGS", spread, central, 0.01))
        plain = [r for r in here if r.method.endswith(", Adam")]
        found.append(_same(each.name, "Adam, sharded", [r for r in here if r.method.endswith("sharded")], plain, 0.01))
        found.append(
            _same(
                each.name,
                "Adam, basis form",
                [r for r in here if 'form="basis"' in r.method.replace("'", '"') and r.header["strategy"] == "VectorFreeAdam"],
                plain,
                0.01,
            )
        )
        grad = [r for r in here if r.method.endswith(", AdaGrad")]
        found.append(_same(each.name, "AdaGrad, basis form", named(here, "VectorFreeAdaGrad"), grad, 0.01))
        a, b = median(map(seconds_per_epoch, spread)), median(map(seconds_per_epoch, central))
        found.append(
            Claim(
                f"{each.name}: below 10 M parameters L-BFGS is faster with its history on one worker",
                "central faster below about 10 M parameters, 16 nodes",
                f"{times(a / b)} as long per iteration with the history shared, 2 workers of one machine",
                "no difference shown" if 0.95 * b < a < 1.05 * b else judged(a > b, a, b),
                "where an iteration is passes over the rows, sums over a history of ten pairs hardly count",
            )
        )
    return found


def _same(name: str, method: str, on: list[Result], off: list[Result], tolerance: float) -> Claim:
    a, b = median(map(best, on)), median(map(best, off))
    return Claim(
        f"{name}: {method} learns as well with the heuristic as without",
        "as good",
        f"best accuracy {a:.4f} with, {b:.4f} without (medians of {len(on)} and {len(off)} seeds)",
        judged(a >= b - tolerance, a, b),
        "" if a >= b - tolerance else "one second moment for a layer is not one for each weight" if "basis" in method else "",
    )
