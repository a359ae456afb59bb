"""Results of trials that never ran: a closed form, so that tables, pictures and pages have something true to say."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

from firesteel.bench.results import EXTERNAL, TRIALS, Result, write

MNIST = {
    "name": "MNIST, MLP",
    "metric": "validation_accuracy",
    "target": 0.95,
    "model": "MLP(784, 256, 10)",
    "data": "MNIST 60,000",
}
DIGITS = {"name": "digits, LeNet", "metric": "validation_accuracy", "target": 0.9, "model": "LeNet()", "data": "digits 1,797"}
METHODS = {  # how fast it learns, what it reaches, what it loses by every worker more
    "SyncSGD()": (1.0, 0.972, 0.02),
    "Downpour(window=5)": (1.3, 0.962, 0.10),
    "AGN(window=12)": (1.2, 0.975, 0.04),
    "DynSGD(window=5)": (1.25, 0.973, 0.03),
    "AEASGD(window=32)": (0.7, 0.958, 0.03),
    "ADAG(window=5)": (1.1, 0.97, 0.05),
}
ENVIRONMENT = {
    "git": "0123abc", "firesteel": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "cpu": "Some CPU @ 2.1 GHz",
    "cores": 4, "memory_bytes": 16 << 30, "started": "2026-01-02T03:04:05Z",
}  # fmt: skip


def trial(workload, method, workers, seed, *, virtual=False, speed=None, status="finished", error=None, points=24) -> Result:
    """One run of a method of METHODS, or of any other name."""
    said = re.search(r"window=(\d+)", method)
    window = int(said[1]) if said else None
    wide = window or 0
    rate, reached, loss = METHODS.get(method) or (1.25 - wide / 100, 0.976 - wide / 4000, 0.02 + 0.0016 * wide)
    rate *= speed or 1.0
    dice = random.Random(f"{workload['name']}{method}{workers}{seed}{virtual}{speed}")
    reached -= loss * (workers - 1) / 16
    header = {
        "kind": "trial", "format": 1, "id": f"{workload['name'][:2]}-{method}-{workers}-{seed}-{'v' if virtual else 'w'}",
        "workload": workload, "method": method, "strategy": method.partition("(")[0],
        "settings": {} if window is None else {"window": window}, "optimizer": "Adam(lr=0.001)", "heuristic": None,
        "world": "Simulated" if virtual else "Local", "virtual": virtual, "workers": workers, "batch_size": 64, "seed": seed,
        "on": f"Simulated(Cluster(workers={workers}))" if virtual else f"Local(workers={workers})", "limits": {"epochs": 8},
        "source": None, "environment": ENVIRONMENT,
    }  # fmt: skip
    seconds, found = 0.0, list[dict]()
    bytes_each = 810_000 * (workers if window is None else max(1, workers // 2))
    for number in range(1, points + 1):
        seconds += 3.0 / (workers**0.8 * rate) + dice.uniform(0, 0.12)
        gone = 1 - math.exp(-0.28 * number * rate**0.5)
        accuracy = min(1.0, max(0.1, 0.1 + (reached - 0.1) * gone + dice.gauss(0, 0.006)))
        found.append({
            "seconds": seconds, "epoch": number / 3, "step": 100 * number, "samples": 6400 * workers * number,
            "bytes_sent": bytes_each * number * (20 if window is None else 100 // window), "rounds": 20 * number,
            "train_loss": 2.3 * math.exp(-0.3 * number) + 0.12, "validation_loss": 2.3 * (1 - accuracy) + 0.05,
            "validation_accuracy": accuracy, "training_loss": 2.3 * (1.01 - accuracy) + 0.02,
            "training_accuracy": min(1.0, accuracy + 0.008), "waited_seconds": 0.2 * seconds,
        })  # fmt: skip
    stale = None
    if window is not None and workers > 1:
        pushes = [min(3 * workers, max(0, round(dice.gauss(workers - 1, 0.4 * workers)))) for _ in range(200)]
        steps = {str(tau): pushes.count(tau) for tau in sorted(set(pushes))}
        stale = {"steps": steps, "distance": [0.0, 0.01, 0.03, 0.05, 0.08, 0.15, 0.3]}
    strips = tuple(
        {
            "rank": rank,
            "computing": [[0.25 * k + 0.02 * rank, 0.17 + 0.01 * rank] for k in range(8)],
            "waiting": [[0.25 * k + 0.19 + 0.03 * rank, max(0.01, 0.06 - 0.01 * rank)] for k in range(8)],
        }
        for rank in range(workers if workers <= 4 else 4)
    )
    kept = found if status in ("finished", "diverged") else []
    return Result(header["id"], header, tuple(kept), status, error, {"run_seconds": 80.0}, stale, strips if kept else ())


def external(workload, method, seed=None) -> Result:
    """Somebody else's: hourly figures, and no bytes."""
    header = {
        "kind": "external", "format": 1, "id": f"{method}-{seed}", "workload": workload, "method": method, "workers": 4,
        "source": "A. Author, A paper, 2017, figure 3", "environment": {"gpu": "1 x P100"}, "seed": seed, "virtual": False,
    }  # fmt: skip
    points = tuple(
        {"seconds": 4.0 * n, "samples": 9000 * n, "validation_accuracy": 0.98 * (1 - 0.8 * math.exp(-0.35 * n))}
        for n in range(1, 9)
    )
    return Result(header["id"], header, points, "finished")


def folder(place: Path, seeds=3, methods=tuple(METHODS), workers=(1, 2, 4), windows=(5, 40), name: str | None = None) -> Path:
    """Two workloads, one of them also simulated with several windows, one external run, one that failed, one that diverged."""
    made = [trial(MNIST, method, n, seed) for method in methods for n in workers for seed in range(seeds)]
    made += [trial(DIGITS, method, n, seed) for method in methods for n in workers[-2:] for seed in range(seeds)]
    for window in windows:
        made += [trial(DIGITS, f"AGN(window={window})", n, 0, virtual=True) for n in (2, *windows[1:])]
    lost = {"type": "WorkerLost", "message": "worker 1 on host-b was killed (exit 137: memory)."}
    made.append(trial(MNIST, "Downpour(window=1)", 4, 0, status="failed", error=lost))
    nan = {"type": "Diverged", "message": "the loss is NaN at step 1,200."}
    made.append(trial(MNIST, "EAMSGD(window=32)", 4, 0, status="diverged", error=nan))
    if name is not None:
        made.append(trial(MNIST, name, 2, 0))
    for number, result in enumerate(made):
        write(place / TRIALS / f"{number:04d}.jsonl", result)
    write(place / EXTERNAL / "paper" / "0001.jsonl", external(MNIST, "AllReduce on GPU"))
    return place
