"""What a world asks of a gang, and what it does at a publish point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from firesteel.net.protocol import Vec


@final
@dataclass
class Control:
    stop_asked: float = 0.0  # seen by worker 0: 1 asks to stop, 2 to hurry; the others learn it with the next collective
    stop_agreed: float = 0.0  # known to all workers since the same collective
    publish: Callable[[Vec, tuple[Tensor, ...]], None] = lambda params, rest: None
    resumed: tuple[Tensor, ...] | None = None
    met: bool = field(default=False, repr=False)  # a collective that carries the request, since the last publish
