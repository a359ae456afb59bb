"""The report as one HTML page that needs nothing but itself: styles, script and pictures are in it. Beside it the Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from firesteel.bench import markdown
from firesteel.bench.cells import Table
from firesteel.bench.figures import SHOWN, Picture, Series
from firesteel.bench.report import Report, Section, gather
from firesteel.bench.svg import COLOURS, DARK, LIGHT, PAGE, coloured, draw
from firesteel.errors import UsageError

if TYPE_CHECKING:
    from jinja2 import Environment

SHAPES = {
    "o": "M9.2 7a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0 -4.4 0z",
    "s": "M9.2 4.8h4.4v4.4h-4.4z",
    "^": "M11.4 4.4l2.7 4.8h-5.4z",
    "D": "M11.4 4l3 3l-3 3l-3 -3z",
    "v": "M11.4 9.6l2.7 -4.8h-5.4z",
}
"""The markers of lines, in the legend."""


def report(
    folder: str | Path,
    out: str | Path | None = None,
    skip_bad: Callable[[str], None] | None = None,
    date: str | None = None,
) -> list[Path]:
    """Write report.html, report.md and the pictures of that, report-figures/, from the files of a folder alone.

    The same files give the same bytes, but for the line of the date.

    Args:
        folder: of results, as `firesteel bench run --out` fills it.
        out: where to write; the folder itself if it is not given.
        skip_bad: is told of each file that cannot be read, which the report then names and leaves out; None: it is an error.
        date: what stands on the report; today's, in UTC, if it is not given.

    Returns:
        What was written: the page, the Markdown, the folder of its pictures.

    Raises:
        UsageError: there are no results, a file is none, bench.json is not what `firesteel bench run` writes, or matplotlib or
            Jinja2 is not installed.
    """
    made = gather(folder, skip_bad, date)
    place = Path(out or folder)
    place.mkdir(parents=True, exist_ok=True)
    drawings = {name: draw(picture.figure, name, picture.title, picture.about) for name, picture in made.pictures}
    html = place / "report.html"
    _ = html.write_text(_render(made, drawings), encoding="utf-8")
    return [html, *markdown.write(made, drawings, place)]


def _render(made: Report, drawings: Mapping[str, str]) -> str:
    """The page; every name in it is escaped."""
    pictures = {name: coloured(drawing, PAGE) for name, drawing in drawings.items()}
    template = _environment().get_template("page.html.j2")
    return template.render(report=made, pictures=pictures, light=LIGHT, dark=DARK, shapes=SHAPES, shown=SHOWN)


@cache
def _environment() -> Environment:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise UsageError("the page needs Jinja2: pip install 'firesteel[bench]'.") from error
    made = Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.globals |= {"file": _file, "numeric": numeric, "hidden": hidden, "hiding": hiding, "hue": hue, "wide": wide}
    return made


def _file(name: str) -> str:
    return files("firesteel.bench").joinpath(name).read_text(encoding="utf-8")


def numeric(table: Table) -> list[bool]:
    """Of each column: whether it holds numbers."""
    return [any(row[place].value is not None for row in table.rows) for place in range(len(table.columns))]


def hidden(section: Section) -> str:
    """The classes of a section that hide the series beyond the best."""
    return " ".join(f"off-{each.number}" for each in section.series if not each.shown)


def hiding(section: Section) -> list[str]:
    """CSS selectors of what is not shown: lines of a series that is off, or of a family whose members all are."""
    within = f"#{section.anchor}"
    families: dict[int, str] = {}
    for each in section.series:
        families[each.family] = f"{families.get(each.family, '')}.off-{each.number}"
    alone = [f"{within}.off-{each.number} .lines .series-{each.number}" for each in section.series]
    return alone + [f"{within}{offs} .family-{family}" for family, offs in families.items()]


def hue(series: Series) -> str:
    """The name of its colour on the page."""
    return PAGE[f"series-{series.hue % COLOURS}"]


def wide(picture: Picture) -> bool:
    """Whether it needs the width of two."""
    return picture.width > 440
