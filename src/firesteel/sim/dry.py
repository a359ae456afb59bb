"""A dry run: a strategy's own program on an imagined cluster, without a model, data or gradients.

Every tensor of the model's size is stood for by a few numbers, of which each weighs as many bytes as it stands for; shares of
it, by fewer of them. What a strategy sums in float64 or counts in whole numbers is as small as it looks. So the strategy is the
real one, to the last collective, and an epoch of hundreds of workers takes milliseconds.

Where the network lies in parts, what is sent depends on its layers: then the parts run, as `dry_part` has them, for few steps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, final

import torch

from firesteel.data.batches import Plan
from firesteel.net.center import Center, Note, Rules
from firesteel.net.control import Control
from firesteel.net.protocol import full_batch, has_server, splits
from firesteel.net.serving import cut
from firesteel.sim.center import Servers, SimulatedWorker
from firesteel.sim.cluster import Cluster
from firesteel.sim.dry_part import DryPart, Parts
from firesteel.sim.dry_worker import DryWorker, ModelSize
from firesteel.sim.fabric import Fabric
from firesteel.sim.gang import Circle, SimulatedGang
from firesteel.sim.simulation import Member, Simulation, paces

_NUMBERS = 64  # that stand for a model, and more where every worker is to get an equal share of them
_STEPS = 200  # of each worker, and more where two meetings do not fit into them
_PART_STEPS = 4  # of each worker with a part of a network, ...
_PART_STEPS_DRAWN = 32  # ... and where jitter is drawn for each
_PASSES = 12  # of each worker, in place of steps, where each of them sees all rows
_MOST_STEPS = 2**13  # a strategy that has not met twice by then, and does not say when it does, meets too rarely to matter


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
    """Of the worker that holds most: the whole model, gradients, moments, and what the strategy holds, while it computes its
    last gradient or takes its last step; without rows and activations. Where the network lies in parts, parameters, gradients,
    moments and buffers of the largest part."""
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


def rehearse(
    strategy: Any,
    cluster: Cluster,
    size: ModelSize,
    rows: int,
    batch_size: int,
    shards: int = 1,
    inputs: tuple[int, ...] | None = None,
) -> Prediction:
    """Predict an epoch of `rows` rows over all workers, as it costs in the middle of a long run.

    The strategy runs dry for some steps, then again for some rounds more: the difference is what those rounds cost without the
    first pull, the last gathering and whatever else a run does once. How long a round is, the first run shows. Failures are
    left out, and what slows down is slow from the beginning. Where each step sees all rows, it is an epoch.

    Args:
        inputs: shape of a row, where the network lies in parts; None: what its first layer says of it.
    """
    most = -(-rows // cluster.workers)
    slow = tuple(dataclasses.replace(each, at_seconds=0.0) for each in cluster.compute.slow)
    cluster = dataclasses.replace(cluster, compute=dataclasses.replace(cluster.compute, slow=slow))
    serving, steps = has_server(strategy), _STEPS if cluster.workers <= 80 else _STEPS // 2
    if full_batch(strategy):
        batch_size, steps = most, _PASSES
    rule = getattr(strategy, "across", strategy)  # what meets once a period: of a grid the replicas
    switch, *periods = (getattr(rule, name, None) or 0 for name in ("switch", "period", "window"))
    begin = max(steps, switch + 2 * max(periods) + 1)
    parts = Parts(strategy, size.module, cluster.workers, inputs) if splits(strategy) else None
    if parts is not None:
        steps = _PART_STEPS if cluster.compute.jitter is None else _PART_STEPS_DRAWN
        begin = max(steps, switch + 1)

    def run(total: int) -> _Spent:
        if parts is not None:
            return _rehearsed_in_parts(strategy, cluster, size, parts, rows, batch_size, total, steps, max(1, *periods))
        return _rehearsed(strategy, cluster, size, rows, batch_size, shards, total)

    once = run(begin)
    while once.round is None and (cluster.workers > 1 or serving) and begin < _MOST_STEPS:
        begin *= 2
        once = run(begin)
    whole = once.round or 1
    more = max(1 if parts is not None else 2, -(-steps // whole)) * whole
    pace = run(begin + more).minus(once)
    epoch_steps = -(-most // batch_size)
    scale = epoch_steps / more
    # A gang shows its model to the caller once an epoch; a part is none to show.
    published = 0.0 if serving or parts is not None else Fabric(cluster, 0).to_caller(size.nbytes)
    waited = max(0.0, pace.seconds - pace.computing)
    mean = 1.0 if cluster.compute.jitter is None else cluster.compute.jitter.mean
    if serving:
        full = max(pace.server, pace.card) > 0.85 * pace.seconds
        server, wire, slowest = (waited, 0.0, 0.0) if full else (0.0, waited, 0.0)
    else:
        wire = min(waited, pace.wire)
        server, slowest = 0.0, waited - wire
    return Prediction(
        strategy,
        cluster.workers,
        # Computing counts with jitter's mean in place of its draws, so that these favour no strategy.
        (pace.steady * mean + pace.seconds - pace.computing) * scale + published,
        pace.sent * scale,
        pace.held_bytes,
        pace.computing / pace.seconds,
        wire / pace.seconds,
        slowest / pace.seconds,
        server / pace.seconds,
    )


@final
@dataclass(frozen=True)
class _Spent:
    """What a dry run took; seconds and bytes are means over the workers, but for the busiest server's."""

    seconds: float
    computing: float
    steady: float
    wire: float
    server: float
    card: float
    sent: float
    held_bytes: int
    round: int | None
    """Steps between two meetings at its end; None: there were no two, what comes after the last step left out."""

    def minus(self, other: _Spent) -> _Spent:
        names = ("seconds", "computing", "steady", "wire", "server", "card", "sent")
        return _Spent(**{n: getattr(self, n) - getattr(other, n) for n in names}, held_bytes=self.held_bytes, round=self.round)


