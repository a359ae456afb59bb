"""`Spark`: a run in a gang of barrier tasks, classic or through Spark Connect."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, final

import cloudpickle
import pyarrow as pa

from firesteel.checkpoint import Board, Folder, StoreBoard
from firesteel.data.frame import deal, frame_of
from firesteel.data.source import FrameSource
from firesteel.errors import ClusterError, FiresteelError, Interrupted, RendezvousTimeout, UsageError
from firesteel.failures import failures_on, found_in, raise_cause
from firesteel.job import Job, Score
from firesteel.net.hosting import Collected, Serve, from_rows
from firesteel.net.meeting import serve_store
from firesteel.server import DEFAULT, Server
from firesteel.spark.task import Gang, task
from firesteel.stopping import Patience, plain_interrupts

_LAST_WORDS_SECONDS = 0.5  # after the first failure: others may know its cause
_WORDLESS = "it died without a word: killed, or out of memory"
RESULT_DDL = "kind string, rank int, payload binary"


@final
@dataclass(frozen=True)
class Spark:
    """Train in `workers` tasks of a Spark application, all running at once (a barrier stage)."""

    workers: int = 2
    """Number of tasks, >= 1; each needs a free slot."""
    session: Any = field(default=None, repr=False, compare=False)
    """The SparkSession; None takes the DataFrame's own, or the active one."""
    shuffle: bool = True
    """Deal the rows out evenly, in a fixed order. False takes the DataFrame's own partitions, one for each worker."""
    threads: int | None = 1
    """PyTorch threads of each worker."""
    max_memory_bytes: int = 2 * 2**30
    """Rows of one worker beyond this size go to a memory-mapped file on the executor."""
    timeout_seconds: float = 60.0
    """A worker that is silent in a collective for longer is taken for dead."""
    start_seconds: float = 20.0
    """All workers must have started by then; the time that Spark needs to compute the DataFrame is not counted."""
    server: Server = DEFAULT
    """How the center is served, for strategies that have one: by the driver, through Spark Connect by worker 0."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"workers={self.workers}: a run needs at least one worker.")


def run(
    job: Job, source: Any, on: Spark, watch: Callable[[Board], None], serve: Serve | None = None
) -> tuple[list[pa.RecordBatch], Collected | None]:
    """Run the job; returns the results of all workers, as `results.RESULT` rows, and what the servers hold if there are any.

    A gang is a barrier stage. Workers with a server are plain tasks, which Spark starts again when they are lost; through
    Spark Connect, where no server can sit in the driver, they are a gang too, and worker 0 hosts the servers.
    """
    session = session_of(on, source)
    classic = not _is_connect(session)
    frame = frame_of(source, session)
    scoring = isinstance(job.work, Score)
    barrier = not scoring and (serve is None or not classic)
    if classic:
        _check_conf(session, barrier)
    job = replace(job, threads=on.threads, max_memory_bytes=on.max_memory_bytes)
    dealt = deal(FrameSource(frame, source.columns), on.workers, on.shuffle)
    store, board, host, bind, port = None, None, None, None, 0
    with contextlib.ExitStack() as stack:
        if classic:
            stack.enter_context(_slots(session, on)) if barrier else _tell_slots(session, on)
            conf = session.sparkContext.getConf()
            host = conf.get("spark.driver.host")
            bind = conf.get("spark.driver.bindAddress", host)
            store = serve_store(bind)
            port, board = store.port, StoreBoard(store, job.secret, job.key)
        elif job.settings.get("notes"):
            board = Folder(job.settings["notes"])
        hosts = stack.enter_context(serve(host, store, port, bind)) if serve and host is not None else None
        if hosts is not None:
            job = replace(job, work=hosts.work)
        gang = Gang(
            cloudpickle.dumps(job),
            on.workers,
            host,
            port,
            job.secret,
            on.timeout_seconds,
            on.start_seconds,
            job.settings.get("notes"),
            barrier,
            None if hosts is not None or serve is None else cloudpickle.dumps(serve),
        )
        result = dealt.mapInArrow(task(gang), RESULT_DDL, barrier=barrier)

        def tick(board: Board) -> None:
            if hosts is not None:
                hosts.tick(board, job.epochs)
            watch(board)

        batches = _collect(session, result, job, on, board, tick, barrier and not classic)
        if hosts is not None:
            return batches, hosts.collect()
        return batches, from_rows(batches) if serve else None


def session_of(on: Spark, source: Any) -> Any:
    """The session of a run: the one given, the DataFrame's, or the active one."""
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise UsageError("on=Spark(...) needs PySpark: pip install 'firesteel[spark]'.") from error
    if on.session is not None:
        return on.session
    if isinstance(source, FrameSource):
        return source.frame.sparkSession
    return SparkSession.getActiveSession() or SparkSession.builder.getOrCreate()


