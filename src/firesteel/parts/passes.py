"""A pass through a network in parts: graphs of autograd that are this worker's own, and the cuts between them.

At a cut what one graph has computed leaves it, and what the next one begins with is a leaf of its own: the same numbers, or
what came of a meeting. Backward, the cuts are passed in the opposite order; each turns the gradients of its leaves into
those of what had gone in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from firesteel.parts.meetings import Meetings
from firesteel.worker import FORWARD

Back = Callable[[list[Tensor]], Awaitable[list[Tensor]]]


@final
@dataclass
class Cut:
    before: list[Tensor]
    after: list[Tensor]
    back: Back | None
    spent: float
    """What the graph before it cost, in forward passes of the whole network."""
    partial: bool = False
    """Whether what reaches its leaves is only what this worker's own units make of the gradient: then it needs adding up."""


@final
class Tape:
    """The cuts of one pass.

    Args:
        meetings: with the other parts' workers.
        keep: whether there will be a backward pass.
        spend: in virtual time, spends a share of what the whole network's gradient costs.
    """

    def __init__(self, meetings: Meetings, keep: bool, spend: Callable[[float], None] | None) -> None:
        self.meetings: Meetings = meetings
        self.spent: float = 0.0  # all in all, in gradients of the whole network
        self._keep: bool = keep
        self._spend: Callable[[float], None] | None = spend
        self._cuts: list[Cut] = []
        self._since: float = 0.0

    def computed(self, share: float) -> None:
        """A layer has computed for such a share of the whole network's forward pass."""
        self._since += share
        self._pay(FORWARD * share)

    def cut(self, before: Sequence[Tensor], after: Sequence[Tensor], back: Back) -> tuple[Cut, list[Tensor]]:
        """End the graph that `before` came from; the next one begins with leaves of the numbers of `after`."""
        needed = self._keep and any(x.requires_grad for x in before)
        leaves = [x.detach().requires_grad_(needed) for x in after]
        made = Cut([], [], None, self._since)
        self._since = 0.0
        if needed:  # else nothing before it has a parameter
            made.before, made.after, made.back = list(before), leaves, back
            self._cuts.append(made)
        return made, leaves

    async def backward(self, outputs: Tensor, grad: Tensor) -> None:
        """From the gradient of the outputs to those of all parameters."""
        self._propagate([outputs], [grad], self._since)
        while self._cuts:
            cut = self._cuts.pop()
            grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in cut.after]
            assert cut.back is not None
            found = await cut.back(grads)
            self._propagate(cut.before, found, cut.spent)
            # What goes back knows its cut, and the cut what goes back: apart, they are let go at once, not some steps later.
            cut.before, cut.after, cut.back = [], [], None

    def _propagate(self, tensors: list[Tensor], grads: list[Tensor], spent: float) -> None:
        pairs = [(x, g) for x, g in zip(tensors, grads, strict=True) if x.requires_grad]
        if pairs:
            torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])
        self._pay((1 - FORWARD) * spent)

    def _pay(self, share: float) -> None:
        self.spent += share
        if self._spend is not None:
            self._spend(share)
