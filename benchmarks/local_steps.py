"""Steps between two meetings: NeuronParallel with 1, 2, 4 and 8 local steps on a batch, damped and not.

Two convex problems on the bundled digits, with all rows in every step, and an MLP on MNIST by batches. Bytes are those that
gangs of real processes sent.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import firesteel
from benchmarks import report
from benchmarks.admm_trial import Kept, missing
from firesteel import NeuronParallel

STEPS = (1, 2, 4, 8)
ROUNDS, CREW = 200, 4  # of the convex problems
WORKERS, EPOCHS, BATCH, RATE = (2, 4), 2, 64, 0.05  # of MNIST
OUTPUTS = 12  # more than there are classes, whose numbers the sum is to come to
PICTURE = Path(__file__).parents[1] / "docs" / "local-steps.png"
COLOURS = {1: "#333", 2: "#8a8f98", 4: "#2a6fbb", 8: "#d9601a"}
Rule = tuple[int, bool]  # local steps, and whether the further ones are damped
RULES: list[Rule] = [(1, True), *((k, damped) for damped in (True, False) for k in STEPS[1:])]


def main() -> None:
    flags = argparse.ArgumentParser(prog="python -m benchmarks.local_steps", description=__doc__)
    flags.add_argument("--mnist", metavar="FOLDER", help="folder of the four IDX files")
    flags.add_argument("--out", metavar="FILE", help="keep results as JSON lines: with the same file a killed run goes on")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(given.out or f"{folder}/local-steps.jsonl")
        measure(kept, report.mnist_folder(given.mnist))
        text = page(kept.read())
    print(text)
    report.write("bench-local-steps", text)


def measure(kept: Kept, mnist: Path) -> None:
    trials: dict[str, Any] = {}
    for problem in ("softmax", "sum"):
        trials |= {_name(problem, CREW, rule): (problem, CREW, rule, 1.0) for rule in RULES}
    for workers in WORKERS:
        trials |= {_name("MNIST", workers, rule): ("MNIST", workers, rule, 1.0) for rule in RULES}
        trials |= {_longer(workers, k): ("MNIST", workers, (1, True), float(k)) for k in STEPS[1:]}
    rows = None
    for trial in missing(kept, {name: 1.0 + t[2][0] * (t[0] == "MNIST") for name, t in trials.items()}):
        problem, workers, rule, longer = trials[trial]
        if problem == "MNIST":
            rows = rows or firesteel.datasets.mnist(mnist)
            kept.add(trial, batches(rows, workers, rule, RATE * longer))
        else:
            kept.add(trial, convex(problem, workers, rule))


def _name(problem: str, workers: int, rule: Rule) -> str:
    steps, damped = rule
    counts = "" if steps == 1 else f", damping 1/{workers}" if damped else ", not damped"
    return f"{problem}, {workers} workers, {steps} local step{'s' * (steps > 1)}{counts}"


def _longer(workers: int, times: int) -> str:
    return f"MNIST, {workers} workers, {times} times the rate"


def _strategy(rule: Rule) -> NeuronParallel:
    return NeuronParallel(local_steps=rule[0], damping=None if rule[1] else 1.0)


# ---- convex problems -------------------------------------------------------------------------------------------------


def added_up(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error of the sum of all outputs."""
    return (outputs.sum(1) - targets).square().mean() / 2


def classes() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 10)).double()


def addends() -> nn.Module:
    return nn.Sequential(nn.Linear(16, OUTPUTS)).double()


def pooled() -> tuple[Tensor, Tensor]:
    """The digits as 4 x 4 means of mean 0 and variance 1, float64 [1433, 16], and their classes."""
    x, y = (torch.from_numpy(a) for a in firesteel.datasets.digits().train)
    small = nn.functional.avg_pool2d(x.double().view(-1, 1, 8, 8), 2).flatten(1)
    return (small - small.mean(0)) / small.std(0), y


