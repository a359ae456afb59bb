"""The multilayer perceptron."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, final

from torch import Tensor, nn

from firesteel.models.layers import run_chain, whole

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
}


@final
class MLP(nn.Module):
    """Linear layers with an activation between them: [B, sizes[0]] -> [B, sizes[-1]].

    Inputs of more dimensions are flattened. `dropout` (0 .. 1) follows each activation.

    Raises:
        ValueError: fewer than two sizes, one that is no whole number of at least 1, an unknown activation, or a dropout
            outside 0 .. 1.

        >>> import torch
        >>> MLP(784, 256, 10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *sizes: int,
        activation: Literal["relu", "tanh", "gelu", "sigmoid", "hardsigmoid"] = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"MLP needs at least two sizes (in, hidden..., out); got {sizes}.")
        if activation not in ACTIVATIONS:
            raise ValueError(f"MLP(activation={activation!r}): there are {', '.join(ACTIVATIONS)}.")
        widths = whole("MLP", **{f"sizes[{i}]": size for i, size in enumerate(sizes)})
        self.spec = {
            "import": "firesteel.models:MLP",
            "args": list(widths),
            "kwargs": {"activation": activation, "dropout": dropout},
        }
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), ACTIVATIONS[activation]()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        while not isinstance(layers[-1], nn.Linear):
            _ = layers.pop()
        self.flat: nn.Flatten = nn.Flatten()
        self.layers: nn.Sequential = nn.Sequential(*layers)

    def chain(self) -> list[nn.Module]:
        """The layers in order."""
        return [self.flat, self.layers]

    def forward(self, x: Tensor) -> Tensor:
        return run_chain(self.chain(), x)
