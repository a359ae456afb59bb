"""One event log for all worlds: who did what, when, and how many bytes and seconds it took.

Events are columns, not objects: a step costs well under a microsecond to record and 56 bytes to keep. Seconds count
from the start of training; evaluation is left out, with all that it sends.
"""

from __future__ import annotations

import contextlib
import json
import time
from array import array
from collections.abc import Callable, Iterator
from typing import final

import pyarrow as pa

_MEETINGS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
KINDS = ("step", *_MEETINGS, "send", "recv", "publish", "evaluate", "pull", "push", "exchange", "join")
_NUMBER = {kind: i for i, kind in enumerate(KINDS)}

SCHEMA = pa.schema(
    [
        ("rank", pa.int32()),
        ("kind", pa.string()),
        ("seconds", pa.float64()),
        ("step", pa.int64()),
        ("rows", pa.int64()),
        ("weight", pa.float64()),
        ("loss", pa.float64()),
        ("bytes", pa.int64()),
        ("waited_seconds", pa.float64()),
    ]
)


@final
class Clock:
    """Seconds of a run, which can be paused: wall seconds, or those that `tell` tells."""

    def __init__(self, tell: Callable[[], float] = time.perf_counter) -> None:
        self._tell: Callable[[], float] = tell
        self._zero: float = tell()
        self._paused_at: float | None = None

    def start(self, at: float = 0.0) -> None:
        self._zero = self._tell() - at

    def now(self) -> float:
        return (self._paused_at if self._paused_at is not None else self._tell()) - self._zero

    def pause(self) -> None:
        self._paused_at = self._tell()

    def go_on(self) -> None:
        assert self._paused_at is not None
        self._zero += self._tell() - self._paused_at
        self._paused_at = None


@final
class Trace:
    """What one worker records. Bytes are those that this worker had to send, counted at the verb, not at the socket."""

    def __init__(self, rank: int, clock: Clock | None = None) -> None:
        self.rank: int = rank
        self.clock: Clock = Clock() if clock is None else clock  # in a simulation, one of virtual seconds
        self.bytes_sent: int = 0
        self.rounds: int = 0  # collectives awaited
        self.waited_seconds: float = 0.0
        self.samples: int = 0
        self.loss_sum: float = 0.0  # of loss * weight, since the beginning
        self.weight_sum: float = 0.0
        self.loss: float = float("nan")
        self.first_step_at: float | None = None  # seconds since 1970, to compare with the caller's clock
        self.current_step: int = 0
        self._away: bool = False
        self._whole: array[int] = array("q")  # kind, step, rows, bytes
        self._real: array[float] = array("d")  # seconds, weight, loss, waited

    def _add(self, kind: int, step: int, rows: int, sent: int, weight: float, loss: float, waited: float) -> None:
        self._whole.extend((kind, step, rows, sent))
        self._real.extend((self.clock.now(), weight, loss, waited))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile the clock stands and nothing is recorded or counted: what happens is no part of training."""
        assert not self._away
        self.clock.pause()
        self._away = True
        try:
            yield
        finally:
            self._away = False
            self.clock.go_on()

    def step(self, step: int, rows: int, weight: float, loss: float) -> None:
        """A gradient was computed: `rows` rows of summed `weight`, with their mean `loss`."""
        if self._away:
            return
        if self.first_step_at is None:
            self.first_step_at = time.time()
        self.current_step, self.loss = step, loss
        self.samples += rows
        self.loss_sum += loss * weight
        self.weight_sum += weight
        self._add(0, step, rows, 0, weight, loss, 0.0)

    def verb(self, kind: str, sent: int, waited: float) -> None:
        """A verb of the net was awaited: bytes sent, seconds spent waiting."""
        if self._away:
            return
        self.bytes_sent += sent
        self.rounds += kind in _MEETINGS
        self.waited_seconds += waited
        self._add(_NUMBER[kind], self.current_step, 0, sent, 0.0, 0.0, waited)

    def mark(self, kind: str, step: int) -> None:
        """Something that neither computes nor waits: a kept publish point, or that the worker is back ("join")."""
        if self._away:
            return
        self._add(_NUMBER[kind], step, 0, 0, 0.0, 0.0, 0.0)

    def table(self) -> pa.Table:
        """All events in the order in which they happened, with the columns of `SCHEMA`."""
        whole = [pa.array(self._whole[i::4], pa.int64()) for i in range(4)]
        real = [pa.array(self._real[i::4], pa.float64()) for i in range(4)]
        kinds = pa.array(KINDS).take(whole[0])
        rank = pa.repeat(pa.scalar(self.rank, pa.int32()), len(kinds))
        return pa.table([rank, kinds, real[0], whole[1], whole[2], real[1], real[2], whole[3], real[3]], schema=SCHEMA)


def json_lines(table: pa.Table) -> str:
    """A trace as JSON lines, one event a line, in order of time."""
    ordered = table.sort_by([("seconds", "ascending"), ("rank", "ascending")])
    return "".join(json.dumps(event) + "\n" for event in ordered.to_pylist())
