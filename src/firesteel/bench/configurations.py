"""What was compared: results that differ in nothing but their seed are one configuration."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from firesteel.bench import texts
from firesteel.bench.results import Result
from firesteel.errors import UsageError

LONG = 40  # characters of a label's part
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

    @property
    def timeless(self) -> bool:
        """Whether it is somebody else's and tells no seconds: it can stand beside seconds of either kind."""
        return self.external and not any(point.get("seconds") is not None for r in self.results for point in r.points)


def configurations(results: Iterable[Result]) -> list[Configuration]:
    """Results grouped by all but their seed, in order of appearance. Those that tell no target have their workload's.

    Raises:
        UsageError: results of one workload have different metrics or targets.
    """
    found = list(results)
    _check(found, "metric", lambda result: result.metric)
    _check(found, "target", lambda result: result.target)
    targets = {result.workload: result.target for result in found if result.target is not None}
    found = [_aimed(result, targets.get(result.workload)) for result in found]
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in found:
        groups[_text(_key(result))].append(result)
    made = [_configuration(tuple(group)) for group in groups.values()]
    return [replace(one, label=label) for one, label in zip(made, _labels(made), strict=True)]


def by_seconds(configurations: Iterable[Configuration]) -> dict[str, list[Configuration]]:
    """Configurations by the kind of their seconds, which are never mixed; those that tell none stand with every kind."""
    found = list(configurations)
    kinds = list(dict.fromkeys(one.seconds for one in found if not one.timeless)) or list({one.seconds for one in found})
    return {kind: [one for one in found if one.timeless or one.seconds == kind] for kind in kinds}


def families(configurations: Iterable[Configuration]) -> dict[str, list[Configuration]]:
    """Configurations of one workload that differ in their number of workers alone, by what they share, fewest workers first."""
    groups: dict[str, list[Configuration]] = defaultdict(list)
    for one in configurations:
        if one.workers is not None:
            groups[_text({**_key(one.results[0]), **_but_workers(one)})].append(one)
    members = [sorted(group, key=lambda one: one.workers or 0) for group in groups.values()]
    shared = [replace(group[0], **_but_workers(group[0])) for group in members]
    return dict(zip(_labels(shared, left_out=("workers",)), members, strict=True))


def _but_workers(one: Configuration) -> dict[str, Any]:
    return {"workers": None, "on": one.on and re.sub(r"\bworkers=\d+", "workers=N", one.on)}


def _check(results: Sequence[Result], name: str, value: Callable[[Result], Any]) -> None:
    first: dict[str, Result] = {}
    for result in (r for r in results if value(r) is not None):
        other = first.setdefault(result.workload, result)
        if value(other) != value(result):
            raise UsageError(
                f"The workload {result.workload!r} has the {name} {value(other)!r} in {other.id} and {value(result)!r} in "
                f"{result.id}. What is compared has one {name}: give one of the two another workload name."
            )


def _aimed(result: Result, target: float | None) -> Result:
    return replace(result, header={**result.header, "workload": {**result.header["workload"], "target": target}})


def _key(result: Result) -> dict[str, Any]:
    header = {name: value for name, value in result.header.items() if name not in ("id", "seed", "environment")}
    hardware = None if result.virtual else _hardware(result)
    found = {**header, "virtual": result.virtual, "hardware": hardware or None}
    return {name: value for name, value in found.items() if value is not None}  # null or not there is the same


def _hardware(result: Result) -> str:
    environment = result.header.get("environment") or {}
    found = [f"{name} {environment[name]}" for name in HARDWARE if environment.get(name) is not None]
    return ", ".join(found)


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, default=str)


def _configuration(results: tuple[Result, ...]) -> Configuration:
    first = results[0]
    header = first.header
    return Configuration(
        workload=first.workload,
        metric=first.metric,
        target=first.target,
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


def _labels(made: Sequence[Configuration], left_out: Sequence[str] = ()) -> list[str]:
    """The methods; those that share a label get what tells them apart, one difference after the other."""
    labels = [one.method for one in made]
    keys = [{**_key(one.results[0]), "on": one.on} for one in made]
    names = dict.fromkeys([*TOLD, *(name for key in keys for name in key)])
    for name in (name for name in names if name not in ("kind", *left_out)):
        clashes: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
        for index, one in enumerate(made):
            clashes[one.workload, labels[index], one.external].append(index)
        for (_, label, _), members in clashes.items():
            values = [keys[index].get(name) for index in members]
            if len({_text({name: value}) for value in values}) > 1:
                for index, text in zip(members, _told(name, values), strict=True):
                    labels[index] = f"{label}, {text}" if text else label
    return [f"{label} (external)" if one.external else label for label, one in zip(labels, made, strict=True)]


TOLD: dict[str, Callable[[Any], str]] = {
    "optimizer": str,
    "heuristic": texts.heuristic,
    "workers": texts.workers,
    "world": str,
    "virtual": lambda virtual: "virtual seconds" if virtual else "wall seconds",
    "batch_size": lambda rows: f"batch {rows}",
    "on": str,
    "source": str,
    "hardware": str,
}


def _told(name: str, values: Sequence[Any]) -> list[str]:
    """What each value of a group is called: of long ones only the parts that differ."""
    tell = TOLD.get(name, lambda value: f"{name}={value}")
    whole = ["" if value is None else tell(value) for value in values]
    parts = [re.findall(r"\w+=[^\s,()]+", text) for text in whole]
    short = [", ".join(part for part in found if not all(part in other for other in parts)) for found in parts]
    return short if len(set(short)) == len(set(whole)) and len(max(whole, key=len)) > LONG else whole
