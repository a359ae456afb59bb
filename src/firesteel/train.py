"""`firesteel.train`: the one call behind which everything stands."""

from __future__ import annotations

import inspect
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import torch
from torch import nn

from firesteel import randomness
from firesteel.apart import resumed, train_apart
from firesteel.checkpoint import Board, Folder, Points
from firesteel.data.columns import Features
from firesteel.data.shard import build_shard
from firesteel.data.source import ParquetSource, TableSource, resolve, stream
from firesteel.errors import FiresteelError, Interrupted, UsageError
from firesteel.evaluate import probe
from firesteel.flat import layout
from firesteel.job import EarlyStopping, Job, Model
from firesteel.local import world as local
from firesteel.local.world import Local, new_secret
from firesteel.losses import default_metrics, resolve_loss, resolve_metrics, target_kind
from firesteel.net.protocol import Strategy, full_batch, has_server, own_steps, splits
from firesteel.optim import Adam, ByEpochs, BySteps, OptimizerSettings, Schedule
from firesteel.outcome import assemble, described, rescue, unscored
from firesteel.parts.blueprint import Blueprint
from firesteel.parts.example import outline, revived
from firesteel.parts.making import taken
from firesteel.progress import Show, reporter
from firesteel.run import Run
from firesteel.sim import replay
from firesteel.sim import world as simulated
from firesteel.sim.replay import Replay
from firesteel.sim.world import Simulated
from firesteel.spark import world as spark
from firesteel.spark.world import Spark
from firesteel.strategies import Single, SyncSGD

World = Local | Spark | Simulated | Replay


