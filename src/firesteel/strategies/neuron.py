"""Networks whose units are spread over the workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from firesteel.errors import UsageError
from firesteel.net.protocol import Net, Vec
from firesteel.parts.meetings import Memory
from firesteel.parts.optimizers import advice
from firesteel.parts.plan import Conv, Weights
from firesteel.parts.split_network import SplitNetwork
from firesteel.worker import Worker


@final
@dataclass(frozen=True)
class NeuronParallel:
    r"""Each worker has its own units of every layer, with their incoming weights and the optimizer's state of them.

    Shrivastava, Chaudhury & Jayadeva 2017, arXiv 1708.05840, as docs/strategies/model-parallel.md reads it. The batch of a
    step is all workers' rows together, and the result that of one process with that batch: forward, units are gathered (or
    partial sums added) layer by layer; backward, gradients go back to the units' owners.

    With `local_steps` k > 1, k - 1 more steps follow on the same batch without the network: each worker moves its own weights
    alone, while what the others contribute stays what it was in the exact pass; each such move counts `damping` times.
    When that converges, and when it pays: docs/strategies/local-steps.md.
    """

    parts: int | None = None
    """Workers that share the network, >= 2; None: all of them, however many there are."""
    weights: Weights = "alternate"
    """"alternate": by outputs, then by inputs, so that two layers meet once; "rows": all by outputs."""
    conv: Conv = "data"
    """Convolutions: "data", whole at every worker, for its own rows; or "split", by channels."""
    local_steps: int = 1
    """Steps on one batch, >= 1; 1 is exact."""
    damping: float | None = None
    """Of the further steps, 0 .. 1; None: one over the number of workers."""

    def __post_init__(self) -> None:
        if self.parts is not None and self.parts < 1:
            raise UsageError(f"NeuronParallel(parts={self.parts}): a network has at least one part.")
        if self.local_steps < 1:
            raise UsageError(f"NeuronParallel(local_steps={self.local_steps}): there is at least one step, the exact one.")
        if self.damping is not None and not 0 < self.damping <= 1:
            raise UsageError(f"NeuronParallel(damping={self.damping}): it is greater than 0 and at most 1.")
        for name, known in (("weights", ("alternate", "rows")), ("conv", ("data", "split"))):
            if getattr(self, name) not in known:
                raise UsageError(f"NeuronParallel({name}={getattr(self, name)!r}): give {' or '.join(map(repr, known))}.")

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        if self.parts is not None and self.parts != workers:
            raise UsageError(
                f"NeuronParallel(parts={self.parts}) on {workers} workers: each has one part. Set workers={self.parts}, or let "
                f"several groups share the rows: Grid(data=..., model={self.parts})."
            )
        return advice(optimizer) if workers > 1 else None

    def parts_of(self, workers: int) -> int:
        """Into how many parts the network is cut."""
        return workers

    def part(self, network: Any, nothing: Any, index: int, parts: int) -> nn.Module:
        """The part numbered `index`."""
        made = SplitNetwork(network, nothing, index, parts, self.conv, self.weights, "NeuronParallel")
        shared = [made.pieces[name].name for name, _ in made.named_parameters() if made.pieces[name].shared]
        if self.local_steps > 1 and shared:
            raise UsageError(
                f"NeuronParallel(local_steps={self.local_steps}) moves each weight at the one worker that owns it, but "
                f"'{shared[0]}' is at every worker. Set conv=\"split\" for convolutions, take GroupNorm or none in place of "
                "other normalisations; or set local_steps=1."
            )
        return made

    async def run(self, worker: Worker, net: Net) -> Vec:
        part: Any = worker.module
        part.bind(net)
        damping = 1 / net.size if self.damping is None else self.damping
        for _, batch in worker.steps():
            if self.local_steps == 1:
                worker.step(worker.gradient(batch))
            else:
                self._relaxed(worker, part, batch, damping)
            net.publish(worker.params)
        return worker.params

    def _relaxed(self, worker: Worker, part: Any, batch: Any, damping: float) -> None:
        """An exact step, and those without the network: with its dropout masks, its rate, and scaled down as it was."""
        part.memory, drawn = Memory(), torch.get_rng_state()
        _ = worker.gradient(batch)
        scale = worker.clip()
        _ = worker.optimizer.step()
        part.alone = True
        for _ in range(self.local_steps - 1):
            before = worker.params.clone()
            torch.set_rng_state(drawn)
            _ = worker.gradient(batch).mul_(scale)
            _ = worker.optimizer.step()
            worker.params = before.lerp_(worker.params, damping)
        part.alone, part.memory = False, None
        worker.advance()
