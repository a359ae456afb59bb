"""Networks as chains of Linear layers with an activation between them, which is what training layer by layer can take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from firesteel.errors import UsageError
from firesteel.models.mlp import MLP

_INF = math.inf


@final
@dataclass(frozen=True)
class Piece:
    """Where an activation is slope * z + shift: for low <= z <= high."""

    low: float
    high: float
    slope: float
    shift: float = 0.0


@final
@dataclass(frozen=True)
class Activation:
    """A piecewise linear function of one number; the pieces cover the line, from left to right."""

    function: nn.Module
    pieces: tuple[Piece, ...]

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z)

    def nearest(self, a: Tensor, m: Tensor, gamma: float, beta: float) -> Tensor:
        """argmin over z of gamma (a - h(z))^2 + beta (z - m)^2, entry by entry: the best of the minima of all pieces."""
        best, least = m, None
        for p in self.pieces:
            if p.slope:
                z = torch.add(beta * m, a, alpha=gamma * p.slope).sub_(gamma * p.slope * p.shift)
                z = z.div_(gamma * p.slope**2 + beta).clamp_(p.low, p.high)
                missed = torch.sub(a, z, alpha=p.slope)
            else:
                z, missed = m.clamp(p.low, p.high), a
            cost = (missed - p.shift if p.shift else missed).square().mul_(gamma)
            cost = cost.add_((z - m).square_(), alpha=beta)
            if least is None:
                best, least = z, cost
            else:
                best, least = torch.where(cost < least, z, best), torch.minimum(cost, least)
        return best


def _pieces(layer: nn.Module) -> tuple[Piece, ...] | None:
    if not _plain(layer):
        return None
    match layer:
        case nn.ReLU():
            return Piece(-_INF, 0, 0), Piece(0, _INF, 1)
        case nn.LeakyReLU():
            return Piece(-_INF, 0, layer.negative_slope), Piece(0, _INF, 1)
        case nn.Hardsigmoid():
            return Piece(-_INF, -3, 0), Piece(-3, 3, 1 / 6, 0.5), Piece(3, _INF, 0, 1)
        case nn.Hardtanh():  # between 0 and 1 it is the "hard sigmoid" of Taylor et al.
            low, high = layer.min_val, layer.max_val
            return Piece(-_INF, low, 0, low), Piece(low, high, 1), Piece(high, _INF, 0, high)
        case nn.Identity():
            return (Piece(-_INF, _INF, 1),)
        case _:
            return None


def _plain(layer: nn.Module) -> bool:
    """Whether a layer is PyTorch's own, and not a subclass that may do anything, or one whose weight is computed."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
    return type(layer).__module__.startswith("torch.nn.modules.") and not hooked


@final
@dataclass(frozen=True)
class Chain:
    """The Linear layers of a module, and the activations between them: one fewer."""

    layers: tuple[nn.Linear, ...]
    between: tuple[Activation, ...]


def chain(module: nn.Module, who: str) -> Chain:
    """A module as a chain; `who` asks for it.

    Raises:
        UsageError: it is no `MLP` or `nn.Sequential` of Linear layers with piecewise linear activations between them.
    """
    found = module.layers if isinstance(module, MLP) else module
    if not isinstance(found, nn.Sequential) or not _plain(found):
        raise UsageError(
            f"{who} needs a firesteel.models.MLP, or an nn.Sequential of Linear layers and activations; got "
            f"{type(module).__name__}."
        )
    layers: list[nn.Linear] = []
    between: list[Activation] = []
    for number, layer in enumerate(found):
        pieces = _pieces(layer)
        if isinstance(layer, nn.Flatten) and not layers:
            continue
        if isinstance(layer, nn.Linear) and _plain(layer) and len(layers) == len(between):
            layers.append(layer)
        elif pieces is not None and len(layers) == len(between) + 1:
            between.append(Activation(layer, pieces))
        else:
            raise UsageError(
                f"{who} trains layer by layer, and cannot take layer {number} ({type(layer).__name__}) where it stands: give "
                "Linear layers with ReLU, LeakyReLU, Hardsigmoid, Hardtanh or Identity between them, and a Linear layer last."
            )
    if len(layers) != len(between) + 1:
        raise UsageError(f"{who} needs a Linear layer last; this model ends with {found[-1] if len(found) else 'nothing'}.")
    if len({id(layer.weight) for layer in layers}) < len(layers):
        raise UsageError(f"{who} solves for one layer's weights after the other, but two layers of this model share theirs.")
    frozen = next((n for n, p in module.named_parameters() if not p.requires_grad), None)
    if frozen is not None:
        raise UsageError(f"{who} solves for every layer's weights, but parameter '{frozen}' is frozen.")
    return Chain(tuple(layers), tuple(between))
