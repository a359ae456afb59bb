"""What was compared: results that differ in nothing but their seed are one configuration."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from firesteel.bench.results import Result
from firesteel.errors import UsageError

HARDWARE = ("cpu", "cores", "gpu")  # of the environment: wall seconds of two machines have no common median


@final
@dataclass(frozen=True)
class Configuration:
    """One line of a comparison: everything of a trial but its seed."""

    workload: str
    metric: str
    """What points call it: "validation_accuracy", say."""
    target: float | None
    method: str
    strategy: str | None
    settings: dict[str, Any]
    optimizer: str | None
    heuristic: dict[str, Any] | None
    world: str | None
    virtual: bool
    on: str | None
    workers: int | None
    batch_size: int | None
    external: bool
    source: str | None
    label: str
    """Unique within the workload, and no longer than that needs; of somebody else's it ends in " (external)"."""
    results: tuple[Result, ...]
    """One for each seed."""

    @property
    def seconds(self) -> str:
        """The kind of its seconds: "wall seconds" or "virtual seconds"."""
        return "virtual seconds" if self.virtual else "wall seconds"


def configurations(results: Iterable[Result]) -> list[Configuration]:
    """Results grouped by all but their seed, in order of appearance.

    Raises:
        UsageError: results of one workload have different metrics or targets.
    """
    found = list(results)
    _check_workloads(found)
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in found:
        groups[json.dumps(_key(result), sort_keys=True, default=str)].append(result)
    made = [_configuration(tuple(group)) for group in groups.values()]
    return [replace(one, label=label) for one, label in zip(made, _labels(made), strict=True)]


def _check_workloads(results: Sequence[Result]) -> None:
    for name, values in (("metric", lambda r: r.metric), ("target", lambda r: r.target)):
        first: dict[str, Result] = {}
        for result in (r for r in results if values(r) is not None):
            other = first.setdefault(result.workload, result)
            if values(other) != values(result):
                raise UsageError(
                    f"The workload {result.workload!r} has the {name} {values(other)!r} in {other.id} and {values(result)!r} "
                    f"in {result.id}. What is compared has one {name}: give one of them another workload name."
                )


def _key(result: Result) -> dict[str, Any]:
    header = {name: value for name, value in result.header.items() if name not in ("id", "seed", "environment", "workload")}
    return {**header, "workload": result.workload, "hardware": None if result.virtual else _hardware(result)}


def _hardware(result: Result) -> dict[str, Any]:
    environment = result.header.get("environment") or {}
    return {name: environment[name] for name in HARDWARE if environment.get(name) is not None}


def _configuration(results: tuple[Result, ...]) -> Configuration:
    first = results[0]
    header = first.header
    return Configuration(
        workload=first.workload,
        metric=first.metric,
        target=next((r.target for r in results if r.target is not None), None),
        method=first.method,
        strategy=header.get("strategy"),
        settings=header.get("settings") or {},
        optimizer=header.get("optimizer"),
        heuristic=header.get("heuristic"),
        world=header.get("world"),
        virtual=first.virtual,
        on=header.get("on"),
        workers=first.workers,
        batch_size=header.get("batch_size"),
        external=first.external,
        source=header.get("source"),
        label=first.method,
        results=results,
    )


def _labels(made: Sequence[Configuration]) -> list[str]:
    """The methods; those that share a label get what tells them apart, one difference after the other."""
    labels = [one.method for one in made]
    for tell in (*TOLD, _rest):
        clashes: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
        for index, one in enumerate(made):
            clashes[one.workload, labels[index], one.external].append(index)
        for (_, label, _), members in clashes.items():
            texts = [tell(made[index]) for index in members]
            if len(set(texts)) > 1:
                for index, text in zip(members, texts, strict=True):
                    labels[index] = f"{label}, {text}" if text else label
    return [f"{label} (external)" if one.external else label for label, one in zip(labels, made, strict=True)]


def _heuristic(one: Configuration) -> str:
    return f"{one.heuristic['name']} {'on' if one.heuristic.get('on') else 'off'}" if one.heuristic else ""


def _workers(one: Configuration) -> str:
    return "" if one.workers is None else f"{one.workers} worker{'s' if one.workers != 1 else ''}"


def _hardware_text(one: Configuration) -> str:
    return " ".join(str(value) for value in _hardware(one.results[0]).values())


def _rest(one: Configuration) -> str:
    """All else in which headers can differ."""
    shown = (
        "kind",
        "method",
        "optimizer",
        "heuristic",
        "workers",
        "world",
        "batch_size",
        "on",
        "source",
        "workload",
        "virtual",
    )
    return _items({name: value for name, value in _key(one.results[0]).items() if name not in (*shown, "hardware")})


def _items(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items() if value is not None)


TOLD: tuple[Callable[[Configuration], str], ...] = (
    lambda one: one.optimizer or "",
    _heuristic,
    _workers,
    lambda one: one.world or "",
    lambda one: "" if one.batch_size is None else f"batch {one.batch_size}",
    lambda one: one.seconds if one.world is None else "",
    lambda one: one.on or "",
    lambda one: one.source or "",
    _hardware_text,
)