def train(
    model: Model,
    data: Any,
    *,
    features: Features = "features",
    label: str = "label",
    weight: str | None = None,
    loss: str | Callable[..., Any] = "cross_entropy",
    optimizer: OptimizerSettings | None = None,
    schedule: Schedule | None = None,
    strategy: Strategy = SyncSGD(),
    on: World = Local(),
    batch_size: int | None = None,
    epochs: float | None = None,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    validation: Any = 0.1,
    score_training: float | None = None,
    metrics: tuple[str | Callable[..., Any], ...] | None = None,
    early_stopping: EarlyStopping | None = None,
    clip_norm: float | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    checkpoint_steps: int | None = None,
    resume: bool | str | Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    progress: Show | bool = "auto",
) -> Run:
    """Train a network on rows that are spread over workers.

    Args:
        model: an `nn.Module`, or a picklable call that makes one (every worker makes its own, from the same seed).
        data: a Spark DataFrame, the path of Parquet files, a `pyarrow.Table`, `(X, y)` or `(X, y, weights)` of NumPy
            arrays or tensors, or a data set of `firesteel.datasets`.
        features: a column, a list of columns, or `Image`, `Tokens`, `Sequence`.
        label, weight: columns. Weights are >= 0; means become weighted means.
        loss: "cross_entropy", "bce_with_logits", "mse", "mae", "huber", or a callable (outputs, targets) -> scalar mean
            (with a weight column: (outputs, targets, weights)). A callable gets int64 targets unless its attribute
            `target` is "value".
        optimizer: SGD, Adam, AdamW, Adagrad, or any class by `Optimizer(cls, **settings)`; Adam() if None.
        schedule: `BySteps(...)` or `ByEpochs(...)`.
        strategy: how workers train together; `firesteel strategies` lists them.
        on: `Local(workers=...)`, processes of this machine; `Spark(workers=...)`; or `Simulated(cluster)`, in virtual time.
        batch_size: rows of a step, per worker; 64 if None. Strategies whose every step sees all rows have none.
        epochs, max_steps, max_seconds: whichever ends first; 5 epochs if none is given (100 where a step is an epoch, as
            it sees all rows). Steps are each worker's own; seconds are wall seconds of training, evaluation left out.
        validation: a share of the rows, 0 .. 1; the name of a boolean column; other data of the same kind; or None.
            Published models are evaluated on it after training, outside the run's clock.
        score_training: a share of each worker's training rows, above 0 and at most 1, on which published models are evaluated
            as well: rows at even distances, rounded up. (`train_loss` is another figure: of the batches, while training.)
        metrics: "accuracy", "mse", "mae" or callables (outputs, targets) -> one number a row. None: accuracy for classes.
        early_stopping: `EarlyStopping(...)`, which evaluates while training runs.
        clip_norm: the largest norm of a gradient, > 0; longer ones are scaled down.
        seed: all randomness of the run comes from it.
        run_dir: a folder (path or URI that all workers see) for points to resume from and for progress.
        checkpoint_steps: steps between two kept publish points; an epoch if None.
        resume: True goes on from the newest point in `run_dir`, a path from the one there, on the same rows. Continues bit for
            bit, but for strategies with a server, where chance decides the order of arrival anew.
        device: "auto" takes a GPU for each worker where there are enough, else the CPU.
        progress: "auto", "bar", "lines" or "none" (True and False for auto and none).

    Returns:
        The run: model, history, metrics, trace.

    Raises:
        UsageError: something in the call does not fit; nothing was started where the caller's side could know.
        Diverged: the loss is no longer finite; the last good model is kept.
        WorkerFailed: code on a worker raised; the message ends with its traceback.
        ClusterError: a worker died, or workers did not find each other.
        Interrupted: Ctrl-C; `.run` holds what was reached.

    Example:
        >>> import firesteel
        >>> run = firesteel.train(
        ...     lambda: firesteel.models.MLP(64, 32, 10), firesteel.datasets.digits(), epochs=2, progress="none"
        ... )
        >>> run.status
        'finished'
    """
    called_at = time.time()
    began = time.perf_counter()
    target = target_kind(loss)
    source, share = resolve(data, features, label, weight, validation, target)
    metrics = default_metrics(loss) if metrics is None else tuple(metrics)
    if epochs is None and max_steps is None and max_seconds is None:
        epochs = 100 if full_batch(strategy) else 5
    sizes = {
        "batch_size": batch_size,
        "epochs": epochs,
        "max_steps": max_steps,
        "max_seconds": max_seconds,
        "clip_norm": clip_norm,
        "checkpoint_steps": checkpoint_steps,
    }
    _check_unused(strategy, {"optimizer": optimizer, "schedule": schedule, "clip_norm": clip_norm}, batch_size)
    optimizer, batch_size = Adam() if optimizer is None else optimizer, 64 if batch_size is None else batch_size
    _check(on, strategy, optimizer, schedule, device, sizes)
    _check_share(score_training)
    _check_stopping(early_stopping, metrics, bool(share) or source.columns.validation is not None)
    given = run_dir if run_dir is not None else resume if isinstance(resume, str | Path) else None
    folder = None if given is None else Folder(str(given)).absolute()
    job = Job(
        model,
        strategy,
        source.columns,
        loss,
        optimizer,
        schedule,
        metrics,
        batch_size,
        epochs,
        max_steps,
        max_seconds,
        share,
        score_training or 0.0,
        early_stopping,
        clip_norm,
        seed,
        folder,
        checkpoint_steps,
        None,
        device,
        secret=new_secret(),
        key=new_secret(),
        settings={"strategy": repr(strategy), "batch_size": batch_size, "seed": seed},
    )
    resolve_loss(loss, source.columns.weight is not None)
    resolve_metrics(metrics)
    if resume:
        job = _resumed(job, on, folder if resume is True else Folder(str(resume)).absolute())
    module = _initial(job, on.workers)
    if layout(module)[1] == torch.float64:
        columns = replace(source.columns, dtype="float64")
        source, job = replace(source, columns=columns), replace(job, columns=columns)
    example = _try_two_rows(job, module, source, on.workers)
    _check_pickles(job)
    reports = reporter(progress)
    with tempfile.TemporaryDirectory(prefix="firesteel-") as notes:
        board_dir = folder or notes
        job = replace(job, settings={**job.settings, "notes": board_dir})
        Folder(board_dir).put("run.json", json.dumps({"secret": job.secret, **described(job, on)}).encode())
        for left_over in ("stop", "started", "progress.json", "unscored", *(f"failure-{rank}" for rank in range(on.workers))):
            Folder(board_dir).delete(left_over)
        if folder is not None and folder != job.resume_from and isinstance(on, Local | Spark):
            Points(Folder(folder)).forget()
        seen: dict[str, Board] = {}

        def watch(board: Board) -> None:
            seen["board"] = board
            state = board.get("progress.json")
            if state is not None:
                reports.update(json.loads(state))
                if json.loads(state)["stage"] == "evaluating" and board.get("unscored") is not None:
                    raise Interrupted("stopped by Ctrl-C while models were evaluated.")
            if folder is not None and board != Folder(folder) and Folder(folder).get("stop") is not None:
                board.put("stop", b"")

        run_world: Any = {Local: local.run, Spark: spark.run, Simulated: simulated.run, Replay: replay.run}[type(on)]
        try:
            if has_server(strategy):
                run = train_apart(job, source, on, run_world, module, watch, called_at, began, example)
            else:
                try:
                    batches, _ = run_world(job, source, on, watch)
                except Interrupted:
                    batches = unscored(seen.get("board"))
                    if batches is None:
                        raise
                run = assemble(batches, job, module, on, called_at, began, example)
        except (FiresteelError, Interrupted) as error:
            rescue(error, seen.get("board"), job, module, folder)
            raise
        finally:
            reports.close()
    if run.settings["hurried"]:
        raise Interrupted(f"stopped by Ctrl-C at step {run.settings['steps']}; the error's `run` holds the model.", run)
    review = getattr(strategy, "review", None)
    advice = review(run.history.to_pylist()) if review is not None else None
    if advice is not None:
        warnings.warn(advice, stacklevel=2)
    return run


