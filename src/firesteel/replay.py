"""`Replay`: an asynchronous run again, bit for bit, in one process, from the log of its servers.

The order in which pulls and pushes reached each shard is all that chance decided. Here every worker is a coroutine that runs
until it needs a center it has not been given; the log says whose turn it is.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from firesteel.center_process import Notes, make_worker, score, split_shard
from firesteel.checkpoint import Board, Folder
from firesteel.data.source import FrameSource, stream
from firesteel.errors import Diverged, StrategyError, UsageError
from firesteel.job import Job, Score
from firesteel.net.center import Center, Note, Rules
from firesteel.net.hosting import Collected, Serve
from firesteel.net.meeting import Meeting
from firesteel.net.protocol import Vec
from firesteel.net.serving import cut
from firesteel.results import ipc, rows
from firesteel.run import Run
from firesteel.trace import Trace
from firesteel.worker import Worker

ARRIVALS = "arrivals.arrow"
_compute: Any = pc  # its functions are made at run time, so a type checker does not know them


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
    threads, size = torch.get_num_threads(), on.workers
    meaning = on.meaning
    now = {name: value for name, value in job.settings.items() if name in meaning["settings"]}
    if now != meaning["settings"]:
        raise UsageError(f"the log is of a run with {meaning['settings']}, this call has {now}.")
    if meaning.get("diverged"):
        raise UsageError("the log is of a run that diverged: pushes after its center was rolled back are not in it.")
    if meaning.get("restarts"):
        raise UsageError("the log is not whole: a server was lost and started again on the way.")
    job = replace(job, threads=meaning.get("threads", 1))
    torch.set_num_threads(job.threads or 1)
    _ = torch.set_flush_denormal(True)
    state = torch.get_rng_state()
    try:
        shards = _batches(source, size, meaning.get("spark"))
        if isinstance(job.work, Score):
            device = torch.device("cpu")
            scored = [list(score(job, Meeting(r, size, "", 0, ""), shards(r), device)) for r in range(size)]
            return [batch for part in scored for batch in part], None
        if serve is None:
            raise UsageError("only runs of strategies with a server can be replayed; others repeat bit for bit by themselves.")
        return _replay(job, shards, on, serve)
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)


def _batches(source: Any, size: int, spark: dict[str, Any] | None) -> Callable[[int], Any]:
    """Each worker's rows, as they were dealt out then: by Spark, or by this machine."""
    if spark is None and not isinstance(source, FrameSource):
        return lambda rank: stream(source, rank, size)
    from firesteel.data.frame import dealt_tables, frame_of

    tables = dealt_tables(FrameSource(frame_of(source), source.columns), size, spark is None or spark["shuffle"])
    return lambda rank: iter(tables[rank].to_batches())


def _replay(job: Job, shards: Callable[[int], Any], on: Replay, serve: Serve) -> tuple[list[pa.RecordBatch], Collected]:
    size, count = on.workers, serve.server.shards
    rules = Rules(serve.server.max_ahead, serve.server.max_growth, serve.server.record_every)
    kept: list[list[tuple[dict[str, float], Vec, Vec]]] = [[] for _ in range(count)]
    parts = cut(serve.params.numel(), count)

    def keeping(shard: int) -> Callable[[Vec, Vec, dict[str, float]], None]:
        return lambda params, statistics, mark: kept[shard].append((mark, params.clone(), statistics))

    centers = [
        Center(serve.params[p].clone(), job.strategy, size, None if s else serve.statistics, rules, keeping(s))
        for s, p in enumerate(parts)
    ]
    held: dict[int, tuple[int, int]] = {}
    traces: dict[int, Trace] = {}

    def make(rank: int, attempt: int) -> Worker:
        whole, shard, out = split_shard(job, rank, shards(rank), "")
        held[rank] = (shard.rows, out.rows)
        traces[rank] = Trace(rank)
        return make_worker(job, rank, whole, shard, torch.device("cpu"), traces[rank], attempt)

    play(on.log, centers, parts, job.strategy, size, make, job.checkpoint_steps)
    batches: list[pa.RecordBatch] = []
    for rank in range(size):
        if rank not in held:
            _ = make(rank, 0)
        report = {
            "samples": traces[rank].samples,
            "first_step_at": traces[rank].first_step_at,
            "train_rows": held[rank][0],
            "held_rows": held[rank][1],
            "device": "cpu",
            "threads": job.threads,
            "timing": {"data_seconds": 0.0, "train_seconds": traces[rank].clock.now()},
        }
        batches += [*rows("report", rank, json.dumps(report).encode()), *rows("trace", rank, ipc(traces[rank].table()))]
    params = torch.cat([c.params for c in centers])
    first = centers[0]
    status = {
        "stopped": bool(_compute.any(_compute.greater(on.log["told"], 0)).as_py()),
        "most_at_once": first.most_at_once,
        "diverged": first.diverged,
        "replayed": "bit-equal" if digest(params) == on.meaning["digest"] else "different",
    }
    models = [(k[0][0], torch.cat([part[1] for part in k]), k[0][2]) for k in zip(*kept, strict=False)]
    return batches, Collected(params, first.statistics, models, on.log, status, first.mark(_last_second(on.log)))


def _last_second(log: pa.Table) -> float:
    return max(log["seconds"].to_pylist(), default=0.0)


# ---- the play --------------------------------------------------------------------------------------------------------

_Post = tuple[str, int, Note | None, Tensor | None]  # kind, sequence, note, numbers


@final
class _Awaited:
    """A center that has been asked for."""

    def __init__(self, shards: int) -> None:
        self.parts: list[Tensor | None] = [None] * shards
        self.told: int = 0

    @property
    def there(self) -> bool:
        return all(part is not None for part in self.parts)

    def __await__(self) -> Generator[_Awaited, None, Tensor]:
        if not self.there:
            yield self
        return torch.cat([part for part in self.parts if part is not None])


