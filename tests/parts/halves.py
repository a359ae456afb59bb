"""A network in two halves, made by hand, and a strategy that only writes numbers which say who wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import cloudpickle
import pyarrow as pa
import torch
from torch import Tensor, nn

from firesteel.checkpoint import StoreBoard
from firesteel.data.source import stream
from firesteel.net.meeting import Meeting, open_store
from firesteel.parts.cuts import Cut, Piece
from firesteel.process import run_worker
from firesteel.results import RESULT

WORKERS = 4


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


@final
class Half(nn.Module):
    """Hidden units 0 .. 2 or 3 .. 5 of `network`; the last bias and the count of batches are shared."""

    def __init__(self, half: int) -> None:
        super().__init__()
        self.up: nn.Linear = nn.Linear(4, 3)
        self.norm: nn.BatchNorm1d = nn.BatchNorm1d(3)
        self.down: nn.Linear = nn.Linear(3, 2)
        own = ((3 * half, 3 * half + 3),)
        self.pieces: dict[str, Piece] = {
            "up.weight": Piece("0.weight", Cut((6, 4), 0, own)),
            "up.bias": Piece("0.bias", Cut((6,), 0, own)),
            **{
                f"norm.{name}": Piece(f"1.{name}", Cut((6,), 0, own))
                for name in ("weight", "bias", "running_mean", "running_var")
            },
            "norm.num_batches_tracked": Piece("1.num_batches_tracked", Cut(()), shared=True),
            "down.weight": Piece("3.weight", Cut((2, 6), 1, own)),
            "down.bias": Piece("3.bias", Cut((2,)), shared=True),
        }

        self.alone: bool = False

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.norm(self.up(x))))

    async def prepare(self, batch: Any) -> Any:
        return batch

    async def outputs(self, batch: Any) -> Tensor:
        return self(batch.inputs[0])


@final
@dataclass(frozen=True)
class Marking:
    """After step s, worker k's n-th own parameter is 1000 (k % 2) + 100 s + n, a shared one 100 s; its statistics are k."""

    hurried: bool = False
    """At the end, while models wait to be evaluated, somebody no longer waits."""

    def parts_of(self, workers: int) -> int:
        return 2

    def part(self, network: Any, nothing: Any, index: int, parts: int) -> nn.Module:
        return Half(index)

    async def run(self, worker: Any, net: Any) -> Tensor:
        for step, _ in worker.steps():
            _ = await net.all_reduce(torch.zeros(1))
            params = 1000.0 * (net.rank % 2) + 100 * step + torch.arange(worker.params.numel())
            for slot in worker.slots:
                if worker.module.pieces[slot.name].shared:
                    params[slot.offset : slot.offset + slot.numel] = 100.0 * step
            worker.params = params
            worker.buffers = torch.full_like(worker.buffers, float(net.rank))
            net.publish(worker.params)
        if self.hurried and net.rank == 0:
            net.control.stop_asked = 2.0
        return worker.params


def expected(steps: int) -> dict[str, Tensor]:
    """The whole that two workers with `Half(0)` and two with `Half(1)` leave, workers 0 and 2, 1 and 3 being replicas."""
    whole = dict(network().state_dict())
    for half in range(2):
        part = Half(half)
        at = 0
        for name, p in part.named_parameters():
            piece = part.pieces[name]
            numbers = 1000.0 * half + 100 * steps + torch.arange(at, at + p.numel())
            piece.cut.put(
                whole[piece.name], (torch.full_like(numbers, 100.0 * steps) if piece.shared else numbers).view(p.shape)
            )
            at += p.numel()
        for name in ("norm.running_mean", "norm.running_var"):
            part.pieces[name].cut.put(whole[part.pieces[name].name], torch.full((3,), half + 1.0))
    return whole


def member(rank: int, port: int, data: bytes, path: str) -> None:
    """The life of a worker; it leaves its results in a file."""
    torch.set_num_threads(1)
    job, source = cloudpickle.loads(data)
    meeting = Meeting(rank, WORKERS, "127.0.0.1", port, job.secret, timeout_seconds=30)
    store = open_store("127.0.0.1", port, 30)
    rows = run_worker(job, meeting, stream(source, rank, WORKERS), StoreBoard(store, job.secret, job.key), store)
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, RESULT) as out:
        for batch in rows:
            out.write_batch(batch)
