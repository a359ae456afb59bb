"""The pipeline beside `torch.distributed.pipelining`: two processes of one thread each, gloo over loopback.

Both train the same layers, cut at the same place, on the same rows in the same micro-batches. In one pair of processes the
two take turns, some seconds each. Ours begins with rows that are spread over both workers, as a run's are; theirs with all
inputs at the first stage and all labels at the last.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

import firesteel
from benchmarks import report
from firesteel.data.batches import Plan
from firesteel.data.columns import Columns
from firesteel.data.shard import Shard
from firesteel.losses import resolve_loss
from firesteel.net.control import Control
from firesteel.net.meeting import Meeting, join, leave, serve_store
from firesteel.parts.network import network
from firesteel.trace import Trace
from firesteel.worker import Worker

WORKERS, ROWS, MICRO, BAR = 2, 4096, 8, 0.9  # rows of each worker
SCHEDULES = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


def mlp() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()),
        *(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)),
    )


def cnn() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(2, 16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 48, 3, padding=1), nn.GroupNorm(4, 48), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(48 * 49, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


# name: the network, where its second stage begins, rows of a worker's batch
WORKLOADS: dict[str, tuple[Callable[[], nn.Sequential], int, int]] = {"MLP": (mlp, 3, 128), "CNN": (cnn, 5, 128)}


def plans(batch_size: int) -> list[Plan]:
    return [Plan(ROWS, ROWS, batch_size, 10**9, 0, rank) for rank in range(WORKERS)]


def ours(rank: int, name: str, schedule: str, x: Tensor, y: Tensor, port: int) -> Iterator[float]:
    """Train; yields each step's loss."""
    build, cut, batch_size = WORKLOADS[name]
    net = join(Meeting(rank, WORKERS, "127.0.0.1", port, "pipelining"), Trace(rank), Control(), torch.device("cpu"))
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    shard = Shard(ROWS, Columns(), values=x[own], target=y[own])
    strategy: Any = firesteel.Pipeline(schedule=schedule, micro_batches=MICRO, cuts=(cut,))  # pyright: ignore[reportArgumentType]
    _ = torch.manual_seed(0)
    numbers = build().state_dict()
    chain = network(build().to("meta"), (x[:2],), "Pipeline")
    part = strategy.part(chain, shard.block(0, 0), rank, WORKERS).to_empty(device="cpu")
    with torch.no_grad():
        for own_name, p in part.named_parameters():
            _ = p.copy_(part.pieces[own_name].cut.take(numbers[part.pieces[own_name].name]))
    part.bind(net)
    optimizer = firesteel.SGD(lr=0.01, momentum=0.9)
    worker = Worker(part.train(), resolve_loss("cross_entropy", False), optimizer, shard, plans(batch_size)[rank])
    for _, batch in worker.steps():
        worker.step(worker.gradient(batch))
        net.publish(worker.params)
        yield worker.trace.loss
    leave(net)


def theirs(rank: int, name: str, schedule: str, x: Tensor, y: Tensor, folder: str) -> Iterator[float]:
    """The same; each step's loss is the last stage's to tell."""
    build, cut, batch_size = WORKLOADS[name]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORKERS)
    _ = torch.manual_seed(0)
    layers = build()
    module = (layers[:cut], layers[cut:])[rank]
    stage = PipelineStage(module, rank, WORKERS, torch.device("cpu"))
    run = SCHEDULES[schedule](stage, MICRO, loss_fn=nn.functional.cross_entropy)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    both, epoch, orders = plans(batch_size), -1, list[Tensor]()
    for step in itertools.count(1):
        if both[0].epoch(step) != epoch:
            epoch = both[0].epoch(step)
            orders = [plan.order(epoch) + plan.rank * ROWS for plan in both]
        start, stop = both[0].bounds(step)
        index = torch.cat([order[start:stop] for order in orders])
        optimizer.zero_grad()
        losses: list[Tensor] = []
        if rank == 0:
            _ = run.step(x[index], return_outputs=False)
        else:
            _ = run.step(target=y[index], losses=losses, return_outputs=False)
        optimizer.step()
        yield float(torch.stack(losses).detach().mean()) if losses else 0.0


