"""Runs to TensorBoard and MLflow, and from them."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firesteel.bench.columns import FACTS
from firesteel.bench.foreign import Bad, Row, Tell
from firesteel.bench.results import Result
from firesteel.errors import UsageError

if TYPE_CHECKING:
    from firesteel.run import Run

OURS = "firesteel"  # what is said of runs that we wrote: their seconds and steps are figures
SETTING = "settings."
_BATCH = 500  # metrics in a call; MLflow takes 1000


def to_tensorboard(result: Result | Run, folder: str | Path) -> None:
    """Write a run as TensorBoard shows it: each figure as a scalar in float64, the settings as hyperparameters.

    The scalars' step is the point's `step`, where all points have one that grows, else the number of the point.

    Raises:
        UsageError: the package tensorboard is not installed, or the folder holds a run already.
    """
    _ = _needs("tensorboard")
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    if any(Path(folder).glob("*tfevents*")):
        raise UsageError(f"{folder} holds a run of TensorBoard already; name another folder.")
    facts, points = _told(result)
    now = time.time()
    with SummaryWriter(str(folder)) as writer:
        assert writer.file_writer is not None
        for summary in hparams(facts, {}):
            writer.file_writer.add_summary(summary)
        for step, point in zip(_steps(points), points, strict=True):
            at = now + (point.get("seconds") or 0.0)
            for name, value in _numbers(point):
                writer.add_scalar(name, value, step, walltime=at, new_style=True, double_precision=True)


def to_mlflow(result: Result | Run, experiment: str, uri: str) -> str:
    """Log a run: its settings as parameters, each figure as a metric by step; returns the run's id.

    Args:
        result: what to log.
        experiment: its name; made if it is not there.
        uri: of the tracking server, or of a database, "sqlite:///mlflow.db".

    Raises:
        UsageError: the package mlflow is not installed, or MLflow refuses.
    """
    mlflow = _needs("mlflow")
    facts, points = _told(result)
    start = int(time.time() * 1000)
    metrics = [
        mlflow.entities.Metric(name, value, start + round(1000 * (point.get("seconds") or 0.0)), step)
        for step, point in zip(_steps(points), points, strict=True)
        for name, value in _numbers(point)
    ]
    try:
        client = mlflow.MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        home = found.experiment_id if found else client.create_experiment(experiment)
        name = str(facts.get("run", experiment))
        run = client.create_run(home, start_time=start, run_name=name, tags={OURS: str(facts["status"])}).info.run_id
        client.log_batch(run, params=[mlflow.entities.Param(key, str(value)) for key, value in facts.items()])
        for first in range(0, len(metrics), _BATCH):
            client.log_batch(run, metrics=metrics[first : first + _BATCH])
        client.set_terminated(run, "FAILED" if facts["status"] in ("failed", "diverged") else "FINISHED")
    except mlflow.exceptions.MlflowException as error:
        raise UsageError(f"MLflow at {uri} does not take the run: {error.message}") from None
    return run


def from_tensorboard(place: Path, tell: Tell) -> Iterator[Row | Bad]:
    """Rows of an event file, or of all in a folder; each folder of event files is a run.

    Every record's checksum is compared: a file that is cut off is an error, where TensorBoard itself shows what is left.
    Seconds are counted from a run's first event, unless Firesteel wrote the run.
    """
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*tfevents*") if path.is_file())
    for folder in sorted({file.parent for file in files}):
        name = folder.name if folder == place or place.is_file() else folder.relative_to(place).as_posix()
        yield from _of_tensorboard(folder, [file for file in files if file.parent == folder], name, tell)


def _of_tensorboard(folder: Path, files: list[Path], name: str, tell: Tell) -> Iterator[Row | Bad]:
    hparams = _needs("tensorboard.plugins.hparams.plugin_data_pb2")
    about: dict[str, Any] = {}
    steps: dict[int, dict[str, Any]] = {}
    times: dict[int, float] = {}
    begin, others = math.inf, set[str]()
    for where, event in (each for file in files for each in _events(file)):
        if isinstance(event, Bad):
            yield event
            continue
        begin = min(begin, event.wall_time)
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                told = hparams.HParamsPluginData.FromString(value.metadata.plugin_data.content)
                for key, each in told.session_start_info.hparams.items():
                    about[key] = getattr(each, each.WhichOneof("kind") or "string_value")
            elif (scalar := _scalar(value)) is None:
                others.add(value.tag)
            elif value.tag in (at := steps.setdefault(event.step, {})):
                yield Bad(f"{where}: {value.tag} has a second value at step {event.step}.")
            else:
                at[value.tag] = scalar
                times[event.step] = max(event.wall_time, times.get(event.step, 0.0))
    if others:
        tell(f"{folder}: left out, for they are no scalars: {', '.join(sorted(others))}.")
    if not steps:
        tell(f"{folder}: left out, for it has no scalars.")
    ours, about["run"] = about.pop(OURS, None), name
    for step in sorted(steps):
        clock = {} if ours else {"step": step, "seconds": times[step] - begin}
        yield Row(f"{folder}, step {step}", clock | steps[step], about)


def _events(file: Path) -> Iterator[tuple[str, Any]]:
    """Where and what; the last is Bad if the file does not end well."""
    message = _needs("tensorboard.compat.proto.event_pb2").Event
    stub = _needs("tensorboard.compat.tensorflow_stub.pywrap_tensorflow")
    reader = stub.PyRecordReader_New(str(file))
    for number in itertools.count(1):
        where = f"{file}, record {number}"
        try:
            reader.GetNext()
            event = message.FromString(reader.record())
        except stub.errors.OutOfRangeError:
            return
        except Exception as error:  # what a foreign file makes of lengths and messages has many names
            why = getattr(error, "message", None) or str(error) or type(error).__name__
            yield where, Bad(f"{where}: no event of TensorBoard, or the file is cut off there ({why}).")
            return
        yield where, event


def _scalar(value: Any) -> float | None:
    if value.HasField("simple_value"):
        return value.simple_value
    if value.HasField("tensor"):
        array = _needs("tensorboard.util.tensor_util").make_ndarray(value.tensor)
        if array.size == 1 and array.dtype.kind in "fiu":
            return array.item()
    return None


def from_mlflow(uri: str, tell: Tell) -> Iterator[Row | Bad]:
    """Rows of all runs that MLflow keeps at `uri` and that have metrics.

    Seconds are counted from the start of a run, unless Firesteel wrote it.
    """
    mlflow = _needs("mlflow")
    try:
        with _folders_allowed():
            client = mlflow.MlflowClient(uri)
            homes = [each.experiment_id for each in _pages(client.search_experiments)]
            for run in _pages(client.search_runs, experiment_ids=homes, order_by=["attributes.start_time ASC"]):
                yield from _of_mlflow(client, run, uri, tell)
    except mlflow.exceptions.MlflowException as error:
        raise UsageError(f"MLflow at {uri} cannot be read: {error.message}") from None


def _pages(search: Any, **of: Any) -> Iterator[Any]:
    page = search(**of)
    yield from page
    while page.token:
        page = search(**of, page_token=page.token)
        yield from page


def _of_mlflow(client: Any, run: Any, uri: str, tell: Tell) -> Iterator[Row | Bad]:
    name = f"{run.info.run_name} {run.info.run_id[:8]}"
    about: dict[str, Any] = run.data.params | {"run": name}
    ours, where = about.pop(OURS, None), f"{uri}, run {name}"
    steps: dict[int, dict[str, Any]] = {}
    times: dict[int, int] = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            cells = steps.setdefault(metric.step, {})
            if name in cells:
                yield Bad(f"{where}: {name} has a second value at step {metric.step}.")
                continue
            cells[name] = metric.value
            times[metric.step] = max(metric.timestamp, times.get(metric.step, 0))
    if not steps:
        tell(f"{where}: left out, for it has no metrics.")
    for step in sorted(steps):
        clock = {} if ours else {"step": step, "seconds": (times[step] - run.info.start_time) / 1000}
        yield Row(f"{where}, step {step}", clock | steps[step], about)


def is_database(place: Path) -> bool:
    with place.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def database(place: Path) -> str:
    """The tracking URI of MLflow's SQLite file; MLflow itself would make its tables in any other database."""
    with contextlib.closing(sqlite3.connect(f"{place.resolve().as_uri()}?mode=ro", uri=True)) as base:
        try:
            tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master")}
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{place}: the database cannot be read: {error}.") from None
    if not {"experiments", "runs", "metrics"} <= tables:
        raise UsageError(f"{place}: this database is none of MLflow's: it has no table of experiments, runs and metrics.")
    return f"sqlite:///{place.resolve()}"


