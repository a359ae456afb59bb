"""Side by side in one run: Firesteel, TorchDistributor, a bare loop, Spark ML.

MNIST, MLP 784-256-128-10, Adam with rate 0.002, batch 64 a worker, two workers of one thread, two epochs; medians of
interleaved repetitions, denormals flushed on every side. Samples per second count from a worker's first step to its last;
"call" is the whole call on a warm Spark session.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyspark.sql import SparkSession
from torch import nn

import firesteel
from benchmarks import report

SIZES, EPOCHS, BATCH, RATE = (784, 256, 128, 10), 2, 64, 2e-3  # the peers below say the same
Figures = dict[str, float]


def network() -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(SIZES):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


# ---- the peers -------------------------------------------------------------------------------------------------------


def distributed_training(path: str, fused: bool) -> tuple[float, float, float, dict[str, torch.Tensor]]:
    """What TorchDistributor's users write: DDP, a DistributedSampler, a DataLoader over a TensorDataset."""
    import time

    import numpy as np
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo")
    found = np.load(path)
    data = TensorDataset(torch.from_numpy(found["x"]).float().div_(255), torch.from_numpy(found["y"]))
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=64, sampler=sampler)
    torch.manual_seed(0)
    layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)]
    model = DistributedDataParallel(nn.Sequential(*layers))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=fused or None)
    rows, first = 0, 0.0
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for x, y in loader:
            first = first or time.time()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            rows += len(x)
    last = time.time()
    total = torch.tensor([float(rows)])
    dist.all_reduce(total)
    state = {k: v.clone() for k, v in model.module.state_dict().items()}
    dist.destroy_process_group()
    return first, last, float(total), state


def torch_distributor(path: str, test: Any, fused: bool = False) -> Figures:
    from pyspark.ml.torch.distributor import TorchDistributor

    began = time.time()
    result: Any = TorchDistributor(num_processes=2, local_mode=False, use_gpu=False).run(distributed_training, path, fused)
    call = time.time() - began
    first, last, rows, state = result
    model = network()
    model.load_state_dict(state)
    return {"samples/s": rows / (last - first), "call": call, "first": first - began, "accuracy": accuracy(model, *test)}


def bare_loop(path: str, test: Any, fused: bool = False) -> Figures:
    """One process over indexed tensors, as fast as a loop in plain PyTorch gets; run in a process of its own."""
    import subprocess

    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bare_loop", path, *(["fused"] if fused else [])],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    found = json.loads(done.stdout.splitlines()[-1])
    model = network()
    with np.load(found["weights"]) as weights:
        model.load_state_dict({k: torch.from_numpy(weights[k]) for k in weights})
    os.unlink(found["weights"])
    call = time.time() - began
    return {"samples/s": found["samples/s"], "call": call, "first": found["first"] - began, "accuracy": accuracy(model, *test)}


def spark_ml(train: Any, test: Any) -> Figures:
    """Spark ML's MLP, full-batch L-BFGS: rows of all passes per second, for 20 iterations."""
    from pyspark.ml.classification import MultilayerPerceptronClassifier
    from pyspark.ml.functions import array_to_vector

    rows = train.count()
    frame = lambda f: f.select(array_to_vector("features").alias("features"), f.label.cast("double"))  # noqa: E731
    began = time.time()
    model = MultilayerPerceptronClassifier(layers=list(SIZES), maxIter=20, seed=0).fit(frame(train))
    call = time.time() - began
    right = model.transform(frame(test)).where("prediction = label").count() / test.count()
    return {"samples/s": rows * 20 / call, "call": call, "first": float("nan"), "accuracy": right}


# ---- ours ------------------------------------------------------------------------------------------------------------


def ours(strategy: Any, workers: int, frame: Any, test: Any) -> Figures:
    began = time.time()
    run = firesteel.train(
        functools.partial(firesteel.models.MLP, *SIZES),
        frame,
        features=firesteel.Image("features", (784,)),
        optimizer=firesteel.Adam(lr=RATE),
        strategy=strategy,
        on=firesteel.Spark(workers=workers),
        batch_size=BATCH,
        epochs=EPOCHS,
        validation=None,
        progress="none",
    )
    call = time.time() - began
    timing = run.timing
    return {
        "samples/s": timing["samples_per_second"],
        "call": call,
        "first": timing["call_to_first_step_seconds"],
        "accuracy": accuracy(run.model, *test),
    }


