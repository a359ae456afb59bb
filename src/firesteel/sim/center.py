"""The servers of the center in virtual time, and a worker's way to them.

The center itself is the real one (`net.center.Center`): the same folds, guards and log. What is imagined is when a message
is there: it waits for the sender's card, for the server's card, and for the messages that the server has not yet merged.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, final

import torch
from torch import Tensor

from firesteel.net.center import Center, Note
from firesteel.net.lacking import NoGang
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

    def join(self, member: Member) -> tuple[int, int]: ...
    def post(
        self, member: Member, numbers: list[Tensor] | None, sequence: int, note: Note | None, asked: Asked | None
    ) -> None: ...
    def hang_up(self, member: Member) -> None: ...


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
        self._held: list[list[Callable[[], None]]] = [[] for _ in centers]  # pulls that the bound on staleness holds back

    def begin(self, start: Callable[[int, int], None]) -> None:
        """Every worker's first attempt begins at once."""
        for rank in range(self.simulation.fabric.cluster.workers):
            self.simulation.at(0.0, rank, functools.partial(start, rank, 0))

    def halted(self) -> bool:
        if self._max_seconds is not None and self.simulation.now >= self._max_seconds:
            self.stopped = True
        return self.stopped

    def join(self, member: Member) -> tuple[int, int]:
        """Returns the worker's pushes so far, and its steps at the last of them."""
        found = [center.join(member.rank, member.attempt, self.simulation.now) for center in self.centers]
        newest, done = max(sequence for sequence, _ in found), max(steps for _, steps in found)
        for center, (sequence, _) in zip(self.centers, found, strict=True):
            if sequence < newest:
                center.agree(member.rank, member.attempt, newest, done, self.simulation.now)
        return newest, done

    def post(self, member: Member, numbers: list[Tensor] | None, sequence: int, note: Note | None, asked: Asked | None) -> None:
        """A worker's message to all shards, at the moment of its own clock: a push, a pull, or both."""
        simulation = self.simulation
        fabric, most = simulation.fabric, simulation.fabric.cluster.merging.stream_bandwidth

        def begin() -> None:
            for shard in range(len(self.parts)):
                push = None if numbers is None or note is None else (sequence, note, numbers[shard])
                nbytes = _HEAD_BYTES if numbers is None else fabric.nbytes(numbers[shard])
                source, target = fabric.host[member.rank], fabric.server_host[shard]
                _, there_at = fabric.transfer(simulation.now, source, target, nbytes, most)
                key = (member.rank, member.attempt, shard)
                self._last[key] = there_at = max(there_at, self._last.get(key, 0.0))  # a stream keeps its order
                simulation.at(there_at, member.rank, functools.partial(self.hear, shard, member, push, asked))

        simulation.at(member.now, member.rank, begin)

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

    def hear(
        self,
        shard: int,
        member: Member,
        push: tuple[int, Note, Tensor] | None,
        asked: Asked | None,
    ) -> None:
        """A message has arrived: when what came before is done with, merge what is in it and answer."""
        center, merging = self.centers[shard], self.simulation.fabric.cluster.merging
        nbytes = self.simulation.fabric.nbytes(center.params)
        begin = max(self.simulation.now, self._busy[shard])
        self._busy[shard] = done = begin + merging.message_seconds + nbytes / merging.bandwidth
        self.busy_seconds[shard] += done - begin

        def answer() -> None:
            if not member.alive or asked is None:
                return
            now = self.simulation.now
            if self._bounded and center.must_wait(member.rank) and not self.halted():
                self._held[shard].append(answer)
                return
            told = DIVERGED if center.diverged else STOPPED if self.halted() else 0
            into = torch.empty_like(center.params)
            _ = center.pull(member.rank, member.attempt, now, into, told)
            fabric = self.simulation.fabric
            source, target = fabric.server_host[shard], fabric.host[member.rank]
            _, there_at = fabric.transfer(now, source, target, nbytes, merging.stream_bandwidth)
            asked(shard, into.clone(), told, there_at)

        def serve() -> None:
            if member.alive and push is not None:
                sequence, note, numbers = push
                pulls = asked is not None
                _ = center.push(member.rank, member.attempt, sequence, note, numbers, self.simulation.now, pulls)
                self._release(shard)
            answer()

        self.simulation.at(done, member.rank, serve)

    def _release(self, shard: int) -> None:
        held, self._held[shard] = self._held[shard], []
        for answer in held:
            answer()


@final
class SimulatedWorker(NoGang):
    """`Net` of one attempt of a worker whose strategy has a server."""

    def __init__(self, member: Member, size: int, servers: Transport) -> None:
        self.rank: int = member.rank
        self.size: int = size
        self.note: Callable[[], Note] = lambda: Note(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
        self.statistics: Callable[[], Vec] = lambda: torch.empty(0)
        self.on_stop: Callable[[], None] = lambda: None
        self.sequence: int = 0
        self._member: Member = member
        self._servers: Transport = servers

    def join(self) -> int:
        """Meet the servers; returns the local steps that earlier attempts have already pushed."""
        self.sequence, done = self._servers.join(self._member)
        return done

    # ---- one worker and the server -----------------------------------------------------------------------------------

    def pull(self) -> Awaitable[Vec]:
        posted = Posted[Vec](self._member, "pull", 0, lambda: "()")
        self._post(None, self._collecting(posted))
        return posted

    def push(self, delta: Vec) -> Awaitable[None]:
        posted = Posted[None](self._member, "push", self._nbytes(delta), lambda: f", its push {self.sequence}")
        self._post(delta, None)
        posted.complete(self._member.now)
        return posted

    def exchange(self, delta: Vec) -> Awaitable[Vec]:
        posted = Posted[Vec](self._member, "exchange", self._nbytes(delta), lambda: f", its push {self.sequence}")
        self._post(delta, self._collecting(posted))
        return posted

    def _post(self, delta: Vec | None, asked: Asked | None) -> None:
        if delta is None:
            return self._servers.post(self._member, None, 0, None, asked)
        self.sequence += 1
        note, statistics = self.note(), self.statistics()
        whole = delta.detach() if asked is not None else delta.detach().clone()  # the net's own until it is answered
        numbers = [whole[part] for part in self._servers.parts]
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
