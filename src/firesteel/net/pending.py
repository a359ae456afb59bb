"""A verb under way, on a real net."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar, final

from firesteel.trace import Trace

T = TypeVar("T")


@final
class Pending(Awaitable[T]):
    """A verb under way. `await` blocks until it is over, records how long that took, and hands over the result."""

    def __init__(self, finish: Callable[[], T], trace: Trace, kind: str, sent: int) -> None:
        self._finish: Callable[[], T] = finish
        self._trace: Trace = trace
        self._kind: str = kind
        self._sent: int = sent

    def __await__(self) -> Generator[Any, Any, T]:
        since = time.perf_counter()
        value = self._finish()
        self._trace.verb(self._kind, self._sent, time.perf_counter() - since)
        return value
        yield  # never reached: makes this a generator that never suspends
