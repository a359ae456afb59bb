"""From one cached DataFrame to batches of tensors in the workers' memory: ours beside TorchDistributor's row path.

The row path is what `TorchDistributor._train_on_dataframe` gives a training function: a loader over rows that Spark wrote
into a file for it. Two figures each. "In the worker": seconds from Arrow rows that have arrived to one epoch of batches
of 64, which is where the two differ. "Whole": wall seconds from the call to the end of that epoch, with Spark's own
part, but without the seconds in which TorchDistributor starts its processes.
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

ROWS, WIDTH, BATCH = 80_000, 784, 64
PEER = "TorchDistributor, rows of array<float>"
Rates = tuple[float, float]  # rows per second of both workers: in the worker, whole


def drain(columns: Columns) -> Any:
    """The function for mapInArrow: build the shard, go through one shuffled epoch, tell how long it took."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import time

        import torch

        from firesteel.data.shard import build_shard

        waited = 0.0

        def arriving() -> Iterator[pa.RecordBatch]:
            nonlocal waited
            while True:
                since = time.perf_counter()
                batch = next(batches, None)
                waited += time.perf_counter() - since
                if batch is None:
                    return
                yield batch

        began = time.perf_counter()
        torch.set_num_threads(1)
        shard, rows = build_shard(arriving(), columns, 2**40), 0
        for index in torch.randperm(shard.rows).split(BATCH):
            rows += shard.take(index).inputs[0].shape[0]
        busy = time.perf_counter() - began - waited
        yield pa.RecordBatch.from_pydict({"busy": [busy], "ended": [time.time()], "rows": [rows]})

    return run


def ours(frame: Any, features: Features, shuffle: bool) -> Rates:
    columns = Columns(features, "label")
    dealt = deal(FrameSource(frame, columns), 2, shuffle)
    asked = time.time()
    found = dealt.mapInArrow(drain(columns), "busy double, ended double, rows long", barrier=True).toArrow().to_pylist()
    assert sum(f["rows"] for f in found) == ROWS
    return sum(f["rows"] / f["busy"] for f in found), ROWS / (max(f["ended"] for f in found) - asked)


def row_path(frame: Any) -> tuple[Rates, float]:
    """The rates, and the seconds in which its processes start."""
    from pyspark.ml.torch.distributor import TorchDistributor

    def train() -> tuple[float, float, float, float]:
        import os
        import time

        import torch
        import torch.distributed as dist
        from pyspark.ml.torch.distributor import _get_spark_partition_data_loader

        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        written = os.path.getmtime(os.environ["SPARK_PARTITION_ARROW_DATA_FILE"])
        loader = _get_spark_partition_data_loader(ROWS // 2, BATCH)
        began, busy, rows = time.time(), time.perf_counter(), 0
        for x, _ in loader:
            rows += len(x)
        assert rows == ROWS // 2
        return written, began, time.time(), time.perf_counter() - busy

    asked = time.time()
    distributor: Any = TorchDistributor(num_processes=2, local_mode=False, use_gpu=False)
    written, began, ended, busy = distributor._train_on_dataframe(train, frame)
    return (ROWS / busy, ROWS / (ended - began + written - asked)), began - written


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
    kinds: dict[str, tuple[Features, bool]] = {
        "Firesteel, array<float>": ("array", True),
        "Firesteel, array<float>, shuffle=False": ("array", False),
        "Firesteel, bytes": (Image("bytes", (WIDTH,)), True),
        "Firesteel, ML vector": ("vector", True),
    }
    _ = [ours(whole, *f) for f in kinds.values()]  # warm
    found: dict[str, list[Rates]] = {name: [] for name in (*kinds, PEER)}
    starts = []
    for repetition in range(given.repetitions):
        for name, settings in kinds.items():
            found[name].append(ours(whole, *settings))
        rates, start = row_path(whole.select("array", "label"))
        found[PEER].append(rates)
        starts.append(start)
        said = {name: f"{v[-1][0]:,.0f} {v[-1][1]:,.0f}" for name, v in found.items()}
        print(f"[{repetition + 1}/{given.repetitions}]", said, flush=True)
    medians = {name: tuple(statistics.median(r[i] for r in rates) for i in (0, 1)) for name, rates in found.items()}
    ratio = {name: [m / p for m, p in zip(medians[name], medians[PEER], strict=True)] for name in medians}
    rows = [
        [name, f"{inside:,.0f}", f"{ratio[name][0]:.1f}", f"{total:,.0f}", f"{ratio[name][1]:.1f}"]
        for name, (inside, total) in medians.items()
    ]
    like = ratio["Firesteel, array<float>, shuffle=False"][0]
    text = "\n\n".join(
        [
            "## DataFrame to tensors",
            f"{ROWS:,} rows of {WIDTH} numbers, two executors, one epoch of batches of {BATCH}, medians of "
            f"{given.repetitions}; `make bench-data`. In the worker: wall seconds from Arrow rows that have arrived to "
            "batches. Whole: from the call to the last batch, with Spark's own part, which both have (it turns its rows into "
            f"Arrow); the {statistics.median(starts):.1f} s in which TorchDistributor starts its processes are left out. It "
            "takes partitions as they are, as `shuffle=False` does; by default Firesteel deals rows out evenly, and while "
            "Spark does that it competes with the workers for the two cores.",
            report.table(["", "in the worker, rows/s", "ratio", "whole, rows/s", "ratio"], rows),
            f"The bar is 10 times in the worker, for the same column in the same partitions: {like:.1f}, "
            f"{'met' if like >= 10 else 'NOT MET'}.",
        ]
    )
    print(text)
    report.write("bench-data", text)
    spark.stop()


if __name__ == "__main__":
    main()
