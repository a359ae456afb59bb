"""Connections that have not yet shown the run's token."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import final

_MOST = 256


@final
class Door:
    """Who waits there, oldest first. So many that they would take all files or threads are not kept: the oldest has had the
    most time."""

    def __init__(self) -> None:
        self._lock: threading.Lock = threading.Lock()
        self._waiting: dict[socket.socket, None] = {}

    def enter(self, connection: socket.socket) -> None:
        with self._lock:
            self._waiting[connection] = None
            too_many = len(self._waiting) > _MOST
        if too_many:
            self.send_away_the_oldest()

    def leave(self, connection: socket.socket) -> None:
        """It has shown the token, or is about to be closed."""
        with self._lock:
            self._waiting.pop(connection, None)

    def send_away_the_oldest(self) -> None:
        """Its own thread wakes by that, and closes it."""
        with self._lock, contextlib.suppress(OSError, StopIteration):
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            # Not TLS's own shutdown, which would pull the stream from under that thread.
            socket.socket.shutdown(oldest, socket.SHUT_RDWR)