def member(rank: int, name: str, schedule: str, port: int, folder: str, turns: int, seconds: float, out: Any) -> None:
    """One of the two processes: turns of ours and theirs; the last stage reports rows per second of each turn."""
    torch.set_num_threads(1)
    _ = torch.set_flush_denormal(True)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(WORKERS * ROWS, 784, generator=draw)
    y = torch.randint(0, 10, (WORKERS * ROWS,), generator=draw)
    sides = {"theirs": theirs(rank, name, schedule, x, y, folder), "ours": ours(rank, name, schedule, x, y, port)}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    first = {side: [next(losses) for _ in range(3)] for side, losses in sides.items()}
    if rank == WORKERS - 1:
        torch.testing.assert_close(first["ours"], first["theirs"], rtol=1e-4, atol=0)  # they do the same
    began = time.perf_counter()
    for _ in range(3):
        _ = next(sides["theirs"])
    steps = torch.tensor([max(int(seconds * 3 / (time.perf_counter() - began)), 3)])
    dist.broadcast(steps, 0)
    for _ in range(turns):
        for side, losses in sides.items():
            dist.barrier()
            began = time.perf_counter()
            for _ in range(int(steps)):
                _ = next(losses)
            dist.barrier()
            rates[side].append(WORKERS * WORKLOADS[name][2] * int(steps) / (time.perf_counter() - began))
    if rank == WORKERS - 1:
        out.put(rates)
    dist.destroy_process_group()


def measured(name: str, schedule: str, turns: int, seconds: float) -> dict[str, list[float]]:
    store, spawn = serve_store("127.0.0.1"), multiprocessing.get_context("spawn")
    out = spawn.Queue()
    with tempfile.TemporaryDirectory() as folder:
        given = (name, schedule, store.port, folder, turns, seconds, out)
        members = [spawn.Process(target=member, args=(rank, *given)) for rank in range(WORKERS)]
        for each in members:
            each.start()
        rates = out.get(timeout=60 + 10 * turns * seconds)
        for each in members:
            each.join()
    return rates


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--turns", type=int, default=5, help="of each side")
    flags.add_argument("--seconds", type=float, default=2.0, help="of a turn, about")
    given = flags.parse_args()
    table, worst = [], 9.9
    for name, schedule in itertools.product(WORKLOADS, SCHEDULES):
        rates = measured(name, schedule, given.turns, given.seconds)
        shares = [a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)]
        share = statistics.median(shares)
        worst = min(worst, share if schedule == "1f1b" else worst)
        mine, others = (f"{statistics.median(rates[side]):,.0f}" for side in ("ours", "theirs"))
        table.append([f"{name}, {schedule}", mine, others, f"{share:.2f}", f"{min(shares):.2f} .. {max(shares):.2f}"])
        print(table[-1], flush=True)
    text = "\n\n".join(
        [
            "## The pipeline",
            f"Samples per second of two stages, beside `torch.distributed.pipelining`: two processes of a thread each on this "
            f"machine, gloo over loopback, the same layers, rows and {MICRO} micro-batches; medians of {given.turns} turns "
            "each, one after the other in the same processes; `make bench-pipeline`. MLP: 784-1024-1024-1024-10; CNN: two "
            "convolutions (16, 48 channels) with group norms and a head; batches of 256 rows.",
            report.table(["", "ours", "theirs", "ours / theirs", "range"], table),
            f"The bar is {BAR} of theirs with 1f1b; the lowest is {worst:.2f}, {'met' if worst >= BAR else 'NOT MET'}.",
        ]
    )
    print(text)
    report.write("bench-pipeline", text)


if __name__ == "__main__":
    main()
