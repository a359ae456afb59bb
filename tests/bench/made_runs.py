"""Results of runs that nobody ran, with curves that can be integrated by hand."""

from __future__ import annotations

from typing import Any

from firesteel.bench.results import Result

Points = list[tuple[float | None, float | None]]


def run(method: str, curve: Points = (), seed: int | None = 0, status: str = "finished", **more: Any) -> Result:  # type: ignore[assignment]
    """A trial with points of (seconds, metric): 100 samples, 10 steps, 1 MB and half an epoch a second.

    `error`, `staleness` and `points` (with points' own names) go where a result has them, everything else into the header.
    """
    metric = (workload := {"name": "digits", "metric": "validation_accuracy", "target": 0.9, **more.pop("workload", {})})[
        "metric"
    ]
    points = more.pop("points", None) or [
        {"seconds": s, metric: y}
        | ({"samples": 100 * s, "step": 10 * s, "bytes_sent": 1e6 * s, "epoch": s / 2} if s is not None else {})
        for s, y in curve
    ]
    error, staleness = more.pop("error", None), more.pop("staleness", None)
    header = {
        **{"kind": "trial", "format": 1, "id": f"{method}-{seed}", "method": method, "strategy": method.split("(")[0]},
        **{"workload": workload, "seed": seed, "world": "Local", "workers": 2, "optimizer": "SGD(lr=0.1)", "batch_size": 32},
        **more,
    }
    return Result(header["id"], header, tuple(points), status, error, {}, staleness)


def external(method: str, value: float | None, seconds: float | None = None, **more: Any) -> Result:
    """One final number of somebody else."""
    header = {"world": None, "workers": None, "optimizer": None, "batch_size": None, "source": "a paper", **more}
    return run(method, points=[{"validation_accuracy": value, "seconds": seconds}], seed=None, kind="external", **header)


def seeds(method: str, reached: list[float | None], **more: Any) -> list[Result]:
    """A run for each, that reaches the target after so many seconds; None: it comes to 0.8 in 10 seconds."""
    return [
        run(method, [(1.0, 0.5), (10.0, 0.8) if at is None else (at, 0.95)], seed, **more) for seed, at in enumerate(reached)
    ]
