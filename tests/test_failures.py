"""When a worker fails: one readable error, soon, and the next run works."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import firesteel
from firesteel import Local, Spark

X = np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)
Y = np.arange(400) % 3


def fit(strategy, on, data=(X, Y), **settings):
    model = lambda: firesteel.models.MLP(6, 8, 3)  # noqa: E731
    return firesteel.train(model, data, strategy=strategy, on=on, epochs=300, batch_size=8, progress="none", **settings)


@dataclass(frozen=True)
class Fails:
    """SyncSGD, but something happens to worker 1 at step 20; it leaves the hour in a file."""

    how: str
    note: str

    async def run(self, worker, net):
        for step, batch in worker.steps():
            worker.step(await net.all_reduce(worker.gradient(batch), weight=batch.weight))
            if step == 20 and net.rank == 1:
                with open(self.note, "w") as file:
                    file.write(f"{time.time()} {os.getpid()}")
                if self.how == "raise":
                    {}["a key that is not there"]
                os.kill(os.getpid(), signal.SIGKILL if self.how == "kill" else signal.SIGSTOP)
        return worker.params


def seconds_since(note) -> float:
    return time.time() - float(note.read_text().split()[0])


def world(name, request, **settings):
    if name == "local":
        return Local(workers=2, **settings), (X, Y)
    session = request.getfixturevalue("spark")
    frame = session.createDataFrame(
        [(x.tolist(), int(y)) for x, y in zip(X, Y, strict=True)], "features array<float>, label int"
    )
    return Spark(workers=2, **settings), frame


WORLDS = pytest.mark.parametrize("name", ["local", pytest.param("spark", marks=pytest.mark.spark)])


@WORLDS
def test_an_exception_in_user_code_reaches_the_caller_once(name, request, tmp_path):
    on, data = world(name, request)
    with pytest.raises(firesteel.WorkerFailed) as caught:
        fit(Fails("raise", str(tmp_path / "note")), on, data)
    assert seconds_since(tmp_path / "note") < 3
    text = str(caught.value)
    assert "worker 1 on" in text and "KeyError" in text
    assert text.count("Traceback (most recent call last)") == 1
    assert """{}["a key that is not there"]""" in text  # the user's own line
    assert "PeerLost" not in text


@WORLDS
def test_a_killed_worker_is_a_cluster_error_and_the_next_run_works(name, request, tmp_path):
    on, data = world(name, request)
    with pytest.raises(firesteel.WorkerLost, match=r"worker 1") as caught:
        fit(Fails("kill", str(tmp_path / "note")), on, data)
    assert seconds_since(tmp_path / "note") < 3
    assert isinstance(caught.value, firesteel.ClusterError)
    assert fit(firesteel.SyncSGD(), on, data).status == "finished"


@WORLDS
def test_a_stopped_worker_is_noticed_within_the_timeout(name, request, tmp_path):
    on, data = world(name, request, timeout_seconds=2.0)
    note = tmp_path / "note"
    with pytest.raises(firesteel.WorkerLost, match="worker 1 has been silent for 2 s"):
        fit(Fails("stop", str(note)), on, data)
    assert seconds_since(note) < 2 + 3
    pid = int(note.read_text().split()[1])
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and os.path.exists(f"/proc/{pid}") and _state(pid) != "Z":
        pass
    assert not os.path.exists(f"/proc/{pid}") or _state(pid) == "Z"
    assert fit(firesteel.SyncSGD(), on, data).status == "finished"


class Greedy(torch.nn.Linear):
    """Runs out of memory in training, in Python's way: without a word."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and not input.is_meta:
            raise MemoryError
        return super().forward(input)


@pytest.mark.parametrize("strategy", [firesteel.SyncSGD(), firesteel.Pipeline(cuts=(1,))], ids=["whole", "parts"])
def test_a_worker_out_of_memory_says_so(strategy):
    model = lambda: torch.nn.Sequential(torch.nn.Linear(6, 4), Greedy(4, 3))  # noqa: E731
    with pytest.raises(firesteel.OutOfMemory, match=r"memory ran out: MemoryError\. [A-Z].*; or lower batch_size\."):
        firesteel.train(model, (X, Y), strategy=strategy, on=Local(workers=2), epochs=1, progress="none")


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


