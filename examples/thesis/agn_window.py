"""Hermans 2017, chapter 3: for AGN a window of about (workers + layers) / 2 serves best.

A shorter window sums up too many mean steps between two pulls of a worker, a longer one wastes local work, as only the mean
step of a window counts. What is compared is the area under the accuracy over virtual seconds, the thesis's temporal
efficiency: how much was known how early.

    python examples/thesis/agn_window.py
"""

import numpy as np

import firesteel
from firesteel import AGN, SGD, Cluster, Compute, Draw, Network, Simulated

WINDOWS = (1, 2, 4, 6, 9, 12, 18, 30)
SECONDS, LAYERS = 0.4, 3


def area(workers: int, window: int) -> float:
    """Mean accuracy over the first 0.4 virtual seconds."""
    compute = Compute(row_seconds=1e-4, jitter=Draw("uniform", 1.0, 0.3))
    run = firesteel.train(
        lambda: firesteel.models.MLP(64, 128, 64, 10),
        firesteel.datasets.digits(),
        strategy=AGN(window=window),
        on=Simulated(Cluster(workers, compute, Network(latency_seconds=2e-4, bandwidth=2e8))),
        optimizer=SGD(lr=0.1),
        batch_size=4,
        max_seconds=SECONDS,
        checkpoint_steps=10,
        progress="none",
    )
    seconds = np.array([0.0, *run.history["seconds"].to_pylist(), SECONDS])
    accuracy = run.history["validation_accuracy"].to_pylist()
    accuracy = np.array([0.0, *accuracy, accuracy[-1]])
    within = seconds <= SECONDS
    return float(np.trapezoid(accuracy[within], seconds[within]) / SECONDS)


print("Claim: the best window of AGN is about (N + layers) / 2.")
verdicts = []
for workers in (6, 20):
    areas = {window: area(workers, window) for window in WINDOWS}
    rule, best = (workers + LAYERS) / 2, max(areas, key=lambda w: areas[w])
    nearest = min(WINDOWS, key=lambda w: abs(w - rule))
    print(f"  N = {workers}: " + ", ".join(f"{w}: {a:.3f}" for w, a in areas.items()))
    verdicts.append(areas[nearest] > areas[best] - 0.02)
    print(f"  N = {workers}: best at {best}, the rule says {rule:g}; there it loses {areas[best] - areas[nearest]:.3f}.")
print(f"Verdict: {'holds' if all(verdicts) else 'does not hold'}: the rule's window is within 0.02 of the best at each N.")
