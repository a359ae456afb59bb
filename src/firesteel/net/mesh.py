"""A gang as PyTorch's own sharding sees it: a `DeviceMesh`, over a process group like the gang's own.

PyTorch finds the group of a mesh among those that it has made itself, of which one is the default. So here the gang's way
of making a group is registered as a backend, and for as long as the mesh is in use the gang is the default group.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Hashable
from typing import Any, final

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from firesteel.errors import UsageError
from firesteel.net.peers import peers_named
from firesteel.trace import Trace

Make = Callable[[Any, int, int], tuple[Any, Any]]  # of a store, a rank and a size: a process group and shared memory
_BACKEND = "firesteel"
_NUMBERS = itertools.count()


@final
class Mesh:
    """The workers of a net, along one dimension, for code that talks through `torch.distributed` itself."""

    def __init__(self, devices: DeviceMesh, trace: Trace) -> None:
        self.devices: DeviceMesh = devices
        self._trace: Trace = trace
        self._sent: dict[Hashable, list[tuple[str, int]]] = {}

    @contextlib.contextmanager
    def passing(self, what: Hashable) -> Generator[None]:
        """Around a pass that meets others: lost ones are named, and the trace learns what was sent.

        Args:
            what: passes of which it is equal send the same; only the first of them is looked at, which takes time.
        """
        with peers_named():
            if what in self._sent:
                yield
            else:
                with _Sending(self.devices.size()) as sending:
                    yield
                self._sent[what] = sending.found
        for kind, nbytes in self._sent[what]:
            self._trace.verb(kind, nbytes, 0.0)


@contextlib.contextmanager
def mesh_of(make: Make, store: Any, rank: int, size: int, trace: Trace) -> Generator[Mesh]:
    """A mesh of the workers whom `make(store, rank, size)` brings together; they are the default group meanwhile.

    Raises:
        UsageError: this process has a default group already.
    """
    if dist.is_initialized():
        raise UsageError(
            "PyTorch's own sharding needs the default process group of torch.distributed, but this process has one already. "
            "Leave out init_process_group() in what runs on the workers."
        )
    dist.Backend.register_backend(_BACKEND, _made, extended_api=True, devices=["cpu"])
    dist.init_process_group(_BACKEND, store=store, rank=rank, world_size=size, pg_options=make)
    try:
        group: Any = dist.group.WORLD
        # PyTorch keeps what it has found out about a mesh for all that are equal to it: each has a name of its own.
        yield Mesh(DeviceMesh.from_group(group, "cpu", mesh_dim_names=(f"gang{next(_NUMBERS)}",)), trace)
    finally:
        dist.destroy_process_group()


def _made(options: Any, make: Make) -> Any:
    group, shared = make(options.store, options.group_rank, options.group_size)
    if shared is not None:  # PyTorch would not know what to do with it
        shared.close()
    return group


class _Sending(TorchDispatchMode):
    """Looks at all operations, and notes what those that meet others send: (verb, bytes)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []
        self._size: int = size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self._note(func.__name__, args)
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, args: Any) -> None:
        found = [
            x.nbytes for x in tree_leaves(args) if isinstance(x, Tensor)
        ]  # of what goes in and, for some, of what comes out
        name = name.replace("_", "")
        ring = 2 * (self._size - 1) / self._size
        if "reducescatter" in name:  # gloo moves as many bytes as for an all-reduce
            self.found.append(("reduce_scatter", int(ring * max(found))))
        elif "allgather" in name:
            self.found.append(("all_gather", min(found) * (self._size - 1)))
        elif "allreduce" in name:
            self.found.append(("all_reduce", int(ring * sum(found))))
        elif "alltoall" in name:
            self.found.append(("reduce_scatter", int(ring * found[-1] / 2)))