@pytest.mark.spark
def test_more_workers_than_slots_is_refused_before_a_task_starts(spark):
    on, data = Spark(workers=3, start_seconds=1), spark.createDataFrame([([1.0] * 6, 1)], "features array<float>, label int")
    with pytest.raises(firesteel.UsageError, match=r"3 workers were asked for, but Spark can run 2 tasks at once"):
        fit(firesteel.SyncSGD(), on, data)


@pytest.mark.spark
def test_an_empty_frame_is_refused(spark):
    frame = spark.createDataFrame([], "features array<float>, label int")
    with pytest.raises(firesteel.FiresteelError, match="empty"):
        fit(firesteel.SyncSGD(), Spark(workers=2), frame)


@pytest.mark.spark
def test_bad_frames_are_refused(spark):
    frame = spark.createDataFrame([([1.0] * 6, 1), (None, 2)], "features array<float>, label int")
    with pytest.raises(firesteel.UsageError, match="column 'features' holds nulls"):
        fit(firesteel.SyncSGD(), Spark(workers=2), frame)
    with pytest.raises(firesteel.UsageError, match=r"no column 'lable'. Did you mean 'label'"):
        fit(firesteel.SyncSGD(), Spark(workers=2), frame, label="lable")


@pytest.mark.spark
def test_two_fits_at_once_take_turns(spark):
    from concurrent.futures import ThreadPoolExecutor

    on, data = world("spark", type("R", (), {"getfixturevalue": lambda self, name: spark})())
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: fit(firesteel.ModelAveraging(8), on, data), range(2)))
    assert [run.status for run in runs] == ["finished", "finished"]


def test_a_foreign_await_is_named():
    class Sleeps:
        async def run(self, worker, net):
            import asyncio

            await asyncio.sleep(0)
            return worker.params

    with pytest.raises(firesteel.StrategyError, match="not a verb of its net"):
        fit(Sleeps(), Local(workers=1))


@pytest.mark.spark
def test_a_package_missing_on_executors_is_named(spark, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("import firesteel\n\ndef net():\n    return firesteel.models.MLP(6, 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # pyright: ignore[reportMissingImports]

    frame = spark.createDataFrame([([1.0] * 6, 1)] * 20, "features array<float>, label int")
    with pytest.raises(firesteel.ClusterError, match="executors has no package 'only_here'"):
        firesteel.train(only_here.net, frame, on=Spark(workers=2), progress="none")


@dataclass(frozen=True)
class PressesCtrlC:
    """A metric during which Ctrl-C is pressed, once, and which then takes for ever."""

    caller: int
    note: str

    def __call__(self, outputs, targets):
        if len(outputs) > 2:  # not when two rows are tried
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.note, os.O_CREAT | os.O_EXCL))
                os.kill(self.caller, signal.SIGINT)
            time.sleep(60)
        return (outputs.argmax(1) == targets).float()


@pytest.mark.parametrize("strategy", [firesteel.SyncSGD(), firesteel.Downpour()], ids=["gang", "server"])
def test_ctrl_c_during_evaluation_costs_the_scores_alone(strategy, tmp_path):
    began = time.monotonic()
    with pytest.raises(firesteel.Interrupted) as caught:
        firesteel.train(
            lambda: torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.BatchNorm1d(3)),
            (X, Y),
            strategy=strategy,
            epochs=2,
            metrics=(PressesCtrlC(os.getpid(), str(tmp_path / "pressed")),),
            progress="none",
        )
    assert time.monotonic() - began < 30
    run = caught.value.run
    assert run is not None and run.status == "finished" and set(run.metrics) == {"train_loss"}
    assert run.history["epoch"].to_pylist() == [1, 2] and run.history["samples"].to_pylist() == [360, 720]
    assert run.evaluate((X[:2], Y[:2]))["loss"] > 0
