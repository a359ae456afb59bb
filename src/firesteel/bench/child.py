"""A process of a bench that performs trials, one after the other, as it is told.

It reads the name of a trial from one pipe and answers by a line of JSON on another. A trial is its own for as long as it holds
the lock of the trial's file, which the kernel gives back whatever becomes of it; so benches may share a folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from firesteel.bench import results
from firesteel.bench.recipe import Recipe, load
from firesteel.bench.trial import perform
from firesteel.bench.workload import Workload
from firesteel.datasets import Dataset
from firesteel.errors import Interrupted
from firesteel.spark.world import Spark
from firesteel.stopping import plain_interrupts

EXECUTOR_MEGABYTES = 2048


def main() -> None:
    """`python -m firesteel.bench.child`: orders by pipe; see `running`."""
    orders, answers, alive, call = (*(int(each) for each in sys.argv[1:4]), json.loads(sys.argv[4]))
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    recipe, folder = load(call["recipe"], call["choices"]), Path(call["folder"])
    with plain_interrupts(), os.fdopen(orders) as told, os.fdopen(answers, "w") as out:
        _ = out.write(json.dumps({"ready": recipe.digest}) + "\n")
        out.flush()
        for order in told:
            name, wait = json.loads(order)
            try:
                answer = _attend(recipe, name, folder, wait, call["master"])
            except (Interrupted, KeyboardInterrupt):
                answer = {"interrupted": name}
            _ = out.write(json.dumps(answer) + "\n")
            out.flush()


def _end_with(alive: int) -> None:
    """End this process and all that it has started when the bench has gone: nobody is left to tell them."""
    with contextlib.suppress(OSError):
        _ = os.read(alive, 1)
    os.killpg(0, signal.SIGKILL)


def _attend(recipe: Recipe, name: str, folder: Path, wait: bool, master: str | None) -> dict[str, Any]:
    trial, path = recipe.trials[name], file_of(folder, name)
    with locked(path, wait) as mine:
        if not mine:
            return {"busy": name}
        if path.exists():  # another bench was faster
            return {"there": name}
        for left in path.parent.glob(f".{path.name}.*"):  # of a process that was killed while it wrote
            left.unlink()
        on_spark = isinstance(trial.on, Spark)
        session = (lambda: _session(recipe, master)) if on_spark else None
        result = perform(trial, lambda: _rows(trial.workload, trial.seed if trial.workload.splits else 0), session)
        if on_spark and result.status == "failed":
            _stop_session()  # it may be the session that failed
        results.write(path, result)
    return {"done": name}


def file_of(folder: Path, name: str) -> Path:
    """Where a trial's result lies, or will."""
    return folder / results.TRIALS / f"{name}.jsonl"


@contextlib.contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock of a trial; yields False where somebody else has it and `wait` is false."""
    lock = path.parent / ".locks" / path.name
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


_datasets: dict[Any, Dataset] = {}  # the last one: trials of a workload follow each other


def _rows(workload: Workload, seed: int) -> Dataset:
    key = (workload.name, seed)
    if key not in _datasets:
        _datasets.clear()
        _datasets[key] = workload.rows_of(seed)
    return _datasets[key]


_sessions: dict[str, Any] = {}


def _session(recipe: Recipe, master: str | None) -> Any:
    """One session for all of this process's trials, with a slot for each worker of the largest."""
    if not _sessions:
        from firesteel.spark.session import spark_session

        most = max(trial.on.workers for trial in recipe.trials.values() if isinstance(trial.on, Spark))
        _sessions["spark"] = spark_session(master or f"local-cluster[{most},1,{EXECUTOR_MEGABYTES}]", None)
    return _sessions["spark"]


def _stop_session() -> None:
    with contextlib.suppress(Exception):
        _sessions["spark"].stop()
    _sessions.clear()


if __name__ == "__main__":
    main()
