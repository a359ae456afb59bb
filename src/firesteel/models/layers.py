"""Layers without parameters, and how a chain of layers runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn


@final
class Fold(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


@final
class Last(nn.Module):
    def forward(self, states: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            return states[:, -1]
        rows = torch.arange(len(states), device=states.device)
        return torch.where((lengths > 0)[:, None], states[rows, (lengths - 1).clamp(min=0)], 0.0)


@final
class ClassesFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, -1)


def run_chain(layers: Sequence[nn.Module], x: Tensor, lengths: Tensor | None = None) -> Tensor:
    for layer in layers:
        found = layer(x, lengths) if isinstance(layer, Last) else layer(x)
        x = found[0] if isinstance(layer, nn.RNNBase) else found
    return x
