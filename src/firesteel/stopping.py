"""Ctrl-C: a request to the workers first, force only when they do not answer."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import final

from firesteel.checkpoint import Board
from firesteel.errors import Interrupted

_GRACE_SECONDS = 2.0
HURRY = b"hurry"  # what a request to stop says when somebody waits for it: leave out what can be left out


@contextlib.contextmanager
def plain_interrupts() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt and nothing else meanwhile: PySpark's own handler would cancel all jobs at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        _ = signal.signal(signal.SIGINT, before)


@final
class Patience:
    """Keeps the time between the request to stop and the end of the caller's patience."""

    def __init__(self) -> None:
        self._asked_at: float | None = None

    def ask(self, board: Board | None, pressed: KeyboardInterrupt) -> None:
        """Ctrl-C was pressed: ask the workers to stop. Pressed again, or with nobody to ask, it is raised."""
        if isinstance(pressed, Interrupted) or self._asked_at is not None:
            raise pressed
        if board is None:
            raise Interrupted("stopped by Ctrl-C; without a run folder there was no way to keep the model.") from None
        self._asked_at = time.monotonic()
        board.put("stop", HURRY)

    def check(self) -> None:
        """Raise when the workers were asked and have not stopped in time."""
        if self._asked_at is not None and time.monotonic() - self._asked_at > _GRACE_SECONDS:
            raise Interrupted("stopped by Ctrl-C; the workers did not answer in time and were ended.")

    @property
    def asked(self) -> bool:
        return self._asked_at is not None
