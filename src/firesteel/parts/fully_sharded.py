"""A network sharded by `torch.distributed.fsdp.fully_shard`, as one worker has it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from firesteel.data.shard import Batch
from firesteel.errors import UsageError
from firesteel.losses import Loss
from firesteel.net.mesh import Mesh
from firesteel.net.protocol import Net
from firesteel.parts.cuts import Cut, Piece
from firesteel.parts.native import (
    adopt,
    hollow,
    must_be_plain,
    passing,
    pieces_of,
    shard_range,
    shards,
)
from firesteel.parts.part import Meter
from firesteel.parts.telling import Told, padded, tell, whole_norm


@final
class FullySharded(nn.Module):
    """One worker's shards: of each parameter some leading dimension's rows, by equal chunks.

    A pass gathers the parameters of a unit where they are needed, and forgets them after. Where the chunks are equal, PyTorch
    has the shards in the same memory as this module; others are copied there before each pass.

    Args:
        module: the whole network, on the device "meta".
        nothing: a batch without rows.
        index, parts: which shard, of how many.
        smallest: parameters of a unit, at least.
        reshard: forget parameters between forward and backward pass too.
    """

    own_draws: bool = True

    def __init__(self, module: nn.Module, nothing: Batch, index: int, parts: int, smallest: int, reshard: bool) -> None:
        super().__init__()
        module = hollow(module)
        for name, p in module.named_parameters():
            if not p.dim():
                raise UsageError(f"FullyShard: parameter '{name}' is a single number without a dimension; make it [1].")

        def cut(name: str, p: nn.Parameter) -> Piece:
            return Piece(name, Cut(tuple(p.shape), 0, (shard_range(p.shape[0], parts, index),)))

        by_name = pieces_of(module, cut)
        self.shards: nn.Module = shards(module, by_name)
        self.pieces: dict[str, Piece] = {f"shards.{name}": piece for name, piece in by_name.items()}
        self.alone: bool = False
        self.net: Any = None  # the net of those who share the network, once it is bound
        self._by_name: dict[str, Piece] = by_name
        self._hidden: tuple[nn.Module] = (module,)  # in a tuple, it is no part of this module
        self._mesh: Mesh | None = None
        self._nothing: Batch = nothing
        self._smallest: int = smallest
        self._reshard: bool = reshard
        self._told: Told | None = None
        self._standing_in: tuple[Tensor, ...] = ()

    # ---- making it run -----------------------------------------------------------------------------------------------

    def bind(self, net: Net) -> None:
        """Shard the network among the workers of a net."""
        from torch.distributed.tensor import DTensor, Shard

        self.net = net
        running = self._running
        if net.size == 1:
            adopt(running, self.shards, lambda name, own: own)
        else:
            self._mesh = mesh = self.net.mesh()
            devices = mesh.devices
            whole = {name: (p.shape, p.stride()) for name, p in running.named_parameters()}
            _shard_units(running, devices, self._smallest, self._reshard)

            def wrap(name: str, own: Tensor) -> Tensor:
                shape, stride = whole[name]
                return DTensor.from_local(own, devices, [Shard(0)], run_check=False, shape=shape, stride=stride)

            adopt(running, self.shards, wrap)
        _ = running.train(self.training)

    @property
    def _running(self) -> Any:
        return self._hidden[0]

    def train(self, mode: bool = True) -> FullySharded:
        _ = super().train(mode)
        if self.net is not None:
            _ = self._running.train(mode)
        return self

    # ---- passes ------------------------------------------------------------------------------------------------------

    async def prepare(self, batch: Batch) -> Batch:
        """Tell each other of the rows to come; returns them with the weight of everyone's.

        A worker without any gets one of another's, so that it can take part.
        """
        self._told = told = await tell(batch, self.net)
        self._standing_in = ()
        if 0 in told.rows.counts:
            giver = next((rank for rank, n in enumerate(told.rows.counts) if n), 0)
            for x in padded(batch.inputs or self._nothing.inputs, told.steps):
                row = x[:1].clone() if batch.rows else x.new_zeros(1, *x.shape[1:])  # it is written to
                row = await self.net.broadcast(row, root=giver)
                self._standing_in += (torch.cat([row, row]),)  # two, as BatchNorm does not take one
        return replace(batch, weight=self._told.weight)

    async def descend(self, batch: Batch, loss: Loss, meter: Meter | None) -> tuple[float, float]:
        """Add this worker's shard of the gradient of the mean loss over all workers' rows to the parameters' `grad`."""
        told = self._told
        assert told is not None
        if not told.weight:
            return 0.0, 0.0
        value = 0.0
        self._refresh()
        with passing(self._mesh, "gradient"):
            if told.own_weight:
                outputs = must_be_plain(self._running(*batch.inputs), "FullyShard")
                own = loss(outputs, batch.target, batch.weights)  # pyright: ignore[reportArgumentType]
                value = float(own.detach())
                own.backward(torch.full_like(own, told.own_weight / told.weight))
            else:
                outputs = self._stand_in() if not batch.rows else self._running(*batch.inputs)
                outputs.backward(torch.zeros_like(outputs))
        for own, p in self._pairs():
            if p.grad is not None and own.grad is not None:
                _ = own.grad.add_(_local(p.grad))
            p.grad = None
        await self._same_statistics()
        return value, told.own_weight

    async def outputs(self, batch: Batch) -> Tensor:
        """The network's outputs for this worker's own rows; every worker calls it."""
        _ = await self.prepare(batch)
        self._refresh()
        with torch.no_grad(), passing(self._mesh, "outputs"):
            outputs = self._running(*batch.inputs) if batch.rows else self._stand_in()[:0]
            for each in self._running.modules():
                if hasattr(each, "reshard"):
                    each.reshard()
        return outputs

    async def norm(self) -> Tensor:
        """Of the whole network's gradient."""
        return await whole_norm(self.shards, self._by_name, self.net)

    def _stand_in(self) -> Tensor:
        """A pass with another worker's row, of which nothing remains."""
        before = [b.clone() for b in self._running.buffers()]
        outputs = must_be_plain(self._running(*self._standing_in), "FullyShard")
        with torch.no_grad():
            for b, then in zip(self._running.buffers(), before, strict=True):
                _ = b.copy_(then)
        return outputs

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """The held and the running parameters."""
        return [(own, self._running.get_parameter(name)) for name, own in self.shards.named_parameters()]

    @torch.no_grad()
    def _refresh(self) -> None:
        """Copy the shards that PyTorch has, padded, in memory of its own."""
        for own, p in self._pairs():
            there = _local(p)
            if there.data_ptr() != own.data_ptr():
                _ = there.copy_(own)

    async def _same_statistics(self) -> None:
        """The mean of everyone's running statistics, which are of own rows."""
        found: list[Tensor] = []
        for each in self._running.modules():
            if isinstance(each, _NormBase) and each.running_mean is not None and each.running_var is not None:
                found += [each.running_mean, each.running_var]
        if found and self.net.size > 1 and self.training:
            mean = await self.net.all_reduce(torch.cat([b.reshape(-1) for b in found]))
            for b, new in zip(found, mean.split([b.numel() for b in found]), strict=True):
                _ = b.copy_(new.view(b.shape))


