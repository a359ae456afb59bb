"""`firesteel replay`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from typing import final

import tyro

from firesteel.checkpoint import Folder
from firesteel.cli.train import CALL, Train
from firesteel.errors import UsageError
from firesteel.progress import Show
from firesteel.sim.replay import Replay as World


@final
@dataclass(frozen=True)
class Replay:
    """Run an asynchronous training again, bit for bit, in one process, from its run folder.

    Examples:
      firesteel train mlp:64,128,10 digits --strategy Downpour --workers 4 --run-dir runs/a
      firesteel replay runs/a
      firesteel replay runs/a --out model --trace trace.jsonl

    It exits with 0 if the center came out bit-equal, else with 1. Run it where the training was started: the same model,
    data and versions must be there.
    """

    folder: tyro.conf.Positional[str]
    """The run folder of a training by `firesteel train` that has ended."""
    out: str | None = None
    """Save the model into this folder."""
    trace: str | None = None
    """Write every event as JSON lines into this file."""
    json: bool = False
    """Print one JSON object, last, on standard output."""
    progress: Show = "auto"
    """A bar on a terminal, lines elsewhere."""
    debug: bool = False
    """Show tracebacks of errors."""

    def run(self) -> int:
        data = Folder(self.folder).get(CALL)
        if data is None:
            raise UsageError(
                f"{self.folder} is not the run folder of a `firesteel train`. For a run by the Python interface call "
                "firesteel.train again, with on=firesteel.Replay(folder)."
            )
        told = json.loads(data)
        if told["image_shape"] is not None:
            told["image_shape"] = tuple(told["image_shape"])
        call = replace(Train(**told), run_dir=None, resume=False, progress=self.progress)
        run = call.train(call.world(), World(self.folder))
        if self.out:
            _ = run.save(self.out)
        if self.trace:
            run.save_trace(self.trace)
        verdict = run.settings["replayed"]
        pushes = sum(kind == "push" for kind in run.arrivals["kind"].to_pylist()) if run.arrivals is not None else 0
        print(f"{pushes} pushes replayed in {run.timing['total_seconds']:.1f} s: the center is {verdict}.", file=sys.stderr)
        for name, value in run.metrics.items():
            print(f"  {name:24}{value:.5g}", file=sys.stderr)
        if self.json:
            print(json.dumps({"replayed": verdict, "pushes": pushes, "metrics": run.metrics}), flush=True)
        return 0 if verdict == "bit-equal" else 1
