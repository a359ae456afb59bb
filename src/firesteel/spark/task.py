"""What runs in each barrier task of a gang."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, final

import pyarrow as pa

from firesteel.checkpoint import Board, Folder, StoreBoard
from firesteel.errors import ClusterError
from firesteel.failures import Failed, describe
from firesteel.job import Job
from firesteel.net.hosting import Hosts, Serve, heard, to_rows, told
from firesteel.net.meeting import Meeting, open_store, serve_store
from firesteel.process import run_worker


@final
@dataclass(frozen=True)
class Gang:
    """How the tasks of one run find each other. `host` is None where the driver cannot be reached (Spark Connect)."""

    job: bytes  # a pickled Job, as Spark itself ships the user's own code
    workers: int
    host: str | None
    port: int
    secret: str
    timeout_seconds: float
    start_seconds: float
    notes: str | None  # a folder that the caller watches, if workers see it too
    barrier: bool  # whether all tasks run at once and know of each other
    serve: bytes | None  # a pickled `net.hosting.Serve`, where worker 0 hosts the servers


def task(gang: Gang) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function for `mapInArrow`."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import BarrierTaskContext, TaskContext

        context: Any = (BarrierTaskContext if gang.barrier else TaskContext).get()
        rank = context.partitionId()
        try:
            yield from _run(gang, context, rank, batches)
        except Failed:
            raise
        except BaseException as error:
            raise Failed(describe(error, rank)) from None

    return run


def _run(gang: Gang, context: Any, rank: int, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    own, host, port, store = None, gang.host or "", gang.port, None
    if gang.barrier:
        infos = context.getTaskInfos()
        if len(infos) != gang.workers:
            raise ClusterError(
                f"Spark made {len(infos)} tasks where {gang.workers} workers were asked for: the DataFrame is empty, or with "
                "shuffle=False it does not have one partition for each worker."
            )
        own = infos[rank].address.rsplit(":", 1)[0].strip("[]")
    if gang.host is not None:
        store = open_store(host, port, gang.start_seconds)
        own = None
    elif gang.barrier:
        served = serve_store(own or "") if rank == 0 else None
        address = next(a for a in context.allGather(f"{own}|{served.port}" if served else "") if a)
        host, _, number = address.rpartition("|")
        port = int(number)
        store = served or open_store(host, port, gang.start_seconds)
    meeting = Meeting(rank, gang.workers, host, port, gang.secret, gang.timeout_seconds, gang.start_seconds, own_host=own)
    resources = context.resources()
    gpu = f"cuda:{resources['gpu'].addresses[0]}" if "gpu" in resources else None
    job = _unpacked(gang.job)
    board: Board | None = StoreBoard(store, gang.secret, job.key) if gang.host is not None else _notes(gang)
    if gang.serve is None:
        yield from run_worker(job, meeting, batches, board, store, gpu)
    else:
        yield from _run_served(pickle.loads(gang.serve), context, job, meeting, batches, board, store, gpu)


def _run_served(
    serve: Serve,
    context: Any,
    job: Job,
    meeting: Meeting,
    batches: Iterator[pa.RecordBatch],
    board: Board | None,
    store: Any,
    gpu: Any,
) -> Iterator[pa.RecordBatch]:
    """A worker of a gang whose worker 0 hosts the servers, and hands over at the end what they hold."""
    secret, over = meeting.secret, threading.Event()
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(serve(meeting.host, store, meeting.port)) if meeting.rank == 0 else None
        if hosts is not None:
            watched = board or StoreBoard(store, secret, job.key)
            threading.Thread(target=_tick, args=(hosts, watched, job.epochs, over), daemon=True).start()
        # The run's token goes the way that Spark's own messages go.
        work = heard(next(t for t in context.allGather(told(hosts.work) if hosts is not None else "") if t))
        yield from run_worker(replace(job, work=work), meeting, batches, board, store, gpu)
        store.set(f"{secret}/done/{meeting.rank}", b"")
        if hosts is not None:
            store.set_timeout(timedelta(days=7))  # the others may have much more to do; if one dies, Spark ends this task too
            store.wait([f"{secret}/done/{rank}" for rank in range(meeting.size)])
            over.set()
            yield from to_rows(hosts.collect())


def _tick(hosts: Hosts, board: Board, epochs: float | None, over: threading.Event) -> None:
    while not over.wait(0.5):
        with contextlib.suppress(Exception):  # a folder that does not answer must not end the run
            hosts.tick(board, epochs)


def _unpacked(job: bytes) -> Job:
    try:
        return pickle.loads(job)
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"the Python of the executors has no package '{error.name}', which the model, the strategy or a loss comes from. "
            "Install it there, or ship it: see docs/spark.md, 'Packages on executors'."
        ) from None


def _notes(gang: Gang) -> Board | None:
    if gang.notes is None:
        return None
    folder = Folder(gang.notes)
    return folder if folder.get("run.json") is not None else None