def _is_connect(session: Any) -> bool:
    return type(session).__module__.startswith("pyspark.sql.connect")


def _check_conf(session: Any, barrier: bool) -> None:
    conf = session.sparkContext.getConf()
    if barrier and conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise UsageError(
            "spark.dynamicAllocation.enabled is true: a gang needs all its executors at once, which Spark refuses to "
            "promise while it scales them. Set spark.dynamicAllocation.enabled=false and a fixed spark.executor.instances."
        )
    if conf.get("spark.speculation", "false") == "true":
        raise UsageError("spark.speculation is true: Spark would run a slow worker twice. Set spark.speculation=false.")


# ---- slots -----------------------------------------------------------------------------------------------------------

_taken: dict[str, int] = {}
_changed = threading.Condition()


def slots(session: Any) -> int:
    """How many tasks the application can run at once now (classic sessions only)."""
    context = session.sparkContext._jsc.sc()
    return int(context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile()))


def _tell_slots(session: Any, on: Spark) -> None:
    """Workers with a server may run one after the other, but then they do not train together: say so."""
    have = slots(session)
    dynamic = session.sparkContext.getConf().get("spark.dynamicAllocation.enabled", "false") == "true"
    if 0 < have < on.workers and not dynamic:
        warnings.warn(
            f"{on.workers} workers were asked for, but Spark can run {have} tasks at once ({session.sparkContext.master}): the "
            "others start when these have ended, from the center as it is then. The run records how many really ran at once.",
            stacklevel=2,
        )


@contextlib.contextmanager
def _slots(session: Any, on: Spark) -> Iterator[None]:
    """Hold `workers` slots among the gangs of this driver, so that two of them take turns where they do not both fit."""
    context = session.sparkContext
    until = time.monotonic() + on.start_seconds
    have = slots(session)
    local = context.master.startswith("local[") or context.master == "local"
    while have < on.workers and not local and time.monotonic() < until:
        _ = threading.Event().wait(0.1)  # executors may still be registering
        have = slots(session)
    if have < on.workers:
        raise UsageError(
            f"{on.workers} workers were asked for, but Spark can run {have} tasks at once ({context.master}). A barrier "
            f"stage starts all its tasks or none. Set workers={max(1, have)}, or give Spark more cores."
        )
    name = context.applicationId
    with _changed:
        _ = _changed.wait_for(lambda: _taken.get(name, 0) + on.workers <= have)
        _taken[name] = _taken.get(name, 0) + on.workers
    try:
        yield
    finally:
        with _changed:
            _taken[name] -= on.workers
            _changed.notify_all()


# ---- the job ---------------------------------------------------------------------------------------------------------


