"""VGG: 3x3 convolutions in five groups, and a head of fully connected layers."""

from __future__ import annotations

import math
from typing import Literal, final

from torch import Tensor, nn

from firesteel.models.layers import Fold, run_chain, whole

# Convolutions before each pooling: columns A, B, D and E of the paper's table 1.
_GROUPS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)
_HEAD = 512  # units of each of the two hidden layers, for pictures of this size; the paper's 4096 are for 224 x 224


@final
class VGG(nn.Module):
    """VGG-11, 13, 16 or 19 (Simonyan & Zisserman 2015, table 1) for images of 32 x 32: [B, channels, 32, 32] -> [B, classes].

    Flat images, [B, channels * 1024], are folded first.

    Args:
        depth: 11, 13, 16 or 19 layers with weights.
        width: what all numbers of channels and units are multiplied by, > 0; at least 8 remain, in steps of 8.
        norm: after each convolution: None, "batch", or "group" (8 channels a group), which is the same for every row whatever
            rows it is with. Convolutions before a norm have no bias, which the norm would take away again.
        dropout: in the head, 0 .. 1.

    Raises:
        ValueError: no such depth or norm, a width that is not > 0 and finite, a size that is no whole number of at least 1,
            a dropout outside 0 .. 1.

        >>> import torch
        >>> VGG(11, width=0.125, norm="group")(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: Literal[11, 13, 16, 19] = 16,
        width: float = 1.0,
        norm: Literal["batch", "group"] | None = None,
        channels: int = 3,
        classes: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth not in _GROUPS:
            raise ValueError(f"VGG(depth={depth}): there are {', '.join(map(str, _GROUPS))}.")
        if norm not in (None, "batch", "group"):
            raise ValueError(f'VGG(norm={norm!r}): give None, "batch" or "group".')
        if not 0 < width < math.inf:
            raise ValueError(f"VGG(width={width}): it must be greater than 0, and finite.")
        channels, classes = whole("VGG", channels=channels, classes=classes)
        kwargs = {"norm": norm, "channels": channels, "classes": classes, "dropout": dropout}
        self.spec = {"import": "firesteel.models:VGG", "args": [depth, width], "kwargs": kwargs}
        self.fold: Fold = Fold(channels, 32, 32)
        layers: list[nn.Module] = []
        before = channels
        for count, full in zip(_GROUPS[depth], _CHANNELS, strict=True):
            after = _scaled(full, width)
            for _ in range(count):
                layers += [nn.Conv2d(before, after, 3, padding=1, bias=norm is None), *_norm(norm, after), nn.ReLU()]
                before = after
            layers.append(nn.MaxPool2d(2))
        hidden = _scaled(_HEAD, width)
        drop = [nn.Dropout(dropout)] if dropout else []
        self.features: nn.Sequential = nn.Sequential(*layers)
        self.head: nn.Sequential = nn.Sequential(
            *(nn.Flatten(), nn.Linear(before, hidden), nn.ReLU(), *drop),
            *(nn.Linear(hidden, hidden), nn.ReLU(), *drop),
            nn.Linear(hidden, classes),
        )
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):  # without norms, PyTorch's own start dies out on the way through 13 layers
                _ = nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    _ = nn.init.zeros_(layer.bias)

    def chain(self) -> list[nn.Module]:
        """The layers in order."""
        return [self.fold, self.features, self.head]

    def forward(self, x: Tensor) -> Tensor:
        return run_chain(self.chain(), x)


def _scaled(full: int, width: float) -> int:
    return max(8, round(full * width / 8) * 8)


def _norm(norm: str | None, channels: int) -> list[nn.Module]:
    if norm is None:
        return []
    return [nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(channels // 8, channels)]
