"""Strategies that do not train together: one worker alone, or several models side by side. The baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from firesteel.net.protocol import Net, Vec
from firesteel.worker import Worker


@final
@dataclass(frozen=True)
class Single:
    """Plain training on one worker: bit for bit the bare PyTorch loop."""

    async def run(self, worker: Worker, net: Net) -> Vec:
        for _, batch in worker.steps():
            worker.step(worker.gradient(batch))
            net.publish(worker.params)
        return worker.params


@final
@dataclass(frozen=True)
class Ensemble:
    r"""One model per worker, trained on its own rows and never averaged.

    The run's model averages what its members say: \( p(y|x) = \frac1N \sum_k p_k(y|x) \) for cross entropy, the mean
    output otherwise. All members start from the same parameters, so what differs is their data and their order.
    """

    async def run(self, worker: Worker, net: Net) -> Vec:
        for step, batch in worker.steps():
            worker.step(worker.gradient(batch))
            if step % worker.plan.epoch_steps == 0:
                net.publish(await net.all_gather(worker.params[None]))  # [N, P]
        return await net.all_gather(worker.params[None])  # [N, P]
