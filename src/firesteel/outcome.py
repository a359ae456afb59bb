"""From what the workers sent back to a `Run`; from what they had published to a model that is kept when things go wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cloudpickle
import pyarrow as pa
import torch
from torch import nn

from firesteel import persistence
from firesteel.checkpoint import Board, Folder, Points, unpack
from firesteel.data.shard import Shard, build_shard
from firesteel.data.source import ParquetSource, TableSource, resolve, stream
from firesteel.errors import UsageError
from firesteel.evaluate import named, sums
from firesteel.flat import layout
from firesteel.job import Job
from firesteel.losses import resolve_loss, resolve_metrics
from firesteel.models.voting import Voting
from firesteel.parts.assembly import mapped, write
from firesteel.results import by_part
from firesteel.run import Run


def brief(settings: Any, depth: int = 2) -> str:
    """A dataclass of settings with only those that are not the default: `ModelAveraging(period=4)`."""
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return repr(settings)
    if not depth:
        return "..."
    shown = [
        f"{f.name}={brief(value, depth - 1)}"
        for f in dataclasses.fields(settings)
        if f.repr and ((value := getattr(settings, f.name)) != f.default or f.name == "workers")
    ]
    return f"{type(settings).__name__}({', '.join(shown)})"


def described(job: Job, on: Any) -> dict[str, Any]:
    """A run's settings as printable values."""
    return {
        "title": f"{brief(job.strategy)} on {brief(on)}",
        "strategy": repr(job.strategy),
        "on": repr(on),
        "optimizer": repr(job.optimizer),
        "schedule": repr(job.schedule),
        "loss": job.loss if isinstance(job.loss, str) else getattr(job.loss, "__name__", "callable"),
        "batch_size": job.batch_size,
        "epochs": job.epochs,
        "max_steps": job.max_steps,
        "seed": job.seed,
    }


def assemble(
    batches: list[pa.RecordBatch], job: Job, module: nn.Module, on: Any, called_at: float, began: float, example: Any
) -> Run:
    """The run of a gang."""
    whole = by_part(batches)
    ranks = sorted(rank for kind, rank in whole if kind == "report")
    reports = [json.loads(whole["report", rank]) for rank in ranks]
    return assemble_run(
        job,
        module,
        on,
        called_at,
        began,
        example,
        reports=reports,
        model=load(unpack(whole["model", 0])[0], module, job) if ("model", 0) in whole else _put_together(batches, module, job),
        history=_table(whole["history", 0]),
        trace=pa.concat_tables(_table(whole["trace", rank]) for rank in ranks),
        lead=reports[0],
    )


def unscored(board: Board | None) -> list[pa.RecordBatch] | None:
    """What worker 0 has left of a gang that was interrupted while it evaluated: all but scores and the others' traces."""
    data = board.get("unscored") if board is not None else None
    return None if data is None else _table(data).to_batches()


def assemble_run(
    job: Job,
    module: nn.Module,
    on: Any,
    called_at: float,
    began: float,
    example: Any,
    *,
    reports: list[dict[str, Any]],
    model: nn.Module,
    history: pa.Table,
    trace: pa.Table,
    lead: dict[str, Any],
    arrivals: pa.Table | None = None,
) -> Run:
    """A run from its parts: every worker's report, the trained model, and what `lead` says of the whole."""
    first = min((r["first_step_at"] for r in reports if r["first_step_at"]), default=called_at)
    samples = history["samples"][-1].as_py() - int(lead["samples_before"])
    timing = {
        "call_to_first_step_seconds": first - called_at,
        **{name: max(r["timing"].get(name, 0.0) for r in (*reports, lead)) for name in lead["timing"]},
        "samples": samples,
        "samples_per_second": samples / max(lead["timing"]["train_seconds"], 1e-9),
        "total_seconds": time.perf_counter() - began,
    }
    told = {"converged": lead.get("converged"), "stopped early": lead["early"], "stopped": lead["stopped"], "finished": True}
    status = next(name for name, true in told.items() if true)
    settings = {**described(job, on), **{name: lead[name] for name in ("best", "steps", "device", "hurried")}}
    settings |= {name: lead[name] for name in ("workers_at_once", "replayed") if name in lead}
    if all("host" in report for report in reports):
        settings["hosts"] = [report["host"] for report in reports]
    if all("memory" in report for report in reports):
        settings["memory_bytes"] = [report["memory"] for report in reports]
    saving = {
        "spec": None if isinstance(model, Voting) else persistence.spec_of(model) or persistence.spec_of(job.model),
        "example": example,
        "columns": _columns_json(job),
    }
    return Run(
        model,
        history,
        trace,
        timing,
        status,
        settings,
        job.run_dir,
        saving,
        functools.partial(_score, job, model),
        arrivals,
    )


