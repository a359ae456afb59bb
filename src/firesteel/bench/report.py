"""The report of a folder of results: what is in it, in order; `page` and `markdown` only dress it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, final

from firesteel.bench import curves, maps, strips, tables
from firesteel.bench.cells import Table, ranked
from firesteel.bench.claims import Claim
from firesteel.bench.configurations import Configuration, by_seconds, configurations
from firesteel.bench.figures import Picture, Series, series
from firesteel.bench.headline import headline
from firesteel.bench.results import Result, read, workloads
from firesteel.errors import UsageError

T = TypeVar("T")
Group = tuple[str, Sequence[Configuration]]  # a title, and the configurations of one workload and one kind of seconds


@final
@dataclass(frozen=True)
class Subject:
    """Pictures, and the tables that hold their numbers."""

    title: str
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...]
    folded: bool = False
    """Whether the tables say no more than the pictures, and are shown on demand."""


@final
@dataclass(frozen=True)
class Section:
    """A part of the report, with its place in the contents."""

    anchor: str
    title: str
    about: str = ""
    headline: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    subjects: tuple[Subject, ...] = ()
    series: tuple[Series, ...] = ()
    """What its pictures share."""


@final
@dataclass(frozen=True)
class Report:
    """All of it."""

    title: str
    about: tuple[str, ...]
    """Paragraphs."""
    summary: str
    left_out: tuple[str, ...]
    """Files that could not be read, each with what is wrong."""
    sections: tuple[Section, ...]
    date: str

    @property
    def pictures(self) -> list[tuple[str, Picture]]:
        """All of them, with names that are theirs alone."""
        each = ((section, picture) for section in self.sections for subject in section.subjects for picture in subject.pictures)
        return [(f"{section.anchor}-{picture.name}", picture) for section, picture in each]


def gather(folder: str | Path, skip_bad: Callable[[str], None] | None = None, date: str | None = None) -> Report:
    """What the report of a folder says; see `page.report`."""
    place = Path(folder)
    left_out = list[str]()

    def told(text: str) -> None:
        left_out.append(text)
        assert skip_bad is not None
        skip_bad(text)

    results = read(place, told if skip_bad else None)
    if not results:
        raise UsageError(f"{place} holds no result that can be read.")
    about = _about(place / "bench.json")
    found = configurations(results)
    groups = [
        (name if len(kinds) == 1 else f"{name}: {kind}", tuple(ranked(members)))
        for name in workloads(results)
        for kinds in [by_seconds(one for one in found if one.workload == name)]
        for kind, members in kinds.items()
    ]
    sections = [
        Section("ranking", "Ranking", headline=tuple(headline(found)), subjects=_ranking(groups)),
        Section("claims", "Claims", CLAIMS, claims=about.claims),
        *(_workload(number, title, members) for number, (title, members) in enumerate(groups, 1)),
        _profiles(found),
        Section("failures", "Failures", subjects=_only(tables.failures(results))),
        Section("settings", "Settings and environment", subjects=_settings(groups)),
    ]
    return Report(
        title=about.title or place.absolute().name,
        about=about.about,
        summary=_summary(results, found),
        left_out=tuple(left_out),
        sections=tuple(s for s in sections if s.headline or s.claims or s.subjects),
        date=date or f"{datetime.now(UTC):%Y-%m-%d}",
    )


CLAIMS = "What the source reports beside what these results say."


@final
@dataclass(frozen=True)
class _About:
    title: str = ""
    about: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()


def _about(path: Path) -> _About:
    """bench.json; imported results have none."""
    if not path.exists():
        return _About()
    try:
        told: dict[str, Any] = json.loads(path.read_text())
        claims = tuple(Claim(**claim) for claim in told.get("claims") or ())
        paragraphs = re.split(r"\n\s*\n", str(told.get("about") or "").strip())
        return _About(str(told.get("title") or ""), tuple(" ".join(p.split()) for p in paragraphs if p.strip()), claims)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is not what `firesteel bench run` writes: {error}. Run it again, or remove the file."
        ) from None


def _summary(results: Sequence[Result], found: Sequence[Configuration]) -> str:
    outside = sum(result.external for result in results)
    parts = [
        _count(len(results), "run"),
        _count(len(found), "configuration"),
        _count(len({result.workload for result in results}), "workload"),
    ]
    parts += [f"{outside} of the runs external"] if outside else []
    lost = Counter(result.status for result in results if not result.ended_well)
    return ", ".join(parts + [f"{count} {status}" for status, count in sorted(lost.items())])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _ranking(groups: Sequence[Group]) -> tuple[Subject, ...]:
    made = [(title, tables.ranking(group)) for title, group in groups]
    return _filled([Subject("", (), (replace(table, title=f"Ranking: {title}"),)) for title, table in made if table])


def _workload(number: int, title: str, group: Sequence[Configuration]) -> Section:
    efficiency, smoothed = (tables.efficiency(group, form) if len(group) > 1 else None for form in (False, True))
    robustness = tables.robustness(group)
    drawn, metric = series(group), group[0].metric
    subjects = [
        Subject("Learning", curves.learning(drawn), ()),
        Subject(
            "Time to target and speed-up",
            (*_some(strips.to_target(drawn)), *_some(curves.speed_up(drawn))),
            (*_some(tables.to_target(group)), *_some(tables.speed_up(group))),
        ),
        Subject(
            "Temporal efficiency",
            _some(efficiency and maps.efficiency(efficiency)),
            (*_some(efficiency), *_some(smoothed)),
            folded=True,
        ),
        Subject("Robustness", _some(robustness and maps.robustness(robustness, metric)), _some(robustness), folded=True),
        Subject(
            "Staleness and waiting",
            (*_some(strips.staleness(drawn)), *_some(strips.gantt(drawn))),
            _some(tables.staleness(group)),
        ),
    ]
    first = group[0]
    goal = "" if first.target is None else f", target {metric.replace('_', ' ')} {first.target:g}"
    told = [str(first.results[0].header["workload"].get(name) or "") for name in ("model", "data")]
    about = ", ".join(part for part in told if part) + goal + "."
    return Section(f"workload-{number}", title, about.removeprefix(", "), (), (), _filled(subjects), drawn)


def _profiles(found: Sequence[Configuration]) -> Section:
    drawn = curves.methods(found)
    kinds = [(tables.profiles(members), members) for members in by_seconds(found).values()]
    subjects = [Subject("", (curves.profile(drawn, members),), (table,)) for table, members in kinds if table is not None]
    return Section("profile", "Across workloads", subjects=tuple(subjects), series=drawn)


def _settings(groups: Sequence[Group]) -> tuple[Subject, ...]:
    made = [(title, tables.settings(group)) for title, group in groups]
    return _filled([Subject("", (), (replace(table, title=f"Settings: {title}"),)) for title, table in made if table])


def _only(table: Table | None) -> tuple[Subject, ...]:
    return _filled([Subject("", (), _some(table))])


def _some(found: T | None) -> tuple[T, ...]:
    return () if found is None else (found,)


def _filled(subjects: Sequence[Subject]) -> tuple[Subject, ...]:
    """Those that show something."""
    return tuple(s for s in subjects if s.pictures or any(table.rows for table in s.tables))
