"""How a simulation tells its progress and hears that it should stop."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, final

from firesteel.checkpoint import Board
from firesteel.stopping import HURRY


@final
class Notices:
    """A board that only this process sees."""

    def __init__(self) -> None:
        self._notes: dict[str, bytes] = {}

    def put(self, name: str, data: bytes) -> None:
        self._notes[name] = data

    def get(self, name: str) -> bytes | None:
        return self._notes.get(name)


@final
class Ticker:
    """Tells the progress, and hears requests to stop, a few times a (wall) second."""

    def __init__(self, board: Notices, watch: Callable[[Board], None]) -> None:
        self.board: Notices = board
        self._watch: Callable[[Board], None] = watch
        self._shown: float = time.monotonic()
        watch(board)  # from now on it knows where to look for the last good model

    def tick(self, state: Callable[[], dict[str, Any]], final: bool = False) -> bytes | None:
        """Returns a request to stop, if there is one."""
        now = time.monotonic()
        if final or now - self._shown >= 0.25:
            self._shown = now
            self.board.put("progress.json", json.dumps(state()).encode())
            self._watch(self.board)
        return self.board.get("stop")


@contextlib.contextmanager
def interrupts() -> Iterator[Notices]:
    """A board on which Ctrl-C asks for the end once; from then on it is a KeyboardInterrupt."""
    board = Notices()
    if threading.current_thread() is not threading.main_thread():
        yield board
        return

    def pressed(*_: object) -> None:
        if board.get("stop") == HURRY:
            raise KeyboardInterrupt
        board.put("stop", HURRY)

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield board
    finally:
        _ = signal.signal(signal.SIGINT, before)