def stop(run_dir: str | Path) -> None:
    """Ask the run in `run_dir` to stop at its next publish point; from any process that sees the folder."""
    Folder(str(run_dir)).put("stop", b"")


# ---- checks ----------------------------------------------------------------------------------------------------------


def _check(on: Any, strategy: Any, optimizer: Any, schedule: Any, device: str, sizes: dict[str, float | None]) -> None:
    if not isinstance(on, World):
        raise UsageError(
            f"on={on!r}: give firesteel.Local(workers=...), Spark(workers=...), Simulated(cluster) or Replay(run)."
        )
    if isinstance(strategy, type):
        raise UsageError(f"strategy is the class {strategy.__name__}; give an instance: {strategy.__name__}().")
    if not inspect.iscoroutinefunction(getattr(strategy, "run", None)):
        raise UsageError(f"strategy={strategy!r} has no `async def run(self, worker, net)`; see docs/write-your-own.md.")
    if not isinstance(optimizer, OptimizerSettings) or isinstance(optimizer, type):
        raise UsageError(f"optimizer={optimizer!r}: give firesteel.Adam(lr=...) or firesteel.Optimizer(cls, **settings).")
    if schedule is not None and not isinstance(schedule, BySteps | ByEpochs):
        raise UsageError(f"schedule={schedule!r}: give firesteel.BySteps(...) or firesteel.ByEpochs(...).")
    if splits(strategy) and device == "cuda":
        raise UsageError(f"device='cuda': {type(strategy).__name__} trains on CPUs; leave device at 'auto'.")
    if isinstance(strategy, Single) and on.workers != 1:
        raise UsageError(f"Single trains on one worker, but {on.workers} were asked for; set workers=1, or use SyncSGD.")
    for name, value in sizes.items():
        if value is not None and not value > 0:
            raise UsageError(f"{name}={value}: it must be greater than 0.")


def _check_unused(strategy: Any, given: dict[str, Any], batch_size: int | None) -> None:
    """Settings that a strategy could only ignore."""
    name = type(strategy).__name__
    for setting, value in given.items():
        if value is not None and own_steps(strategy):
            raise UsageError(f"{name} steps by its own rule: {setting}={value!r} would mean nothing; leave it out.")
    if batch_size is not None and full_batch(strategy):
        raise UsageError(f"each step of {name} sees all rows: batch_size={batch_size} would mean nothing; leave it out.")


def _check_share(score_training: float | None) -> None:
    if score_training is None:
        return
    if isinstance(score_training, bool) or not isinstance(score_training, int | float) or not 0 < score_training <= 1:
        raise UsageError(
            f"score_training={score_training!r}: give a share of the training rows, above 0 and at most 1, or None."
        )


