"""A gang in virtual time, from rows to result: what `gang_process` does in each of many processes, for all workers at once."""

from __future__ import annotations

import bisect
import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import pyarrow as pa
import torch
from torch import Tensor

from firesteel import randomness
from firesteel.center_process import split_shard
from firesteel.checkpoint import pack
from firesteel.data.batches import Plan, total_steps
from firesteel.data.shard import Shard
from firesteel.data.source import stream
from firesteel.errors import Diverged, WorkerLost
from firesteel.evaluate import by_column, probe, published_sums, scored_rows, sums
from firesteel.job import Job
from firesteel.losses import Loss, RowLoss, resolve_loss, resolve_metrics
from firesteel.net.control import Control
from firesteel.net.protocol import Strategy, Vec, full_batch, keeps_best, splits
from firesteel.parts.assembly import Replicas, fingerprint, hand_over, joined, pieces_of
from firesteel.parts.blueprint import Blueprint
from firesteel.parts.example import outline
from firesteel.parts.making import part_of
from firesteel.results import Kept, best_of, check_result, digest, finite, history_row, ipc, mark_of, rows, to_add_up
from firesteel.sim.cluster import Cluster, Failure
from firesteel.sim.gang import Circle, SimulatedGang
from firesteel.sim.shipping import shipping
from firesteel.sim.simulation import Member, Simulation, paces, until
from firesteel.sim.watching import Ticker
from firesteel.stopping import HURRY
from firesteel.worker import Worker


