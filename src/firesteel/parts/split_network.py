"""A network whose units are spread over the workers of a group, as one of them has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from firesteel.data.shard import Batch
from firesteel.losses import Loss
from firesteel.net.protocol import Net
from firesteel.parts.cuts import Piece
from firesteel.parts.flow import Flow, to_all
from firesteel.parts.meetings import Meetings, Memory
from firesteel.parts.network import Network
from firesteel.parts.part import Meter
from firesteel.parts.passes import Tape
from firesteel.parts.plan import Conv, Planner, Weights
from firesteel.parts.softmax import split_cross_entropy
from firesteel.parts.split import SplitLayer
from firesteel.parts.telling import Rows, Told, padded, tell, whole_norm


@final
class SplitNetwork(nn.Module):
    """One worker's part, on the device "meta" until it is made real and filled.

    Args:
        nothing: a batch without rows, for a worker that has none.
        rank, size: of this worker among those who share the network.
    """

    def __init__(self, network: Network, nothing: Batch, rank: int, size: int, conv: Conv, weights: Weights, who: str) -> None:
        super().__init__()
        self.layers: nn.ModuleList = nn.ModuleList(Planner(network, rank, size, conv, weights, who).layers())
        self.pieces: dict[str, Piece] = {
            f"layers.{number}.{name}": piece
            for number, layer in enumerate(self._split())
            for name, piece in layer.pieces.items()
        }
        self.net: Any = None  # the net of those who share the network, once it is bound
        self.memory: Memory | None = None
        """Where what the others contribute to a gradient is kept, if anywhere."""
        self.alone: bool = False
        """Whether they contribute what the memory holds, and the net is left alone."""
        self._network: Network = network
        self._nothing: Batch = nothing
        self._told: Told = Told(Rows((0,), 0), 0.0, 0.0, 0)

    def _split(self) -> list[SplitLayer]:
        return list(self.layers)  # pyright: ignore[reportReturnType, reportArgumentType]

    def bind(self, net: Net) -> None:
        """Tell it where the other parts are."""
        self.net = net

    # ---- passes ------------------------------------------------------------------------------------------------------

    async def prepare(self, batch: Batch) -> Batch:
        """Tell each other of the rows to come; returns the batch with the weight of everyone's. Every worker calls it."""
        self._told = await tell(batch, self.net)
        return replace(batch, weight=self._told.weight)

    async def descend(self, batch: Batch, loss: Loss, meter: Meter | None) -> tuple[float, float]:
        """Add the gradient of the mean loss over all workers' rows to the parameters' `grad`.

        Every worker calls it with its own rows, which it has told of. Returns a loss, and what it counts for: their weighted
        mean over all workers is the loss of the batch.
        """
        if not self._told.weight:
            return 0.0, 0.0
        meetings = Meetings(self.net, self.memory, self.alone)
        tape = Tape(meetings, True, None if meter is None else meter(self._told.rows.total))
        flow = await self._forward(batch, tape)
        value, outputs, grad = await self._loss(flow, batch, loss, tape)
        await tape.backward(outputs, grad)
        await self._add_up(meetings)
        if meter is not None:
            meter(0)(1 - tape.spent)  # a step's fixed cost is not shared
        return value, self._told.own_weight

    async def outputs(self, batch: Batch) -> Tensor:
        """The network's outputs for this worker's own rows; every worker calls it."""
        _ = await self.prepare(batch)
        tape = Tape(Meetings(self.net), False, None)
        flow = await self._forward(batch, tape)
        return flow.x.detach() if flow.at == "rows" else (await to_all(flow, tape)).x.detach()[flow.rows.own]

    async def norm(self) -> Tensor:
        """Of the whole network's gradient."""
        return await whole_norm(self, self.pieces, self.net)

    async def _forward(self, batch: Batch, tape: Tape) -> Flow:
        x, *rest = padded(batch.inputs or self._nothing.inputs, self._told.steps)
        flow = Flow(x, self._told.rows, lengths=rest[0] if rest else None)
        flops = self._network.flops
        for layer in self._split():
            flow = await layer.pass_on(flow, tape, flops)
        return flow

    async def _loss(self, flow: Flow, batch: Batch, loss: Loss, tape: Tape) -> tuple[float, Tensor, Tensor]:
        """The loss, and where the backward pass begins with which gradient."""
        meetings, counts = tape.meetings, flow.rows.counts
        if flow.at == "rows":
            if not self._told.own_weight:
                return 0.0, flow.x, torch.zeros_like(flow.x)
            own = loss(flow.x, batch.target, batch.weights)  # pyright: ignore[reportArgumentType]
            return _number(own), own, torch.full_like(own, self._told.own_weight / self._told.weight)
        mine = batch if batch.inputs else self._nothing
        target = await meetings.gather(mine.target, counts)  # pyright: ignore[reportArgumentType]
        weights = None if mine.weights is None else await meetings.gather(mine.weights, counts)
        if flow.at == "units" and flow.dim == 1 and getattr(loss, "__name__", "") == "cross_entropy":
            value, grad = await split_cross_entropy(flow, target, weights, meetings)
            return _number(value), flow.x, grad
        flow = await to_all(flow, tape)
        value = loss(flow.x, target, weights)
        return _number(value), value, torch.ones_like(value)

    async def _add_up(self, meetings: Meetings) -> None:
        """The gradients of layers that each worker ran with its own rows."""
        grads = [p.grad for layer in self._split() if layer.sums_rows for p in layer.parameters() if p.grad is not None]
        for grad in _joined(grads):
            total = await meetings.add(grad)
            if total.data_ptr() != grad.data_ptr():
                _ = grad.copy_(total)


def _joined(grads: list[Tensor]) -> list[Tensor]:
    """Those that follow each other in memory as one, [n]."""
    found: list[Tensor] = []
    for grad in grads:
        flat = grad.as_strided((grad.numel(),), (1,))
        if found and _place(found[-1], found[-1].numel()) == _place(flat):
            both = found[-1].numel() + flat.numel()
            found[-1] = found[-1].as_strided((both,), (1,))
        else:
            found.append(flat)
    return found


def _place(x: Tensor, further: int = 0) -> tuple[int, int]:
    """Where in which memory a tensor begins, or so many numbers further: also on the device "meta", which has no addresses."""
    return x.untyped_storage()._cdata, int(x.storage_offset()) + further


def _number(loss: Tensor) -> float:
    return 0.0 if loss.is_meta else float(loss.detach())
