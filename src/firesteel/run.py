"""What training gives back."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import pyarrow as pa
from torch import Tensor, nn

from firesteel import persistence
from firesteel.errors import UsageError
from firesteel.trace import json_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@final
@dataclass(frozen=True, eq=False)
class Run:
    """A training that has ended.

    `history` has one row for each kept publish point (the end of an epoch, at least) with the columns seconds, epoch,
    step, samples (of all workers), train_loss (mean over the rows since the last row, each as the model was when it trained on
    it), bytes_sent (of all workers), waited_seconds (mean of the workers) and, where workers meet, rounds (collectives so far)
    and the strategy's own figures; of the point's model, evaluated afterwards, validation_loss and validation_<metric> and,
    with `score_training`, training_loss and training_<metric>.
    """

    model: nn.Module
    """The trained model, on the CPU, in evaluation mode."""
    history: pa.Table
    trace: pa.Table
    """Every event of every worker; see `firesteel.trace.SCHEMA`."""
    timing: dict[str, float]
    """Where the seconds of this call went: call_to_first_step_seconds, train_seconds, total_seconds, ...; and the samples
    trained on in it, samples and samples_per_second."""
    status: str
    """"finished", "converged", "stopped early", or "stopped" (by a request or max_seconds)."""
    settings: dict[str, Any]
    """What was asked for, printable."""
    run_dir: str | None = None
    saving: dict[str, Any] = field(default_factory=dict, repr=False)
    score: Callable[[Any], dict[str, float]] | None = field(default=None, repr=False)
    arrivals: pa.Table | None = field(default=None, repr=False)
    """With a server: its log, every pull and push in order of arrival; see `firesteel.net.center.LOG`."""

    @property
    def metrics(self) -> dict[str, float]:
        """The last (with early stopping: the best) row of `history`, without what it does not have."""
        rows = self.history.to_pylist()
        row = rows[self.settings.get("best", len(rows) - 1)] if rows else {}
        names = [n for n in row if n.endswith("_loss") or n.startswith(("validation_", "training_"))]
        return {name: row[name] for name in names if row[name] is not None}

    def evaluate(self, data: Any) -> dict[str, float]:
        """Loss and metrics on other data of the kind that was trained on, computed in this process."""
        assert self.score is not None
        return self.score(data)

    def save(self, path: str | os.PathLike[str], format: persistence.Format = "auto") -> str:
        """Save the model into the folder `path` for `firesteel.load`; returns the format used."""
        example: tuple[Tensor, ...] | None = self.saving.get("example")
        extra = {"columns": self.saving.get("columns"), "metrics": self.metrics, "settings": self.settings}
        return persistence.save(Path(path), self.model, self.saving.get("spec"), example, extra, format)

    def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the trace as JSON lines, one event a line."""
        _ = Path(path).write_text(json_lines(self.trace))

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Learning curves: loss, and metrics if there are any, over epochs and seconds. Saved if `path` is given."""
        from firesteel.plots import learning_curves

        figure = learning_curves(self)
        if path is not None:
            figure.savefig(path, dpi=144)
        return figure

    def staleness(self) -> pa.Table:
        """Every push in order of arrival: shard, worker, sequence, seconds, steps, rows, bytes, staleness, distance, scaling.

        `staleness` counts the pushes merged since the sender pulled; every `Server.record_every` pushes, `distance` is the
        2-norm between the center pushed to and the center pulled, and `scaling` what the merge made of the push's length;
        else they are NaN.

        Raises:
            UsageError: the run's strategy has no server.
        """
        if self.arrivals is None:
            raise UsageError("only runs of strategies with a server have staleness; this one's workers waited for each other.")
        names = ["shard", "worker", "sequence", "seconds", "steps", "rows", "bytes", "staleness", "distance", "scaling"]
        pushes = pa.array([kind == "push" for kind in self.arrivals["kind"].to_pylist()])
        return self.arrivals.filter(pushes).select(names).replace_schema_metadata(None)

    def plot_staleness(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """A histogram of staleness, by worker. Saved if `path` is given."""
        from firesteel.plots import staleness_histogram

        figure = staleness_histogram(self)
        if path is not None:
            figure.savefig(path, dpi=144)
        return figure

    def plot_gantt(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """A strip for each worker: when it computed, waited and sent. Saved if `path` is given."""
        from firesteel.plots import gantt

        figure = gantt(self)
        if path is not None:
            figure.savefig(path, dpi=144)
        return figure

    def plot_loss(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Loss against seconds (virtual ones, of a simulated run) and against samples. Saved if `path` is given."""
        from firesteel.plots import against

        figure = against(self)
        if path is not None:
            figure.savefig(path, dpi=144)
        return figure

    def __str__(self) -> str:
        rows = self.history.num_rows
        said = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        rate = self.timing.get("samples_per_second", math.nan)
        return (
            f"Run {self.status}: {self.settings.get('title')}, {rows} points, "
            f"{self.timing.get('train_seconds', math.nan):.1f} s, {rate:,.0f} samples/s; {said}"
        )

    def _repr_html_(self) -> str:
        from firesteel.plots import html

        return html(self)
