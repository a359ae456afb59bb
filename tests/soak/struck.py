"""Runs that are struck at a random moment, and the strategy that tells where its workers are."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import firesteel

X = np.random.default_rng(0).standard_normal((600, 6)).astype(np.float32)
Y = X[:, :3].argmax(1)


def net() -> Any:
    return firesteel.models.MLP(6, 16, 3)


@dataclass(frozen=True)
class Announced:
    """A strategy with a server whose workers leave their process numbers in a folder once they train."""

    inner: Any
    folder: str
    needs_seen: ClassVar[bool] = True

    async def run(self, worker: Any, net: Any) -> Any:
        open(os.path.join(self.folder, f"{net.rank}-{os.getpid()}"), "w").close()
        return await self.inner.run(worker, net)

    def merge(self, center: Any, push: Any) -> None:
        self.inner.merge(center, push)


def fit(data: Any, strategy: Any, on: Any, **settings: Any) -> Any:
    settings = {"epochs": 60, "batch_size": 8, "optimizer": firesteel.SGD(lr=0.03), "seed": 3, "progress": "none", **settings}
    return firesteel.train(net, data, strategy=strategy, on=on, **settings)


def workers_in(folder: Path, rank: int) -> list[int]:
    return [int(path.name.split("-")[1]) for path in folder.glob(f"{rank}-*")]


def strike(folder: Path, rank: int, seconds: float, blow: Callable[[int], None]) -> threading.Thread:
    """Wait for a worker to train, then so many seconds more, then let `blow` happen to its process."""

    def wait() -> None:
        while not (found := workers_in(folder, rank)):
            time.sleep(0.002)
        time.sleep(seconds)
        blow(found[0])

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def every_row_once(run: Any, workers: int, shards: int, epochs: int) -> None:
    """Each worker's pushes came in order, each once, and together hold each of its rows once an epoch."""
    log = run.arrivals.to_pylist()
    rows = 0
    for worker in range(workers):
        for shard in range(shards):
            mine = [e for e in log if (e["worker"], e["shard"]) == (worker, shard) and e["kind"] in ("push", "lost")]
            assert [e["sequence"] for e in mine] == list(range(1, len(mine) + 1))
            lost = sum(e["kind"] == "lost" for e in mine)
            assert lost <= 1, mine  # half a push of the attempt that was killed
            if not shard and not lost:
                rows += sum(e["rows"] for e in mine)
    assert rows <= 540 * epochs and run.history["samples"].to_pylist()[-1] >= 540 * epochs - 16 * 8
