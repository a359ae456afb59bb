r"""Consensus ADMM: every worker has a network of its own, and a spring draws it to the one that all agree on.

Boyd, Parikh, Chu, Peleato & Eckstein 2011, "Distributed optimization and statistical learning via the alternating direction
method of multipliers", section 7: minimise \( \sum_k n_k f_k(\theta_k) \) where all \( \theta_k = z \), \(f_k\) being the mean
loss of worker k's \(n_k\) rows. Networks are not convex, and a worker's minimisation is a few steps of its optimizer, so the
theory's guarantees do not hold; it is a way to average models that knows where each of them wanted to go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from firesteel.net.protocol import Net, Vec
from firesteel.strategies.ranges import positive, whole
from firesteel.worker import Worker


@final
@dataclass(frozen=True)
class ConsensusADMM:
    r"""Local steps on \( f_k(\theta) + \frac{\rho}{2} \|\theta - z + v_k\|^2 \), then a meeting.

    At a meeting \( z = \sum_k n_k (\theta_k + v_k) / \sum_k n_k \), with \(n_k\) the rows (or weights) of worker k since the
    last one, and \( v_k \leftarrow v_k + \theta_k - z \). It trains any module, by gradients and with the run's optimizer;
    what is published is z. `Run.history` has the residuals primal, \( \sqrt{\sum_k n_k \|\theta_k - z\|^2 / \sum_k n_k} \), and
    dual, \( \rho \|z - z_{prev}\| \).
    """

    rho: float = 1.0
    """Stiffness of the spring, > 0."""
    period: int = 10
    """Local steps between two meetings, >= 1."""

    def __post_init__(self) -> None:
        positive(self, "rho")
        whole(self, period=1)

    async def run(self, worker: Worker, net: Net) -> Vec:
        z, v = net.resume(worker.params.clone(), torch.zeros_like(worker.params))
        aim, seen = z - v, 0.0
        for step, batch in worker.steps():
            grad = worker.gradient(batch)
            worker.step(grad.add_(worker.params, alpha=self.rho).sub_(aim, alpha=self.rho))
            seen += batch.weight
            if step % self.period == 0 or worker.last(step):
                before, z = z, (await net.all_reduce(worker.params + v, weight=seen)).clone()
                apart = worker.params - z
                _ = v.add_(apart)
                worker.figures = {"primal": await _spread(net, apart, seen), "dual": self.rho * float((z - before).norm())}
                aim, seen = z - v, 0.0
                net.publish(z, z, v)
        return z


async def _spread(net: Net, apart: Vec, weight: float) -> float:
    square: Tensor = torch.linalg.vector_norm(apart, dtype=torch.float64).square().view(1)
    return float((await net.all_reduce(square, weight=weight)).sqrt())
