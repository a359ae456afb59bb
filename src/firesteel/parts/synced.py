"""Batch normalisation where each worker has its own rows: statistics of all of them."""

from __future__ import annotations

import copy
import math
from typing import Any, final

import torch
from torch import Tensor

from firesteel.parts.cuts import Cut, Piece
from firesteel.parts.flow import Flow
from firesteel.parts.network import Layer
from firesteel.parts.passes import Tape
from firesteel.parts.split import SplitLayer


@final
class SyncedNorm(SplitLayer):
    """A BatchNorm of all workers' rows, from sums over each one's own."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self.sums_rows = True
        self.module: Any = copy.deepcopy(layer.module)
        for name, whole in [*layer.module.named_parameters(), *layer.module.named_buffers()]:
            self.pieces[f"module.{name}"] = Piece(f"{layer.name}.{name}", Cut(tuple(whole.shape)), shared=True)

    async def run(self, flow: Flow, tape: Tape) -> Flow:
        norm = self.module
        if not self.training and norm.running_mean is not None:
            return flow.on(norm(flow.x))

        async def same(grads: list[Tensor]) -> list[Tensor]:
            return grads

        _, (x,) = tape.cut([flow.x], [flow.x], same)  # both sums and the result are of it
        others = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        count = flow.rows.total * math.prod(x.shape[2:])  # of each channel's numbers
        mean = await self._added(x.sum(others) / count, tape)
        apart = x - mean.view(shape)
        variance = await self._added(apart.square().sum(others) / count, tape)
        out = apart * torch.rsqrt(variance + norm.eps).view(shape)
        if norm.affine:
            out = out * norm.weight.view(shape) + norm.bias.view(shape)
        if norm.running_mean is not None:
            _note(norm, mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        return flow.on(out)

    async def _added(self, partial: Tensor, tape: Tape) -> Tensor:
        total = await tape.meetings.add(partial.detach().clone())

        async def back(grads: list[Tensor]) -> list[Tensor]:
            return [await tape.meetings.add(grads[0].contiguous())]

        _, (leaf,) = tape.cut([partial], [total], back)
        return leaf


def _note(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """The running statistics, as `torch.nn.BatchNorm2d` keeps them."""
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance, momentum)
