"""What can go wrong, and whose turn it is to act.

    FiresteelError
    ├── UsageError (ValueError)      you: a wrong argument, column, type or value
    ├── StrategyError                the method: diverged, raised in `merge`, or broke its contract with the net
    │   └── Diverged                 the loss is no longer a finite number
    ├── ClusterError                 the cluster
    │   ├── WorkerLost               a worker died or fell silent
    │   ├── OutOfMemory              a worker's memory does not hold what it was to hold
    │   ├── RendezvousTimeout        the workers did not find each other in time
    │   ├── PeerLost                 one worker's view of another's death; never the root cause
    │   └── Fenced                   an attempt of a worker that a newer one has replaced; never the root cause
    └── WorkerFailed                 your own code raised on a worker; holds the remote traceback
    Interrupted (KeyboardInterrupt)  you pressed Ctrl-C; holds the run so far

Every message states the fact first and the way out second.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from firesteel.run import Run


class FiresteelError(Exception):
    """Base of every error that Firesteel raises on purpose."""


class UsageError(FiresteelError, ValueError):
    """The call cannot work as it is written; nothing has been started or changed."""


class StrategyError(FiresteelError):
    """The method failed: it diverged, raised in `merge`, or broke its contract with the net."""


@final
class Diverged(StrategyError):
    """The loss or the parameters are no longer finite; the last good model is kept."""


class ClusterError(FiresteelError):
    """The cluster could not do what was asked of it."""


@final
class WorkerLost(ClusterError):
    """A worker died, or was silent for longer than the set time-out."""


@final
class OutOfMemory(ClusterError):
    """A worker was refused memory; the message says what takes it."""


@final
class RendezvousTimeout(ClusterError):
    """The workers of a run did not all start, or did not find each other, in time."""


@final
class PeerLost(ClusterError):
    """A worker lost touch with another one: a consequence, shown only where no cause is known."""


@final
class Fenced(ClusterError):
    """A newer attempt of the same worker has taken over."""


@final
class WorkerFailed(FiresteelError):
    """Code on a worker raised. The message ends with the worker's own traceback."""


@final
class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped the training. `run` is the run so far, or None if nothing was published yet."""

    def __init__(self, message: str, run: Run | None = None) -> None:
        super().__init__(message)
        self.run: Run | None = run


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing where no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
