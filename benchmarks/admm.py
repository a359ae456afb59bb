"""Training without gradients on MNIST: TaylorADMM and DlADMM, beside what needs no training of the hidden layer.

55,000 rows to train, 5,000 for validation, 10,000 for testing, pixels in 0 .. 1; one hidden layer of 300 ReLU units, and two;
two workers of one thread. Loss and accuracy after every sweep go into docs/results.md, as a table and a picture.

With --grid it searches settings instead.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import admm_grid, report
from benchmarks.admm_trial import Kept, adds_up, curves, dashed, missing, mnist, random_features
from firesteel import DlADMM, TaylorADMM

PAPER, DEFAULT = "TaylorADMM as in the paper", "TaylorADMM"
MAJORISED, PLAIN, FAST, DEEP = "DlADMM majorised", "DlADMM not accelerated", "DlADMM", "DlADMM, two layers"
METHODS: dict[str, tuple[Any, tuple[int, ...], int]] = {  # strategy, hidden layers, sweeps
    PAPER: (TaylorADMM(gamma=1.0, beta=1.0, warm=20, start="random"), (300,), 40),
    DEFAULT: (TaylorADMM(), (300,), 40),
    MAJORISED: (DlADMM(nu=1e-4, rho=1e-4, update="majorised"), (300,), 80),
    PLAIN: (DlADMM(ridge=0.03, accelerate=False), (300,), 120),
    FAST: (DlADMM(ridge=0.03), (300,), 120),
    DEEP: (DlADMM(ridge=3.0), (300, 300), 80),  # the grid's best ridge for this shape
}
SHOWN = (1, 2, 5, 10, 20, 40, 60, 80, 120)
MORE_SEEDS = (1, 2, 3)  # of the first, which starts from noise, up to its 10th sweep
KINDS = {"train": "#2a6fbb", "validation": "#8a8f98", "test": "#d9601a"}
PICTURE = Path(__file__).parents[1] / "docs" / "admm.png"
Curves = dict[str, Any]


def main() -> None:
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.admm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--mnist", metavar="FOLDER", help="folder of the four IDX files")
    flags.add_argument("--out", metavar="FILE", help="keep results as JSON lines: with the same file a killed run goes on")
    flags.add_argument("--only", metavar="NAMES", help="without --grid: some of the methods, with semicolons between them")
    flags.add_argument("--grid", action="store_true", help="search settings instead")
    admm_grid.add_flags(flags)
    given = flags.parse_args()
    try:
        if given.grid:
            admm_grid.main(given)
        else:
            with tempfile.TemporaryDirectory() as folder:
                measure(given, Kept(given.out or f"{folder}/admm.jsonl"))
    except KeyboardInterrupt as stop:
        raise SystemExit("Stopped; the same command goes on." if given.grid or given.out else "Stopped.") from stop


def measure(given: argparse.Namespace, kept: Kept) -> None:
    rows = mnist(given.mnist)
    trainings = {name: (*method, 0) for name, method in METHODS.items()}
    strategy, hidden, _ = METHODS[PAPER]
    trainings |= {f"{PAPER}, seed {seed}": (strategy, hidden, 10, seed) for seed in MORE_SEEDS}
    if given.only:
        unknown = set(given.only.split(";")) - set(trainings)
        if unknown:
            raise SystemExit(f"--only {'; '.join(unknown)}: known are {'; '.join(trainings)}.")
        trainings = {name: trainings[name] for name in given.only.split(";")}
    trials = {f"{s!r} {dashed(h)}, {sweeps} sweeps, seed {seed}": n for n, (s, h, sweeps, seed) in trainings.items()}
    for trial in missing(kept, {t: float(trainings[n][2] * adds_up(trainings[n][1])) for t, n in trials.items()}):
        strategy, hidden, sweeps, seed = trainings[trials[trial]]
        found = curves(strategy, hidden, sweeps, rows, seed)
        kept.add(trial, found)
        print(f"    {found['ended']}, {found['seconds']:.0f} s; test {_percent(found['test accuracy'][-1])} %", flush=True)
    if given.only:
        return
    known = kept.read()
    found = {name: known[trial] for trial, name in trials.items()}
    yardsticks = {hidden: random_features(hidden, rows) for hidden in ((), (300,), (300, 300))}
    picture(found, yardsticks)
    text = page(found, yardsticks)
    print(text)
    report.write("bench-admm", text)


# ---- the page --------------------------------------------------------------------------------------------------------

_ABOUT = """MNIST, 55,000 rows to train, the last 5,000 for validation (they are easier than the rest), 10,000 for testing;
pixels in 0 .. 1, not centered; two workers of one thread; one seed; `make bench-admm`. A sweep sees all rows once (DlADMM's:
twice). Losses are those that the method minimises at its outputs, for a row: TaylorADMM's hinge, summed over the classes;
DlADMM's cross-entropy."""

