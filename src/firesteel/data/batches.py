"""Which rows make up which batch: shuffled by index, seeded, and the same number of batches on every worker.

With n_k rows on worker k and n the most of any worker, an epoch has S = ceil(n / batch_size) batches. The fullest
worker cuts its rows at batch_size, 2 batch_size, ..., n; every other worker cuts at the same fractions of its own rows.
So each row is seen once an epoch whatever the partitions, the last partial batch counts, and no worker waits in a
collective for a batch that never comes. A batch can be smaller than `batch_size`, or empty; means are weighted by rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from firesteel.randomness import generator


@final
@dataclass(frozen=True)
class Plan:
    """The batches of one worker over a whole run.

    >>> plan = Plan(rows=100, most_rows=130, batch_size=64, total_steps=6, seed=0, rank=0)
    >>> plan.epoch_steps, [len(plan.index(step)) for step in (1, 2, 3)]
    (3, [49, 49, 2])
    """

    rows: int  # of this worker
    most_rows: int  # of the worker that has most
    batch_size: int
    total_steps: int
    seed: int
    rank: int

    @property
    def epoch_steps(self) -> int:
        return -(-self.most_rows // self.batch_size)

    def epoch(self, step: int) -> int:
        """The epoch, from 0, to which a step (from 1) belongs."""
        return (step - 1) // self.epoch_steps

    def order(self, epoch: int) -> Tensor:
        """This worker's rows in the order in which the epoch visits them, int64 [rows]."""
        return torch.randperm(self.rows, generator=generator(self.seed, "shuffle", epoch, self.rank))

    def bounds(self, step: int) -> tuple[int, int]:
        """Where the step's batch starts and stops in the epoch's order."""
        first = (step - 1) % self.epoch_steps * self.batch_size
        last = min(first + self.batch_size, self.most_rows)
        return first * self.rows // self.most_rows, last * self.rows // self.most_rows

    def index(self, step: int) -> Tensor:
        """The rows of one step's batch, int64 [B]."""
        start, stop = self.bounds(step)
        return self.order(self.epoch(step))[start:stop]


def total_steps(most_rows: int, batch_size: int, epochs: float | None, max_steps: int | None) -> int:
    """Local steps of every worker in a run: `epochs` passes (a fraction is rounded up to a step), at most `max_steps`."""
    epoch_steps = -(-most_rows // batch_size)
    wanted = math.ceil(round(epochs * epoch_steps, 6)) if epochs is not None else max_steps
    assert wanted is not None  # one of the two is always set
    return min(wanted, max_steps) if max_steps is not None else wanted
