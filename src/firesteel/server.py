"""Settings of the parameter server, for strategies that have one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from firesteel.errors import UsageError


@final
@dataclass(frozen=True)
class TLS:
    """A certificate of one's own, for the address at which the server listens."""

    certificate: str
    """Path of the certificate (chain), PEM."""
    key: str
    """Path of its private key, PEM; read on the caller's machine and handed to the servers only."""
    root: str | None = None
    """Path of the certificate that workers trust, PEM; None if it is the certificate itself."""

    def __post_init__(self) -> None:
        for path in (self.certificate, self.key, self.root):
            if path is not None and not Path(path).is_file():
                raise UsageError(f"TLS: there is no file {path!r}.")


@final
@dataclass(frozen=True)
class Server:
    """How the center is served; `Local(server=Server(...))`, `Spark(server=Server(...))`.

    >>> Server(shards=2, max_ahead=4)
    Server(shards=2, tls=False, max_ahead=4, max_growth=10000.0, record_every=16, restart_seconds=15.0)
    """

    shards: int = 1
    """Server processes, >= 1; each holds its part of the coordinates."""
    tls: bool | TLS = False
    """True makes a certificate for the run (needs the package `cryptography`); or one of your own."""
    max_ahead: int | None = None
    """Stale synchronous parallel (Ho et al. 2013): a worker that is more than so many pushes ahead of the slowest one waits
    at its pull. Bounds staleness to (2 max_ahead + 1)(N - 1); one that joins late, or again, counts on from where the slowest
    stands. None: nobody waits; 0 keeps workers within one push."""
    max_growth: float = 1e4
    """The run is taken to have diverged when the center's norm exceeds this multiple of its first norm (or of 1)."""
    record_every: int = 16
    """Every so many pushes of a worker, distance and scaling are recorded, >= 1; it costs two norms."""
    restart_seconds: float = 15.0
    """With a run folder, a lost server is started again from its last snapshot; workers wait so long for it."""

    def __post_init__(self) -> None:
        if self.shards < 1 or self.record_every < 1 or (self.max_ahead is not None and self.max_ahead < 0):
            raise UsageError(f"Server needs shards >= 1, record_every >= 1 and max_ahead >= 0 or None; got {self}.")
        if not self.max_growth > 1 or self.restart_seconds < 0:
            raise UsageError(f"Server needs max_growth > 1 and restart_seconds >= 0; got {self}.")


DEFAULT = Server()
