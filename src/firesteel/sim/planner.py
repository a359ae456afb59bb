"""Which strategy, and how many workers: predictions side by side, and a recommendation with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from firesteel.errors import UsageError
from firesteel.optim import SGD, OptimizerSettings
from firesteel.sim.cluster import Cluster
from firesteel.sim.dry import ModelSize, Prediction, rehearse
from firesteel.strategies import EAMSGD, Single

_WORTH = 0.5  # efficiency below which a further worker mostly waits
_NEARLY = 0.75  # of the best speed at which a strategy that is easier to trust is preferred

# What comes earlier is easier to trust: nearer to one process with one big batch, and with less to tune.
TRUST = ("SyncSGD", "PostLocalSGD", "ModelAveraging", "SlowMo", "DiLoCo", "EASGD", "DynSGD", "AGN", "ADAG", "AEASGD", "EAMSGD")


@final
@dataclass(frozen=True)
class Plan:
    """All predictions, each with its speed-up over one worker alone."""

    alone_seconds: float
    """Seconds per epoch of one worker without a network."""
    predictions: tuple[Prediction, ...]
    target_seconds: float | None

    def speed_up(self, prediction: Prediction) -> float:
        return self.alone_seconds / prediction.epoch_seconds

    def efficiency(self, prediction: Prediction) -> float:
        return self.speed_up(prediction) / prediction.workers

    def recommendation(self) -> tuple[Prediction, str]:
        """A prediction of those made, and why it.

        With a target: the fewest workers that reach it. Without: the most workers of whose time at least half computes. Then,
        of the strategies within 3/4 of the fastest one's speed there, the one that is easiest to trust.
        """
        candidates = [p for p in self.predictions if type(p.strategy).__name__ != "Ensemble"]
        if self.target_seconds is not None:
            meeting = [p for p in candidates if p.epoch_seconds <= self.target_seconds]
            if not meeting:
                best = min(candidates, key=lambda p: p.epoch_seconds)
                return best, f"no strategy reaches {self.target_seconds:g} s an epoch here; this is the fastest"
            workers = min(p.workers for p in meeting)
            chosen = _trusted([p for p in meeting if p.workers == workers])
            reached = f"{workers} workers are the fewest that reach {self.target_seconds:g} s an epoch"
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
            reason += f"; more workers mostly wait ({held.workers}: {self.efficiency(held):.0%}, for {held.dominated_by})"
        return chosen, reason


def _trusted(found: list[Prediction]) -> Prediction:
    names = [type(p.strategy).__name__ for p in found]
    ranked = sorted(
        zip(found, names, strict=True),
        key=lambda pair: (TRUST.index(pair[1]) if pair[1] in TRUST else len(TRUST), pair[0].epoch_seconds),
    )
    return ranked[0][0]


def _eased(chosen: Prediction, among: list[Prediction]) -> str:
    same = [p for p in among if p.workers == chosen.workers]
    fastest = min(same, key=lambda p: p.epoch_seconds)
    if fastest is chosen:
        return ", as fast as any"
    share = fastest.epoch_seconds / chosen.epoch_seconds
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
    watch: Callable[[], None] = lambda: None,
) -> Plan:
    """Predict seconds per epoch, bytes and memory of every strategy with every number of workers.

    Args:
        model: an `nn.Module`; only its size and layers matter, its speed is the cluster's `compute`.
        rows: of the whole data set; `batch_size` is per worker.
        watch: called after every prediction.
    """
    if rows < 1 or batch_size < 1 or not workers or min(workers) < 1:
        raise UsageError(f"a plan needs rows, batch_size and workers of 1 and more; got {rows}, {batch_size}, {workers}.")
    if max(workers) > rows:
        raise UsageError(f"{max(workers)} workers for {rows} rows: some would have nothing to train on.")
    sizes = {kind: ModelSize.of(model, kind) for kind in {optimizer, SGD()}}
    alone = rehearse(Single(), cluster.resized(1), sizes[optimizer], rows, batch_size).epoch_seconds
    found: list[Prediction] = []
    for n in workers:
        for strategy in strategies:
            if not (isinstance(strategy, Single) and n > 1):
                size = sizes[SGD() if isinstance(strategy, EAMSGD) else optimizer]
                found.append(rehearse(strategy, cluster.resized(n), size, rows, batch_size, shards))
            watch()
    return Plan(alone, tuple(found), target_seconds)
