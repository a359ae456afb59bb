"""`firesteel bench`."""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, final

import tyro

from firesteel.bench import external, recipe, results, running
from firesteel.bench.child import locked
from firesteel.bench.recipe import Recipe
from firesteel.bench.results import Result
from firesteel.cli.bench_export import Export
from firesteel.cli.bench_import import Import
from firesteel.cli.bench_report import Compare, Report
from firesteel.errors import UsageError
from firesteel.progress import Show, in_notebook


@final
@dataclass(frozen=True)
class BenchRun:
    """Run the trials of a recipe; results are kept as they come.

    Examples:
      firesteel bench run recipes/quick.py
      firesteel bench run recipes/asynchronous.py --out runs/async --jobs 2
      firesteel bench run recipes/averaging.py --set splits=3 --list

    A bench that was stopped or killed goes on with the same command and repeats nothing. A trial that fails is kept as failed,
    with its error, and the others go on. Two benches may share a folder, and then share the trials.
    """

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """A Python file with matrix() -> list of Trial; docs/bench.md tells how to write one."""
    out: str | None = None
    """Folder of the results; runs/RECIPE if it is not given."""
    jobs: int = 1
    """Trials at the same time. More than one disturb each other's wall seconds; virtual seconds do not mind."""
    set: Annotated[list[str], tyro.conf.arg(metavar="NAME=VALUE")] = field(default_factory=list)
    """Arguments of the recipe's matrix(), such as seeds=5."""
    master: str | None = None
    """Spark's master for trials in the world Spark; local-cluster with an executor for each worker if it is not given."""
    retry_failed: bool = False
    """Do trials again that failed before."""
    show: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Only say which trials there are, and which are done."""
    progress: Show = "auto"
    """A bar on a terminal, lines elsewhere."""
    debug: bool = False
    """Show tracebacks of errors."""

    def run(self) -> int:
        if self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: at least one trial runs at a time.")
        found = recipe.load(self.recipe, self.set)
        folder = Path(self.out or Path("runs") / Path(self.recipe).stem)
        if self.show:
            return _list(found, folder)
        if self.retry_failed:
            running.forget_failed(found, folder)
        todo = running.pending(found, folder)
        done = len(found.trials) - len(todo)
        kept = f", {done} of them done before" if done else ""
        print(f"{found.title}: {len(found.trials)} trials{kept}; results in {folder}", file=sys.stderr, flush=True)
        with _Told(found, done, self.jobs, self.progress) as told:
            running.run(found, todo, folder, self.jobs, self.master, told.tell)
        failed = conclude(found, folder)
        print(f"Now: firesteel bench report {folder}", file=sys.stderr)
        return 1 if failed else 0


def conclude(found: Recipe, folder: Path) -> int:
    """Put published results beside, judge the claims, write bench.json; returns how many of the recipe's trials have failed."""
    with locked(folder / "bench.json", wait=True):  # benches that share a folder end at the same moment
        return _conclude(found, folder)


def _conclude(found: Recipe, folder: Path) -> int:
    for name, how in found.published.items():
        if not (folder / results.EXTERNAL / name).exists():
            _ = external.import_file(f"published:{name}", name, folder, **how)
    own = results.read(folder)
    strange = [r.id for r in own if not r.external and r.id not in found.trials]
    if strange:
        print(
            f"note: {len(strange)} results in {folder} are not of this recipe as it is now ({strange[0]}, say); its report "
            "will show them too. Remove their files, or take another --out.",
            file=sys.stderr,
        )
    claims = []
    if found.claims is not None:
        try:
            claims = [asdict(claim) for claim in found.claims(own)]
        except Exception as error:
            raise UsageError(f"{found.path}: claims() raised {type(error).__name__}: {error}") from error
    told = {"title": found.title, "about": found.about, "recipe": found.path, "claims": claims}
    aside = folder / f".bench.json.{os.getpid()}"
    _ = aside.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
    _ = aside.replace(folder / "bench.json")
    for claim in claims:
        print(f"  {claim['verdict']:>20}: {claim['text']} (published {claim['published']}; here {claim['measured']})")
    bad = [r for r in own if r.id in found.trials and r.status == "failed"]
    for result in bad[:5]:
        error = result.error or {}
        print(f"failed: {result.id}: {error.get('type')}: {error.get('message', '').partition(chr(10))[0]}", file=sys.stderr)
    if bad:
        print(f"{len(bad)} of {len(found.trials)} trials failed; --retry-failed does them again.", file=sys.stderr)
    return len(bad)


