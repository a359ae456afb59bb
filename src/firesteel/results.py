"""What a worker keeps while it trains and hands over at the end."""

from __future__ import annotations

import hashlib
import math
import mmap
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import pyarrow as pa
import torch
from torch import Tensor

from firesteel.checkpoint import raw
from firesteel.errors import StrategyError
from firesteel.losses import METRICS, SMALLER_IS_BETTER
from firesteel.net.protocol import Vec
from firesteel.trace import Trace

RESULT = pa.schema([("kind", pa.string()), ("rank", pa.int32()), ("payload", pa.binary())])
CHUNK_BYTES = 8 * 2**20


@final
@dataclass
class Kept:
    """Published models that wait on disk to be evaluated when the clock no longer runs."""

    file: Any = field(default_factory=tempfile.TemporaryFile)
    marks: list[dict[str, Any]] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)

    def add(self, params: Vec, statistics: Vec, mark: dict[str, Any]) -> None:
        self.shapes.append(tuple(params.shape))
        self.marks.append(mark)
        for x in (params, statistics):
            self.file.write(raw(x))
        self._ends.append(self.file.tell())

    def cut(self, count: int) -> None:
        """Forget all but the first `count`."""
        self._ends = self._ends[:count]
        _ = self.file.truncate(self._ends[-1] if count else 0)
        _ = self.file.seek(0, 2)
        del self.marks[count:], self.shapes[count:]

    def read(self, dtype: torch.dtype, statistics: int, first: int = 0) -> Iterator[tuple[int, Vec, Vec]]:
        """Each model from the `first` one on with its number, in the order in which they were published.

        They lie in the file and are read when used; they may not be written to.
        """
        self.file.flush()
        at = self._ends[first - 1] if first else 0
        for number, shape in enumerate(self.shapes[first:], first):
            numel = math.prod(shape)
            if self._ends[number] == at:  # of a worker that has nothing of a network in parts
                nothing = torch.empty(0, dtype=dtype)
                yield number, nothing.view(shape), nothing
                continue
            data = mmap.mmap(self.file.fileno(), self._ends[number], access=mmap.ACCESS_READ)
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of PyTorch: that they may not
                flat = torch.frombuffer(data, dtype=dtype, offset=at, count=numel + statistics)
            at = self._ends[number]
            yield number, flat[:numel].view(shape), flat[numel:]


def finite(params: Vec) -> bool:
    """Whether all are numbers; a few at a time, as the question takes more memory than what it is about."""
    return all(bool(torch.isfinite(some).all()) for some in params.reshape(-1).split(2**18))


def digest(params: Vec) -> bytes:
    """Tells published parameters from others without keeping them."""
    return hashlib.blake2b(raw(params), digest_size=16, salt=str(params.dim()).encode()).digest()


_ADDED_UP = ("samples", "loss_sum", "weight_sum", "bytes", "waited")


def mark_of(trace: Trace, step: int, figures: dict[str, float] | None = None) -> dict[str, Any]:
    """Where a worker stands when it publishes; `figures` are the strategy's own."""
    return {
        "figures": dict(figures or {}),
        "step": step,
        "seconds": trace.clock.now(),
        "samples": trace.samples,
        "loss_sum": trace.loss_sum,
        "weight_sum": trace.weight_sum,
        "bytes": trace.bytes_sent,
        "rounds": trace.rounds,
        "waited": trace.waited_seconds,
    }


def to_add_up(marks: list[dict[str, Any]]) -> Tensor:
    """What is summed over the workers, float64 [marks, 5]."""
    return torch.tensor([[m[name] for name in _ADDED_UP] for m in marks], dtype=torch.float64)


def check_result(result: object, rank: int, size: int) -> None:
    """Raise StrategyError unless a strategy's `run` has returned parameters: [P], or [M, P] of an ensemble."""
    if isinstance(result, Tensor) and result.dim() in (1, 2) and result.shape[-1] == size:
        return
    got = f"a tensor of shape {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
    raise StrategyError(
        f"the strategy's run returned {got} on worker {rank}. End it with the final parameters, [{size}] (or [M, {size}], an "
        "ensemble of M members): return worker.params, say."
    )


def history_row(
    mark: dict[str, Any], total: Tensor, before: Tensor, epoch_steps: int, workers: int, scores: dict[str, float]
) -> dict[str, Any]:
    """A row of `Run.history`: worker 0's mark, sums over all workers here and at the row before, scores."""
    weight = float(total[2] - before[2])
    return {
        "seconds": mark["seconds"],
        "step": int(mark["step"]),
        "epoch": mark["step"] / epoch_steps,
        "samples": int(total[0]),
        "train_loss": float(total[1] - before[1]) / weight if weight else None,
        **scores,
        "bytes_sent": int(total[3]),
        "waited_seconds": float(total[4]) / workers,
        "rounds": int(mark["rounds"]),
        **mark["figures"],
    }


def best_of(scores: list[dict[str, float]], metrics: Iterable[str]) -> int:
    """The number of the model that scored best in validation, of equals the last; the last of all where none was scored.

    By the first metric whose name says which way is better, else by the loss.
    """
    metric = next((name for name in metrics if name in METRICS), "loss")
    sign = -1.0 if metric in SMALLER_IS_BETTER else 1.0

    def merit(number: int) -> tuple[float, int]:
        value = scores[number].get(f"validation_{metric}", math.nan)
        return (-math.inf if math.isnan(value) else sign * value), number

    return max(range(len(scores)), key=merit)


def ipc(table: pa.Table) -> bytes:
    """A table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def rows(kind: str, rank: int, payload: bytes) -> Iterator[pa.RecordBatch]:
    """One result, cut into rows that Arrow and Spark carry easily."""
    for start in range(0, max(1, len(payload)), CHUNK_BYTES):
        yield row(kind, rank, payload[start : start + CHUNK_BYTES])


def row(kind: str, rank: int, payload: bytes | memoryview) -> pa.RecordBatch:
    """One row of `RESULT`."""
    columns = [pa.array([kind]), pa.array([rank], pa.int32()), pa.array([payload], pa.binary())]
    return pa.record_batch(columns, schema=RESULT)


def payloads(batches: list[pa.RecordBatch]) -> Iterator[tuple[str, int, pa.Buffer]]:
    """Kind, rank and payload of every row; payloads are not copied."""
    for batch in batches:
        for kind, rank, payload in zip(*(batch.column(i) for i in range(3)), strict=True):
            yield kind.as_py(), rank.as_py(), payload.as_buffer()


def by_part(batches: list[pa.RecordBatch]) -> dict[tuple[str, int], bytes]:
    """The workers' results by kind and rank, put together again; without the pieces of a network, which are for a file."""
    parts: dict[tuple[str, int], list[pa.Buffer]] = {}
    for kind, rank, payload in payloads(batches):
        if not kind.startswith("piece/"):
            parts.setdefault((kind, rank), []).append(payload)
    return {key: b"".join(chunks) for key, chunks in parts.items()}
