"""A worker's way to the servers: `pull` and `push` over one stream a shard."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import pyarrow as pa
import pyarrow.flight as flight
import torch
from torch import Tensor

from firesteel.errors import ClusterError, Fenced, PeerLost, StrategyError
from firesteel.net import wire
from firesteel.net.center import Note
from firesteel.net.pending import Pending
from firesteel.net.protocol import Net, Op, Vec, WireType
from firesteel.trace import Trace

T = TypeVar("T")
_GONE = (flight.FlightUnavailableError, flight.FlightTimedOutError, flight.FlightCancelledError, flight.FlightInternalError)


@final
@dataclass(frozen=True)
class Address:
    """Where the servers of a run are, and how to come in."""

    locations: tuple[str, ...]
    """One for each shard."""
    token: str
    root: bytes | None
    """The certificate to trust, PEM; None without TLS."""

    def connect(self, shard: int) -> tuple[Any, Any]:
        """A client and the options of its calls."""
        trust = {"tls_root_certs": self.root} if self.root else {}
        client = flight.connect(self.locations[shard], **trust)
        return client, flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {self.token}".encode())])


@final
class _Link:
    """The stream to one shard."""

    def __init__(self, address: Address, shard: int, worker: int, attempt: int, schema: pa.Schema) -> None:
        self.schema: pa.Schema = schema
        self._client, options = address.connect(shard)
        told = json.dumps({"worker": worker, "attempt": attempt}).encode()
        self._writer, self._reader = self._client.do_exchange(flight.FlightDescriptor.for_command(told), options)
        self._writer.begin(schema)
        welcome = self._reader.read_chunk().app_metadata.to_pybytes()
        self.sequence, self.steps_done = wire.read_two(welcome)

    def say(self, note: bytes) -> None:
        self._writer.write_metadata(pa.py_buffer(note))

    def push(self, note: bytes, numbers: Tensor) -> None:
        self._writer.write_with_metadata(wire.batch(numbers, self.schema), pa.py_buffer(note))

    def center(self) -> tuple[int, Tensor]:
        chunk = self._reader.read_chunk()
        _, said = wire.read_two(chunk.app_metadata.to_pybytes())
        return said, wire.tensor(chunk.data, self.schema)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._writer.write_metadata(pa.py_buffer(wire.two(wire.LEAVE, 0, 0)))
            self._writer.done_writing()
            with contextlib.suppress(StopIteration):
                while True:
                    _ = self._reader.read_chunk()  # until the server has hung up: it has merged everything by then
        with contextlib.suppress(Exception):
            self._writer.close()
        with contextlib.suppress(Exception):
            self._client.close()


@final
class CenterNet:
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
        self.on_stop: Callable[[], None] = lambda: None
        self.sequence: int = 0
        self._attempt: int = attempt
        self._find: Callable[[], Address] = find
        self._parts: Sequence[slice] = parts
        self._schema: pa.Schema = wire.schema(dtype)
        self._restart_seconds: float = restart_seconds
        self._device: torch.device = device or torch.device("cpu")
        self._last: tuple[bytes, list[Tensor]] | None = None  # the newest push: sent again to a server that lost it
        self._outstanding: int = 0  # centers asked for and not yet here
        self._links: list[_Link] = []

    def join(self) -> int:
        """Meet the servers; returns the local steps that earlier attempts of this worker have already pushed."""
        self._meeting_again(lambda: self._connect(self._find()), lambda: None)
        return max(link.steps_done for link in self._links)

    def _connect(self, address: Address) -> None:
        for link in self._links:
            link.close()
        self._links = []
        for shard in range(len(self._parts)):
            self._links.append(_Link(address, shard, self.rank, self._attempt, self._schema))
        newest = max([self.sequence, *(link.sequence for link in self._links)])
        for shard, link in enumerate(self._links):
            if self._last is not None and link.sequence == newest - 1 and newest == self.sequence:
                note, parts = self._last
                link.push(note, parts[shard])  # all it lacks is the newest push, which is still at hand
            elif link.sequence < newest:
                link.say(wire.two(wire.AGREE, newest, max(other.steps_done for other in self._links)))
        self.sequence = newest
        for _ in range(self._outstanding):
            self._ask()

    # ---- one worker and the server -----------------------------------------------------------------------------------

    def pull(self) -> Awaitable[Vec]:
        self._outstanding += 1
        self._meeting_again(self._ask, lambda: None)
        return Pending(self._centers, self.trace, "pull", 0)

    def push(self, delta: Vec) -> Awaitable[None]:
        # A copy: the transport may still be reading when the strategy has its tensor back.
        self._send(delta.detach().cpu().clone(), wire.PUSH)
        return Pending(lambda: None, self.trace, "push", delta.numel() * delta.element_size())

    def exchange(self, delta: Vec) -> Awaitable[Vec]:
        # No copy: the center comes when all was read. Only a server that may come back needs one, to hear it again.
        delta = delta.detach().cpu()
        self._outstanding += 1
        self._send(delta.clone() if self._restart_seconds else delta, wire.EXCHANGE)
        return Pending(self._centers, self.trace, "exchange", delta.numel() * delta.element_size())

    def _send(self, delta: Vec, kind: int) -> None:
        self.sequence += 1
        note = self.note()
        parts = [delta] if len(self._parts) == 1 else [delta[part] for part in self._parts]
        statistics = self.statistics().cpu()
        if statistics.numel():
            parts[0] = torch.cat([parts[0], statistics])
        if self._restart_seconds:
            self._last = wire.push_note(self.sequence, note), parts
        text = wire.push_note(self.sequence, note, kind)

        def send() -> None:
            for link, part in zip(self._links, parts, strict=True):
                link.push(text, part)

        self._meeting_again(send, lambda: None)

    def _ask(self) -> None:
        for link in self._links:
            link.say(wire.two(wire.PULL, 0, 0))

    def _centers(self) -> Vec:
        def read() -> list[tuple[int, Tensor]]:
            return [link.center() for link in self._links]

        found = self._meeting_again(read, read)
        self._outstanding -= 1
        if any(said for said, _ in found):
            self.on_stop()
        whole = found[0][1] if len(found) == 1 else torch.cat([part for _, part in found])
        return whole.to(self._device)

    def _meeting_again(self, call: Callable[[], T], repeat: Callable[[], T]) -> T:
        """Call; where a server has gone and may come back, wait for it, meet it again (which sends it the newest push if it
        lacks that, and asks again for what was asked), and call `repeat` instead."""
        try:
            return call()
        except (*_GONE, StopIteration, OSError, flight.FlightServerError) as error:
            if not self._restart_seconds or isinstance(error, flight.FlightServerError):
                raise _told(error) from None
        until = time.monotonic() + self._restart_seconds
        while True:
            try:
                self._connect(self._find())  # waits for the new address
                return repeat()
            except (*_GONE, StopIteration, OSError, flight.FlightServerError) as error:
                if time.monotonic() > until or isinstance(error, flight.FlightServerError):
                    raise _told(error) from None
                _ = threading.Event().wait(0.05)  # the old address is all there is until the server is back

    def close(self) -> None:
        """Leave; returns when the servers have merged all that was pushed."""
        for link in self._links:
            link.close()

    # ---- what there is not -------------------------------------------------------------------------------------------

    def all_reduce(
        self, x: Tensor, op: Op = "mean", weight: float | None = None, wire: WireType | None = None
    ) -> Awaitable[Tensor]:
        raise _no_gang("all_reduce")

    def all_gather(self, x: Tensor) -> Awaitable[Tensor]:
        raise _no_gang("all_gather")

    def reduce_scatter(self, x: Tensor, op: Op = "mean") -> Awaitable[Tensor]:
        raise _no_gang("reduce_scatter")

    def broadcast(self, x: Tensor, root: int = 0) -> Awaitable[Tensor]:
        raise _no_gang("broadcast")

    def send(self, x: Tensor, to: int) -> Awaitable[None]:
        raise _no_gang("send")

    def recv(self, source: int) -> Awaitable[Tensor]:
        raise _no_gang("recv")

    def group(self, ranks: Sequence[int]) -> Net:
        raise _no_gang("group")

    def publish(self, params: Vec, *rest: Tensor) -> None:
        """The center is the model that the world sees, and the server keeps it: nothing to do here."""

    def resume(self, *default: Tensor) -> tuple[Tensor, ...]:
        return default


def _told(error: BaseException) -> ClusterError:
    """A lost server as an error of ours, which is never the root cause: the caller knows more about its servers."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not isinstance(error, flight.FlightServerError):
        return PeerLost(f"the server is gone: {said}")
    return Fenced(said) if Fenced.__name__ in said else PeerLost(f"the server refused: {said}")


