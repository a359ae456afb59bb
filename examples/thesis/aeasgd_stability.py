"""AEASGD is stable exactly below alpha = 2 / (N + 1) when all workers pull before any of them pushes; near it, it sags.

The gradient is next to nothing here (a rate of 1e-9, in double precision), so that what is left is the spring alone: it
either draws workers and center together or drives them apart. The limit is found by bisection.

    python examples/thesis/aeasgd_stability.py
"""

import warnings

import numpy as np

import firesteel
from firesteel import AEASGD, SGD, Cluster, Compute, Merging, Network, Server, Simulated

warnings.simplefilter("ignore", UserWarning)  # the strategy warns of exactly this limit
TOGETHER = {"network": Network(latency_seconds=1e-3, bandwidth=1e12), "merging": Merging(1e15, 0.0, 1e15)}  # lock step
RNG = np.random.default_rng(0)


def grows(workers: int, alpha: float) -> bool:
    """Whether the distance between workers and center is larger in the end than in the middle of 300 rounds."""
    rows = (RNG.standard_normal((32 * workers, 4)), RNG.standard_normal((32 * workers, 1)))
    run = firesteel.train(
        lambda: firesteel.models.MLP(4, 1).double(),
        rows,
        loss="mse",
        strategy=AEASGD(window=1, alpha=alpha),
        on=Simulated(Cluster(workers, Compute(1e-3), **TOGETHER), Server(record_every=1, max_growth=1e300)),
        optimizer=SGD(lr=1e-9),
        batch_size=1,
        max_steps=300,
        validation=None,
        progress="none",
    )
    distance = np.array(run.staleness()["distance"].to_pylist())
    half = len(distance) // 2
    return float(np.nanmean(distance[-half // 2 :])) > 1.5 * float(np.nanmean(distance[half : half + half // 2]))


def limit(workers: int) -> float:
    low, high = 0.1 / workers, min(1.0, 4 / workers)
    while high - low > 0.01 * low:
        middle = (low + high) / 2
        low, high = (low, middle) if grows(workers, middle) else (middle, high)
    return (low + high) / 2


def accuracy(share: float) -> float:
    """Of ten workers on the digits, alpha at a share of the limit."""
    run = firesteel.train(
        lambda: firesteel.models.MLP(64, 64, 10),
        firesteel.datasets.digits(),
        strategy=AEASGD(window=10, alpha=share * 2 / 11),
        on=Simulated(Cluster(10, Compute(1e-4), **TOGETHER)),
        optimizer=SGD(lr=0.1),
        batch_size=4,
        epochs=10,
        progress="none",
    )
    return run.metrics["validation_accuracy"]


print("Claim: AEASGD in lock step is stable exactly below 2 / (N + 1), and sags near it.")
errors = []
for workers in (2, 4, 10):
    found, rule = limit(workers), 2 / (workers + 1)
    errors.append(abs(found / rule - 1))
    print(f"  N = {workers}: stable below {found:.4f}; 2 / (N + 1) = {rule:.4f}")
scores = {share: accuracy(share) for share in (0.5, 0.95, 1.1)}
print("  accuracy of ten workers at shares of the limit: " + ", ".join(f"{s:g}: {a:.3f}" for s, a in scores.items()))
holds = max(errors) < 0.03 and scores[0.5] > scores[0.95] > scores[1.1]
print(f"Verdict: {'holds' if holds else 'does not hold'}: the limit is met within {max(errors):.1%}.")
