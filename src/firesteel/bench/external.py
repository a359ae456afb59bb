"""Other people's results, and our own from elsewhere, as results of the bench beside the trials."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from firesteel.bench import foreign, published, tracking
from firesteel.bench.foreign import Bad, Row, Tell
from firesteel.bench.gather import Gathered, gather
from firesteel.bench.results import EXTERNAL, FORMAT, Result, write
from firesteel.errors import UsageError

PUBLISHED = "published:"


def to_stderr(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def import_file(
    path: str | os.PathLike[str],
    name: str,
    into: str | os.PathLike[str],
    mapping: Mapping[str, str] | None = None,
    *,
    units: Mapping[str, str] | None = None,
    workload: str | None = None,
    metric: str | None = None,
    target: float | None = None,
    method: str | None = None,
    workers: int | None = None,
    seed: int | None = None,
    source: str | None = None,
    virtual: bool | None = None,
    final: bool = False,
    delimiter: str | None = None,
    replace: bool = False,
    skip_bad: bool = False,
    tell: Tell = to_stderr,
) -> list[Result]:
    """Read runs from a file and write them as `into`/external/`name`/0001.jsonl, ...

    What the file says of a run (columns such as method, workers, seed, workload) is used where the argument is None; what
    nobody says is null. Rows that agree in all of that are one run, in the order of the file.

    Args:
        path: a CSV file or JSON lines, an event file or folder of TensorBoard, an MLflow folder, database or tracking URI, or
            "published:NAME", numbers that come with Firesteel.
        name: what to call these results.
        into: the result folder.
        mapping: field to column, where the column's name does not tell: {"seconds": "Wall time", "accuracy": "acc"}.
        units: field to unit: {"seconds": "ms", "accuracy": "percent"}.
        workload: the name of the workload that these are results of.
        metric: the figure that is scored; without it the column `metric`, or validation_accuracy.
        target: the metric's value to be reached.
        method: what tables show; without it and without a column, the run's name, or `name`.
        workers: how many trained.
        seed: of the run.
        source: where the results come from; without it the file's name.
        virtual: whether seconds are those of a simulation; without it they are wall seconds.
        final: each row is a run of its own, of a single point.
        delimiter: of CSV; None: a comma, in a .tsv file a tab.
        replace: let these take the place of results of that name.
        skip_bad: leave out rows that cannot be read, and tell of them.
        tell: is told what is to be known though it is no error.

    Raises:
        UsageError: with file and line: nothing can be read, a unit or a meaning cannot be known, or the name is taken.

    >>> _ = Path("theirs.csv").write_text("epoch,seconds,val_acc\\n1,2.5,0.9\\n2,5.0,0.95\\n")
    >>> import_file("theirs.csv", "theirs", "results", workload="mnist-mlp")[0].column("validation_accuracy")
    [0.9, 0.95]
    """
    folder, place = Path(into) / EXTERNAL / name, os.fspath(path)
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UsageError(f"--as {name!r}: a name is of letters, digits, '_', '.', '+' and '-', and does not begin with a mark.")
    if folder.exists() and not replace:
        raise UsageError(f"{folder} is there already; --replace lets these take its place, --as ANOTHER puts them beside it.")

    def refuse(message: str) -> None:
        if not skip_bad:
            raise UsageError(f"{message} Mend it, or leave such rows out by --skip-bad.")
        tell(f"skipped: {message}")

    if place.startswith(PUBLISHED):
        origin, found = published.load(place.removeprefix(PUBLISHED))
        final = True
    else:
        origin, found = Path(place).name, _rows(place, delimiter, tell)
    good: list[Row] = []
    for each in found:
        if isinstance(each, Bad):
            refuse(each.message)
        else:
            good.append(each)
    if not good:
        raise UsageError(f"{place}: there is no row to import.")
    given: dict[str, Any] = {"workload": workload, "metric": metric, "target": target, "method": method, "workers": workers}
    given |= {"seed": seed, "source": source, "virtual": virtual}
    given = {key: value for key, value in given.items() if value is not None}
    runs = gather(good, mapping or {}, units or {}, given, final, refuse, tell)
    results = [_result(f"{name}-{number:04}", name, run, origin) for number, run in enumerate(runs, 1)]
    _write(folder, results)
    return results


def _rows(path: str, delimiter: str | None, tell: Tell) -> Iterator[Row | Bad]:
    """What the file is, by what is in it."""
    place = Path(path)
    if "://" in path:
        return tracking.from_mlflow(path, tell)
    if place.is_dir():
        if any(place.rglob("*tfevents*")):
            return tracking.from_tensorboard(place, tell)
        if any(place.glob("*/meta.yaml")):
            return tracking.from_mlflow(place.resolve().as_uri(), tell)
        if (place / "mlflow.db").is_file():
            return tracking.from_mlflow(tracking.database(place / "mlflow.db"), tell)
        raise UsageError(f"{place}: neither TensorBoard's event files nor MLflow's runs are in this folder; name a file.")
    if not place.is_file():
        raise UsageError(f"{place}: there is no such file or folder.")
    if "tfevents" in place.name:
        return tracking.from_tensorboard(place, tell)
    if tracking.is_database(place):
        return tracking.from_mlflow(tracking.database(place), tell)
    return foreign.rows(place, delimiter, tell)


def _result(identity: str, name: str, run: Gathered, origin: str) -> Result:
    facts = run.facts
    if "workload" not in facts:
        raise UsageError(f"{run.wheres[0]}: nothing says of which workload this is a result; --workload NAME does.")
    header = {
        "kind": "external",
        "format": FORMAT,
        "id": identity,
        "workload": {"name": facts["workload"], "metric": facts["metric"], "target": facts.get("target")}
        | {"model": None, "data": None},
        "method": facts.get("method") or facts.get("strategy") or facts.get("run") or name,
        "strategy": facts.get("strategy"),
        "settings": run.settings,
        "optimizer": facts.get("optimizer"),
        "heuristic": None,
        "world": facts.get("world"),
        "virtual": facts.get("virtual", False),
        "on": None,
        "workers": facts.get("workers"),
        "batch_size": facts.get("batch_size"),
        "seed": facts.get("seed"),
        "run": facts.get("run"),
        "limits": {},
        "source": facts.get("source", origin),
        "environment": {},
    }
    error = {"type": "reported", "message": facts["error"]} if "error" in facts else None
    return Result(identity, header, tuple(run.points), facts.get("status", "finished"), error)


def _write(folder: Path, results: list[Result]) -> None:
    """All of them, or none."""
    aside = folder.parent.parent / f".{folder.name}.{os.getpid()}"
    for number, result in enumerate(results, 1):
        write(aside / f"{number:04}.jsonl", result)
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _ = aside.rename(folder)
