"""The report as GitHub-flavoured Markdown, with its pictures as SVG files beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from firesteel.bench import curves
from firesteel.bench.cells import Table
from firesteel.bench.claims import VERDICTS
from firesteel.bench.figures import SHOWN
from firesteel.bench.report import Report, Section
from firesteel.bench.svg import coloured, draw

FOLDER = "report-figures"
MARKS = dict(zip(VERDICTS, ("✔", "✘", "=", "○"), strict=True))


def write(report: Report, drawings: Mapping[str, str], place: Path) -> list[Path]:
    """Write report.md and the folder of its pictures; those of an earlier report go."""
    folder = place / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for section in report.sections:
        for picture in (picture for subject in section.subjects for picture in subject.pictures):
            name = f"{section.anchor}-{picture.name}"
            text = coloured(drawings[name])
            if not picture.rows and (waiting := _waiting(section)):
                text = text.replace("</desc>", f"</desc><style>{waiting} {{ display: none }}</style>", 1)
            _ = (folder / f"{name}.svg").write_text(text + "\n", encoding="utf-8")
        if section.series:
            made = curves.legend([each for each in section.series if each.shown])
            text = coloured(draw(made.figure, f"{section.anchor}-legend", made.title, made.about))
            _ = (folder / f"{section.anchor}-legend.svg").write_text(text + "\n", encoding="utf-8")
    file = place / "report.md"
    _ = file.write_text(render(report), encoding="utf-8")
    return [file, folder]


def _waiting(section: Section) -> str:
    """CSS selectors of what only the page shows, on demand."""
    shown = {each.family for each in section.series if each.shown}
    families = sorted({each.family for each in section.series} - shown)
    return ", ".join(
        [*(f".{each.gid}" for each in section.series if not each.shown), *(f".family-{family}" for family in families)]
    )


def render(report: Report) -> str:
    """The text of report.md."""
    blocks = [f"# {plain(report.title)}", *map(plain, report.about), plain(report.summary)]
    blocks.append(f"Made on {report.date} by `firesteel bench report`")
    if report.left_out:
        blocks.append("Left out, because they could not be read:\n\n" + _list(report.left_out))
    for section in report.sections:
        blocks += _section(section)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _section(section: Section) -> list[str]:
    blocks = [f"## {plain(section.title)}", plain(section.about), _list(section.headline)]
    if section.claims:
        rows = [(f"{MARKS[c.verdict]} {c.verdict}", c.text, c.published, c.measured, c.why) for c in section.claims]
        blocks.append(_grid(("verdict", "claim", "published", "measured here", "why"), rows))
    if section.series:
        best = f", the best {SHOWN} of {len(section.series)}" if len(section.series) > SHOWN else ""
        blocks.append(f"![Legend]({FOLDER}/{section.anchor}-legend.svg)\n\nLines{best}; report.html has all.")
    for subject in section.subjects:
        blocks += [f"### {plain(subject.title)}" if subject.title else ""]
        for picture in subject.pictures:
            image = f"![{plain(picture.title)}]({FOLDER}/{section.anchor}-{picture.name}.svg)"
            blocks += [image, plain(f"{picture.title}. {picture.about}")]
        for each in subject.tables:
            blocks += table(each)
    return blocks


def table(one: Table) -> list[str]:
    """A table's title, rows and what it says."""
    numbers = [any(row[place].value is not None for row in one.rows) for place in range(len(one.columns))]
    rows = [tuple(cell.text for cell in row) for row in one.rows]
    return [f"**{plain(one.title)}**", _grid(one.columns, rows, numbers), plain(one.about)]


def _grid(columns: tuple[str, ...], rows: list[tuple[str, ...]], right: list[bool] | None = None) -> str:
    rules = ["---:" if number else "---" for number in right or [False] * len(columns)]
    lines = [columns, *rows]
    cells = [[plain(cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (cells[0], rules, *cells[1:]))


def _list(texts: tuple[str, ...]) -> str:
    return "\n".join(f"- {plain(text)}" for text in texts)


def plain(text: str) -> str:
    """Text that Markdown and HTML take as it is, on one line.

    >>> plain("<b>|a_b|")
    '&lt;b&gt;\\\\|a\\\\_b\\\\|'
    """
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", escaped)
