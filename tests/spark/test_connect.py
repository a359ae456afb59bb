"""The same through Spark Connect, in a process of its own: a classic and a remote session do not live in one."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, time
os.environ["PYSPARK_PYTHON"] = sys.executable
from pyspark.sql import SparkSession
import firesteel
from firesteel.ml import TorchClassificationModel, TorchClassifier

spark = SparkSession.builder.remote("local[2]").getOrCreate()
train, test = firesteel.datasets.digits().frame(spark)
settings = dict(optimizer=firesteel.Adam(lr=5e-3), epochs=10, batch_size=32, progress="none")
model = lambda: firesteel.models.MLP(64, 32, 10)

run = firesteel.train(model, train, on=firesteel.Spark(workers=2), run_dir="run", **settings)
assert run.evaluate(test)["accuracy"] > 0.9, run
print("trained")

served = firesteel.train(model, train, on=firesteel.Spark(workers=2, server=firesteel.Server(shards=2)),
                         strategy=firesteel.DynSGD(3), run_dir="served", **settings)
assert served.evaluate(test)["accuracy"] > 0.9, served
again = firesteel.train(model, train, on=firesteel.Replay("served"), strategy=firesteel.DynSGD(3), **settings)
print("served and replayed", again.settings["replayed"])

class Fails:
    async def run(self, worker, net):
        for step, batch in worker.steps():
            worker.step(await net.all_reduce(worker.gradient(batch)))
            if step == 5 and net.rank == 1:
                1 / 0

try:
    firesteel.train(model, train, on=firesteel.Spark(workers=2), strategy=Fails(), **settings)
except firesteel.WorkerFailed as error:
    assert "worker 1 on" in str(error) and "ZeroDivisionError" in str(error) and "PeerLost" not in str(error)
    assert str(error).count("Traceback (most recent call last)") == 1
    print("failed with the cause")

began = time.monotonic()
try:
    firesteel.train(model, train, on=firesteel.Spark(workers=3, start_seconds=6), **settings)
except firesteel.RendezvousTimeout as error:
    assert "3 workers were asked for" in str(error) and "ran 2 tasks at once" in str(error), error
    assert time.monotonic() - began < 6 + 8
    print("too few slots told")

fitted = TorchClassifier(model=firesteel.models.MLP(64, 32, 10), epochs=10, optimizer=firesteel.Adam(lr=5e-3),
                         batchSize=32, progress="none").fit(train)
fitted.write().overwrite().save("model")
fitted.write().overwrite().save("model")
loaded = TorchClassificationModel.load("model")
a, b = (m.transform(test).select("prediction").toPandas().prediction.tolist() for m in (fitted, loaded))
assert a == b
print("Spark ML works")
spark.stop()
"""


@pytest.mark.spark
def test_through_spark_connect(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=tmp_path, timeout=240)
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-3000:]
    assert said == ["trained", "served and replayed bit-equal", "failed with the cause", "too few slots told", "Spark ML works"]
    assert (tmp_path / "run" / "points").exists()
