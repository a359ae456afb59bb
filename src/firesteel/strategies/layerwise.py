"""What training layer by layer keeps of each row, and what it sums over all of them ("transpose reduction").

The activations and inputs of a row stay with it on its worker; what crosses the network for a layer is the sums z a^T and
a a^T over all rows, whose size does not depend on their number: Taylor et al. 2016 (arXiv 1605.02026), section 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from firesteel.errors import Diverged
from firesteel.net.protocol import Net
from firesteel.strategies import outputs
from firesteel.strategies.chain import Chain
from firesteel.strategies.outputs import Output
from firesteel.worker import Worker

_BLOCK = 4096  # rows that are worked on at once
_MET = 0.01  # a primal residual that nobody need be told of: outputs are of the size of labels, about 1
Part = slice


@final
class Layerwise:
    """This worker's rows: for layer k (from 0) its input a[k], [n, in], and its output z[k], [n, out]; and the multiplier u.

    The data are a[0], which are not copied: `inputs` takes them from where they lie.
    """

    def __init__(self, worker: Worker, chain: Chain, output: Output) -> None:
        self.worker: Worker = worker
        self.chain: Chain = chain
        self.output: Output = output
        rows, like = worker.shard.rows, worker.params
        last = chain.layers[-1].out_features
        self.parts: list[Part] = [slice(start, min(start + _BLOCK, rows)) for start in range(0, rows, _BLOCK)]
        self._hidden: list[Tensor] = [like.new_zeros(rows, layer.in_features) for layer in chain.layers[1:]]
        self.z: list[Tensor] = [like.new_zeros(rows, layer.out_features) for layer in chain.layers]
        self.u: Tensor = like.new_zeros(rows, last)
        self.y: Tensor = like.new_zeros(rows, last)
        self.weights: Tensor | None = None
        for part in self.parts:
            batch = worker.shard.block(part.start, part.stop)
            assert batch.target is not None
            self.y[part] = outputs.targets(output, batch.target, last, like.dtype).to(like.device)
            if batch.weights is not None:
                if self.weights is None:
                    self.weights = like.new_zeros(rows)
                self.weights[part] = batch.weights.to(like)
        self._grams: list[Tensor | None] = [None for _ in chain.layers]  # sums of a a^T over all workers, while a stands

    @property
    def gradients(self) -> float:
        """What the arithmetic of a sweep costs, in gradients of all rows: sums, activations and outputs of each layer."""
        sizes = [(layer.in_features, layer.out_features) for layer in self.chain.layers]
        steps = sum(4 * i * o for i, o in sizes) + sum(4 * i * o + 2 * i * i for i, o in sizes[1:])
        return steps / sum(6 * i * o for i, o in sizes)

    def inputs(self, k: int, part: Part) -> Tensor:
        """Layer k's inputs for some rows, [B, in]."""
        if k:
            return self._hidden[k - 1][part]
        batch = self.worker.shard.block(part.start, part.stop)
        return batch.inputs[0].flatten(1).to(self.worker.params)

    def new_inputs(self, k: int) -> Tensor:
        """Where to write new inputs of a layer after the first, [n, in]; every worker asks for it, with rows or without."""
        self._grams[k] = None
        return self._hidden[k - 1]

    def mapped(self, k: int, part: Part) -> Tensor:
        """What layer k makes of its inputs, W a + b, [B, out]."""
        layer = self.chain.layers[k]
        found = self.inputs(k, part) @ layer.weight.data.T
        return found if layer.bias is None else found.add_(layer.bias.data)

    def weight(self, part: Part) -> Tensor:
        """The rows' weights, [B, 1]."""
        return self.u.new_ones(part.stop - part.start, 1) if self.weights is None else self.weights[part, None]

    async def sums(self, net: Net, k: int, target: Callable[[Part], Tensor]) -> tuple[Tensor, Tensor]:
        """Over all rows of all workers, float64: sum of target [a, 1]^T, [out, in + 1], and of [a, 1] [a, 1]^T.

        One round. The second is computed and sent only where layer k's inputs have changed since it last was.
        """
        layer, gram = self.chain.layers[k], self._grams[k]
        d, out, like = layer.in_features + 1, layer.out_features, self.worker.params
        local = torch.zeros(out + (d if gram is None else 0), d, dtype=torch.float64, device=like.device)
        for part in self.parts:
            a = torch.cat([self.inputs(k, part), like.new_ones(part.stop - part.start, 1)], dim=1)
            weighted = a if self.weights is None else a * self.weight(part)
            local[:out] += target(part).T @ weighted
            if gram is None:
                local[out:] += a.double().T @ weighted.double()
        found = await net.all_reduce(local, "sum")
        if gram is None:
            gram = self._grams[k] = found[out:].clone()
        return found[:out], gram

    def state(self) -> tuple[Tensor, ...]:
        """All that a resume needs beside the weights."""
        known = [gram for gram in self._grams if gram is not None]
        which = torch.tensor([gram is not None for gram in self._grams])
        return *self._hidden, *self.z, self.u, which, *known

    def restore(self, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Take up what `state` gave; returns what is left over."""
        places = [*self._hidden, *self.z, self.u]
        for place, value in zip(places, found, strict=False):
            place.copy_(value)
        which, left = found[len(places)].tolist(), list(found[len(places) + 1 :])
        self._grams = [left.pop(0).clone() if known else None for known in which]
        return tuple(left)


@final
class Tally:
    """Sums over this worker's rows of what a sweep leaves behind: mean squares of residuals, and the objective."""

    NAMES = ("primal", "dual", "multiplier", "hidden")

    def __init__(self) -> None:
        self._sums: Tensor = torch.zeros(len(self.NAMES) + 1, 2, dtype=torch.float64)

    def square(self, **residuals: Tensor) -> None:
        """Count some rows' residuals, [B, width]."""
        for name, value in residuals.items():
            norm = float(torch.linalg.vector_norm(value, dtype=torch.float64))
            self._sums[self.NAMES.index(name)] += torch.tensor([norm**2, value.numel()], dtype=torch.float64)

    def cost(self, weight: Tensor, by_row: Tensor) -> None:
        """Count some rows' part of the objective, [B], with their weights, [B, 1]."""
        self._sums[-1, 0] += float((by_row.double() * weight[:, 0]).sum())

    async def figures(self, net: Net, rows: Layerwise) -> dict[str, float]:
        """Over all workers: roots of mean squares, and the objective for a row (of weight 1). One round."""
        self._sums[-1, 1] = sum(float(rows.weight(part).double().sum()) for part in rows.parts)
        found = await net.all_reduce(self._sums.to(rows.u.device), "sum")
        mean = (found[:, 0] / found[:, 1].clamp(min=1e-300)).tolist()
        return {"objective": mean[-1]} | {name: math.sqrt(m) for name, m in zip(self.NAMES, mean, strict=False)}


def unmet(history: list[dict[str, Any]], remedy: str) -> str | None:
    """A warning where the multiplier has moved for ten sweeps or more, and what it is to bring to nothing is still there."""
    found = [(row["primal"], row["multiplier"]) for row in history if row["multiplier"]]
    if len(found) <= 10:
        return None
    (primal, multiplier), (still, grown) = found[0], found[-1]
    if still <= max(primal / 2, _MET) or grown <= multiplier:
        return None
    return (
        f"the multiplier went from {multiplier:.3g} to {grown:.3g} while the primal residual went from {primal:.3g} to "
        f"{still:.3g}: the network's output does not come to what the loss asks for. {remedy}"
    )


def least_squares(targets: Tensor, gram: Tensor, ridge: float, near: Tensor | None = None) -> Tensor:
    """W with W (A^T A + r I) = Z^T A + r near, float64 [out, in], from Z^T A and A^T A; r = ridge * mean diagonal.

    Units that are dead on all rows leave A^T A singular: the ridge then holds their weights at 0, or where they were.
    """
    if not bool(torch.isfinite(targets).all() & torch.isfinite(gram).all()):
        raise Diverged("a layer's sums over all rows are no longer finite: lower the penalties, or start the multiplier later.")
    r = ridge * float(gram.diagonal().mean()) or ridge
    wanted = targets if near is None else targets + r * near
    return _solve(gram + r * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), wanted.T, "ridge").T


def towards(weight: Tensor, beta: float, gamma: float) -> Tensor:
    """K with which argmin over a of beta |t - W a|^2 + gamma |a - h|^2 is h + K (t - W h): [in, out].

    The usual form, (beta W^T W + gamma I)^-1 (beta W^T t + gamma h), is the same, but loses h to rounding where gamma is
    small beside beta |W|^2.
    """
    w = weight.double()
    matrix = beta * w.T @ w + gamma * torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    return _solve(matrix, beta * w.T, "penalty of the activations (gamma, nu)").to(weight.dtype)


def _solve(matrix: Tensor, right: Tensor, too_small: str) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise Diverged(f"a layer's least squares have no unique solution in float64: a larger {too_small} gives them one.")
    return torch.cholesky_solve(right, factor)
