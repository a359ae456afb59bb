"""L-BFGS beside Spark ML's in one run, and what its history costs.

MNIST, 60,000 rows, network 784-128-10, two cores, Spark `local[2]`: how long `VectorFreeLBFGS` takes to the training loss
that Spark ML's MultilayerPerceptronClassifier (L-BFGS by treeAggregate, sigmoid and softmax) reaches in 60 iterations.
Both get the same cached DataFrame of vectors on a warm session; repetitions are interleaved, each with its own seed.
Then bytes, rounds and memory of a model of 10 million parameters on processes of this machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import firesteel
from benchmarks import report
from firesteel.net.protocol import Net, Vec
from firesteel.worker import Worker

SIZES, ITERATIONS = (784, 128, 10), 60
WIDE = (1000, 10_000)  # one layer without a bias: 10 million parameters
MEMORY, WIDE_ITERATIONS, WIDE_ROWS = 10, 12, 256
Figures = dict[str, float]
Rows = tuple[torch.Tensor, torch.Tensor]


def spark_session() -> Any:
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder: Any = SparkSession.builder
    return (
        builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "OFF")
        .config("spark.driver.memory", "6g")
        .config("spark.python.daemon.module", "firesteel.spark.daemon")
        .getOrCreate()
    )


def scores(model: nn.Module, train: Rows, test: Rows) -> Figures:
    """In float64, here, for both sides alike."""
    with torch.no_grad():
        model = model.double()
        loss = float(F.cross_entropy(model(train[0].double()), train[1]))
        return {"loss": loss, "accuracy": float((model(test[0].double()).argmax(1) == test[1]).double().mean())}


# ---- Spark ML --------------------------------------------------------------------------------------------------------


def theirs(frame: Any, train: Rows, test: Rows, seed: int, iterations: int = ITERATIONS) -> Figures:
    from pyspark.ml.classification import MultilayerPerceptronClassifier

    began = time.time()
    fitted = MultilayerPerceptronClassifier(layers=list(SIZES), maxIter=iterations, tol=0, seed=seed).fit(frame)
    call = time.time() - began
    passes = [span for span in _passes(frame.sparkSession) if span[0] >= began]
    training = max(end for _, end in passes) - min(start for start, _ in passes)
    found = scores(_network(fitted.weights.toArray()), train, test)
    done = int(fitted.summary().totalIterations)
    return {"call": call, "training": training, "iterations": done, "passes": len(passes), **found}


def _passes(session: Any) -> list[tuple[float, float]]:
    """Start and end of every treeAggregate that Spark remembers, in seconds since 1970: each is a pass over the rows."""
    jobs = session.sparkContext._jsc.sc().statusStore().jobsList(None)
    found = [jobs.apply(i) for i in range(jobs.size())]
    ends = [(j.submissionTime(), j.completionTime()) for j in found if j.name().startswith("treeAggregate")]
    return [(a.get().getTime() / 1000, b.get().getTime() / 1000) for a, b in ends]


def _network(weights: Any) -> nn.Module:
    """Spark ML's weights: for each layer a matrix by columns, then the biases."""
    model, at, flat = firesteel.models.MLP(*SIZES, activation="sigmoid").double(), 0, torch.from_numpy(np.array(weights))
    for layer in model.layers:
        if isinstance(layer, nn.Linear):
            end = at + layer.weight.numel()
            layer.weight.data = flat[at:end].view(layer.in_features, layer.out_features).T.contiguous()
            layer.bias.data = flat[end : end + layer.out_features]
            at = end + layer.out_features
    return model


# ---- ours ------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Until:
    """VectorFreeLBFGS until its objective is as low as `target`."""

    target: float
    memory: int = MEMORY

    own_steps = True
    full_batch = True

    async def run(self, worker: Worker, net: Net) -> Vec:
        on_step = worker.on_step

        def look(step: int) -> None:
            on_step(step)
            worker.stopping = worker.stopping or worker.figures["objective"] <= self.target

        worker.on_step = look
        return await firesteel.VectorFreeLBFGS(memory=self.memory).run(worker, net)


def ours(frame: Any, train: Rows, test: Rows, seed: int, target: float, activation: str, memory: int = MEMORY) -> Figures:
    began = time.time()
    run = firesteel.train(
        functools.partial(firesteel.models.MLP, *SIZES, activation=activation),
        frame,
        strategy=Until(target, memory),
        on=firesteel.Spark(workers=2),
        epochs=300,
        validation=None,
        metrics=(),
        seed=seed,
        progress="none",
    )
    call = time.time() - began
    last = run.history.to_pylist()[-1]
    figures = {"iterations": last["step"], "passes": last["evaluations"]}
    return {"call": call, "training": last["seconds"], **figures, **scores(run.model, train, test)}


