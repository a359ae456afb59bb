"""All-reduce across two hosts: how much of the wire is used.

`spark-hosts` makes a standalone cluster whose two workers live in network namespaces behind links of a set rate (needs root).
The driver has a third address. Training then runs once more through a Spark Connect server on that cluster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import firesteel
from benchmarks import report

DRIVER = "10.77.0.1"


@dataclass(frozen=True)
class TimedAllReduce:
    """Sums of `numel` float32 numbers, `rounds` times; the model's parameters carry the median seconds home."""

    numel: int
    rounds: int

    async def run(self, worker: Any, net: Any) -> Any:
        x, seconds = torch.ones(self.numel), []
        for _ in range(self.rounds + 1):
            began = time.perf_counter()
            await net.all_reduce(x, "sum")
            seconds.append(time.perf_counter() - began)
        result = torch.zeros_like(worker.params)
        result[0] = statistics.median(seconds[1:])
        return result


def hosts_tool(given: str | None) -> str:
    beside = Path(__file__).parents[2] / "shared" / "tools" / "spark-hosts"
    for path in (given, os.environ.get("SPARK_HOSTS"), str(beside)):
        if path and os.access(path, os.X_OK):
            return path
        if path and os.path.exists(path):
            return path
    raise SystemExit("spark-hosts was not found: give --spark-hosts PATH.")


def classic(master: str) -> Any:
    from pyspark.sql import SparkSession

    builder: Any = SparkSession.builder
    return (
        builder.master(master)
        .config("spark.driver.host", DRIVER)
        .config("spark.driver.bindAddress", DRIVER)
        .config("spark.driver.memory", "4g")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "OFF")
        .config("spark.executorEnv.PYTHONPATH", str(Path(__file__).parents[1]))
        .getOrCreate()
    )


def rate_of(session: Any, numel: int, rounds: int) -> float:
    """Bytes per second that each worker must send: with two workers a ring sends each number once."""
    run = firesteel.train(
        torch.nn.Linear(1, 1),
        (np.zeros((4, 1), np.float32), np.zeros(4, np.float32)),
        loss="mse",
        strategy=TimedAllReduce(numel, rounds),
        on=firesteel.Spark(workers=2, session=session, start_seconds=60),
        validation=None,
        progress="none",
    )
    return numel * 4 / float(next(run.model.parameters()).view(-1)[0])


def trained(session: Any) -> firesteel.Run:
    train, _ = firesteel.datasets.digits().frame(session)
    return firesteel.train(
        firesteel.models.MLP(64, 64, 10),
        train,
        strategy=firesteel.SyncSGD(),
        optimizer=firesteel.Adam(lr=3e-3),
        on=firesteel.Spark(workers=2, start_seconds=60),
        epochs=10,
        progress="none",
    )


def through_connect(master: str) -> str:
    """Train through a Spark Connect server that runs on the cluster; in a process of its own, which has no JVM."""
    import pyspark

    home = Path(pyspark.__file__).parent
    conf = {
        "spark.driver.host": DRIVER,
        "spark.driver.bindAddress": DRIVER,
        "spark.ui.enabled": "false",
        "spark.connect.grpc.binding.address": DRIVER,
        "spark.executorEnv.PYTHONPATH": str(Path(__file__).parents[1]),
    }
    flags = [part for k, v in conf.items() for part in ("--conf", f"{k}={v}")]
    server = subprocess.Popen(
        [home / "bin" / "spark-submit", "--class", "org.apache.spark.sql.connect.service.SparkConnectServer",
         "--master", master, *flags, "spark-internal"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        code = (
            "import time\nfrom pyspark.sql import SparkSession\nfrom benchmarks.wire import trained\n"
            f"for _ in range(60):\n    try:\n        s = SparkSession.builder.remote('sc://{DRIVER}:15002').getOrCreate()\n"
            "        s.range(1).count()\n        break\n    except Exception:\n        time.sleep(1)\n"
            "print(trained(s))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
        return done.stdout.strip().splitlines()[-1] if done.returncode == 0 else f"FAILED: {done.stderr[-2000:]}"
    finally:
        os.killpg(server.pid, 15)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--spark-hosts", help="path of the tool")
    flags.add_argument("--mbit", type=int, default=200)
    given = flags.parse_args()
    tool = hosts_tool(given.spark_hosts)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    env = {**os.environ, "PYTHON": sys.executable}
    try:
        up = subprocess.run(["bash", tool, "up", "2", f"{given.mbit}mbit"], env=env, check=True, capture_output=True, text=True)
        master = up.stdout.split()[-1]
        wire = given.mbit * 1e6 / 8
        session = classic(master)
        rates = {mb: rate_of(session, int(mb * 1e6 / 4), rounds) for mb, rounds in ((4.8, 10), (20, 5))}
        run = trained(session)
        session.stop()
        connect = through_connect(master)
    finally:
        _ = subprocess.run(["bash", tool, "down"], env=env, capture_output=True)
    rows = [[f"{mb:g} MB", f"{rate / 1e6:.1f}", f"{rate / wire:.0%}"] for mb, rate in rates.items()]
    text = "\n\n".join(
        [
            "## Across two hosts",
            f"Two workers in network namespaces, links of {given.mbit} Mbit/s ({wire / 1e6:g} MB/s), the driver at a third "
            "address; `make bench-wire`. Payload that each worker sends per second of an all-reduce, without the headers of "
            "TCP and IP; the bar is 85 % of the wire.",
            report.table(["all-reduce of", "MB/s", "of the wire"], rows),
            f"Training on digits there: {run}.",
            f"The same through a Spark Connect server on that cluster: {connect}.",
        ]
    )
    print(text)
    report.write("bench-wire", text)


if __name__ == "__main__":
    main()
