"""Virtual time: one heap of (seconds, rank, tick), one thread, no sleep, no wall clock, the same result every time.

A worker's program runs until it awaits something that is not there yet; what it computes moves only its own clock. So its
clock may run ahead of the heap, and everything it posts becomes an event at the moment of its own clock: wires and servers
see posts in order of virtual time, whoever's program happened to run first.

A plain function that a program calls can wait, too. It suspends the stack that it runs on, a greenlet, and with it the loop
over events that has called the program: another loop goes on in a greenlet of its own. Programs that only await pay nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import gc
import heapq
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar, final

import pyarrow as pa
import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor

from firesteel.errors import StrategyError
from firesteel.randomness import seed_of
from firesteel.sim.cluster import Cluster
from firesteel.sim.fabric import Fabric
from firesteel.trace import Clock, Trace

T = TypeVar("T")


@final
class Simulation:
    """The heap, and the members whose programs it resumes.

    Args:
        fabric: the wires.
        max_events: after so many events the strategy is taken to be one that never ends.
        max_virtual_seconds: so is one whose clock passes this.
    """

    def __init__(self, fabric: Fabric, max_events: int = 10**8, max_virtual_seconds: float = math.inf) -> None:
        self.fabric: Fabric = fabric
        self.now: float = 0.0
        self.events: int = 0
        self.members: list[Member] = []
        self.on_idle: Callable[[], None] = lambda: None  # called when nothing is left to happen
        self._queue: list[tuple[float, int, int, Callable[[], greenlet | None]]] = []
        self._ticks: int = 0
        self._home: greenlet | None = None  # whose children the loops are
        self._max_events: int = max_events
        self._max_seconds: float = max_virtual_seconds

    def at(self, seconds: float, rank: int, action: Callable[[], greenlet | None]) -> None:
        """Let something happen at a moment that is not past; ties go by rank, then by order of asking.

        An action may return the suspended stack that it is to go on with.
        """
        self._ticks += 1
        heapq.heappush(self._queue, (seconds, rank, self._ticks, action))

    def run(self) -> None:
        """Until nothing is left to happen.

        Raises:
            StrategyError: programs wait for what never comes, forget an await, or never end.
        """
        try:
            self._play()
            self.on_idle()
            stuck = [m for m in self.members if m.program is not None and m.alive]
            if stuck:
                raise StrategyError(_deadlock(stuck, self.members))
        except BaseException:
            self.stop()
            raise

    def _play(self) -> None:
        self._home, context = getcurrent(), contextvars.copy_context()
        gc.freeze()  # thousands of workers that no event can free: the collector need not walk them again and again
        try:
            suspended: greenlet | None = None
            while self._queue or suspended is not None:
                if suspended is None:
                    suspended = greenlet(self._loop)
                    suspended.gr_context = context  # one for all, as if there were one stack
                suspended = suspended.switch()
        finally:
            gc.unfreeze()

    def _loop(self) -> greenlet | None:
        """Event after event, until a suspended stack, returned, is to go on."""
        queue = self._queue
        while queue:
            seconds, _, _, action = heapq.heappop(queue)
            assert seconds >= self.now, "virtual time runs forwards"
            self.now = seconds
            self.count()
            suspended = action()
            if suspended is not None:
                return suspended
        return None

    def suspend(self) -> None:
        """Leave the running stack as it is until an action returns it; another loop goes on."""
        assert self._home is not None and getcurrent().parent is self._home, "only a program's own calls wait"
        _ = self._home.switch(None)

    def count(self) -> None:
        """One more event; the budget is checked here."""
        self.events += 1
        if self.events > self._max_events:
            raise StrategyError(
                f"the strategy did not end within {self._max_events:,} events (virtual second {self.now:g}): raise "
                "Simulated(max_events=...), or see whether it ends at all."
            )

    def check_clock(self, seconds: float) -> None:
        if seconds > self._max_seconds:
            raise StrategyError(
                f"the strategy did not end within {self._max_seconds:g} virtual seconds: raise "
                "Simulated(max_virtual_seconds=...), or see whether it ends at all."
            )

    def stop(self) -> None:
        """Close all programs and forget what would have happened."""
        self._queue.clear()
        for member in self.members:
            member.die()


@final
class Member:
    """One attempt of one worker: its program, its clock, its share of the global generator."""

    def __init__(self, simulation: Simulation, rank: int, pace: Pace, attempt: int = 0) -> None:
        self.simulation: Simulation = simulation
        self.rank: int = rank
        self.attempt: int = attempt
        self.now: float = simulation.now
        self.alive: bool = True
        self.ended: bool = False
        self.computed_seconds: float = 0.0
        self.trace: Trace = Trace(rank, Clock(lambda: self.now))
        self.trace.clock.start(self.now)  # for all, virtual seconds since the beginning of the simulation
        self.program: Coroutine[Any, Any, Any] | None = None
        self.result: Any = None
        self.generator: Tensor | None = None
        self.waiting: Posted[Any] | None = None
        self.open: set[Posted[Any]] = set()  # posted and not awaited
        self.on_error: Callable[[BaseException], None] = _raise
        self.on_end: Callable[[], None] = lambda: None
        self._pace: Pace = pace
        self._stack: greenlet | None = None  # while a plain function that the program has called waits
        simulation.members.append(self)

    def start(self, program: Coroutine[Any, Any, Any], generator: Tensor | None = None) -> None:
        """Let the program begin now. `generator`: the state of torch's global generator that it draws from.

        When all have ended, another can begin.
        """
        self.program, self.generator = program, generator
        self.now = max(self.now, self.simulation.now)
        if self.attempt:
            self.trace.mark("join", 0)
        self.simulation.at(self.now, self.rank, self._resume)

    def meter(self, rows: int) -> Callable[[float], None]:
        """For `Worker`: returns what spends a share of the seconds of one step over so many rows."""
        seconds = self._pace.step(rows, self.now)

        def spend(share: float) -> None:
            self.now += seconds * share
            self.computed_seconds += seconds * share
            self.simulation.check_clock(self.now)

        return spend

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, for a plain function that the program has called.

        Where the coroutine waits, the whole stack below is suspended: the function, whoever has called it, the program.
        """
        try:
            while self.alive:
                self._pause(coroutine.send(None))
                self._stack = getcurrent()
                try:
                    self.simulation.suspend()
                finally:
                    self._stack = None
                self._go_on()
            raise GreenletExit  # closed, it waits once more
        except StopIteration as end:
            return end.value
        finally:
            coroutine.close()

    def wake(self, seconds: float) -> None:
        """What it waits for comes at a moment."""
        self.simulation.at(max(seconds, self.now), self.rank, self._resume)

    def die(self) -> None:
        """Close the program, wherever it stands."""
        self.alive, self.waiting = False, None
        self.open.clear()
        if self.program is not None:
            with contextlib.suppress(Exception):  # of its finally blocks, which a worker that dies never comes to
                if self._stack is not None:
                    self._stack.parent = getcurrent()  # to which it returns
                    _ = self._stack.throw()
                self.program.close()
            self.program = None

    def _resume(self) -> greenlet | None:
        program = self.program
        if program is None or not self.alive:
            return None
        self.simulation.check_clock(self.simulation.now)
        if self._stack is not None:
            return self._stack
        self._go_on()
        posted, ending = None, None
        try:
            posted = program.send(None)
        except StopIteration as end:
            ending = functools.partial(self._end, end.value)
        except Exception as error:
            ending = functools.partial(self._break, error)
        if not self.alive:
            raise GreenletExit  # it has died waiting, on a stack that goes with it
        if ending is None:
            self._pause(posted)
            return None
        # It runs until the moment of its own clock: what it has posted happens before, and a failure still can.
        if self.generator is not None:
            self.generator = torch.get_rng_state()
        self.program = None
        self.simulation.at(self.now, self.rank, ending)
        return None

    def _go_on(self) -> None:
        self.waiting = None
        if self.generator is not None:
            torch.set_rng_state(self.generator)

    def _pause(self, posted: object) -> None:
        """The program has come to a verb that is not over."""
        if self.generator is not None:
            self.generator = torch.get_rng_state()
        if not isinstance(posted, Posted):
            raise StrategyError(
                "the strategy awaited something that is not a verb of its net (asyncio's sleep, say); "
                "between two verbs write plain PyTorch without await"
            )
        if not torch.is_grad_enabled():
            raise StrategyError(
                f"worker {self.rank} awaits {posted.what()} inside torch.no_grad(): in virtual time another worker would go on "
                "there and compute no gradients. End the with-block before the await."
            )
        self.waiting = posted
        if posted.at is not None:
            self.wake(posted.at)

    def _end(self, result: Any) -> None:
        if not self.alive:
            return
        self.ended, self.result = True, result
        if self.generator is not None:
            torch.set_rng_state(self.generator)
        self._check_open()
        self.on_end()

    def _break(self, error: BaseException) -> None:
        if self.alive:
            self.ended = True
            self.on_error(error)

    def _check_open(self) -> None:
        if self.open:
            first = min(self.open, key=lambda p: p.posted_at)
            raise StrategyError(
                f"worker {self.rank} has ended without awaiting {first.what()}, posted at virtual second {first.posted_at:g}: "
                "every verb of the net is awaited once, or nobody knows whether it has happened."
            )


