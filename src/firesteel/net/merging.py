"""What a strategy and its center owe each other; the same words in every world."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from firesteel.errors import StrategyError
from firesteel.net.protocol import Push, Vec


def check_delta(verb: str, delta: object, size: int, dtype: torch.dtype) -> None:
    """Raise StrategyError unless a worker may push `delta` to a center of `size` parameters."""
    if not isinstance(delta, Tensor):
        raise StrategyError(f"net.{verb} was given a {type(delta).__name__}: push a tensor like worker.params.")
    if delta.shape != (size,) or delta.dtype != dtype:
        raise StrategyError(
            f"net.{verb} was given {delta.dtype} {list(delta.shape)}, but the center is {dtype} [{size}]: push what has the "
            "type and shape of worker.params."
        )


@final
@dataclass(frozen=True)
class Merging:
    """A strategy as its center sees it: whatever `merge` raises is the strategy's error, with its traceback."""

    strategy: Any

    @property
    def needs_seen(self) -> bool:
        return bool(getattr(self.strategy, "needs_seen", False))

    def merge(self, center: Vec, push: Push) -> None:
        try:
            self.strategy.merge(center, push)
        except Exception as error:
            frames = "".join(traceback.format_exception(error)).rstrip()
            raise StrategyError(
                f"{type(self.strategy).__name__}.merge raised {type(error).__name__}: {error}, at push {push.sequence} "
                f"of worker {push.worker}\n\nThe server's own traceback:\n{frames}"
            ) from None
