"""A run with a server, from the caller's side: start the servers and the workers, then score what was kept.

Workers are started twice: first they train, each for itself; when all have ended, a second round evaluates the models that the
servers kept, on the rows held out and, where that is asked for, on rows trained on. So evaluation costs the run no time, and no
worker waits for another.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from firesteel.checkpoint import Board, Folder
from firesteel.errors import Diverged, Interrupted, UsageError
from firesteel.evaluate import by_column
from firesteel.flat import flatten, statistics_of
from firesteel.job import Job, Score
from firesteel.losses import resolve_metrics
from firesteel.net import snapshots
from firesteel.net.hosting import Collected, Serve, own_certificate
from firesteel.net.protocol import keeps_best
from firesteel.outcome import assemble_run, load
from firesteel.results import best_of, by_part, ipc
from firesteel.run import Run
from firesteel.sim.replay import ARRIVALS, Replay, with_meaning
from firesteel.stopping import HURRY

World = Callable[..., tuple[list[pa.RecordBatch], Collected | None]]


def train_apart(
    job: Job,
    source: Any,
    on: Any,
    run_world: World,
    module: nn.Module,
    watch: Callable[[Any], None],
    called_at: float,
    began: float,
    example: Any,
) -> Run:
    """Run a job whose strategy has a server.

    Raises:
        Diverged: the center did; it names worker, staleness and what to change. The last good model is kept.
    """
    _check(job)
    settings = resumable_settings(job, on)
    replaying = isinstance(on, Replay)
    params, statistics = flatten(module)[0].clone(), statistics_of(module)
    statistics = statistics.to(params.dtype)
    if on.server.shards > params.numel():
        raise UsageError(f"shards={on.server.shards}, but the model has {params.numel()} parameters; take fewer shards.")
    before = {"seconds": 0.0, "samples": 0.0, "loss_sum": 0.0, "weight": 0.0}
    if job.run_dir is not None and not replaying:
        if job.resume_from is not None:
            before = snapshots.mark(job.resume_from, on.server.shards, params, statistics)
        Folder(job.run_dir).delete(ARRIVALS)
        snapshots.lay_out(job.run_dir, on.server.shards, job.resume_from)
    serve = Serve(
        job.strategy,
        params,
        statistics,
        on.workers,
        on.server,
        job.secret,
        job.max_seconds,
        job.run_dir,
        settings,
        own_certificate(on.server),
    )
    batches, collected = run_world(job, source, on, watch, serve)
    assert collected is not None
    parts = by_part(batches)
    reports = [json.loads(parts["report", rank]) for rank in range(on.workers)]
    log = on.log if replaying else with_meaning(collected, job, on, reports[0]["threads"])
    if job.run_dir is not None and not replaying:
        Folder(job.run_dir).put(ARRIVALS, ipc(log))
    held_rows = sum(r["held_rows"] for r in reports)
    if not collected.mark["samples"]:
        job.check_rows(sum(r["train_rows"] for r in reports), held_rows)
    if collected.status["restarts"] and not (collected.status["stopped"] or collected.status["diverged"]):
        _tell_what_is_missing(int(collected.status["steps"]), sum(r["total_steps"] for r in reports))
    models = [*collected.kept]
    if not models or models[-1][0]["version"] != collected.mark["version"]:
        models.append((collected.mark, collected.params, collected.statistics))
    models[-1][0]["epoch"] = collected.mark["epoch"]  # workers without rows may have been told apart only later
    scores, hurried = [dict[str, float]() for _ in models], collected.hurried
    if job.validated and not held_rows:
        warnings.warn("validation was asked for, but no row was left for it: the run has no scores of it.", stacklevel=4)
    if (held_rows or job.score_training) and not hurried:
        try:
            scores = _score(job, source, on, run_world, models)
        except KeyboardInterrupt:  # somebody waits for the end: the run, without its scores
            hurried = True
    history = _history(models, scores, on.workers, before)
    best = best_of(scores, resolve_metrics(job.metrics)) if keeps_best(job.strategy) else len(models) - 1
    run = assemble_run(
        job,
        module,
        on,
        called_at,
        began,
        example,
        reports=reports,
        model=load({"params": models[best][1], "statistics": models[best][2], **_untrained(module)}, module, job),
        history=history,
        trace=pa.concat_tables(pa.ipc.open_stream(parts["trace", rank]).read_all() for rank in range(on.workers)),
        lead={
            "early": False,
            "stopped": bool(collected.status["stopped"]),
            "hurried": hurried,
            "best": best,
            "steps": int(collected.mark["steps"] // on.workers),
            "device": reports[0]["device"],
            "samples_before": before["samples"],
            "timing": {**reports[0]["timing"], "train_seconds": collected.mark["seconds"] - before["seconds"]},
            "workers_at_once": collected.status["most_at_once"],
            **({"replayed": collected.status["replayed"]} if "replayed" in collected.status else {}),
        },
        arrivals=log,
    )
    if collected.status["diverged"]:
        raise _diverged(job, collected.status["diverged"], run)
    return run


def resumable_settings(job: Job, on: Any) -> dict[str, Any]:
    """What must be as it was for a run to go on."""
    own = {name: value for name, value in job.settings.items() if name != "notes"}
    return {"workers": on.workers, "shards": on.server.shards, **own}


def resumed(job: Job, on: Any, folder: str) -> Job:
    """The job that goes on from the snapshots in a folder.

    Raises:
        UsageError: it holds none, or the run was another one.
    """
    return replace(job, resume_from=folder, resumed_rows=snapshots.check(folder, on.server.shards, resumable_settings(job, on)))


def _check(job: Job) -> None:
    if job.early_stopping is not None:
        raise UsageError(
            "early stopping evaluates while workers wait for each other, which those of a strategy with a server never do; "
            "give max_seconds or epochs, or take a synchronous strategy."
        )
    if not hasattr(job.strategy, "needs_seen"):
        raise UsageError("a strategy with `merge` also says `needs_seen: ClassVar[bool]`; see docs/write-your-own.md.")


def _tell_what_is_missing(steps: int, asked: int) -> None:
    if steps < asked:
        warnings.warn(
            f"a server was lost and started again, and what came after its last snapshot went with it: {steps} of {asked} "
            "steps are in the model. A smaller checkpoint_steps keeps more; to make up for the rest, train on for some epochs.",
            stacklevel=4,
        )


def _score(job: Job, source: Any, on: Any, run_world: World, models: list[Any]) -> list[dict[str, float]]:
    work = Score(torch.stack([m[1] for m in models]), torch.stack([m[2] for m in models]))
    batches, _ = run_world(replace(job, work=work), source, on, _interrupted)
    parts = by_part(batches)
    total = sum(torch.tensor(json.loads(parts["scores", rank]), dtype=torch.float64) for rank in range(on.workers))
    assert isinstance(total, torch.Tensor)
    return [by_column(model, job.scored, resolve_metrics(job.metrics)) for model in total]


def _interrupted(board: Board) -> None:
    """Scores can be computed again at any time, so that Ctrl-C ends them at once."""
    if board.get("stop") == HURRY:
        raise Interrupted("stopped by Ctrl-C while models were evaluated.")


def _history(models: list[Any], scores: list[dict[str, float]], workers: int, before: dict[str, float]) -> pa.Table:
    rows = []
    for (mark, _, _), score in zip(models, scores, strict=True):
        weight = mark["weight"] - before["weight"]
        rows.append(
            {
                "seconds": mark["seconds"],
                "step": int(mark["steps"] // workers),
                "epoch": mark["epoch"],
                "samples": int(mark["samples"]),
                "train_loss": (mark["loss_sum"] - before["loss_sum"]) / weight if weight else None,
                **score,
                "bytes_sent": int(mark["bytes"]),
                "waited_seconds": mark["waited"] / workers,
            }
        )
        before = mark
    return pa.Table.from_pylist(rows)


def _untrained(module: nn.Module) -> dict[str, torch.Tensor]:
    """Frozen parameters and buffers, which no worker changes or which travel as statistics."""
    frozen = {f"frozen.{n}": p.detach() for n, p in module.named_parameters() if not p.requires_grad}
    return {**frozen, **{f"buffer.{n}": b for n, b in module.named_buffers()}}


def _diverged(job: Job, told: dict[str, Any], run: Run) -> Diverged:
    name = type(job.strategy).__name__
    window = getattr(job.strategy, "window", None)
    shorter = f"a window below {window}, " if window and window > 1 else ""
    return Diverged(
        f"{name} diverged at push {told['sequence']} of worker {told['worker']}, staleness {told['staleness']}: {told['why']}. "
        f"The center was rolled back to the last good one. Lower the learning rate; or take {shorter}fewer workers, a bound "
        "Server(max_ahead=...), or a strategy that damps stale pushes (AGN, DynSGD)."
    )
