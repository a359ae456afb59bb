"""From many errors of many workers to the one that the caller should see.

A failing worker leaves a description where the caller looks; its peers then lose it and fail too. The root cause is
the first description that is not about a lost peer; where there is none, a worker has died without a word.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
import traceback
from typing import Any, NoReturn

from firesteel import errors
from firesteel.checkpoint import Board
from firesteel.errors import FiresteelError, PeerLost, WorkerFailed, WorkerLost

Failure = dict[str, Any]
_MARK = re.compile(r"<firesteel-failure>(.*?)</firesteel-failure>", re.DOTALL)


def describe(error: BaseException, rank: int) -> Failure:
    """What went wrong on this worker, as JSON values."""
    frames = traceback.format_exception(error)
    return {
        "rank": rank,
        "host": socket.gethostname(),
        "at": time.time(),
        "type": type(error).__name__,
        "ours": isinstance(error, FiresteelError),
        "message": str(error),
        "traceback": "".join(frames),
    }


class Failed(RuntimeError):
    """Carries a description through a channel that only knows text, such as Spark's exceptions."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"<firesteel-failure>{json.dumps(failure)}</firesteel-failure>")


def found_in(text: str) -> list[Failure]:
    """The descriptions that a text carries."""
    found: list[Failure] = []
    for match in _MARK.findall(text):
        try:
            found.append(json.loads(match))
        except json.JSONDecodeError:
            continue  # cut short on its way: the other channels still have it
    return found


def failures_on(board: Board, workers: int) -> list[Failure]:
    """What failed workers have left on the board."""
    found = (board.get(f"failure-{rank}") for rank in range(workers))
    return [json.loads(text) for text in found if text is not None]


def known_cause(store: Any, secret: str) -> Failure | None:
    """What another member of the gang has left in its store, if the store is still there."""
    with contextlib.suppress(Exception):
        if store is not None and store.check([f"{secret}/cause"]):
            return json.loads(store.get(f"{secret}/cause"))
    return None


def raise_cause(failures: list[Failure], lost: str) -> NoReturn:
    """Raise the root cause as one readable error; `lost` says what is known where no worker left a word."""
    causes = sorted((f for f in failures if f["type"] != PeerLost.__name__), key=lambda f: f["at"])
    if not causes:
        seen = sorted({f"{f['message']}, says worker {f['rank']} on {f['host']}" for f in failures})
        raise WorkerLost("; ".join([*seen, lost] if lost else seen)) from None
    cause = causes[0]
    where = f"worker {cause['rank']} on {cause['host']}"
    if cause["ours"]:
        said, *frames = cause["message"].split("\n", 1)
        raise getattr(errors, cause["type"])("\n".join([f"{said} (from {where})", *frames])) from None
    raise WorkerFailed(
        f"{where} raised {cause['type']}: {cause['message']}\n\nThe worker's own traceback:\n{cause['traceback'].rstrip()}"
    ) from None
