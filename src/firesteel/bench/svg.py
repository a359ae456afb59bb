"""From a matplotlib figure to SVG that is the same every time, takes the page's colours and is read aloud by its title.

Figures are drawn in stand-in colours: each is a name ("ink", "series 3") that a style gives its colour to, so that one picture
serves light, dark and print. Text stays text.
"""

from __future__ import annotations

import functools
import io
import re
import xml.etree.ElementTree as xml
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from firesteel.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "muted": "#59626e",
    "rule": "#d5d9de",
    "better": "#2f74c8",
    "worse": "#d9702a",
    "waiting": "#dcc9ab",
    **{f"series-{k}": colour for k, colour in enumerate((
        "#1f66c1", "#cf4d0c", "#2e8540", "#8b46c4", "#a87a00", "#0f858f", "#c2347f", "#5f6875", "#7a4a21", "#648500",
    ))},
}  # fmt: skip
DARK = {
    "paper": "#14171b",
    "ink": "#e8eaed",
    "muted": "#a3abb6",
    "rule": "#363c45",
    "better": "#4f93ec",
    "worse": "#d9772f",
    "waiting": "#6b5b41",
    **{f"series-{k}": colour for k, colour in enumerate((
        "#6ea8ff", "#ff955c", "#6cc97e", "#c29bff", "#e3bf4a", "#4fd0d8", "#ff86bf", "#a9b1bd", "#d0a27a", "#b6d24d",
    ))},
}  # fmt: skip
COLOURS = 10
"""How many series colours there are."""

_STAND_IN = {name: f"#0000{number:02x}" for number, name in enumerate(LIGHT, 1)}
_NAME = {stand_in: name for name, stand_in in _STAND_IN.items()}
INK, MUTED, RULE, PAPER = (_STAND_IN[name] for name in ("ink", "muted", "rule", "paper"))
BETTER, WORSE, WAITING = (_STAND_IN[name] for name in ("better", "worse", "waiting"))
SERIES = [_STAND_IN[f"series-{k}"] for k in range(COLOURS)]

PAGE = {name: f"var(--{name})" for name in LIGHT}
"""For SVG within a page that says what --ink is."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of methods are text, dollars and all
    "font.size": 11,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 1.0,
    "lines.solid_capstyle": "round",
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """A function that draws, under this page's style whatever the user's own matplotlibrc says."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            import matplotlib
        except ImportError as error:
            raise UsageError("pictures need matplotlib: pip install 'firesteel[bench]'.") from error
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            return draw(*args, **kwargs)

    return inside


@styled
def draw(figure: Figure, name: str, title: str, about: str) -> str:
    """The figure as an <svg> element in stand-in colours; `coloured` gives it others.

    Args:
        name: begins its ids, so that pictures can stand in one page.
        title: what it shows; about: what can be read from it. For readers who do not see it.
    """
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = name
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), sink.getvalue())
    root = xml.fromstring(text)
    _tidy(root, name)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{name}-title {name}-about"}
    for place, (tag, kind, body) in enumerate((("title", "title", title), ("desc", "about", about))):
        element = xml.Element(f"{{{_SVG}}}{tag}", id=f"{name}-{kind}")
        element.text = body
        root.insert(place, element)
    xml.register_namespace("", _SVG)
    return xml.tostring(root, encoding="unicode")


def coloured(drawing: str, colours: Mapping[str, str] = LIGHT) -> str:
    """A drawing in the colours of names: PAGE leaves them to the page's CSS; all others make a file that stands alone."""
    drawing = re.sub("|".join(_STAND_IN.values()), lambda found: colours[_NAME[found[0]]], drawing)
    if colours is PAGE:
        return drawing
    size = re.sub(r"0 0 (\S+) (\S+)", r'width="\1" height="\2"', re.findall(r'viewBox="(.+?)"', drawing)[0])
    ground = f'<rect width="100%" height="100%" fill="{colours["paper"]}" />'
    start = drawing.index("</desc>") + len("</desc>")
    return f'<svg {size} font-family="system-ui, sans-serif"{drawing[4:start]}{ground}{drawing[start:]}'


HALO = "halo"
"""The gid of text that keeps lines behind it at a distance."""


def _tidy(root: xml.Element, name: str) -> None:
    """Series become classes; ids that nothing refers to go, the others carry the picture's name; fonts are the page's."""
    used = set(re.findall(r"#(\w+)\)?[\"']?", " ".join(v for e in root.iter() for v in e.attrib.values() if "#" in v)))
    href = f"{{{_XLINK}}}href"
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata")]:
            parent.remove(child)  # matplotlib's style would hold for the whole page
    for element in root.iter():
        element.text, element.tail = element.text and element.text.strip(), "\n"
        found = element.attrib.pop("id", "").split()
        if HALO in found:
            for text in element.iter(f"{{{_SVG}}}text"):
                text.set("style", f"{text.get('style')}; paint-order: stroke; stroke: {PAPER}; stroke-width: 3px")
        if classes := [one for one in found if one.startswith(("series-", "family-"))]:
            element.set("class", " ".join(classes))
        elif found and found[0] in used:
            element.set("id", f"{name}-{found[0]}")
        for key, value in list(element.attrib.items()):
            if key == "style":
                element.set(key, re.sub(r"url\(#", f"url(#{name}-", re.sub(r"font-family: [^;]*;? ?", "", value)))
            elif key == "clip-path":
                element.set(key, value.replace("url(#", f"url(#{name}-"))
            elif key == href:
                del element.attrib[key]
                element.set("href", value.replace("#", f"#{name}-"))
            elif key == "transform" and value.startswith("rotate(-0 "):
                del element.attrib[key]
            elif key == "d":  # a tenth of a px is enough
                short = re.sub(r"-?\d+\.\d\d", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), value)
                element.set(key, " ".join(short.split()))
