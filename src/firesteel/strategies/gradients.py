"""Strategies that average gradients: one big batch, spread over the workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from firesteel.errors import UsageError
from firesteel.net.protocol import Net, Vec, WireType
from firesteel.worker import Worker


@final
@dataclass(frozen=True)
class SyncSGD:
    r"""Average the gradient at every step (all-reduce).

    \( g = \sum_k n_k g_k / \sum_k n_k \), with \(n_k\) the rows (or the sum of weights) of worker k's batch: exactly
    the gradient of one big batch. Slices of the gradient are posted while the backward pass still runs.
    """

    bucket_bytes: int = 25 * 2**20
    """Size of the slices in bytes, > 0. Smaller ones overlap earlier, but each costs a message's latency."""
    wire: WireType | None = None
    """Round gradients to "bfloat16" or "float16" where they are sent: half the bytes, about 3 or 4 digits."""

    def __post_init__(self) -> None:
        if self.bucket_bytes < 1:
            raise UsageError(f"SyncSGD(bucket_bytes={self.bucket_bytes}): a slice has at least one byte.")

    async def run(self, worker: Worker, net: Net) -> Vec:
        for _, batch in worker.steps():
            posted = []

            def post(part: slice, batch=batch, posted=posted) -> None:
                posted.append((part, net.all_reduce(worker.grads[part], weight=batch.weight, wire=self.wire)))

            grad = worker.gradient(batch, ready=post, bucket_bytes=self.bucket_bytes)
            for part, pending in posted:
                mean = await pending  # [part]
                if mean.data_ptr() != grad[part].data_ptr():
                    grad[part] = mean
            worker.step(grad)
            net.publish(worker.params)
        return worker.params
