"""The three ways in which the workers of a network in parts meet, and how they can do without.

A meeting combines what every worker contributes. It can be remembered; later the same meetings can be held without the
network: with what the others contributed then, and with one's own contribution of now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from firesteel.net.protocol import Net


@final
@dataclass
class Memory:
    """What was contributed to the meetings of one pass, in order: one's own, and what came of it."""

    held: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@final
class Meetings:
    """The meetings of one pass over one batch.

    Args:
        net: the workers who share the network.
        memory: where to remember them, if anywhere.
        alone: hold them without the network, by a memory.
    """

    def __init__(self, net: Net, memory: Memory | None = None, alone: bool = False) -> None:
        self.rank: int = net.rank
        self.size: int = net.size
        self._net: Net = net
        self._memory: Memory | None = memory
        self._alone: bool = alone
        self._next: int = 0

    async def gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Everyone's part, [sizes[rank], ...], one after the other, [sum(sizes), ...]."""
        if self.size == 1:
            return x
        start = sum(sizes[: self.rank])
        if self._alone:
            _, then = self._remembered()
            whole = then.clone()
            whole[start : start + sizes[self.rank]] = x
            return whole
        most = max(sizes)
        parts = await self._net.all_gather(_padded(x, most))  # [N * most, ...]
        whole = parts if min(sizes) == most else torch.cat([p[:n] for p, n in zip(parts.split(most), sizes, strict=True)])
        self._remember(x, whole)
        return whole

    async def scatter(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """One's own part, [sizes[rank], ...], of the sum of everyone's [sum(sizes), ...]."""
        if self.size == 1:
            return x
        start = sum(sizes[: self.rank])
        own = x[start : start + sizes[self.rank]]
        if self._alone:
            before, total = self._remembered()
            return total + (own - before)
        most = max(sizes)
        if min(sizes) < most:
            x = torch.cat([_padded(part, most) for part in x.split(list(sizes))])
        total = (await self._net.reduce_scatter(x, "sum"))[: sizes[self.rank]]
        self._remember(own, total)
        return total

    async def add(self, x: Tensor) -> Tensor:
        """The sum of everyone's x, of any shape; x may be written to."""
        if self.size == 1:
            return x
        if self._alone:
            before, total = self._remembered()
            return total + (x - before)
        own = x.clone() if self._memory is not None else x
        total = await self._net.all_reduce(x, "sum")
        self._remember(own, total)
        return total

    def _remember(self, own: Tensor, result: Tensor) -> None:
        if self._memory is not None:
            self._memory.held.append((own.clone(), result.clone()))

    def _remembered(self) -> tuple[Tensor, Tensor]:
        assert self._memory is not None
        self._next += 1
        return self._memory.held[self._next - 1]


def _padded(x: Tensor, size: int) -> Tensor:
    return x if len(x) == size else pad(x, (0, 0) * (x.dim() - 1) + (0, size - len(x)))
