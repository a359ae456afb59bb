"""A dry run: a strategy's own program on an imagined cluster, without a model, data or gradients.

Every tensor of the model's size is stood for by a few numbers, of which each weighs as many bytes as it stands for. So the
strategy is the real one, to the last collective, and an epoch of hundreds of workers takes milliseconds.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from firesteel.data.batches import Plan
from firesteel.errors import UsageError
from firesteel.net.center import Center, Note, Rules
from firesteel.net.control import Control
from firesteel.net.protocol import Vec, has_server, own_steps
from firesteel.net.serving import cut
from firesteel.optim import OptimizerSettings
from firesteel.sim.center import Servers, SimulatedWorker
from firesteel.sim.cluster import Cluster
from firesteel.sim.fabric import Fabric
from firesteel.sim.gang import Circle, SimulatedGang
from firesteel.sim.simulation import Member, Simulation, paces
from firesteel.worker import FORWARD, Slot, buckets, layout

_NUMBERS = 64  # that stand for a model
_STEPS = 200  # of each worker, and more where two meetings do not fit into them
_MOST_STEPS = 2**13  # a strategy that has not met twice by then, and does not say when it does, meets too rarely to matter


@final
@dataclass(frozen=True)
class ModelSize:
    """What the cost of communicating and keeping a model depends on."""

    parameters: int
    element_bytes: int
    slots: tuple[Slot, ...]
    moments: int
    """Tensors of the model's size that the optimizer keeps."""
    fixed_bytes: int = 0
    """Of frozen parameters and buffers, which every worker keeps and none sends."""

    @property
    def nbytes(self) -> int:
        return self.parameters * self.element_bytes

    @staticmethod
    def of(model: nn.Module, optimizer: OptimizerSettings) -> ModelSize:
        """Of a model as it is trained: one step on zero gradients shows what the optimizer keeps."""
        model = copy.deepcopy(model)
        slots, dtype, _ = layout(model)
        built = optimizer.build(model)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        _ = built.step()
        first = next(p for p in model.parameters() if p.requires_grad)
        kept = [v for v in built.state[first].values() if isinstance(v, Tensor) and v.shape == first.shape]
        size = slots[-1].offset + slots[-1].numel
        fixed = [p for p in model.parameters() if not p.requires_grad] + list(model.buffers())
        return ModelSize(size, dtype.itemsize, tuple(slots), len(kept), sum(x.nbytes for x in fixed))


@final
@dataclass(frozen=True)
class Prediction:
    """What one strategy costs with so many workers."""

    strategy: Any
    workers: int
    epoch_seconds: float
    """Virtual seconds in which the workers together see every row once."""
    sent_bytes: float
    """That each worker sends in an epoch, on average."""
    memory_bytes: int
    """Of each worker: the whole model, gradients, moments, and what the strategy holds; without rows and activations."""
    computing: float
    """Shares of the epoch, on average over the workers, 0 .. 1: computing, ..."""
    wire: float
    """... waiting for messages on their way, ..."""
    slowest: float
    """... waiting for workers that are not so far, ..."""
    server: float
    """... and in the server's queue."""

    @property
    def dominated_by(self) -> str:
        """What most of the epoch goes to."""
        return max(self._shares, key=lambda name: self._shares[name])

    @property
    def largest_share(self) -> float:
        """Of `dominated_by`, 0 .. 1."""
        return max(self._shares.values())

    @property
    def _shares(self) -> dict[str, float]:
        names = ("computing", "the wire", "the slowest worker", "the server")
        return dict(zip(names, (self.computing, self.wire, self.slowest, self.server), strict=True))


@final
@dataclass(frozen=True)
class _Rows:
    """A batch without rows in it."""

    rows: int

    @property
    def weight(self) -> float:
        return float(self.rows)


