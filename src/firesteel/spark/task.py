"""What runs in each barrier task of a gang."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import pyarrow as pa

from firesteel.checkpoint import Board, Folder, StoreBoard
from firesteel.errors import ClusterError
from firesteel.failures import Failed, describe
from firesteel.job import Job
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


def task(gang: Gang) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function for `mapInArrow(..., barrier=True)`."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import BarrierTaskContext

        context = BarrierTaskContext.get()
        rank = context.partitionId()
        try:
            yield from _run(gang, context, rank, batches)
        except Failed:
            raise
        except BaseException as error:
            raise Failed(describe(error, rank)) from None

    return run


def _run(gang: Gang, context: Any, rank: int, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    infos = context.getTaskInfos()
    if len(infos) != gang.workers:
        raise ClusterError(
            f"Spark made {len(infos)} tasks where {gang.workers} workers were asked for: the DataFrame is empty, or with "
            "shuffle=False it does not have one partition for each worker."
        )
    own = infos[rank].address.rsplit(":", 1)[0].strip("[]")
    if gang.host is not None:
        host, port = gang.host, gang.port
        store = open_store(host, port, gang.start_seconds)
        own = None
    else:
        served = serve_store(own) if rank == 0 else None
        address = next(a for a in context.allGather(f"{own}|{served.port}" if served else "") if a)
        host, _, number = address.rpartition("|")
        port = int(number)
        store = served or open_store(host, port, gang.start_seconds)
    meeting = Meeting(rank, gang.workers, host, port, gang.secret, gang.timeout_seconds, gang.start_seconds, own_host=own)
    resources = context.resources()
    gpu = f"cuda:{resources['gpu'].addresses[0]}" if "gpu" in resources else None
    board: Board | None = StoreBoard(store, gang.secret) if gang.host is not None else _notes(gang)
    yield from run_worker(_unpacked(gang.job), meeting, batches, board, store, gpu)


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
