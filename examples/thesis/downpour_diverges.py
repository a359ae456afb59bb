"""Hermans 2017: at 20 workers Downpour diverges, where AGN, DynSGD and AEASGD do not.

Twenty imagined workers, each with its share of the digits, push after every 20 steps. Downpour adds up twenty windows of 20
steps, all computed from about the same center. The same settings with two workers are harmless.

    python examples/thesis/downpour_diverges.py
"""

import firesteel
from firesteel import AEASGD, AGN, SGD, Cluster, Compute, Downpour, Draw, DynSGD, Simulated


def accuracy(strategy, workers: int, epochs: int) -> float:
    """Test accuracy after so many passes of each worker over its rows; 0.1 is chance."""
    run = firesteel.train(
        lambda: firesteel.models.MLP(64, 128, 64, 10),
        firesteel.datasets.digits(),
        strategy=strategy,
        on=Simulated(Cluster(workers, Compute(row_seconds=1e-4, jitter=Draw("uniform", 1.0, 0.3)))),
        optimizer=SGD(lr=0.1),
        batch_size=4,
        epochs=epochs,
        progress="none",
    )
    print(
        f"  {run.settings['title'].split(' on ')[0]:24} {workers:3} workers: accuracy {run.metrics['validation_accuracy']:.3f}"
    )
    return run.metrics["validation_accuracy"]


print("Claim: at N = 20 and a window of 20, Downpour diverges; AGN, DynSGD and AEASGD do not; nor does Downpour at N = 2.")
fails = accuracy(Downpour(window=20), 20, 20)
lives = [accuracy(strategy, 20, 20) for strategy in (AGN(window=20), DynSGD(window=20), AEASGD(window=20))]
lives.append(accuracy(Downpour(window=20), 2, 10))
holds = fails < 0.3 and min(lives) > 0.75
print(f"Verdict: {'holds' if holds else 'does not hold'}: Downpour {fails:.3f}, the least of the others {min(lives):.3f}.")