# ---- bytes, rounds, memory -------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Watched:
    """VectorFreeLBFGS that notes, for each worker, the bytes of its history and how far its memory grew."""

    memory: int
    folder: str

    own_steps = True
    full_batch = True

    async def run(self, worker: Worker, net: Net) -> Vec:
        publish, history = net.publish, 0

        def look(params: Vec, *rest: torch.Tensor) -> None:
            nonlocal history
            history = rest[0].nbytes  # the base vectors; of inner products there are (2m + 1)^2
            publish(params, *rest)

        net.publish = look  # pyright: ignore[reportAttributeAccessIssue]
        before = _peak_bytes(anew=True)
        result = await firesteel.VectorFreeLBFGS(memory=self.memory).run(worker, net)
        grown = _peak_bytes() - before
        _ = Path(self.folder, f"{net.rank}.json").write_text(json.dumps({"history": history, "grown": grown}))
        return result


def _peak_bytes(anew: bool = False) -> int:
    """The most memory that this process has had, from now on if `anew`."""
    if anew:
        _ = Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def wide(workers: int, memory: int) -> Figures:
    """The largest worker's history and growth; bytes and rounds of the last iteration, which looked once along the line."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((WIDE_ROWS, WIDE[0]), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        run = firesteel.train(
            functools.partial(nn.Linear, *WIDE, bias=False),
            (x, rng.integers(0, WIDE[1], WIDE_ROWS)),
            strategy=Watched(memory, folder),
            on=firesteel.Local(workers=workers, threads=1),
            epochs=WIDE_ITERATIONS,
            validation=None,
            metrics=(),
            progress="none",
        )
        noted = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(workers)]
    rows = run.history.to_pylist()
    ends = next((a, b) for a, b in zip(rows[-2::-1], rows[:0:-1], strict=True) if b["evaluations"] - a["evaluations"] == 1)
    found = {name: ends[1][name] - ends[0][name] for name in ("bytes_sent", "rounds")}
    return {**found, **{name: max(n[name] for n in noted) for name in ("history", "grown")}}


def bytes_of(workers: int, memory: int) -> int:
    """All workers' bytes of an iteration with one look: two small sums (with a weight and a request to stop), two halves."""
    size, numbers = WIDE[0] * WIDE[1], 3 + 3 * (2 * memory + 3)
    return workers * (8 * numbers + 2 * 16) + 2 * 4 * size * (workers - 1)


