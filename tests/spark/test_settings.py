"""Settings of Spark that a gang cannot live with are refused before a task starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
os.environ["PYSPARK_PYTHON"] = sys.executable
from pyspark.sql import SparkSession
import firesteel

spark = (SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").config("spark.log.level", "OFF")
         .config(sys.argv[1], "true").getOrCreate())
frame = spark.createDataFrame([([1.0, 2.0], 1)] * 4, "features array<float>, label int")
try:
    firesteel.train(firesteel.models.MLP(2, 2), frame, on=firesteel.Spark(workers=2), progress="none")
except firesteel.UsageError as error:
    print(str(error).split(":")[0])
if "dynamic" in sys.argv[1]:  # workers with a server are plain tasks, which may come and go
    run = firesteel.train(firesteel.models.MLP(2, 2), frame, on=firesteel.Spark(workers=2), strategy=firesteel.Downpour(),
                          validation=None, progress="none")
    print(run.status)
else:
    assert list(spark.sparkContext.statusTracker().getJobIdsForGroup()) == []
spark.stop()
"""


@pytest.mark.spark
@pytest.mark.parametrize("name", ["spark.dynamicAllocation.enabled", "spark.speculation"])
def test_dynamic_allocation_and_speculation(name, tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [f"{name} is true", *(["finished"] if "dynamic" in name else [])]