def _raise(error: BaseException) -> None:
    raise error


@final
class Posted(Awaitable[T]):
    """A verb under way. Awaiting it suspends the program until `complete` has said when it is over."""

    def __init__(self, member: Member, kind: str, sent: int, detail: Callable[[], str]) -> None:
        self.member: Member = member
        self.kind: str = kind
        self.posted_at: float = member.now
        self.at: float | None = None
        self.value: Any = None
        self.then: Callable[[], None] | None = None  # what awaiting it tells the program's own net
        self._sent: int = sent
        self._detail: Callable[[], str] = detail
        member.open.add(self)
        member.simulation.count()

    def what(self) -> str:
        """For errors: the call and its arguments."""
        return f"net.{self.kind}{self._detail()}"

    def complete(self, at: float, value: Any = None) -> None:
        self.at, self.value = at, value
        if self.member.waiting is self:
            self.member.wake(at)

    def __await__(self) -> Generator[Posted[T], None, T]:
        member = self.member
        since = member.now
        member.open.discard(self)
        if self.at is None or self.at > since:
            yield self
            assert self.at is not None
            member.now = max(since, self.at)
        member.trace.verb(self.kind, self._sent, member.now - since)
        if self.then is not None:
            self.then()
        return self.value


@final
class Pace:
    """How long one worker computes: drawn from streams of its own."""

    def __init__(self, cluster: Cluster, rank: int, row_seconds: float, seed: int) -> None:
        compute = cluster.compute
        self._row_seconds: float = row_seconds
        self._step_seconds: float = compute.step_seconds
        self._jitter: Any = compute.jitter
        self._stream: random.Random = random.Random(seed_of(seed, "jitter", rank))
        self._slow: list[tuple[float, float]] = sorted((s.at_seconds, s.factor) for s in compute.slow if s.worker == rank)

    def step(self, rows: int, at: float) -> float:
        """Seconds of a step that begins at a moment."""
        seconds = self._step_seconds + rows * self._row_seconds
        if self._jitter is not None:
            seconds *= self._jitter(self._stream)
        for since, factor in self._slow:
            if at >= since:
                seconds *= factor
        return seconds


