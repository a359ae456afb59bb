"""Networks to begin with. Sizes in, hidden..., out."""

from __future__ import annotations

from firesteel.models.lenet import LeNet
from firesteel.models.mlp import MLP

__all__ = ["MLP", "LeNet"]
