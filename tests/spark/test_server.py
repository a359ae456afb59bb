"""Workers with a server on two executors: plain tasks that Spark starts again, replayed bit for bit."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

import firesteel
from firesteel import AEASGD, Adam, Downpour, DynSGD, Replay, Server, Spark

pytestmark = pytest.mark.spark

X = np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)
Y = X[:, :3].argmax(1)


def net():
    return firesteel.models.MLP(6, 16, 3)


@pytest.fixture(scope="module")
def frame(spark):
    found = spark.createDataFrame(pa.table({"features": list(X), "label": Y})).cache()
    found.count()
    return found


def fit(frame, strategy, on=None, **settings):
    settings = {"epochs": 8, "batch_size": 8, "optimizer": Adam(lr=3e-3), "progress": "none", **settings}
    return firesteel.train(net, frame, strategy=strategy, on=on or Spark(workers=2), **settings)


@pytest.mark.parametrize("server", [Server(), Server(shards=2, tls=True)], ids=["plain", "two shards with TLS"])
@pytest.mark.parametrize("strategy", [DynSGD(3), AEASGD(4)], ids=["DynSGD", "AEASGD"])
def test_a_run_on_spark_is_replayed_bit_for_bit(frame, strategy, server, tmp_path):
    run = fit(frame, strategy, Spark(workers=2, server=server), run_dir=tmp_path)
    again = fit(frame, strategy, Replay(tmp_path))
    assert again.settings["replayed"] == "bit-equal"
    assert again.metrics == pytest.approx(run.metrics)
    assert run.history["samples"].to_pylist()[-1] == 360 * 8


@dataclass(frozen=True)
class Killed:
    """Downpour(2) whose worker 1 is killed at step 20, once."""

    note: str
    needs_seen: ClassVar[bool] = False

    async def run(self, worker, net):
        center = worker.params = await net.pull()
        for step, batch in worker.steps():
            worker.step(worker.gradient(batch))
            if step == 20 and net.rank == 1 and not os.path.exists(self.note):
                open(self.note, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            if step % 2 == 0 or worker.last(step):
                await net.push(worker.params - center)
                center = worker.params = await net.pull()
        return center

    def merge(self, center, push):
        center.add_(push.delta)


def test_spark_starts_a_lost_worker_again_and_no_push_counts_twice(frame, tmp_path):
    run = fit(frame, Killed(str(tmp_path / "note")))
    assert run.status == "finished" and (tmp_path / "note").exists()
    events = run.arrivals.to_pylist()
    for worker in (0, 1):
        pushes = [e for e in events if e["kind"] == "push" and e["worker"] == worker]
        assert [e["sequence"] for e in pushes] == list(range(1, len(pushes) + 1))
        assert sum(e["rows"] for e in pushes) == 180 * 8
    assert [(e["attempt"], e["sequence"]) for e in events if e["kind"] == "join" and e["worker"] == 1] == [(0, 0), (1, 9)]


@dataclass(frozen=True)
class Raises:
    note: str
    needs_seen: ClassVar[bool] = False

    async def run(self, worker, net):
        _ = await net.pull()
        for step, batch in worker.steps():
            worker.step(worker.gradient(batch))
            if step == 20 and net.rank == 1:
                with open(self.note, "w") as file:
                    file.write(str(time.time()))
                {}["a key that is not there"]
        return worker.params

    def merge(self, center, push): ...


def test_an_exception_in_user_code_is_told_once_and_soon(frame, tmp_path):
    with pytest.raises(firesteel.WorkerFailed) as caught:
        fit(frame, Raises(str(tmp_path / "note")), epochs=500)
    assert time.time() - float((tmp_path / "note").read_text()) < 3
    assert str(caught.value).count("Traceback (most recent call last)") == 1
    assert fit(frame, Downpour(), epochs=1).status == "finished"


def test_more_workers_than_slots_run_one_after_the_other_and_say_so(frame):
    with pytest.warns(UserWarning, match="3 workers were asked for, but Spark can run 2 tasks at once"):
        run = fit(frame, Downpour(), Spark(workers=3))
    assert run.settings["workers_at_once"] <= 2
    assert run.history["samples"].to_pylist()[-1] == 361 * 8  # each worker holds out a tenth of its rows, rounded
