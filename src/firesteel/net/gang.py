"""The net of real processes: `torch.distributed` between hosts, shared memory within one.

No global process group is made, but for PyTorch's own sharding (`net.mesh`): a gang owns its own, so a second run in the
same process, or a run beside the user's own use of `torch.distributed`, does not meet it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore

from firesteel.net.control import Control
from firesteel.net.lacking import NoServer
from firesteel.net.mesh import Mesh, mesh_of
from firesteel.net.peers import peers_named
from firesteel.net.pending import Pending
from firesteel.net.protocol import Net, Op, Vec, WireType
from firesteel.net.ranks import check_group, check_rank
from firesteel.net.shared import SharedMemory
from firesteel.trace import Trace

T = TypeVar("T")
_OPS = {"sum": dist.ReduceOp.SUM, "mean": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
_WIRE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@final
class GangNet(NoServer):
    """`Net` over a process group."""

    def __init__(
        self,
        group: Any,
        store: Any,
        rank: int,
        size: int,
        trace: Trace,
        control: Control,
        shared: SharedMemory | None,
        make: Callable[[Any, int, int], tuple[Any, SharedMemory | None]],
        gang: GangNet | None = None,
    ) -> None:
        self.rank: int = rank
        self.size: int = size
        self.trace: Trace = trace
        self.control: Control = control
        self.gang: GangNet = gang if gang is not None else self  # that a smaller net was made from, at first
        self._group: Any = group
        self._store: Any = store
        self._shared: SharedMemory | None = shared
        self._make: Callable[[Any, int, int], tuple[Any, SharedMemory | None]] = make
        self._smaller: list[GangNet] = []
        self._groups: dict[tuple[int, ...], int] = {}
        self._meshes: int = 0
        self._closing: contextlib.ExitStack = contextlib.ExitStack()

    # ---- all workers together ----------------------------------------------------------------------------------------

    def all_reduce(
        self, x: Tensor, op: Op = "mean", weight: float | None = None, wire: WireType | None = None
    ) -> Awaitable[Tensor]:
        if self.size == 1:
            self._heard(self.control.stop_asked)
            return self._done("all_reduce", 0, lambda: x)
        x = x.detach()
        numel, dtype = x.numel(), x.dtype
        if op == "max" or not dtype.is_floating_point:
            x = x.contiguous()
            work = self._collective(lambda: self._group.allreduce([x], self._options(dist.AllreduceOptions, _OPS[op])))

            def largest() -> Tensor:
                self._wait(work)
                return x // self.size if op == "mean" else x

            return self._done("all_reduce", self._ring_bytes(x), largest)
        scale = (1.0 if weight is None else float(weight)) if op == "mean" else None
        if self._shared is not None and x.device.type == "cpu":
            return self._all_reduce_shared(x, scale, wire)
        sent_type = _WIRE[wire] if wire else dtype
        stage = torch.empty(numel + 2, dtype=sent_type, device=x.device)
        if scale is None:
            _ = stage[:numel].copy_(x.reshape(-1))
        else:
            flat = x.reshape(-1)
            _ = torch.mul(flat, scale, out=stage[:numel]) if sent_type == dtype else stage[:numel].copy_(flat * scale)
        # Weights and the request to stop ride along with the numbers; rounded types carry them beside, in full.
        head = torch.tensor([scale or 0.0, self.control.stop_asked], dtype=torch.float32, device=x.device)
        apart = self._collective(lambda: self._group.allreduce([head])) if wire else None
        stage[numel:] = 0.0 if wire else head
        work = self._collective(lambda: self._group.allreduce([stage]))

        def finish() -> Tensor:
            self._wait(work)
            if apart is not None:
                self._wait(apart)
            total, stop = (head if wire else stage[numel:]).tolist()
            self._heard(stop)
            result = x.view(-1) if x.is_contiguous() else torch.empty(numel, dtype=dtype, device=x.device)
            if scale is None:
                _ = result.copy_(stage[:numel])
            elif sent_type == dtype:
                _ = torch.div(stage[:numel], total, out=result) if total else result
            else:
                _ = result.copy_(stage[:numel]).div_(total) if total else result
            if scale is not None and not total:
                return self._plain_mean(x)
            return result.view(x.shape)

        return self._done("all_reduce", self._ring_bytes(stage) + (8 if wire else 0), finish)

    def _all_reduce_shared(self, x: Tensor, scale: float | None, wire: WireType | None) -> Awaitable[Tensor]:
        shared = self._shared
        assert shared is not None
        work = x.contiguous()
        if wire and _WIRE[wire] != x.dtype:
            work = work.to(_WIRE[wire]).to(x.dtype)  # shared memory need not shrink it, but all worlds round alike
        number = shared.post(work, scale, self.control.stop_asked)

        def finish() -> Tensor:
            total, stop = shared.finish(number).tolist()
            self._heard(stop)
            if scale is None:
                return work
            return work.div_(total) if total else self._plain_mean(work)

        return self._done("all_reduce", x.numel() * x.element_size() + 16, finish)

    def _plain_mean(self, x: Tensor) -> Tensor:
        """All weights were 0, on every worker alike: nobody has seen a row, so nobody's word counts more."""
        return self.totals(x.clone().contiguous()).div_(self.size)

    def all_gather(self, x: Tensor) -> Awaitable[Tensor]:
        if self.size == 1:
            return self._done("all_gather", 0, lambda: x)
        x = x.detach().contiguous()
        if self._shared is not None and x.device.type == "cpu" and x.numel():
            return self._shared_gather(x, self._shared)
        parts = [torch.empty_like(x) for _ in range(self.size)]
        work = self._collective(lambda: self._group.allgather([parts], [x]))

        def finish() -> Tensor:
            self._wait(work)
            return torch.cat(parts)

        return self._done("all_gather", _nbytes(x) * (self.size - 1), finish)

    def reduce_scatter(self, x: Tensor, op: Op = "mean") -> Awaitable[Tensor]:
        """N - 1 sends and receives: gloo's own moves as many bytes as its all-reduce."""
        if self.size == 1:
            return self._done("reduce_scatter", 0, lambda: x)
        if self._shared is not None and x.device.type == "cpu" and x.numel() and op != "max":
            return self._shared_scatter(x.detach().contiguous(), op, self._shared)
        shares = [s.contiguous() for s in x.detach().tensor_split(self.size)]
        mine = shares[self.rank]
        others = [r for r in range(self.size) if r != self.rank]
        got = {r: torch.empty_like(mine) for r in others}
        works = [self._collective(lambda r=r: self._group.send([shares[r]], r, 1)) for r in others]
        works += [self._collective(lambda r=r: self._group.recv([got[r]], r, 1)) for r in others]

        def finish() -> Tensor:
            for work in works:
                self._wait(work)
            stack = [mine if r == self.rank else got[r] for r in range(self.size)]
            if op == "max":
                return torch.stack(stack).amax(0)
            total = stack[0].clone()
            for share in stack[1:]:
                total.add_(share)
            return total.div_(self.size) if op == "mean" else total

        return self._done("reduce_scatter", sum(_nbytes(shares[r]) for r in others), finish)

    def _shared_gather(self, x: Tensor, shared: SharedMemory) -> Awaitable[Tensor]:
        whole = torch.empty(self.size * x.numel(), dtype=x.dtype)
        number = shared.gather(x, whole)

        def finish() -> Tensor:
            _ = shared.finish(number)
            return whole.view(self.size * len(x), *x.shape[1:])

        return self._done("all_gather", _nbytes(x) * (self.size - 1), finish)

    def _shared_scatter(self, x: Tensor, op: Op, shared: SharedMemory) -> Awaitable[Tensor]:
        sizes = [len(share) for share in x.tensor_split(self.size)]
        each, start = x.numel() // max(len(x), 1), sum(sizes[: self.rank])
        own = torch.empty(sizes[self.rank], *x.shape[1:], dtype=x.dtype)
        number = shared.scatter(x, slice(start * each, (start + sizes[self.rank]) * each), own.view(-1))

        def finish() -> Tensor:
            _ = shared.finish(number)
            return own.div_(self.size) if op == "mean" else own

        return self._done("reduce_scatter", _nbytes(x) - _nbytes(own), finish)

    def broadcast(self, x: Tensor, root: int = 0) -> Awaitable[Tensor]:
        check_rank("broadcast", "root", root, self.rank, self.size)
        if self.size == 1:
            return self._done("broadcast", 0, lambda: x)
        x = x.detach().contiguous()
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = root, 0
        work = self._collective(lambda: self._group.broadcast([x], options))

        def finish() -> Tensor:
            self._wait(work)
            return x

        return self._done("broadcast", _nbytes(x) if self.rank == root else 0, finish)

    # ---- two workers -------------------------------------------------------------------------------------------------

    def send(self, x: Tensor, to: int, bare: bool = False) -> Awaitable[None]:
        check_rank("send", "to", to, self.rank, self.size)
        x = x.detach().contiguous()
        works = []
        if not bare:
            head = torch.zeros(10, dtype=torch.long)
            head[0], head[1] = _TYPES.index(x.dtype), x.dim()
            head[2 : 2 + x.dim()] = torch.tensor(x.shape)
            works.append(self._collective(lambda: self._group.send([head], to, 2)))
        works.append(self._collective(lambda: self._group.send([x.view(-1)], to, 3)))

        def finish() -> None:
            for work in works:
                self._wait(work)

        return self._done("send", _nbytes(x), finish)

    def recv(self, source: int, like: Tensor | None = None) -> Awaitable[Tensor]:
        check_rank("recv", "source", source, self.rank, self.size)

        def finish() -> Tensor:
            if like is None:
                head = torch.zeros(10, dtype=torch.long)
                self._wait(self._collective(lambda: self._group.recv([head], source, 2)))
                x = torch.empty(tuple(head[2 : 2 + int(head[1])].tolist()), dtype=_TYPES[int(head[0])])
            else:
                x = torch.empty(like.shape, dtype=like.dtype)
            self._wait(self._collective(lambda: self._group.recv([x.view(-1)], source, 3)))
            return x

        return self._done("recv", 0, finish)

    # ---- the gang ----------------------------------------------------------------------------------------------------

    def group(self, ranks: Sequence[int]) -> Net:
        members = tuple(ranks)
        check_group(members, self.rank, self.size)
        self._groups[members] = number = self._groups.get(members, 0) + 1
        store = PrefixStore(f"group/{members}/{number}", self._store)
        rank, size = members.index(self.rank), len(members)
        group, shared = self._make(store, rank, size)
        # Nobody asks its own control to stop: what only a part of the gang has heard could not end all at the same place.
        net = GangNet(group, store, rank, size, self.trace, Control(), shared, self._make, self.gang)
        self._smaller.append(net)
        return net

    def mesh(self) -> Mesh:
        """These workers, at least 2, for PyTorch's own sharding until the gang is closed; only nets of processes have it."""
        self._meshes += 1
        store = PrefixStore(f"mesh/{self._meshes}", self._store)
        return self.gang._closing.enter_context(mesh_of(self._make, store, self.rank, self.size, self.trace))

    def publish(self, params: Vec, *rest: Tensor) -> None:
        gang, control = self.gang, self.gang.control
        if not control.met:
            # Nothing since the last publish has carried a request to stop; ask, so that all stop at the same place.
            gang._heard(float(gang.totals(torch.tensor([control.stop_asked]))[0]))
        control.met = False
        control.publish(params, rest)

    def resume(self, *default: Tensor) -> tuple[Tensor, ...]:
        resumed = self.gang.control.resumed
        return default if resumed is None else resumed

    def close(self) -> None:
        """Give back what this net and the smaller ones made from it hold beside their process groups."""
        for net in self._smaller:
            net.close()
        self._closing.close()
        if self._shared is not None:
            self._shared.close()

    def totals(self, x: Tensor) -> Tensor:
        """Sum over all workers, in place, outside the strategy's own rounds: no trace counts it."""
        if self.size > 1:
            if self._shared is not None and x.device.type == "cpu":
                _ = self._shared.finish(self._shared.post(x, None, 0.0))
            else:
                self._wait(self._collective(lambda: self._group.allreduce([x])))
        return x

    def _heard(self, stop: float) -> None:
        self.control.met = True
        self.control.stop_agreed = max(self.control.stop_agreed, stop)

    def _collective(self, call: Callable[[], Any]) -> Any:
        with peers_named():
            return call()

    def _wait(self, work: Any) -> None:
        with peers_named():
            _ = work.wait()

    def _done(self, kind: str, sent: int, finish: Callable[[], T]) -> Awaitable[T]:
        return Pending(finish, self.trace, kind, sent)

    def _ring_bytes(self, x: Tensor) -> int:
        return 2 * (self.size - 1) * _nbytes(x) // self.size

    @staticmethod
    def _options(kind: Any, op: Any) -> Any:
        options = kind()
        options.reduceOp = op
        return options


_TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]


def _nbytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
