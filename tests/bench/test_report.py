"""The report says what the files say: pictures, Markdown, page, and the same bytes every time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_results import DIGITS, MNIST, external, folder, trial

from firesteel.bench import curves, maps, strips, tables
from firesteel.bench.cells import ranked
from firesteel.bench.claims import VERDICTS
from firesteel.bench.compare import compare, show
from firesteel.bench.configurations import configurations
from firesteel.bench.figures import SHOWN, series, short
from firesteel.bench.markdown import plain
from firesteel.bench.page import report
from firesteel.bench.report import gather
from firesteel.bench.results import TRIALS, write
from firesteel.bench.svg import DARK, LIGHT, PAGE, coloured, draw
from firesteel.errors import UsageError

ATTACK = "<script>alert('x')</script> & \"$\\frac$\" | `a` *b*"
CLAIMS = [
    {"text": f"claim {ATTACK}", "published": "85 %", "measured": "87 %", "verdict": verdict, "why": "A reason."}
    for verdict in VERDICTS
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A small folder with a bit of everything, and its report."""
    path = folder(
        tmp_path_factory.mktemp("bench"), seeds=2, methods=("SyncSGD()", "AGN(window=12)"), workers=(2, 4), name=ATTACK
    )
    told = {"title": f"Title {ATTACK}", "about": "First\nparagraph.\n\nSecond.", "recipe": "r.py", "claims": CLAIMS}
    (path / "bench.json").write_text(json.dumps(told))
    report(path, date="2026-01-02")
    return path


