"""`firesteel bench report` and `firesteel bench compare`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import tyro


@final
@dataclass(frozen=True)
class Report:
    """Draw the results of a folder: one HTML page that needs no network, and the same in Markdown.

    Examples:
      firesteel bench report runs/quick
      firesteel bench report runs/quick --out site

    The same files give the same report, byte for byte, but for its date.
    """

    folder: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR")]]
    """What `firesteel bench run --out` has filled."""
    out: str | None = None
    """Folder for report.html and report.md; the results' own if it is not given."""
    skip_bad: bool = False
    """Leave out files that cannot be read, saying which; without it they are an error."""
    debug: bool = False
    """Show tracebacks of errors."""

    def run(self) -> int:
        from firesteel.bench.page import report

        for path in report(Path(self.folder), Path(self.out) if self.out else None, _told if self.skip_bad else None):
            print(path)
        return 0


@final
@dataclass(frozen=True)
class Compare:
    """Compare two result folders: what both have run, side by side, with a verdict for each.

    Examples:
      firesteel bench compare runs/before runs/after
      firesteel bench compare runs/before runs/after --markdown
    """

    left: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR1")]]
    """A result folder."""
    right: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR2")]]
    """Another."""
    markdown: bool = False
    """Print Markdown."""
    skip_bad: bool = False
    """Leave out files that cannot be read, saying which; without it they are an error."""
    debug: bool = False
    """Show tracebacks of errors."""

    def run(self) -> int:
        from firesteel.bench import compare

        told = _told if self.skip_bad else None
        compare.show(Path(self.left), Path(self.right), markdown=self.markdown, skip_bad=told)
        return 0


def _told(text: str) -> None:
    print(f"left out: {text}", file=sys.stderr)