def paces(cluster: Cluster, seed: int) -> list[Pace]:
    """The pace of every worker."""
    return [Pace(cluster, rank, each, seed) for rank, each in enumerate(cluster.row_seconds(seed))]


def until(trace: pa.Table, seconds: float) -> pa.Table:
    """What a worker that died had done: it may have computed ahead of the moment of its death."""
    return trace.filter(pa.array([s <= seconds for s in trace["seconds"].to_pylist()], pa.bool_()))


def _deadlock(stuck: list[Member], members: list[Member]) -> str:
    """Who waits in which call, and what the others did."""
    waiting: dict[str, list[int]] = {}
    for member in stuck:
        assert member.waiting is not None
        waiting.setdefault(member.waiting.what(), []).append(member.rank)
    said = [f"{_named(ranks)} in {what}" for what, ranks in waiting.items()]
    ended = [m.rank for m in members if m.alive and m.program is None]
    rest = f"; {_named(ended)} {'has' if len(ended) == 1 else 'have'} ended" if ended else ""
    return f"the strategy waits for ever: {'; '.join(said)}{rest}. All workers must make the same calls in the same order."


def _named(ranks: list[int]) -> str:
    shown = ", ".join(str(r) for r in ranks[:8]) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"worker {shown}" if len(ranks) == 1 else f"workers {shown}"