_STARTS = """Where they start: TaylorADMM as in the paper draws activations and outputs from N(0, 1), so that its first weights
are a fit to noise (gamma = beta = 1, hinge, no biases, multiplier from sweep 21). All others start from a forward pass through
He's initialisation (weights normal of variance 2 / fan-in, biases 0): TaylorADMM with its defaults (gamma = 10, beta = 1,
multiplier from sweep 11); DlADMM majorised, its paper's update (nu = {majorised.nu:g}, rho = {majorised.rho:g}); the other rows
of DlADMM solve for weights and activations exactly (nu = {fast.nu:g}, rho = {fast.rho:g}, ridge = {fast.ridge:g}; with two
hidden layers, {deep.ridge:g}), with acceleration or without."""

_YARDSTICK = """The yardstick is least squares from a hidden layer that nobody trained: He's weights, ReLU, labels as 0 and 1. A
method that does not beat it has not learnt its hidden layer."""


def page(found: dict[str, Curves], yardsticks: dict[tuple[int, ...], dict[str, float]]) -> str:
    """The section of docs/results.md."""
    rows: list[list[str]] = []
    methods = {name: found[name] for name in METHODS}
    for name, curve in methods.items():
        for kind in KINDS:
            accuracy, loss = curve[f"{kind} accuracy"], curve[f"{kind} loss"]
            cells = [f"{_percent(accuracy[s - 1])} ({loss[s - 1]:.3f})" if s <= len(loss) else "" for s in SHOWN]
            rows.append([name if kind == "train" else "", kind, *cells])
    ends: list[list[str]] = []
    for name, curve in methods.items():
        best = _best(curve)
        ended = f"{len(curve['test loss'])} sweeps" + ("" if curve["ended"] == "finished" else f", {curve['ended']}")
        kept = f"{_percent(curve['test accuracy'][best])} (sweep {best + 1})"
        ends.append([name, ended, *(_percent(curve[f"{kind} accuracy"][-1]) for kind in KINDS), kept, _rate(curve)])
    for hidden, accuracy in yardsticks.items():
        name = f"least squares on random ReLU features, {dashed(hidden)}" if hidden else "least squares on the pixels"
        ends.append([name, "none", *(_percent(accuracy[kind]) for kind in KINDS), "", ""])
    header = ["", "ended after", *KINDS, "test of the model that validation keeps", "seconds a sweep, about"]
    return "\n\n".join(
        [
            "## Training without gradients",
            _ABOUT,
            _STARTS.format(majorised=METHODS[MAJORISED][0], fast=METHODS[FAST][0], deep=METHODS[DEEP][0]),
            "Accuracy in %, and in brackets the loss, after so many sweeps:",
            report.table(["", "rows", *map(str, SHOWN)], rows),
            "![Loss and accuracy over sweeps](admm.png)",
            "Accuracies at the end:",
            report.table(header, ends),
            _YARDSTICK,
            *verdict(found, yardsticks),
        ]
    )


