"""The memory of L-BFGS, spread over the workers by coordinate: pairs (s, y), the gradient, and their inner products.

Every worker keeps its share of the base vectors, [2k + 1, P / N], and the Gram matrix of the whole ones, from which the
weights of the direction follow: Chen, Wang & Zhou 2014, "Large-scale L-BFGS using MapReduce" (NIPS), section 3; the
two-loop recursion is Nocedal & Wright 2006, algorithm 7.4.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from firesteel.net.protocol import Net, Vec
from firesteel.strategies.shares import dots

_LEAST_CURVATURE = 1e-10  # of a pair, relative to |s|^2: flatter ones are skipped, so that the matrix stays positive


def two_loop(gram: Tensor, pairs: int) -> Tensor:
    """Weights of the direction in the base s_1..s_k (oldest first), y_1..y_k, g, from its Gram matrix; [2k + 1]."""
    k, g = pairs, gram.tolist()
    delta, alpha = [0.0] * (2 * k) + [-1.0], [0.0] * k
    for j in reversed(range(k)):
        alpha[j] = math.fsum(d * row[j] for d, row in zip(delta, g, strict=True)) / g[j][k + j]
        delta[k + j] -= alpha[j]
    if k:
        scale = g[k - 1][2 * k - 1] / g[2 * k - 1][2 * k - 1]
        delta = [d * scale for d in delta]
    for j in range(k):
        beta = math.fsum(d * row[k + j] for d, row in zip(delta, g, strict=True)) / g[j][k + j]
        delta[j] += alpha[j] - beta
    return torch.tensor(delta, dtype=torch.float64)


@final
class History:
    """This worker's share of the base vectors, and the Gram matrix of the whole.

    Slots: memory of s, memory of y, one of g; pair number t is in slot t mod memory.
    """

    def __init__(self, memory: int, like: Vec) -> None:
        self.memory: int = memory
        self.base: Tensor = like.new_zeros(2 * memory + 1, like.numel())
        self.gram: Tensor = torch.zeros(2 * memory + 1, 2 * memory + 1, dtype=torch.float64)
        self.taken: int = 0  # pairs ever taken, since the last reset
        self.skipped: int = 0

    @property
    def gradient(self) -> Vec:
        """The newest base vector, which is the gradient (or what stands for it), [P / N]."""
        return self.base[-1]

    def _order(self) -> list[int]:
        k, m = min(self.taken, self.memory), self.memory
        slots = [t % m for t in range(self.taken - k, self.taken)]
        return [*slots, *(m + s for s in slots), 2 * m]

    async def begin(self, net: Net, gradient: Vec) -> None:
        """No pairs, only a gradient."""
        self.taken = 0
        _ = self.gradient.copy_(gradient)
        self.gram[-1, -1] = float(await net.all_reduce(dots(gradient[None], gradient[None]), "sum"))

    async def add(self, net: Net, s: Vec, y: Vec, gradient: Vec) -> float:
        """Take a pair, unless it has no curvature, and the gradient at the new point; one sum over the workers.

        Returns the squared length of s.
        """
        order, m = self._order()[:-1], self.memory
        new = torch.stack([s, y, gradient])  # [3, P/N]
        local = torch.cat([dots(new, self.base[:-1]), dots(new, new)], dim=1)  # [3, 2m + 3]
        found = (await net.all_reduce(local, "sum")).cpu()
        among = found[:, 2 * m :]
        _ = self.gradient.copy_(gradient)
        if among[0, 1] <= _LEAST_CURVATURE * among[0, 0]:
            self.skipped += 1
            places, rows = [2 * m], [2]
        else:
            slot = self.taken % m
            self.base[slot], self.base[m + slot] = s, y
            self.taken += 1
            places, rows = [slot, m + slot, 2 * m], [0, 1, 2]
        for place, row in zip(places, rows, strict=True):
            for other in order:
                if other not in places:
                    self.gram[place, other] = self.gram[other, place] = found[row, other]
            for also, column in zip(places, rows, strict=True):
                self.gram[place, also] = self.gram[also, place] = among[row, column]
        return float(among[0, 0])

    def direction(self) -> tuple[Vec, float, float]:
        """This worker's share of the direction, [P / N]; its product with the gradient, and its length."""
        order = self._order()
        gram = self.gram[order][:, order]
        weights = two_loop(gram, len(order) // 2)
        in_slots = torch.zeros(2 * self.memory + 1, dtype=torch.float64)
        in_slots[order] = weights
        share = in_slots.to(self.base) @ self.base
        return share, float(weights @ gram[:, -1]), math.sqrt(max(0.0, float(weights @ gram @ weights)))

    def state(self) -> tuple[Tensor, ...]:
        return self.base, self.gram, torch.tensor([self.taken, self.skipped])

    def restore(self, base: Tensor, gram: Tensor, counts: Tensor) -> None:
        self.base.copy_(base)
        self.gram.copy_(gram)
        self.taken, self.skipped = (int(x) for x in counts)
