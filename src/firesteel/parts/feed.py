"""Everyone's rows on their way to the workers that need them."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from firesteel.data.shard import Batch
from firesteel.net.protocol import Net

INPUTS, LENGTHS, TARGETS, WEIGHTS = range(4)


@final
class Outbox:
    """Sends under way, the oldest first."""

    def __init__(self, net: Net) -> None:
        self._net: Net = net
        self._under_way: deque[Awaitable[None]] = deque()

    def send(self, x: Tensor, to: int, bare: bool = False) -> None:
        """Post x, which is not to be written to before it is awaited."""
        self._under_way.append(self._net.send(x, to, bare))

    async def settle(self, leave: int = 0) -> None:
        """Await all but the last few."""
        while len(self._under_way) > leave:
            await self._under_way.popleft()


@final
class Feed:
    """What one worker needs of everyone's rows: received in order of rank, when it is needed.

    Args:
        batch: this worker's own rows, which it sends to those who want them.
        counts: everyone's rows.
        wants: for each worker, what it needs: some of INPUTS .. WEIGHTS, in this order.
        steps: of the longest sequence: inputs are padded to it on arrival; 0 where there are none.
    """

    def __init__(self, net: Net, batch: Batch, counts: Sequence[int], wants: Sequence[Sequence[int]], steps: int) -> None:
        self._net: Net = net
        self._counts: Sequence[int] = counts
        self._wants: Sequence[int] = wants[net.rank]
        self._steps: int = steps
        self._outbox: Outbox = Outbox(net)
        self._parts: list[dict[int, Tensor]] = []  # by rank, so far as they are here
        self._here: int = 0
        x, *lengths = batch.inputs or (None,)
        own = [x, *(lengths or [None]), batch.target, batch.weights]
        self._own: dict[int, Tensor] = {kind: each for kind, each in enumerate(own) if each is not None}
        for worker, wanted in enumerate(wants):
            if batch.rows and worker != net.rank:
                for kind in wanted:
                    self._outbox.send(self._own[kind], worker)

    async def until(self, stop: int) -> None:
        """Wait for rows 0 .. stop - 1."""
        while self._here < stop:
            source = len(self._parts)
            count, part = self._counts[source], dict[int, Tensor]()
            for kind in self._wants if count else ():
                x = self._own[kind] if source == self._net.rank else await self._net.recv(source)
                if kind == INPUTS and self._steps and self._steps > x.shape[1]:
                    x = pad(x, (0, 0) * (x.dim() - 2) + (0, self._steps - x.shape[1]))
                part[kind] = x
            self._parts.append(part)
            self._here += count

    def rows(self, kind: int, start: int, stop: int) -> Tensor:
        """Rows start .. stop - 1, which are here."""
        found, at = list[Tensor](), 0
        for count, part in zip(self._counts, self._parts, strict=False):
            first, last = max(start - at, 0), min(stop - at, count)
            if first < last:
                found.append(part[kind][first:last])
            at += count
        return found[0] if len(found) == 1 else torch.cat(found)

    async def settle(self) -> None:
        """Wait until the own rows have been sent."""
        await self._outbox.settle()
