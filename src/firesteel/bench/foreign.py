"""Tables that others have written, as rows: CSV and JSON lines, told apart by what is in them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from firesteel.errors import UsageError

Tell = Callable[[str], None]


@final
@dataclass(frozen=True)
class Row:
    """A line of a table, or all that was recorded at one step of a run."""

    where: str
    """File and line, for errors."""
    cells: dict[str, Any]
    """Texts and numbers by column; an empty cell is None."""
    about: dict[str, Any] = field(default_factory=dict)
    """What is said of the whole run that it belongs to."""
    named: str = ""
    """File and line where the columns are named, if that is not here."""


@final
@dataclass(frozen=True)
class Bad:
    """A row that cannot be read."""

    message: str


def rows(place: Path, delimiter: str | None, tell: Tell) -> Iterator[Row | Bad]:
    """The rows of a file of text.

    Args:
        place: of a CSV file, the first line of which names the columns, or of JSON lines.
        delimiter: of CSV; None: a comma, in a .tsv file a tab.
        tell: what is to be known though it is no error.

    Raises:
        UsageError: the file is neither, or its header does not name its columns.
    """
    text = _text(place)
    json_lines = place.suffix in (".jsonl", ".ndjson", ".json") or text.lstrip()[:1] in ("{", "[")
    yield from _json_lines(place, text) if json_lines else _csv(place, text, delimiter, tell)


def _text(place: Path) -> str:
    data = place.read_bytes()
    if not data.strip():
        raise UsageError(f"{place}, line 1: the file is empty.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{place}, line {line}: neither a table nor JSON lines: this is not UTF-8 text ({error.reason})."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UsageError(f"{place}, line {line}: neither a table nor JSON lines: there are zero bytes in it.")
    return text


def _csv(place: Path, text: str, delimiter: str | None, tell: Tell) -> Iterator[Row | Bad]:
    between = delimiter or ("\t" if place.suffix == ".tsv" else ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    names, named = list[str](), ""
    while True:
        number = reader.line_num + 1
        where = f"{place}, line {number}"
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            until = f" to {reader.line_num}" if reader.line_num > number else ""
            yield Bad(f"{where}{until}: this is no CSV: {error}.")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            names, named = _header([cell.strip() for cell in cells], between, where), where
        elif len(cells) != len(names):
            yield Bad(f"{where}: {len(cells)} fields, but the header names {len(names)}.")
        else:
            yield Row(where, {name: cell.strip() or None for name, cell in zip(names, cells, strict=True)}, named=named)
    if not text.endswith(("\n", "\r")):
        where = f"{place}, line {reader.line_num}"
        tell(f"{where}: the last line does not end; if the file was cut off, its last number may be short.")


def _header(names: list[str], between: str, where: str) -> list[str]:
    if len(names) == 1:
        other = next((mark for mark in (",", ";", "\t", "|") if mark in names[0]), None)
        if other is not None:
            raise UsageError(f"{where}: one column only, {names[0]!r}, cut at {between!r}; --delimiter {other!r} cuts it.")
    if not all(names):
        raise UsageError(f"{where}: column {names.index('') + 1} has no name; the first line names the columns.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{where}: two columns are called {twice!r}.")
    if all(_number(name) for name in names):
        raise UsageError(f"{where}: the first line holds numbers; it is to name the columns.")
    return names


def _number(text: str) -> bool:
    try:
        _ = float(text)
    except ValueError:
        return False
    return True


def _json_lines(place: Path, text: str) -> Iterator[Row | Bad]:
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{place}, line {number}"
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_once)
        except ValueError as error:
            yield Bad(f"{where}: no JSON: {error}.")
            continue
        if not isinstance(value, dict):
            yield Bad(f"{where}: each line is to be one object, {{...}}, and this is none.")
        elif value.get("kind") in ("trial", "external"):
            raise UsageError(f"{where}: this is a result of Firesteel's own; copy the file into DIR/external/NAME/.")
        else:
            yield Row(where, _flat(value))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return found


def _flat(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, each in value.items():
        found |= _flat(each, f"{before}{name}.") if isinstance(each, dict) else {f"{before}{name}": each}
    return found
