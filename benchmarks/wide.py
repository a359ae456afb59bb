"""Model parallelism and data parallelism across two hosts behind links of 200 Mbit/s, for a wide and a narrow network.

`spark-hosts` makes the hosts (needs root). Each strategy trains for some steps; compared are the medians of repetitions, one
after the other, of seconds per step and bytes per step, with the planner's prediction beside them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
from typing import Any

import numpy as np

import firesteel
from benchmarks import report
from benchmarks.wire import classic, hosts_tool

RATE, BATCH, REPETITIONS = 200, 64, 3  # Mbit/s; rows of each of two workers
NETWORKS = {"wide, 784-4096-4096-10": (784, 4096, 4096, 10), "narrow, 784-64-64-10": (784, 64, 64, 10)}
STEPS = {"wide, 784-4096-4096-10": 4, "narrow, 784-64-64-10": 100}
STRATEGIES = (firesteel.SyncSGD(), firesteel.NeuronParallel(), firesteel.NeuronParallel(weights="rows"))
OPTIMIZER = firesteel.SGD(lr=0.01, momentum=0.9)


def trained(sizes: tuple[int, ...], frame: Any, strategy: Any, on: Any, steps: int) -> tuple[float, float]:
    """Seconds and bytes per step of each worker: of a run, less those of one with a third of its steps."""

    def run(count: int) -> tuple[float, int]:
        done = firesteel.train(
            lambda: firesteel.models.MLP(*sizes),
            frame,
            strategy=strategy,
            optimizer=OPTIMIZER,
            on=on,
            batch_size=BATCH,
            max_steps=count,
            validation=None,
            progress="none",
        )
        last = done.history.to_pylist()[-1]
        return last["seconds"], last["bytes_sent"] // 2

    few = max(2, steps // 3)
    (short, sent_before), (long, sent) = run(few), run(few + steps)
    return (long - short) / steps, (sent - sent_before) / steps


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--spark-hosts", help="path of the tool")
    given = flags.parse_args()
    tool = hosts_tool(given.spark_hosts)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    env = {**os.environ, "PYTHON": sys.executable}
    table: list[list[str]] = []
    verdicts: list[str] = []
    try:
        up = subprocess.run(["bash", tool, "up", "2", f"{RATE}mbit"], env=env, check=True, capture_output=True, text=True)
        session = classic(up.stdout.split()[-1])
        rng = np.random.default_rng(0)
        count = 20_000
        data = firesteel.datasets.Dataset(
            "noise",
            (rng.standard_normal((count, 784), np.float32), rng.integers(0, 10, count)),
            (rng.standard_normal((10, 784), np.float32), rng.integers(0, 10, 10)),
            10,
        )
        frame = data.frame(session)[0].repartition(2).cache()
        _ = frame.count()
        on = firesteel.Spark(workers=2, session=session, start_seconds=60)
        # The links by a network that crosses them in moments; computing by each network on this machine, where nothing crosses.
        middle = lambda: firesteel.models.MLP(784, 256, 256, 10)  # noqa: E731
        links = firesteel.calibrate(middle, frame, on=on, batch_size=BATCH, optimizer=OPTIMIZER)
        for name, sizes in NETWORKS.items():
            factory = lambda sizes=sizes: firesteel.models.MLP(*sizes)  # noqa: E731
            here = firesteel.calibrate(
                factory, data.train, on=firesteel.Local(2, threads=1), batch_size=BATCH, optimizer=OPTIMIZER
            )
            cluster = dataclasses.replace(links, compute=here.compute)
            plan = firesteel.plan(
                factory, cluster, rows=count, strategies=list(STRATEGIES), workers=[2], batch_size=BATCH, optimizer=OPTIMIZER
            )
            epoch_steps = -(-count // 2 // BATCH)
            said = {repr(p.strategy): p.epoch_seconds / epoch_steps for p in plan.predictions}
            took: dict[str, list[tuple[float, float]]] = {repr(s): [] for s in STRATEGIES}
            for _ in range(REPETITIONS):
                for strategy in STRATEGIES:
                    took[repr(strategy)].append(trained(sizes, frame, strategy, on, STEPS[name]))
                    print(name, strategy, took[repr(strategy)][-1], flush=True)
            seconds = {key: statistics.median(s for s, _ in found) for key, found in took.items()}
            for strategy in STRATEGIES:
                key = repr(strategy)
                spread = f"{min(s for s, _ in took[key]) * 1e3:.0f} - {max(s for s, _ in took[key]) * 1e3:.0f}"
                sent = statistics.median(b for _, b in took[key])
                cells = [
                    name,
                    _brief(strategy),
                    f"{seconds[key] * 1e3:.0f}",
                    spread,
                    f"{said[key] * 1e3:.0f}",
                    f"{sent / 1e6:.3f}",
                ]
                table.append(cells)
            sync, split = repr(STRATEGIES[0]), repr(STRATEGIES[1])
            faster, planned = seconds[sync] / seconds[split], said[sync] / said[split]
            verdicts.append(
                f"{name}: NeuronParallel is {faster:.2f} times as fast as SyncSGD, {planned:.2f} times as the planner has it."
            )
        session.stop()
    finally:
        _ = subprocess.run(["bash", tool, "down"], env=env, capture_output=True)
    header = ["network", "strategy", "ms per step", "range", "planned ms", "MB sent per step and worker"]
    text = "\n\n".join(
        [
            "## Model parallelism on a slow network",
            f"Two workers, each a host of its own behind a link of {RATE} Mbit/s, {BATCH} rows each, SGD with momentum; "
            f"`make bench-wide`. Medians and ranges of {REPETITIONS} repetitions. Model parallelism sends less where the batch "
            "(here 128 rows) is smaller than the layers are wide.",
            report.table(header, table),
            "\n".join(f"- {v}" for v in verdicts),
        ]
    )
    print(text)
    report.write("bench-wide", text)


def _brief(strategy: Any) -> str:
    return repr(strategy).split("(")[0] + ("" if getattr(strategy, "weights", "") != "rows" else '(weights="rows")')


if __name__ == "__main__":
    main()
