"""PyTorch's own ways of sharding, for any module, where workers are processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from firesteel.errors import UsageError
from firesteel.net.protocol import Net, Vec
from firesteel.parts.fully_sharded import FullySharded
from firesteel.parts.optimizers import advice
from firesteel.parts.tensor_parallel import STYLES, TensorParallelled, check_plan
from firesteel.worker import Worker


@final
@dataclass(frozen=True)
class FullyShard:
    """Each worker keeps its share of every parameter, of the gradient and of the optimizer's state; each has its own rows.

    PyTorch's `torch.distributed.fsdp.fully_shard` (Zhao et al. 2023, arXiv 2304.11277; after ZeRO, Rajbhandari et al. 2020,
    arXiv 1910.02054): a unit's parameters are gathered for its forward and its backward pass, and forgotten after; gradients
    are summed where their owners are. The result is that of SyncSGD. Not in the simulator, nor in plans.
    """

    smallest: int = 1_000_000
    """Parameters of a unit that is gathered on its own (items of nn.Sequential and nn.ModuleList), >= 1; the rest is one."""
    reshard: bool = True
    """Forget a unit's parameters after the forward pass, and gather them again: less memory, a third more bytes."""

    native: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.smallest < 1:
            raise UsageError(f"FullyShard(smallest={self.smallest}): a unit has at least one parameter.")

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        _ = FullySharded(module, None, 0, workers, self.smallest, self.reshard)  # pyright: ignore[reportArgumentType]
        return advice(optimizer) if workers > 1 else None

    def parts_of(self, workers: int) -> int:
        """Into how many parts the network is cut."""
        return workers

    def part(self, network: Any, nothing: Any, index: int, parts: int) -> nn.Module:
        """The part numbered `index`."""
        return FullySharded(network, nothing, index, parts, self.smallest, self.reshard)

    async def run(self, worker: Worker, net: Net) -> Vec:
        return await _together(worker, net)


@final
@dataclass(frozen=True)
class TensorParallel:
    """Layers are cut as a plan says, and every worker computes its shares for the rows of all.

    PyTorch's `torch.distributed.tensor.parallel.parallelize_module` (after Megatron-LM, Shoeybi et al. 2019, arXiv
    1909.08053). The batch of a step is all workers' rows together, and the result that of one process with that batch. Not in
    the simulator, nor in plans.
    """

    plan: Mapping[str, Any] | None = None
    """{name of a module, which may have * and ?: style}. Styles by name: "colwise" and "rowwise" (a pair: the first leaves each
    worker its own units, the second takes them), "colwise_rep" (whole outputs), "rowwise_rep" (whole inputs), "sequence"; or a
    `torch.distributed.tensor.parallel.ParallelStyle`. What it does not name, all workers have whole."""

    native: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_plan(self.plan)

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        _ = self.part(module, None, 0, workers)
        return advice(optimizer) if workers > 1 else None

    def parts_of(self, workers: int) -> int:
        """Into how many parts the network is cut."""
        return workers

    def part(self, network: Any, nothing: Any, index: int, parts: int) -> nn.Module:
        """The part numbered `index`."""
        if not self.plan:
            raise UsageError(
                f'TensorParallel() needs a plan of what to cut: {{"name of a module": style}}. Styles: {", ".join(STYLES)}. '
                "Without a plan there is FullyShard()."
            )
        return TensorParallelled(network, nothing, index, parts, self.plan)

    async def run(self, worker: Worker, net: Net) -> Vec:
        return await _together(worker, net)


async def _together(worker: Worker, net: Net) -> Vec:
    part: Any = worker.module
    part.bind(net)
    for _, batch in worker.steps():
        worker.step(worker.gradient(batch))
        net.publish(worker.params)
    return worker.params