def _collect(
    session: Any, result: Any, job: Job, on: Spark, board: Board | None, watch: Callable[[Board], None], timed: bool
) -> list[pa.RecordBatch]:
    tag, got, done = f"firesteel-{job.secret[:12]}", {}, threading.Event()

    def collect() -> None:
        try:
            session.addTag(tag)
            if not _is_connect(session):
                said = f"Firesteel: {job.settings['strategy']} on {on.workers} workers"
                session.sparkContext.setLocalProperty("spark.job.description", said)
            got["table"] = result.toArrow()
        except BaseException as error:
            got["error"] = error
        finally:
            done.set()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    patience, failed_at, started = Patience(), None, False
    began = time.monotonic()
    with plain_interrupts():
        try:
            while True:
                try:
                    if done.wait(0.1):
                        break
                    patience.check()
                    if board is None:
                        continue
                    watch(board)
                    # Workers say at once what ails them; Spark takes seconds to give up the stage, so it is not waited for.
                    if failed_at is None and failures_on(board, on.workers):
                        failed_at = time.monotonic()
                    if failed_at is not None and time.monotonic() - failed_at > _LAST_WORDS_SECONDS:
                        raise_cause(failures_on(board, on.workers), _WORDLESS)
                    started = started or not timed or board.get("started") is not None
                    if not started and time.monotonic() - began > on.start_seconds:
                        with contextlib.suppress(Exception):
                            session.interruptTag(tag)
                        raise _too_few(session, on)
                except KeyboardInterrupt as pressed:
                    patience.ask(board, pressed)
        except BaseException:
            with contextlib.suppress(Exception):
                session.interruptTag(tag)
            raise
    if "error" in got:
        _raise(got["error"], on, board, patience.asked)
    return got["table"].to_batches()


def _too_few(session: Any, on: Spark) -> RendezvousTimeout:
    seen = _slots_seen(session, on.workers)
    remedy = (
        f"Set workers={seen}, or give Spark more cores."
        if seen < on.workers
        else "The DataFrame may take long to compute: cache it, or raise Spark(start_seconds=...)."
    )
    return RendezvousTimeout(
        f"{on.workers} workers were asked for and had not all started after {on.start_seconds:g} s; Spark ran {seen} tasks at "
        f"once when it was tried. {remedy}"
    )


def _slots_seen(session: Any, workers: int) -> int:
    """How many tasks really run at once: Spark Connect has no call that tells, so a small job tries it."""

    def hold(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import threading
        import time

        for _ in batches:
            pass
        began = time.time()
        _ = threading.Event().wait(1.0)
        yield pa.RecordBatch.from_pydict({"began": [began], "ended": [time.time()]})

    frame = session.range(0, workers, 1, workers).mapInArrow(hold, "began double, ended double")
    spans = [(r["began"], r["ended"]) for r in frame.toArrow().to_pylist()]
    return max(sum(b <= at < e for b, e in spans) for at, _ in spans)


def _raise(error: BaseException, on: Spark, board: Board | None, asked: bool) -> None:
    if isinstance(error, FiresteelError):
        raise error
    text = str(error)
    failures = found_in(text)
    if board is not None:
        failures += failures_on(board, on.workers)
    if failures:
        raise_cause(failures, _WORDLESS)
    if asked:
        raise Interrupted("stopped by Ctrl-C.") from None
    missing = re.search(r"ModuleNotFoundError: No module named '([^']+)'", text)
    if missing:
        raise ClusterError(
            f"the Python of the executors has no package '{missing.group(1)}'. Install it there, or ship an environment: "
            "see docs/spark.md, 'Packages on executors'."
        ) from None
    if "exited unexpectedly" in text or "ExecutorLostFailure" in text or "Python worker" in text:
        memory = " Exit 137 means that memory ran out: raise spark.executor.memoryOverhead." if "137" in text else ""
        raise_cause([], f"a worker process has died: {_first_line(text)}.{memory}")
    raise ClusterError(f"Spark could not run the gang: {_first_line(text)}") from error


def _first_line(text: str) -> str:
    telling = [line.strip() for line in text.splitlines() if "Exception" in line or "Error" in line]
    return (telling or text.strip().splitlines() or ["no reason given"])[0][:500]