class Page(HTMLParser):
    """What tests ask of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.refers: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        if tag in ("h1", "h2", "h3", "figcaption", "caption"):
            self.headings.append("")
        self.ids += [given["id"]] if "id" in given else []
        self.refers += [name for key in ("aria-labelledby",) for name in (given.get(key) or "").split()]
        self.refers += re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in given.values()))
        self.addresses += [given[key] for key in ("src", "href") if given.get(key)]

    def handle_data(self, data):
        if self.headings and self.lasttag in ("h1", "h2", "h3", "figcaption", "caption"):
            self.headings[-1] += data.strip()


def test_the_same_files_give_the_same_bytes_but_for_the_date(place, tmp_path):
    first = {
        path.name: path.read_bytes() for path in [place / "report.html", place / "report.md", *place.glob("report-figures/*")]
    }
    report(place, out=tmp_path, date="2026-03-04")
    assert {path.name for path in tmp_path.glob("report-figures/*")} == {n for n in first if n.endswith(".svg")}
    for name, old in first.items():
        new = next(tmp_path.rglob(name)).read_bytes()
        if name.endswith(".svg"):
            assert new == old, name
        else:
            pairs = list(zip(old.splitlines(), new.splitlines(), strict=True))
            assert [a.replace(b"2026-01-02", b"2026-03-04") for a, b in pairs if a != b] == [b for a, b in pairs if a != b]
            assert sum(a != b for a, b in pairs) == 1, name


def test_names_are_text_and_never_markup(place):
    html = (place / "report.html").read_text()
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;alert") > 5  # title, claims, tables, legend, pictures
    assert Page(html).tags.count("script") == 2
    markdown = (place / "report.md").read_text()
    assert "<script" not in markdown and "&lt;script&gt;" in markdown
    assert all("<script" not in path.read_text() for path in place.glob("report-figures/*.svg"))


def test_the_page_needs_nothing_but_itself(place):
    page = Page((place / "report.html").read_text())
    assert {a for a in page.addresses if not a.startswith("#")} == {"data:,"}
    assert len(page.ids) == len(set(page.ids))
    assert set(page.refers) <= set(page.ids)
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert not re.search(r"@import|https?://(?!www\.w3\.org/)", (place / "report.html").read_text())


def test_sections_come_in_order_and_empty_ones_not_at_all(place, tmp_path):
    titles = [section.title for section in gather(place).sections]
    assert titles == [
        "Ranking", "Claims", "MNIST, MLP", "digits, LeNet: wall seconds", "digits, LeNet: virtual seconds",
        "Across workloads", "Failures", "Settings and environment",
    ]  # fmt: skip
    write(tmp_path / TRIALS / "1.jsonl", trial(MNIST, "SyncSGD()", 1, 0))
    alone = gather(tmp_path)
    assert [section.title for section in alone.sections] == ["Ranking", "MNIST, MLP", "Settings and environment"]
    assert [subject.title for subject in alone.sections[1].subjects] == [
        "Learning",
        "Time to target and speed-up",
        "Staleness and waiting",
    ]
    assert alone.title == tmp_path.name and alone.summary == "1 run, 1 configuration, 1 workload"


def test_every_picture_is_on_the_page_and_beside_the_markdown(place):
    made = gather(place)
    page, markdown = Page((place / "report.html").read_text()), (place / "report.md").read_text()
    assert len(dict(made.pictures)) == len(made.pictures) > 40
    for name, _ in made.pictures:
        assert {f"{name}-title", f"{name}-about"} <= set(page.ids)
        assert f"(report-figures/{name}.svg)" in markdown
        assert (place / "report-figures" / f"{name}.svg").read_text().startswith("<svg")
    for table in (t for s in made.sections for subject in s.subjects for t in subject.tables):
        assert table.title in page.headings and f"**{plain(table.title)}**" in markdown


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        report(tmp_path / "nothing")
    bad = tmp_path / TRIALS / "1.jsonl"
    bad.parent.mkdir()
    bad.write_text('{"kind": "trial"\n')
    with pytest.raises(UsageError, match=r"1.jsonl, line 1"):
        report(tmp_path)
    with pytest.raises(UsageError, match="no result that can be read"):
        report(tmp_path, skip_bad=lambda text: None)
    write(tmp_path / TRIALS / "2.jsonl", trial(MNIST, "SyncSGD()", 1, 0))
    told = list[str]()
    html = report(tmp_path, skip_bad=told.append)[0].read_text()
    assert len(told) == 1 and "Left out, because they could not be read" in html and "1.jsonl, line 1" in html
    (tmp_path / "bench.json").write_text('{"claims": [{"text": "x"}]}')
    with pytest.raises(UsageError, match=r"bench.json is not what"):
        report(tmp_path, skip_bad=told.append)


def drawn(picture) -> dict[str, list]:
    """Lines of a picture by their gid."""
    found: dict[str, list] = {}
    for line in picture.figure.axes[0].get_lines():
        found.setdefault(line.get_gid(), []).append(line)
    return found


def test_a_line_is_the_median_of_the_seeds():
    group = series(configurations([trial(MNIST, "SyncSGD()", 2, seed) for seed in range(3)]))
    picture = curves.curves(group, "samples", "validation_accuracy")
    assert picture is not None and picture.title == "Validation accuracy over samples"
    lines = drawn(picture)["series-0"]
    columns = [result.column("validation_accuracy") for result in group[0].one.results]
    assert [list(line.get_ydata()) for line in lines[:3]] == columns
    assert list(lines[3].get_ydata()) == [sorted(values)[1] for values in zip(*columns, strict=True)]
    assert f"Highest at the end: SyncSGD() with {sorted(c[-1] for c in columns)[1]:.4g}." in picture.about


def test_more_than_three_seeds_are_a_band():
    group = series(configurations([trial(MNIST, "SyncSGD()", 2, seed) for seed in range(4)]))
    picture = curves.curves(group, "seconds", "validation_loss")
    assert picture is not None
    assert len(drawn(picture)["series-0"]) == 1 and len(picture.figure.axes[0].collections) == 1
    assert "Lowest at the end" in picture.about


def test_somebody_elses_is_dashed_and_hollow_and_what_has_no_figures_is_named():
    group = series(configurations([trial(MNIST, "SyncSGD()", 4, 0), external(MNIST, "AllReduce")]))
    assert [each.one.label for each in group] == ["SyncSGD()", "AllReduce (external)"]
    picture = curves.curves(group, "seconds", "validation_accuracy")
    assert picture is not None
    (ours,), (theirs,) = drawn(picture)["series-0"], drawn(picture)["series-1"]
    assert (ours.get_linestyle(), theirs.get_linestyle()) == ("-", "--")
    assert ours.get_markerfacecolor() == ours.get_color() and theirs.get_markerfacecolor() != theirs.get_color()
    picture = curves.curves(group, "bytes_sent", "validation_accuracy")
    assert picture is not None and "Not drawn, for want of figures: AllReduce (external)." in picture.about
    assert curves.curves(group[1:], "bytes_sent", "validation_accuracy") is None


def test_colour_tells_the_method_and_shape_the_workers():
    runs = [trial(MNIST, method, n, 0) for n in (1, 2, 4) for method in ("SyncSGD()", "AGN(window=12)")]
    group = series(configurations(runs))
    assert [each.hue for each in group] == [0, 1, 0, 1, 0, 1]
    assert [each.marker for each in group] == ["o", "o", "s", "s", "^", "^"]
    assert (
        len({(each.colour, each.marker) for each in series(configurations(trial(MNIST, f"M{k}()", 1, 0) for k in range(50)))})
        == 50
    )


def test_bars_tell_who_has_not_arrived():
    runs = [trial(MNIST, "SyncSGD()", 4, 0), trial(MNIST, "AEASGD(window=32)", 4, 0, points=3)]
    runs += [trial(MNIST, "ADAG(window=5)", 4, 0, status="failed", error={"type": "E", "message": "m"})]
    picture = strips.to_target(series(configurations(runs)))
    assert picture is not None
    bars = picture.figure.axes[0].patches
    assert [bar.get_hatch() for bar in bars] == [None, "////"]
    assert bars[0].get_width() == next(p["seconds"] for p in runs[0].points if p["validation_accuracy"] >= 0.95)
    assert bars[1].get_width() == runs[1].points[-1]["seconds"]
    said = [text.get_text() for text in picture.figure.axes[0].texts[1::2]]
    assert said[1:] == [f"not reached in {runs[1].points[-1]['seconds']:.3g}", "failed"]
    assert strips.to_target(series(configurations([trial({**MNIST, "target": None}, "SyncSGD()", 1, 0)]))) is None


def test_the_speed_up_has_a_line_for_each_method():
    runs = [trial(MNIST, method, n, 0) for method in ("SyncSGD()", "DynSGD(window=5)") for n in (1, 2, 4)]
    picture = curves.speed_up(series(configurations(runs)))
    assert picture is not None
    lines = drawn(picture)
    times = [next(p["seconds"] for p in run.points if p["validation_accuracy"] >= 0.95) for run in runs]
    for family, (first, *others) in (("family-0", times[:3]), ("family-3", times[3:])):
        (line,) = lines[family]
        assert list(line.get_xdata()) == [1, 2, 4]
        assert list(line.get_ydata()) == pytest.approx([1, *(first / time for time in others)])
    assert 'class="family-3"' in draw(picture.figure, "x", "t", "a")


def test_heat_maps_have_the_numbers_of_their_tables():
    table = tables.efficiency(
        configurations([trial(MNIST, m, 2, s) for m in ("SyncSGD()", "AEASGD(window=32)") for s in (0, 1)])
    )
    assert table is not None
    picture = maps.efficiency(table)
    assert picture is not None
    axes = picture.figure.axes[0]
    assert [text.get_text() for text in axes.texts] == [
        "1",
        f"{table.rows[0][2].value:.3g}",
        f"{table.rows[1][1].value:.3g}",
        "1",
    ]
    better, worse = axes.patches
    assert better.get_xy()[1] < 0 < worse.get_xy()[1] and better.get_facecolor() != worse.get_facecolor()
    runs = [trial(DIGITS, f"AGN(window={w})", n, 0, virtual=True) for w in (5, 12) for n in (2, 4)]
    table = tables.robustness(configurations(runs))
    assert table is not None
    assert len(maps.robustness(table, "validation_accuracy").figure.axes[0].patches) == 4


def test_staleness_and_strips_are_drawn_for_who_has_them():
    group = series(configurations([trial(MNIST, "SyncSGD()", 2, 0), trial(MNIST, "DynSGD(window=5)", 2, 0)]))
    stale, gantt = strips.staleness(group), strips.gantt(group)
    assert stale is not None and gantt is not None
    assert {bar.get_gid() for bar in stale.figure.axes[0].patches} == {"series-1"}
    assert len(gantt.figure.axes[0].collections) == 2 * 2 * 2  # methods, workers, computing and waiting
    assert strips.staleness(group[:1]) is None


def test_profiles_have_a_staircase_for_each_method():
    found = configurations([trial(w, m, 2, 0) for w in (MNIST, DIGITS) for m in ("SyncSGD()", "DynSGD(window=5)")])
    picture = curves.profile(curves.methods(found), found)
    lines = drawn(picture)
    assert set(lines) == {"series-0", "series-1"}
    assert sorted(line.get_ydata()[0] for (line,) in lines.values()) in ([0, 1], [0.5, 0.5])


def test_pictures_take_the_colours_they_are_given():
    picture = curves.curves(series(configurations([trial(MNIST, "SyncSGD()", 2, 0)])), "seconds", "validation_loss")
    assert picture is not None
    alone, within = (coloured(draw(picture.figure, "x", "t", "a"), colours) for colours in (LIGHT, PAGE))
    assert LIGHT["series-0"] in alone and LIGHT["paper"] in alone and "var(" not in alone
    assert "var(--series-0)" in within and LIGHT["series-0"] not in within
    assert not re.search(r"#0000[0-9a-f]{2}\b|font-family: |<style|matplotlib", within)
    assert 'role="img"' in within and '<title id="x-title">t</title>' in within and '<desc id="x-about">a</desc>' in within


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out(colours):
    def over(colour: str, share: float) -> str:
        mixed = (share * int(colour[k : k + 2], 16) + (1 - share) * int(colours["paper"][k : k + 2], 16) for k in (1, 3, 5))
        return "#" + "".join(f"{round(c):02x}" for c in mixed)

    assert min(contrast(colours[name], colours["paper"]) for name in ("ink", "muted")) >= 4.5
    assert min(contrast(colours[name], colours["paper"]) for name in colours if name.startswith("series-")) >= 3
    assert min(contrast(colours["ink"], over(colours[name], maps.STRONGEST)) for name in ("better", "worse")) >= 4.5


def test_the_best_are_shown_at_first_and_the_others_wait(tmp_path):
    runs = [trial(MNIST, method, n, 0) for method in ("SyncSGD()", "AGN(window=12)", "ADAG(window=5)") for n in (1, 2, 4, 8)]
    for number, run in enumerate(runs):
        write(tmp_path / TRIALS / f"{number}.jsonl", run)
    html, markdown, pictures = report(tmp_path)
    section = next(section for section in gather(tmp_path).sections if section.series)
    assert [each.one for each in section.series] == ranked(configurations(runs)) and len(runs) == 12 > SHOWN
    assert 'class="off-8 off-9 off-10 off-11"' in html.read_text()
    text = (pictures / f"{section.anchor}-validation-accuracy-seconds.svg").read_text()
    assert ".series-8, .series-9, .series-10, .series-11" in text and ".series-7" not in text
    legend = (pictures / f"{section.anchor}-legend.svg").read_text()
    assert [each.one.label in legend for each in section.series] == [True] * 8 + [False] * 4
    assert f"{section.anchor}-legend.svg" in markdown.read_text()


def test_short_keeps_both_ends():
    assert short("AEASGD(window=32), 4 workers", 20) == "AEASGD(wi… 4 workers" and short("SyncSGD()", 20) == "SyncSGD()"


def test_folders_are_compared_by_what_both_have(tmp_path, capsys):
    for name, speed, extra in (("before", 1.0, "ADAG(window=5)"), ("after", 2.0, "DynSGD(window=5)")):
        runs = [trial(MNIST, "SyncSGD()", 2, seed, speed=speed) for seed in range(3)] + [trial(MNIST, extra, 2, 0)]
        for number, run in enumerate(runs):
            header = {**run.header, "environment": {**run.header["environment"], "git": name, "cpu": f"CPU {name}"}}
            write(tmp_path / name / TRIALS / f"{number}.jsonl", replace(run, header=header))
    text = compare(tmp_path / "before", tmp_path / "after")
    lines = [line for line in text.splitlines() if line.startswith("| SyncSGD")]
    assert [line.split(" | ")[1] for line in lines] == [
        "wall seconds to 0.95", "best validation accuracy", "wall seconds per epoch", "bytes sent",
    ]  # fmt: skip
    assert "right is" in lines[0] and "times as fast as left (95 % interval" in lines[0]
    assert "no difference shown" in lines[3] and lines[3].split(" | ")[4] == "1"
    assert re.search(r"\| ADAG.*before \| 1 \|", text) and re.search(r"\| DynSGD.*after \| 1 \|", text)
    assert "Left ran on CPU before 4, right on CPU after 4." in text
    show(tmp_path / "before", tmp_path / "after", markdown=True)
    assert capsys.readouterr().out == text
    show(tmp_path / "before", tmp_path / "after")
    assert "MNIST, MLP, wall seconds" in capsys.readouterr().out
    other = replace(trial({**MNIST, "target": 0.5}, "SyncSGD()", 2, 0), id="other")
    write(tmp_path / "other" / TRIALS / "0.jsonl", other)
    with pytest.raises(UsageError, match="target"):
        compare(tmp_path / "before", tmp_path / "other")
