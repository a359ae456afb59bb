"""The servers of the center in virtual time, and a worker's way to them.

The center itself is the real one (`net.center.Center`): the same folds, guards and log. What is imagined is when a message
is there: it waits for the sender's card, for the server's card, and for the messages that the server has not yet merged.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor

from firesteel.net.center import Center, Note
from firesteel.net.lacking import NoGang
from firesteel.net.merging import check_delta
from firesteel.net.protocol import Vec
from firesteel.net.wire import DIVERGED, STOPPED
from firesteel.sim.simulation import Member, Posted, Simulation

_HEAD_BYTES = 64  # of a message without numbers
Asked = Callable[
    [int, Tensor, int, float], None
]  # takes a shard, its part of the center, what it is told, and when it is there


class Transport(Protocol):
    """What a worker's net needs of its servers: imagined ones, or the log of real ones."""

    parts: Sequence[slice]
    centers: Sequence[Center]

    def join(self, member: Member) -> tuple[int, int, Vec]: ...
    def post(
        self, member: Member, numbers: list[Tensor] | None, sequence: int, note: Note | None, asked: Asked | None
    ) -> None: ...
    def hang_up(self, member: Member) -> None: ...


@final
class _Message(NamedTuple):
    """A worker's to one shard: a push, a pull, or both."""

    shard: int
    member: Member
    numbers: Tensor | None
    sequence: int
    note: Note | None
    asked: Asked | None


@final
class Servers:
    """All shards of the center.

    Args:
        parts: the coordinates of each shard.
        max_seconds: virtual seconds after which workers are told to stop.
    """

    def __init__(
        self,
        simulation: Simulation,
        centers: Sequence[Center],
        parts: Sequence[slice],
        bounded: bool = False,
        max_seconds: float | None = None,
    ) -> None:
        self.simulation: Simulation = simulation
        self.centers: Sequence[Center] = centers
        self.parts: Sequence[slice] = parts
        self.stopped: bool = False
        self._bounded: bool = bounded
        self._max_seconds: float | None = max_seconds
        self.busy_seconds: list[float] = [0.0] * len(centers)  # spent merging and answering, so far
        self._last: dict[tuple[int, int, int], float] = {}  # when the newest message of an attempt is at a shard
        self._busy: list[float] = [0.0] * len(centers)  # until when
        self._held: list[list[_Message]] = [[] for _ in centers]  # pulls that the bound on staleness holds back

    def begin(self, start: Callable[[int, int], None]) -> None:
        """Every worker's first attempt begins at once."""
        for rank in range(self.simulation.fabric.cluster.workers):
            self.simulation.at(0.0, rank, functools.partial(start, rank, 0))

    def halted(self) -> bool:
        if self._max_seconds is not None and self.simulation.now >= self._max_seconds:
            self.stopped = True
        return self.stopped

    def join(self, member: Member) -> tuple[int, int, Vec]:
        """Returns the worker's pushes so far, its steps at the last of them, and the running statistics to go on with, [Q]."""
        found = [center.join(member.rank, member.attempt, self.simulation.now) for center in self.centers]
        newest, done = max(sequence for sequence, _ in found), max(steps for _, steps in found)
        for center, (sequence, _) in zip(self.centers, found, strict=True):
            if sequence < newest:
                center.agree(member.rank, member.attempt, newest, done, self.simulation.now)
        return newest, done, self.centers[0].statistics_for(member.rank)

    def post(self, member: Member, numbers: list[Tensor] | None, sequence: int, note: Note | None, asked: Asked | None) -> None:
        """A worker's message to all shards, at the moment of its own clock: a push, a pull, or both."""
        self.simulation.at(member.now, member.rank, functools.partial(self._send, member, numbers, sequence, note, asked))

    def _send(
        self, member: Member, numbers: list[Tensor] | None, sequence: int, note: Note | None, asked: Asked | None
    ) -> None:
        if not member.alive:
            return  # its program had run ahead of its death
        fabric, now, rank = self.simulation.fabric, self.simulation.now, member.rank
        most = fabric.cluster.merging.stream_bandwidth
        for shard in range(len(self.parts)):
            part = None if numbers is None else numbers[shard]
            nbytes = _HEAD_BYTES if part is None else fabric.nbytes(part)
            _, there_at = fabric.transfer(now, fabric.host[rank], fabric.server_host[shard], nbytes, most)
            key = (rank, member.attempt, shard)
            self._last[key] = there_at = max(there_at, self._last.get(key, 0.0))  # a stream keeps its order
            message = _Message(shard, member, part, sequence, note, asked)
            self.simulation.at(there_at, rank, functools.partial(self._hear, message))

    def hang_up(self, member: Member) -> None:
        """The worker is through: it leaves when what it has sent is merged."""
        for shard in range(len(self.parts)):
            at = max(self._last.get((member.rank, member.attempt, shard), 0.0), member.now)
            self.simulation.at(at, member.rank, functools.partial(self._last_word, member, shard))

    def _last_word(self, member: Member, shard: int) -> None:
        at = max(self._busy[shard], self.simulation.now)
        self.simulation.at(at, member.rank, lambda: self.leave(member, shard))

    def leave(self, member: Member, shard: int) -> None:
        self.centers[shard].leave(member.rank, member.attempt, self.simulation.now)
        self._release(shard)

    def roll_back(self, member: Member, sequence: int, why: str) -> None:
        for center in self.centers:
            center.roll_back(member.rank, sequence, why)

    def _hear(self, message: _Message) -> None:
        """A message has arrived: when what came before is done with, merge what is in it and answer."""
        shard, fabric = message.shard, self.simulation.fabric
        merging = fabric.cluster.merging
        begin = max(self.simulation.now, self._busy[shard])
        done = begin + merging.message_seconds + fabric.nbytes(self.centers[shard].params) / merging.bandwidth
        self._busy[shard] = done
        self.busy_seconds[shard] += done - begin
        self.simulation.at(done, message.member.rank, functools.partial(self._serve, message))

    def _serve(self, message: _Message) -> None:
        shard, member, numbers, sequence, note, asked = message
        if not member.alive:
            return
        if numbers is not None and note is not None:
            center = self.centers[shard]
            _ = center.push(member.rank, member.attempt, sequence, note, numbers, self.simulation.now, asked is not None)
            self._release(shard)
        if asked is not None:
            self._answer(message)

    def _answer(self, message: _Message) -> None:
        shard, member, asked = message.shard, message.member, message.asked
        if not member.alive or asked is None:
            return
        center, now = self.centers[shard], self.simulation.now
        if self._bounded and center.must_wait(member.rank) and not self.halted():
            self._held[shard].append(message)
            return
        told = DIVERGED if center.diverged else STOPPED if self.halted() else 0
        into = torch.empty_like(center.params)
        _ = center.pull(member.rank, member.attempt, now, into, told)
        fabric = self.simulation.fabric
        source, target, most = fabric.server_host[shard], fabric.host[member.rank], fabric.cluster.merging.stream_bandwidth
        _, there_at = fabric.transfer(now, source, target, fabric.nbytes(into), most)
        asked(shard, into.clone() if center.members[member.rank].seen is into else into, told, there_at)

    def _release(self, shard: int) -> None:
        held, self._held[shard] = self._held[shard], []
        for message in held:
            self._answer(message)


