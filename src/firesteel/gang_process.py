"""What one worker process of a gang does, from rows to result. Local and Spark workers both run exactly this.

rows -> shard -> meet the others -> model -> (resume) -> strategy -> evaluate what was published -> report
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

import pyarrow as pa
import torch
from torch import Tensor

from firesteel import randomness
from firesteel.checkpoint import Board, Folder, Points, pack
from firesteel.data.batches import Plan, total_steps
from firesteel.data.shard import Shard, build_shard, check_rows
from firesteel.errors import Diverged
from firesteel.evaluate import by_column, part_sums, probe, published_sums, scored_rows
from firesteel.gang_part import GangPart
from firesteel.job import Job
from firesteel.losses import resolve_loss, resolve_metrics
from firesteel.memory import forget_peak, peak_bytes, resident_bytes
from firesteel.net.control import Control
from firesteel.net.gang import GangNet
from firesteel.net.meeting import Meeting, join, leave
from firesteel.net.protocol import Vec, drive, full_batch, keeps_best, splits
from firesteel.net.shared import host_name
from firesteel.results import Kept, best_of, check_result, digest, finite, history_row, ipc, mark_of, rows, to_add_up
from firesteel.stopping import HURRY
from firesteel.trace import Trace
from firesteel.worker import Worker


@final
class GangProcess:
    def __init__(self, job: Job, meeting: Meeting, board: Board | None, store: Any, device: torch.device) -> None:
        self.job: Job = job
        self.meeting: Meeting = meeting
        self.rank: int = meeting.rank
        self.board: Board | None = board
        self.store: Any = store
        self.device: torch.device = device
        self.trace: Trace = Trace(meeting.rank)
        self.control: Control = Control()
        self.kept: Kept = Kept()
        self.points: Points | None = Points(Folder(job.run_dir)) if job.run_dir else None
        self.loss: Any = resolve_loss(job.loss, job.columns.weight is not None)
        self.metrics: Any = resolve_metrics(job.metrics)
        self.timing: dict[str, float] = {}
        self._published: int = 0
        self._shown: float = 0.0
        self._best: tuple[float, int] | None = None
        self._live: dict[int, dict[str, float]] = {}
        self._unbounded: bool = job.epochs is None and job.max_steps is None
        self._over: threading.Event = threading.Event()
        self._unscored: Callable[[], bytes] | None = None  # worker 0's results as they are while models are evaluated

    # ---- the course of a run -----------------------------------------------------------------------------------------

    def run(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        job, began = self.job, time.perf_counter()
        forget_peak()
        self.memory: dict[str, int] = {"before": resident_bytes()}
        torch.set_num_threads(job.threads or 1)
        _ = torch.set_flush_denormal(True)  # Adam's moments of dead inputs become denormal, which slows a step by a third
        with tempfile.TemporaryDirectory(prefix="firesteel-") as spill:
            if job.run_dir is not None:
                Folder(job.run_dir).must_be_seen(job.secret)
            whole = build_shard(batches, job.columns, job.max_memory_bytes, spill)
            shard, held = whole.split(job.validation, randomness.generator(job.seed, "validation", self.rank))
            self.timing["data_seconds"] = time.perf_counter() - began
            net = join(self.meeting, self.trace, self.control, self.device, self.store)
            self._net: GangNet = net
            try:
                self.timing["meet_seconds"] = time.perf_counter() - began - self.timing["data_seconds"]
                self._prepare(whole, shard, held)
                self._train()
                yield from self._report()
            finally:
                self._over.set()
                leave(net)

    def _prepare(self, whole: Shard, shard: Shard, held: Shard) -> None:
        job = self.job
        self.scored: list[Shard] = scored_rows(job, shard, held)
        # [rank, (rows, held rows, rows of each shard to be scored)]: what all must agree on before the first step
        table = torch.zeros(self.meeting.size, 2 + len(self.scored), dtype=torch.float64)
        table[self.rank] = torch.tensor([shard.rows, held.rows, *(each.rows for each in self.scored)])
        sizes = self._net.totals(table)
        job.check_rows(int(sizes[:, 0].sum()), int(sizes[:, 1].sum()))
        self.most_scored: list[int] = [int(n) for n in sizes[:, 2:].amax(0)]
        self.train_rows: int = int(sizes[:, 0].sum())
        most = int(sizes[:, 0].max())
        limit = 2**40 if self._unbounded else job.max_steps  # with max_seconds alone the clock ends the run
        batch_size = most if full_batch(job.strategy) else job.batch_size
        steps = total_steps(most, batch_size, job.epochs, limit)
        plan = Plan(shard.rows, most, batch_size, steps, job.seed, self.rank)
        self.parts: GangPart | None = GangPart(job, self._net) if splits(job.strategy) else None
        if self.parts is not None:
            module, optimizer = self.parts.made(whole, self.loss, self.metrics)
        else:
            optimizer = job.optimizer
            randomness.initialise(job.seed)
            module = job.build().to(self.device)
            probe(module, whole, self.loss, self.metrics)
            randomness.train(job.seed, self.rank)
        _ = module.train()
        self.worker: Worker = Worker(
            module, self.loss, optimizer, shard, plan, schedule=job.schedule, clip_norm=job.clip_norm, trace=self.trace
        )
        self._same_start()
        if self.parts is not None:
            self.parts.compare(self.worker)
        self.every: int = job.checkpoint_steps or plan.epoch_steps
        self.fingerprint: str = shard.fingerprint() if job.run_dir or job.resume_from else ""
        if job.resume_from:
            self._resume(Points(Folder(job.resume_from)))
        self.worker.on_step = self._on_step
        self.control.publish = self._publish

    def _same_start(self) -> None:
        """Every replica begins with worker 0's tensors, whatever a factory drew or a platform rounds differently."""
        if self.meeting.size == 1 or self.parts is not None:
            return
        everything = [self.worker.params, *(p.data for p in self.worker.module.parameters() if not p.requires_grad)]
        everything += list(self.worker.module.buffers())
        for x in everything:
            flat = x.detach().contiguous()
            if self.rank:
                flat = torch.zeros_like(flat)
            x.copy_(self._net.totals(flat.to(torch.uint8) if flat.dtype == torch.bool else flat))

    def _train(self) -> None:
        worker, job = self.worker, self.job
        watcher = threading.Thread(target=self._watch, daemon=True) if self.board and self.rank == 0 else None
        if watcher:
            watcher.start()
        began = self.trace.clock.now() if job.resume_from else 0.0
        self.trace.clock.start(began)
        result = drive(job.strategy.run(worker, self._net))
        check_result(result, self.rank, worker.params.numel())
        self.timing["train_seconds"] = self.trace.clock.now() - began
        self.memory["peak"] = peak_bytes()  # what is read from files afterwards needs no memory
        if self.parts is not None:
            self.parts.finish(worker)
        if not self.kept.marks or self._published != worker.steps_done or not self._is_last(result):
            self._keep(result, (), final=True)
        self._show(done=True)

    def _is_last(self, result: Vec) -> bool:
        return digest(result) == self._last

    # ---- publish points ----------------------------------------------------------------------------------------------

    def _publish(self, params: Vec, rest: tuple[Tensor, ...]) -> None:
        step = self.worker.steps_done
        if self.control.stop_agreed:
            self.worker.stopping = True
        due = step // self.every > self._published // self.every or self.worker.last(step)
        if due or self.worker.stopping:
            self._keep(params, rest)
            self._published = step

    def _keep(self, params: Vec, rest: tuple[Tensor, ...], final: bool = False) -> None:
        worker, trace, step = self.worker, self.trace, self.worker.steps_done
        if not finite(params):
            raise Diverged(
                f"parameters are no longer finite at step {step} on worker {self.rank}. "
                "Lower the learning rate, or set clip_norm; the last good model is kept."
            )
        statistics = self._mean_statistics()
        trace.mark("publish", step)
        mark = mark_of(trace, step, worker.figures)
        self._last: bytes = digest(params)
        self.kept.add(params, statistics, mark)
        if self.rank == 0 and self.board is not None and self.parts is None:  # a part is no model
            self.board.put("model.safetensors", pack({"params": params, "statistics": statistics}, {"step": step}))
        if self.points is not None and params.dim() == 1:
            self._write_point(step, rest, mark)
        if self.job.early_stopping and not final:
            self._decide(params, statistics)

    def _mean_statistics(self) -> Vec:
        """The mean of the workers' running statistics."""
        statistics = self.worker.buffers
        if self.parts is not None:
            return self.parts.mean_statistics(statistics)
        return self._net.totals(statistics).div_(self.meeting.size) if statistics.numel() else statistics

    def _write_point(self, step: int, rest: tuple[Tensor, ...], mark: dict[str, float]) -> None:
        assert self.points is not None
        tensors, plain = self.worker.state()
        tensors |= {f"rest.{i}": x for i, x in enumerate(rest)}
        plain |= {"mark": mark, "fingerprint": self.fingerprint, "rest": len(rest)}
        self.points.write(step, self.rank, tensors, plain)
        _ = self._net.totals(torch.zeros(1))
        if self.rank == 0:
            costs = self.parts.costs if self.parts is not None else ()
            self.points.commit(step, {"workers": self.meeting.size, "costs": costs, **self.job.settings})

    def _resume(self, points: Points) -> None:
        found = points.newest()
        assert found is not None  # the caller looked before it started us
        tensors, plain = points.read(found[0], self.rank)
        check_rows(self.rank, self.fingerprint, plain["fingerprint"])
        self.control.resumed = tuple(tensors[f"rest.{i}"].to(self.device) for i in range(plain["rest"]))
        if not self.control.resumed:
            self.control.resumed = None
        self.worker.restore(tensors, plain)
        mark, trace = plain["mark"], self.trace
        trace.samples, trace.bytes_sent, trace.waited_seconds = int(mark["samples"]), int(mark["bytes"]), mark["waited"]
        trace.rounds = int(mark["rounds"])
        trace.loss_sum, trace.weight_sum = mark["loss_sum"], mark["weight_sum"]
        trace.clock.start(mark["seconds"])
        self._published = found[0]
        self._resumed_mark: dict[str, float] = mark

    def _decide(self, params: Vec, statistics: Vec) -> None:
        stopping = self.job.early_stopping
        assert stopping is not None
        scores = self._evaluate(params, statistics)
        number = len(self.kept.marks) - 1
        self._live[number] = scores
        value = stopping.sign * scores[f"validation_{stopping.metric}"]
        if self._best is None or value > self._best[0] + stopping.min_delta:
            self._best = (value, number)
        elif number - self._best[1] >= stopping.patience:
            self.worker.stopping = True

    # ---- watching and being watched ----------------------------------------------------------------------------------

    def _on_step(self, step: int) -> None:
        if self.rank:
            return
        now = time.perf_counter()
        if self.job.max_seconds is not None and self.trace.clock.now() >= self.job.max_seconds:
            self.control.stop_asked = max(self.control.stop_asked, 1.0)
        if now - self._shown >= 0.25:
            self._shown = now
            self._show()

    def _show(self, done: bool = False) -> None:
        if self.rank or self.board is None:
            return
        trace, plan = self.trace, self.worker.plan
        seconds = trace.clock.now()
        state = {
            "step": self.worker.steps_done,
            "total_steps": None if self._unbounded else plan.total_steps,
            "max_seconds": self.job.max_seconds,
            "epoch": self.worker.steps_done / plan.epoch_steps,
            "loss": trace.loss,
            "samples": trace.samples * self.meeting.size,
            "seconds": seconds,
            "stage": "evaluating" if done else "training",
            "first_step_at": trace.first_step_at,
        }
        if self._live:
            state["scores"] = self._live[max(self._live)]
        self._progress: bytes = json.dumps(state).encode()
        self._wake()

    def _wake(self) -> None:
        board, progress = self.board, self._progress
        if isinstance(board, Folder):
            threading.Thread(target=lambda: board.put("progress.json", progress), daemon=True).start()
        elif board is not None:
            board.put("progress.json", progress)

    def _watch(self) -> None:
        """Say that the gang is there; then look for a request to stop, beside the training, as a folder may answer slowly."""
        board = self.board
        assert board is not None
        board.put("started", b"")
        while not self._over.wait(0.5 if isinstance(board, Folder) else 0.1):
            with contextlib.suppress(Exception):
                asked = board.get("stop")
                if asked is not None:
                    self.control.stop_asked = 2.0 if asked == HURRY else 1.0
                if asked == HURRY and self._unscored is not None:
                    board.put("unscored", self._unscored())
                    return

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _evaluate(self, params: Vec, statistics: Vec) -> dict[str, float]:
        """Scores of a published model on all workers' rows of each kind in `job.scored`; every worker calls it."""
        published = (self.worker, params, statistics, self.scored, self.loss, self.metrics)
        with self.trace.paused():
            if self.parts is not None:
                total = part_sums(*published, self.most_scored)
            else:
                total = published_sums(*published, self.job.columns.target)
            return by_column(self._net.totals(total), self.job.scored, self.metrics)

    def _report(self) -> Iterator[pa.RecordBatch]:
        """Evaluate what was published, and hand everything over. Should somebody who does not wait for scores ask for the
        end meanwhile, worker 0 leaves its part without them on the board."""
        began, worker = time.perf_counter(), self.worker
        marks = self._net.totals(to_add_up(self.kept.marks))
        before = torch.zeros(1, marks.shape[1], dtype=torch.float64)
        if self.job.resume_from:
            before = self._net.totals(to_add_up([self._resumed_mark]))
        sums = list(zip(self.kept.marks, marks, torch.cat([before, marks[:-1]]), strict=True))
        dtype, statistics = worker.params.dtype, worker.buffers.numel()
        choosy = keeps_best(self.job.strategy)
        others: dict[str, Tensor] = {}
        if self.parts is None:
            # As they are now: evaluating writes to the buffers, while somebody who does not wait may ask for the results.
            others |= {f"frozen.{n}": p.detach().clone() for n, p in worker.module.named_parameters() if not p.requires_grad}
            others |= {f"buffer.{n}": b.clone() for n, b in worker.module.named_buffers()}

        def results(scores: list[dict[str, float]], hurried: bool) -> Iterator[pa.RecordBatch]:
            self.timing["evaluate_seconds"] = time.perf_counter() - began
            best = best_of(scores, self.metrics) if choosy else len(marks) - 1
            if self._best is not None:
                best = self._best[1]
            report = {
                "steps": worker.steps_done,
                "total_steps": worker.plan.total_steps,
                "stopped": worker.steps_done < worker.plan.total_steps,
                "hurried": hurried,
                "converged": worker.converged,
                "early": self._best is not None and worker.stopping and not self.control.stop_agreed,
                "train_rows": self.train_rows,
                "samples_before": float(before[0, 0]),
                "first_step_at": self.trace.first_step_at,
                "timing": self.timing,
                "best": best,
                "device": str(self.device),
                "memory": self.memory,
                "host": host_name(),
            }
            yield from rows("report", self.rank, json.dumps(report).encode())
            yield from rows("trace", self.rank, ipc(self.trace.table()))
            if self.rank == 0:
                steps, size = worker.plan.epoch_steps, self.meeting.size
                history = [history_row(*each, steps, size, found) for each, found in zip(sums, scores, strict=True)]
                yield from rows("history", 0, ipc(pa.Table.from_pylist(history)))
            _, params, stats = next(self.kept.read(dtype, statistics, best))
            if self.parts is None:
                if self.rank == 0:
                    yield from rows("model", 0, pack({"params": params, "statistics": stats, **others}, {}))
            else:
                yield from self.parts.handed_over(worker.module, params, stats)

        scores: list[dict[str, float]] = [{} for _ in sums]
        if self.parts is None:
            self._unscored = lambda: ipc(pa.Table.from_batches(results(scores, True)))
        hurried = self.control.stop_agreed >= 2
        if self.scored and not hurried:
            for number, params, stats in self.kept.read(dtype, statistics):
                # Worker 0 has not the parts of the others to leave: all end together, before the next model.
                hurried = self.parts is not None and self._hurry()
                if hurried:
                    break
                scores[number] = self._live.get(number) or self._evaluate(params, stats)
        yield from results(scores, hurried)

    def _hurry(self) -> bool:
        """Whether somebody does not wait for scores; every worker calls it, and all get the same answer."""
        return bool(self._net.totals(torch.tensor([float(self.control.stop_asked >= 2)])).any())
