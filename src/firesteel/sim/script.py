"""The servers of a run that has been: the log of what reached them says whose turn it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, final

import pyarrow as pa
import torch
from torch import Tensor

from firesteel.errors import UsageError
from firesteel.net.center import Center, Note
from firesteel.sim.center import Asked
from firesteel.sim.simulation import Member, Simulation

_COLUMNS = ["shard", "kind", "worker", "attempt", "sequence", "version", "steps_done", "seconds", "told"]
_Post = tuple[str, int, Note | None, Tensor | None, Asked | None]  # kind, sequence, note, numbers, who asks


@final
class Script:
    """Takes what workers post, and lets it arrive in the order of a log.

    Raises:
        UsageError: the log begins where an earlier run had stopped, or does not fit: other rows, settings or code.
    """

    def __init__(self, simulation: Simulation, centers: Sequence[Center], parts: Sequence[slice], log: pa.Table) -> None:
        self.simulation: Simulation = simulation
        self.centers: Sequence[Center] = centers
        self.parts: Sequence[slice] = parts
        self.stopped: bool = False
        self._queues: list[deque[dict[str, Any]]] = [deque() for _ in centers]
        for event in log.select(_COLUMNS).to_pylist():
            self._queues[event["shard"]].append(event)
        if any(queue and queue[0]["version"] for queue in self._queues):
            raise UsageError("the log is not whole: it begins where an earlier run had stopped.")
        self._posts: dict[tuple[int, int, int], deque[_Post]] = {}
        self._joined: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._statistics: dict[tuple[int, int], Tensor] = {}  # with which an attempt goes on
        self._members: dict[int, Member] = {}  # the newest attempt of each worker
        self._start: Callable[[int, int], None] = lambda rank, attempt: None

    def begin(self, start: Callable[[int, int], None]) -> None:
        """`start(rank, attempt)` is called for an attempt when it has joined all shards."""
        self._start = start
        self.simulation.on_idle = self._check
        self.simulation.at(0.0, 0, self._advance)

    def join(self, member: Member) -> tuple[int, int, Tensor]:
        self._members[member.rank] = member
        key = member.rank, member.attempt
        found = self._joined[key]
        return max(sequence for sequence, _ in found), max(done for _, done in found), self._statistics[key]

    def post(self, member: Member, numbers: list[Tensor] | None, sequence: int, note: Note | None, asked: Asked | None) -> None:
        for shard in range(len(self.parts)):
            posts = self._posts.setdefault((member.rank, member.attempt, shard), deque())
            if numbers is not None:
                posts.append(("push", sequence, note, numbers[shard], None))
            if asked is not None:
                posts.append(("pull", 0, None, None, asked))
        self.simulation.at(member.now, member.rank, self._advance)

    def hang_up(self, member: Member) -> None:
        """The log knows when it left."""

    def roll_back(self, member: Member, sequence: int, why: str) -> None:
        """A worker whose loss is no number: in the run that is replayed it was not, so the log does not fit."""

    def _advance(self) -> None:
        """Let everything happen that is next in its shard's log and that its worker has come to."""
        moved = True
        while moved:
            moved = False
            for shard, queue in enumerate(self._queues):
                while queue and self._happen(shard, queue[0]):
                    _ = queue.popleft()
                    moved = True

    def _happen(self, shard: int, event: dict[str, Any]) -> bool:
        center, kind, seconds = self.centers[shard], event["kind"], event["seconds"]
        worker, attempt = event["worker"], event["attempt"]
        if kind == "join":
            before = self._members.get(worker)
            if before is not None and before.attempt < attempt:
                before.die()
            joined = self._joined.setdefault((worker, attempt), [])
            joined.append(center.join(worker, attempt, seconds))
            if shard == 0:
                self._statistics[worker, attempt] = center.statistics_for(worker)
            if len(joined) == len(self.parts):
                at = max(seconds, self.simulation.now)
                self.simulation.at(at, worker, lambda: self._start(worker, attempt))
        elif kind == "leave":
            center.leave(worker, attempt, seconds)
        elif kind == "lost":
            center.agree(worker, attempt, event["sequence"], event["steps_done"], seconds)
        else:
            posts = self._posts.get((worker, attempt, shard))
            if not posts or posts[0][0] != kind:
                return False
            _, sequence, note, numbers, asked = posts.popleft()
            if asked is not None:
                into = torch.empty_like(center.params)
                _ = center.pull(worker, attempt, seconds, into, event["told"])
                self.stopped = self.stopped or event["told"] > 0
                asked(
                    shard,
                    into.clone() if center.members[worker].seen is into else into,
                    event["told"],
                    max(seconds, self.simulation.now),
                )
            else:
                assert note is not None and numbers is not None
                _ = center.push(worker, attempt, sequence, note, numbers, seconds)
        return True

    def _check(self) -> None:
        """Nothing can happen any more: the log is at its end, or does not fit."""
        for shard, queue in enumerate(self._queues):
            if queue:
                event = queue[0]
                raise UsageError(
                    f"the log does not fit this run: after {self.centers[shard].version} pushes, shard {shard} has a "
                    f"{event['kind']} of worker {event['worker']}, which that worker does not come to here."
                )
        for member in self._members.values():
            if member.program is not None:
                member.die()  # what still waits was lost then, and not started again
