"""Which part of a tensor of the whole network a worker owns."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

Range = tuple[int, int]  # start, stop


@final
@dataclass(frozen=True)
class Cut:
    """Ranges along one dimension of a tensor, one after the other; without a dimension, all of it.

    >>> Cut((4, 6), 0, ((0, 1), (2, 3))).take(torch.arange(24).view(4, 6)).tolist()
    [[0, 1, 2, 3, 4, 5], [12, 13, 14, 15, 16, 17]]
    """

    whole: tuple[int, ...]
    """Shape of the whole tensor."""
    dim: int | None = None
    ranges: tuple[Range, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part."""
        if self.dim is None:
            return self.whole
        size = sum(stop - start for start, stop in self.ranges)
        return (*self.whole[: self.dim], size, *self.whole[self.dim + 1 :])

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def take(self, whole: Tensor) -> Tensor:
        """The part, in memory of its own."""
        if self.dim is None:
            return whole.clone()
        return torch.cat([whole.narrow(self.dim, start, stop - start) for start, stop in self.ranges], self.dim)

    def put(self, whole: Tensor, part: Tensor) -> None:
        """Write the part to its place in the whole."""
        if self.dim is None:
            _ = whole.copy_(part)
            return
        at = 0
        for start, stop in self.ranges:
            _ = whole.narrow(self.dim, start, stop - start).copy_(part.narrow(self.dim, at, stop - start))
            at += stop - start


@final
@dataclass(frozen=True)
class Piece:
    """A part of a named parameter or buffer of the whole network."""

    name: str
    cut: Cut
    shared: bool = False
    """Whether every part of the network has it, whole; then they keep it alike."""


def shares(units: int, parts: int) -> tuple[Range, ...]:
    """Who owns which of so many units: part k the k-th range of `tensor_split`.

    >>> shares(10, 3)
    ((0, 4), (4, 7), (7, 10))
    """
    size, more = divmod(units, parts)
    bounds = [k * size + min(k, more) for k in range(parts + 1)]
    return tuple(itertools.pairwise(bounds))