@final
class _Done:
    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


@final
class _Player:
    """One attempt of one worker; it is its own net."""

    def __init__(self, rank: int, size: int, parts: Sequence[slice]) -> None:
        self.rank: int = rank
        self.size: int = size
        self.posts: list[deque[_Post]] = [deque() for _ in parts]
        self.asked: list[deque[_Awaited]] = [deque() for _ in parts]
        self.joined: set[int] = set()
        self.sequence: int = 0
        self.steps_done: int = 0
        self.waiting: _Awaited | None = None
        self.program: Any = None
        self.worker: Any = None
        self.generator: Tensor | None = None
        self.note: Any = None
        self._parts: Sequence[slice] = parts

    def pull(self) -> _Awaited:
        found = _Awaited(len(self._parts))
        for posts, asked in zip(self.posts, self.asked, strict=True):
            posts.append(("pull", 0, None, None))
            asked.append(found)
        return found

    def push(self, delta: Vec) -> _Done:
        self.sequence += 1
        note = self.note()
        statistics = self.worker.buffers
        for shard, (posts, part) in enumerate(zip(self.posts, self._parts, strict=True)):
            numbers = delta.detach()[part].clone()
            if not shard and statistics.numel():
                numbers = torch.cat([numbers, statistics])
            posts.append(("push", self.sequence, note, numbers))
        return _Done()

    def exchange(self, delta: Vec) -> _Awaited:
        _ = self.push(delta)
        return self.pull()

    def publish(self, params: Vec, *rest: Tensor) -> None:
        """The center is the model that the world sees."""

    def resume(self, *default: Tensor) -> tuple[Tensor, ...]:
        return default

    def start(self, strategy: Any, worker: Worker, every: int | None) -> None:
        self.worker = worker
        self.generator = torch.get_rng_state()
        worker.fast_forward(self.steps_done)
        self.note = Notes(worker, every)
        self.program = strategy.run(worker, self) if worker.plan.total_steps > self.steps_done else None

    @property
    def ready(self) -> bool:
        return self.program is not None and (self.waiting is None or self.waiting.there)

    def go_on(self) -> None:
        """Run to the next center that is not there yet; every worker has the global generator for itself."""
        assert self.generator is not None
        torch.set_rng_state(self.generator)
        try:
            self.waiting = self.program.send(None)
        except (StopIteration, Diverged):
            self.program = None
        self.generator = torch.get_rng_state()
        if self.program is not None and not isinstance(self.waiting, _Awaited):
            raise StrategyError("the strategy awaited something that is not a verb of its net.")


def play(
    log: pa.Table,
    centers: list[Center],
    parts: Sequence[slice],
    strategy: Any,
    size: int,
    make: Callable[[int, int], Worker],
    every: int | None = None,
) -> None:
    """Let the log's events happen to the centers, with workers that `make(rank, attempt)` gives.

    Raises:
        UsageError: the log does not fit: other rows, settings or code than those of the run it is of.
    """
    columns = ["shard", "kind", "worker", "attempt", "sequence", "version", "steps_done", "seconds", "told"]
    queues: list[deque[dict[str, Any]]] = [deque() for _ in centers]
    for event in log.select(columns).to_pylist():
        queues[event["shard"]].append(event)
    for queue in queues:
        if queue and queue[0]["version"]:
            raise UsageError("the log is not whole: it begins where an earlier run had stopped.")
    players: dict[tuple[int, int], _Player] = {}
    while any(queues):
        moved = False
        for shard, queue in enumerate(queues):
            while queue and _happen(queue[0], shard, centers[shard], players, parts, size):
                moved = True
                _ = queue.popleft()
        for (rank, attempt), player in players.items():
            if player.worker is None and len(player.joined) == len(centers):
                player.start(strategy, make(rank, attempt), every)
                moved = True
            if player.ready:
                player.go_on()
                moved = True
        if not moved:
            event = next(q[0] for q in queues if q)
            raise UsageError(
                f"the log does not fit this run: after {centers[event['shard']].version} pushes, shard {event['shard']} has a "
                f"{event['kind']} of worker {event['worker']}, which that worker does not come to here."
            )


def _happen(
    event: dict[str, Any],
    shard: int,
    center: Center,
    players: dict[tuple[int, int], _Player],
    parts: Sequence[slice],
    size: int,
) -> bool:
    """Let one event happen, if the worker has come to it."""
    kind, worker, attempt, seconds = event["kind"], event["worker"], event["attempt"], event["seconds"]
    if kind == "join":
        sequence, done = center.join(worker, attempt, seconds)
        player = players.setdefault((worker, attempt), _Player(worker, size, parts))
        player.joined.add(shard)
        player.sequence, player.steps_done = max(player.sequence, sequence), max(player.steps_done, done)
        return True
    player = players[worker, attempt]
    if kind == "leave":
        center.leave(worker, attempt, seconds)
        return True
    if kind == "lost":
        center.agree(worker, attempt, event["sequence"], event["steps_done"], seconds)
        return True
    if not player.posts[shard] or player.posts[shard][0][0] != kind:
        return False
    _, sequence, note, numbers = player.posts[shard].popleft()
    if kind == "pull":
        into = torch.empty_like(center.params)
        _ = center.pull(worker, attempt, seconds, into, event["told"])
        asked = player.asked[shard].popleft()
        asked.parts[shard] = into.clone()
        if event["told"]:
            player.worker.stopping = True
    else:
        assert note is not None and numbers is not None
        _ = center.push(worker, attempt, sequence, note, numbers, seconds)
    return True
