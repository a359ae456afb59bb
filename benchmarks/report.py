"""Where benchmarks write: a section of docs/results.md between two markers, with the machine it was measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"


def machine() -> str:
    """One line: processor, cores, versions, date."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("firesteel", "torch", "pyspark", "pyarrow"))
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}; {datetime.date.today()}"


def write(section: str, text: str) -> None:
    """Replace a section of the results page, or add it."""
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    page = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    block = f"{begin}\n{text.strip()}\n\nMeasured on: {machine()}.\n{end}"
    if begin in page:
        head, _, rest = page.partition(begin)
        _, _, tail = rest.partition(end)
        page = head + block + tail
    else:
        page = page.rstrip() + "\n\n" + block + "\n"
    _ = RESULTS.write_text(page)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def mnist_folder(given: str | None) -> Path:
    """The folder of the MNIST files: as given, in $FIRESTEEL_DATA, or beside the project."""
    data = os.environ.get("FIRESTEEL_DATA")
    beside = Path(__file__).parents[2] / "shared" / "data" / "mnist"
    for folder in (given, data and f"{data}/mnist", beside):
        if folder and Path(folder).is_dir():
            return Path(folder)
    raise SystemExit("MNIST was not found: give --mnist FOLDER (the four IDX files) or set FIRESTEEL_DATA.")
