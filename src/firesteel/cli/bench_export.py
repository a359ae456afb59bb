"""`firesteel bench export`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import tyro

from firesteel.errors import UsageError


@final
@dataclass(frozen=True)
class Export:
    """Show a result folder's runs in TensorBoard or MLflow.

    Examples:
      firesteel bench export results --to tensorboard --out logs
      firesteel bench export results --to mlflow --out sqlite:///mlflow.db --experiment mnist
      firesteel bench export results --to mlflow --out http://tracking:5000

    TensorBoard gets a folder for each run. MLflow's PLACE is a tracking URI, or a folder, in which mlflow.db is made.
    """

    folder: tyro.conf.Positional[str]
    """What `firesteel bench run --out` or `firesteel bench import --out` has filled."""
    to: Literal["mlflow", "tensorboard"]
    """Which of them."""
    out: str
    """A folder, or MLflow's tracking URI."""
    experiment: str = "firesteel"
    """MLflow's name for all of these runs."""
    skip_bad: bool = False
    """Leave out files that cannot be read, and say which."""
    debug: bool = False
    """Show tracebacks of errors."""

    def run(self) -> int:
        from firesteel.bench.external import to_stderr
        from firesteel.bench.results import read
        from firesteel.bench.tracking import to_mlflow, to_tensorboard

        results = read(self.folder, to_stderr if self.skip_bad else None)
        ids = [result.id for result in results]
        twice = next((each for each in ids if ids.count(each) > 1), None)
        if twice is not None:
            raise UsageError(f"{self.folder}: two results are called {twice!r}; rename one, in its file's first line.")
        place = self.out
        if self.to == "mlflow" and "://" not in place:
            Path(place).mkdir(parents=True, exist_ok=True)
            place = f"sqlite:///{Path(place).resolve() / 'mlflow.db'}"
        for result in results:
            if self.to == "mlflow":
                _ = to_mlflow(result, self.experiment, place)
            else:
                to_tensorboard(result, Path(place) / result.id)
        print(f"runs {len(results)} -> {place}", file=sys.stderr)
        return 0