def _columns_json(job: Job) -> dict[str, Any]:
    features = job.columns.features
    plain = features if isinstance(features, str | list) else {"kind": type(features).__name__, **asdict(features)}
    return {"features": plain, "label": job.columns.label, "target": job.columns.target, "dtype": job.columns.dtype}


def _table(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


def load(tensors: dict[str, torch.Tensor], module: nn.Module, job: Job) -> nn.Module:
    """Put a worker's result into a module of our own: parameters, frozen ones, buffers, averaged statistics."""

    def fill(into: nn.Module, params: torch.Tensor) -> nn.Module:
        parameters = dict(into.named_parameters())
        with torch.no_grad():
            for slot in layout(into)[0]:
                parameters[slot.name].copy_(slot.view(params))
            for name, p in parameters.items():
                if f"frozen.{name}" in tensors:
                    p.copy_(tensors[f"frozen.{name}"])
            start = 0
            for name, b in into.named_buffers():
                if f"buffer.{name}" in tensors:
                    b.copy_(tensors[f"buffer.{name}"])
                if b.is_floating_point():
                    b.copy_(tensors["statistics"][start : start + b.numel()].view_as(b))
                    start += b.numel()
        return into.eval()

    params = tensors["params"]
    if params.dim() == 1:
        return fill(module, params)
    members = [fill(cloudpickle.loads(cloudpickle.dumps(module)), member.clone()) for member in params]
    return Voting(members, job.columns.target == "class").eval()


def _put_together(batches: list[pa.RecordBatch], module: nn.Module, job: Job) -> nn.Module:
    """The network of which every worker has handed over its parts; it lies in the run folder, if this machine has it."""
    path = Folder(job.run_dir).path("network.safetensors") if job.run_dir else None
    if path is not None:
        write(batches, module, path)
        return mapped(module, path)
    with tempfile.TemporaryDirectory(prefix="firesteel-") as folder:  # what is mapped outlives its name
        write(batches, module, Path(folder) / "network.safetensors")
        return mapped(module, Path(folder) / "network.safetensors")


def rescue(error: BaseException, board: Board | None, job: Job, module: nn.Module, folder: str | None) -> None:
    """Keep the model that was published last before things went wrong, and say where."""
    if isinstance(error, UsageError) or board is None:
        return
    if next(module.parameters()).is_meta:
        error.add_note(_what_is_left(folder))
        return
    try:
        data = board.get("model.safetensors")
    except Exception:  # the store may have gone with the worker that held it
        data = None
    if data is None:
        error.add_note("No model had been published yet.")
        return
    tensors, plain = unpack(data)
    model = load(tensors, module, job)
    place = Folder(folder).path("last") if folder else None
    path = str(place) if place is not None else tempfile.mkdtemp(prefix="firesteel-last-")
    try:
        used = persistence.save(
            path, model, persistence.spec_of(model) or persistence.spec_of(job.model), None, {"columns": _columns_json(job)}
        )
        error.add_note(f"The last good model, of step {plain['step']}, is kept: firesteel.load({path!r}) ({used}).")
    except UsageError:
        torch.save(model.state_dict(), Path(path) / "state.pt")
        error.add_note(f"The weights of the last good model, of step {plain['step']}, are kept in {path}/state.pt.")


def _what_is_left(folder: str | None) -> str:
    """Of a network in parts, which no worker has whole."""
    if folder is None:
        return "A network in parts is kept in run_dir alone while it is trained, and none was given: nothing of it is left."
    try:
        found = Points(Folder(folder)).newest()
    except OSError:
        found = None
    if found is None:
        return f"No point to resume from had been kept in {folder} yet."
    return f"The newest point to resume from is that of step {found[0]}: train(..., resume={folder!r}) goes on there."


def _score(job: Job, model: nn.Module, data: Any) -> dict[str, float]:
    columns = job.columns
    source, _ = resolve(data, columns.features, columns.label or "label", columns.weight, None, columns.target)
    if not isinstance(source, TableSource | ParquetSource):
        from firesteel.data.frame import to_table

        source = TableSource(to_table(source.frame, source.columns), source.columns)
    shard: Shard = build_shard(stream(source, 0, 1), replace(source.columns, dtype=columns.dtype), 2**40)
    loss, metrics = resolve_loss(job.loss, columns.weight is not None), resolve_metrics(job.metrics)
    return named(sums(model, [shard], loss, metrics, torch.device("cpu"))[0], metrics)
