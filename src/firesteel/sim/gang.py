"""The net of a gang in virtual time: every collective, sends and receives, groups.

Numbers are combined exactly as the real nets of one host do it: in order of rank, weights first. So what a strategy learns
here is, bit for bit, what it learns there.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from firesteel.errors import StrategyError
from firesteel.net.control import Control
from firesteel.net.lacking import NoServer
from firesteel.net.protocol import Net, Op, Vec, WireType
from firesteel.net.ranks import check_group, check_rank
from firesteel.sim import costs
from firesteel.sim.simulation import Member, Posted, Simulation

_WIRE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@final
@dataclass
class _Call:
    """One collective, half met."""

    kind: str
    said: str
    shape: Any
    entries: dict[int, _Entry] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class _Entry:
    posted: Posted[Any]
    x: Tensor
    weight: float
    stop_asked: float
    heard: Callable[[float], None]


@final
class Circle:
    """What the members of one net share."""

    def __init__(self, members: tuple[int, ...]) -> None:
        self.members: tuple[int, ...] = members
        self.calls: dict[int, _Call] = {}
        self.free_at: float = 0.0
        self.wire_seconds: float = 0.0  # of all collectives so far
        self.groups: dict[tuple[tuple[int, ...], int], Circle] = {}
        self.stops: list[float] = []  # by publish: whether to stop there
        self.mail: dict[tuple[int, int], deque[tuple[float, Tensor]]] = {}
        self.wanted: dict[tuple[int, int], deque[Posted[Any]]] = {}


@final
class SimulatedGang(NoServer):
    """`Net` of one worker."""

    def __init__(self, member: Member, circle: Circle, rank: int, control: Control, gang: SimulatedGang | None = None) -> None:
        self.rank: int = rank
        self.size: int = len(circle.members)
        self.control: Control = control
        self.gang: SimulatedGang = gang if gang is not None else self  # that a smaller net was made from, at first
        self._member: Member = member
        self._simulation: Simulation = member.simulation
        self._circle: Circle = circle
        self._calls: int = 0
        self._groups: dict[tuple[int, ...], int] = {}
        self._published: int = 0

    # ---- all workers together ----------------------------------------------------------------------------------------

    def all_reduce(
        self, x: Tensor, op: Op = "mean", weight: float | None = None, wire: WireType | None = None
    ) -> Awaitable[Tensor]:
        x = x.detach()
        if wire and _WIRE[wire] != x.dtype and self.size > 1:
            x.copy_(x.to(_WIRE[wire]))
        nbytes = self._nbytes(x if wire is None else x.new_empty(x.shape, dtype=_WIRE[wire]))
        if x.dtype.is_floating_point and op != "max":
            nbytes += 8 if wire else 2 * x.element_size()  # the weight and the wish to stop
        sent = costs.all_reduce_bytes(self._simulation.fabric.cluster.all_reduce, self.size, nbytes)
        return self._collective("all_reduce", x, op, sent, nbytes, 1.0 if weight is None else float(weight))

    def all_gather(self, x: Tensor) -> Awaitable[Tensor]:
        return self._collective("all_gather", x.detach(), "", self._nbytes(x) * (self.size - 1), self._nbytes(x))

    def reduce_scatter(self, x: Tensor, op: Op = "mean") -> Awaitable[Tensor]:
        own = x.detach().tensor_split(self.size)[self.rank] if self.size > 1 else x
        return self._collective("reduce_scatter", x.detach(), op, self._nbytes(x) - self._nbytes(own), self._nbytes(x))

    def broadcast(self, x: Tensor, root: int = 0) -> Awaitable[Tensor]:
        check_rank("broadcast", "root", root, self.rank, self.size)
        sent = self._nbytes(x) if self.rank == root and self.size > 1 else 0
        return self._collective("broadcast", x.detach(), str(root), sent, self._nbytes(x))

    def _collective(self, kind: str, x: Tensor, how: str, sent: int, nbytes: int, weight: float = 1.0) -> Posted[Tensor]:
        member, circle, number = self._member, self._circle, self._calls + 1
        self._calls = number
        said = f"{kind}({how})" if how else kind
        call = circle.calls.get(number)
        posted = Posted[Tensor](member, kind, sent, lambda: f" of {_shape(x)}, its call {number}{_missing(circle, number)}")
        if call is None:
            call = circle.calls[number] = _Call(kind, said, (x.shape, x.dtype))
        elif call.said != said or call.shape != (x.shape, x.dtype):
            other = next(iter(call.entries))
            shape, dtype = call.shape
            raise StrategyError(
                f"collective {number}: worker {circle.members[self.rank]} called {said} of {_shape(x)}, worker "
                f"{circle.members[other]} called {call.said} of {list(shape)} {dtype}. All workers must make the same calls in "
                "the same order."
            )
        call.entries[self.rank] = _Entry(posted, x, weight, self.control.stop_asked, self._heard)
        if len(call.entries) == self.size:
            del circle.calls[number]
            self._complete(call, nbytes)
        return posted

    def _complete(self, call: _Call, nbytes: int) -> None:
        circle = self._circle
        entries = [call.entries[rank] for rank in range(self.size)]
        begin = max(circle.free_at, *(e.posted.posted_at for e in entries)) if self.size > 1 else entries[0].posted.posted_at
        seconds = self._simulation.fabric.collective(call.kind, circle.members, nbytes)
        circle.free_at = begin + seconds
        circle.wire_seconds += seconds
        xs = [e.x for e in entries]
        how = call.said[len(call.kind) + 1 : -1]
        if self.size == 1:
            values = xs
        elif xs[0].is_meta:
            values = _unfilled(call.kind, xs)
        elif call.kind == "all_reduce":
            values = _all_reduce(xs, how, [e.weight for e in entries])
        elif call.kind == "all_gather":
            whole = torch.cat(xs)
            values = [whole, *(whole.clone() for _ in xs[1:])]
        elif call.kind == "reduce_scatter":
            values = list(_combined(xs, how).tensor_split(self.size))
        else:
            values = [x.copy_(xs[int(how)]) for x in xs]
        stop = max(e.stop_asked for e in entries)
        for entry, value in zip(entries, values, strict=True):
            if call.kind == "all_reduce":
                entry.posted.then = functools.partial(entry.heard, stop)
            entry.posted.complete(circle.free_at, value)

    def _nbytes(self, x: Tensor) -> int:
        return self._simulation.fabric.nbytes(x)

    # ---- two workers -------------------------------------------------------------------------------------------------

    def send(self, x: Tensor, to: int, bare: bool = False) -> Awaitable[None]:
        check_rank("send", "to", to, self.rank, self.size)
        posted = Posted[None](self._member, "send", self._nbytes(x), lambda: f" of {_shape(x)} to worker {to}")
        copy, fabric, key = x.detach().clone(), self._simulation.fabric, (self.rank, to)
        source, target = (fabric.host[self._circle.members[r]] for r in key)

        def begin() -> None:
            sent_at, there_at = fabric.transfer(self._simulation.now, source, target, self._nbytes(copy))
            self._circle.mail.setdefault(key, deque()).append((there_at, copy))
            posted.complete(sent_at)
            self._deliver(key)

        self._simulation.at(self._member.now, self._member.rank, begin)
        return posted

    def recv(self, source: int, like: Tensor | None = None) -> Awaitable[Tensor]:
        check_rank("recv", "source", source, self.rank, self.size)
        posted = Posted[Tensor](self._member, "recv", 0, lambda: f" from worker {source}")
        self._circle.wanted.setdefault((source, self.rank), deque()).append(posted)
        self._deliver((source, self.rank))
        return posted

    def _deliver(self, key: tuple[int, int]) -> None:
        mail, wanted = self._circle.mail.get(key), self._circle.wanted.get(key)
        while mail and wanted:
            there_at, x = mail.popleft()
            posted = wanted.popleft()
            posted.complete(max(there_at, posted.posted_at), x)

    # ---- the gang ----------------------------------------------------------------------------------------------------

    def group(self, ranks: Sequence[int]) -> Net:
        members = tuple(ranks)
        check_group(members, self.rank, self.size)
        self._groups[members] = number = self._groups.get(members, 0) + 1
        whole = tuple(self._circle.members[r] for r in members)
        circle = self._circle.groups.setdefault((members, number), Circle(whole))
        return SimulatedGang(self._member, circle, members.index(self.rank), Control(), self.gang)

    def publish(self, params: Vec, *rest: Tensor) -> None:
        if self.gang is not self:
            return self.gang.publish(params, *rest)
        control, stops = self.control, self._circle.stops
        if self._published == len(stops):  # the first to come here decides for all, so that all stop at the same place
            stops.append(control.stop_agreed if control.met else max(control.stop_agreed, control.stop_asked))
        control.stop_agreed, control.met = stops[self._published], False
        self._published += 1
        control.publish(params, rest)

    def resume(self, *default: Tensor) -> tuple[Tensor, ...]:
        resumed = self.gang.control.resumed
        return default if resumed is None else resumed

    def _heard(self, stop: float) -> None:
        self.control.met = True
        self.control.stop_agreed = max(self.control.stop_agreed, stop)


def _missing(circle: Circle, number: int) -> str:
    call = circle.calls.get(number)
    if call is None:
        return ""
    absent = [circle.members[r] for r in range(len(circle.members)) if r not in call.entries]
    return f", which {len(absent)} of {len(circle.members)} have not made (worker {absent[0]} first)" if absent else ""


def _unfilled(kind: str, xs: list[Tensor]) -> list[Tensor]:
    """What comes of tensors without numbers."""
    first = xs[0]
    if kind == "all_gather":
        return [first.new_empty(len(xs) * len(first), *first.shape[1:]) for _ in xs]
    return list(torch.empty_like(first).tensor_split(len(xs))) if kind == "reduce_scatter" else xs


def _all_reduce(xs: list[Tensor], op: str, weights: list[float]) -> list[Tensor]:
    if op == "max" or not xs[0].dtype.is_floating_point:
        total = _combined(xs, op)
    elif op == "sum":
        total = _combined(xs, "sum")
    else:
        whole = sum(weights)
        if whole:
            total = xs[0] * weights[0]
            for x, w in zip(xs[1:], weights[1:], strict=True):
                total.add_(x * w)
            total.div_(whole)
        else:
            total = _combined(xs, "mean")  # nobody has seen a row, so nobody's word counts more
    return [x.copy_(total) for x in xs]


def _combined(xs: list[Tensor], op: str) -> Tensor:
    """In order of rank, as the real nets do."""
    total = xs[0].clone()
    for x in xs[1:]:
        _ = torch.maximum(total, x, out=total) if op == "max" else total.add_(x)
    if op != "mean":
        return total
    return total.div_(len(xs)) if total.dtype.is_floating_point else total // len(xs)


def _shape(x: Tensor) -> str:
    return f"{list(x.shape)} {x.dtype}"
