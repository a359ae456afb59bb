"""Do networks of every kind learn real data on Spark? Each strategy, several seeds, held-out rows.

LeNet and an LSTM of pixel rows on MNIST, an LSTM on Japanese Vowels, an LSTM of text on Tiny Shakespeare, VGG-16 on a part of
CIFAR-10; Adam with a rate that falls to 0 along a cosine, a session of two executors with a worker of one thread each.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from pyspark.sql import SparkSession
from torch.optim.lr_scheduler import CosineAnnealingLR

import firesteel
from benchmarks import report
from benchmarks.admm_trial import Kept, missing
from firesteel import datasets
from firesteel.models import VGG, CharLSTM, LeNet, LSTMClassifier

WORKERS = 2
STRATEGIES: dict[str, Any] = {"SyncSGD": firesteel.SyncSGD(), "NeuronParallel": firesteel.NeuronParallel()}
Trial = dict[str, Any]


@final
@dataclass(frozen=True)
class Workload:
    """A network, its data, how it is trained, and what is asked of it."""

    model: Callable[[], Any]
    data: Callable[[], datasets.Dataset]
    lr: float
    batch_size: int  # of a worker
    epochs: int
    measure: Literal["accuracy", "loss", "falling"]  # on the test rows; or whether each epoch's training loss is below the last
    bar: float
    seconds: float  # of a trial, about
    weight_decay: float = 0.0

    def trial(self, strategy: str, name: str, seed: int) -> str:
        decay = f", weight decay {self.weight_decay}" if self.weight_decay else ""
        return f"{name}, {strategy}, {self.epochs} epochs of batches of {self.batch_size}, rate {self.lr}{decay}, seed {seed}"

    def value(self, found: Trial) -> float:
        """What the bar is for; of "falling" the last epoch's training loss over the first's."""
        return found["train_loss"][-1] / found["train_loss"][0] if self.measure == "falling" else found[self.measure]

    def met(self, found: Trial) -> bool:
        if self.measure == "falling":
            losses = found["train_loss"]
            return all(b < a for a, b in itertools.pairwise(losses)) and self.value(found) <= self.bar
        return self.value(found) >= self.bar if self.measure == "accuracy" else self.value(found) < self.bar

    def shown(self, value: float) -> str:
        return f"{100 * value:.2f}" if self.measure == "accuracy" else f"{value:.3f}"


WORKLOADS: dict[str, Workload] = {
    "LeNet, MNIST": Workload(LeNet, datasets.mnist, 3e-3, 64, 4, "accuracy", 0.988, 60),
    "LSTM 28-96-10, rows of MNIST": Workload(
        functools.partial(LSTMClassifier, 28, 96, 10), datasets.mnist, 5e-3, 64, 4, "accuracy", 0.98, 60
    ),
    "LSTM 12-100-9, Japanese Vowels": Workload(
        functools.partial(LSTMClassifier, 12, 100, 9), datasets.japanese_vowels, 2e-3, 4, 60, "accuracy", 0.94, 40, 0.3
    ),
    "LSTM of text 65-128-65, Tiny Shakespeare": Workload(
        functools.partial(CharLSTM, 65, 128), datasets.tinyshakespeare, 1e-2, 16, 1, "loss", 2.0, 40
    ),
    "VGG-16 at a quarter of its width, a part of CIFAR-10": Workload(
        functools.partial(VGG, 16, 0.25, norm="group"), datasets.cifar10, 5e-4, 32, 3, "falling", 0.9, 80
    ),
}
BARS = {"accuracy": "test accuracy >= {:.1f} %", "loss": "test loss < {:.1f} nats", "falling": "loss falls, to {:.0%} or less"}


def measure(workload: Workload, strategy: Any, seed: int, data: datasets.Dataset, frame: Any) -> Trial:
    """One training on Spark, and what it makes of the test rows."""
    steps = workload.epochs * math.ceil(math.ceil(len(data.train[0]) / WORKERS) / workload.batch_size)
    run = firesteel.train(
        workload.model,
        frame,
        features=data.features,
        optimizer=firesteel.AdamW(lr=workload.lr, weight_decay=workload.weight_decay),
        schedule=firesteel.BySteps(CosineAnnealingLR, T_max=steps),
        strategy=strategy,
        on=firesteel.Spark(workers=WORKERS),
        batch_size=workload.batch_size,
        epochs=workload.epochs,
        validation=None,
        seed=seed,
        progress="none",
    )
    seconds, losses = run.timing["train_seconds"], run.history["train_loss"].to_pylist()
    return {**run.evaluate(data.test), "train_loss": losses, "train_seconds": seconds}


def session() -> Any:
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder: Any = SparkSession.builder
    return (
        builder.master(f"local-cluster[{WORKERS},1,2048]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "OFF")
        .config("spark.driver.memory", "4g")
        .config("spark.python.daemon.module", "firesteel.spark.daemon")
        .config(
            "spark.executorEnv.PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        )
        .getOrCreate()
    )


def main() -> None:
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.networks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--data", metavar="FOLDER", help="folder of mnist/, cifar10/ and so on; $FIRESTEEL_DATA if not given")
    flags.add_argument("--strategies", metavar="NAMES", help=f"some of {'; '.join(STRATEGIES)}, with semicolons between them")
    flags.add_argument("--only", metavar="NAMES", help="some of the workloads, with semicolons between them; writes no page")
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--out", metavar="FILE", help="keep results as JSON lines: with the same file a killed run goes on")
    given = flags.parse_args()
    if given.data or "FIRESTEEL_DATA" not in os.environ:
        os.environ["FIRESTEEL_DATA"] = given.data or str(report.mnist_folder(None).parent)
    strategies, workloads = _chosen(given.strategies, STRATEGIES), _chosen(given.only, WORKLOADS)
    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(given.out or f"{folder}/networks.jsonl")
        trials = {
            workload.trial(strategy, name, seed): (name, strategy, seed)
            for name, workload in workloads.items()
            for strategy in strategies
            for seed in range(given.seeds)
        }
        _train(kept, trials)
        known = kept.read()
    if not given.only:
        found = {place: known[trial] for trial, place in trials.items()}
        text = page(found, list(strategies), given.seeds)
        print(text)
        report.write("bench-networks", text)


def _chosen(names: str | None, known: dict[str, Any]) -> dict[str, Any]:
    chosen = known if names is None else {name.strip(): None for name in names.split(";")}
    unknown = set(chosen) - set(known)
    if unknown:
        raise SystemExit(f"{'; '.join(sorted(unknown))}: known are {'; '.join(known)}.")
    return {name: known[name] for name in chosen}


def _train(kept: Kept, trials: dict[str, tuple[str, str, int]]) -> None:
    """Every trial that is not in the file; workload by workload, as one data set at a time is on Spark."""
    spark, data, frame, shown = None, None, None, ""
    for trial in missing(kept, {t: WORKLOADS[name].seconds for t, (name, _, _) in trials.items()}):
        name, strategy, seed = trials[trial]
        workload = WORKLOADS[name]
        if name != shown or data is None:
            spark = spark or session()
            data, shown = workload.data(), name
            frame = data.frame(spark)[0].cache()
            _ = frame.count()
        found = measure(workload, STRATEGIES[strategy], seed, data, frame)
        kept.add(trial, found)
        print(f"    {found['train_seconds']:.0f} s; {workload.measure} {workload.shown(workload.value(found))}", flush=True)
    if spark is not None:
        spark.stop()


def page(found: dict[tuple[str, str, int], Trial], strategies: list[str], seeds: int) -> str:
    """The section of docs/results.md."""
    rows: list[list[str]] = []
    settings: list[list[str]] = []
    for name, workload in WORKLOADS.items():
        for strategy in strategies:
            trials = [found[name, strategy, seed] for seed in range(seeds)]
            values = [workload.value(trial) for trial in trials]
            seconds = statistics.mean(trial["train_seconds"] for trial in trials)
            met = "met" if all(workload.met(trial) for trial in trials) else "NOT MET"
            cells = [workload.shown(v) for v in (min(values), statistics.mean(values), max(values))]
            bar = BARS[workload.measure].format(workload.bar * (100 if workload.measure == "accuracy" else 1))
            rows.append([name if strategy == strategies[0] else "", strategy, *cells, bar, met, f"{seconds:.0f}"])
        accuracies = [found[name, strategy, seed]["accuracy"] for strategy in strategies for seed in range(seeds)]
        held = f"{100 * min(accuracies):.1f} to {100 * max(accuracies):.1f}"
        settings.append([name, f"{workload.lr:g}", str(workload.batch_size), str(workload.epochs), held])
    return "\n\n".join(
        [
            "## Networks of every kind",
            f"On real data, through Spark: {WORKERS} executors with a worker of one thread each, Adam with a rate that falls "
            f"to 0 along a cosine, {seeds} seeds, nothing held out for validation; `make bench-networks`. Measured on the test "
            "rows: accuracy in %, of the text nats a character; of VGG-16 the last epoch's training loss over the first's. A "
            "bar is met if every seed meets it. The bar of Japanese Vowels, of which 270 rows train (with a weight decay of "
            "0.3) and 370 test, is what Kudo et al. (1999) report, 94.1 %.",
            report.table(["", "strategy", "lowest", "mean", "highest", "bar", "", "seconds of training"], rows),
            "How they were trained, and the accuracies on the test rows, in %:",
            report.table(["", "rate", "batch of a worker", "epochs", "test accuracy"], settings),
        ]
    )


if __name__ == "__main__":
    main()
