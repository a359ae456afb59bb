"""A worker's way to the servers: `pull` and `push` over one stream a shard."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from firesteel.errors import ClusterError, Fenced, FiresteelError, PeerLost, StrategyError
from firesteel.net import wire
from firesteel.net.center import Note
from firesteel.net.lacking import NoGang
from firesteel.net.merging import check_delta
from firesteel.net.pending import Pending
from firesteel.net.protocol import Vec
from firesteel.sealing import unseal
from firesteel.trace import Trace

T = TypeVar("T")
_CONNECT_SECONDS = 20.0


@final
@dataclass(frozen=True)
class Address:
    """Where the servers of a run are, and how to come in."""

    locations: tuple[str, ...]
    """One for each shard, host:port."""
    token: str
    root: bytes | None
    """The certificate to trust, PEM; None without TLS."""

    def connect(self, shard: int, told: dict[str, Any], seconds: float) -> wire.Line:
        """A line on which the server has been told who comes."""
        line = wire.connect(self.locations[shard], self.root, seconds)
        line.write_hello({"token": self.token, **told})
        return line


@final
@dataclass(frozen=True)
class Finder:
    """Where workers learn the servers' addresses, also after one was started again: the run's store."""

    prefix: str
    shards: int
    token: str
    root: bytes | None

    def find(self, store: Any) -> Address:
        """
        Raises:
            ClusterError: somebody else has left an address there, who would be told the token next.
        """

        def newest(shard: int) -> str:
            number = store.add(f"{self.prefix}/servers/{shard}/generation", 0)
            place = f"{self.prefix}/servers/{shard}/{max(number, 1)}"
            found = unseal(self.token, place, store.get(place))
            if found is None:
                raise ClusterError(f"the address of server {shard} in the run's store was not written by this run.")
            return found.decode()

        return Address(tuple(newest(shard) for shard in range(self.shards)), self.token, self.root)


@final
class _Link:
    """The stream to one shard."""

    def __init__(self, address: Address, shard: int, told: dict[str, Any], statistics: Tensor) -> None:
        told = {**told, "type": wire.name(statistics.dtype), "statistics": statistics.numel()}
        self._line: wire.Line = address.connect(shard, told, _CONNECT_SECONDS)
        self.statistics: Tensor = statistics  # filled with those to go on with, [Q]
        try:
            self.sequence, self.steps_done = self._line.read_answer(wire.WELCOME)
            self._line.read(wire.raw(statistics))
        except BaseException:
            self._line.close()
            raise
        self._line.wait_at_most(None)

    def say(self, head: bytes) -> None:
        self._line.write(head)

    def push(self, kind: int, sequence: int, note: Note, numbers: Tensor) -> None:
        raw = wire.raw(numbers)
        self._line.write(wire.ask(kind, sequence, note, len(raw)), raw)

    def center(self, into: Tensor) -> int:
        _, said = self._line.read_answer(wire.CENTER)
        self._line.read(wire.raw(into))
        return said

    def leave(self) -> None:
        """Returns when the server has said that nothing of this worker can be lost any more."""
        self._line.write(wire.ask(wire.LEAVE))
        _ = self._line.read_answer(wire.DONE)

    def part(self) -> None:
        """Leave a server that may be gone, to come again."""
        with contextlib.suppress(OSError):
            self._line.write(wire.ask(wire.LEAVE))
            self._line.drain()  # until the server has hung up: it takes this attempt for active until then
        self._line.close()

    def close(self) -> None:
        self._line.close()


@final
class CenterNet(NoGang):
    """`Net` of a worker whose strategy has a server."""

    def __init__(
        self,
        rank: int,
        size: int,
        attempt: int,
        find: Callable[[], Address],
        parts: Sequence[slice],
        dtype: torch.dtype,
        trace: Trace,
        restart_seconds: float = 0.0,
        device: torch.device | None = None,
    ) -> None:
        self.rank: int = rank
        self.size: int = size
        self.trace: Trace = trace
        self.note: Callable[[], Note] = lambda: Note(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
        self.statistics: Callable[[], Vec] = lambda: torch.empty(0)
        self.take_up: Callable[[Vec], None] = lambda statistics: None
        self.on_stop: Callable[[], None] = lambda: None
        self.rows: str = ""  # fingerprint of the worker's, kept in snapshots
        self.sequence: int = 0
        self._attempt: int = attempt
        self._find: Callable[[], Address] = find
        self._parts: Sequence[slice] = parts
        self._dtype: torch.dtype = dtype
        self._length: int = parts[-1].stop
        self._restart_seconds: float = restart_seconds
        self._device: torch.device = device or torch.device("cpu")
        self._last: tuple[Note, list[Tensor]] | None = None  # the newest push: sent again to a server that lost it
        self._outstanding: int = 0  # centers asked for and not yet here
        self._here: deque[tuple[bool, Vec]] = deque()  # centers that came before they were awaited
        self._links: list[_Link] = []

    def join(self) -> int:
        """Meet the servers, and go on with the statistics they have; returns the local steps that have already been pushed."""
        self._meeting_again(lambda: self._connect(self._find()), lambda: None)
        self.take_up(self._links[0].statistics)
        return max(link.steps_done for link in self._links)

    def _connect(self, address: Address) -> None:
        for link in self._links:
            link.part()
        self._links = []
        told = {"worker": self.rank, "attempt": self._attempt, "rows": self.rows}
        for shard in range(len(self._parts)):
            statistics = torch.empty(0 if shard else self.statistics().numel(), dtype=self._dtype)
            self._links.append(_Link(address, shard, told, statistics))
        newest = max([self.sequence, *(link.sequence for link in self._links)])
        for shard, link in enumerate(self._links):
            if self._last is not None and link.sequence == newest - 1 and newest == self.sequence:
                note, parts = self._last
                link.push(wire.PUSH, newest, note, parts[shard])  # all it lacks is the newest push, which is still at hand
            elif link.sequence < newest:
                done = max(other.steps_done for other in self._links)
                link.say(wire.ask(wire.AGREE, newest, wire.NOTHING._replace(steps_done=done)))
        self.sequence = newest
        for _ in range(self._outstanding):
            self._ask()

    # ---- one worker and the server -----------------------------------------------------------------------------------

    def pull(self) -> Awaitable[Vec]:
        self._outstanding += 1
        self._meeting_again(self._ask, lambda: None)
        return Pending(self._centers, self.trace, "pull", 0)

    def push(self, delta: Vec) -> Awaitable[None]:
        check_delta("push", delta, self._length, self._dtype)
        self._send(delta, wire.PUSH)
        return Pending(lambda: None, self.trace, "push", delta.numel() * delta.element_size())

    def exchange(self, delta: Vec) -> Awaitable[Vec]:
        check_delta("exchange", delta, self._length, self._dtype)
        self._send(delta, wire.EXCHANGE)
        return Pending(self._centers, self.trace, "exchange", delta.numel() * delta.element_size())

    def _send(self, delta: Vec, kind: int) -> None:
        while self._outstanding:  # a server that writes does not read: both would wait for the other
            self._here.append(self._meeting_again(self._read, self._read))
        self._outstanding += kind == wire.EXCHANGE
        self.sequence += 1
        sequence, note = self.sequence, self.note()
        # No copy: the system has all of it when this returns. Only a server that may come back needs one, to hear it again.
        delta = delta.detach().cpu().contiguous()
        delta = delta.clone() if self._restart_seconds else delta
        parts = [delta] if len(self._parts) == 1 else [delta[part] for part in self._parts]
        statistics = self.statistics().cpu()
        if statistics.numel():
            parts[0] = torch.cat([parts[0], statistics])
        if self._restart_seconds:
            self._last = note, parts

        def send() -> None:
            for link, part in zip(self._links, parts, strict=True):
                link.push(kind, sequence, note, part)

        self._meeting_again(send, lambda: None)

    def _ask(self) -> None:
        for link in self._links:
            link.say(wire.ask(wire.PULL))

    def _read(self) -> tuple[bool, Vec]:
        """The next center, and whether to stop."""
        center = torch.empty(self._length, dtype=self._dtype)
        said = [link.center(center[part]) for link, part in zip(self._links, self._parts, strict=True)]
        self._outstanding -= 1
        return any(said), center

    def _centers(self) -> Vec:
        stop, center = self._here.popleft() if self._here else self._meeting_again(self._read, self._read)
        if stop:
            self.on_stop()
        return center.to(self._device)

    def _meeting_again(self, call: Callable[[], T], repeat: Callable[[], T]) -> T:
        """Call; where a server has gone and may come back, wait for it, meet it again (which sends it the newest push if it
        lacks that, and asks again for what was asked), and call `repeat` instead."""
        try:
            return call()
        except (OSError, wire.Refused) as error:
            if not self._restart_seconds or isinstance(error, wire.Refused):
                raise _told(error) from None
        until = time.monotonic() + self._restart_seconds
        while True:
            try:
                self._connect(self._find())  # waits for the new address
                return repeat()
            except (OSError, wire.Refused) as error:
                if time.monotonic() > until or isinstance(error, wire.Refused):
                    raise _told(error) from None
                _ = threading.Event().wait(0.05)  # the old address is all there is until the server is back

    def close(self) -> None:
        """Leave; returns when the servers have merged all that was pushed and, where snapshots are kept, have them on disk."""
        self._meeting_again(self._leave, self._leave)
        self.hang_up()

    def _leave(self) -> None:
        while self._outstanding:
            _ = self._read()
        for link in self._links:
            link.leave()

    def hang_up(self) -> None:
        """Go without a word."""
        for link in self._links:
            link.close()


def _told(error: OSError | wire.Refused) -> FiresteelError:
    """A lost server as an error of ours, which is never the root cause: the caller knows more about its servers. What
    `merge` raised there is one."""
    if not isinstance(error, wire.Refused):
        return PeerLost(f"the server is gone: {error}")
    kind, _, said = str(error).partition(": ")
    kinds = {known.__name__: known for known in (Fenced, StrategyError)}
    return kinds[kind](said) if kind in kinds else PeerLost(f"the server refused: {error}")


@final
class Caller:
    """The caller's line to the servers: one connection for each request."""

    def __init__(self, address: Address) -> None:
        self._address: Address = address

    def _do(self, action: str, seconds: float = 5.0, **more: Any) -> list[str]:
        """What each shard answers."""
        found: list[str] = []
        for shard in range(len(self._address.locations)):
            line = self._address.connect(shard, {"action": action, **more}, seconds)
            with contextlib.closing(line):
                found.append(line.read_text(line.read_answer(wire.DONE)[0]))
        return found

    def status(self) -> dict[str, Any]:
        """Shard 0's, which knows of every push; a divergence seen by any shard is told to all."""
        found = [json.loads(text) for text in self._do("status")]
        for other in found:
            if other["diverged"] and not all(f["diverged"] for f in found):
                self.diverged(other["diverged"])
                found[0]["diverged"] = other["diverged"]
        return found[0]

    def stop(self) -> None:
        _ = self._do("stop")

    def diverged(self, told: dict[str, Any]) -> None:
        _ = self._do("diverged", **told)

    def finish(self) -> None:
        _ = self._do("finish", 60.0)