def verdict(found: dict[str, Curves], yardsticks: dict[tuple[int, ...], dict[str, float]]) -> list[str]:
    """The bars, and what they amount to."""
    last = {name: curve["test accuracy"][-1] for name, curve in found.items()}
    one = {name: last[name] for name, (_, hidden, _) in METHODS.items() if hidden == (300,)}
    winner = max(one, key=lambda name: one[name])
    features, linear = yardsticks[(300,)]["test"], yardsticks[()]["test"]
    seeds = [curve["test accuracy"][9] for name, curve in found.items() if name.startswith(PAPER)]
    tenth, second = sum(seeds) / len(seeds), found[DEFAULT]["test accuracy"][9]
    gain, deep, below = one[winner] - features, found[DEEP], yardsticks[(300, 300)]["test"]
    bars = [
        (f"TaylorADMM as in the paper, sweep 10, mean of {len(seeds)} seeds", f"{100 * tenth:.2f}", "> 85", tenth > 0.85),
        ("TaylorADMM, sweep 10", _percent(second), "> 85", second > 0.85),
        (
            f"the better one ({winner}) at its end, over random features of its width, points",
            f"{100 * gain:+.1f}",
            ">= 2",
            gain >= 0.02,
        ),
        ("the better one at its end", _percent(one[winner]), ">= 95", one[winner] >= 0.95),
    ]
    first, end = found[DEFAULT]["test accuracy"][0], last[DEFAULT]
    learnt = "one of them learns" if max(last[PAPER], end) > features else "neither learns"
    taylor = (
        f"Verdict: at its 10th sweep TaylorADMM as in the paper has {_percent(min(seeds))} to {_percent(max(seeds))} %, and "
        f"from a forward pass {_percent(second)} %, beside the published 85 %. But a linear classifier has {_percent(linear)} "
        f"and random features have {_percent(features)}: the first ends at {_percent(last[PAPER])} %, and the second goes "
        f"from {_percent(first)} % after its first sweep to {_percent(end)} %, so that {learnt} a hidden layer better than a "
        "random one."
    )
    dl = (
        f"{winner} does learn one: {100 * gain:.1f} points over random features, {_percent(one[winner])} % after "
        f"{len(found[winner]['test loss'])} sweeps, where the paper's own update has {_percent(last[MAJORISED])} %."
        if gain >= 0.02
        else f"{winner}, the best, ends {100 * gain:+.1f} points over random features: that is no success."
    )
    best, shallow = max(deep["test accuracy"]), found[FAST]["test accuracy"][len(deep["test accuracy"]) - 1]
    two = (
        f"With two hidden layers it comes to {_percent(best)} % at sweep {deep['test accuracy'].index(best) + 1} and ends at "
        f"{_percent(last[DEEP])} % (random features of that shape: {_percent(below)} %; one layer "
        f"after as many sweeps: {_percent(shallow)} %): a second layer "
        f"{'helps' if last[DEEP] > shallow else 'does not help'}. There a small ridge fits the training rows and no others, "
        "which the grid shows."
    )
    met = [[what, value, bar, "met" if yes else "not met"] for what, value, bar, yes in bars]
    return [report.table(["test accuracy, %", "measured", "bar", ""], met), " ".join([taylor, dl, two])]


def _best(curve: Curves) -> int:
    return curve["validation accuracy"].index(max(curve["validation accuracy"]))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _rate(curve: Curves) -> str:
    return f"{curve['seconds'] / len(curve['test loss']):.1f}"


# ---- the picture -----------------------------------------------------------------------------------------------------


def picture(found: dict[str, Curves], yardsticks: dict[tuple[int, ...], dict[str, float]]) -> None:
    """A column for each of three methods, accuracy above and loss below, and the same for the other three."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 11), layout="constrained")
    grid = figure.subplots(4, 3)
    for number, name in enumerate(METHODS):
        curve = found[name]
        row, column = 2 * (number // 3), number % 3
        features = yardsticks[METHODS[name][1]]["test"]
        above, below = grid[row][column], grid[row + 1][column]
        sweeps = range(1, len(curve["test loss"]) + 1)
        for kind, colour in KINDS.items():
            end = curve[f"{kind} accuracy"][-1]
            label = f"{kind} ({_percent(end)})"
            above.plot(sweeps, [100 * a for a in curve[f"{kind} accuracy"]], color=colour, linewidth=1.6, label=label)
            below.plot(sweeps, curve[f"{kind} loss"], color=colour, linewidth=1.6)
        above.axhline(
            100 * features, color="#333", linestyle="--", linewidth=1, label=f"random features ({_percent(features)})"
        )
        above.set_title(name, fontsize=11)
        above.set_ylim(70, 100)
        above.legend(frameon=False, fontsize=8, loc="lower right")
        below.set_ylim(bottom=0)
        for axes in (above, below):
            axes.spines[["right", "top"]].set_visible(False)
            axes.grid(alpha=0.25)
        below.set_xlabel("sweeps")
        if not column:
            above.set_ylabel("accuracy, %")
        below.set_ylabel("hinge" if name in (PAPER, DEFAULT) else "cross-entropy")
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main()
