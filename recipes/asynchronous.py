"""Workers that do not wait: six methods over workers and windows, the equilibrium of elastic averaging, implicit momentum.

Hermans 2017 (CERN-THESIS-2017-103) trains MNIST with Downpour, AEASGD, EAMSGD, DynSGD, AGN and ADAG on 10 to 40 workers
with 10 to 40 local steps between two pushes. Here the workers are simulated at those numbers, and real at 2 and 4. The
network is smaller (784-100-10, 20,000 rows, 10 epochs over the workers) so that two cores compute the whole grid in
minutes: what is compared are methods under the same staleness, not the thesis's seconds. Elastic averaging's two pulls are
told by a run on 4 workers; implicit momentum (Mitliagkas et al. 2016) by one worker with momentum 1 - 1/N beside N that do
not wait.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
from common import best, judged, last, median, named, ran
from methods import WatchedEASGD

from firesteel import (
    ADAG,
    AEASGD,
    AGN,
    EAMSGD,
    SGD,
    Cluster,
    Compute,
    Downpour,
    Draw,
    DynSGD,
    Local,
    ModelAveraging,
    Network,
    Simulated,
    Single,
    SyncSGD,
)
from firesteel.bench import score
from firesteel.bench.claims import Claim
from firesteel.bench.results import Result
from firesteel.bench.trial import Trial
from firesteel.bench.workload import Budget, Workload, workload
from firesteel.models import MLP

PUBLISHED = {"hermans-2017": {}, "dist-keras": {}}
COUNTS, WINDOWS = (10, 20, 40), (10, 20, 30, 40)
RATE = 0.05
METHODS = {"Downpour": Downpour, "AEASGD": AEASGD, "EAMSGD": EAMSGD, "DynSGD": DynSGD, "AGN": AGN, "ADAG": ADAG}
MOMENTA = (2, 4, 8, 16)


def matrix(seeds: int = 3) -> list[Trial]:
    trials = []
    for workers, window in itertools.product(COUNTS, WINDOWS):
        on = Simulated(cluster(workers))
        trials += [Trial(grid(), method(window=window), on, 0, optimizer(name)) for name, method in METHODS.items()]
    trials += [Trial(grid(), Downpour(1), Simulated(cluster(workers)), 0, optimizer("Downpour")) for workers in COUNTS]
    for workers in (2, 4):
        on = Local(workers, threads=1)
        for seed in range(seeds):
            trials += [Trial(grid(), method(window=10), on, seed, optimizer(name)) for name, method in METHODS.items()]
            trials.append(Trial(grid(), SyncSGD(), on, seed, optimizer("SyncSGD")))
    springs = (WatchedEASGD(period=8), WatchedEASGD(period=8, alpha=0.05), SyncSGD(), ModelAveraging(period=8))
    trials += [Trial(elastic(), s, Simulated(cluster(4)), seed) for s in springs for seed in range(seeds)]
    for workers in MOMENTA:
        slow = Simulated(uneven(workers))
        twin, plain = SGD(lr=RATE / workers, momentum=1 - 1 / workers), SGD(lr=RATE / workers)
        for seed in range(seeds):
            trials.append(Trial(convex(), Downpour(1), slow, seed, SGD(lr=RATE)))
            trials.append(Trial(convex(), Single(), Simulated(uneven(1)), seed, twin, note=f"momentum 1 - 1/{workers}"))
            trials.append(Trial(convex(), Single(), Simulated(uneven(1)), seed, plain, note=f"rate / {workers}"))
    return trials


def optimizer(name: str) -> SGD:
    """EAMSGD's own momentum of 0.9 makes its steps ten times as long, so its rate is a tenth."""
    return SGD(lr=RATE / 10) if name == "EAMSGD" else SGD(lr=RATE)


def grid() -> Workload:
    return replace(
        workload("mnist-mlp"),
        name="mnist-mlp 784-100-10, 20,000 rows",
        model=functools.partial(MLP, 784, 100, 10),
        rows=20_000,
        target=0.90,
        budget=Budget(10),
        batch_size=16,
        points_per_epoch=2,
    )


def elastic() -> Workload:
    """Few rows and many epochs, so that there is something to overfit."""
    return replace(
        workload("mnist-mlp"),
        name="mnist-mlp 784-100-10, 2,000 rows",
        model=functools.partial(MLP, 784, 100, 10),
        rows=2_000,
        target=0.90,
        budget=Budget(40),
        optimizer=SGD(lr=0.1),
        batch_size=16,
        points_per_epoch=1,
    )


def convex() -> Workload:
    return replace(
        workload("mnist-mlp"),
        name="mnist-softmax regression, 6,000 rows",
        model=functools.partial(MLP, 784, 10),
        rows=6_000,
        target=0.85,
        budget=Budget(1),
        batch_size=16,
        points_per_epoch=16,
    )


