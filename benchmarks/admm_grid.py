"""A grid over the settings of TaylorADMM and DlADMM: every combination is a training, and the best is what validation says."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import firesteel
from benchmarks import report
from benchmarks.admm_trial import TRAIN, WORLD, Kept, Rows, adds_up, dashed, factory, layers, missing, mnist
from firesteel import DlADMM, TaylorADMM
from firesteel.outcome import brief

METHODS: dict[str, Any] = {"DlADMM": DlADMM, "TaylorADMM": TaylorADMM}
SEED, OUT = 0, "runs/admm-grid.jsonl"


def _choice(text: str) -> bool:
    return {"yes": True, "no": False}[text]


SETTINGS: dict[str, tuple[Callable[[str], Any], str]] = {  # a flag each: how its values are read, and what it is
    "nu": (float, "DlADMM: penalty of the hidden layers"),
    "rho": (float, "DlADMM: penalty of the output layer"),
    "update": (str, "DlADMM: exact or majorised"),
    "accelerate": (_choice, "DlADMM: yes or no"),
    "gamma": (float, "TaylorADMM: penalty between activations and the outputs before them"),
    "beta": (float, "TaylorADMM: penalty between outputs and what a layer makes of its inputs"),
    "warm": (int, "TaylorADMM: sweeps before the multiplier moves"),
    "start": (str, "TaylorADMM: forward or random"),
    "ridge": (float, "both: share of the mean diagonal that is added to a layer's sums"),
    "output": (str, "both: cross_entropy, hinge or squared"),
    "widths": (layers, "hidden layers, their width and depth: 300 is one of 300 units, 300-300 are two"),
}
MODEST = {
    "DlADMM": {"rho": "0.01,0.1", "ridge": "0.03,0.3,3", "widths": "300,300-300"},
    "TaylorADMM": {"gamma": "1,10", "warm": "5,20", "widths": "300"},
}

_ABOUT = """A grid of trainings without gradients on MNIST: all combinations of the values given, each a comma-separated list.
What is not given stays at the method's default; a setting of one method leaves the other alone. With no setting at all:
{modest}"""

_EXAMPLES = """examples:
  python -m benchmarks.admm --grid
      the modest grid, and its table in docs/results.md
  python -m benchmarks.admm --grid --methods DlADMM --nu 0.001,0.01 --rho 0.01,0.1 --widths 300,300-300 --rows 20000
      2 x 2 x 2 trainings of DlADMM: 300 is one hidden layer of 300 units, 300-300 are two
  python -m benchmarks.admm --grid --methods TaylorADMM --gamma 0.1,1,10 --warm 5,20 --widths 300 --out taylor.jsonl

