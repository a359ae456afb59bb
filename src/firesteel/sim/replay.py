"""`Replay`: an asynchronous run again, bit for bit, in this process, from the log of its servers.

The order in which pulls and pushes reached each shard is all that chance decided. Here the log says whose turn it is, and
virtual seconds are the log's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, final

import pyarrow as pa
import torch

from firesteel.checkpoint import Board, Folder
from firesteel.data.source import FrameSource, stream
from firesteel.errors import UsageError
from firesteel.job import Job, Score
from firesteel.lent import lent
from firesteel.net.hosting import Collected, Serve
from firesteel.net.protocol import Vec
from firesteel.run import Run
from firesteel.sim.cluster import Cluster
from firesteel.sim.fabric import Fabric
from firesteel.sim.script import Script
from firesteel.sim.server_run import ServerRun, scores
from firesteel.sim.simulation import Simulation
from firesteel.sim.watching import Ticker, interrupts

ARRIVALS = "arrivals.arrow"


@final
@dataclass(frozen=True)
class Replay:
    """Train again what another run has trained, in the order in which its servers were reached, in this process.

    Give `firesteel.train` the same arguments as then but for `on=Replay(run)`. `Run.settings["replayed"]` says whether the
    center came out bit-equal.
    """

    of: Any = field(repr=False)
    """The `Run`, its `arrivals`, or the path of its run folder."""

    @property
    def log(self) -> pa.Table:
        """All shards' events, with the run's settings as metadata."""
        if isinstance(self.of, Run):
            found = self.of.arrivals
        elif isinstance(self.of, pa.Table):
            found = self.of
        else:
            data = Folder(str(self.of)).get(ARRIVALS)
            found = None if data is None else pa.ipc.open_stream(data).read_all()
        if found is None:
            raise UsageError(
                f"{self.of!r} has no log of arrivals: only runs whose strategy has a server do, and in a run folder only those "
                "that have ended."
            )
        return found

    @property
    def meaning(self) -> dict[str, Any]:
        """What the log's run was: workers, shards, settings, digest of the final center."""
        return json.loads((self.log.schema.metadata or {}).get(b"firesteel", b"{}"))

    @property
    def workers(self) -> int:
        return int(self.meaning["workers"])

    @property
    def server(self) -> Any:
        from firesteel.server import Server

        return Server(**self.meaning["server"])


def with_meaning(collected: Collected, job: Job, on: Any, threads: int) -> pa.Table:
    """The log of a run that has ended, fit to be replayed."""
    workers, server = on.workers, on.server
    spark = {"shuffle": on.shuffle} if hasattr(on, "shuffle") else None
    kept = {name: getattr(server, name) for name in ("shards", "max_ahead", "max_growth", "record_every")}
    settings = {name: value for name, value in job.settings.items() if name != "notes"}
    meaning = {"workers": workers, "server": kept, "digest": digest(collected.params), "settings": settings, "spark": spark}
    meaning |= {"threads": threads, "diverged": bool(collected.status["diverged"]), "restarts": collected.status["restarts"]}
    return collected.log.replace_schema_metadata({"firesteel": json.dumps(meaning)})


def digest(params: Vec) -> str:
    raw: Any = params.contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(raw).hexdigest()


# ---- the world -------------------------------------------------------------------------------------------------------


def run(
    job: Job, source: Any, on: Replay, watch: Callable[[Board], None], serve: Serve | None = None
) -> tuple[list[pa.RecordBatch], Collected | None]:
    """The same interface as the other worlds'."""
    size, meaning = on.workers, on.meaning
    now = {name: value for name, value in job.settings.items() if name in meaning["settings"]}
    if now != meaning["settings"]:
        raise UsageError(f"the log is of a run with {meaning['settings']}, this call has {now}.")
    if meaning.get("diverged"):
        raise UsageError("the log is of a run that diverged: pushes after its center was rolled back are not in it.")
    if meaning.get("restarts"):
        raise UsageError("the log is not whole: a server was lost and started again on the way.")
    job = replace(job, threads=meaning.get("threads", 1))
    with lent(job.threads or 1):
        shards = _batches(source, size, meaning.get("spark"))
        if isinstance(job.work, Score):
            return scores(job, size, shards), None
        if serve is None:
            raise UsageError("only runs of strategies with a server can be replayed; others repeat bit for bit by themselves.")
        return _replay(job, shards, on, watch, serve)


def _batches(source: Any, size: int, spark: dict[str, Any] | None) -> Callable[[int], Any]:
    """Each worker's rows, as they were dealt out then: by Spark, or by this machine."""
    if spark is None and not isinstance(source, FrameSource):
        return lambda rank: stream(source, rank, size)
    from firesteel.data.frame import dealt_tables, frame_of

    tables = dealt_tables(FrameSource(frame_of(source), source.columns), size, spark is None or spark["shuffle"])
    return lambda rank: iter(tables[rank].to_batches())


def _replay(
    job: Job, shards: Callable[[int], Any], on: Replay, watch: Callable[[Board], None], serve: Serve
) -> tuple[list[pa.RecordBatch], Collected]:
    cluster = Cluster(on.workers)
    simulation = Simulation(Fabric(cluster, 0))
    with interrupts() as board:
        ticker = Ticker(board, watch)
        played = ServerRun(
            job, shards, cluster, simulation, ticker, serve, lambda centers, parts: Script(simulation, centers, parts, on.log)
        )
        batches, collected = played.run()
    verdict = "bit-equal" if digest(collected.params) == on.meaning["digest"] else "different"
    return batches, replace(collected, log=on.log, status={**collected.status, "replayed": verdict})
