"""Several trained networks that answer as one."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn


@final
class Voting(nn.Module):
    """The mean of its members' answers: of probabilities where `classes`, returned as their logarithm, else of outputs."""

    def __init__(self, members: list[nn.Module], classes: bool) -> None:
        super().__init__()
        self.members: nn.ModuleList = nn.ModuleList(members)
        self.classes: bool = classes

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs = torch.stack([member(*inputs) for member in self.members])  # [M, B, C or d, ...]
        if self.classes:
            return torch.logsumexp(torch.log_softmax(outputs, 2), 0) - torch.log(torch.tensor(float(len(self.members))))
        return outputs.mean(0)
