"""`Simulated`: a run on an imagined cluster, in this process and in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import pyarrow as pa

from firesteel.checkpoint import Board
from firesteel.data.source import FrameSource, TableSource, stream
from firesteel.errors import FiresteelError, UsageError
from firesteel.failures import describe, raise_cause
from firesteel.job import Job, Score
from firesteel.lent import lent
from firesteel.net.hosting import Collected, Serve
from firesteel.net.protocol import native
from firesteel.server import DEFAULT, Server
from firesteel.sim.center import Servers
from firesteel.sim.cluster import Cluster
from firesteel.sim.fabric import Fabric
from firesteel.sim.gang_run import GangRun
from firesteel.sim.server_run import ServerRun, scores
from firesteel.sim.simulation import Simulation
from firesteel.sim.watching import Ticker, interrupts


@final
@dataclass(frozen=True)
class Simulated:
    """Train on an imagined cluster: real gradients, virtual seconds, one thread, the same result every time.

    All seconds of the run (history, trace, `max_seconds`) are virtual. What a synchronous strategy learns is bit-equal to
    `Local` with two workers; with a server it depends on the order of arrival, which the cluster decides. No points to resume
    from are written: `run_dir` gets no checkpoints, and `checkpoint_steps` only says how often a model is kept for the history.
    """

    cluster: Cluster
    server: Server = DEFAULT
    """Shards and rules of the center, for strategies that have one; what serving costs is the cluster's `merging`."""
    threads: int = 1
    """PyTorch threads of this process meanwhile, >= 1; results are bit-equal only to worlds with as many for each worker."""
    max_events: int = 10**8
    """A strategy that posts and waits more often than this is taken to be one that never ends."""
    max_virtual_seconds: float = math.inf
    """So is one whose clock passes this; to stop a run in good order, give `train(max_seconds=...)`."""

    def __post_init__(self) -> None:
        if not isinstance(self.cluster, Cluster):
            raise UsageError(f"Simulated(cluster={self.cluster!r}): give a firesteel.Cluster, or Cluster.load(path).")
        if self.threads < 1 or self.max_events < 1 or not self.max_virtual_seconds > 0:
            raise UsageError(f"Simulated needs threads >= 1, max_events >= 1 and max_virtual_seconds > 0; got {self}.")
        if self.server.tls:
            raise UsageError("Simulated(server=Server(tls=...)): nothing is sent here, so there is nothing to encrypt.")

    @property
    def workers(self) -> int:
        return self.cluster.workers


def run(
    job: Job, source: Any, on: Simulated, watch: Callable[[Board], None], serve: Serve | None = None
) -> tuple[list[pa.RecordBatch], Collected | None]:
    """The same interface as the other worlds'."""
    _check(job)
    if isinstance(source, FrameSource):
        from firesteel.data.frame import to_table

        source = TableSource(to_table(source.frame, source.columns), source.columns)
    job, size = replace(job, threads=on.threads), on.workers
    with lent(on.threads):
        try:
            if isinstance(job.work, Score):
                return scores(job, size, lambda rank: stream(source, rank, size)), None
            fabric = Fabric(on.cluster, on.server.shards if serve else 0)
            simulation = Simulation(fabric, on.max_events, on.max_virtual_seconds)
            with interrupts() as board:
                ticker = Ticker(board, watch)
                if serve is None:
                    return GangRun(job, source, on.cluster, simulation, ticker).run(), None
                bounded = on.server.max_ahead is not None
                return ServerRun(
                    job,
                    lambda rank: stream(source, rank, size),
                    on.cluster,
                    simulation,
                    ticker,
                    serve,
                    lambda centers, parts: Servers(simulation, centers, parts, bounded, job.max_seconds),
                ).run()
        except FiresteelError:
            raise
        except Exception as error:
            rank = getattr(error, "firesteel_rank", None)
            if rank is None:
                raise
            raise_cause([describe(error, rank)], "")


def _check(job: Job) -> None:
    if native(job.strategy):
        raise UsageError(
            f"{type(job.strategy).__name__} is run by PyTorch's own sharding, which knows no virtual time. Use "
            "on=Local(...) or Spark(...); NeuronParallel and Pipeline can be simulated."
        )
    if job.early_stopping is not None:
        raise UsageError(
            "early stopping evaluates while all workers wait, which virtual time does not do; give epochs or max_seconds, and "
            "read the best row of run.history."
        )
    if job.device == "cuda":
        raise UsageError("device='cuda': a simulation computes on this process's CPU; leave device at 'auto'.")
