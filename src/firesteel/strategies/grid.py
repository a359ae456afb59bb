"""Data and model parallelism at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from firesteel.errors import UsageError
from firesteel.net.protocol import Net, Strategy, Vec, full_batch, has_server, native, own_steps, splits
from firesteel.strategies.gradients import SyncSGD
from firesteel.strategies.independent import Ensemble, Single
from firesteel.strategies.neuron import NeuronParallel
from firesteel.strategies.sharded import VectorFreeAdaGrad, VectorFreeAdam
from firesteel.worker import Worker


@final
@dataclass(frozen=True)
class Grid:
    """Groups of `model` workers share one network in parts; `data` such groups share the rows, by a strategy of their own.

    Worker r has part r % model of replica r // model. For the strategy across, a worker's parameters are its part, and its
    gradient is that of its replica's batch: so any synchronous strategy will do.
    """

    data: int
    """Replicas of the network, >= 1."""
    model: int
    """Workers that share one replica, >= 1; there are data * model workers."""
    within: Any = NeuronParallel()  # noqa: RUF009
    """How they share it: NeuronParallel(...), Pipeline(...), FullyShard(...) or TensorParallel(...)."""
    across: Strategy = SyncSGD()  # noqa: RUF009
    """How the replicas train together: SyncSGD(), ModelAveraging(...), ..."""

    def __post_init__(self) -> None:
        if self.data < 1 or self.model < 1:
            raise UsageError(f"Grid(data={self.data}, model={self.model}): both are at least 1.")
        if not splits(self.within) or isinstance(self.within, Grid):
            raise UsageError(
                f"Grid(within={self.within!r}): give NeuronParallel(), Pipeline(...), FullyShard() or TensorParallel(plan)."
            )
        if splits(self.across) or full_batch(self.across) or own_steps(self.across) or has_server(self.across):
            raise UsageError(
                f"Grid(across={self.across!r}): give a synchronous strategy that steps by gradients of batches, such as "
                "SyncSGD() or ModelAveraging(...)."
            )
        if isinstance(self.across, Single | Ensemble | VectorFreeAdam | VectorFreeAdaGrad):
            raise UsageError(
                f"Grid(across={self.across!r}): replicas must come to one network, by gradients or parameters of which each "
                "worker has a part already; give SyncSGD(), ModelAveraging(...), SlowMo(...), DiLoCo(...) or EASGD(...)."
            )
        if getattr(self.within, "local_steps", 1) > 1:
            raise UsageError("Grid(within=NeuronParallel(local_steps=...)): the strategy across takes exact steps; leave it 1.")

    @property
    def native(self) -> bool:
        return native(self.within)

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        if workers != self.data * self.model:
            raise UsageError(
                f"Grid(data={self.data}, model={self.model}) is for {self.data * self.model} workers, but there are {workers}."
            )
        check = getattr(self.across, "check", None)
        said = [self.within.check(self.model, optimizer, module)]
        said.append(check(self.data, optimizer, module) if check is not None else None)
        return " ".join(each for each in said if each) or None

    @property
    def measures_layers(self) -> bool:
        """Whether it wants to know how long each layer takes."""
        return getattr(self.within, "measures_layers", False)

    def parts_of(self, workers: int) -> int:
        """Into how many parts the network is cut."""
        return self.model

    def part(self, network: Any, nothing: Any, index: int, parts: int) -> nn.Module:
        """The part numbered `index`."""
        return self.within.part(network, nothing, index, parts)

    async def run(self, worker: Worker, net: Net) -> Vec:
        part: Any = worker.module
        replica, index = divmod(net.rank, self.model)
        part.bind(net.group(range(replica * self.model, (replica + 1) * self.model)))
        return await self.across.run(worker, net.group(range(index, net.size, self.model)))
