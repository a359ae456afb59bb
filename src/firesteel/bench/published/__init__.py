"""Numbers that papers and theses report, with their sources, for comparison. What a source does not say is not in here."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from firesteel.bench.foreign import Row
from firesteel.bench.tracking import SETTING
from firesteel.errors import UsageError, did_you_mean

SOURCE = ("title", "authors", "year", "where", "checked")
"""What each set says of its source. checked: how sure the numbers are."""


def published() -> list[str]:
    """The names of the sets, for `firesteel bench import published:NAME`.

    >>> "hermans-2017" in published()
    True
    """
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


def load(name: str) -> tuple[str, list[Row]]:
    """A set: its source in one line, and its rows, each a run of a single point.

    Raises:
        UsageError: there is no such set.
    """
    if name not in published():
        raise UsageError(
            f"no published results are called {name!r}.{did_you_mean(name, published())} Names: {', '.join(published())}."
        )
    whole: dict[str, Any] = json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    origin = ", ".join(str(whole[part]) for part in SOURCE if whole[part] is not None)
    rows = list[Row]()
    for number, run in enumerate(whole["runs"], 1):
        about = {f"{SETTING}{key}": value for key, value in run.pop("settings", {}).items()}
        rows.append(Row(f"published:{name}, run {number}", run, about))
    return origin, rows
