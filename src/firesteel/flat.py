"""Parameters in ONE flat buffer and gradients in another: the module's tensors are views of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from firesteel.errors import UsageError
from firesteel.net.protocol import Vec


@final
@dataclass(frozen=True)
class Slot:
    """Where one parameter lies in the flat buffer."""

    name: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    numel: int

    def view(self, flat: Vec) -> Tensor:
        return flat.as_strided(self.shape, self.stride, flat.storage_offset() + self.offset)


def _dense(p: Tensor) -> tuple[int, ...]:
    """The parameter's own strides where they cover its memory without gaps (channels_last does), else row-major."""
    extent = 1 + sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True)) if p.numel() else 0
    dense = extent == p.numel() and 0 not in p.stride()
    return tuple(p.stride()) if dense else tuple(torch.empty(p.shape, device="meta").stride())


def layout(module: nn.Module) -> tuple[list[Slot], torch.dtype, torch.device]:
    """The layout table of the trainable parameters; a tied parameter has one slot, a frozen one has none.

    Raises:
        UsageError: nothing to train, parameters of more than one type or device, or lazy ones.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise UsageError("the model has no trainable parameters; nothing could be learned.")
    for name, p in named:
        if isinstance(p, nn.UninitializedParameter):
            raise UsageError(f"parameter '{name}' is lazy: run one batch through the model before training it.")
    kinds = {(p.dtype, p.device): name for name, p in named}
    if len(kinds) > 1:
        found = ", ".join(f"{name}: {dtype} on {device}" for (dtype, device), name in kinds.items())
        raise UsageError(f"all trainable parameters must have one type and device, but there are {found}; use model.float().")
    slots, offset = [], 0
    for name, p in named:
        slots.append(Slot(name, offset, tuple(p.shape), _dense(p), p.numel()))
        offset += p.numel()
    return slots, named[0][1].dtype, named[0][1].device


def flatten(module: nn.Module) -> tuple[Vec, Vec, list[Slot]]:
    """Move the trainable parameters and their gradients into two flat buffers, [P] each; returns them and the layout."""
    slots, dtype, device = layout(module)
    size = slots[-1].offset + slots[-1].numel
    params, grads = (torch.zeros(size, dtype=dtype, device=device) for _ in range(2))
    parameters = dict(module.named_parameters())
    for slot in slots:
        p = parameters[slot.name]
        slot.view(params).copy_(p.detach())
        p.data, p.grad = slot.view(params), slot.view(grads)
    return params, grads, slots


def statistics_of(module: nn.Module) -> Vec:
    """A copy of the floating-point buffers that are not parameters, flat, [Q]."""
    found = [b.detach().reshape(-1) for b in statistics(module)]
    return torch.cat(found) if found else torch.empty(0)


def statistics(module: nn.Module) -> list[Tensor]:
    return [b for b in module.buffers() if b.is_floating_point()]


def buckets(slots: Sequence[Slot], bucket_bytes: int, element_bytes: int) -> list[list[Slot]]:
    """Slots in groups of at least `bucket_bytes`, the last ones first: a backward pass completes them first."""
    groups: list[list[Slot]] = [[]]
    for slot in reversed(slots):
        groups[-1].append(slot)
        if sum(s.numel for s in groups[-1]) * element_bytes >= bucket_bytes:
            groups.append([])
    return [group for group in groups if group]


@final
class Buckets:
    """Tells when slices of the gradient are complete, in one order on every worker, whichever comes first."""

    def __init__(self, module: nn.Module, slots: list[Slot], bucket_bytes: int, element_bytes: int) -> None:
        groups = buckets(slots, bucket_bytes, element_bytes)
        self.parts: list[slice] = [slice(g[-1].offset, g[0].offset + g[0].numel) for g in groups]
        self._of: dict[str, int] = {slot.name: number for number, group in enumerate(groups) for slot in group}
        parameters = dict(module.named_parameters())
        for name, bucket in self._of.items():
            parameters[name].register_post_accumulate_grad_hook(lambda p, bucket=bucket: self._done(bucket))
        self._sizes: list[int] = [list(self._of.values()).count(i) for i in range(len(self.parts))]
        self._ready: Callable[[slice], None] | None = None
        self._left: list[int] = []
        self._next: int = 0

    def begin(self, ready: Callable[[slice], None]) -> None:
        self._ready, self._left, self._next = ready, list(self._sizes), 0

    def _done(self, bucket: int) -> None:
        if self._ready is None:
            return
        self._left[bucket] -= 1
        while self._next < len(self.parts) and self._left[self._next] <= 0:
            self._ready(self.parts[self._next])
            self._next += 1

    def finish(self) -> None:
        """Call `ready` for what is left: parameters that this batch did not use have no gradient to wait for."""
        ready, self._ready = self._ready, None
        assert ready is not None
        for part in self.parts[self._next :]:
            ready(part)
