"""What the workers who share a network tell each other of a batch and of its gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from firesteel.data.shard import Batch
from firesteel.net.protocol import Net
from firesteel.parts.cuts import Piece
from firesteel.parts.meetings import Meetings


@final
@dataclass(frozen=True)
class Rows:
    """Whose rows a batch consists of: those of all workers who share the network, in order of rank."""

    counts: tuple[int, ...]
    rank: int

    @property
    def start(self) -> int:
        return sum(self.counts[: self.rank])

    @property
    def own(self) -> slice:
        return slice(self.start, self.start + self.counts[self.rank])

    @property
    def total(self) -> int:
        return sum(self.counts)


@final
@dataclass(frozen=True)
class Told:
    """What the workers who share a network have told each other of the batch to come."""

    rows: Rows
    weight: float
    """Of everyone's rows."""
    own_weight: float
    steps: int
    """Of the longest sequence; 0 where there are none."""


async def tell(batch: Batch, net: Net) -> Told:
    """Tell each other of the rows to come; every worker calls it."""
    steps = batch.inputs[0].shape[1] if len(batch.inputs) > 1 else 0
    mine = torch.tensor([[batch.rows, batch.weight, steps]], dtype=torch.float64)
    table = (await Meetings(net).gather(mine, [1] * net.size)).tolist()
    rows = Rows(tuple(int(n) for n, _, _ in table), net.rank)
    return Told(rows, sum(weight for _, weight, _ in table), batch.weight, int(max(steps for _, _, steps in table)))


def padded(inputs: Sequence[Tensor], steps: int) -> tuple[Tensor, ...]:
    """A model's inputs, with sequences made so long."""
    x, *rest = inputs
    if not steps or x.shape[1] == steps:
        return (x, *rest)
    longer = x.new_zeros(len(x), steps, *x.shape[2:])
    if len(x):
        longer[:, : x.shape[1]] = x
    return (longer, *rest)


async def whole_norm(held: nn.Module, pieces: Mapping[str, Piece], net: Net) -> Tensor:
    """Of the whole network's gradient; what is shared counts once."""
    found = [p.grad for name, p in held.named_parameters() if not (pieces[name].shared and net.rank)]
    squares = sum((g.square().sum() for g in found if g is not None), torch.zeros(()))
    return (await Meetings(net).add(squares.double().reshape(1))).sqrt()[0]