def _check_stopping(early: EarlyStopping | None, metrics: tuple[Any, ...], validated: bool) -> None:
    if early is None:
        return
    known = ["loss", *resolve_metrics(metrics)]
    if early.metric not in known:
        raise UsageError(f"EarlyStopping looks at {early.metric!r}, but this run has {', '.join(known)}.")
    if not validated:
        raise UsageError("early stopping needs validation: a share such as 0.1, a boolean column, or data.")


def _initial(job: Job, workers: int) -> nn.Module:
    """The model as every worker will make it, for checks and to hold the result."""
    with torch.random.fork_rng(devices=[]):
        randomness.initialise(job.seed)
        module = _without_numbers(job) if splits(job.strategy) else job.build()
        if isinstance(job.model, nn.Module) and not splits(job.strategy):
            module = cloudpickle.loads(_pickled("model", job.model))
        _ = layout(module)
        try:
            optimizer = job.optimizer.build(module)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the optimizer cannot be made: {error}") from error
    check = getattr(job.strategy, "check", None)
    advice = check(workers, optimizer, module) if check is not None else None
    if advice is not None:
        warnings.warn(advice, stacklevel=3)
    return module if splits(job.strategy) else module.cpu()


def _without_numbers(job: Job) -> nn.Module:
    """A network of which each worker will make its own part only."""
    blueprint = Blueprint.of(job.build, job.seed)
    if blueprint.whole:
        warnings.warn(
            f"the model cannot be built without its numbers ({blueprint.reason}), so every worker makes all of it before it "
            "keeps its part; give a factory that only draws them to save that memory.",
            stacklevel=4,
        )
    return blueprint.module


def _try_two_rows(job: Job, module: nn.Module, source: Any, workers: int) -> tuple[torch.Tensor, ...] | None:
    """Where the rows are at hand, try two before anything is started; returns them as an example of the inputs."""
    if not isinstance(source, TableSource | ParquetSource):
        return None
    two = source if isinstance(source, ParquetSource) else TableSource(source.table.slice(0, 2), source.columns)
    batch = next(iter(stream(two, 0, 1)), None)
    shard = build_shard([] if batch is None else [batch.slice(0, 2)], job.columns, 2**30)
    probe(module, shard, resolve_loss(job.loss, job.columns.weight is not None), resolve_metrics(job.metrics))
    strategy: Any = job.strategy
    if splits(strategy) and shard.rows:
        rows = [outline(shard.block(0, 1))]
        whole = taken(strategy, module, revived(rows, 2).inputs)
        _ = strategy.part(whole, revived(rows, 0), 0, strategy.parts_of(workers))
    return shard.block(0, shard.rows).inputs if shard.rows else None


def _pickled(name: str, value: Any) -> bytes:
    try:
        return cloudpickle.dumps(value)
    except Exception as error:
        raise UsageError(
            f"{name} cannot be sent to the workers: pickling it raised {type(error).__name__}: {error}. "
            "Give a function that makes it (a factory), and open files, locks and sessions inside of it."
        ) from error


def _check_pickles(job: Job) -> None:
    for name in ("model", "loss", "metrics", "optimizer", "schedule", "strategy"):
        _ = _pickled(name, getattr(job, name))


def _resumed(job: Job, on: World, folder: str | None) -> Job:
    if isinstance(on, Simulated | Replay):
        raise UsageError(
            f"resume={folder or True!r} on {type(on).__name__}: a run in virtual time repeats bit for bit by itself, so "
            "there is nothing to resume; start it again without resume."
        )
    if folder is None:
        raise UsageError("resume=True needs run_dir, the folder of the run to go on with.")
    if has_server(job.strategy):
        return resumed(job, on, folder)
    found = Points(Folder(folder)).newest()
    if found is None:
        raise UsageError(f"{folder} holds no point to resume from; was it the run_dir of a run that reached one?")
    then, now = found[1], {"workers": on.workers, **job.settings}
    for name, value in now.items():
        if then[name] != value:
            raise UsageError(
                f"{folder} was trained with {name}={then[name]}, this call has {name}={value}. A resumed run goes on exactly "
                "as it was; to change a setting, start anew from the saved model."
            )
    return replace(job, resume_from=folder)
