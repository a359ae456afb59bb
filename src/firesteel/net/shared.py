"""Collectives between workers of one host: the numbers stay in shared memory, a Unix socket only says when.

Each worker owns an anonymous memory file (memfd) and hands its descriptor to the others over a Unix socket, so nothing
has a name, nothing is left behind, and a worker that dies is noticed at once as the end of its socket. To meet, a
worker writes its part into one of its slots and tells the others; when it has heard from all, it reads their slots (adds
them, in order of rank, so that every worker gets the same bits). A slot is written again only after all have read it.

Loopback sockets would copy each megabyte through the kernel twice; beside a small network's step that is most of the time.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, final

import torch
from torch import Tensor

from firesteel.errors import PeerLost, StrategyError

T = TypeVar("T")
Read = Callable[[list[Tensor]], object]  # what all workers have offered, in order of rank
MAX_WORKERS = 8  # every worker reads every slot: beyond this a ring over sockets moves fewer bytes
_SLOTS = 4  # all-reduces that may be posted before the first is awaited
_TOKEN = struct.Struct("<BQQ")  # phase, number of the operation, bytes
_POSTED, _READ, _GREW = 1, 2, 3
_KINDS = ("all_reduce", "all_gather", "reduce_scatter")
_HEAD_BYTES = 64  # weight and stop flag, ahead of the numbers


def _tag(nbytes: int, kind: str) -> int:
    """What is told of a call, so that others see whether they have made the same one."""
    return 4 * nbytes + _KINDS.index(kind)


def _sum(bodies: list[Tensor], total: Tensor) -> None:
    _ = torch.add(bodies[0], bodies[1], out=total)
    for body in bodies[2:]:
        total.add_(body)


def host_identity() -> str:
    """Equal on two workers iff they can share memory this way: one kernel, one network namespace, one user."""
    if not sys.platform.startswith("linux"):
        return f"alone-{os.getpid()}-{time.time_ns()}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}-{os.readlink('/proc/self/ns/net')}-{os.getuid()}"


def host_name() -> str:
    """The host's name, made distinct where two hosts share one machine and its name."""
    return f"{socket.gethostname()}/{hashlib.sha256(host_identity().encode()).hexdigest()[:6]}"


