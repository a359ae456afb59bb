"""Layers in parts: NeuronParallel beside PyTorch's own `parallelize_module`, and Firesteel's way of running the latter.

Two processes with one thread each train 784-4096-4096-10 on batches of 256 rows. PyTorch's side is a plain script, whose
processes have all rows already; Firesteel's workers have 128 rows of each batch and tell each other. Sides take turns.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import firesteel
from benchmarks import report
from firesteel.net.meeting import open_store, serve_store

SIZES = (784, 4096, 4096, 10)
PLANS = {
    "colwise, rowwise, whole": {"layers.0": "colwise", "layers.2": "rowwise"},
    "gathered, colwise, rowwise": {"layers.0": "colwise_rep", "layers.2": "colwise", "layers.4": "rowwise"},
}
_WORKERS = 2


ALONE, OWN = "Single, one worker", "NeuronParallel"
FASTER, SHARE = 1.5, 0.8  # than one worker; of PyTorch's


def compared(steps: int, rounds: int, batch: int) -> dict[str, list[float]]:
    """Seconds of a step of each side, a round at a time."""
    sides: dict[str, Callable[[], float]] = {
        ALONE: lambda: ours(firesteel.Single(), steps, batch, 1),
        OWN: lambda: ours(firesteel.NeuronParallel(), steps, batch),
        **{
            f"TensorParallel: {name}": (lambda p=p: ours(firesteel.TensorParallel(p), steps, batch))
            for name, p in PLANS.items()
        },
        **{f"PyTorch: {name}": (lambda p=p: theirs(p, steps, batch)) for name, p in PLANS.items()},
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(side())
            print(name, found[name][-1], flush=True)
    return found


def ours(strategy: Any, steps: int, batch: int, workers: int = _WORKERS) -> float:
    """Seconds of a step, the median of those after the second."""
    run = firesteel.train(
        model,
        rows(batch * 4),
        strategy=strategy,
        on=firesteel.Local(workers, threads=1),
        optimizer=firesteel.SGD(lr=0.01),
        batch_size=batch // workers,
        max_steps=steps + 2,
        validation=None,
        progress="none",
    )
    times = [e["seconds"] for e in run.trace.to_pylist() if e["kind"] == "step" and e["rank"] == 0]
    return statistics.median(np.diff(times)[1:])


def theirs(plan: dict[str, str], steps: int, batch: int) -> float:
    store, context = serve_store("127.0.0.1"), mp.get_context("spawn")
    said: Any = context.SimpleQueue()
    members = [context.Process(target=_member, args=(r, store.port, plan, steps, batch, said)) for r in range(_WORKERS)]
    for member in members:
        member.start()
    seconds = said.get()
    for member in members:
        member.join()
    return seconds


def model() -> nn.Module:
    return firesteel.models.MLP(*SIZES)


def rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.standard_normal((n, SIZES[0])).astype(np.float32), draw.integers(0, SIZES[-1], n)


def _member(rank: int, port: int, plan: dict[str, str], steps: int, batch: int, said: Any) -> None:
    """A training loop as PyTorch's tutorials have it."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.set_num_threads(1)
    _ = torch.set_flush_denormal(True)
    dist.init_process_group("gloo", store=open_store("127.0.0.1", port, 20), rank=rank, world_size=_WORKERS)
    make: Any = {
        "colwise": ColwiseParallel,
        "colwise_rep": lambda: ColwiseParallel(output_layouts=Replicate()),
        "rowwise": RowwiseParallel,
    }
    _ = torch.manual_seed(0)
    module = parallelize_module(model(), init_device_mesh("cpu", (_WORKERS,)), {n: make[s]() for n, s in plan.items()})
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    x, y = (torch.from_numpy(each) for each in rows(batch * 4))
    ends = [time.perf_counter()]
    for step in range(steps + 2):
        index = torch.arange(step * batch, (step + 1) * batch) % len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x[index]), y[index]).backward()
        optimizer.step()
        ends.append(time.perf_counter())
    if rank == 0:
        said.put(statistics.median(np.diff(ends)[2:]))
    dist.destroy_process_group()


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--steps", type=int, default=8)
    flags.add_argument("--rounds", type=int, default=5)
    given = flags.parse_args()
    batch = 256
    seconds = compared(given.steps, given.rounds, batch)
    best = [min(each) for each in zip(*(s for name, s in seconds.items() if name.startswith("PyTorch")), strict=True)]

    def against(name: str, others: list[float]) -> list[float]:
        return [b / a for a, b in zip(seconds[name], others, strict=True)]

    table = []
    for name, each in seconds.items():
        alone, share = against(name, seconds[ALONE]), statistics.median(against(name, best))
        spread = f"{min(alone):.2f} - {max(alone):.2f}"
        cells = [name, f"{batch / statistics.median(each):,.0f}", f"{statistics.median(alone):.2f}", spread, f"{share:.2f}"]
        table.append(cells)
    faster, share = statistics.median(against(OWN, seconds[ALONE])), statistics.median(against(OWN, best))
    text = "\n\n".join(
        [
            "## Two parts beside one worker, and beside PyTorch's",
            f"Samples per second of {'-'.join(map(str, SIZES))} on batches of {batch} rows, SGD, one thread a worker; "
            f"`make bench-parallelize`. Medians of {given.rounds} rounds in which all take turns. PyTorch's side is a plain "
            "script with `parallelize_module` whose processes have all rows already; Firesteel's workers have half of each "
            "batch and tell each other.",
            report.table(["", "samples/s", "times one worker", "range", "of PyTorch's better plan"], table),
            f"The bars are {FASTER} times one worker ({faster:.2f}, {'met' if faster >= FASTER else 'NOT MET'}) and {SHARE} of "
            f"PyTorch's ({share:.2f}, {'met' if share >= SHARE else 'NOT MET'}).",
        ]
    )
    print(text)
    report.write("bench-parallelize", text)


if __name__ == "__main__":
    main()
