"""What a worker process is started for. Local and Spark workers both run exactly this."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import torch

from firesteel.center_process import CenterProcess, score
from firesteel.checkpoint import Board
from firesteel.errors import Fenced, OutOfMemory, PeerLost, UsageError
from firesteel.failures import Failed, describe, known_cause
from firesteel.gang_process import GangProcess
from firesteel.job import Apart, Job, Score
from firesteel.net.meeting import Meeting
from firesteel.net.protocol import splits


def run_worker(
    job: Job,
    meeting: Meeting,
    batches: Iterable[pa.RecordBatch],
    board: Board | None,
    store: Any = None,
    device: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """Do what the job asks for, and yield results as rows of `RESULT`.

    An error is left on the board and raised as `Failed`.
    """
    try:
        place = _device(job, device)
        if isinstance(job.work, Apart):
            if board is not None and not meeting.rank:
                board.put("started", b"")
            yield from CenterProcess(job, meeting, store, place).run(batches)
        elif isinstance(job.work, Score):
            yield from score(job, meeting, batches, place)
        else:
            yield from GangProcess(job, meeting, board, store, place).run(batches)
    except BaseException as raised:
        error = refused_memory(raised, job) or raised
        failure = describe(error, meeting.rank)
        if isinstance(error, PeerLost):
            failure = known_cause(store, meeting.secret) or failure
        if not isinstance(error, Fenced):  # it has been replaced, and nobody waits for its word
            with contextlib.suppress(Exception):
                text = json.dumps(failure).encode()
                if board is not None:
                    board.put(f"failure-{meeting.rank}", text)
                if store is not None:
                    store.set(f"{meeting.secret}/cause", text)
        raise Failed(failure) from None


def refused_memory(error: BaseException, job: Job) -> OutOfMemory | None:
    """The error to show where memory ran out, as PyTorch, NumPy and Python each say it in their own way."""
    refused = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    if not refused and not (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return None
    if splits(job.strategy):
        way_out = "Take more workers, of which each has a smaller part"
    else:
        way_out = (
            "Every worker has all parameters, gradients and the optimizer's state: NeuronParallel, Pipeline, Grid or "
            "FullyShard give it only a part"
        )
    said = next(iter(str(error).splitlines()), "") or type(error).__name__
    return OutOfMemory(f"memory ran out: {said.rstrip('. ')}. {way_out}; or lower batch_size.")


def _device(job: Job, offered: str | None) -> torch.device:
    if splits(job.strategy) or job.device == "cpu" or (job.device == "auto" and not (offered and torch.cuda.is_available())):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError("device='cuda' was asked for, but PyTorch sees no GPU on this worker.")
    device = torch.device(offered or "cuda:0")
    torch.cuda.set_device(device)
    return device
