"""Connections that were lost, told from other errors of a transport."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from firesteel.errors import PeerLost

_LOST = ("closed by peer", "reset by peer", "timed out", "timeout", "broken pipe", "connection refused")


@contextlib.contextmanager
def peers_named() -> Generator[None]:
    """Turn a lost connection of the transport into PeerLost, so that it is never taken for the root cause."""
    try:
        yield
    except RuntimeError as error:
        if any(sign in str(error).lower() for sign in _LOST):
            raise PeerLost(str(error).splitlines()[0]) from None
        raise
