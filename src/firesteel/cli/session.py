"""Where a command runs: this machine, or a Spark session made for it."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

from firesteel.errors import UsageError
from firesteel.local.world import Local
from firesteel.server import DEFAULT, Server
from firesteel.sim.cluster import Cluster
from firesteel.sim.world import Simulated
from firesteel.spark.world import Spark


def spark_session(master: str | None, remote: str | None) -> Any:
    """A session on the master or Spark Connect server given; whatever Spark's own settings name if neither is."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise UsageError("--on spark needs PySpark: pip install 'firesteel[spark]'.") from error
    if master and remote:
        raise UsageError("give --master or --remote, not both.")
    builder: Any = SparkSession.builder
    if remote:
        return _stopped_at_exit(builder.remote(remote).getOrCreate())
    if master:
        builder = builder.master(master)
    builder = builder.appName("firesteel").config("spark.ui.showConsoleProgress", "false").config("spark.log.level", "ERROR")
    return _stopped_at_exit(builder.getOrCreate())


def _stopped_at_exit(session: Any) -> Any:
    """Spark's processes end badly and loudly when the driver goes without a word."""
    _ = atexit.register(session.stop)
    return session


def world(
    on: str, workers: int | None, master: str | None, remote: str | None, server: Server = DEFAULT
) -> Local | Spark | Simulated:
    """The world that the flags name."""
    if on == "spark":
        return Spark(workers=2 if workers is None else workers, session=spark_session(master, remote), server=server)
    if master or remote:
        raise UsageError("--master and --remote go with --on spark.")
    if on == "local":
        return Local(workers=2 if workers is None else workers, server=server)
    if not on.endswith(".json"):
        raise UsageError(f"--on {on!r}: it is local, spark, or the JSON file of an imagined cluster.")
    cluster = Cluster.load(on)
    if workers is not None and workers != cluster.workers:
        absent = [repr(event) for event in cluster.events if event.worker >= workers]
        if absent:
            print(f"note: a cluster of {workers} workers leaves out {', '.join(absent)} of {on}.", file=sys.stderr)
        cluster = cluster.resized(workers)
    return Simulated(cluster, server)
