"""LeNet-5."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from firesteel.models.layers import Fold, run_chain, whole


@final
class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling: images [B, channels, 28, 28] -> [B, classes].

    Flat images, [B, channels * 784], are folded first.

    Raises:
        ValueError: a size that is no whole number of at least 1.

        >>> import torch
        >>> LeNet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        channels, classes = whole("LeNet", channels=channels, classes=classes)
        self.spec = {"import": "firesteel.models:LeNet", "args": [channels, classes], "kwargs": {}}
        self.fold: Fold = Fold(channels, 28, 28)
        self.features: nn.Sequential = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head: nn.Sequential = nn.Sequential(
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)
        )

    def chain(self) -> list[nn.Module]:
        """The layers in order."""
        return [self.fold, self.features, self.head]

    def forward(self, x: Tensor) -> Tensor:
        return run_chain(self.chain(), x)
