"""Predicted and measured seconds per epoch, on a Spark cluster of two hosts behind links of three rates.

For each rate and model the cluster is calibrated, which takes seconds; then the planner predicts each strategy's epoch, and the
strategy trains; three times over, as what a small machine does varies more from minute to minute than predictions err.
`spark-hosts` makes the hosts (needs root). Compared is the pace in the middle of a run: one epoch's end to the next one's.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
from typing import Any

import firesteel
from benchmarks import report
from benchmarks.wire import classic, hosts_tool
from firesteel.sim.dry import rehearse
from firesteel.sim.dry_worker import ModelSize

ROWS, BATCH, SECONDS, REPETITIONS = 24_000, 64, 5, 3
RATES = (1000, 200, 50)  # Mbit/s
STRATEGIES = (firesteel.SyncSGD(), firesteel.ModelAveraging(period=16), firesteel.AEASGD())
OPTIMIZER = firesteel.Adam(lr=1e-3)


def models() -> dict[str, Any]:
    return {"MLP 784-256-128-10": lambda: firesteel.models.MLP(784, 256, 128, 10), "LeNet": firesteel.models.LeNet}


def measured(factory: Any, frame: Any, columns: Any, strategy: Any, on: Any, epochs: int) -> float:
    """Seconds from one epoch's end to the next one's, the median."""
    run = firesteel.train(
        factory,
        frame,
        features=columns,
        strategy=strategy,
        optimizer=OPTIMIZER,
        on=on,
        batch_size=BATCH,
        epochs=epochs,
        validation=None,
        progress="none",
    )
    ends = run.history["seconds"].to_pylist()
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--spark-hosts", help="path of the tool")
    flags.add_argument("--mnist", help="folder of the four IDX files")
    given = flags.parse_args()
    tool = hosts_tool(given.spark_hosts)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    env = {**os.environ, "PYTHON": sys.executable}
    table, errors = [], []
    try:
        up = subprocess.run(["bash", tool, "up", "2", "none"], env=env, check=True, capture_output=True, text=True)
        session = classic(up.stdout.split()[-1])
        train, _ = firesteel.datasets.mnist(report.mnist_folder(given.mnist)).frame(session)
        frame = train.limit(ROWS).repartition(2).cache()
        _ = frame.count()
        on = firesteel.Spark(workers=2, session=session, start_seconds=60)
        shapes = {"LeNet": (1, 28, 28), "MLP 784-256-128-10": (784,)}
        for mbit in RATES:
            _ = subprocess.run(["bash", tool, "rate", f"{mbit}mbit"], env=env, check=True, capture_output=True)
            for name, factory in models().items():
                columns = firesteel.Image("features", shapes[name])
                more = {"features": columns, "optimizer": OPTIMIZER}
                _ = measured(factory, frame, columns, firesteel.ModelAveraging(period=16), on, 3)  # processes warm up once
                size, found = ModelSize.of(factory(), OPTIMIZER), [([], []) for _ in STRATEGIES]
                for _ in range(REPETITIONS):
                    cluster = firesteel.calibrate(factory, frame, on=on, batch_size=BATCH, **more)
                    for strategy, (said, took) in zip(STRATEGIES, found, strict=True):
                        said.append(rehearse(strategy, cluster, size, ROWS, BATCH).epoch_seconds)
                        epochs = max(2, min(10, round(SECONDS / said[-1])))
                        took.append(measured(factory, frame, columns, strategy, on, epochs))
                        print(mbit, name, type(strategy).__name__, said[-1], took[-1], flush=True)
                for strategy, (said, took) in zip(STRATEGIES, found, strict=True):
                    predicted, seconds = statistics.median(said), statistics.median(took)
                    errors.append(predicted / seconds - 1)
                    spread = f"{min(said):.2f} - {max(said):.2f}", f"{min(took):.2f} - {max(took):.2f}"
                    what = f"{mbit} Mbit/s, {name}, {type(strategy).__name__}"
                    table.append([what, f"{predicted:.2f}", spread[0], f"{seconds:.2f}", spread[1], f"{errors[-1]:+.0%}"])
                    print(table[-1], flush=True)
        session.stop()
    finally:
        _ = subprocess.run(["bash", tool, "down"], env=env, capture_output=True)
    worst = max(errors, key=abs)
    text = "\n\n".join(
        [
            "## Predicted and measured",
            f"Seconds per epoch of {ROWS:,} MNIST rows on two workers, each a host of its own behind a link of the rate named; "
            f"batches of {BATCH}, Adam; `make bench-predicted`. Medians, and the whole range, of {REPETITIONS} repetitions of "
            "calibrating anew and then training, one after the other; measured from one epoch's end to the next one's.",
            report.table(["", "predicted", "range", "measured", "range", "error"], table),
            f"The bar is 15 %; the largest error is {worst:+.0%}, {'met' if abs(worst) <= 0.15 else 'NOT MET'}.",
        ]
    )
    print(text)
    report.write("bench-predicted", text)


if __name__ == "__main__":
    main()
