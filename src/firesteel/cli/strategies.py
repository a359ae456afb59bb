"""`firesteel strategies`."""

from __future__ import annotations

import dataclasses
import inspect
import json
from dataclasses import dataclass
from typing import Any, final

import tyro
from rich.console import Console
from rich.table import Table

from firesteel.errors import UsageError, did_you_mean
from firesteel.outcome import brief
from firesteel.strategies import CATALOGUE


@final
@dataclass(frozen=True)
class Strategies:
    """The ways to train together: all of them as a table, or one in full.

    Examples:
      firesteel strategies
      firesteel strategies DiLoCo
    """

    name: tyro.conf.Positional[str | None] = None
    """One strategy."""
    json: bool = False
    """Print JSON instead."""

    def run(self) -> int:
        if self.name is not None and self.name not in CATALOGUE:
            raise UsageError(f"there is no strategy {self.name!r}.{did_you_mean(self.name, CATALOGUE)}")
        chosen = {n: c for n, c in CATALOGUE.items() if self.name in (None, n)}
        if self.json:
            print(json.dumps([_described(n, c) for n, c in chosen.items()]))
        elif self.name is not None:
            print(f"{self.name}({_signature(CATALOGUE[self.name])})\n\n{inspect.getdoc(CATALOGUE[self.name])}")
        else:
            table = Table(box=None, pad_edge=False)
            for title in ("strategy", "what it does", "settings and defaults"):
                table.add_column(title, no_wrap=title == "strategy")
            for n, c in chosen.items():
                table.add_row(n, _summary(c), _signature(c))
            Console().print(table)
        return 0


def _summary(cls: type) -> str:
    paragraph = (inspect.getdoc(cls) or "").split("\n\n")[0]
    words = " ".join(paragraph.split()).replace(r"\(\lambda\)", "λ")
    return words.split(" \\(")[0].rstrip(":,. ")  # the formula is for the full text


def _signature(cls: Any) -> str:
    return ", ".join(
        f.name if f.default is dataclasses.MISSING else f"{f.name}={_shown(f.default)}" for f in dataclasses.fields(cls)
    )


def _shown(value: Any) -> str:
    return brief(value) if dataclasses.is_dataclass(value) else repr(value)


def _described(name: str, cls: Any) -> dict[str, Any]:
    return {"name": name, "what": _summary(cls), "settings": {f.name: _plain(f.default) for f in dataclasses.fields(cls)}}


def _plain(default: Any) -> Any:
    """A default as JSON has it; null also stands for a setting that must be given."""
    return None if default is dataclasses.MISSING else brief(default) if dataclasses.is_dataclass(default) else default
