"""`firesteel bench import`."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, final

import tyro

from firesteel.errors import UsageError


@final
@dataclass(frozen=True)
class Import:
    """Put other people's results beside the trials of a result folder.

    Examples:
      firesteel bench import theirs.csv --out results --workload mnist-mlp --map accuracy=acc --unit accuracy=percent
      firesteel bench import gpu.jsonl --as gpu --out results --workload mnist-mlp --method DDP --workers 8 --unit seconds=ms
      firesteel bench import table.csv --as table --out results --workload mnist-mlp --final
      firesteel bench import logs/ --as tensorboard --out results --workload mnist-mlp --map accuracy=Accuracy/test
      firesteel bench import mlruns/ --as mlflow --out results --workload mnist-mlp
      firesteel bench import published:hermans-2017 --out results

    Files are CSV with a header, JSON lines, TensorBoard's event files, or MLflow's runs; `published:` alone tells the names of
    the published results that come with Firesteel. Columns such as seconds, time_ms, epoch, step, samples, bytes_sent,
    train_loss, val_acc, and run, method, workers and seed of each row are known by their names; others need --map. Units are
    never guessed.
    """

    file: tyro.conf.Positional[str]
    """A file, a folder of TensorBoard or MLflow, an MLflow tracking URI, or published:NAME."""
    out: str
    """The result folder; they go to OUT/external/NAME."""
    name: Annotated[str | None, tyro.conf.arg(name="as")] = None
    """What to call these results; without it the file's name without its ending."""
    map: list[str] = field(default_factory=list)
    """FIELD=COLUMN, where a column's name does not tell what it is: seconds="Wall time" accuracy=acc run=id."""
    unit: list[str] = field(default_factory=list)
    """FIELD=UNIT: seconds=us, ms, s, min or h; bytes_sent=B, KB, MB, GB, KiB, MiB or GiB; accuracy=fraction or percent;
    samples=one, thousand or million."""
    workload: str | None = None
    """The workload that these are results of; without it the column of that name."""
    metric: str | None = None
    """The figure that is scored; without it the column of that name, or validation_accuracy."""
    target: float | None = None
    """The value of the metric that is to be reached."""
    method: str | None = None
    """What tables show; without it the column of that name, or the run's name, or NAME."""
    workers: int | None = None
    """How many trained; without it the column of that name."""
    seed: int | None = None
    """Of the run; without it the column of that name."""
    source: str | None = None
    """Where the results come from, in a line; without it the file's name."""
    seconds: Literal["wall", "virtual"] | None = None
    """Whether seconds are of a clock on the wall or of a simulation; wall, if nothing says otherwise."""
    final: bool = False
    """Each row is a run of its own: a table of final numbers."""
    delimiter: str | None = None
    """What stands between the fields of CSV; without it a comma, in a .tsv file a tab."""
    replace: bool = False
    """Let these take the place of results of that name."""
    skip_bad: bool = False
    """Leave out rows that cannot be read, and say which."""
    debug: bool = False
    """Show tracebacks of errors."""

    def run(self) -> int:
        from firesteel.bench.external import PUBLISHED, import_file

        name = self.name or re.sub(r"[^\w.+-]", "-", Path(self.file.removeprefix(PUBLISHED)).stem)
        results = import_file(
            self.file,
            name,
            self.out,
            _pairs("--map", "FIELD=COLUMN", self.map),
            units=_pairs("--unit", "FIELD=UNIT", self.unit),
            workload=self.workload,
            metric=self.metric,
            target=self.target,
            method=self.method,
            workers=self.workers,
            seed=self.seed,
            source=self.source,
            virtual=None if self.seconds is None else self.seconds == "virtual",
            final=self.final,
            delimiter=self.delimiter,
            replace=self.replace,
            skip_bad=self.skip_bad,
        )
        for result in results:
            figures = ", ".join(dict.fromkeys(figure for point in result.points for figure in point)) or "no figures"
            print(f"  {result.id}: {result.method}, points {len(result.points)}: {figures}", file=sys.stderr)
        print(f"runs {len(results)} -> {Path(self.out) / 'external' / name}", file=sys.stderr)
        return 0


def _pairs(flag: str, form: str, texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"{flag} {text!r}: it is to be {form}.")
        if name in found:
            raise UsageError(f"{flag} {text!r}: {name} is given twice.")
        found[name] = value
    return found