def _no_gang(verb: str) -> StrategyError:
    return StrategyError(
        f"net.{verb} needs workers that meet, but a strategy with `merge` runs workers that come and go: use pull and push."
    )


@final
class Caller:
    """The caller's line to the servers."""

    def __init__(self, address: Address) -> None:
        self._lines: list[tuple[Any, Any]] = [address.connect(shard) for shard in range(len(address.locations))]
        self._address: Address = address

    def _do(self, shard: int, action: str, body: bytes = b"", seconds: float = 5.0) -> list[bytes]:
        client, _ = self._lines[shard]
        headers = [(b"authorization", f"Bearer {self._address.token}".encode())]
        options = flight.FlightCallOptions(timeout=seconds, headers=headers)
        return [r.body.to_pybytes() for r in client.do_action(flight.Action(action, body), options)]

    def status(self) -> dict[str, Any]:
        """Shard 0's, which knows of every push; a divergence seen by any shard is told to all."""
        found = [json.loads(self._do(shard, "status")[0]) for shard in range(len(self._lines))]
        for other in found:
            if other["diverged"] and not all(f["diverged"] for f in found):
                self.diverged(other["diverged"])
                found[0]["diverged"] = other["diverged"]
        return found[0]

    def stop(self) -> None:
        for shard in range(len(self._lines)):
            _ = self._do(shard, "stop")

    def diverged(self, told: dict[str, Any]) -> None:
        for shard in range(len(self._lines)):
            _ = self._do(shard, "diverged", json.dumps(told).encode())

    def finish(self) -> None:
        for shard in range(len(self._lines)):
            with contextlib.suppress(flight.FlightError, OSError):  # it ends so soon that its answer may not arrive
                _ = self._do(shard, "finish", seconds=60.0)

    def close(self) -> None:
        for client, _ in self._lines:
            client.close()
