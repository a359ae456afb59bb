"""How the workers of a gang find each other: a store at one address, then sockets and shared memory between them."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, final

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from firesteel.errors import RendezvousTimeout
from firesteel.net.control import Control
from firesteel.net.gang import GangNet
from firesteel.net.shared import MAX_WORKERS, SharedMemory, host_identity
from firesteel.trace import Trace


@final
@dataclass(frozen=True)
class Meeting:
    """Where a gang meets: its store (see `torch.distributed.TCPStore`), and who this worker is."""

    rank: int
    size: int
    host: str
    port: int
    secret: str
    timeout_seconds: float = 60.0  # a worker silent for longer in a collective is taken for dead
    start_seconds: float = 20.0  # all workers must have met by then
    share_memory: bool = True
    own_host: str | None = None  # the address at which this worker listens; found by the route to `host` if None


def join(meeting: Meeting, trace: Trace, control: Control, device: torch.device, store: Any = None) -> GangNet:
    """Meet the other workers and return the net between them.

    Raises:
        RendezvousTimeout: not all workers arrived in time.
    """
    rank, size = meeting.rank, meeting.size
    if size == 1:
        return GangNet(None, None, 0, 1, trace, control, None, lambda store, rank, size: (None, None))
    wait = timedelta(seconds=meeting.start_seconds)
    try:
        tcp = store if store is not None else open_store(meeting.host, meeting.port, meeting.start_seconds)
        shared_store = PrefixStore(meeting.secret, tcp)
        shared_store.set_timeout(wait)
        own = meeting.own_host or _route(meeting.host)

        def make_group(store: Any, rank: int, size: int) -> Any:
            timeout = timedelta(seconds=meeting.timeout_seconds)
            if device.type == "cuda":
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = timeout
                return dist.ProcessGroupNCCL(store, rank, size, options)
            gloo: Any = dist.ProcessGroupGloo
            options = gloo._Options()
            options._devices = [gloo.create_device(hostname=own)]
            options._timeout = timeout
            return gloo(store, rank, size, options)

        def make(store: Any, rank: int, size: int) -> tuple[Any, SharedMemory | None]:
            """The transport between all members of a net: a process group, and shared memory where all can share it."""
            shared, host = None, host_identity()
            if meeting.share_memory and device.type == "cpu" and 1 < size <= MAX_WORKERS and not host.startswith("alone"):
                if rank == 0:
                    store.set("secret", secrets.token_hex(16))
                shared = SharedMemory(rank, size, store.get("secret").decode(), meeting.timeout_seconds)
                shared.listen()
            store.set(f"host/{rank}", host if shared is not None else "apart")
            together = len({store.get(f"host/{r}") for r in range(size)}) == 1
            group = make_group(PrefixStore("gang", store), rank, size)
            if shared is None or not together:
                return group, None
            shared.connect(1 << 20)
            return group, shared

        group, shared = make(shared_store, rank, size)
        shared_store.set_timeout(timedelta(seconds=meeting.timeout_seconds))
    except (dist.DistStoreError, dist.DistNetworkError, TimeoutError, ConnectionError) as error:
        raise RendezvousTimeout(
            f"worker {rank} of {size} did not meet the others at {meeting.host}:{meeting.port} within "
            f"{meeting.start_seconds:g} s: {str(error).splitlines()[0]}. `firesteel doctor` checks the network."
        ) from None
    return GangNet(group, shared_store, rank, size, trace, control, shared, make)


def leave(net: GangNet) -> None:
    """Close what `join` opened."""
    net.close()


def open_store(host: str, port: int, start_seconds: float) -> Any:
    """A client of the gang's store."""
    return TCPStore(host, port, None, False, timeout=timedelta(seconds=start_seconds))


def serve_store(host: str) -> Any:
    """A store that listens at `host` only, on a free port that it holds from the start."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    return TCPStore(host, port, None, True, wait_for_workers=False, master_listen_fd=listener.detach())


def _route(host: str) -> str:
    """This machine's own address on the way to `host`."""
    family = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return probe.getsockname()[0]