@contextlib.contextmanager
def _folders_allowed() -> Iterator[None]:
    """MLflow 3 refuses folders of runs unless this is set; reading them harms nothing."""
    name = "MLFLOW_ALLOW_FILE_STORE"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _needs(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise UsageError(f"this needs the package {package} ({error}): pip install 'firesteel[track]'.") from None


def _told(result: Result | Run) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is said of a run, flat, and its points."""
    if isinstance(result, Result):
        header, workload = result.header, result.header["workload"]
        facts = {"run": result.id, "workload": workload["name"], "metric": workload["metric"], "target": workload.get("target")}
        facts |= {name: header.get(name) for name in FACTS if name not in facts and name not in ("status", "error", "virtual")}
        facts |= {SETTING + name: value for name, value in header.get("settings", {}).items()}
        facts |= {"virtual": str(result.virtual).lower(), "error": (result.error or {}).get("message")}
        points = list(result.points)
    else:
        facts = {name if name in FACTS else SETTING + name: value for name, value in result.settings.items()}
        points = result.history.to_pylist()
    facts |= {"status": result.status, OURS: "result"}
    plain = {
        name: value if isinstance(value, int | float) else str(value) for name, value in facts.items() if value is not None
    }
    return plain, points


def _steps(points: list[dict[str, Any]]) -> list[int]:
    steps = [step for point in points if isinstance(step := point.get("step"), int)]
    grow = len(steps) == len(points) and steps == sorted(set(steps))
    return steps if grow else list(range(len(points)))


def _numbers(point: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in point.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)
