"""Methods that only these experiments need: each is a class of one's own, as docs/write-your-own.md has it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import final

import torch

from firesteel.net.protocol import Net, Vec
from firesteel.strategies.line_search import strong_wolfe
from firesteel.strategies.shares import dots
from firesteel.worker import Worker


@final
@dataclass(frozen=True)
class ParallelMiniBatch:
    """Sample a mini-batch from the own rows, train on it for some epochs, average over all; repeat.

    "Distributed neural networks: a parallel approach" (a poster): the form that was run on Hadoop, a round of which is a job.
    """

    local_epochs: int = 5
    """Passes over each mini-batch before workers meet, >= 1."""

    async def run(self, worker: Worker, net: Net) -> Vec:
        for _, batch in worker.steps():
            for _ in range(self.local_epochs):
                worker.step(worker.gradient(batch))
            worker.params = await net.all_reduce(worker.params, weight=batch.weight)
            net.publish(worker.params)
        return worker.params


@final
@dataclass(frozen=True)
class WatchedEASGD:
    """EASGD that also tells how strong both sides pull: `spring`, alpha |theta_k - center|, and `drive`, rate |gradient|.

    Hermans 2017, section 2.4, asks whether the two come to an equilibrium, and what it does to convergence. Means over workers,
    at every exchange, of the last local step before it.
    """

    period: int = 16
    alpha: float | None = None

    async def run(self, worker: Worker, net: Net) -> Vec:
        alpha = 0.9 / net.size if self.alpha is None else self.alpha
        (center,) = net.resume(worker.params.clone())
        for step, batch in worker.steps():
            grad, rate = worker.gradient(batch), worker.rate
            drive = rate * float(torch.linalg.vector_norm(grad))
            worker.step(grad)
            if step % self.period == 0 or worker.last(step):
                force = (worker.params - center).mul_(alpha)
                spring = float(torch.linalg.vector_norm(force))
                worker.params.sub_(force)
                center.add_(await net.all_reduce(force, "sum"))
                both = await net.all_reduce(torch.tensor([spring, drive], dtype=torch.float64))
                worker.figures = {"spring": float(both[0]), "drive": float(both[1])}
                net.publish(center, center)
        return center


@final
@dataclass(frozen=True)
class CentralLBFGS:
    """L-BFGS whose history worker 0 holds alone: gradients go there by a tree of messages, the direction comes back."""

    memory: int = 10

    own_steps = True
    full_batch = True

    async def run(self, worker: Worker, net: Net) -> Vec:
        pairs: deque[tuple[Vec, Vec]] = deque(maxlen=self.memory)
        value, weight, _ = await _looked(worker, net, worker.params)
        gradient = (await _reduced(worker.grads, net)) / weight  # [P]; it is the whole one at worker 0 only
        for _ in worker.iterations():
            start = worker.params.clone()
            direction = recursion(pairs, gradient) if net.rank == 0 else torch.empty_like(start)
            slope, length = float(dots(direction[None], gradient[None])), float(torch.linalg.vector_norm(direction))
            told = torch.tensor([slope, 1.0 if pairs else 1.0 / max(length, 1e-30)], dtype=torch.float64)
            direction = await net.broadcast(direction)
            slope, step = (await net.broadcast(told)).tolist()
            search = strong_wolfe(value, slope, step, 1e-4, 0.9, 20)
            taken, at = next(search), None
            while taken != at:
                at = taken
                _ = torch.add(start, direction, alpha=at, out=worker.params)
                value, weight, rise = await _looked(worker, net, direction)
                try:
                    taken = search.send((value, rise / weight))
                except StopIteration as end:
                    taken = end.value
            if not at:
                break
            following = (await _reduced(worker.grads, net)) / weight
            if net.rank == 0:
                pairs.append((worker.params - start, following - gradient))
            gradient = following
            net.publish(worker.params)
        return worker.params


async def _looked(worker: Worker, net: Net, along: Vec) -> tuple[float, float, float]:
    """One pass: the mean loss at `worker.params`, the weight of all rows, and its product with the slope along a line."""
    loss, weight = worker.sum_gradient()
    local = torch.tensor([loss, weight, float(dots(worker.grads[None], along[None]))], dtype=torch.float64)
    loss, weight, rise = (await net.all_reduce(local, "sum")).tolist()
    return loss / weight, weight, rise


async def _reduced(x: Vec, net: Net) -> Vec:
    """The sum over all workers, at worker 0, by a binomial tree; elsewhere the sum of those below."""
    distance = 1
    while distance < net.size:
        if net.rank & distance:
            await net.send(x, net.rank - distance)
            break
        if net.rank + distance < net.size:
            x.add_(await net.recv(net.rank + distance))
        distance *= 2
    return x


def recursion(pairs: deque[tuple[Vec, Vec]], gradient: Vec) -> Vec:
    """The direction, [P], by two loops over the pairs (Nocedal & Wright 2006, algorithm 7.4)."""
    direction, weights = -gradient, []
    for s, y in reversed(pairs):
        weights.append(float(s @ direction) / float(s @ y))
        direction.add_(y, alpha=-weights[-1])
    if pairs:
        s, y = pairs[-1]
        direction.mul_(float(s @ y) / float(y @ y))
    for (s, y), weight in zip(pairs, reversed(weights), strict=True):
        direction.add_(s, alpha=weight - float(y @ direction) / float(s @ y))
    return direction
