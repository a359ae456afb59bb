"""`firesteel plan`."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from firesteel.cli.train import OPTIMIZERS, model_of, strategy_of
from firesteel.errors import UsageError
from firesteel.sim.cluster import Cluster
from firesteel.sim.dry import Prediction
from firesteel.sim.planner import TRUST, Plan, plan, suiting


@final
@dataclass(frozen=True)
class PlanCommand:
    """What would training cost on a cluster that I describe: seconds per epoch, bytes, memory, and which strategy to take.

    The strategies' own programs run without a model or data on an imagined cluster; `firesteel calibrate` measures a real one.
    What is predicted is speed; how much an epoch teaches depends on the strategy too, which only training shows: in virtual
    time with `firesteel train --on CLUSTER.json`.

    Examples:
      firesteel plan mlp:784,256,128,10 --rows 60000 --cluster cluster.json
      firesteel plan lenet --rows 60000 --cluster cluster.json --workers 1,2,4,8 --plot speed-up.png
      firesteel plan mlp:784,256,128,10 --rows 10000000 --cluster cluster.json --target 30
      firesteel plan mymodels:net --rows 1000000 --cluster cluster.json --strategies SyncSGD mymethods:Gossip
    """

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]]
    """mlp:IN,HIDDEN,...,OUT, lenet, vgg:DEPTH,WIDTH, rnn: or lstm:IN,HIDDEN,CLASSES, or MODULE:FACTORY."""
    rows: int
    """Rows of the whole data set."""
    cluster: str
    """A JSON file of hosts, links and speeds, as `firesteel calibrate` writes it."""
    workers: str = "1,2,4,8,16,32,64"
    """Numbers of workers to compare, separated by commas."""
    strategies: list[str] = dataclasses.field(
        default_factory=lambda: ["SyncSGD", "ModelAveraging", "DiLoCo", "DynSGD", "AEASGD"]
    )
    """Names of `firesteel strategies` or MODULE:CLASS, with their defaults; or all that suit the optimizer."""
    batch_size: int = 64
    """Rows of a step, per worker."""
    optimizer: Literal["adam", "adamw", "sgd", "adagrad"] = "adam"
    """The local optimizer; what it keeps of each parameter counts as memory."""
    servers: int = 1
    """Server processes, for strategies that have a center."""
    target: float | None = None
    """Seconds per epoch that would do: the fewest workers that reach it are recommended."""
    plot: str | None = None
    """Draw speed-up over workers into this file."""
    json: bool = False
    """Print one JSON object instead of the table."""
    debug: bool = False
    """Show tracebacks of errors."""

    def run(self) -> int:
        numbers = _numbers(self.workers)
        names = list(TRUST) if self.strategies == ["all"] else self.strategies
        model, optimizer = model_of(self.model), OPTIMIZERS[self.optimizer]()
        chosen = [strategy_of(name, []) for name in names]
        if names != self.strategies:
            chosen = suiting(chosen, model(), optimizer, numbers[-1])
        imagined = Cluster.load(self.cluster)
        if imagined.about and self.model not in imagined.about:
            print(f"note: {self.cluster} was measured with {imagined.about}; seconds here are of that model.", file=sys.stderr)
        if imagined.failures:
            print(f"note: a plan leaves the failures of {self.cluster} out: {len(imagined.failures)}.", file=sys.stderr)
        if imagined.compute.slow:
            print(f"note: workers that slow down in {self.cluster} are slow from the beginning here.", file=sys.stderr)
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("rehearsing", total=len(numbers) * len(chosen))
            found = plan(
                model,
                imagined,
                self.rows,
                chosen,
                numbers,
                batch_size=self.batch_size,
                optimizer=optimizer,
                shards=self.servers,
                target_seconds=self.target,
                watch=lambda: bar.advance(task),
            )
        if self.plot:
            from firesteel.plots import speed_up

            speed_up(found).savefig(self.plot, dpi=144)
            print(f"plot: {self.plot}", file=sys.stderr)
        if self.json:
            print(json.dumps(_said(found)))
        else:
            _show(found)
        return 0


def _numbers(text: str) -> list[int]:
    try:
        found = sorted({int(n) for n in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise UsageError(f"--workers {text!r}: write numbers of 1 and more, such as 1,2,4,8.")
    return found


def _show(found: Plan) -> None:
    table = Table(box=None, pad_edge=False)
    titles = ("workers", "strategy", "s/epoch", "speed-up", "efficiency", "sent/epoch", "memory", "mostly")
    for title in titles:
        table.add_column(title, justify="left" if title in ("strategy", "mostly") else "right", no_wrap=True)
    before = 0
    for p in found.predictions:
        if before and p.workers != before:
            table.add_section()
        table.add_row(
            "" if p.workers == before else str(p.workers),
            _name(p),
            f"{p.epoch_seconds:.3g}",
            f"{found.speed_up(p):.1f}",
            f"{found.efficiency(p):.0%}",
            _bytes(p.sent_bytes),
            _bytes(p.memory_bytes),
            f"{p.dominated_by.removeprefix('the ')} ({p.largest_share:.0%})",
        )
        before = p.workers
    console = Console(width=max(Console().width, 100))
    console.print(table)
    chosen, why = found.recommendation()
    workers = "1 worker" if chosen.workers == 1 else f"{chosen.workers} workers"
    for line in (
        f"\none worker alone, without a network: {found.alone_seconds:.3g} s/epoch; speed-up and efficiency are over it",
        "s are virtual seconds; sent and memory are each worker's; mostly: what most of the time goes to",
        f"take {_name(chosen)} with {workers}: {why}.",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _name(p: Prediction) -> str:
    return type(p.strategy).__name__


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def _said(found: Plan) -> dict[str, Any]:
    chosen, why = found.recommendation()

    def row(p: Prediction) -> dict[str, Any]:
        values = {f.name: getattr(p, f.name) for f in dataclasses.fields(p) if f.name != "strategy"}
        more = {"speed_up": found.speed_up(p), "efficiency": found.efficiency(p), "dominated_by": p.dominated_by}
        return {"strategy": _name(p), "settings": repr(p.strategy), **values, **more}

    recommended = {"strategy": _name(chosen), "workers": chosen.workers, "why": why}
    predictions = [row(p) for p in found.predictions]
    return {"alone_seconds": found.alone_seconds, "predictions": predictions, "recommended": recommended}
