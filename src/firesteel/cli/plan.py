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
from firesteel.net.protocol import splits
from firesteel.sim.cluster import Cluster
from firesteel.sim.dry import Prediction
from firesteel.sim.planner import TRUST, Plan, grids, plan, suiting
from firesteel.strategies import Grid

_USUAL = ["SyncSGD", "NeuronParallel", "ModelAveraging", "DiLoCo", "DynSGD", "AEASGD"]


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
    strategies: list[str] = dataclasses.field(default_factory=lambda: list(_USUAL))
    """Names of `firesteel strategies` or MODULE:CLASS, with their defaults; or all that suit model and optimizer. Grid: with 2
    and with 4 parts of each replica. Without this flag, the usual ones that suit."""
    batch_size: int = 64
    """Rows of a step, per worker."""
    optimizer: Literal["adam", "adamw", "sgd", "adagrad"] = "adam"
    """The local optimizer; what it keeps of each parameter counts as memory."""
    servers: int = 1
    """Server processes, for strategies that have a center."""
    input_shape: str | None = None
    """Shape of a row, such as 28,28 for 28 steps of 28 numbers: for strategies that cut the network into parts, where its first
    layer does not tell it."""
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
        model, optimizer, inputs = model_of(self.model), OPTIMIZERS[self.optimizer](), _shape(self.input_shape)
        chosen = [each for name in names for each in (grids(numbers) if name == "Grid" else [strategy_of(name, [])])]
        if self.strategies in (["all"], _USUAL):
            suited = suiting(chosen, model(), optimizer, numbers, inputs)
            absent = [type(each).__name__ for each in chosen if each not in suited and splits(each)]
            if absent:
                names = ", ".join(dict.fromkeys(absent))
                print(f"note: not planned: {names}; --strategies {absent[0]} says why.", file=sys.stderr)
            chosen = suited
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
                inputs=inputs,
                watch=lambda: bar.advance(task),
            )
        for each in found.left_out:
            print(f"note: left out {each}", file=sys.stderr)
        if self.plot:
            from firesteel.plots import speed_up

            speed_up(found).savefig(self.plot, dpi=144)
            print(f"plot: {self.plot}", file=sys.stderr)
        if self.json:
            print(json.dumps(_said(found)))
        else:
            _show(found)
        return 0


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    found = tuple(int(n) if n.strip().isdigit() else 0 for n in text.split(","))
    if min(found) < 1:
        raise UsageError(f"--input-shape {text!r}: write numbers of 1 and more, such as 28,28.")
    return found


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
    name = type(p.strategy).__name__
    return f"{name} {p.strategy.data}x{p.strategy.model}" if isinstance(p.strategy, Grid) else name


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
