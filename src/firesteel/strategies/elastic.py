r"""Strategies whose workers are tied to the center by springs and never set to it.

\( E_k = \alpha(\theta_k - \tilde\theta) \) pulls the worker to the center and, with the same force, the center to the worker.
Zhang, Choromanska & LeCun 2015, "Deep learning with Elastic Averaging SGD", arXiv 1412.6651. A small \(\alpha\) lets workers
explore. When all N workers pull before any pushes, it is stable only below \(\alpha = 2/(N + 1)\): the default is 0.9/N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from firesteel.errors import UsageError
from firesteel.net.protocol import Net, Push, Vec
from firesteel.worker import Worker


def _spring(alpha: float | None, net: Net) -> float:
    return 0.9 / net.size if alpha is None else alpha


def _overshoot(strategy: object, alpha: float | None, workers: int) -> str | None:
    """A warning where the spring is too strong for so many workers."""
    limit = 2 / (workers + 1)
    if alpha is None or alpha < limit:
        return None
    return (
        f"{type(strategy).__name__}(alpha={alpha:g}): with {workers} workers that pull before any pushes it is stable "
        f"only below 2/(N+1) = {limit:.3g}; the default is 0.9/N = {0.9 / workers:.3g}."
    )


def _check(strategy: object, alpha: float | None, period: int) -> None:
    name = type(strategy).__name__
    if alpha is not None and not 0 < alpha <= 1:
        raise UsageError(f"{name}(alpha={alpha}): alpha must be greater than 0 and at most 1, or None for 0.9/N.")
    if period < 1:
        raise UsageError(f"{name}: there must be at least one local step between two exchanges, not {period}.")


@final
@dataclass(frozen=True)
class EASGD:
    r"""Synchronous elastic averaging: all exchange at once, \( \tilde\theta \leftarrow \tilde\theta + \sum_k E_k \).

    arXiv 1412.6651, section 3. Every worker holds the center, so one all-reduce of the forces does it; workers are not
    reset. With \( \beta = N\alpha \) the center is a moving average: \( \tilde\theta \leftarrow (1-\beta)\tilde\theta +
    \beta\bar\theta \).
    """

    period: int = 16
    """Local steps between two exchanges, >= 1."""
    alpha: float | None = None
    """Force of the spring, 0 .. 1; None is 0.9/N."""

    def __post_init__(self) -> None:
        _check(self, self.alpha, self.period)

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        return _overshoot(self, self.alpha, workers)

    async def run(self, worker: Worker, net: Net) -> Vec:
        alpha = _spring(self.alpha, net)
        (center,) = net.resume(worker.params.clone())
        for step, batch in worker.steps():
            worker.step(worker.gradient(batch))
            if step % self.period == 0 or worker.last(step):
                force = (worker.params - center).mul_(alpha)
                worker.params.sub_(force)
                center.add_(await net.all_reduce(force, "sum"))
                net.publish(center, center)
        return center


async def _exchange(worker: Worker, net: Net, alpha: float) -> Vec:
    """Pull, and let the spring act on both ends; returns the center that was pulled."""
    center = await net.pull()
    force = (worker.params - center).mul_(alpha)
    worker.params.sub_(force)
    await net.push(force)
    return center


@final
@dataclass(frozen=True)
class AEASGD:
    r"""Asynchronous elastic averaging: \( E = \alpha(\theta_k - \tilde\theta),\ \theta_k \leftarrow \theta_k - E,\
    \tilde\theta \leftarrow \tilde\theta + E \), whenever a worker has done its steps.

    arXiv 1412.6651, algorithm 1; Hermans 2017, section 2.4. With `early`, a worker exchanges as soon as its own movement no
    longer exceeds the spring's, \( \|\eta\nabla L\| - \|\alpha(\theta_k - \tilde\theta)\| < \eta \) (early-stopping EASGD).
    """

    window: int = 32
    """Local steps between two exchanges, >= 1; dist-keras's default."""
    alpha: float | None = None
    """Force of the spring, 0 .. 1; None is 0.9/N. In the papers' symbols it is learning rate times rho."""
    early: bool = False
    """Exchange earlier where the spring has caught up."""
    needs_seen: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self, self.alpha, self.window)

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        return _overshoot(self, self.alpha, workers)

    async def run(self, worker: Worker, net: Net) -> Vec:
        alpha = _spring(self.alpha, net)
        center = worker.params = await net.pull()
        taken = 0
        for _, batch in worker.steps():
            grad = worker.gradient(batch)
            size = float(torch.linalg.vector_norm(grad)) if self.early else 0.0
            rate = worker.rate
            worker.step(grad)
            taken += 1
            caught_up = self.early and rate * size - alpha * float(torch.dist(worker.params, center)) < rate
            if taken == self.window or caught_up:
                center = await _exchange(worker, net, alpha)
                taken = 0
        if taken:
            _ = await _exchange(worker, net, alpha)
        return await net.pull()

    def merge(self, center: Vec, push: Push) -> None:
        center.add_(push.delta)


@final
@dataclass(frozen=True)
class EAMSGD:
    r"""AEASGD whose local steps have Nesterov momentum: \( v \leftarrow \delta v - \eta\nabla f(\theta + \delta v),\
    \theta \leftarrow \theta + v \).

    arXiv 1412.6651, section 4. The spring acts on \(\theta\), and the gradient is taken at \(\theta + \delta v\), so the
    method brings its own step and refuses an optimizer other than plain SGD, whose rate \(\eta\) it uses.
    """

    window: int = 32
    """Local steps between two exchanges, >= 1; dist-keras's default."""
    alpha: float | None = None
    """Force of the spring, 0 .. 1; None is 0.9/N."""
    momentum: float = 0.9
    """The paper's delta, 0 .. 1."""
    needs_seen: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self, self.alpha, self.window)
        if not 0 <= self.momentum < 1:
            raise UsageError(f"EAMSGD(momentum={self.momentum}): it must be at least 0 and below 1.")

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        group = optimizer.param_groups[0]
        if not isinstance(optimizer, torch.optim.SGD) or group["momentum"] or group["weight_decay"]:
            raise UsageError(
                "EAMSGD brings its own Nesterov step: use optimizer=firesteel.SGD(lr=...) without momentum or weight decay, "
                "and set EAMSGD(momentum=...)."
            )
        return _overshoot(self, self.alpha, workers)

    async def run(self, worker: Worker, net: Net) -> Vec:
        alpha = _spring(self.alpha, net)
        worker.params = await net.pull()
        velocity = torch.zeros_like(worker.params)
        taken = 0
        for _, batch in worker.steps():
            velocity.mul_(self.momentum)
            worker.params.add_(velocity)  # look ahead ...
            before = worker.params.clone()
            worker.step(worker.gradient(batch))  # ... and take the gradient there: params - before = -rate * gradient
            velocity.add_(worker.params - before)
            taken += 1
            if taken == self.window:
                _ = await _exchange(worker, net, alpha)
                taken = 0
        if taken:
            _ = await _exchange(worker, net, alpha)
        return await net.pull()

    def merge(self, center: Vec, push: Push) -> None:
        center.add_(push.delta)
