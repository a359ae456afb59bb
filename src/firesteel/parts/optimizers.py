"""Which optimizers do not mind that a worker has only a part of each tensor."""

from __future__ import annotations

import torch
from torch import optim

_BY_NUMBER = (
    *(optim.SGD, optim.ASGD, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam),
    *(optim.Adagrad, optim.Adadelta, optim.RMSprop, optim.Rprop),
)


def advice(optimizer: torch.optim.Optimizer) -> str | None:
    """A warning, unless the optimizer is known to treat each number by itself."""
    if type(optimizer) in _BY_NUMBER:
        return None
    return (
        f"{type(optimizer).__name__} may look at a tensor as a whole, of which each worker has only a part: then what is "
        "learned is not what one process would learn. SGD, Adam and their kin treat each number by itself."
    )
