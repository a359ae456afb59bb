"""Strategies that average parameters: workers step alone for a while, then meet.

All workers start from one initialisation: the mean of independently drawn networks is not a network. A round is the
`period` local steps between two meetings; its mean is weighted by the rows (or weights) each worker has seen in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch

from firesteel.errors import UsageError
from firesteel.net.protocol import Net, Vec, WireType
from firesteel.worker import Worker

State = Literal["keep", "average", "reset"]


def _in_range(strategy: object, **lowest: float) -> None:
    for name, least in lowest.items():
        value = getattr(strategy, name)
        if value < least:
            raise UsageError(f"{type(strategy).__name__}({name}={value}): {name} must be at least {least}.")


async def _average_moments(worker: Worker, net: Net, weight: float) -> None:
    for moment in worker.moments():
        mean = await net.all_reduce(moment.clone().reshape(-1), weight=weight)
        moment.copy_(mean.view_as(moment))


@final
@dataclass(frozen=True)
class ModelAveraging:
    r"""Local SGD: \(\lambda\) local steps, then \( \theta = \sum_k n_k \theta_k / \sum_k n_k \).

    Su & Chen 2015, arXiv 1507.01239; Stich 2019, "Local SGD converges fast and communicates little". With period 1,
    plain SGD and equal shards it is SyncSGD.
    """

    period: int = 16
    """Local steps between two meetings, >= 1."""
    state: State = "keep"
    """The optimizer's moments at a meeting: "keep" each worker's own, "average" them, or "reset" them to nothing
    (which makes Adam's next steps huge)."""
    wire: WireType | None = None
    """Round what is sent to "bfloat16" or "float16". Parameters lose more by it than gradients do."""

    def __post_init__(self) -> None:
        _in_range(self, period=1)

    async def run(self, worker: Worker, net: Net) -> Vec:
        seen = 0.0
        for step, batch in worker.steps():
            worker.step(worker.gradient(batch))
            seen += batch.weight
            if step % self.period == 0 or worker.last(step):
                worker.params = await net.all_reduce(worker.params, weight=seen, wire=self.wire)
                if self.state == "average":
                    await _average_moments(worker, net, seen)
                elif self.state == "reset":
                    worker.reset_optimizer()
                seen = 0.0
                net.publish(worker.params)
        return worker.params


@final
@dataclass(frozen=True)
class PostLocalSGD:
    """SyncSGD for the first `switch` steps, ModelAveraging after them (Lin et al. 2020, "Don't use large mini-batches")."""

    switch: int = 100
    """Step after which workers go alone, >= 0."""
    period: int = 16
    """Local steps between two meetings from then on, >= 1."""

    def __post_init__(self) -> None:
        _in_range(self, switch=0, period=1)

    async def run(self, worker: Worker, net: Net) -> Vec:
        seen = 0.0
        for step, batch in worker.steps():
            grad = worker.gradient(batch)
            if step <= self.switch:
                grad = await net.all_reduce(grad, weight=batch.weight)
            worker.step(grad)
            seen += batch.weight
            if step <= self.switch:
                seen = 0.0
                net.publish(worker.params)
            elif (step - self.switch) % self.period == 0 or worker.last(step):
                worker.params = await net.all_reduce(worker.params, weight=seen)
                seen = 0.0
                net.publish(worker.params)
        return worker.params


@final
@dataclass(frozen=True)
class SlowMo:
    r"""Slow momentum over rounds of local steps (Wang et al. 2020, "SlowMo", algorithm 1).

    \( u \leftarrow \beta u + (x_{prev} - \bar\theta)/\eta,\quad x = x_{prev} - \alpha\eta u \), with \(\bar\theta\) the
    mean of the workers after `period` steps and \(\eta\) the local learning rate of that moment.
    With alpha = 1 and beta = 0 it is ModelAveraging.
    """

    period: int = 16
    """Local steps in a round, >= 1."""
    beta: float = 0.5
    """Slow momentum, 0 .. 1; the paper uses 0.5 to 0.7."""
    alpha: float = 1.0
    """Slow learning rate, > 0."""

    def __post_init__(self) -> None:
        _in_range(self, period=1, beta=0, alpha=0)

    async def run(self, worker: Worker, net: Net) -> Vec:
        start, slow = net.resume(worker.params.clone(), torch.zeros_like(worker.params))
        seen = 0.0
        for step, batch in worker.steps():
            rate = worker.rate
            worker.step(worker.gradient(batch))
            seen += batch.weight
            if step % self.period == 0 or worker.last(step):
                mean = await net.all_reduce(worker.params, weight=seen)
                slow.mul_(self.beta).add_((start - mean).div_(rate))
                start.add_(slow, alpha=-self.alpha * rate)
                worker.params, seen = start, 0.0
                net.publish(worker.params, start, slow)
        return worker.params


@final
@dataclass(frozen=True)
class DiLoCo:
    r"""Many local steps, then one outer step of Nesterov SGD (Douillard et al. 2023, arXiv 2311.08105, algorithm 1).

    The outer gradient is \( d = x_{prev} - \bar\theta \); \( m \leftarrow \mu m + d,\quad x = x_{prev} -
    \eta_{out}(d + \mu m) \), as in `torch.optim.SGD(nesterov=True)`. The inner optimizer (AdamW in the paper) keeps its
    state. With outer_rate = 1 and outer_momentum = 0 it is ModelAveraging.
    """

    period: int = 100
    """Local steps in a round, >= 1; the paper uses 500."""
    outer_rate: float = 0.7
    """Outer learning rate, > 0."""
    outer_momentum: float = 0.9
    """Outer Nesterov momentum, 0 .. 1."""

    def __post_init__(self) -> None:
        _in_range(self, period=1, outer_rate=0, outer_momentum=0)

    async def run(self, worker: Worker, net: Net) -> Vec:
        start, momentum = net.resume(worker.params.clone(), torch.zeros_like(worker.params))
        seen = 0.0
        for step, batch in worker.steps():
            worker.step(worker.gradient(batch))
            seen += batch.weight
            if step % self.period == 0 or worker.last(step):
                outer = start - await net.all_reduce(worker.params, weight=seen)
                momentum.mul_(self.outer_momentum).add_(outer)
                start.add_(outer.add_(momentum, alpha=self.outer_momentum), alpha=-self.outer_rate)
                worker.params, seen = start, 0.0
                net.publish(worker.params, start, momentum)
        return worker.params
