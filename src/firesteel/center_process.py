"""What one worker process of an asynchronous run does, from rows to its last push; and how models are scored afterwards.

rows -> shard -> model -> join the servers -> (fast-forward) -> strategy -> leave

Workers need nothing from each other: an epoch is a pass over a worker's own rows, so nobody has to agree on a number of
steps, and a worker may come late, be lost and start again, or find no rows at all.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, final

import pyarrow as pa
import torch

from firesteel import randomness
from firesteel.data.batches import Plan, total_steps
from firesteel.data.shard import Shard, build_shard, check_rows
from firesteel.errors import Diverged, UsageError
from firesteel.evaluate import probe, scored_rows, sums
from firesteel.job import Apart, Job, Score
from firesteel.losses import resolve_loss, resolve_metrics
from firesteel.net.center import Note
from firesteel.net.client import Caller, CenterNet
from firesteel.net.meeting import Meeting
from firesteel.net.protocol import drive
from firesteel.net.serving import cut
from firesteel.net.shared import host_name
from firesteel.results import ipc, rows
from firesteel.trace import Trace
from firesteel.worker import Worker


def split_shard(job: Job, rank: int, batches: Iterable[pa.RecordBatch], spill: str) -> tuple[Shard, Shard, Shard]:
    """All rows of a worker, those to train on, those held out."""
    whole = build_shard(batches, job.columns, job.max_memory_bytes, spill)
    return whole, *whole.split(job.validation, randomness.generator(job.seed, "validation", rank))


def make_worker(job: Job, rank: int, whole: Shard, shard: Shard, device: torch.device, trace: Trace, attempt: int) -> Worker:
    """A worker whose epochs are passes over its own rows."""
    limit = 2**40 if job.epochs is None and job.max_steps is None else job.max_steps
    steps = total_steps(shard.rows, job.batch_size, job.epochs, limit) if shard.rows else 0
    plan = Plan(shard.rows, max(shard.rows, 1), job.batch_size, steps, job.seed, rank)
    randomness.initialise(job.seed)
    module = job.build().to(device)
    probe(module, whole, resolve_loss(job.loss, job.columns.weight is not None), resolve_metrics(job.metrics))
    randomness.train(job.seed, rank, attempt)
    _ = module.train()
    loss = resolve_loss(job.loss, job.columns.weight is not None)
    return Worker(module, loss, job.optimizer, shard, plan, schedule=job.schedule, clip_norm=job.clip_norm, trace=trace)


@final
class Notes:
    """Counts the work in each push."""

    def __init__(self, worker: Worker, every: int | None) -> None:
        self._worker: Worker = worker
        self._every: int = every or worker.plan.epoch_steps
        self._before: tuple[int, int, float, float, float] = (worker.steps_done, 0, 0.0, 0.0, 0.0)

    def __call__(self) -> Note:
        worker, trace = self._worker, self._worker.trace
        now = (worker.steps_done, trace.samples, trace.weight_sum, trace.loss_sum, trace.waited_seconds)
        steps, samples, weight, loss, waited = (a - b for a, b in zip(now, self._before, strict=True))
        self._before = now
        done = worker.steps_done
        # The last step ends the last epoch, whatever the rounding.
        return Note(int(steps), done, int(samples), weight, loss, waited, done / worker.plan.epoch_steps, done / self._every)


@final
class CenterProcess:
    def __init__(self, job: Job, meeting: Meeting, store: Any, device: torch.device) -> None:
        self.job: Job = job
        self.rank: int = meeting.rank
        self.size: int = meeting.size
        self.store: Any = store
        self._secret: str = meeting.secret
        self.attempt: int = store.add(f"{meeting.secret}/attempt/{meeting.rank}", 1) - 1
        self.device: torch.device = device
        self.trace: Trace = Trace(meeting.rank)

    def run(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        job, began = self.job, time.perf_counter()
        torch.set_num_threads(job.threads or 1)
        _ = torch.set_flush_denormal(True)
        with tempfile.TemporaryDirectory(prefix="firesteel-") as spill:
            whole, shard, held = split_shard(job, self.rank, batches, spill)
            data_seconds = time.perf_counter() - began
            self._check_rows(shard.rows, held.rows)
            worker = make_worker(job, self.rank, whole, shard, self.device, self.trace, self.attempt)
            self._train(worker, self._fingerprint(shard))
        report = {
            "first_step_at": self.trace.first_step_at,
            "train_rows": shard.rows,
            "held_rows": held.rows,
            "attempt": self.attempt,
            "total_steps": worker.plan.total_steps,
            "threads": torch.get_num_threads(),
            "device": str(self.device),
            "host": host_name(),
            "timing": {"data_seconds": data_seconds, "train_seconds": self.trace.clock.now()},
        }
        yield from rows("report", self.rank, json.dumps(report).encode())
        yield from rows("trace", self.rank, ipc(self.trace.table()))

    def _fingerprint(self, shard: Shard) -> str:
        if self.job.run_dir is None:
            return ""
        found = shard.fingerprint()
        check_rows(self.rank, found, self.job.resumed_rows.get(str(self.rank), found))
        return found

    def _check_rows(self, train_rows: int, held_rows: int) -> None:
        """Whoever is the last to count its rows knows them all: too few are refused then, unless others have been through by
        now, as happens where workers take turns: what has been trained is not thrown away for want of scores."""
        store, secret, ranks = self.store, self._secret, range(self.size)
        store.set(f"{secret}/rows/{self.rank}", f"{train_rows} {held_rows}")
        if store.check([f"{secret}/rows/{rank}" for rank in ranks]) and not store.check([f"{secret}/trained"]):
            counts = [store.get(f"{secret}/rows/{rank}").decode().split() for rank in ranks]
            self.job.check_rows(sum(int(train) for train, _ in counts), sum(int(held) for _, held in counts))

    def _train(self, worker: Worker, fingerprint: str) -> None:
        apart = self.job.work
        assert isinstance(apart, Apart)
        if worker.params.numel() != apart.size:
            raise UsageError(f"the model has {worker.params.numel()} parameters on a worker and {apart.size} at the caller.")
        finder = apart.finder
        parts = cut(apart.size, finder.shards)
        net = CenterNet(
            self.rank,
            self.size,
            self.attempt,
            lambda: finder.find(self.store),
            parts,
            worker.params.dtype,
            self.trace,
            apart.restart_seconds,
            self.device,
        )
        if worker.buffers.numel():
            net.statistics, net.take_up = lambda: worker.buffers, lambda statistics: setattr(worker, "buffers", statistics)
        net.on_stop = lambda: setattr(worker, "stopping", True)
        net.rows = fingerprint
        done = net.join()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch: a schedule that moves before the optimizer has
            worker.fast_forward(done)
        net.note = Notes(worker, self.job.checkpoint_steps)
        self.trace.clock.start()
        try:
            if worker.plan.total_steps > done:
                _ = drive(self.job.strategy.run(worker, net))
                self.store.set(f"{self._secret}/trained", b"")
        except Diverged as error:
            told = {"worker": self.rank, "sequence": net.sequence, "why": str(error).split(". ")[0]}
            Caller(finder.find(self.store)).diverged(told)
        except BaseException:
            net.hang_up()
            raise
        net.close()


def score(job: Job, meeting: Meeting, batches: Iterable[pa.RecordBatch], device: torch.device) -> Iterator[pa.RecordBatch]:
    """Sums over this worker's rows of each kind in `job.scored`, for each model: [models, kinds, 2 + metrics], float64."""
    work = job.work
    assert isinstance(work, Score)
    torch.set_num_threads(job.threads or 1)
    loss, metrics = resolve_loss(job.loss, job.columns.weight is not None), resolve_metrics(job.metrics)
    with tempfile.TemporaryDirectory(prefix="firesteel-") as spill:
        whole, shard, held = split_shard(job, meeting.rank, batches, spill)
        worker = make_worker(job, meeting.rank, whole, shard, device, Trace(meeting.rank), 0)
        shards = scored_rows(job, shard, held)
        found: list[list[list[float]]] = []
        for params, statistics in zip(work.params, work.statistics, strict=True):
            worker.params = params.to(device)
            if statistics.numel():
                worker.buffers = statistics.to(device)
            found.append(sums(worker.module, shards, loss, metrics, device).tolist())
    yield from rows("scores", meeting.rank, json.dumps(found).encode())
