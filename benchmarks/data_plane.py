"""Rows per second from one cached DataFrame to tensors in the workers' memory: ours beside TorchDistributor's row path.

The row path is what `TorchDistributor._train_on_dataframe` gives a training function: a loader over rows that Spark wrote out
for it. Both drain the same rows; starting processes is left out (timestamps are taken in the workers) and told apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.ml.functions import array_to_vector
from pyspark.sql import SparkSession

from benchmarks import report
from firesteel.data.columns import Columns, Features, Image
from firesteel.data.frame import deal
from firesteel.data.source import FrameSource

ROWS, WIDTH = 20_000, 784


def drain(columns: Columns) -> Any:
    """The function for mapInArrow: build the shard, touch nothing else, tell how long it took."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import time

        from firesteel.data.shard import build_shard

        began = time.time()
        shard = build_shard(batches, columns, 2**40)
        yield pa.RecordBatch.from_pydict({"began": [began], "ended": [time.time()], "rows": [shard.rows]})

    return run


def ours(frame: Any, features: Features) -> float:
    columns = Columns(features, "label")
    dealt = deal(FrameSource(frame, columns), 2)
    began = time.time()
    found = dealt.mapInArrow(drain(columns), "began double, ended double, rows long", barrier=True).toArrow().to_pylist()
    assert sum(f["rows"] for f in found) == ROWS
    return ROWS / (max(f["ended"] for f in found) - began)  # from the call on: Spark's own part is in it


def row_path(frame: Any) -> tuple[float, float]:
    """(rows/s from the first row asked for to the last, seconds before that)."""
    from pyspark.ml.torch.distributor import TorchDistributor

    def train() -> tuple[float, float, int]:
        import time

        import torch.distributed as dist
        from pyspark.ml.torch.distributor import _get_spark_partition_data_loader

        dist.init_process_group("gloo")
        loader = _get_spark_partition_data_loader(10_000, 64)
        began, rows = time.time(), 0
        for x, _ in loader:
            rows += len(x)
        return began, time.time(), rows

    asked = time.time()
    distributor: Any = TorchDistributor(num_processes=2, local_mode=False, use_gpu=False)
    began, ended, rows = distributor._train_on_dataframe(train, frame)
    assert rows == 10_000
    return 2 * rows / (ended - began), began - asked


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--repetitions", type=int, default=3)
    given = flags.parse_args()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder: Any = SparkSession.builder
    spark = (
        builder.master("local-cluster[2,1,4096]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "OFF")
        .config("spark.driver.memory", "4g")
        .config("spark.executorEnv.PYTHONPATH", str(Path(__file__).parents[1]))
        .getOrCreate()
    )
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, WIDTH), np.uint8)
    offsets = pa.array(np.arange(ROWS + 1, dtype=np.int32) * WIDTH)
    table = pa.table(
        {
            "array": pa.ListArray.from_arrays(offsets, pa.array((pixels / np.float32(255)).reshape(-1))),
            "bytes": pa.Array.from_buffers(pa.binary(), ROWS, [None, offsets.buffers()[1], pa.py_buffer(pixels)]),
            "label": pa.array(np.arange(ROWS) % 10),
        }
    )
    whole = spark.createDataFrame(table).withColumn("vector", array_to_vector("array")).repartition(2).cache()
    whole.count()
    kinds: dict[str, tuple[str, Features]] = {
        "array<float>": ("array", "array"),
        "bytes": ("bytes", Image("bytes", (WIDTH,))),
        "ML vector": ("vector", "vector"),
    }
    _ = [ours(whole, f) for _, f in kinds.values()]  # warm
    found: dict[str, list[float]] = {name: [] for name in (*kinds, "rows")}
    waits = []
    for repetition in range(given.repetitions):
        for name, (_, features) in kinds.items():
            found[name].append(ours(whole, features))
        rate, wait = row_path(whole.select("array", "label"))
        found["rows"].append(rate)
        waits.append(wait)
        print(f"[{repetition + 1}/{given.repetitions}]", {k: f"{v[-1]:,.0f}" for k, v in found.items()}, flush=True)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    ratio = medians["array<float>"] / medians["rows"]
    rows = [[f"Firesteel, {k}", f"{medians[k]:,.0f}", f"{medians[k] / medians['rows']:.1f}"] for k in kinds]
    rows.append(["TorchDistributor, rows of array<float>", f"{medians['rows']:,.0f}", "1"])
    text = "\n\n".join(
        [
            "## DataFrame to tensors",
            f"{ROWS:,} rows of {WIDTH} numbers, two executors, medians of {given.repetitions}; `make bench-data`. Ours counts "
            "from the call, TorchDistributor's from its first batch; before that it took "
            f"{statistics.median(waits):.1f} s to start.",
            report.table(["", "rows/s", "ratio"], rows),
            f"The bar is 10 times on the same column: {ratio:.1f}, {'met' if ratio >= 10 else 'NOT MET'}.",
        ]
    )
    print(text)
    report.write("bench-data", text)
    spark.stop()


if __name__ == "__main__":
    main()
