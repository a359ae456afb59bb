"""A run with a server in virtual time, from rows to result: what `center_process` does, for all workers at once."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch

from firesteel.center_process import Notes, make_worker, score, split_shard
from firesteel.data.shard import Shard
from firesteel.errors import Diverged
from firesteel.job import Job
from firesteel.net.center import Center, Rules
from firesteel.net.hosting import Collected, Serve
from firesteel.net.meeting import Meeting
from firesteel.net.merging import Merging
from firesteel.net.protocol import Vec
from firesteel.net.serving import cut
from firesteel.results import ipc
from firesteel.results import rows as result_rows
from firesteel.sim.center import SimulatedWorker
from firesteel.sim.cluster import Cluster, Failure
from firesteel.sim.shipping import shipping
from firesteel.sim.simulation import Member, Simulation, paces, until
from firesteel.sim.watching import Ticker
from firesteel.stopping import HURRY
from firesteel.worker import Worker


@final
@dataclass
class _Seat:
    """One worker over the whole run, through all its attempts."""

    whole: Shard
    shard: Shard
    held_rows: int
    member: Member | None = None
    worker: Worker | None = None
    ended: bool = False
    lost_at: float | None = None
    traces: list[pa.Table] = field(default_factory=list)


@final
class ServerRun:
    """`rows(rank)` gives a worker's rows, `servers(centers, parts)` who serves them: imagined servers, or a log."""

    def __init__(
        self,
        job: Job,
        rows: Callable[[int], Iterable[pa.RecordBatch]],
        cluster: Cluster,
        simulation: Simulation,
        ticker: Ticker,
        serve: Serve,
        servers: Callable[[list[Center], list[slice]], Any],
    ) -> None:
        self.job: Job = job
        self.cluster: Cluster = cluster
        self.simulation: Simulation = simulation
        self.ticker: Ticker = ticker
        began = time.perf_counter()
        self.seats: list[_Seat] = []
        for rank in range(cluster.workers):
            whole, shard, held = split_shard(job, rank, rows(rank), "")
            self.seats.append(_Seat(whole, shard, held.rows))
        job.check_rows(sum(seat.shard.rows for seat in self.seats), sum(seat.held_rows for seat in self.seats))
        self.data_seconds: float = time.perf_counter() - began
        self._paces: list[Any] = paces(cluster, job.seed)
        self._own: Callable[[], Job] = shipping(job)
        self._hurried: bool = False
        self._kept: list[list[tuple[dict[str, float], Vec, Vec]]] = [[] for _ in range(serve.server.shards)]
        rules = Rules(serve.server.max_ahead, serve.server.max_growth, serve.server.record_every)
        parts = cut(serve.params.numel(), serve.server.shards)
        centers = [
            Center(
                serve.params[part].clone(),
                Merging(self._own().strategy),
                cluster.workers,
                None if shard else serve.statistics,
                rules,
                functools.partial(self._keep, shard),
            )
            for shard, part in enumerate(parts)
        ]
        self.servers: Any = servers(centers, parts)

    def _keep(self, shard: int, params: Vec, statistics: Vec, mark: dict[str, float]) -> None:
        self._kept[shard].append((mark, params.clone(), statistics))

    def run(self) -> tuple[list[pa.RecordBatch], Collected]:
        simulation = self.simulation
        self.servers.begin(self._start)
        for failure in self.cluster.failures:  # also one at 0 finds its worker begun
            simulation.at(failure.at_seconds, failure.worker, functools.partial(self._fail, failure))
        simulation.run()
        _ = self.ticker.tick(self._state, final=True)
        return self._report(), self._collected()

    # ---- one worker --------------------------------------------------------------------------------------------------

    def _start(self, rank: int, attempt: int) -> None:
        job, seat, size = self._own(), self.seats[rank], len(self.seats)
        if seat.member is not None:
            seat.traces.append(_trace(seat, seat.member))
            seat.lost_at = None
        member = seat.member = Member(self.simulation, rank, self._paces[rank], attempt)
        worker = make_worker(job, rank, seat.whole, seat.shard, torch.device("cpu"), member.trace, attempt)
        seat.worker = worker
        generator = torch.get_rng_state()
        net = SimulatedWorker(member, size, self.servers)
        if worker.buffers.numel():
            net.statistics, net.take_up = lambda: worker.buffers, lambda statistics: setattr(worker, "buffers", statistics)
        done = net.join()
        worker.fast_forward(done)
        worker.meter, worker.wait = member.meter, member.wait
        worker.on_step = lambda step: self._on_step()
        net.note = Notes(worker, job.checkpoint_steps)
        net.on_stop = lambda: setattr(worker, "stopping", True)

        def ended() -> None:
            seat.ended = True
            net.close()

        def failed(error: BaseException) -> None:
            if not isinstance(error, Diverged):
                error.firesteel_rank = rank  # pyright: ignore[reportAttributeAccessIssue]
                raise error
            self.servers.roll_back(member, net.sequence, str(error).split(". ")[0])
            ended()

        member.on_end, member.on_error = ended, failed
        if worker.plan.total_steps > done:
            member.start(job.strategy.run(worker, net), generator)  # pyright: ignore[reportArgumentType]
        else:
            ended()

    def _fail(self, failure: Failure) -> None:
        """The worker goes; the others do not notice. What it had sent and was not merged is lost."""
        rank, seat = failure.worker, self.seats[failure.worker]
        member = seat.member
        if seat.ended:
            return
        assert member is not None
        member.die()
        seat.lost_at = failure.at_seconds
        for shard in range(len(self.servers.parts)):
            self.servers.leave(member, shard)
        if failure.back_seconds is not None:
            self.simulation.at(failure.back_seconds, rank, functools.partial(self._start, rank, member.attempt + 1))

    def _on_step(self) -> None:
        asked = self.ticker.tick(self._state)
        if asked is not None:
            self._hurried = self._hurried or asked == HURRY
            self.servers.stopped = True

    def _state(self) -> dict[str, Any]:
        mark, job = self.servers.centers[0].mark(self.simulation.now), self.job
        step = mark["steps"] / len(self.seats)
        return {
            "step": round(step),
            "total_steps": round(step * job.epochs / mark["epoch"]) if job.epochs and mark["epoch"] else None,
            "max_seconds": job.max_seconds,
            "epoch": mark["epoch"],
            "loss": mark["loss_sum"] / mark["weight"] if mark["weight"] else float("nan"),
            "samples": mark["samples"],
            "seconds": mark["seconds"],
            "stage": "training",
        }

    # ---- the report --------------------------------------------------------------------------------------------------

    def _collected(self) -> Collected:
        centers = self.servers.centers
        for center in centers:
            center.check()
        models = [(k[0][0], torch.cat([part[1] for part in k]), k[0][2]) for k in zip(*self._kept, strict=False)]
        tables = [c.table().add_column(0, "shard", pa.array(np.full(len(c.table()), n))) for n, c in enumerate(centers)]
        log = pa.concat_tables(tables)
        first = centers[0]
        status = {
            "stopped": self.servers.stopped,
            "most_at_once": first.most_at_once,
            "diverged": next((c.diverged for c in centers if c.diverged), None),
            "restarts": 0,
        }
        seconds = max(log["seconds"].to_pylist(), default=0.0)
        params = torch.cat([c.params for c in centers])
        return Collected(params, first.statistics, models, log, status, first.mark(seconds), self._hurried)

    def _report(self) -> list[pa.RecordBatch]:
        batches: list[pa.RecordBatch] = []
        for rank, seat in enumerate(self.seats):
            member = seat.member
            if member is None:  # it never joined, in the run that is replayed
                member = Member(self.simulation, rank, self._paces[rank])
            trace = _trace(seat, member)
            report = {
                "first_step_at": member.trace.first_step_at,
                "train_rows": seat.shard.rows,
                "held_rows": seat.held_rows,
                "attempt": member.attempt,
                "threads": self.job.threads,
                "device": "cpu",
                "timing": {
                    "data_seconds": self.data_seconds,
                    "train_seconds": member.now if seat.lost_at is None else seat.lost_at,
                },
            }
            trace = pa.concat_tables([*seat.traces, trace])
            batches += [*result_rows("report", rank, json.dumps(report).encode()), *result_rows("trace", rank, ipc(trace))]
        return batches


def _trace(seat: _Seat, member: Member) -> pa.Table:
    table = member.trace.table()
    return table if seat.lost_at is None else until(table, seat.lost_at)


def scores(job: Job, size: int, rows: Callable[[int], Iterable[pa.RecordBatch]]) -> list[pa.RecordBatch]:
    """What the workers say of the models that the servers kept, each on its own rows held out."""
    own, device = shipping(job), torch.device("cpu")
    jobs = (replace(own(), work=job.work) for _ in range(size))
    found = (score(mine, Meeting(rank, size, "", 0, ""), rows(rank), device) for rank, mine in enumerate(jobs))
    return [batch for batches in found for batch in batches]