@final
class SimulatedWorker(NoGang):
    """`Net` of one attempt of a worker whose strategy has a server."""

    def __init__(self, member: Member, size: int, servers: Transport) -> None:
        self.rank: int = member.rank
        self.size: int = size
        self.note: Callable[[], Note] = lambda: Note(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
        self.statistics: Callable[[], Vec] = lambda: torch.empty(0)
        self.take_up: Callable[[Vec], None] = lambda statistics: None
        self.on_stop: Callable[[], None] = lambda: None
        self.sequence: int = 0
        self._member: Member = member
        self._servers: Transport = servers

    def join(self) -> int:
        """Meet the servers, and go on with the statistics they have; returns the local steps that have already been pushed."""
        self.sequence, done, statistics = self._servers.join(self._member)
        self.take_up(statistics)
        return done

    # ---- one worker and the server -----------------------------------------------------------------------------------

    def pull(self) -> Awaitable[Vec]:
        posted = Posted[Vec](self._member, "pull", 0, lambda: "()")
        self._post(None, self._collecting(posted))
        return posted

    def push(self, delta: Vec) -> Awaitable[None]:
        self._check("push", delta)
        posted = Posted[None](self._member, "push", self._nbytes(delta), lambda: f", its push {self.sequence}")
        self._post(delta, None)
        posted.complete(self._member.now)
        return posted

    def exchange(self, delta: Vec) -> Awaitable[Vec]:
        self._check("exchange", delta)
        posted = Posted[Vec](self._member, "exchange", self._nbytes(delta), lambda: f", its push {self.sequence}")
        self._post(delta, self._collecting(posted))
        return posted

    def _check(self, verb: str, delta: Vec) -> None:
        check_delta(verb, delta, self._servers.parts[-1].stop, self._servers.centers[0].params.dtype)

    def _post(self, delta: Vec | None, asked: Asked | None) -> None:
        if delta is None:
            return self._servers.post(self._member, None, 0, None, asked)
        self.sequence += 1
        note, statistics = self.note(), self.statistics()
        whole = delta.detach() if asked is not None else delta.detach().clone()  # the net's own until it is answered
        parts = self._servers.parts
        numbers = [whole] if len(parts) == 1 else [whole[part] for part in parts]
        if statistics.numel():
            numbers[0] = torch.cat([numbers[0], statistics])
        self._servers.post(self._member, numbers, self.sequence, note, asked)

    def _nbytes(self, x: Tensor) -> int:
        return self._member.simulation.fabric.nbytes(x)

    def _collecting(self, posted: Posted[Vec]) -> Asked:
        """Wait for every shard's part; the last one completes the verb."""
        parts: list[Tensor | None] = [None] * len(self._servers.parts)
        latest, asked_to_stop = 0.0, False

        def arrived(shard: int, part: Tensor, told: int, there_at: float) -> None:
            nonlocal latest, asked_to_stop
            parts[shard] = part
            latest, asked_to_stop = max(latest, there_at), asked_to_stop or bool(told)
            found = [p for p in parts if p is not None]
            if len(found) == len(parts):
                if asked_to_stop:
                    posted.then = self.on_stop
                posted.complete(latest, found[0] if len(found) == 1 else torch.cat(found))

        return arrived

    def close(self) -> None:
        """Leave."""
        self._servers.hang_up(self._member)
