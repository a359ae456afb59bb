"""What stands between the layers with weights of our networks, and how a chain of layers is run."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn


@final
class Fold(nn.Module):
    """Rows of another shape with the same numbers: [B, ...] -> [B, *shape]; one size may be -1, whatever is left.

    >>> Fold(-1, 28)(torch.zeros(2, 784)).shape
    torch.Size([2, 28, 28])
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = shape

    def forward(self, x: Tensor) -> Tensor:
        known = math.prod(size for size in self.shape if size != -1)
        left = math.prod(x.shape[1:]) // known  # said, as no rows at all would leave it open
        return x.reshape(len(x), *(left if size == -1 else size for size in self.shape))

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.shape))


@final
class Last(nn.Module):
    """The state after each row's last step: [B, T, H] -> [B, H]; of a row of length 0 the state before its first step, 0.

    `lengths`, [B], are the rows' own; without them every row has T steps.

        >>> states = torch.arange(12.0).view(2, 3, 2)
        >>> Last()(states, torch.tensor([3, 1])).tolist()
        [[4.0, 5.0], [6.0, 7.0]]
    """

    def forward(self, states: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            return states[:, -1]
        rows = torch.arange(len(states), device=states.device)
        return torch.where((lengths > 0)[:, None], states[rows, (lengths - 1).clamp(min=0)], 0.0)


@final
class ClassesFirst(nn.Module):
    """Classes of every step as `cross_entropy` wants them: [B, T, C] -> [B, C, T]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def run_chain(layers: Iterable[nn.Module], x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """What layers, each called with what the one before it gave, make of x, [B, ...].

    Two kinds are called in their own way, where they stand in the chain itself: of what an `nn.RNN`, `nn.LSTM` or `nn.GRU`
    returns, only the first goes on, the states [B, T, H]; and `Last` alone sees the `lengths`, [B], of sequences that were
    padded. An `nn.Sequential` in the chain is called as it is.
    """
    for layer in layers:
        if isinstance(layer, Last):
            x = layer(x, lengths)
        elif isinstance(layer, nn.RNNBase):
            x, _ = layer(x)
        else:
            x = layer(x)
    return x


def whole(network: str, **sizes: int) -> tuple[int, ...]:
    """The sizes a network was given, as ints of at least 1.

    Raises:
        ValueError: one of them is something else.

    >>> whole("LSTMClassifier", inputs=12, hidden=32)
    (12, 32)
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not hasattr(size, "__index__") or operator.index(size) < 1:
            raise ValueError(f"{network}({name}={size!r}): give a whole number of at least 1.")
    return tuple(map(operator.index, sizes.values()))