# ---- the run ---------------------------------------------------------------------------------------------------------


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--mnist", help="folder of the four IDX files")
    flags.add_argument("--repetitions", type=int, default=3)
    flags.add_argument("--only", help="comma-separated names of contestants")
    flags.add_argument("--json", help="also write the figures here")
    given = flags.parse_args()
    data = firesteel.datasets.mnist(report.mnist_folder(given.mnist))
    x, y = torch.from_numpy(data.test[0]).view(-1, 784).float() / 255, torch.from_numpy(data.test[1])
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder: Any = SparkSession.builder
    spark = (
        builder.master("local-cluster[2,1,4096]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "OFF")
        .config("spark.driver.memory", "4g")
        .config("spark.python.daemon.module", "firesteel.spark.daemon")
        .config("spark.executorEnv.PYTHONPATH", str(Path(__file__).parents[1]))
        .getOrCreate()
    )
    frames = [f.cache() for f in data.frame(spark)]
    for f in frames:
        f.count()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "mnist.npz"))
        np.savez(path, x=data.train[0].reshape(-1, 784), y=data.train[1])
        contestants: dict[str, Callable[[], Figures]] = {
            "TorchDistributor + DDP + DataLoader": lambda: torch_distributor(path, (x, y)),
            "TorchDistributor, fused Adam": lambda: torch_distributor(path, (x, y), fused=True),
            "bare loop, one process": lambda: bare_loop(path, (x, y)),
            "bare loop, fused Adam": lambda: bare_loop(path, (x, y), fused=True),
            "Firesteel Single, 1 worker": lambda: ours(firesteel.Single(), 1, frames[0], (x, y)),
            "Firesteel SyncSGD, 2 workers": lambda: ours(firesteel.SyncSGD(), 2, frames[0], (x, y)),
            "Firesteel ModelAveraging(16), 2 workers": lambda: ours(firesteel.ModelAveraging(period=16), 2, frames[0], (x, y)),
        }
        chosen = {n: c for n, c in contestants.items() if not given.only or any(o in n for o in given.only.split(","))}
        cold = ours(firesteel.SyncSGD(), 2, frames[0], (x, y))["call"]
        print(f"first call on a cold session: {cold:.1f} s", flush=True)
        found: dict[str, list[Figures]] = {name: [] for name in chosen}
        for repetition in range(given.repetitions):
            for name, contestant in chosen.items():
                found[name].append(contestant())
                said = "  ".join(f"{k} {v:,.4g}" for k, v in found[name][-1].items())
                print(f"[{repetition + 1}/{given.repetitions}] {name}: {said}", flush=True)
    medians = {n: {k: statistics.median(f[k] for f in runs) for k in runs[0]} for n, runs in found.items()}
    if not given.only:
        as_floats = [data.train, data.test]
        arrays = [firesteel.datasets.Dataset("", (a[0].reshape(-1, 784) / np.float32(255), a[1]), a, 10) for a in as_floats]
        medians["Spark ML MLP, 20 iterations of L-BFGS"] = spark_ml(*(d.frame(spark)[0].cache() for d in arrays))
        text = page(medians, cold, given.repetitions)
        print(text)
        report.write("bench-peers", text)
    if given.json:
        _ = Path(given.json).write_text(json.dumps({"medians": medians, "all": found, "cold": cold}, indent=2))
    spark.stop()


def page(medians: dict[str, Figures], cold: float, repetitions: int) -> str:
    """The tables for docs/results.md."""
    names = ["Single, 1 worker", "SyncSGD, 2 workers", "ModelAveraging(16), 2 workers"]
    single, sync, averaging = (medians[f"Firesteel {n}"] for n in names)
    torch_, bare = medians["TorchDistributor + DDP + DataLoader"], medians["bare loop, one process"]
    fits = [f for n, f in medians.items() if n.startswith("Firesteel")]
    rate = lambda a, b: a["samples/s"] / b["samples/s"]  # noqa: E731
    fused_torch, fused_bare = medians["TorchDistributor, fused Adam"], medians["bare loop, fused Adam"]
    calls, first = max(f["call"] for f in fits) / torch_["call"], max(f["first"] for f in fits)
    lowest = min(f["accuracy"] for f in fits)
    bars = [
        ("SyncSGD / TorchDistributor, samples/s", rate(sync, torch_), ">= 1.25", rate(sync, torch_) >= 1.25),
        ("ModelAveraging / TorchDistributor, samples/s", rate(averaging, torch_), ">= 3", rate(averaging, torch_) >= 3),
        ("... with fused Adam there too", rate(averaging, fused_torch), ">= 3", rate(averaging, fused_torch) >= 3),
        ("ModelAveraging, 2 workers / 1 worker", rate(averaging, single), ">= 1.5", rate(averaging, single) >= 1.5),
        ("1 worker / bare loop", rate(single, bare), ">= 0.95", rate(single, bare) >= 0.95),
        ("... with fused Adam there too", rate(single, fused_bare), ">= 0.95", rate(single, fused_bare) >= 0.95),
        ("whole call / TorchDistributor's", calls, "<= 0.25", calls <= 0.25),
        ("first step after the call, s", first, "<= 2", first <= 2),
        ("lowest test accuracy of ours", lowest, ">= 0.965", lowest >= 0.965),
    ]
    rows = []
    for name, f in medians.items():
        began = "" if f["first"] != f["first"] else f"{f['first']:.2f}"
        rows.append([name, f"{f['samples/s']:,.0f}", f"{f['call']:.1f}", began, f"{f['accuracy']:.4f}"])
    verdicts = [[what, f"{value:.3g}", bar, "met" if met else "NOT MET"] for what, value, bar, met in bars]
    return "\n\n".join(
        [
            "## Beside its peers",
            "MNIST, MLP 784-256-128-10, Adam (0.002), batch 64 a worker, workers of one thread, two epochs; medians of "
            f"{repetitions} interleaved repetitions on a warm session of two executors; `make bench-peers`. The first call on "
            f"the cold session took {cold:.1f} s. Ours run with Firesteel's defaults, among them PyTorch's fused Adam kernel; "
            "the peers are shown as their users write them and with that kernel too. Spark ML's figure counts the rows of its "
            "full-batch passes.",
            report.table(["", "samples/s", "call, s", "call to first step, s", "test accuracy"], rows),
            report.table(["", "measured", "bar", ""], verdicts),
        ]
    )


if __name__ == "__main__":
    main()
