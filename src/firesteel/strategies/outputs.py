r"""What stands at the end of a network that is trained without gradients: losses whose proximal step is cheap.

Each is a sum over the outputs of a row: hinge \( \max(1 - z, 0) \) where y is 1 and \( \max(z - y, 0) \) elsewhere, the
squared error \( (z - y)^2 \), and the cross-entropy of softmax(z). Of classes y is 1 at the row's own and 0 elsewhere. Of
labels that are values, which the sign of an output is to tell apart, the hinge takes 0 as -1.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from firesteel.errors import UsageError

Output = Literal["hinge", "squared", "cross_entropy"]
OUTPUTS: tuple[Output, ...] = ("hinge", "squared", "cross_entropy")


def check(who: str, output: Output, width: int) -> None:
    """Raise UsageError where a network of so many outputs cannot end in this loss."""
    if output == "cross_entropy" and width < 2:
        raise UsageError(f'{who}(output="cross_entropy") needs an output for each class; with one output use "hinge".')


def targets(output: Output, target: Tensor, width: int, kind: torch.dtype) -> Tensor:
    """Labels as the numbers that outputs are to come to, [n, width]."""
    if not target.is_floating_point():
        return one_hot(target, width).to(kind)
    values = target.to(kind).view(len(target), -1)
    if output != "squared" and not bool(((values == 0) | (values == 1)).all()):
        raise UsageError(f'output="{output}" needs labels that are 0 or 1, or classes; for other values use output="squared".')
    if output == "cross_entropy" and not bool((values.sum(1) == 1).all()):
        raise UsageError('output="cross_entropy" needs exactly one 1 in each row; for several labels, or none, use "hinge".')
    return 2 * values - 1 if output == "hinge" else values


def loss(output: Output, z: Tensor, y: Tensor) -> Tensor:
    """The loss of each row, [n]."""
    match output:
        case "hinge":
            return torch.where(y == 1, 1 - z, z - y).clamp(min=0).sum(1)
        case "squared":
            return ((z - y) ** 2).sum(1)
        case "cross_entropy":
            return z.logsumexp(1) - (y * z).sum(1)


def nearest(output: Output, y: Tensor, b: Tensor, beta: float, start: Tensor) -> Tensor:
    """argmin over z of loss + beta |z - b|^2, [n, width]; only the cross-entropy, which has no closed form, needs a start."""
    match output:
        case "hinge":
            up, down = b + 1 / (2 * beta), b - 1 / (2 * beta)
            one = torch.where(up <= 1, up, torch.where(b >= 1, b, 1.0))
            other = torch.where(down >= y, down, torch.where(b <= y, b, y))
            return torch.where(y == 1, one, other)
        case "squared":
            return (y + beta * b) / (1 + beta)
        case "cross_entropy":
            return _cross_entropy(y, b, beta, start)


def _cross_entropy(y: Tensor, b: Tensor, beta: float, start: Tensor, sweeps: int = 10) -> Tensor:
    """By FISTA, with the Lipschitz constant 1/2 + 2 beta (Beck & Teboulle 2009)."""
    z, ahead, t = start, start, 1.0
    for _ in range(sweeps):
        gradient = ahead.softmax(1) - y + 2 * beta * (ahead - b)
        following = ahead - gradient / (0.5 + 2 * beta)
        t, before = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
        ahead, z = following + (before - 1) / t * (following - z), following
    return z
