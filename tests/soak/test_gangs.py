"""Long tests of gangs: kills and stops at random moments, many runs in one process. `make soak` runs them."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import firesteel
from firesteel import Adam, Local, ModelAveraging, SyncSGD

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

RNG = np.random.default_rng(time.time_ns())
X = np.random.default_rng(0).standard_normal((600, 6)).astype(np.float32)
Y = np.arange(600) % 3


def net():
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Dropout(0.1), torch.nn.Linear(16, 3))


def fit(strategy, workers=2, **settings):
    settings = {"epochs": 60, "batch_size": 8, "optimizer": Adam(lr=1e-3), "seed": 3, "progress": "none", **settings}
    return firesteel.train(net, (X, Y), strategy=strategy, on=Local(workers=workers, threads=1), **settings)


def parameters(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


@dataclass(frozen=True)
class Announced:
    """A strategy whose workers leave their process numbers in a folder once they train."""

    inner: object
    folder: str

    async def run(self, worker, net):
        open(os.path.join(self.folder, f"{net.rank}-{os.getpid()}"), "w").close()
        return await self.inner.run(worker, net)


@pytest.mark.parametrize("workers", [2, 3])
def test_twenty_workers_killed_at_random_moments(workers, tmp_path):
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        victim, delay, killed_at = int(RNG.integers(workers)), float(RNG.uniform(0, 0.4)), []

        def kill(folder=folder, victim=victim, delay=delay, killed_at=killed_at):
            while not (found := list(folder.glob(f"{victim}-*"))):
                time.sleep(0.002)
            time.sleep(delay)
            killed_at.append(time.monotonic())
            os.kill(int(found[0].name.split("-")[1]), signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(firesteel.WorkerLost):
            fit(Announced(SyncSGD(), str(folder)), workers, epochs=10_000)
        assert time.monotonic() - killed_at[0] < 3, (attempt, victim, delay)
        thread.join()
        assert fit(SyncSGD(), workers, epochs=1).status == "finished"


@pytest.mark.parametrize("strategy", [SyncSGD(), ModelAveraging(16)], ids=["sync", "averaging"])
def test_twenty_stops_at_random_moments_change_nothing(strategy, tmp_path):
    schedule = firesteel.BySteps(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2000)
    whole = fit(strategy, schedule=schedule)
    stopped = 0
    for attempt in range(20):
        folder, seconds = tmp_path / str(attempt), whole.timing["train_seconds"] * float(RNG.uniform(0.05, 0.9))
        first = fit(strategy, schedule=schedule, run_dir=folder, max_seconds=seconds)
        stopped += first.status == "stopped"
        second = fit(strategy, schedule=schedule, run_dir=folder, resume=True)
        assert torch.equal(parameters(second), parameters(whole)), (attempt, first.settings["steps"])
    assert stopped > 10


def test_a_hundred_runs_leave_nothing_behind():
    def held() -> tuple[int, int, int, int]:
        """Open files, threads, child processes, bytes in memory."""
        gc.collect()
        children = sum(len(path.read_text().split()) for path in Path("/proc/self/task").glob("*/children"))
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return len(os.listdir("/proc/self/fd")), threading.active_count(), children, resident

    for _ in range(5):
        fit(SyncSGD(), epochs=1)
    before = held()
    for _ in range(100):
        fit(SyncSGD(), epochs=1)
    after = held()
    assert after[0] <= before[0] + 3 and after[1] <= before[1] + 3 and after[2] <= before[2]
    assert after[3] - before[3] < 50 * 2**20, (before, after)