def cluster(workers: int) -> Cluster:
    """Hosts of one worker each behind 10 Gbit/s; 40 microseconds a row, a tenth more or less at every step."""
    jitter = Draw("lognormal", 1.0, 0.1)
    return Cluster(workers, Compute(4e-5, 2e-4, jitter), Network(latency_seconds=5e-5, bandwidth=1.25e9))


def uneven(workers: int) -> Cluster:
    """Steps as long as chance has it (exponentially distributed), which the theory of implicit momentum assumes."""
    return Cluster(workers, Compute(0.0, 1e-2, Draw("exponential", 1.0, 1.0)), Network(latency_seconds=1e-6, bandwidth=1e12))


# ---- claims ----------------------------------------------------------------------------------------------------------


def claims(results: list[Result]) -> list[Claim]:
    own = ran(results)
    full = {
        (r.header["strategy"], r.workers, r.header["settings"]["window"]): r
        for r in own
        if r.workload == grid().name and r.virtual
    }
    return [*_efficiency(full), *_divergence(full), *_robustness(full), *_real(own), *_equilibrium(own), *_momentum(own)]


def _efficiency(full: dict[tuple[str, int | None, int], Result]) -> list[Claim]:
    """E(AGN, AEASGD) over the grid."""
    found = {}
    for workers, window in itertools.product(COUNTS, WINDOWS):
        agn, aeasgd = full.get(("AGN", workers, window)), full.get(("AEASGD", workers, window))
        curves = [score.curve(run, "training_accuracy") for run in (agn, aeasgd) if run is not None]
        if len(curves) == 2 and curves[0] and curves[1]:
            found[workers, window] = score.temporal_efficiency(curves[0], curves[1])
    if not found:
        return []
    low, high = min(found.values()), max(found.values())
    better = sum(e > 1 for e in found.values())
    return [
        Claim(
            "temporal efficiency E(AGN, AEASGD) is near 1 over workers and windows of 10 to 40",
            "0.881 to 1.045",
            f"{low:.3f} to {high:.3f}; above 1 in {better} of {len(found)} cells",
            "shown" if low > 0.8 and high < 1.25 else "not shown",
            ""
            if low > 0.8 and high < 1.25
            else "a run here is some hundred steps a worker, where methods differ most at the start",
        )
    ]


def _divergence(full: dict[tuple[str, int | None, int], Result]) -> list[Claim]:
    ones = {n: full[("Downpour", n, 1)] for n in COUNTS if ("Downpour", n, 1) in full}
    wide = {n: full[("Downpour", n, 40)] for n in COUNTS if ("Downpour", n, 40) in full}
    damped = {n: full[("AGN", n, 40)] for n in COUNTS if ("AGN", n, 40) in full}
    if not {10, 20} <= ones.keys() or not wide or not damped:
        return []
    told = lambda runs: ", ".join(f"{n}: {_ended(r)}" for n, r in runs.items())  # noqa: E731
    return [
        Claim(
            "Downpour with a push at every step converges at 10 workers and diverges at 20",
            "converges at 10, 11 % at 20 (window 1, Adam, a network of 5 M parameters)",
            f"window 1, by workers: {told(ones)}",
            "shown" if _learnt(ones[10]) and not _learnt(ones[20]) else "not shown",
            "the limit is one of rate, curvature and staleness: here, with SGD and a smaller network, it is passed at 40",
        ),
        Claim(
            "a window of 40: pushes that are added up as they are (Downpour) diverge, divided by their steps (AGN) they do not",
            "Downpour fails where AGN learns",
            f"Downpour {told(wide)}; AGN {told(damped)}",
            "shown" if not all(map(_learnt, wide.values())) and all(map(_learnt, damped.values())) else "not shown",
        ),
    ]


def _learnt(result: Result) -> bool:
    return result.ended_well and last(result, "validation_accuracy") > 0.7


def _ended(result: Result) -> str:
    return f"{100 * last(result, 'validation_accuracy'):.1f} %" if result.ended_well else result.status


NOT_ROBUST = {
    "Downpour": "pushes of ten and more steps from ten and more workers add up to steps that are too long",
    "AGN": "its worst cell is 40 workers with a window of 10, far below its rule of (workers + layers) / 2",
    "ADAG": "its damping has a scale, gamma, which is left at its default here while windows grow fourfold",
}


def _robustness(full: dict[tuple[str, int | None, int], Result]) -> list[Claim]:
    found = []
    for name in METHODS:
        cells = [r for (method, _, window), r in full.items() if method == name and window > 1]
        values = [last(r, "validation_accuracy") if r.ended_well else 0.1 for r in cells]
        if values:
            spread, middle = max(values) - min(values), median(values)
            found.append(
                Claim(
                    f"{name} is robust: it learns whatever the workers and the window",
                    "AGN and AEASGD are, Downpour is not",
                    f"{100 * min(values):.1f} to {100 * max(values):.1f} %, median {100 * middle:.1f} %",
                    judged(robust := spread < 0.1 and middle > 0.7, *values),
                    "" if robust else NOT_ROBUST.get(name, ""),
                )
            )
    return found


