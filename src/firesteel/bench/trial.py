"""A trial: one training of a workload by one strategy in one world from one seed; and what is kept of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from firesteel.bench.environment import environment
from firesteel.bench.results import FORMAT, Result
from firesteel.bench.workload import Workload
from firesteel.datasets import Dataset
from firesteel.errors import Diverged, FiresteelError, UsageError
from firesteel.local.world import Local
from firesteel.net.protocol import Strategy, full_batch, has_server, own_steps
from firesteel.optim import OptimizerSettings, Schedule
from firesteel.outcome import brief
from firesteel.plots import strips
from firesteel.run import Run
from firesteel.sim.world import Simulated
from firesteel.spark.world import Spark

DRAWN_WORKERS, DRAWN_STEPS = 8, 20
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@final
@dataclass(frozen=True)
class Heuristic:
    """Something that is on in one trial and off in its twin: "vector-free", "compression", "bf16"."""

    name: str
    on: bool


@final
@dataclass(frozen=True)
class Trial:
    """One training.

    >>> from firesteel.bench.workload import WORKLOADS
    >>> from firesteel import Local, ModelAveraging
    >>> Trial(WORKLOADS["digits-mlp"], ModelAveraging(period=4), Local(workers=2)).method
    'ModelAveraging(period=4)'
    """

    workload: Workload
    strategy: Strategy
    on: Local | Spark | Simulated
    seed: int = 0
    optimizer: OptimizerSettings | None = None
    """None: the workload's; of strategies that step by their own rule: none."""
    heuristic: Heuristic | None = None
    batch_size: int | None = None
    """None: the workload's; of strategies whose steps see all rows: none."""
    epochs: float | None = None
    """None: the workload's budget."""
    schedule: Schedule | None = None
    note: str = ""
    """What tells it from others where its settings do not, >= 0 words; part of its name in tables."""
    score_training: float | None = 0.1
    """Share of the training rows on which models are evaluated as well, for temporal efficiency; None: not at all."""

    def __post_init__(self) -> None:
        if not isinstance(self.workload, Workload):
            raise UsageError(f"a trial's workload is a Workload, not {self.workload!r}; `firesteel.bench.workload(name)`.")
        if not isinstance(self.on, Local | Spark | Simulated):
            raise UsageError(f"a trial's world is Local(...), Spark(...) or Simulated(cluster), not {self.on!r}.")
        if isinstance(self.strategy, type) or not hasattr(self.strategy, "run"):
            raise UsageError(f"a trial's strategy is an instance such as SyncSGD(), not {self.strategy!r}.")

    @property
    def _batch_size(self) -> int | None:
        own = self.workload.batch_size if self.batch_size is None else self.batch_size
        return None if full_batch(self.strategy) else own

    @property
    def _epochs(self) -> float:
        return self.workload.budget.epochs if self.epochs is None else self.epochs

    @property
    def method(self) -> str:
        """The strategy as tables show it: only settings that are not the default."""
        return brief(self.strategy).removesuffix("()") + (f", {self.note}" if self.note else "")

    @property
    def id(self) -> str:
        """The name of its file: readable, and another one for other settings."""
        settings = {name: value for name, value in self._header().items() if name != "environment"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode()).hexdigest()[:10]
        name = f"{self.workload.name}.{type(self.strategy).__name__}.{type(self.on).__name__}-{self.on.workers}.{self.seed}"
        return f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)}.{digest}"

    def header(self) -> dict[str, Any]:
        """The first line of its result's file."""
        return {**self._header(), "id": self.id, "environment": environment()}

    def _header(self) -> dict[str, Any]:
        strategy: Any = self.strategy
        described = {f.name: getattr(strategy, f.name) for f in dataclasses.fields(strategy)}
        settings = {n: v if isinstance(v, int | float | str | None) else brief(v) for n, v in described.items()}
        return {
            "kind": "trial",
            "format": FORMAT,
            "workload": self.workload.described(),
            "method": self.method,
            "strategy": type(strategy).__name__,
            "settings": settings,
            "optimizer": None if own_steps(strategy) else brief(self.optimizer or self.workload.optimizer),
            "schedule": None if self.schedule is None else repr(self.schedule),
            "heuristic": None if self.heuristic is None else dataclasses.asdict(self.heuristic),
            "world": type(self.on).__name__,
            "virtual": isinstance(self.on, Simulated),
            "on": brief(self.on, depth=9),
            "workers": self.on.workers,
            "batch_size": self._batch_size,
            "seed": self.seed,
            "limits": {"epochs": self._epochs, "max_seconds": self.workload.budget.max_seconds},
            "score_training": self.score_training,
            "source": None,
        }


