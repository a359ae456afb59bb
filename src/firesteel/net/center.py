"""The center of a run, as pure logic: a fold of pushes in order of arrival. No sockets, no threads, no clock of its own.

One `Center` holds the coordinates of one shard. What it has seen, it writes into a log; the log and the strategy are
enough to compute the same center again, bit for bit.

    join -> (pull | push)* -> leave        every call names the worker and its attempt

A worker that was lost and started again joins with a higher attempt: it learns the number of its next push and the step
at which that begins, and whatever the older attempt still sends is refused. So each push is merged exactly once.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import pyarrow as pa
import torch

from firesteel.errors import Fenced, UsageError
from firesteel.net.protocol import Push, Vec

KINDS = ("join", "pull", "push", "lost", "leave")
_NUMBER = {kind: i for i, kind in enumerate(KINDS)}
_WHOLE = ("worker", "attempt", "sequence", "version", "staleness", "steps", "steps_done", "rows", "bytes", "told")
_REAL = ("seconds", "weight", "loss_sum", "waited_seconds", "distance", "scaling")
_EVENT = struct.Struct(f"<b{len(_WHOLE)}q{len(_REAL)}d")
_EVENTS = np.dtype([("kind", "i1"), *((name, "<i8") for name in _WHOLE), *((name, "<f8") for name in _REAL)])

_MANY = 2**20  # attempts of a worker, and pushes that one shard may lack: more is nonsense

LOG = pa.schema(
    [
        ("kind", pa.string()),
        *((name, pa.int64()) for name in _WHOLE),
        *((name, pa.float64()) for name in _REAL),
    ]
)
"""An event of a shard. `version` counts the pushes merged before it; `staleness` is that of a push; `steps_done` is the
sender's position in its data; `told` is what a pull was told beside the center (1 stop, 2 diverged); `distance` (between the
center pushed to and the center pulled, 2-norm) and `scaling` (the norm of the change over the norm of the push) are recorded
now and then, else NaN."""


@final
class Note(NamedTuple):
    """What travels with a push: how much work is in it, and how far its sender is."""

    steps: int
    steps_done: int
    rows: int
    weight: float
    loss_sum: float
    waited_seconds: float
    epochs: float
    """Epochs done, a fraction."""
    points: float
    """Kept publish points reached, a fraction."""


@final
@dataclass(frozen=True)
class Rules:
    """What a center does beside merging."""

    max_ahead: int | None = None
    max_growth: float = 1e4
    record_every: int = 16
    check_every: int = 16


@final
@dataclass
class _Member:
    attempt: int
    active: bool = True
    sequence: int = 0  # pushes merged or declared lost
    clock: int = 0  # pushes merged, counted on from where the slowest stood when the worker joined
    pulled: int = 0  # version of the last pull
    staleness: int = 0  # of the last push
    seen: Vec | None = None
    note: Note | None = None
    statistics: Vec | None = None


@final
class Center:
    """One shard of the center. Calls must come one at a time; whoever serves it holds a lock."""

    def __init__(
        self,
        params: Vec,
        strategy: Any,
        size: int,
        statistics: Vec | None = None,
        rules: Rules = Rules(),
        keep: Callable[[Vec, Vec, dict[str, float]], None] = lambda params, statistics, mark: None,
    ) -> None:
        self.params: Vec = params
        self.version: int = 0
        self.diverged: dict[str, Any] | None = None
        self.members: dict[int, _Member] = {}
        self.most_at_once: int = 0
        self._strategy: Any = strategy
        self._needs_seen: bool = bool(getattr(strategy, "needs_seen", False))
        self._size: int = size
        self._base: Vec = params.new_zeros(0) if statistics is None else statistics
        self._statistics: int = self._base.numel()
        self._rules: Rules = rules
        self._keep: Callable[[Vec, Vec, dict[str, float]], None] = keep
        self._good: Vec = params.clone()
        self._limit: float = rules.max_growth * max(1.0, float(torch.linalg.vector_norm(params)))
        self._kept: int = 0
        self._newest: tuple[int, int] = (-1, 0)  # worker and sequence of the push merged last
        self._scratch: Vec | None = None
        self._sums: dict[str, float] = {"epochs": 0.0, "points": 0.0}  # over the workers' newest notes
        self._without: int = 0  # workers that have left without a push
        self._log: bytearray = bytearray()  # packed events
        self.totals: dict[str, float] = {"samples": 0, "weight": 0.0, "loss_sum": 0.0, "bytes": 0, "waited": 0.0, "steps": 0}

    # ---- what workers ask for ----------------------------------------------------------------------------------------

    def join(self, worker: int, attempt: int, seconds: float) -> tuple[int, int]:
        """A worker begins, or begins again; returns (its pushes so far, its steps at the last of them)."""
        if not 0 <= worker < self._size:
            raise UsageError(f"there is no worker {worker} in a run of {self._size}.")
        if not 0 <= attempt < _MANY:
            raise UsageError(f"worker {worker} has no attempt {attempt}.")
        member = self.members.get(worker)
        if member is None:
            member = self.members[worker] = _Member(attempt)
        elif attempt < member.attempt or (attempt == member.attempt and member.active):
            raise Fenced(f"worker {worker}, attempt {attempt}: attempt {member.attempt} has taken over.")
        elif not member.active and member.note is None:
            self._without -= 1
        others = [m.clock for m in self.members.values() if m.active and m is not member]
        member.clock = max(member.clock, min(others) if others else max(m.clock for m in self.members.values()))
        member.attempt, member.active, member.seen = attempt, True, None
        self.most_at_once = max(self.most_at_once, sum(m.active for m in self.members.values()))
        self._event("join", worker, member, seconds)
        return member.sequence, member.note.steps_done if member.note else 0

    def agree(self, worker: int, attempt: int, sequence: int, steps_done: int, seconds: float) -> None:
        """Other shards have merged the worker's pushes up to `sequence`: what is missing here is lost."""
        member = self._member(worker, attempt)
        if sequence - member.sequence > _MANY:
            raise UsageError(f"worker {worker} has pushed {member.sequence} times here, and {sequence} times elsewhere?")
        while member.sequence < sequence:
            member.sequence += 1
            self._event("lost", worker, member, seconds, steps_done=steps_done)

    def pull(self, worker: int, attempt: int, seconds: float, into: Vec, told: int = 0) -> int:
        """Copy the center into `into`, [P]; returns its version. `into` must stay as it is while it is the last pull."""
        member = self._member(worker, attempt)
        _ = into.copy_(self.params)
        member.pulled = self.version
        member.seen = into if self._needs_seen or (member.sequence + 1) % self._rules.record_every == 0 else None
        self._event("pull", worker, member, seconds, sent=into.numel() * into.element_size(), told=told)
        return self.version

    def push(
        self, worker: int, attempt: int, sequence: int, note: Note, delta: Vec, seconds: float, pulls: bool = False
    ) -> bool:
        """Merge one push, [P] or, with statistics, [P + Q]; returns whether it was new.

        `pulls`: a pull of the sender follows at once, so that the center it saw is needed no more and `merge` may have it.

        Raises:
            Fenced: a newer attempt of the worker has joined.
            UsageError: it is not the worker's next push, or has the wrong size.
        """
        member = self._member(worker, attempt)
        if sequence <= member.sequence:
            return False
        if sequence != member.sequence + 1:
            raise UsageError(f"worker {worker} sent push {sequence}, but its next one is {member.sequence + 1}.")
        count = self.params.numel()
        if delta.numel() != count + self._statistics or delta.dtype != self.params.dtype:
            raise UsageError(f"a push has {delta.numel()} {delta.dtype} where {count + self._statistics} are expected.")
        before_note, member.sequence, member.note = member.note, sequence, note
        member.clock += 1
        if self.diverged is not None:
            return False
        if self._statistics:
            member.statistics = delta[count:].clone()
            delta = delta[:count]
        staleness = member.staleness = self.version - member.pulled
        distance = scaling = math.nan
        seen, before = member.seen, None
        if sequence % self._rules.record_every == 0 and seen is not None:
            if self._scratch is None:
                self._scratch = torch.empty_like(self.params)
            distance, before = float(torch.dist(self.params, seen)), self._scratch.copy_(self.params)
        given = None
        if self._needs_seen:
            # What a lost server had sent is gone with it; nothing has moved, then, as far as this one knows.
            given = self.params.clone() if seen is None else seen if pulls else seen.clone()
        self._strategy.merge(self.params, Push(delta, staleness, given, worker, sequence, note.steps))
        if before is not None:
            size = float(torch.linalg.vector_norm(delta))
            scaling = float(torch.dist(self.params, before)) / size if size else math.nan
        self._count(note, before_note, delta)
        self._event(
            "push",
            worker,
            member,
            seconds,
            staleness=staleness,
            steps=note.steps,
            steps_done=note.steps_done,
            rows=note.rows,
            sent=delta.numel() * delta.element_size(),
            real=(note.weight, note.loss_sum, note.waited_seconds, distance, scaling),
        )
        self.version += 1
        self._newest = (worker, sequence)
        if self.version % self._rules.check_every == 0:
            self.check()
        self._point(seconds)
        return True

    def leave(self, worker: int, attempt: int, seconds: float) -> None:
        """The worker has finished, or its connection has gone; an older attempt's leaving means nothing."""
        member = self.members.get(worker)
        if member is not None and member.attempt == attempt and member.active:
            member.active, member.seen = False, None
            self._without += member.note is None
            self._event("leave", worker, member, seconds)

    def must_wait(self, worker: int) -> bool:
        """Whether the worker is further ahead of the slowest one than `max_ahead` pushes allow (SSP).

        A worker that joins, for the first time or again, begins level with the slowest: what it has missed it may not catch up
        inside another's window. So no clock ever stands more than `max_ahead` + 1 before that of a worker at work.
        """
        bound = self._rules.max_ahead
        active = [m.clock for m in self.members.values() if m.active]
        return bound is not None and bool(active) and self.members[worker].clock - min(active) > bound

    # ---- guards ------------------------------------------------------------------------------------------------------

    def roll_back(self, worker: int, sequence: int, why: str) -> None:
        """Return to the last good center and take no more pushes."""
        if self.diverged is None:
            _ = self.params.copy_(self._good)
            staleness = self.members[worker].staleness if worker in self.members else 0
            self.diverged = {"worker": worker, "sequence": sequence, "staleness": staleness, "why": why}

    def check(self) -> None:
        """Roll back a center that is too large or no number, else keep it as the last good one."""
        if self.diverged is not None:
            return
        norm = float(torch.linalg.vector_norm(self.params))
        if norm <= self._limit:  # false for NaN
            _ = self._good.copy_(self.params)
        else:
            self.roll_back(*self._newest, f"the center's norm became {norm:.3g}, its limit is {self._limit:.3g}")

    # ---- what is kept ------------------------------------------------------------------------------------------------

    def statistics_for(self, worker: int) -> Vec:
        """The running statistics with which a worker goes on that joins: its own as it sent them last, else the mean, [Q]."""
        own = self.members[worker].statistics
        return self.statistics if own is None else own

    @property
    def statistics(self) -> Vec:
        """Mean over the workers of the running statistics they sent last, [Q]."""
        found = [m.statistics for m in self.members.values() if m.statistics is not None]
        return torch.stack(found).mean(0) if found else self._base

    def progress(self, name: str) -> float:
        """Mean of a note's fraction over all workers, but for those that left without a push: they had no rows."""
        return round(self._sums[name] / max(1, self._size - self._without), 9)

    def table(self) -> pa.Table:
        """The log so far, with the columns of `LOG`."""
        events = np.frombuffer(bytes(self._log), _EVENTS)
        numbers = [pa.array(events[name].copy()) for name in (*_WHOLE, *_REAL)]
        return pa.table([pa.array(KINDS).take(pa.array(events["kind"].copy())), *numbers], schema=LOG)

    def mark(self, seconds: float) -> dict[str, float]:
        return {"seconds": seconds, "epoch": self.progress("epochs"), "version": self.version, **self.totals}

    def snapshot(self) -> tuple[dict[str, Vec], dict[str, Any]]:
        """What a server that is started again needs: the center, checked, and who has pushed how much."""
        self.check()
        members = {
            str(worker): {"attempt": m.attempt, "sequence": m.sequence, "note": m.note._asdict() if m.note else None}
            for worker, m in self.members.items()
        }
        plain = {"version": self.version, "members": members, "totals": self.totals, "kept": self._kept}
        plain["diverged"] = self.diverged
        own = {f"statistics.{worker}": m.statistics for worker, m in self.members.items() if m.statistics is not None}
        return {"params": self.params, "statistics": self.statistics, **own}, plain

    def restore(self, tensors: dict[str, Vec], plain: dict[str, Any], same_run: bool = True) -> None:
        """Go on from a snapshot. A new run is not told to stop as the old one diverged, and all attempts begin anew in it, so
        that none of them is fenced off by an old one.

        Raises:
            UsageError: its center is no good one.
        """
        norm = float(torch.linalg.vector_norm(tensors["params"]))
        if not norm <= self._limit:
            raise UsageError(f"the snapshot's center has the norm {norm:.3g}, the limit is {self._limit:.3g}: see max_growth.")
        self._base = tensors["statistics"]
        _ = self.params.copy_(tensors["params"])
        _ = self._good.copy_(self.params)
        self.version, self.totals, self._kept = plain["version"], dict(plain["totals"]), plain["kept"]
        self.diverged = plain["diverged"] if same_run else None
        for worker, m in plain["members"].items():
            note = Note(**m["note"]) if m["note"] else None
            member = _Member(m["attempt"] if same_run else -1, False, m["sequence"], pulled=self.version, note=note)
            member.statistics = tensors.get(f"statistics.{worker}")
            self.members[int(worker)] = member
            self._without += note is None
            for name in self._sums:
                self._sums[name] += float(getattr(note, name)) if note else 0.0

    def _count(self, note: Note, before: Note | None, delta: Vec) -> None:
        t = self.totals
        self._sums["epochs"] += note.epochs - (before.epochs if before else 0.0)
        self._sums["points"] += note.points - (before.points if before else 0.0)
        t["samples"] += note.rows
        t["weight"] += note.weight
        t["loss_sum"] += note.loss_sum
        t["waited"] += note.waited_seconds
        t["steps"] += note.steps
        t["bytes"] += 2 * delta.numel() * delta.element_size()  # the push, and the pull that goes with it

    def _point(self, seconds: float) -> None:
        reached = math.floor(self.progress("points") + 1e-9)
        if reached <= self._kept:
            return
        self.check()
        if self.diverged is None:
            self._kept = reached
            self._keep(self.params, self.statistics, self.mark(seconds))

    def _member(self, worker: int, attempt: int) -> _Member:
        member = self.members.get(worker)
        if member is None or not member.active or member.attempt != attempt:
            raise Fenced(f"worker {worker}, attempt {attempt}: it has not joined, or a newer attempt has taken over.")
        return member

    def _event(
        self,
        kind: str,
        worker: int,
        member: _Member,
        seconds: float,
        *,
        staleness: int = 0,
        steps: int = 0,
        steps_done: int = 0,
        rows: int = 0,
        sent: int = 0,
        told: int = 0,
        real: tuple[float, ...] = (0.0, 0.0, 0.0, math.nan, math.nan),
    ) -> None:
        whole = (worker, member.attempt, member.sequence, self.version, staleness, steps, steps_done, rows, sent, told)
        self._log += _EVENT.pack(_NUMBER[kind], *whole, seconds, *real)
