"""All that a worker process needs to know: plain settings, sent once, by the pickle that ships the user's own code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, final

from torch import nn

from firesteel.data.columns import Columns
from firesteel.errors import UsageError
from firesteel.losses import SMALLER_IS_BETTER
from firesteel.net.protocol import Strategy
from firesteel.optim import OptimizerSettings, Schedule

Model = nn.Module | Callable[[], nn.Module]


@final
@dataclass(frozen=True)
class EarlyStopping:
    """Stop when validation no longer improves, and hand back the best model.

    This is the one setting that evaluates while training runs, at the end of every epoch and with the run's clock
    stopped; without it published models are evaluated after training.
    """

    metric: str = "loss"
    """"loss" (smaller is better) or one of the metrics of the run (greater is better, but for mse and mae)."""
    patience: int = 3
    """Epochs without improvement before it stops, >= 1."""
    min_delta: float = 0.0
    """Smallest change that counts as improvement, >= 0."""

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_delta < 0:
            raise UsageError(f"EarlyStopping needs patience >= 1 and min_delta >= 0; got {self}.")

    @property
    def sign(self) -> float:
        return -1.0 if self.metric in SMALLER_IS_BETTER else 1.0


@final
@dataclass(frozen=True)
class Apart:
    """Work with a server: workers that come and go."""

    finder: Any
    """A `net.client.Finder`."""
    size: int
    """Parameters of the model, as the caller counted them."""
    restart_seconds: float
    """How long to wait for a server that has gone; 0 if it does not come back."""


@final
@dataclass(frozen=True)
class Score:
    """Evaluate models on the rows of `Job.scored`."""

    params: Any
    """[models, P]"""
    statistics: Any
    """[models, Q]"""


@final
@dataclass(frozen=True)
class Job:
    """The settings of one run, as every worker gets them."""

    model: Model
    strategy: Strategy
    columns: Columns
    loss: str | Callable[..., Any]
    optimizer: OptimizerSettings
    schedule: Schedule | None = None
    metrics: tuple[str | Callable[..., Any], ...] = ()
    batch_size: int = 64
    epochs: float | None = 1
    max_steps: int | None = None
    max_seconds: float | None = None
    validation: float = 0.0
    score_training: float = 0.0
    """The share of the training rows on which published models are evaluated, too."""
    early_stopping: EarlyStopping | None = None
    clip_norm: float | None = None
    seed: int = 0
    run_dir: str | None = None
    checkpoint_steps: int | None = None
    resume_from: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    max_memory_bytes: int = 2 * 2**30
    secret: str = ""
    """Tells the run's keys in a store, and its sockets, from those of other runs."""
    key: str = field(default="", repr=False)
    """What the run's notices are sealed with; it goes nowhere but with this job."""
    work: Apart | Score | None = None
    """None: train together, as a gang."""
    settings: dict[str, Any] = field(default_factory=dict)  # what a point must agree on to be resumed
    resumed_rows: dict[str, str] = field(default_factory=dict)  # with a server: fingerprints, by rank, that rows must have

    @property
    def validated(self) -> bool:
        """Whether rows were asked to be held out."""
        return bool(self.validation) or self.columns.validation is not None

    @property
    def scored(self) -> tuple[str, ...]:
        """On which rows published models are evaluated, as `Run.history` names them."""
        asked = {"validation": self.validated, "training": bool(self.score_training)}
        return tuple(name for name, is_asked in asked.items() if is_asked)

    def check_rows(self, train_rows: int, held_rows: int) -> None:
        """Raise UsageError where the rows of all workers, to train on and held out, are too few for what was asked."""
        if not train_rows:
            raise UsageError("there are no rows to train on: the data is empty, or validation took them all.")
        if self.validated and not held_rows:
            raise UsageError("validation was asked for, but no row was left for it; give a larger share or more rows.")

    def build(self) -> nn.Module:
        """A model with its initial parameters; a module is used as it is, a factory is called."""
        module = self.model if isinstance(self.model, nn.Module) else self.model()
        if not isinstance(module, nn.Module):
            raise UsageError(f"the model factory returned {type(module).__name__}, not an nn.Module.")
        return module
