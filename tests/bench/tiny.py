"""Very short trials: some digits, a small network, two simulated workers.

What goes wrong on purpose is asked for by name: "raises" on a worker, "dies" with its process.
"""

from __future__ import annotations

import functools
import os
import signal
from dataclasses import dataclass, replace
from typing import final

from firesteel import Cluster, Compute, ModelAveraging, Simulated, SyncSGD
from firesteel.bench.claims import Claim
from firesteel.bench.results import Result
from firesteel.bench.trial import Trial
from firesteel.bench.workload import Budget, Workload, workload
from firesteel.models import MLP


@final
@dataclass(frozen=True)
class Failing:
    """Goes wrong at its second step, as it is told."""

    how: str

    async def run(self, worker, net):
        for step, batch in worker.steps():
            worker.step(worker.gradient(batch))
            if step == 2 and self.how == "raises":
                raise RuntimeError("on purpose")
            if step == 2 and self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
        return worker.params


def tiny() -> Workload:
    model = functools.partial(MLP, 64, 8, 10)
    return replace(workload("digits-mlp"), name="tiny", model=model, rows=96, budget=Budget(2), batch_size=16, target=0.1)


def matrix(trials: int = 6, broken: str = "") -> list[Trial]:
    on = Simulated(Cluster(2, Compute(1e-3)))
    strategies = (SyncSGD(), ModelAveraging(period=2))
    found = [Trial(tiny(), strategies[n % 2], on, n // 2) for n in range(trials)]
    return [*found[:1], *(Trial(tiny(), Failing(how), on) for how in broken.split(",") if how), *found[1:]]


def claims(results: list[Result]) -> list[Claim]:
    return [Claim("trials end", "all of them", f"{len(results)} results", "shown")]
