"""Runs on two executors: files as data, stop and resume, columns with bad rows in later partitions."""

from __future__ import annotations

import functools
import os
import signal
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import firesteel
from firesteel import Adam, ModelAveraging, Spark

pytestmark = pytest.mark.spark


def table(n: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 6)).astype(np.float32)
    return pa.table({"features": list(x), "label": x[:, :3].argmax(1)})


def net():
    return firesteel.models.MLP(6, 16, 3)


def parameters(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def test_parquet_files_with_validation_files_of_their_own(spark, tmp_path):
    pq.write_table(table(300), tmp_path / "train.parquet")
    pq.write_table(table(100, seed=1), tmp_path / "held.parquet")
    settings = {
        "validation": str(tmp_path / "held.parquet"),
        "score_training": 1.0,
        "optimizer": Adam(lr=1e-2),
        "epochs": 10,
        "seed": 1,
        "progress": "none",
    }
    on_spark = firesteel.train(net, str(tmp_path / "train.parquet"), on=Spark(workers=2), **settings)
    local = firesteel.train(net, str(tmp_path / "train.parquet"), on=firesteel.Local(workers=2), **settings)
    assert on_spark.timing["samples"] == 300 * 10
    assert on_spark.metrics["validation_accuracy"] == pytest.approx(local.metrics["validation_accuracy"], abs=0.03)
    assert on_spark.metrics["validation_accuracy"] > 0.8
    for kind, rows in (("validation", "held"), ("training", "train")):
        expected = on_spark.evaluate(str(tmp_path / f"{rows}.parquet"))
        assert on_spark.metrics[f"{kind}_accuracy"] == pytest.approx(expected["accuracy"])
        assert on_spark.metrics[f"{kind}_loss"] == pytest.approx(expected["loss"])


@dataclass(frozen=True)
class Killed:
    """SyncSGD whose worker 1 is killed at step 30, once."""

    note: str

    async def run(self, worker, net):
        for step, batch in worker.steps():
            worker.step(await net.all_reduce(worker.gradient(batch), weight=batch.weight))
            net.publish(worker.params)
            if step == 30 and net.rank == 1 and not os.path.exists(self.note):
                open(self.note, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        return worker.params


def test_a_run_whose_worker_was_killed_is_resumed_bit_for_bit(spark, tmp_path):
    frame = spark.createDataFrame(table(200)).cache()
    settings = {"on": Spark(workers=2), "optimizer": Adam(lr=1e-3), "batch_size": 10, "epochs": 6, "progress": "none"}
    (tmp_path / "never").touch()
    whole = firesteel.train(net, frame, strategy=Killed(str(tmp_path / "never")), **settings)
    strategy = Killed(str(tmp_path / "once"))
    with pytest.raises(firesteel.WorkerLost):
        firesteel.train(net, frame, strategy=strategy, run_dir=tmp_path / "run", **settings)
    resumed = firesteel.train(net, frame, strategy=strategy, run_dir=tmp_path / "run", resume=True, **settings)
    assert torch.equal(parameters(resumed), parameters(whole))
    assert resumed.history["samples"].to_pylist()[-1] == whole.history["samples"].to_pylist()[-1]


def test_stopped_by_the_clock_and_resumed(spark, tmp_path):
    frame = spark.createDataFrame(table(200)).cache()
    settings = {"strategy": ModelAveraging(16), "on": Spark(workers=2), "batch_size": 5, "epochs": 150, "progress": "none"}
    whole = firesteel.train(net, frame, **settings)
    first = firesteel.train(net, frame, run_dir=tmp_path / "run", max_seconds=0.2, **settings)
    assert first.status == "stopped" and 0 < first.settings["steps"] < whole.settings["steps"]
    second = firesteel.train(net, frame, run_dir=tmp_path / "run", resume=True, **settings)
    assert torch.equal(parameters(second), parameters(whole))


WITHOUT_PLAIN_STEPS = [
    (firesteel.VectorFreeLBFGS(memory=5), None),
    (firesteel.VectorFreeLBFGS(overlap=0.2), None),
    (firesteel.VectorFreeAdam(), Adam(lr=1e-2)),
    (firesteel.VectorFreeAdaGrad("basis"), firesteel.Adagrad(lr=0.1)),
    (firesteel.TaylorADMM(), None),
    (firesteel.DlADMM(), None),
    (firesteel.ConsensusADMM(rho=0.1), Adam(lr=1e-2)),
]


@pytest.mark.parametrize(("strategy", "optimizer"), WITHOUT_PLAIN_STEPS, ids=lambda given: repr(given)[:40])
def test_executors_do_what_processes_do(spark, tmp_path, strategy, optimizer):
    frame = spark.createDataFrame(table(200)).cache()
    settings = {"strategy": strategy, "optimizer": optimizer, "seed": 1, "progress": "none", "validation": 0.2}
    whole = firesteel.train(net, frame, on=Spark(workers=2), epochs=12, **settings)
    assert whole.metrics["validation_accuracy"] > 0.75
    local = firesteel.train(net, table(200), on=firesteel.Local(workers=2), epochs=12, **settings)
    assert whole.history["rounds"][-1] == local.history["rounds"][-1] or isinstance(strategy, firesteel.VectorFreeLBFGS)
    resume = {"on": Spark(workers=2), "run_dir": tmp_path / "run"}
    _ = firesteel.train(net, frame, epochs=5, **resume, **settings)
    resumed = firesteel.train(net, frame, epochs=12, resume=True, **resume, **settings)
    assert resumed.history["step"][-1] == whole.history["step"][-1]
    losses = [run.history["validation_loss"][-1].as_py() for run in (resumed, whole)]
    assert losses[0] == pytest.approx(losses[1])


def test_a_bad_row_is_named_by_its_partition(spark):
    frame = spark.range(0, 40, 1, 2).selectExpr(
        "array_repeat(if(id = 37, double('NaN'), double(id)), 6) as features", "int(id % 3) as label"
    )
    with pytest.raises(firesteel.UsageError, match=r"holds NaN or infinity; .*row 17 of partition 1"):
        firesteel.train(net, frame, on=Spark(workers=2), progress="none")


def test_sequences_from_named_data_sets(spark):
    """Tokens with a class for every step, and lists of unequal length: as a DataFrame the very rows that arrays are."""
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 5, (48, 1)) + np.arange(6)) % 5
    steps = [rng.standard_normal((int(n), 2)).astype(np.float32) for n in rng.integers(1, 7, 48)]
    settings = {"batch_size": 8, "max_steps": 3, "validation": None, "seed": 1, "progress": "none"}
    for make, rows in (
        (functools.partial(firesteel.models.CharLSTM, 5, 4), (x, (x + 1) % 5)),
        (functools.partial(firesteel.models.LSTMClassifier, 2, 4, 2), (steps, np.array([int(s.sum() > 0) for s in steps]))),
    ):
        data = firesteel.datasets.Dataset("", rows, rows, 5)
        frame = data.frame(spark)[0].coalesce(1)
        found = firesteel.train(make, frame, features=data.features, on=Spark(workers=2), **settings)
        local = firesteel.train(make, rows, on=firesteel.Local(workers=2), **settings)
        from_table = firesteel.train(make, rows, on=Spark(workers=2), **settings)
        torch.testing.assert_close(parameters(found), parameters(local))
        assert from_table.evaluate(rows) == pytest.approx(found.evaluate(rows), abs=0.1)
        assert found.evaluate(rows)["accuracy"] <= 1
