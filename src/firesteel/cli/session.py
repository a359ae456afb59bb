"""Where a command runs: this machine, or a Spark session made for it."""

from __future__ import annotations

import sys

from firesteel.errors import UsageError
from firesteel.local.world import Local
from firesteel.server import DEFAULT, Server
from firesteel.sim.cluster import Cluster
from firesteel.sim.world import Simulated
from firesteel.spark.session import spark_session
from firesteel.spark.world import Spark


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