def lowest(problem: str) -> tuple[float, float]:
    """The least loss of the problem, and the Lipschitz constant of its gradient."""
    x, y = pooled()
    ones = nn.functional.pad(x, (0, 1), value=1.0)
    steepest = float(torch.linalg.matrix_norm(ones, 2)) ** 2 / len(x)
    if problem == "sum":
        left = y - ones @ torch.linalg.lstsq(ones, y.double()[:, None]).solution[:, 0]
        return float(left.square().mean() / 2), OUTPUTS * steepest
    model = classes()
    solver = torch.optim.LBFGS(
        model.parameters(), max_iter=5000, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    _ = solver.step(closure)  # pyright: ignore[reportArgumentType]
    return closure().item(), steepest / 2


def convex(problem: str, workers: int, rule: Rule) -> dict[str, Any]:
    """Gap to the optimum before each round, and the bytes that a worker sends in one; the rate is 1 / L."""
    x, y = pooled()
    least, lipschitz = lowest(problem)
    run = firesteel.train(
        classes if problem == "softmax" else addends,
        (x.numpy(), y.numpy()),
        loss="cross_entropy" if problem == "softmax" else added_up,
        optimizer=firesteel.SGD(lr=1 / lipschitz),
        strategy=_strategy(rule),
        on=firesteel.Local(workers=workers, threads=1),
        batch_size=len(x),
        max_steps=ROUNDS,
        validation=None,
        metrics=(),
        progress="none",
    )
    history = run.history.to_pylist()
    return {"gaps": [row["train_loss"] - least for row in history], "bytes": history[-1]["bytes_sent"] / workers / ROUNDS}


# ---- MNIST -----------------------------------------------------------------------------------------------------------


def batches(data: Any, workers: int, rule: Rule, rate: float) -> dict[str, Any]:
    """Accuracy on the test rows after each epoch, bytes of a worker, and wall seconds of a step."""
    (x, y), (tested, expected) = ((a.reshape(len(a), -1).astype(np.float32) / 255, b) for a, b in (data.train, data.test))
    run = firesteel.train(
        lambda: firesteel.models.MLP(784, 256, 128, 10),
        (x, y),
        optimizer=firesteel.SGD(lr=rate),
        strategy=_strategy(rule),
        on=firesteel.Local(workers=workers, threads=1),
        batch_size=BATCH,
        epochs=EPOCHS,
        validation=(tested, expected),
        progress="none",
    )
    history = run.history.to_pylist()
    return {
        "accuracy": [row["validation_accuracy"] for row in history],
        "loss": [row["validation_loss"] for row in history],
        "megabytes": history[-1]["bytes_sent"] / workers / 1e6,
        "step seconds": run.timing["train_seconds"] / history[-1]["step"],
    }


# ---- the page --------------------------------------------------------------------------------------------------------

_ABOUT = """Of k steps on a batch the first is exact, and the others are made without the network ([the rule and its
convergence](strategies/local-steps.md)); `make bench-local-steps`. Bytes do not depend on k."""

_CONVEX = """Convex, all rows in every step, four workers, rate 1 / L: the gap to the optimum after {rounds} rounds. Softmax
regression (digits as 4 x 4 pixels, the classes spread over the workers), and squared error of the sum of {outputs} outputs,
which no problem exceeds in how much the workers' moves depend on each other. A round sends {sent} bytes per worker, of which
more than half are the rows themselves."""

_MNIST = """MNIST, 784-256-128-10, {epochs} epochs by batches of {batch} rows per worker, SGD without momentum at the rate
{rate}; one thread for each worker, on {cores} cores. Accuracy on the test rows in %. The last rows take one exact step at k
times the rate. All rows with one step do the same work: how far their wall seconds are apart says how busy the machine was."""


def page(found: dict[str, Any]) -> str:
    """The section of docs/results.md."""
    picture(found)
    convexes: list[list[str]] = []
    for rule in RULES:
        convexes.append([_label(rule)])
        for problem in ("softmax", "sum"):
            gaps, exact = (found[_name(problem, CREW, each)]["gaps"] for each in (rule, (1, True)))
            as_good = next((number for number, gap in enumerate(gaps) if gap <= exact[-1]), None)
            convexes[-1] += [_gap(gaps), "" if as_good is None else str(as_good)]
    rows = []
    for rule in RULES:
        rows.append([_label(rule), *_cells([found[_name("MNIST", workers, rule)] for workers in WORKERS])])
    for k in STEPS[1:]:
        rows.append([f"1, {k} times the rate", *_cells([found[_longer(workers, k)] for workers in WORKERS])])
    sizes = {found[_name(problem, CREW, rule)]["bytes"] for problem in ("softmax", "sum") for rule in RULES}
    sent = " or ".join(f"{size:,.0f}" for size in sorted(sizes))
    columns = ("accuracy", "MB sent per worker", "ms a step")
    return "\n\n".join(
        [
            "## Local steps of networks in parts",
            _ABOUT,
            _CONVEX.format(rounds=ROUNDS, outputs=OUTPUTS, sent=sent),
            report.table(["k", "softmax: gap", "rounds to the gap of k = 1", "sum: gap", "rounds to that of k = 1"], convexes),
            "![Gap to the optimum over rounds, and accuracy over local steps](local-steps.png)",
            _MNIST.format(epochs=EPOCHS, batch=BATCH, rate=RATE, cores=os.cpu_count()),
            report.table(["k", *(f"{workers} workers: {column}" for workers in WORKERS for column in columns)], rows),
        ]
    )


def _gap(gaps: list[float]) -> str:
    if not gaps[-1] < gaps[0]:
        return "diverges"
    return f"{gaps[-1]:.1e}" if gaps[-1] > 1e-12 else "< 1e-12"


def _label(rule: Rule) -> str:
    return str(rule[0]) if rule[0] == 1 else f"{rule[0]}, {'damping 1/N' if rule[1] else 'not damped'}"


def _cells(found: list[dict[str, Any]]) -> list[str]:
    return [
        cell
        for each in found
        for cell in (f"{100 * each['accuracy'][-1]:.1f}", f"{each['megabytes']:.0f}", f"{1e3 * each['step seconds']:.1f}")
    ]


def picture(found: dict[str, Any]) -> None:
    """The two convex problems over rounds, and MNIST over local steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, problem, title in ((left, "softmax", "softmax regression"), (middle, "sum", "sum of outputs")):
        for rule in RULES:
            gaps = [gap if 0 < gap < 1e3 else math.nan for gap in found[_name(problem, CREW, rule)]["gaps"]]
            axes.semilogy(gaps, color=COLOURS[rule[0]], linestyle="-" if rule[1] else "--", linewidth=1.5, label=_label(rule))
        kilobytes = found[_name(problem, CREW, (1, True))]["bytes"] / 1e3
        axes.set_title(f"{title}, {CREW} workers", fontsize=11)
        axes.set_xlabel(f"rounds, of {kilobytes:.0f} kB sent per worker")
        axes.set_ylim(top=1e3 if problem == "sum" else 3)
    left.set_ylabel("gap to the optimum")
    middle.legend(frameon=False, fontsize=8)
    for workers, colour in zip(WORKERS, ("#2a6fbb", "#d9601a"), strict=True):
        for damped in (True, False):
            curve = [found[_name("MNIST", workers, (k, damped or k == 1))]["accuracy"][-1] for k in STEPS]
            label = f"{workers} workers, {f'damping 1/{workers}' if damped else 'not damped'}"
            right.plot(STEPS, [100 * a for a in curve], "o-" if damped else "o--", color=colour, linewidth=1.5, label=label)
    right.set_xscale("log", base=2)
    right.set_xticks(STEPS, [str(k) for k in STEPS])
    right.set_title(f"MNIST after {EPOCHS} epochs", fontsize=11)
    right.set_xlabel("local steps, of the same bytes")
    right.set_ylabel("test accuracy, %")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, middle, right):
        axes.spines[["right", "top"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main()
