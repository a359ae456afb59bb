"""Which strategy, and how many workers: predictions side by side, and a recommendation with its reason."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from firesteel.errors import UsageError
from firesteel.net.protocol import native, own_steps, splits
from firesteel.optim import SGD, OptimizerSettings
from firesteel.sim.cluster import Cluster
from firesteel.sim.dry import Prediction, rehearse
from firesteel.sim.dry_part import Parts
from firesteel.sim.dry_worker import ModelSize
from firesteel.strategies import EAMSGD, Ensemble, Grid, Single

_WORTH = 0.5  # efficiency below which a further worker mostly waits
_NEARLY = 0.75  # of the best speed at which a strategy that is easier to trust is preferred

# What comes earlier is easier to trust: nearer to one process with one big batch, and with less to tune.
TRUST = (
    *(
        "SyncSGD",
        "NeuronParallel",
        "Pipeline",
        "Grid",
        "VectorFreeAdam",
        "VectorFreeAdaGrad",
        "PostLocalSGD",
        "ModelAveraging",
        "SlowMo",
        "DiLoCo",
        "EASGD",
    ),
    *("DynSGD", "AGN", "ADAG", "AEASGD", "EAMSGD"),
)


@final
@dataclass(frozen=True)
class Plan:
    """All predictions, each with its speed-up over one worker alone."""

    alone_seconds: float
    """Seconds per epoch of one worker without a network."""
    predictions: tuple[Prediction, ...]
    target_seconds: float | None
    left_out: tuple[str, ...] = ()
    """Which strategies that cut the network into parts cannot run with which numbers of workers, and why."""

    def speed_up(self, prediction: Prediction) -> float:
        return self.alone_seconds / prediction.epoch_seconds

    def efficiency(self, prediction: Prediction) -> float:
        return self.speed_up(prediction) / prediction.workers

    def recommendation(self) -> tuple[Prediction, str]:
        """A prediction of those made, and why it.

        With a target: the fewest workers that reach it. Without: the most workers of whose time at least half computes. Then,
        of the strategies within 3/4 of the fastest one's speed there, the one that is easiest to trust.
        """
        candidates = [p for p in self.predictions if not isinstance(p.strategy, Ensemble)]
        if self.target_seconds is not None:
            meeting = [p for p in candidates if p.epoch_seconds <= self.target_seconds]
            if not meeting:
                best = min(candidates, key=lambda p: p.epoch_seconds)
                return best, f"no strategy reaches {self.target_seconds:g} s an epoch here; this is the fastest"
            workers = min(p.workers for p in meeting)
            chosen = _trusted([p for p in meeting if p.workers == workers])
            reached = f"{_workers(workers)} the fewest that reach {self.target_seconds:g} s an epoch"
            return chosen, f"{reached}{_eased(chosen, meeting)}"
        worth = [p for p in candidates if self.efficiency(p) >= _WORTH]
        if not worth:
            best = min(candidates, key=lambda p: p.epoch_seconds)
            return (
                best,
                f"nothing computes for even half of the time; this is the fastest, held up by {best.dominated_by}",
            )
        workers = max(p.workers for p in worth)
        there = [p for p in worth if p.workers == workers]
        fastest = min(p.epoch_seconds for p in there)
        chosen = _trusted([p for p in there if fastest / p.epoch_seconds >= _NEARLY])
        beyond = [p for p in candidates if p.workers > workers]
        reason = f"it has {self.efficiency(chosen):.0%} of the ideal speed-up{_eased(chosen, there)}"
        if beyond:
            held = min(beyond, key=lambda p: p.epoch_seconds)
            reason += (
                f"; {held.workers} workers have at most {self.efficiency(held):.0%}, mostly held up by {held.dominated_by}"
            )
        return chosen, reason


def _trusted(found: list[Prediction]) -> Prediction:
    names = [type(p.strategy).__name__ for p in found]
    ranked = sorted(
        zip(found, names, strict=True),
        key=lambda pair: (TRUST.index(pair[1]) if pair[1] in TRUST else len(TRUST), pair[0].epoch_seconds),
    )
    return ranked[0][0]


def _workers(number: int) -> str:
    return "1 worker is" if number == 1 else f"{number} workers are"


def _many(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


def _eased(chosen: Prediction, among: list[Prediction]) -> str:
    same = [p for p in among if p.workers == chosen.workers]
    fastest = min(same, key=lambda p: p.epoch_seconds)
    share = fastest.epoch_seconds / chosen.epoch_seconds
    if share > 0.995:
        return ", as fast as any"
    return f", at {share:.0%} of {type(fastest.strategy).__name__}'s speed and nearer to one process with one big batch"


def plan(
    model: Any,
    cluster: Cluster,
    rows: int,
    strategies: list[Any],
    workers: list[int],
    *,
    batch_size: int = 64,
    optimizer: OptimizerSettings,
    shards: int = 1,
    target_seconds: float | None = None,
    inputs: tuple[int, ...] | None = None,
    watch: Callable[[], None] = lambda: None,
) -> Plan:
    """Predict seconds per epoch, bytes and memory of every strategy with every number of workers.

    Args:
        model: an `nn.Module` or a call that makes one; only its size and layers matter, its speed is the cluster's `compute`.
        cluster: its hosts, links and speeds; of its workers the first N, or as many more like them. Its failures are left out,
            and a worker that slows down is slow from the beginning.
        rows: of the whole data set; `batch_size` is per worker.
        shards: servers of the center, for strategies that have one.
        target_seconds: of an epoch; the fewest workers that reach it are recommended.
        inputs: shape of a row, for strategies that cut the network into parts, of which each is planned with those numbers of
            workers that it can have; None: what the first layer says of it. Sequences, (T, ...), are all as long; labels are
            classes.
        watch: called after every prediction.

    Raises:
        UsageError: something in the call does not fit; nothing was rehearsed.
    """
    _check_counts(rows, workers, batch_size, shards, target_seconds)
    _check_strategies(strategies, workers)
    if not isinstance(optimizer, OptimizerSettings) or isinstance(optimizer, type):
        raise UsageError(f"optimizer={optimizer!r}: give firesteel.Adam(lr=...) or firesteel.Optimizer(cls, **settings).")
    if not isinstance(cluster, Cluster):
        raise UsageError(f"cluster={cluster!r}: give a firesteel.Cluster, or Cluster.load(path).")
    if min(cluster.row_seconds(0)) + cluster.compute.step_seconds <= 0:
        raise UsageError("this cluster computes in no time, so there is no speed-up to plan: give Compute(row_seconds=...).")
    cluster = dataclasses.replace(cluster, failures=())
    module = model if isinstance(model, nn.Module) or not callable(model) else model()
    if not isinstance(module, nn.Module):
        raise UsageError(f"model={model!r}: give an nn.Module, or a call that makes one.")
    refused: dict[tuple[int, int], UsageError] = {}  # by number of workers and of strategy
    for number, strategy in enumerate(strategies):
        unfit = _refusals(strategy, module, optimizer, workers, inputs)
        if len(unfit) == len(set(workers)):
            raise unfit[max(workers)]
        refused |= {(n, number): error for n, error in unfit.items()}
    sizes = {kind: ModelSize.of(module, kind) for kind in {optimizer, SGD()}}
    alone = rehearse(Single(), cluster.resized(1), sizes[optimizer], rows, batch_size).epoch_seconds
    found: list[Prediction] = []
    for n in workers:
        for number, strategy in enumerate(strategies):
            if not (isinstance(strategy, Single) and n > 1) and (n, number) not in refused:
                size = sizes[_local(strategy, optimizer)]
                found.append(rehearse(strategy, cluster.resized(n), size, rows, batch_size, shards, inputs))
            watch()
    left_out = [
        f"{type(strategies[number]).__name__} with {_many(n)}: {error}"
        for (n, number), error in refused.items()
        if not isinstance(strategies[number], Grid)  # which is for one number
    ]
    return Plan(alone, tuple(found), target_seconds, tuple(left_out))


def suiting(
    strategies: list[Any],
    module: nn.Module,
    optimizer: OptimizerSettings,
    workers: list[int],
    inputs: tuple[int, ...] | None = None,
) -> list[Any]:
    """Those of the strategies that would train this model with this optimizer, with some of these numbers of workers."""
    return [s for s in strategies if len(_refusals(s, module, optimizer, workers, inputs)) < len(set(workers))]


def _refusals(
    strategy: Any, module: nn.Module, optimizer: OptimizerSettings, workers: list[int], inputs: tuple[int, ...] | None
) -> dict[int, UsageError]:
    """Numbers of workers with which training would not start, by the strategy's own check; it is asked for the most of them.

    One that cuts the network into parts is asked for each, also to cut it.
    """
    if not splits(strategy):
        try:
            _check_suits(strategy, module, optimizer, max(workers))
        except UsageError as error:
            return dict.fromkeys(workers, error)
        return {}
    found, empty = dict[int, UsageError](), copy.deepcopy(module).to("meta")
    for n in workers:
        try:
            _check_suits(strategy, module, optimizer, n)
            _ = Parts(strategy, empty, n, inputs).part(0)
        except UsageError as error:
            found[n] = error
    return found


def _check_suits(strategy: Any, module: nn.Module, optimizer: OptimizerSettings, workers: int) -> None:
    """By the strategy's own check, as training does before it starts."""
    check = getattr(strategy, "check", None)
    if check is not None:
        _ = check(workers, _local(strategy, optimizer).build(module), module)