Each training is a line in the file given by --out (runs/admm-grid.jsonl) as soon as it has ended. Stop the grid whenever you
like: the same command goes on where it was, and one with more values computes only what is new. At the end stands a table,
best in validation first, with the test accuracy of the model that validation chose."""


def add_flags(flags: argparse.ArgumentParser) -> None:
    lines = [" ".join(f"--{name} {v}" for name, v in values.items()) for values in MODEST.values()]
    modest = "\n".join(f"  --methods {method} {line}" for method, line in zip(MODEST, lines, strict=True))
    group = flags.add_argument_group("with --grid", _ABOUT.format(modest=modest))
    _ = group.add_argument("--methods", default="DlADMM,TaylorADMM", metavar="NAMES", help="which (default: %(default)s)")
    for name, (_, about) in SETTINGS.items():
        _ = group.add_argument(f"--{name}", metavar="VALUES", help=about)
    _ = group.add_argument("--rows", type=int, default=20_000, help=f"training rows, up to {TRAIN:,} (default: 20,000)")
    _ = group.add_argument("--sweeps", type=int, default=40, help="sweeps of each training (default: 40)")
    flags.epilog = _EXAMPLES


def main(given: argparse.Namespace) -> None:
    chosen = {name: getattr(given, name) for name in SETTINGS if getattr(given, name)}
    trials = [t for method in given.methods.split(",") for t in combinations(method, chosen or MODEST.get(method, {}))]
    names = {
        f"{strategy} {dashed(hidden)}, {given.rows} rows, {given.sweeps} sweeps": (strategy, hidden)
        for strategy, hidden in trials
    }
    if not 0 < given.rows <= TRAIN or given.sweeps < 1:
        raise SystemExit(f"--rows must be 1 .. {TRAIN:,} and --sweeps at least 1.")
    rows, kept = mnist(given.mnist, given.rows), Kept(given.out or OUT)
    for name in missing(kept, {name: float(adds_up(hidden)) for name, (_, hidden) in names.items()}):
        figures = trial(*names[name], given.sweeps, rows)
        kept.add(name, figures)
        print(f"    validation {_share(figures['validation'])}, test {_share(figures['test'])}", flush=True)
    known = kept.read()
    text = page([(known[name], strategy, hidden) for name, (strategy, hidden) in names.items()], given)
    print(text)
    if not chosen:
        report.write("grid-admm", text)


def combinations(method: str, chosen: dict[str, str]) -> list[tuple[Any, tuple[int, ...]]]:
    """The method with each combination of the settings that are its own, and each network."""
    if method not in METHODS:
        raise SystemExit(f"--methods {method}: known are {', '.join(METHODS)}.")
    fields = [f.name for f in dataclasses.fields(METHODS[method]) if f.name in chosen]
    values = [_read(name, chosen[name]) for name in fields]
    networks = _read("widths", chosen.get("widths", "300"))
    try:
        strategies = [METHODS[method](**dict(zip(fields, each, strict=True))) for each in itertools.product(*values)]
    except firesteel.UsageError as error:
        raise SystemExit(str(error)) from error
    return list(itertools.product(strategies, networks))


def _read(name: str, values: str) -> list[Any]:
    read, about = SETTINGS[name]
    try:
        return [read(text) for text in values.split(",")]
    except (ValueError, KeyError) as error:
        raise SystemExit(f"--{name} {values} cannot be read. {about}.") from error


def trial(strategy: Any, hidden: tuple[int, ...], sweeps: int, rows: dict[str, Rows]) -> dict[str, Any]:
    """Accuracy of the model that is best in validation, and after how many sweeps it came."""
    train, held = (tuple(a.numpy() for a in rows[name]) for name in ("train", "validation"))
    try:
        run = firesteel.train(
            factory(hidden), train, strategy=strategy, on=WORLD, epochs=sweeps, validation=held, seed=SEED, progress="none"
        )
    except firesteel.Diverged:
        return {"validation": None, "test": None, "last": None, "best": None, "seconds": None}
    curve = run.history["validation_accuracy"].to_pylist()
    return {
        "validation": max(curve),
        "test": run.evaluate(tuple(a.numpy() for a in rows["test"]))["accuracy"],
        "last": curve[-1],
        "best": curve.index(max(curve)) + 1,
        "seconds": run.timing["train_seconds"],
    }


def page(found: list[tuple[dict[str, Any], Any, tuple[int, ...]]], given: argparse.Namespace) -> str:
    """The table, best in validation first."""
    rows: list[list[str]] = []
    for figures, strategy, hidden in sorted(found, key=lambda each: -(each[0]["validation"] or 0)):
        rows.append(
            [
                f"`{brief(strategy)}`",
                dashed(hidden),
                _share(figures["validation"]),
                str(figures["best"] or "-"),
                _share(figures["last"]),
                _share(figures["test"]),
                f"{figures['seconds'] or 0:.0f}",
            ]
        )
    header = ["method", "hidden layers", "validation, best, %", "at sweep", "validation, last, %", "test at best, %", "seconds"]
    return "\n\n".join(
        [
            "## Training without gradients: a grid",
            f"The first {given.rows:,} training rows of MNIST, 5,000 others for validation, 10,000 for testing, pixels in "
            f"0 .. 1; He's initialisation; {given.sweeps} sweeps; two workers of one thread; one seed. What is not said stands "
            "at the method's default. `make grid-admm`.",
            report.table(header, rows),
        ]
    )


def _share(value: float | None) -> str:
    return "diverged" if value is None else f"{100 * value:.1f}"