def _real(own: list[Result]) -> list[Claim]:
    found = []
    for workers in (2, 4):
        here = [r for r in own if r.workload == grid().name and r.header["world"] == "Local" and r.workers == workers]
        if not here:
            continue
        sync = median(map(best, named(here, "SyncSGD")))
        scores = {name: median(map(best, named(here, name))) for name in METHODS}
        far = {name: value for name, value in scores.items() if not value >= sync - 0.02}
        found.append(
            Claim(
                f"on {workers} real workers, window 10, all six learn what an all-reduce learns",
                "98.1 to 98.5 % after 40 epochs of a larger network",
                f"all-reduce {100 * sync:.1f} %; " + ", ".join(f"{name} {100 * v:.1f} %" for name, v in scores.items()),
                judged(not far, sync, *scores.values()),
                f"further than two points behind: {', '.join(far)}" if far else "",
            )
        )
    return found


def _equilibrium(own: list[Result]) -> list[Claim]:
    here = [r for r in own if r.workload == elastic().name and r.points]
    watched, sync, mean = named(here, "WatchedEASGD"), named(here, "SyncSGD"), named(here, "ModelAveraging")
    if not (watched and sync and mean):
        return []
    found = []
    for method in dict.fromkeys(r.method for r in watched):
        mine = [r for r in watched if r.method == method]
        ratios = [s / d for r in mine for s, d in zip(r.column("spring")[-10:], r.column("drive")[-10:], strict=True) if d]
        ratio = median(ratios)
        found.append(
            Claim(
                f"{method.removeprefix('Watched')}: spring and gradient come to an equilibrium, within a factor of two",
                "they do, and it slows convergence",
                f"|spring| is {ratio:.2f} times a step's |rate x gradient| over the last ten points",
                judged(0.5 < ratio < 2, ratio),
                "of the same size; the spring acts once in a period of eight steps, the gradient at each of them",
            )
        )
    reached = lambda runs: median(_epochs_to(r, 0.88) for r in runs)  # noqa: E731
    elastic_, averaged, all_ = reached(watched), reached(mean), reached(sync)
    found.append(
        Claim(
            "elastic averaging converges more slowly than averaging",
            "the equilibrium hampers convergence",
            f"epochs to 88 %: elastic {elastic_:.1f}, averaging {averaged:.1f}, all-reduce {all_:.1f} (medians)",
            "shown" if elastic_ > 1.1 * averaged else "no difference shown" if elastic_ > 0.9 * averaged else "not shown",
        )
    )
    gap = lambda runs: median(last(r, "training_accuracy") - last(r, "validation_accuracy") for r in runs)  # noqa: E731
    found.append(
        Claim(
            "elastic averaging keeps from overfitting",
            "an open question of the thesis",
            f"training less test accuracy after 40 epochs of 2,000 rows: elastic {100 * gap(watched):.1f}, averaging "
            f"{100 * gap(mean):.1f}, all-reduce {100 * gap(sync):.1f} points",
            "no difference shown"
            if abs(gap(watched) - gap(sync)) < 0.01
            else judged(gap(watched) < gap(sync), gap(watched), gap(sync)),
        )
    )
    return found


def _epochs_to(result: Result, target: float) -> float:
    pairs = zip(result.column("epoch"), result.column("validation_accuracy"), strict=True)
    return next((epoch for epoch, value in pairs if value >= target), float("inf"))


def _momentum(own: list[Result]) -> list[Claim]:
    """How far the training loss of workers that do not wait is from one worker's with momentum, and with the rate alone."""
    here = [r for r in own if r.workload == convex().name and r.points]
    found = []
    for workers in MOMENTA:
        stale = [r for r in here if r.header["strategy"] == "Downpour" and r.workers == workers]
        twin = [r for r in here if r.method.endswith(f"1 - 1/{workers}")]
        plain = [r for r in here if r.method.endswith(f"rate / {workers}")]
        if stale and twin and plain:
            near, far = _distance(stale, twin), _distance(stale, plain)
            found.append(
                Claim(
                    f"{workers} workers that do not wait are one with momentum 1 - 1/{workers}",
                    "exact in expectation, for exponential step times",
                    f"mean distance of training loss {near:.3f} nats to the one with momentum, {far:.3f} to the rate alone",
                    "shown" if near < 0.5 * far else "not shown",
                )
            )
    return found


def _distance(a: list[Result], b: list[Result]) -> float:
    """Mean absolute difference of two median curves of training loss, at the samples of the first one's points."""
    at = np.asarray(a[0].column("samples"))
    at = at[at <= min(r.column("samples")[-1] for r in (*a, *b))]
    first, other = (
        np.median([np.interp(at, r.column("samples"), r.column("training_loss")) for r in runs], axis=0) for runs in (a, b)
    )
    return float(np.abs(first - other).mean())