@final
class _Memory:
    """A memory file with `_SLOTS` slots of `capacity` bytes; the owner writes, the others read."""

    def __init__(self, descriptor: int, capacity: int) -> None:
        self.descriptor: int = descriptor
        self.capacity: int = capacity
        self._map: mmap.mmap = mmap.mmap(descriptor, _SLOTS * (capacity + _HEAD_BYTES))
        self._views: dict[tuple[int, int, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def create(cls, capacity: int) -> _Memory:
        descriptor = os.memfd_create("firesteel")
        os.ftruncate(descriptor, _SLOTS * (capacity + _HEAD_BYTES))
        return cls(descriptor, capacity)

    def slot(self, number: int, numel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The slot's head, float64 [2], and its first `numel` numbers."""
        key = (number % _SLOTS, numel, dtype)
        if key not in self._views:
            start = key[0] * (self.capacity + _HEAD_BYTES)
            head = torch.frombuffer(self._map, dtype=torch.float64, count=2, offset=start)
            body = torch.frombuffer(self._map, dtype=dtype, count=numel, offset=start + _HEAD_BYTES)
            self._views[key] = (head, body)
        return self._views[key]

    def close(self) -> None:
        os.close(self.descriptor)  # the mapping itself goes with the last tensor that looks into it


@final
class SharedMemory:
    """The collectives of one gang whose workers share a host."""

    def __init__(self, rank: int, size: int, secret: str, timeout_seconds: float) -> None:
        self.rank: int = rank
        self.size: int = size
        self._secret: bytes = secret.encode()
        self._timeout: float = timeout_seconds
        self._peers: dict[int, socket.socket] = {}
        self._inbox: dict[int, bytearray] = {}
        self._told: dict[tuple[int, int], dict[int, int]] = {}  # (phase, number) -> rank -> bytes
        self._memory: dict[int, _Memory] = {}
        self._descriptors: dict[int, list[int]] = {}
        self._generation: int = 0
        self._posted: int = 0
        self._finished: int = 0
        self._calls: dict[int, tuple[Tensor, Read, str]] = {}  # posted, not yet read
        self._heads: dict[int, Tensor] = {}  # read, not yet asked for
        self._listener: socket.socket | None = None

    # ---- meeting -----------------------------------------------------------------------------------------------------

    def _address(self, rank: int) -> str:
        return f"\0firesteel-{self._secret.decode()}-{rank}"

    def listen(self) -> None:
        """Open this worker's socket; every worker does this before any of them connects."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self._address(self.rank))
        self._listener.listen(self.size)
        self._listener.settimeout(self._timeout)

    def connect(self, capacity: int) -> None:
        """Meet all others; slots hold `capacity` bytes at first and grow when a call needs more."""
        assert self._listener is not None
        for other in range(self.rank):
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            peer.settimeout(self._timeout)
            peer.connect(self._address(other))
            peer.sendall(self._secret + self.rank.to_bytes(4, "little"))
            self._peers[other] = peer
        while len(self._peers) < self.size - 1:
            peer, _ = self._listener.accept()
            peer.settimeout(self._timeout)
            hello = peer.recv(len(self._secret) + 4, socket.MSG_WAITALL)
            if hello[:-4] == self._secret:
                self._peers[int.from_bytes(hello[-4:], "little")] = peer
            else:
                peer.close()
        self._listener.close()
        self._inbox = {rank: bytearray() for rank in self._peers}
        self._descriptors = {rank: [] for rank in self._peers}
        self._grow(capacity)

    def _grow(self, capacity: int) -> None:
        """Exchange memory files of `capacity` bytes a slot; no operation is under way."""
        for memory in self._memory.values():
            memory.close()
        self._generation += 1
        self._memory = {self.rank: _Memory.create(capacity)}
        mine = [self._memory[self.rank].descriptor]
        for rank, peer in self._peers.items():
            token = _TOKEN.pack(_GREW, self._generation, capacity)
            self._guard(rank, lambda p=peer, t=token: socket.send_fds(p, [t], mine))
        for rank, theirs in self._hear(_GREW, self._generation).items():
            if theirs != capacity:
                raise self._unequal(self._posted + 1, 4 * capacity, rank, 4 * theirs)
            self._memory[rank] = _Memory(self._descriptors[rank].pop(0), capacity)

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()
        for memory in self._memory.values():
            memory.close()
        self._peers, self._memory = {}, {}

    # ---- meeting again and again ---------------------------------------------------------------------------------------

    def gather(self, x: Tensor, into: Tensor) -> int:
        """Offer a contiguous tensor, of which all are wanted, one after the other, [N * x.numel()]."""
        return self.post(x, None, 0.0, lambda bodies: torch.cat(bodies, out=into), "all_gather")

    def scatter(self, x: Tensor, own: slice, into: Tensor) -> int:
        """Offer a contiguous tensor to the sum, of which only the numbers `own` are wanted."""

        def read(bodies: list[Tensor]) -> None:
            _ = torch.add(bodies[0][own], bodies[1][own], out=into)
            for body in bodies[2:]:
                into.add_(body[own])

        return self.post(x, None, 0.0, read, "reduce_scatter")

    def post(self, x: Tensor, weight: float | None, stop: float, read: Read | None = None, kind: str = "all_reduce") -> int:
        """Offer a contiguous tensor to the sum, or to be read in another way; returns the operation's number.

        `weight` None adds `x` as it is.
        """
        nbytes = x.numel() * x.element_size()
        if nbytes > self._memory[self.rank].capacity:
            self._complete(self._posted)
            for number in range(max(1, self._posted - _SLOTS + 1), self._posted + 1):
                _ = self._hear(_READ, number)
            self._grow(max(nbytes, 2 * self._memory[self.rank].capacity))
        number = self._posted = self._posted + 1
        if number > _SLOTS:
            self._complete(number - _SLOTS)
            _ = self._hear(_READ, number - _SLOTS)
            del self._told[_READ, number - _SLOTS]
        head, body = self._memory[self.rank].slot(number, x.numel(), x.dtype)
        head[0], head[1] = 1.0 if weight is None else weight, stop
        _ = body.copy_(x.view(-1)) if weight is None else torch.mul(x.view(-1), weight, out=body)
        self._calls[number] = x, read or (lambda bodies: _sum(bodies, x.view(-1))), kind
        self._tell(_POSTED, number, _tag(nbytes, kind))
        return number

    def finish(self, number: int) -> Tensor:
        """Complete an operation; returns [sum of weights, sum of flags], once.

        A sum stands in its tensor, which is left as it was where all weights are 0.
        """
        self._complete(number)
        return self._heads.pop(number)

    def _complete(self, number: int) -> None:
        """Sum up all operations up to `number`, in order."""
        while self._finished < number:
            current = self._finished + 1
            x, read, called = self._calls.pop(current)
            nbytes = x.numel() * x.element_size()
            for rank, theirs in self._hear(_POSTED, current).items():
                if theirs != _tag(nbytes, called):
                    raise self._unequal(current, _tag(nbytes, called), rank, theirs)
            del self._told[_POSTED, current]
            slots = [self._memory[rank].slot(current, x.numel(), x.dtype) for rank in range(self.size)]
            heads = torch.stack([head for head, _ in slots]).sum(0)
            if heads[0]:
                read([body for _, body in slots])
            self._heads[current] = heads
            with contextlib.suppress(PeerLost):  # a worker that has all its results may have left already
                self._tell(_READ, current, nbytes)
            self._finished = current

    # ---- telling and hearing -----------------------------------------------------------------------------------------

    def _guard(self, rank: int, action: Callable[[], T]) -> T:
        try:
            return action()
        except TimeoutError:
            raise PeerLost(f"worker {rank} has been silent for {self._timeout:g} s") from None
        except ConnectionError:
            raise self._lost(rank) from None

    @staticmethod
    def _lost(rank: int) -> PeerLost:
        return PeerLost(f"worker {rank} has gone")

    def _unequal(self, number: int, mine: int, rank: int, theirs: int) -> StrategyError:
        (called, nbytes), (other, bytes_there) = ((_KINDS[tag % 4], tag // 4) for tag in (mine, theirs))
        return StrategyError(
            f"collective {number}: worker {self.rank} called {called} on {nbytes} bytes, worker {rank} {other} on "
            f"{bytes_there}. All workers must make the same calls in the same order."
        )

    def _tell(self, phase: int, number: int, nbytes: int) -> None:
        token = _TOKEN.pack(phase, number, nbytes)
        for rank, peer in self._peers.items():
            self._guard(rank, lambda p=peer: p.sendall(token))

    def _hear(self, phase: int, number: int) -> dict[int, int]:
        """Wait until every other worker has told (phase, number); returns the bytes each has named."""
        told = self._told.setdefault((phase, number), {})
        for rank, peer in self._peers.items():
            while rank not in told:
                inbox = self._inbox[rank]
                # Descriptors of new memory files may come with any message; a plain recv would drop them.
                data, descriptors, _, _ = self._guard(rank, lambda p=peer: socket.recv_fds(p, 4096, 4))
                if not data:
                    raise self._lost(rank)
                self._descriptors[rank] += descriptors
                inbox.extend(data)
                whole = len(inbox) // _TOKEN.size * _TOKEN.size
                for kind, which, nbytes in _TOKEN.iter_unpack(bytes(inbox[:whole])):
                    self._told.setdefault((kind, which), {})[rank] = nbytes
                del inbox[:whole]
        return told