def wide_section() -> list[str]:
    rows, size = [], WIDE[0] * WIDE[1]
    for workers in (2, 4):
        many, few = wide(workers, MEMORY), wide(workers, 1)
        share = (2 * MEMORY + 1) * 4 * (size // workers)
        more = 2 * (MEMORY - 1) * 4 * (size // workers)
        assert many["history"] == share, (many, share)
        cells = [share, many["history"], more, many["grown"] - few["grown"], bytes_of(workers, MEMORY), many["bytes_sent"]]
        rows.append([str(workers), *(f"{x / 1e6:,.1f}" for x in cells[:4]), *(f"{x:,.0f}" for x in cells[4:])])
        rows[-1].append(f"{many['rounds']:.0f}")
        print(rows[-1], flush=True)
    head = ["workers", "(2m+1) P/N floats, MB", "history, MB", "2 (m-1) P/N floats, MB", "measured growth, MB"]
    return [
        "### Memory, bytes and rounds",
        f"One layer of {size:,} parameters, m = {MEMORY}, processes of this machine. History: bytes of a worker's base vectors "
        "(the largest worker's). Growth: by how much a worker's peak resident memory is above that of a run with m = 1, beside "
        "what the history then has more. Bytes (of all workers) and rounds of an iteration with one look along the line, "
        f"counted in the run. With one worker the history is {(2 * MEMORY + 1) * 4 * size / 1e6:,.0f} MB.",
        report.table([*head, "bytes, closed form", "bytes counted", "rounds"], rows),
    ]


# ---- the run ---------------------------------------------------------------------------------------------------------


def race_section(mnist: str | None, repetitions: int, iterations: int) -> list[str]:
    from pyspark.ml.functions import array_to_vector

    data = firesteel.datasets.mnist(report.mnist_folder(mnist))
    parts = [(x.reshape(-1, 784).astype(np.float32) / np.float32(255), y) for x, y in (data.train, data.test)]
    train, test = ((torch.from_numpy(x), torch.from_numpy(y)) for x, y in parts)
    spark = spark_session()
    floats = firesteel.datasets.Dataset("mnist", parts[0], parts[1], 10).frame(spark)[0].cache()
    vectors = floats.select(array_to_vector("features").alias("features"), floats.label.cast("double")).cache()
    for frame in (floats, vectors):
        frame.count()
    race = functools.partial(ours, vectors, train, test)
    _ = race(0, 2.0, "sigmoid"), theirs(vectors, train, test, 0, 2)  # so that both sides are warm
    names = ["Spark ML", "sigmoid", "sigmoid, from array<float>", "sigmoid, memory=40", "ReLU"]
    found: dict[str, list[Figures]] = {name: [] for name in names}
    for seed in range(repetitions):
        found["Spark ML"].append(theirs(vectors, train, test, seed, iterations))
        target = found["Spark ML"][-1]["loss"]
        print(seed, found["Spark ML"][-1], flush=True)
        for name, run in {
            "sigmoid": lambda: race(seed, target, "sigmoid"),  # noqa: B023  (called at once)
            "sigmoid, from array<float>": lambda: ours(floats, train, test, seed, target, "sigmoid"),  # noqa: B023
            "sigmoid, memory=40": lambda: race(seed, target, "sigmoid", 40),  # noqa: B023
            "ReLU": lambda: race(seed, target, "relu"),  # noqa: B023
        }.items():
            found[name].append(run())
            print(seed, name, found[name][-1], flush=True)
    spark.stop()
    return race_text(found)


def race_text(found: dict[str, list[Figures]]) -> list[str]:
    medians = {n: {k: statistics.median(f[k] for f in runs) for k in runs[0]} for n, runs in found.items()}
    ratio = lambda n, k: statistics.median(a[k] / b[k] for a, b in zip(found[n], found["Spark ML"], strict=True))  # noqa: E731
    rows = []
    for name, f in medians.items():
        ours_ = name != "Spark ML"
        counts = [f"{f['iterations']:.0f}", f"{f['passes']:.0f}"]
        times = [f"{f['call']:.1f}", f"1/{1 / ratio(name, 'call'):.1f}" if ours_ else ""]
        alone = [f"{f['training']:.1f}", f"1/{1 / ratio(name, 'training'):.1f}" if ours_ else ""]
        learned = [f"{f['loss']:.4f}", f"{f['accuracy']:.4f}"]
        rows.append([f"Firesteel, {name}" if ours_ else name, *counts, *times, *alone, *learned])
    head = ["", "iterations", "passes", "whole call, s", "of Spark ML's", "training alone, s", "of Spark ML's"]
    bars = []
    for what, name, kind in (
        ("whole call", "sigmoid", "call"),
        ("training alone", "sigmoid", "training"),
        ("whole call, memory=40", "sigmoid, memory=40", "call"),
        ("training alone, memory=40", "sigmoid, memory=40", "training"),
    ):
        measured = ratio(name, kind)
        bars.append([what, f"1/{1 / measured:.1f}", "<= 1/6", "met" if measured <= 1 / 6 else "NOT MET"])
    runs = len(found["Spark ML"])
    return [
        "## L-BFGS beside Spark ML",
        f"MNIST, 60,000 rows, 784-128-10, `local[2]`; medians of {runs} interleaved repetitions, each with "
        f"its own seed; `make bench-lbfgs`. Spark ML's MultilayerPerceptronClassifier does {ITERATIONS} iterations (tol=0); "
        "`VectorFreeLBFGS` with two workers of one thread stops at the first iteration whose training loss is as low as what "
        "Spark ML has reached then. That loss is the mean cross-entropy over the training rows, computed from the fitted "
        "weights in float64, for both. Whole call: all of `fit` and of `firesteel.train`, on the same cached DataFrame of "
        "vectors and a warm session. Training alone: from the start of the first pass over the rows to the end of the last one "
        "(Spark's own record of its jobs; ours from the run's history). Both remember 10 steps unless said otherwise.",
        report.table([*head, "training loss", "test accuracy"], rows),
        report.table(["sigmoid, of Spark ML's time", "measured", "bar", ""], bars),
    ]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--mnist", help="folder of the four IDX files")
    flags.add_argument("--repetitions", type=int, default=3)
    flags.add_argument("--iterations", type=int, default=ITERATIONS, help="of Spark ML; with fewer nothing is written")
    flags.add_argument("--only", choices=["race", "wide"], help="one half; nothing is written")
    given = flags.parse_args()
    text: list[str] = []
    if given.only != "wide":
        text += race_section(given.mnist, given.repetitions, given.iterations)
    if given.only != "race":
        text += wide_section()
    print("\n\n".join(text))
    if given.only is None and given.iterations == ITERATIONS:
        report.write("bench-lbfgs", "\n\n".join(text))


if __name__ == "__main__":
    main()
