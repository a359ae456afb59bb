"""Cross-entropy where each worker has its own classes."""

from __future__ import annotations

import torch
from torch import Tensor

from firesteel.errors import UsageError
from firesteel.parts.flow import Flow
from firesteel.parts.meetings import Meetings


async def split_cross_entropy(flow: Flow, targets: Tensor, weights: Tensor | None, meetings: Meetings) -> tuple[Tensor, Tensor]:
    """The mean loss, and its gradient with respect to this worker's own logits.

    Of each row (and place in it) the workers exchange three numbers: the largest logit, the sum of exponentials, and the
    target's logit where it is one's own.

    Args:
        flow: own logits, at "units" along dimension 1: [B, c, ...].
        targets: classes, int64 [B, ...].
    """
    logits = flow.x.detach().movedim(1, -1)  # [B, ..., c]
    rank, start = meetings.rank, sum(flow.sizes[: meetings.rank])
    classes = sum(flow.sizes)
    if logits.shape[:-1] != targets.shape:
        raise UsageError(f"outputs have the shape {tuple(flow.x.shape)}, labels {tuple(targets.shape)}.")
    if targets.numel() and not bool(((targets >= 0) & (targets < classes)).all() if not targets.is_meta else True):
        raise UsageError(f"labels must be 0 .. {classes - 1}.")
    local = targets - start
    mine = (local >= 0) & (local < flow.sizes[rank])  # [B, ...]
    at = local.clamp(0, max(flow.sizes[rank] - 1, 0))[..., None]
    if flow.sizes[rank]:
        most = logits.amax(-1)
        summed = (logits - most[..., None]).exp_().sum(-1)
        picked = torch.where(mine, logits.gather(-1, at)[..., 0], 0.0)
    else:
        most = logits.new_full(targets.shape, -torch.inf)
        summed, picked = (torch.zeros_like(most) for _ in range(2))
    told = await meetings.gather(torch.stack([most, summed, picked])[None], [1] * meetings.size)  # [N, 3, B, ...]
    highest = told[:, 0].amax(0)
    whole = (told[:, 1] * (told[:, 0] - highest).exp_()).sum(0)
    normaliser = highest + whole.log()
    losses = normaliser - told[:, 2].sum(0)
    share = _weights(weights, losses)
    grad = (logits - normaliser[..., None]).exp_()
    if flow.sizes[rank]:
        _ = grad.scatter_add_(-1, at, -mine.to(grad.dtype)[..., None])
    return (losses * share).sum(), (grad * share[..., None]).movedim(-1, 1)


def _weights(weights: Tensor | None, losses: Tensor) -> Tensor:
    """What each place's loss counts for in the mean."""
    if weights is None:
        return torch.full_like(losses, 1 / max(losses.numel(), 1))
    places = max(losses.numel() // max(len(losses), 1), 1)
    each = weights.to(losses.dtype).view(-1, *[1] * (losses.dim() - 1))
    return (each / (weights.sum() * places)).expand_as(losses)