def _rehearsed(strategy: Any, cluster: Cluster, size: ModelSize, rows: int, batch_size: int, shards: int, steps: int) -> _Spent:
    workers, serving = cluster.workers, has_server(strategy)
    numbers = min(size.parameters, -(-_NUMBERS // workers) * workers)
    scale = size.nbytes / (numbers * 4)  # stand-ins are float32, whatever the model is
    fabric = Fabric(cluster, shards if serving else 0, scale)
    calm = dataclasses.replace(cluster, compute=dataclasses.replace(cluster.compute, jitter=None))
    simulation, pace, steady = Simulation(fabric), paces(cluster, 0), paces(calm, 0)
    circle, parts = Circle(tuple(range(workers))), cut(numbers, shards)
    rules = Rules(max_growth=1e30, record_every=10**9, check_every=10**9)
    whole = torch.zeros(numbers, dtype=torch.float32)
    centers = [Center(whole[part].clone(), strategy, workers, rules=rules) for part in parts] if serving else []
    servers = Servers(simulation, centers, parts)
    crew: list[tuple[Member, DryWorker]] = []
    for rank in range(workers):
        member = Member(simulation, rank, pace[rank])
        own = len(range(rank, rows, workers))
        worker = DryWorker(size, numbers, Plan(own, -(-rows // workers), batch_size, steps, 0, rank), member, steady[rank])
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
        sum(worker.steady_seconds for _, worker in crew) / workers,
        circle.wire_seconds,
        max(servers.busy_seconds, default=0.0),
        max((fabric.card_seconds[host] for host in fabric.server_host), default=0.0),
        sum(member.trace.bytes_sent for member, _ in crew) / workers,
        round(max(worker.held for _, worker in crew) * size.nbytes) + size.fixed_bytes,
        met[1] - met[0] if len(met) == 2 else None,
    )


def _rehearsed_in_parts(
    strategy: Any,
    cluster: Cluster,
    size: ModelSize,
    parts: Parts,
    rows: int,
    batch_size: int,
    total: int,
    steps: int,
    period: int,
) -> _Spent:
    """`steps` batches have on average the rows that batches of an epoch have."""
    workers = cluster.workers
    epoch_steps = -(-rows // workers // batch_size)
    calm = dataclasses.replace(cluster, compute=dataclasses.replace(cluster.compute, jitter=None))
    simulation, pace, steady = Simulation(Fabric(cluster, 0)), paces(cluster, 0), paces(calm, 0)
    circle = Circle(tuple(range(workers)))
    crew: list[tuple[Member, DryPart]] = []
    for rank in range(workers):
        member = Member(simulation, rank, pace[rank])
        own = round(len(range(rank, rows, workers)) * steps / epoch_steps)
        plan = Plan(own, steps, 1, total, 0, rank)
        dry = DryPart(parts, size.settings, size.moments, plan, member, steady[rank])
        member.start(strategy.run(dry.worker, SimulatedGang(member, circle, rank, Control())))
        crew.append((member, dry))
    simulation.run()
    return _Spent(
        max(member.now for member, _ in crew),
        sum(member.computed_seconds for member, _ in crew) / workers,
        sum(dry.steady_seconds for _, dry in crew) / workers,
        _wire_seconds(circle) / workers,
        0.0,
        0.0,
        sum(member.trace.bytes_sent for member, _ in crew) / workers,
        max(dry.held_bytes for _, dry in crew),
        period,
    )


def _wire_seconds(circle: Circle) -> float:
    """Of the collectives of all its members, also in smaller groups."""
    return circle.wire_seconds * len(circle.members) + sum(map(_wire_seconds, circle.groups.values()))