def perform(trial: Trial, data: Callable[[], Dataset], session: Callable[[], Any] | None = None) -> Result:
    """Train, and keep what scores need. An error is a result too, whatever raised it: the other trials go on.

    Args:
        data: gives the rows of the trial's workload.
        session: gives the Spark session, for a trial in the world `Spark`.

    Raises:
        Interrupted: Ctrl-C; nothing is kept of the trial.
    """
    header = trial.header()
    try:
        run = _train(trial, data(), session() if session is not None else None)
        return Result(
            header["id"],
            header,
            tuple(run.history.to_pylist()),
            run.status,
            timing=run.timing,
            staleness=_staleness(run) if has_server(trial.strategy) else None,
            strips=_drawn(run),
        )
    except Diverged as error:
        return _ended(header, error, "diverged")
    except Exception as error:
        return _ended(header, error, "failed")


def _train(trial: Trial, data: Dataset, session: Any) -> Run:
    from firesteel.train import train

    workload, strategy, on = trial.workload, trial.strategy, trial.on
    x, y = (part[: workload.rows] for part in data.train)
    rows, held = (x, y), data.test
    if isinstance(on, Spark):
        both = Dataset(data.name, (x, y), data.test, data.classes)
        rows, held = both.frame(session)
        on = dataclasses.replace(on, session=session)
    batch_size = trial._batch_size
    epoch_steps = 1 if batch_size is None else math.ceil(math.ceil(len(x) / on.workers) / batch_size)
    return train(
        workload.model,
        rows,
        features=data.features,
        loss=workload.loss,
        optimizer=None if own_steps(strategy) else trial.optimizer or workload.optimizer,
        schedule=trial.schedule,
        strategy=strategy,
        on=on,
        batch_size=batch_size,
        epochs=trial._epochs,
        max_seconds=workload.budget.max_seconds,
        validation=held,
        metrics=None if workload.metric == "loss" else (workload.metric,),
        score_training=trial.score_training,
        checkpoint_steps=max(1, round(epoch_steps / workload.points_per_epoch)),
        seed=trial.seed,
        progress="none",
    )


def _ended(header: dict[str, Any], error: Exception, status: str) -> Result:
    run: Run | None = getattr(error, "run", None)
    points = tuple(run.history.to_pylist()) if run is not None else ()
    where = "" if isinstance(error, FiresteelError) else f" ({type(error).__module__})"
    return Result(header["id"], header, points, status, {"type": f"{type(error).__name__}{where}", "message": str(error)})


def _staleness(run: Run) -> dict[str, Any]:
    table = run.staleness()
    steps = np.bincount(np.asarray(table["staleness"].to_numpy(), np.int64))
    distance = table["distance"].to_numpy()
    known = distance[np.isfinite(distance)]
    return {
        "steps": {str(tau): int(count) for tau, count in enumerate(steps) if count},
        "distance": np.quantile(known, QUANTILES).tolist() if len(known) else None,
    }


def _drawn(run: Run) -> tuple[dict[str, Any], ...]:
    """When the first workers computed and waited in the steps that follow the first one, which warms up."""
    events: dict[int, list[dict[str, Any]]] = {}
    trace = run.trace.select(["rank", "kind", "seconds", "step", "waited_seconds"])
    first = trace.filter((np.asarray(trace["rank"]) < DRAWN_WORKERS) & (np.asarray(trace["step"]) <= DRAWN_STEPS + 1))
    for event in first.to_pylist():
        events.setdefault(event["rank"], []).append(event)
    drawn = []
    for rank in sorted(events):
        computing, waiting = strips(events[rank])
        drawn.append({"rank": rank, "computing": _short(computing), "waiting": _short(waiting)})
    return tuple(drawn)


def _short(found: list[tuple[float, float]]) -> list[list[float]]:
    """As many digits as a picture shows."""
    return [[float(f"{begin:.6g}"), float(f"{seconds:.3g}")] for begin, seconds in found]
