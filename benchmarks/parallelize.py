"""Layers in parts: NeuronParallel beside PyTorch's own `parallelize_module`, and Firesteel's way of running the latter.

Two processes with one thread each train 784-4096-4096-10 on batches of 256 rows. PyTorch's side is a plain script, whose
processes have all rows already; Firesteel's workers have 128 rows of each batch and tell each other. Sides take turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import firesteel
from firesteel.net.meeting import open_store, serve_store

SIZES = (784, 4096, 4096, 10)
PLANS = {
    "colwise, rowwise, whole": {"layers.0": "colwise", "layers.2": "rowwise"},
    "gathered, colwise, rowwise": {"layers.0": "colwise_rep", "layers.2": "colwise", "layers.4": "rowwise"},
}
_WORKERS = 2


def compared(steps: int = 8, rounds: int = 3, batch: int = 256) -> dict[str, Any]:
    """Samples a second of each side, medians over rounds; and the median ratios to PyTorch's better plan."""
    sides: dict[str, Callable[[], float]] = {
        "NeuronParallel": lambda: ours(firesteel.NeuronParallel(), steps, batch),
        **{
            f"TensorParallel: {name}": (lambda p=p: ours(firesteel.TensorParallel(p), steps, batch))
            for name, p in PLANS.items()
        },
        **{f"PyTorch: {name}": (lambda p=p: theirs(p, steps, batch)) for name, p in PLANS.items()},
    }
    seconds = [{name: side() for name, side in sides.items()} for _ in range(rounds)]
    theirs_best = [min(s for name, s in each.items() if name.startswith("PyTorch")) for each in seconds]
    return {
        "samples/s": {name: round(batch / statistics.median(each[name] for each in seconds)) for name in sides},
        "ratio": {
            name: round(statistics.median(best / each[name] for each, best in zip(seconds, theirs_best, strict=True)), 3)
            for name in sides
            if not name.startswith("PyTorch")
        },
        "torch": torch.__version__,
    }


def ours(strategy: Any, steps: int, batch: int) -> float:
    """Seconds of a step, the median of those after the second."""
    run = firesteel.train(
        model,
        rows(batch * 4),
        strategy=strategy,
        on=firesteel.Local(workers=_WORKERS),
        optimizer=firesteel.SGD(lr=0.01),
        batch_size=batch // _WORKERS,
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


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    _ = arguments.add_argument("--steps", type=int, default=8)
    _ = arguments.add_argument("--rounds", type=int, default=3)
    chosen = arguments.parse_args()
    print(json.dumps(compared(chosen.steps, chosen.rounds), indent=2))
