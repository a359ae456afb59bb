"""Results as they lie in a folder: one file of JSON lines for each trial, and for each run of somebody else's.

A file is written whole, aside, and then renamed: what has its name is complete. Everything that scores, tables, pictures
and reports know comes from here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from firesteel.errors import UsageError

FORMAT = 1
TRIALS, EXTERNAL = "trials", "external"
ENDED_WELL = ("finished", "converged", "stopped early", "stopped")


@final
@dataclass(frozen=True)
class Result:
    """One run: ours, or somebody else's."""

    id: str
    header: dict[str, Any]
    """The first line of the file: what was run, on what."""
    points: tuple[dict[str, Any], ...]
    """One for each published model, in order; cumulative seconds, samples, bytes_sent, ... and losses and metrics."""
    status: str
    """"finished", "converged", "stopped early", "stopped", "diverged" or "failed"."""
    error: dict[str, str] | None = None
    """type and message, of one that failed or diverged."""
    timing: dict[str, float] = field(default_factory=dict)
    staleness: dict[str, Any] | None = None
    """steps: pushes by staleness; distance: quantiles 0, .05, .25, .5, .75, .95, 1. Of strategies with a server."""
    strips: tuple[dict[str, Any], ...] = ()
    """Of each drawn worker: rank, computing and waiting as [[begin, seconds], ...]."""

    @property
    def external(self) -> bool:
        return self.header["kind"] == "external"

    @property
    def workload(self) -> str:
        return self.header["workload"]["name"]

    @property
    def metric(self) -> str:
        """What points call it: "validation_accuracy", say."""
        return self.header["workload"]["metric"]

    @property
    def target(self) -> float | None:
        return self.header["workload"].get("target")

    @property
    def method(self) -> str:
        """The strategy with its settings, the heuristic if there is one."""
        return self.header["method"]

    @property
    def workers(self) -> int | None:
        return self.header.get("workers")

    @property
    def seed(self) -> int | None:
        return self.header.get("seed")

    @property
    def virtual(self) -> bool:
        """Whether its seconds are those of a simulated cluster."""
        return bool(self.header.get("virtual"))

    @property
    def ended_well(self) -> bool:
        return self.status in ENDED_WELL

    def column(self, name: str) -> list[float]:
        """The points' values of that name, NaN where a point has none."""
        return [math.nan if (value := point.get(name)) is None else float(value) for point in self.points]

    def lines(self) -> list[dict[str, Any]]:
        """What `read_file` reads back."""
        found = [self.header, *({"kind": "point", **point} for point in self.points)]
        if self.staleness is not None:
            found.append({"kind": "staleness", **self.staleness})
        found += [{"kind": "strip", **strip} for strip in self.strips]
        return [*found, {"kind": "end", "status": self.status, "error": self.error, "timing": self.timing}]


def write(path: Path, result: Result) -> None:
    """Write a result's file, aside first: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    text = "".join(json.dumps(_plain(line), sort_keys=True, allow_nan=False) + "\n" for line in result.lines())
    with aside.open("w") as file:
        _ = file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _ = aside.replace(path)


def _plain(value: Any) -> Any:
    """Numbers that JSON does not have become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def read(folder: str | Path, skip_bad: Callable[[str], None] | None = None) -> list[Result]:
    """All results in a folder, in order of their files' names, ours first.

    Args:
        folder: what `firesteel bench run --out` or `firesteel bench import --out` has filled.
        skip_bad: is told of a file that cannot be read, which is then left out; None: it is an error.

    Raises:
        UsageError: there is no such folder, nothing is in it, or a file (named with its line) is no result.
    """
    place = Path(folder)
    if not place.is_dir():
        raise UsageError(f"{place} is no folder; `firesteel bench run RECIPE --out {place}` makes one.")
    found: list[Result] = []
    files = sorted((place / TRIALS).glob("*")) + sorted(p for p in (place / EXTERNAL).glob("*/*"))
    seen = [path for path in files if not path.name.startswith(".")]
    for path in seen:
        try:
            found.append(read_file(path))
        except UsageError as error:
            if skip_bad is None:
                raise UsageError(f"{error} Mend or remove the file; `bench report --skip-bad` leaves it out.") from None
            skip_bad(str(error))
    if not seen:
        raise UsageError(f"{place} holds no results: neither {TRIALS}/ nor {EXTERNAL}/ has a file.")
    return found


def read_file(path: Path) -> Result:
    """One result.

    Raises:
        UsageError: the file is no result, is cut off, or holds what a result has not; with the line.
    """
    lines = _lines(path)
    header, rest = lines[0][1], lines[1:]
    if header.get("kind") not in ("trial", "external"):
        raise UsageError(f"{path}, line 1: not the header of a result; it begins with {_short(header)}.")
    if header.get("format") != FORMAT:
        raise UsageError(f"{path}, line 1: format {header.get('format')!r}; this Firesteel reads format {FORMAT}.")
    _check_header(header, f"{path}, line 1")
    ends = [(number, line) for number, line in rest if line.get("kind") == "end"]
    if len(ends) != 1 or rest[-1][1].get("kind") != "end":
        raise UsageError(f"{path}, line {lines[-1][0]}: the file does not close with one line of kind 'end': it is cut off.")
    end, where = ends[0][1], f"{path}, line {ends[0][0]}"
    if end.get("status") not in (*ENDED_WELL, "failed", "diverged"):
        raise UsageError(f"{where}: status {end.get('status')!r} is none that a run can have.")
    points, strips, staleness = list[dict[str, Any]](), list[dict[str, Any]](), None
    for number, line in rest[:-1]:
        body = {key: value for key, value in line.items() if key != "kind"}
        match line.get("kind"):
            case "point":
                _check_numbers(body, f"{path}, line {number}")
                points.append(body)
            case "staleness":
                staleness = body
            case "strip":
                strips.append(body)
            case other:
                raise UsageError(f"{path}, line {number}: a line of kind {other!r} has no place in a result.")
    return Result(
        header["id"], header, tuple(points), end["status"], end.get("error"), end.get("timing") or {}, staleness, tuple(strips)
    )


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    found = list[tuple[int, dict[str, Any]]]()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: no JSON: {error}.") from None
        if not isinstance(value, dict):
            raise UsageError(f"{path}, line {number}: a line is an object, not {_short(value)}.")
        found.append((number, value))
    if not found:
        raise UsageError(f"{path}, line 1: the file is empty.")
    return found


def _check_header(header: dict[str, Any], where: str) -> None:
    workload = header.get("workload")
    for name in ("id", "method"):
        if not isinstance(header.get(name), str):
            raise UsageError(f"{where}: the header needs a text {name!r}.")
    if not isinstance(workload, dict) or not all(isinstance(workload.get(name), str) for name in ("name", "metric")):
        raise UsageError(f"{where}: the header needs a workload with name and metric.")


def _check_numbers(point: dict[str, Any], where: str) -> None:
    for name, value in point.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UsageError(f"{where}: {name} is {_short(value)}, and points hold numbers.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def workloads(results: Iterable[Result]) -> list[str]:
    """Names of the workloads, in order of appearance."""
    return list(dict.fromkeys(result.workload for result in results))