def _list(found: Recipe, folder: Path) -> int:
    for name, trial in found.trials.items():
        path = running.file_of(folder, name)
        state = results.read_file(path).status if path.exists() else "to do"
        where = f"{type(trial.on).__name__}({trial.on.workers})"
        print(f"{state:>13}  {trial.workload.name:16}{where:18}seed {trial.seed}  {trial.method}")
    return 0


@final
class _Told:
    """A bench's progress: trials done and how long the others will take, by a bar or by lines."""

    def __init__(self, found: Recipe, done: int, jobs: int, show: Show) -> None:
        self._found: Recipe = found
        self._done: int = done
        self._before: int = done
        self._began: float = time.monotonic()
        bar = show == "bar" or (show == "auto" and (sys.stderr.isatty() or in_notebook()))
        self._quiet: bool = show == "none"
        self._progress: Any = None
        if bar:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=Console(stderr=True))
            self._task: Any = self._progress.add_task("", total=len(found.trials), completed=done)

    def __enter__(self) -> _Told:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def tell(self, news: running.News) -> None:
        trial = self._found.trials[news.name]
        what = f"{trial.workload.name}, {trial.method}, {type(trial.on).__name__}({trial.on.workers}), seed {trial.seed}"
        if news.kind in ("begun", "waiting"):
            if self._progress is not None:
                said = "another bench has " if news.kind == "waiting" else ""
                self._progress.update(self._task, description=f"{self._left()}{said}{what}")
            elif news.kind == "waiting":
                self._say(f"waiting for another bench, which does {what}")
            return
        self._done += 1
        how = "done by another bench" if news.result is None else _outcome(news.result)
        self._say(
            f"[{self._done:>{len(str(len(self._found.trials)))}}/{len(self._found.trials)}] {what}: {how}{self._left(', ')}"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done)

    def _left(self, before: str = "") -> str:
        done, left = self._done - self._before, len(self._found.trials) - self._done
        if not done or not left:
            return ""
        seconds = (time.monotonic() - self._began) / done * left
        return f"{before}{seconds / 60:.0f} min left " if seconds >= 90 else f"{before}{seconds:.0f} s left "

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)


def _outcome(result: Result) -> str:
    if result.error is not None:
        return f"{result.status}: {result.error['type']}"
    last = result.points[-1] if result.points else {}
    unit = "virtual s" if result.virtual else "s"
    value = last.get(result.metric)
    scored = f"{result.metric.removeprefix('validation_')} {value:.4f}" if value is not None else "not scored"
    return f"{scored} after {last.get('seconds') or 0.0:.3g} {unit}"


def _named(name: str, command: Any) -> Any:
    """A sub-command with its whole docstring as help, examples and all."""
    return tyro.conf.subcommand(name, description=inspect.getdoc(command))


@final
@dataclass(frozen=True)
class Bench:
    """Compare methods: run the trials of a recipe, put other people's results beside them, and look.

    Examples:
      firesteel bench run recipes/quick.py --out runs/quick
      firesteel bench import their.csv --as theirs --out runs/quick --workload digits-mlp --unit time=s
      firesteel bench report runs/quick
      firesteel bench compare runs/before runs/after

    `firesteel bench COMMAND --help` teaches each.
    """

    command: Annotated[
        Annotated[BenchRun, _named("run", BenchRun)]
        | Annotated[Report, _named("report", Report)]
        | Annotated[Compare, _named("compare", Compare)]
        | Annotated[Import, _named("import", Import)]
        | Annotated[Export, _named("export", Export)],
        tyro.conf.arg(name=""),
    ]

    @property
    def debug(self) -> bool:
        return getattr(self.command, "debug", False)

    def run(self) -> int:
        return self.command.run()
