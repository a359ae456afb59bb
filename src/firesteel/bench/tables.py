"""From configurations to the rows of tables: plain data, no drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    value: float | None = None
    """What sorts; None sorts last."""
    external: bool = False


@final
@dataclass(frozen=True)
class Table:
    """A title, what it says and how it is computed, the names of the columns, the rows."""

    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
