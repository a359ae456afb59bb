"""What a worker has of a network that lies in parts. Read this file first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from firesteel.net.protocol import Net
from firesteel.parts.cuts import Piece

if TYPE_CHECKING:
    from firesteel.data.shard import Batch
    from firesteel.losses import Loss

Meter = Callable[[int], Callable[[float], None]]  # of so many rows: spends a share of what their gradient costs


class Part(Protocol):
    """A module that is only a part of the network, whose other parts other workers have. All of them call each coroutine."""

    pieces: dict[str, Piece]
    """Of its parameters and buffers, by name: where they lie in the whole network."""
    alone: bool
    """Whether gradients are made without the others, from what they contributed last."""

    def bind(self, net: Net) -> None:
        """Tell it where the other parts are; the strategy does, before the first step."""
        ...

    async def prepare(self, batch: Batch) -> Batch:
        """Tell each other of this worker's rows to come; returns them with the weight of everyone's."""
        ...

    async def descend(self, batch: Batch, loss: Loss, meter: Meter | None) -> tuple[float, float]:
        """Add the gradient of the mean loss over everyone's rows to the parameters' `grad`.

        Returns a loss, and what it counts for: their weighted mean over all workers is that of the batch. In virtual time,
        `meter` spends what it costs.
        """
        ...

    async def norm(self) -> Tensor:
        """Of the whole network's gradient."""
        ...

    async def outputs(self, batch: Batch) -> Tensor:
        """The whole network's outputs for this worker's rows."""
        ...