def _local(x: Any) -> Tensor:
    x = x.detach()
    return x.to_local() if hasattr(x, "to_local") else x


def _shard_units(module: nn.Module, devices: Any, smallest: int, reshard: bool) -> None:
    """Items of nn.Sequential and nn.ModuleList, innermost first, that have `smallest` parameters beside those of units within
    them; and last the module itself, with the rest."""
    from torch.distributed.fsdp import fully_shard

    everywhere, taken, chosen = _uses(module), set[int](), list[Any]()
    items = [item for each in module.modules() if isinstance(each, nn.Sequential | nn.ModuleList) for item in each]
    for item in reversed(items):
        inside, free = _uses(item), {id(p): p.numel() for p in item.parameters() if id(p) not in taken}
        tied = any(inside[each] < everywhere[each] for each in free)
        if sum(free.values()) >= smallest and not tied and not isinstance(item, nn.ModuleList | nn.ModuleDict):
            chosen.append(item)
            taken |= set(free)
    for each in chosen:
        _ = fully_shard(each, mesh=devices, reshard_after_forward=reshard)
    _ = fully_shard(module, mesh=devices)
    for each in [*chosen, module]:
        each.set_force_sum_reduction_for_comms(True)
        each.set_gradient_divide_factor(1.0)  # each worker's loss has its share of the rows already


def _uses(module: nn.Module) -> Counter[int]:
    """How many modules have each parameter, by its id."""
    return Counter(id(p) for each in module.modules() for p in each._parameters.values() if p is not None)
