"""A small problem and plain references: what each method computes, written as one process would, without firesteel's engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import firesteel
from firesteel import randomness
from firesteel.data.batches import Plan, total_steps

SEED = 7


def rows(n: int, width: int = 12, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n, width)).astype(np.float32)
    y = (x @ rng.standard_normal((width, classes)) + 0.3 * rng.standard_normal((n, classes))).argmax(1)
    return x, y.astype(np.int64)


def network() -> nn.Module:
    return firesteel.models.MLP(12, 16, 4, activation="tanh")


def initial(factory: Callable[[], nn.Module] = network) -> nn.Module:
    with torch.random.fork_rng():
        randomness.initialise(SEED)
        return factory()


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


class Part:
    """One worker's rows and the batches that the engine promises for them."""

    def __init__(self, x: np.ndarray, y: np.ndarray, rank: int, size: int, batch: int, epochs: float, w=None) -> None:
        self.x, self.y = torch.from_numpy(x[rank::size].copy()), torch.from_numpy(y[rank::size].copy())
        self.w = None if w is None else torch.from_numpy(w[rank::size].copy())
        most = len(range(0, len(x), size))
        self.plan = Plan(len(self.x), most, batch, total_steps(most, batch, epochs, None), SEED, rank)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        index = self.plan.index(step)
        weights = torch.ones(len(index)) if self.w is None else self.w[index]
        return self.x[index], self.y[index], weights


def parts(x, y, size: int, batch: int = 16, epochs: float = 3, w=None) -> list[Part]:
    return [Part(x, y, rank, size, batch, epochs, w) for rank in range(size)]


def weighted_loss(module: nn.Module, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (F.cross_entropy(module(x), y, reduction="none") * w).sum() / w.sum()


def big_batch(gang: list[Part], make_optimizer) -> Tensor:
    """One process that takes all workers' batches of a step as one."""
    module = initial()
    optimizer = make_optimizer(module.parameters())
    for step in range(1, gang[0].plan.total_steps + 1):
        x, y, w = (torch.cat(t) for t in zip(*(part.batch(step) for part in gang), strict=True))
        optimizer.zero_grad()
        weighted_loss(module, x, y, w).backward()
        optimizer.step()
    return flat(module)


def rounds(gang: list[Part], period: int, make_optimizer, meet: Callable[[list[Tensor], list[float]], Tensor]) -> Tensor:
    """Local steps on every worker in turn; `meet` gives the parameters with which all go on."""
    modules = [initial() for _ in gang]
    optimizers = [make_optimizer(m.parameters()) for m in modules]
    seen, steps = [0.0] * len(gang), gang[0].plan.total_steps
    for step in range(1, steps + 1):
        for k, part in enumerate(gang):
            x, y, w = part.batch(step)
            optimizers[k].zero_grad()
            if len(x):
                weighted_loss(modules[k], x, y, w).backward()
            else:
                for p in modules[k].parameters():
                    p.grad = torch.zeros_like(p)
            optimizers[k].step()
            seen[k] += float(w.sum())
        if step % period == 0 or step == steps:
            together = meet([flat(m) for m in modules], seen)
            for m in modules:
                torch.nn.utils.vector_to_parameters(together.clone(), m.parameters())
            seen = [0.0] * len(gang)
    return flat(modules[0])


def mean(vectors: list[Tensor], weights: list[float]) -> Tensor:
    return sum(v * w for v, w in zip(vectors, weights, strict=True)) / sum(weights)


def train(data, strategy, workers: int, optimizer=None, **settings):
    settings = {"batch_size": 16, "epochs": 3, "validation": None, "metrics": (), "seed": SEED, "progress": "none", **settings}
    optimizer = optimizer or firesteel.SGD(lr=0.1)
    settings.setdefault("on", firesteel.Local(workers=workers, threads=1))
    return firesteel.train(network, data, strategy=strategy, optimizer=optimizer, **settings)