@final
@dataclass
class _Point:
    """All that a worker needs to go on from a kept publish point."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]
    rest: tuple[Tensor, ...]
    generator: Tensor


@final
@dataclass
class _Seat:
    """One worker over the whole run, through all its attempts."""

    whole: Shard
    shard: Shard
    scored: list[Shard]
    worker: Worker
    strategy: Strategy
    loss: Loss
    metrics: dict[str, RowLoss]
    generator: Tensor
    member: Member | None = None
    control: Control = field(default_factory=Control)
    marks: list[dict[str, float]] = field(default_factory=list)
    statistics: list[Vec] = field(default_factory=list)
    points: dict[int, _Point] = field(default_factory=dict)  # by number of kept points; only where failures are expected
    traces: list[pa.Table] = field(default_factory=list)
    published: int = 0
    last: bytes | None = None  # a digest of what was kept last
    kept: Kept | None = None  # of worker 0; where the network lies in parts, of every worker


@final
class GangRun:
    def __init__(self, job: Job, source: Any, cluster: Cluster, simulation: Simulation, ticker: Ticker) -> None:
        self.job: Job = job
        self.cluster: Cluster = cluster
        self.simulation: Simulation = simulation
        self.ticker: Ticker = ticker
        self.size: int = cluster.workers
        self._paces: list[Any] = paces(cluster, job.seed)
        self._unbounded: bool = job.epochs is None and job.max_steps is None
        self._failures: list[Failure] = sorted(cluster.failures, key=lambda f: (f.at_seconds, f.worker))  # still to come
        self._oldest: int = 0  # of the points that are kept
        began = time.perf_counter()
        self.seats: list[_Seat] = self._prepare(source)
        self.every: int = job.checkpoint_steps or self.seats[0].worker.plan.epoch_steps
        self.timing: dict[str, float] = {"data_seconds": time.perf_counter() - began}

    # ---- the course of a run -----------------------------------------------------------------------------------------

    def _prepare(self, source: Any) -> list[_Seat]:
        job, size = self.job, self.size
        cut = [split_shard(job, rank, stream(source, rank, size), "") for rank in range(size)]
        job.check_rows(sum(shard.rows for _, shard, _ in cut), sum(held.rows for _, _, held in cut))
        self._most: int = max(shard.rows for _, shard, _ in cut)
        self._own: Callable[[], Job] = shipping(job)
        self._descriptions: list[Tensor] = [outline(whole.block(0, min(1, whole.rows))) for whole, _, _ in cut]
        self.blueprint: Blueprint | None = Blueprint.of(job.build, job.seed) if splits(job.strategy) else None
        seats: list[_Seat] = []
        for rank, (whole, shard, held) in enumerate(cut):
            seats.append(_Seat(whole, shard, scored_rows(job, shard, held), *self._begin(rank, whole, shard)))
            if rank:  # every replica begins with worker 0's tensors, whatever a factory drew
                _alike(seats[rank].worker, seats[0].worker)
        pieces = [pieces_of(seat.worker.module) for seat in seats]
        own = tuple(fingerprint(each) for each in pieces if each is not None)
        self.replicas: Replicas | None = Replicas(own) if own else None
        for seat in seats if self.replicas is not None else seats[:1]:
            seat.kept = Kept()
        return seats

    def _begin(self, rank: int, whole: Shard, shard: Shard) -> tuple[Worker, Strategy, Loss, dict[str, RowLoss], Tensor]:
        """What a worker's process makes of the job, and the generator's state with which it begins to train."""
        job = self._own()
        limit = 2**40 if self._unbounded else job.max_steps
        batch_size = self._most if full_batch(job.strategy) else job.batch_size
        steps = total_steps(self._most, batch_size, job.epochs, limit)
        plan = Plan(shard.rows, self._most, batch_size, steps, job.seed, rank)
        loss, metrics = resolve_loss(job.loss, job.columns.weight is not None), resolve_metrics(job.metrics)
        if splits(job.strategy):
            module, optimizer = part_of(job, rank, self.size, self._descriptions, whole, loss, metrics, self.blueprint)
        else:
            optimizer = job.optimizer
            randomness.initialise(job.seed)
            module = job.build()
            probe(module, whole, loss, metrics)
            randomness.train(job.seed, rank)
        generator = torch.get_rng_state()
        settings: dict[str, Any] = {"schedule": job.schedule, "clip_norm": job.clip_norm}
        worker = Worker(module.train(), loss, optimizer, shard, plan, **settings)
        return worker, job.strategy, loss, metrics, generator

    def run(self) -> list[pa.RecordBatch]:
        simulation = self.simulation
        self._expect_failure()
        if self._failures:
            for rank, seat in enumerate(self.seats):
                seat.points[0] = self._point(rank, ())
        self._start()
        simulation.run()
        self.timing["train_seconds"] = max(seat.member.now for seat in self.seats if seat.member is not None)
        self._show(final=True)
        return self._report()

    def _start(self) -> None:
        circle = Circle(tuple(range(self.size)))
        for rank, seat in enumerate(self.seats):
            attempt = len(seat.traces)
            member = seat.member = Member(self.simulation, rank, self._paces[rank], attempt)
            worker = seat.worker
            if seat.marks:
                mark = seat.marks[-1]
                trace = member.trace
                trace.samples, trace.bytes_sent, trace.waited_seconds = int(mark["samples"]), int(mark["bytes"]), mark["waited"]
                trace.rounds = int(mark["rounds"])
                trace.loss_sum, trace.weight_sum = mark["loss_sum"], mark["weight_sum"]
            worker.trace, worker.meter, worker.wait = member.trace, member.meter, member.wait
            worker.on_step = functools.partial(self._on_step, rank)
            seat.control.publish = functools.partial(self._publish, rank)
            member.on_end = functools.partial(self._ended, rank)
            member.on_error = functools.partial(_named_error, rank)
            net = SimulatedGang(member, circle, rank, seat.control)
            member.start(seat.strategy.run(worker, net), seat.generator)  # pyright: ignore[reportArgumentType]

    def _ended(self, rank: int) -> None:
        seat = self.seats[rank]
        assert seat.member is not None
        result = seat.member.result
        check_result(result, rank, seat.worker.params.numel())
        last = seat.last
        if last is None or seat.published != seat.worker.steps_done or digest(result) != last:
            self._keep(rank, result, ())

    # ---- publish points ----------------------------------------------------------------------------------------------

    def _publish(self, rank: int, params: Vec, rest: tuple[Tensor, ...]) -> None:
        seat = self.seats[rank]
        worker, step = seat.worker, seat.worker.steps_done
        if seat.control.stop_agreed:
            worker.stopping = True
        if step // self.every > seat.published // self.every or worker.last(step) or worker.stopping:
            self._keep(rank, params, rest)
            seat.published = step

    def _keep(self, rank: int, params: Vec, rest: tuple[Tensor, ...]) -> None:
        seat, member = self.seats[rank], self.seats[rank].member
        assert member is not None
        step = seat.worker.steps_done
        if not finite(params):
            raise Diverged(
                f"parameters are no longer finite at step {step} on worker {rank}. "
                "Lower the learning rate, or set clip_norm; the last good model is kept."
            )
        member.trace.mark("publish", step)
        seat.marks.append(mark_of(member.trace, step, seat.worker.figures))
        seat.statistics.append(seat.worker.buffers)
        seat.last = digest(params)
        if seat.kept is not None:
            seat.kept.add(params, torch.empty(0), seat.marks[-1])
        if rank == 0 and self.replicas is None:  # a part is no model to show
            model = pack({"params": params, "statistics": seat.worker.buffers}, {"step": step})
            show = functools.partial(self.ticker.board.put, "model.safetensors", model)
            if self._failures:  # the program may have run ahead of one
                self.simulation.at(member.now, rank, show)
            else:
                show()
            member.now += self.simulation.fabric.to_caller(len(model))
        if self._failures and seat.marks[-1]["seconds"] <= self._failures[-1].at_seconds:
            seat.points[len(seat.marks)] = self._point(rank, rest)
            oldest = self._newest(self.simulation.now)
            if oldest > self._oldest:
                self._oldest = oldest
                for each in self.seats:
                    each.points = {number: point for number, point in each.points.items() if number >= oldest}

    def _newest(self, at: float) -> int:
        """The number of the newest kept point that all workers had come to by a moment: their programs may be ahead of it."""
        return min(bisect.bisect_right(seat.marks, at, key=lambda mark: mark["seconds"]) for seat in self.seats)

    def _point(self, rank: int, rest: tuple[Tensor, ...]) -> _Point:
        worker = self.seats[rank].worker
        tensors, plain = worker.state()
        generator = self.seats[rank].generator if not self.seats[rank].marks else torch.get_rng_state()
        return _Point({n: t.clone() for n, t in tensors.items()}, plain, tuple(x.clone() for x in rest), generator)

    def _expect_failure(self) -> None:
        if self._failures:
            self.simulation.at(self._failures[0].at_seconds, self._failures[0].worker, self._fail)

    def _fail(self) -> None:
        """The gang ends with its worker, and goes on from the newest point that all have, when nobody is away any more."""
        if all(seat.member is not None and seat.member.ended for seat in self.seats):
            return
        at_seconds = back_seconds = self._failures[0].at_seconds
        self.simulation.stop()
        number = self._newest(at_seconds)
        while self._failures and self._failures[0].at_seconds <= back_seconds:
            failure = self._failures.pop(0)
            if failure.back_seconds is None:
                raise WorkerLost(
                    f"worker {failure.worker} was lost at virtual second {failure.at_seconds:g} and does not come back; a gang "
                    "needs all its workers. Give the failure back_seconds, or take a strategy with a server."
                )
            back_seconds = max(back_seconds, failure.back_seconds)
        for rank, seat in enumerate(self.seats):
            assert seat.member is not None
            seat.traces.append(until(seat.member.trace.table(), at_seconds))
            del seat.marks[number:], seat.statistics[number:]
            if seat.kept is not None:
                seat.kept.cut(number)
            seat.worker, seat.strategy, seat.loss, seat.metrics, _ = self._begin(rank, seat.whole, seat.shard)
            _alike(seat.worker, self.seats[0].worker)
            point = seat.points[number]
            # Copies: the optimizer works on the tensors that it is given, and the point may be needed again.
            seat.worker.restore({n: t.clone() for n, t in point.tensors.items()}, point.plain)
            seat.generator, seat.last = point.generator, None
            seat.published = int(seat.marks[-1]["step"]) if seat.marks else 0
            seat.control = Control(resumed=tuple(x.clone() for x in point.rest) or None)
            seat.points = {number: point}
        self.simulation.at(back_seconds, -1, self._start)
        self._expect_failure()

    # ---- being watched -----------------------------------------------------------------------------------------------

    def _on_step(self, rank: int, step: int) -> None:
        seat = self.seats[rank]
        assert seat.member is not None
        limit = self.job.max_seconds
        asked = self._show() if rank == 0 else self.ticker.board.get("stop")
        if asked is not None or (limit is not None and seat.member.now >= limit):
            seat.control.stop_asked = 2.0 if asked == HURRY else max(seat.control.stop_asked, 1.0)

    def _show(self, final: bool = False) -> bytes | None:
        seat = self.seats[0]
        worker, trace = seat.worker, seat.worker.trace

        def state() -> dict[str, Any]:
            return {
                "step": worker.steps_done,
                "total_steps": None if self._unbounded else worker.plan.total_steps,
                "max_seconds": self.job.max_seconds,
                "epoch": worker.steps_done / worker.plan.epoch_steps,
                "loss": trace.loss,
                "samples": trace.samples * self.size,
                "seconds": trace.clock.now(),
                "stage": "evaluating" if final else "training",
            }

        return self.ticker.tick(state, final)

    # ---- the report --------------------------------------------------------------------------------------------------

    def _report(self) -> list[pa.RecordBatch]:
        began, seats, first = time.perf_counter(), self.seats, self.seats[0]
        hurried = max(seat.control.stop_agreed for seat in seats) >= 2
        marks = sum(to_add_up(seat.marks) for seat in seats)
        assert isinstance(marks, Tensor)
        history: list[dict[str, Any]] = []
        before = torch.zeros(marks.shape[1], dtype=torch.float64)
        found: list[dict[str, float]] = []
        for number in range(len(first.marks)):
            hurried = hurried or self.ticker.board.get("stop") == HURRY
            scores = {} if hurried or not first.scored else self._evaluate(number)
            steps = first.worker.plan.epoch_steps
            history.append(history_row(first.marks[number], marks[number], before, steps, self.size, scores))
            before = marks[number]
            found.append(scores)
        best = best_of(found, first.metrics) if keeps_best(self.job.strategy) else len(found) - 1
        self.timing["evaluate_seconds"] = time.perf_counter() - began
        batches: list[pa.RecordBatch] = []
        for rank, seat in enumerate(seats):
            worker, member = seat.worker, seat.member
            assert member is not None
            report = {
                "steps": worker.steps_done,
                "total_steps": worker.plan.total_steps,
                "stopped": worker.steps_done < worker.plan.total_steps,
                "hurried": hurried,
                "converged": worker.converged,
                "early": False,
                "train_rows": sum(s.shard.rows for s in seats),
                "samples_before": 0,
                "first_step_at": member.trace.first_step_at,
                "timing": self.timing,
                "best": best,
                "device": "cpu",
            }
            trace = pa.concat_tables([*seat.traces, member.trace.table()])
            batches += [*rows("report", rank, json.dumps(report).encode()), *rows("trace", rank, ipc(trace))]
        return [*batches, *rows("history", 0, ipc(pa.Table.from_pylist(history))), *self._model(best)]

    def _model(self, number: int) -> Iterator[pa.RecordBatch]:
        """A kept model as worker 0 hands it over; one in parts, as all do."""
        if self.replicas is None:
            module = self.seats[0].worker.module
            frozen = {f"frozen.{n}": p for n, p in module.named_parameters() if not p.requires_grad}
            buffers = {f"buffer.{n}": b for n, b in module.named_buffers()}
            params, statistics = self._kept(0, number)
            yield from rows("model", 0, pack({"params": params, "statistics": statistics, **frozen, **buffers}, {}))
            return
        for rank, seat in enumerate(self.seats):
            if self.replicas.hands_over(rank):
                yield from hand_over(rank, seat.worker.module, *self._kept(rank, number), skip_shared=rank > 0)

    def _kept(self, rank: int, number: int) -> tuple[Vec, Vec]:
        """A worker's parameters in a kept model, and its running statistics: their mean over the workers that have the same."""
        alike = range(self.size) if self.replicas is None else self.replicas.ranks(rank)
        kept = self.seats[rank if self.replicas is not None else 0].kept
        assert kept is not None
        _, params, _ = next(kept.read(self.seats[rank].worker.params.dtype, 0, number))
        statistics = self.seats[alike[0]].statistics[number].clone()
        for other in alike[1:]:  # in order of rank
            statistics += self.seats[other].statistics[number]
        return params, statistics.div_(len(alike))

    def _evaluate(self, number: int) -> dict[str, float]:
        """Scores of a kept model on all workers' rows of each kind in `job.scored`."""
        job, first = self.job, self.seats[0]
        total = torch.zeros(len(first.scored), 2 + len(first.metrics), dtype=torch.float64)
        if self.blueprint is not None:
            parts = [(seat.worker.module, *self._kept(rank, number)) for rank, seat in enumerate(self.seats)]
            model = joined(self.blueprint.module, parts)
            for seat in self.seats:
                total += sums(model, seat.scored, seat.loss, seat.metrics, torch.device("cpu"))
        else:
            kept = self._kept(0, number)
            for seat in self.seats:
                total += published_sums(seat.worker, *kept, seat.scored, seat.loss, seat.metrics, job.columns.target)
        return by_column(total, job.scored, first.metrics)


def _alike(worker: Worker, first: Worker) -> None:
    if worker.part is not None:  # its numbers are its own
        return
    with torch.no_grad():
        worker.params = first.params
        pairs = zip(worker.module.parameters(), first.module.parameters(), strict=True)
        for mine, theirs in [*pairs, *zip(worker.module.buffers(), first.module.buffers(), strict=True)]:
            if mine.data_ptr() != theirs.data_ptr():
                mine.copy_(theirs)


def _named_error(rank: int, error: BaseException) -> None:
    error.firesteel_rank = rank  # pyright: ignore[reportAttributeAccessIssue]
    raise error