def grids(workers: list[int]) -> list[Grid]:
    """Of NeuronParallel, with 2 or 4 parts of each replica: all that have one of these numbers of workers."""
    return [Grid(n // parts, parts) for parts in (2, 4) for n in workers if n > parts and n % parts == 0]


def _local(strategy: Any, optimizer: OptimizerSettings) -> OptimizerSettings:
    """The optimizer of a strategy: one that steps by a rule of its own has none, and plain SGD keeps nothing."""
    return SGD() if own_steps(strategy) or isinstance(strategy, EAMSGD) else optimizer


def _check_counts(rows: int, workers: list[int], batch_size: int, shards: int, target_seconds: float | None) -> None:
    if not workers:
        raise UsageError("workers=[]: a plan needs a number of workers, or several to compare.")
    for name, value in [("rows", rows), ("batch_size", batch_size), ("shards", shards), *(("workers", n) for n in workers)]:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{name}={value!r}: a plan needs a whole number, 1 or more.")
    if max(workers) > rows:
        raise UsageError(f"{max(workers)} workers for {rows} rows: some would have nothing to train on.")
    if target_seconds is not None and not (math.isfinite(target_seconds) and target_seconds > 0):
        raise UsageError(f"target_seconds={target_seconds}: it must be greater than 0.")


def _check_strategies(strategies: list[Any], workers: list[int]) -> None:
    for each in strategies:
        if isinstance(each, type):
            raise UsageError(f"strategies: {each.__name__} is a class; give an instance: {each.__name__}().")
        if not inspect.iscoroutinefunction(getattr(each, "run", None)):
            raise UsageError(f"strategies: {each!r} has no `async def run(self, worker, net)`; see docs/write-your-own.md.")
        if native(each):
            raise UsageError(
                f"strategies: {type(each).__name__} is run by PyTorch's own sharding, whose costs no plan knows; leave it out."
            )
    idle = (Ensemble,) if min(workers) == 1 else (Ensemble, Single)
    if all(isinstance(each, idle) for each in strategies):
        raise UsageError(
            f"strategies={strategies}, workers={workers}: there is nothing to recommend. Single is planned for 1 worker, and "
            "Ensemble only beside others, as it makes one model for each worker; add a strategy such as SyncSGD()."
        )
