"""The command line: `firesteel train`, `predict`, `replay`, `calibrate`, `plan`, `bench`, `strategies`, `doctor`."""

from __future__ import annotations

import inspect
import sys
from typing import Annotated, Any, Union

import tyro

from firesteel.cli.bench import Bench
from firesteel.cli.calibrate import Calibrate
from firesteel.cli.doctor import Doctor
from firesteel.cli.plan import PlanCommand
from firesteel.cli.predict import Predict
from firesteel.cli.replay import Replay
from firesteel.cli.strategies import Strategies
from firesteel.cli.train import Train
from firesteel.errors import FiresteelError, Interrupted, UsageError

COMMANDS: dict[str, Any] = {
    "train": Train,
    "predict": Predict,
    "replay": Replay,
    "calibrate": Calibrate,
    "plan": PlanCommand,
    "bench": Bench,
    "strategies": Strategies,
    "doctor": Doctor,
}

ABOUT = "Train PyTorch networks on Apache Spark, or on this machine. `firesteel COMMAND --help` teaches each command."


def _union(commands: dict[str, Any]) -> Any:
    parts = [Annotated[c, tyro.conf.subcommand(n, description=inspect.getdoc(COMMANDS[n]))] for n, c in commands.items()]
    return Union[tuple(parts)]  # noqa: UP007


def main(args: list[str] | None = None) -> None:
    """Run one command; exits with 0, 1 (it failed), 2 (it was called wrongly) or 130 (Ctrl-C)."""
    # The whole docstring, examples and all: by itself tyro shows only its first paragraph.
    command: Any = tyro.cli(_union(COMMANDS), args=args, prog="firesteel", description=ABOUT)
    try:
        sys.exit(command.run())
    except Interrupted as error:
        _tell(error)
        sys.exit(130)
    except FiresteelError as error:
        if getattr(command, "debug", False):
            raise
        _tell(error)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _tell(error: BaseException) -> None:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    for note in getattr(error, "__notes__", []):
        print(note, file=sys.stderr)
