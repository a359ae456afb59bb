"""Measure a real world, and write it down as a cluster.

Two small strategies are trained on that world like any other: one computes and meets, the other pushes to a server. What took
how long is read from their traces, so this works wherever training does.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from firesteel.errors import UsageError
from firesteel.flat import flatten
from firesteel.local.world import Local
from firesteel.net.protocol import Net, Push, Vec
from firesteel.net.shared import host_name
from firesteel.optim import SGD
from firesteel.run import Run
from firesteel.sim.cluster import Cluster, Compute, Draw, Merging, Network
from firesteel.worker import Worker

_TIMES = 24  # each measurement; the first quarter warms up
_SECONDS = 1.5  # of each measurement, at least: what else a machine does comes by the tenth of a second
_TINY = 16  # numbers of a message that is nothing but latency


@final
@dataclass(frozen=True)
class _Meets:
    """Steps on full and on quarter batches, then all-reduces of nothing and of a model."""

    batch_size: int
    numbers: int

    async def run(self, worker: Worker, net: Net) -> Vec:
        for rows in _row_counts(self.batch_size):
            count, until = 0, time.perf_counter() + _SECONDS
            while count < _TIMES or time.perf_counter() < until:
                count += 1
                index = torch.randperm(worker.shard.rows)[:rows]
                worker.step(worker.gradient(worker.shard.take(index)))
        for numel in (_TINY, self.numbers):
            x, began, spent = torch.zeros(numel), time.perf_counter(), torch.zeros(1)
            while float(spent) < _SECONDS:
                for _ in range(_TIMES):
                    # After a gradient, as in training: what computes, and links that have rested, are part of its seconds.
                    _ = worker.gradient(worker.shard.block(0, min(self.batch_size, worker.shard.rows)))
                    _ = await net.all_reduce(x, "sum")
                spent = await net.all_reduce(torch.tensor([time.perf_counter() - began]), "max")  # all stop together
        return worker.params


@final
@dataclass(frozen=True)
class _Pushes:
    """The first few workers push and pull; the others have nothing to do."""

    workers: int
    needs_seen: ClassVar[bool] = False

    async def run(self, worker: Worker, net: Net) -> Vec:
        center = await net.pull()
        if net.rank < self.workers:
            count, until = 0, time.perf_counter() + _SECONDS
            while count <= _TIMES or time.perf_counter() < until:
                count += 1
                center = await net.exchange(torch.zeros_like(center))
        return center

    def merge(self, center: Vec, push: Push) -> None:
        _ = center.add_(push.delta)


def _row_counts(batch_size: int) -> tuple[int, int]:
    return batch_size, max(1, batch_size // 4)


def calibrate(model: Any, data: Any, *, on: Any = Local(), batch_size: int = 64, **settings: Any) -> Cluster:
    """Measure compute per row, latency, bandwidth and the speed of merging of a real world; well under a minute.

    Args:
        model, data, on, batch_size: as for `firesteel.train`; the seconds of a row are those of this model.
        settings: what else `train` takes: features, label, loss, optimizer, ...

    Returns:
        A cluster like the one that was measured, to be saved, changed, and given to `Simulated` or `firesteel.plan`.

    Raises:
        UsageError: there are fewer than two workers, so that there is no network to measure.

    Example:
        >>> import firesteel
        >>> cluster = firesteel.calibrate(
        ...     lambda: firesteel.models.MLP(64, 32, 10), firesteel.datasets.digits(), progress="none"
        ... )
        >>> cluster.workers, cluster.network.workers_per_host
        (2, 2)
    """
    from firesteel.train import train

    if on.workers < 2:
        raise UsageError("with one worker there is no network to measure; calibrate with workers=2 or more.")
    settings = {"validation": None, "progress": "none", **settings}
    module = model if isinstance(model, nn.Module) else model()
    parameters = flatten(module)[0]
    # Its own size, as links are not linear; but enough for the seconds to be told from those of a message of nothing.
    numbers = parameters.numel() if parameters.numel() >= 2**15 else 2**16
    gang = train(model, data, strategy=_Meets(batch_size, numbers), on=on, batch_size=batch_size, max_steps=1, **settings)
    steps = _times(gang, "step", "rows")
    if len(steps) < 2:
        raise UsageError(f"some worker has fewer rows than a quarter of batch_size={batch_size}: give more data to measure.")
    most, fewest = sorted(steps, reverse=True)[:2]
    slow, quick = ([statistics.median(times) for times in steps[rows]] for rows in (most, fewest))
    row_seconds = [max((f - p) / (most - fewest), 0.0) for f, p in zip(slow, quick, strict=True)]
    # The mean of a step counts its hiccups, which the others wait for; the medians above do not.
    means = [statistics.fmean(times) for times in steps[most]]
    step_seconds = max(0.0, statistics.fmean(f - most * r for f, r in zip(means, row_seconds, strict=True)))
    spread = statistics.fmean(statistics.stdev(map(math.log, times)) for times in steps[most])
    jitter = Draw("lognormal", 1.0, spread) if spread > 0.02 else None
    n = on.workers
    tiny, large = _reduced(gang)
    latency = tiny / (2 * (n - 1))
    bandwidth = 2 * (n - 1) / n * 4 * numbers / max(large - tiny, large / 10)
    small = _exchange_seconds(_TINY, 1, on, settings)
    alone_seconds, together_seconds = (_exchange_seconds(numbers, count, on, settings) for count in (1, n))
    merge = _merge_bandwidth(numbers)
    message = max(0.0, small - 2 * latency)
    stream, card = (
        # What is left for the two ways of the numbers.
        count * 2 * 4 * numbers / max(seconds - small - count * 4 * numbers / merge, seconds / 10)
        for count, seconds in ((1, alone_seconds), (n, together_seconds))
    )
    hosts = gang.settings["hosts"]
    per_host = max(hosts.count(h) for h in hosts)
    alone = per_host == n
    network = (
        Network(workers_per_host=n, local_latency_seconds=latency, local_bandwidth=bandwidth)
        if alone
        else Network(latency_seconds=latency, bandwidth=bandwidth, workers_per_host=per_host)
    )
    beside = isinstance(on, Local) or host_name() in hosts or _connect(on)
    merging = Merging(merge, message, stream, "worker" if beside else "shared", None if beside else max(stream, card))
    about = (
        f"{_named(model, module)}, batches of {batch_size}, on {type(on).__name__}(workers={n}), {time.strftime('%Y-%m-%d')}"
    )
    each: float | tuple[float, ...] = tuple(row_seconds)
    if max(row_seconds) < 1.1 * min(row_seconds):
        each = statistics.fmean(row_seconds)  # equal but for noise
    return Cluster(n, Compute(each, step_seconds, jitter), network, merging=merging, about=about)


def _times(run: Run, kind: str, by: str) -> dict[int, list[list[float]]]:
    """Seconds from one event to the next of the same kind and size: size -> worker -> all but the first quarter, which warms
    up."""
    table = run.trace.to_pydict()
    found: dict[int, dict[int, list[float]]] = {}
    before: dict[int, tuple[str, int, float]] = {}
    for rank, what, size, seconds in zip(table["rank"], table["kind"], table[by], table["seconds"], strict=True):
        last = before.get(rank)
        if what == kind and last is not None and last[:2] == (kind, size):
            found.setdefault(size, {}).setdefault(rank, []).append(seconds - last[2])
        before[rank] = (what, size, seconds)
    return {size: [times[len(times) // 4 :] for _, times in sorted(ranks.items())] for size, ranks in found.items()}


def _reduced(run: Run) -> list[float]:
    """Mean seconds of an all-reduce from when the last worker has come, by size.

    A round begins for all with the end of the one before; it is as long as the slowest worker's gradient and the all-reduce.
    """
    table = run.trace.to_pydict()
    rounds: dict[int, list[list[tuple[float, float]]]] = {}  # bytes -> worker -> seconds of the gradient, of the round
    for rank in sorted(set(table["rank"])):
        mine = [i for i, r in enumerate(table["rank"]) if r == rank]
        found: dict[int, list[tuple[float, float]]] = {}
        for a, b, c in zip(mine, mine[1:], mine[2:], strict=False):
            kinds = [table["kind"][i] for i in (a, b, c)]
            if kinds == ["all_reduce", "step", "all_reduce"] and table["bytes"][a] == table["bytes"][c]:
                began, computed, over = (table["seconds"][i] for i in (a, b, c))
                found.setdefault(table["bytes"][c], []).append((computed - began, over - began))
        for size, times in found.items():
            rounds.setdefault(size, []).append(times[len(times) // 4 :])
    return [
        statistics.fmean(
            statistics.fmean(whole for _, whole in of_all) - max(gradient for gradient, _ in of_all)
            for of_all in zip(*workers, strict=True)
        )
        for _, workers in sorted(rounds.items())
    ]


def _exchange_seconds(numbers: int, workers: int, on: Any, settings: dict[str, Any]) -> float:
    """Of one push and pull of so many numbers, by so many workers at once, at a server that has nothing else to do."""
    from firesteel.train import train

    rows = torch.zeros(2 * on.workers, 1)
    # An output is one number, whatever the size: labels travel with the rows.
    of_size = lambda: nn.Sequential(nn.Linear(1, numbers, bias=False), nn.AvgPool1d(numbers))  # noqa: E731
    plain = {name: value for name, value in settings.items() if name in ("validation", "progress", "seed")}
    run = train(
        of_size,
        (rows, torch.zeros(2 * on.workers, 1)),
        loss="mse",
        optimizer=SGD(lr=0.1),
        strategy=_Pushes(workers),
        on=on,
        batch_size=1,
        max_steps=1,
        metrics=(),
        **plain,
    )
    return statistics.fmean(statistics.median(times) for times in _times(run, "exchange", "bytes")[4 * numbers])


def _merge_bandwidth(numbers: int) -> float:
    """Bytes per second of an in-place merge and the copy that answers it, on this machine."""
    center, delta, answer = torch.zeros(numbers), torch.zeros(numbers), torch.zeros(numbers)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        _ = center.add_(delta)
        _ = answer.copy_(center)
        times.append(time.perf_counter() - began)
    return 4 * numbers / min(times)  # without whatever else ran here meanwhile


def _connect(on: Any) -> bool:
    return type(getattr(on, "session", None)).__module__.startswith("pyspark.sql.connect")


def _named(model: Any, module: nn.Module) -> str:
    return getattr(model, "__name__", "") if getattr(model, "__name__", "<lambda>") != "<lambda>" else type(module).__name__
