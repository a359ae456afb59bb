"""`Local`: a run in processes of this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import cloudpickle
import pyarrow as pa
import torch

from firesteel.checkpoint import Board, StoreBoard
from firesteel.data.source import FrameSource, ParquetSource, TableSource
from firesteel.errors import ClusterError, UsageError
from firesteel.failures import failures_on, raise_cause
from firesteel.job import Job
from firesteel.net.hosting import Collected, Serve
from firesteel.net.meeting import Meeting, serve_store
from firesteel.nursery import Nursery
from firesteel.server import DEFAULT, Server
from firesteel.stopping import Patience, plain_interrupts

Watch = Callable[[Board], None]  # called several times a second while the run goes on


@final
@dataclass(frozen=True)
class Local:
    """Train in `workers` processes of this machine, without Spark or Java."""

    workers: int = 2
    """Number of processes, >= 1."""
    threads: int | None = None
    """PyTorch threads of each worker; None shares out the cores."""
    max_memory_bytes: int = 2 * 2**30
    """Rows of one worker beyond this size go to a memory-mapped file."""
    timeout_seconds: float = 60.0
    """A worker that is silent in a collective for longer is taken for dead."""
    start_seconds: float = 60.0
    """All workers must have met by then."""
    server: Server = DEFAULT
    """How the center is served, for strategies that have one."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"workers={self.workers}: a run needs at least one worker.")


def run(
    job: Job, source: Any, on: Local, watch: Watch, serve: Serve | None = None
) -> tuple[list[pa.RecordBatch], Collected | None]:
    """Run the job; returns the results of all workers, as `results.RESULT` rows, and what the servers hold if there are any."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    job = replace(job, threads=on.threads or max(1, cores // on.workers), max_memory_bytes=on.max_memory_bytes)
    if isinstance(source, FrameSource):
        from firesteel.data.frame import to_table

        source = TableSource(to_table(source.frame, source.columns), source.columns)
    gpus = torch.cuda.device_count() if job.device != "cpu" and torch.cuda.device_count() >= on.workers else 0
    store = serve_store("127.0.0.1")
    meetings = [
        Meeting(rank, on.workers, "127.0.0.1", store.port, job.secret, on.timeout_seconds, on.start_seconds)
        for rank in range(on.workers)
    ]
    board = StoreBoard(store, job.secret, job.key)
    hosting = serve("127.0.0.1", store, store.port) if serve else contextlib.nullcontext()
    with hosting as hosts, tempfile.TemporaryDirectory(prefix="firesteel-") as folder:
        if hosts is not None:
            job = replace(job, work=hosts.work)
        _ = Path(folder, "job.pkl").write_bytes(cloudpickle.dumps((job, meetings, _to_file(source, folder), gpus)))

        def tick(board: Board) -> None:
            if hosts is not None:
                hosts.tick(board, job.epochs)
            watch(board)

        _wait(folder, on.workers, board, tick, 3 if hosts is not None else 0)
        batches: list[pa.RecordBatch] = []
        for rank in range(on.workers):
            # mapped: the parts of a large network are read once, to be written to their places
            with pa.memory_map(os.path.join(folder, f"result-{rank}")) as file, pa.ipc.open_stream(file) as reader:
                batches += list(reader)
        return batches, hosts.collect() if hosts is not None else None


def _to_file(source: TableSource | ParquetSource, folder: str) -> TableSource | ParquetSource | Any:
    """A table goes to a file that the workers map, so that it is in memory once."""
    if isinstance(source, ParquetSource):
        return source
    from firesteel.data.source import MappedSource

    path = os.path.join(folder, "data.arrow")
    table = source.table.select(source.columns.needed())
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return MappedSource(path, source.columns)


def _wait(folder: str, workers: int, board: StoreBoard, watch: Watch, retries: int) -> None:
    """Start the workers and wait for them; each that a signal ends is started again up to `retries` times."""
    nursery = Nursery.get()
    for rank in range(workers):
        nursery.fork("firesteel.local.child:live", folder, rank)
    rank_of: dict[int, int] = {}
    ended: dict[int, int] = {}
    failed_at: float | None = None
    again = dict.fromkeys(range(workers), retries)
    patience = Patience()
    try:
        with plain_interrupts():
            while len(ended) < workers:
                try:
                    for event in nursery.news(folder, 0.1):
                        if "born" in event:
                            rank_of[event["born"]] = event["rank"]
                        elif event["status"] < 0 and again[rank_of[event["exit"]]]:
                            rank = rank_of.pop(event["exit"])
                            again[rank] -= 1
                            nursery.fork("firesteel.local.child:live", folder, rank)
                        else:
                            ended[rank_of[event["exit"]]] = event["status"]
                            if event["status"] and failed_at is None:
                                failed_at = time.monotonic()
                    if nursery.process.poll() is not None:
                        raise ClusterError(f"the process that starts workers ended with status {nursery.process.returncode}.")
                    if failed_at is not None and time.monotonic() - failed_at > 1.0:
                        break  # the others had a second to notice and to say why
                    patience.check()
                    watch(board)
                except KeyboardInterrupt as pressed:
                    patience.ask(board, pressed)
    finally:
        for pid, rank in rank_of.items():
            if rank not in ended:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    if failed_at is not None:
        raise_cause(failures_on(board, workers), _lost(ended))


def _lost(ended: dict[int, int]) -> str:
    killed = {rank: -status for rank, status in ended.items() if status < 0}
    said = [f"worker {rank} was ended by {signal.Signals(number).name}" for rank, number in sorted(killed.items())]
    if signal.SIGKILL in killed.values():
        said.append("SIGKILL often means that memory ran out: lower batch_size, max_memory_bytes or workers")
    return "; ".join(said) or "a worker ended without a word"


def new_secret() -> str:
    return secrets.token_hex(16)
