"""A network that does not fit into a worker: what each worker is allowed to take, what it takes, and who fails.

Each worker process is given a limit (RLIMIT_DATA) of so many bytes beyond what it has when it begins: more than a share of the
network needs, less than all of it. `Single` must fail, with an error that says why; `NeuronParallel` must train.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

import firesteel
from benchmarks import report

SIZES = (784, *[4096] * 6, 10)
NARROW = (784, *[16] * 6, 10)  # takes next to nothing: what is left is Python's, PyTorch's and the rows'
ROWS, BATCH, STEPS = 4096, 128, 6  # the batch of a step is of all workers together
STATE = 4  # parameters, gradients, and Adam's two moments


@final
@dataclass(frozen=True)
class Limited:
    """Makes the network, in a worker after limiting that worker's memory."""

    sizes: tuple[int, ...]
    more_bytes: int
    caller: int = field(default_factory=os.getpid)

    def __call__(self) -> Any:
        if os.getpid() != self.caller:
            lines = Path("/proc/self/status").read_text().splitlines()
            now = next(int(line.split()[1]) for line in lines if line.startswith("VmData")) * 1024
            resource.setrlimit(resource.RLIMIT_DATA, (now + self.more_bytes,) * 2)
        return firesteel.models.MLP(*self.sizes)


def activations_bytes(rows: int) -> int:
    """Of a forward pass with all rows: inputs, and what goes into and comes out of each activation."""
    return 4 * rows * (SIZES[0] + 2 * sum(SIZES[1:-1]) + SIZES[-1])


def trained(strategy: Any, workers: int, more_bytes: int, sizes: tuple[int, ...] = SIZES) -> tuple[list[int], float]:
    """Bytes that each worker held at most beyond what it began with, and the last loss."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((ROWS, SIZES[0]), np.float32), rng.integers(0, 10, ROWS)
    run = firesteel.train(
        Limited(sizes, more_bytes),
        data,
        strategy=strategy,
        on=firesteel.Local(workers, threads=1),
        batch_size=BATCH // workers,
        max_steps=STEPS,
        validation=None,
        progress="none",
    )
    return [m["peak"] - m["before"] for m in run.settings["memory_bytes"]], run.metrics["train_loss"]


def main() -> None:
    with torch.device("meta"):
        numbers = sum(p.numel() for p in firesteel.models.MLP(*SIZES).parameters())
    whole = STATE * 4 * numbers
    table: list[list[str]] = []
    met = True
    for workers in (2, 4):
        share, room = whole // workers, activations_bytes(BATCH)
        bar = round(1.25 * share) + room
        limit = bar + 64 * 2**20  # Python's and PyTorch's own, and rows
        try:
            _ = trained(firesteel.Single(), 1, limit)
            raise SystemExit(f"Single trains within {limit / 1e6:.0f} MB: the limit does not limit.")
        except firesteel.OutOfMemory as error:
            said = str(error).splitlines()[0]
        peaks, loss = trained(firesteel.NeuronParallel(), workers, limit)
        few, _ = trained(firesteel.NeuronParallel(), workers, limit, NARROW)
        peaks = [most - least for most, least in zip(peaks, few, strict=True)]
        met = met and max(peaks) <= bar
        cells = [f"{x / 1e6:.0f}" for x in (share, room, bar, *peaks)]
        table.append([str(workers), *cells[:3], ", ".join(cells[3:]), f"{loss:.3f}"])
        print(table[-1], said, flush=True)
    text = "\n\n".join(
        [
            "## A network that does not fit into a worker",
            f"A fully connected network of {numbers / 1e6:.1f} million parameters, which with gradients and Adam's moments "
            f"take {whole / 1e6:.0f} MB; batches of {BATCH} rows, {STEPS} steps; `make bench-memory`. Each worker may take "
            "(RLIMIT_DATA) what a share of it and the activations come to, and a quarter more. `Single` fails in both cases:",
            f"> {said}",
            report.table(["workers", "share, MB", "activations, MB", "bar, MB", "peak of each worker, MB", "loss"], table),
            "Peaks are of resident memory beyond that of the same run with layers of 16 units; the bar is 1.25 shares and the "
            f"activations: {'met' if met else 'NOT MET'}.",
        ]
    )
    print(text)
    report.write("bench-memory", text)


if __name__ == "__main__":
    main()