@final
class DryWorker:
    """What a strategy holds in its hands, as far as it can be had without a model."""

    def __init__(self, size: ModelSize, plan: Plan, member: Member) -> None:
        self.plan: Plan = plan
        self.slots: list[Slot] = list(size.slots)
        self.rate: float = 1e-3
        self.stopping: bool = False
        self.steps_done: int = 0
        self.meetings: list[int] = []  # steps after which the worker sent something
        self.grads: Vec = torch.zeros(min(size.parameters, _NUMBERS))
        self.held: int = 0  # tensors of the model's size that the strategy's program holds
        self._params: Vec = torch.zeros_like(self.grads)
        self._moments: list[Tensor] = [torch.zeros_like(self.grads) for _ in range(size.moments)]
        self._size: ModelSize = size
        self._member: Member = member

    @property
    def params(self) -> Vec:
        return self._params

    @params.setter
    def params(self, value: Vec) -> None:
        if value.data_ptr() != self._params.data_ptr():
            _ = self._params.copy_(value)

    def __getattr__(self, name: str) -> Any:
        raise UsageError(f"a dry run has no worker.{name}: this strategy's cost cannot be planned, only simulated with data.")

    def steps(self) -> Iterator[tuple[int, _Rows]]:
        """All of them alike, so that it does not matter where an epoch ends: the rows that it gives a step on average."""
        plan, trace, sent = self.plan, self._member.trace, self._member.trace.bytes_sent
        while self.steps_done < plan.total_steps:
            before = self.steps_done * plan.rows // plan.epoch_steps
            self.steps_done += 1
            yield self.steps_done, _Rows(self.steps_done * plan.rows // plan.epoch_steps - before)
            if trace.bytes_sent > sent:
                self.meetings.append(self.steps_done)
                sent = trace.bytes_sent

    def last(self, step: int) -> bool:
        return step >= self.plan.total_steps

    def gradient(self, batch: _Rows, ready: Callable[[slice], None] | None = None, bucket_bytes: int = 25 * 2**20) -> Vec:
        spend = self._member.meter(batch.rows)
        if ready is None:
            spend(1.0)
        else:
            spend(FORWARD)
            size, numbers = self._size, self.grads.numel()
            for group in buckets(size.slots, bucket_bytes, size.element_bytes):
                start, stop = group[-1].offset, group[0].offset + group[0].numel
                spend((1 - FORWARD) * (stop - start) / size.parameters)
                ready(slice(start * numbers // size.parameters, stop * numbers // size.parameters))
        self._member.trace.step(self.steps_done, batch.rows, batch.weight, 0.0)
        if self.steps_done == self.plan.total_steps:
            self.held = self._held()
        return self.grads

    def step(self, grad: Vec) -> None:
        """Its cost is in the cluster's `step_seconds`."""

    def moments(self) -> list[Tensor]:
        return self._moments

    def reset_optimizer(self) -> None:
        """There is nothing to forget."""

    def _held(self) -> int:
        """Distinct tensors of the model's size among the locals of the program that is running."""
        own = {x.data_ptr() for x in (self._params, self.grads, *self._moments)}
        found: set[int] = set()
        frame = sys._getframe(2)
        while frame is not None and frame.f_code is not Member._resume.__code__:
            found |= {
                x.data_ptr() for x in frame.f_locals.values() if isinstance(x, Tensor) and x.numel() == self.grads.numel()
            }
            frame = frame.f_back
        return len(found - own)


def rehearse(strategy: Any, cluster: Cluster, size: ModelSize, rows: int, batch_size: int, shards: int = 1) -> Prediction:
    """Predict an epoch of `rows` rows over all workers, as it costs in the middle of a long run.

    The strategy runs dry for some steps, then again for some rounds more: the difference is what those rounds cost without the
    first pull, the last gathering and whatever else a run does once. How long a round is, the first run shows. Failures are
    left out, and what slows down is slow from the beginning.
    """
    if own_steps(strategy):
        raise UsageError(
            f"{type(strategy).__name__} steps by a rule of its own, on the rows: it cannot be planned, only simulated."
        )
    slow = tuple(dataclasses.replace(each, at_seconds=0.0) for each in cluster.compute.slow)
    cluster = dataclasses.replace(cluster, compute=dataclasses.replace(cluster.compute, slow=slow))
    serving, steps = has_server(strategy), _STEPS if cluster.workers <= 80 else _STEPS // 2
    settings = {name: getattr(strategy, name, None) or 0 for name in ("switch", "period", "window")}
    begin = max(steps, settings["switch"] + 2 * max(settings["period"], settings["window"]) + 1)

    def run(steps: int) -> _Spent:
        return _rehearsed(strategy, cluster, size, rows, batch_size, shards, steps)

    once = run(begin)
    while once.round is None and (cluster.workers > 1 or serving) and begin < _MOST_STEPS:
        begin *= 2
        once = run(begin)
    whole = once.round or 1
    more = max(2, -(-steps // whole)) * whole
    pace = run(begin + more).minus(once)
    most = -(-rows // cluster.workers)
    epoch_steps = -(-most // batch_size)
    scale = epoch_steps / more
    # A gang shows its model to the caller once an epoch.
    published = 0.0 if serving else Fabric(cluster, 0).to_caller(size.nbytes)
    waited = max(0.0, pace.seconds - pace.computing)
    if serving:
        full = max(pace.server, pace.card) > 0.85 * pace.seconds
        server, wire, slowest = (waited, 0.0, 0.0) if full else (0.0, waited, 0.0)
    else:
        wire = min(waited, pace.wire)
        server, slowest = 0.0, waited - wire
    return Prediction(
        strategy,
        cluster.workers,
        # What computing takes is known, the rest was rehearsed: jitter's draws for other steps favour no strategy.
        _computing(cluster, rows, epoch_steps) + (pace.seconds - pace.computing) * scale + published,
        pace.sent * scale,
        (2 + size.moments + pace.held) * size.nbytes + size.fixed_bytes,
        pace.computing / pace.seconds,
        wire / pace.seconds,
        slowest / pace.seconds,
        server / pace.seconds,
    )


def _computing(cluster: Cluster, rows: int, epoch_steps: int) -> float:
    """Seconds of an epoch in which a worker computes, on average over the workers and over jitter."""
    jitter = cluster.compute.jitter
    calm = dataclasses.replace(cluster, compute=dataclasses.replace(cluster.compute, jitter=None))
    each = (
        pace.step(len(range(rank, rows, cluster.workers)), 0.0) + (epoch_steps - 1) * pace.step(0, 0.0)
        for rank, pace in enumerate(paces(calm, 0))
    )
    return sum(each) / cluster.workers * (1.0 if jitter is None else jitter.mean)


@final
@dataclass(frozen=True)
class _Spent:
    """What a dry run took; seconds and bytes are means over the workers, but for the busiest server's."""

    seconds: float
    computing: float
    wire: float
    server: float
    card: float
    sent: float
    held: int
    round: int | None
    """Steps between two meetings at its end; None: there were no two, what comes after the last step left out."""

    def minus(self, other: _Spent) -> _Spent:
        names = ("seconds", "computing", "wire", "server", "card", "sent")
        return _Spent(**{n: getattr(self, n) - getattr(other, n) for n in names}, held=self.held, round=self.round)


def _rehearsed(strategy: Any, cluster: Cluster, size: ModelSize, rows: int, batch_size: int, shards: int, steps: int) -> _Spent:
    workers, serving = cluster.workers, has_server(strategy)
    numbers = min(size.parameters, _NUMBERS)
    scale = size.parameters * size.element_bytes / (numbers * torch.empty(0).element_size())
    fabric = Fabric(cluster, shards if serving else 0, scale)
    simulation, pace = Simulation(fabric), paces(cluster, 0)
    circle, parts = Circle(tuple(range(workers))), cut(numbers, shards)
    rules = Rules(max_growth=1e30, record_every=10**9, check_every=10**9)
    centers = [Center(torch.zeros(p.stop - p.start), strategy, workers, rules=rules) for p in parts] if serving else []
    servers = Servers(simulation, centers, parts)
    crew: list[tuple[Member, DryWorker]] = []
    for rank in range(workers):
        member = Member(simulation, rank, pace[rank])
        own = len(range(rank, rows, workers))
        worker = DryWorker(size, Plan(own, -(-rows // workers), batch_size, steps, 0, rank), member)
        if serving:
            net: Any = SimulatedWorker(member, workers, servers)
            net.note = lambda worker=worker: Note(1, worker.steps_done, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
            _ = net.join()
            member.on_end = net.close
        else:
            net = SimulatedGang(member, circle, rank, Control())
        member.start(strategy.run(worker, net))
        crew.append((member, worker))
    simulation.run()
    met = next(([m for m in worker.meetings if m < steps][-2:] for _, worker in crew if worker.meetings), [])
    return _Spent(
        max(member.now for member, _ in crew),
        sum(member.computed_seconds for member, _ in crew) / workers,
        circle.wire_seconds,
        max(servers.busy_seconds, default=0.0),
        max((fabric.card_seconds[host] for host in fabric.server_host), default=0.0),
        sum(member.trace.bytes_sent for member, _ in crew) / workers,
        max(worker.held for _, worker in crew),
        met[1] - met[0] if len(met) == 2 else None,
    )
