"""Hermans 2017, chapter 4: with 30 workers and a window of 10 AGN diverges early; ADAG on AGN does not.

The window is far below (workers + layers) / 2, so that AGN's mean steps of thirty workers, though each is short, add up to
more than the center's place allows. ADAG damps, coordinate by coordinate, what was computed from a center that has moved.

    python examples/thesis/adag_removes_early_divergence.py
"""

import firesteel
from firesteel import ADAG, AGN, SGD, Cluster, Compute, Draw, Simulated


def losses(strategy) -> list[float]:
    """The training loss at publish points."""
    run = firesteel.train(
        lambda: firesteel.models.MLP(64, 128, 64, 10),
        firesteel.datasets.digits(),
        strategy=strategy,
        on=Simulated(Cluster(30, Compute(row_seconds=1e-4, jitter=Draw("uniform", 1.0, 0.3)))),
        optimizer=SGD(lr=0.3),
        batch_size=4,
        epochs=30,
        checkpoint_steps=20,
        progress="none",
    )
    found = run.history["train_loss"].to_pylist()
    print(f"  {type(strategy).__name__:5} training loss: {' '.join(f'{x:.2f}' for x in found)}")
    return found


print("Claim: at N = 30 and a window of 10, AGN's loss rises early on and ADAG's does not.")
plain, damped = losses(AGN(window=10)), losses(ADAG(window=10, normalise=True))
early = len(plain) // 2
holds = max(plain[1:early]) > 1.2 * min(plain[:early]) and min(plain) > 1.0 and damped[-1] < 0.5
print(
    f"Verdict: {'holds' if holds else 'does not hold'}: from its early best of {min(plain[:early]):.2f} AGN rises to "
    f"{max(plain[1:early]):.2f} and ends at {plain[-1]:.2f}; ADAG ends at {damped[-1]:.2f}."
)
