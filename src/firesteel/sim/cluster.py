"""A cluster as plain data: how fast its workers compute, its links carry and its servers merge, and what fails when.

    Cluster(workers=4)                                              # four equal hosts on gigabit links
    Cluster(workers=64, compute=Compute(row_seconds=2e-5, jitter=Draw("pareto", 1.0, 2.5)))
    Cluster(workers=32, network=Network(workers_per_host=4, hosts_per_rack=4, oversubscription=4))

Seconds here are virtual. `Cluster.save` and `Cluster.load` write and read JSON; `firesteel calibrate` measures a real one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, final, get_args, get_origin, get_type_hints

from firesteel.errors import UsageError, did_you_mean
from firesteel.randomness import seed_of

Algorithm = Literal["ring", "tree", "halving_doubling"]
_KINDS = {"uniform": (0.0, 1.0), "lognormal": (0.0, math.inf), "exponential": (0.0, 1.0), "pareto": (1.0, math.inf)}


_NAMED = {int: "a whole number", float: "a number", str: "text", type(None): "null"}
_hints = functools.cache(get_type_hints)


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have."""
    return get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    if origin is Literal:
        return isinstance(value, str)  # which one, its class checks
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float if hint is float else hint)


def _named(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"a list (each {_named(get_args(hint)[0])})"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    return _NAMED.get(hint) or f"a {hint.__name__} ({', '.join(f.name for f in dataclasses.fields(hint))})"


def _check(what: Any, positive: tuple[str, ...] = (), not_negative: tuple[str, ...] = ()) -> None:
    """Types of all fields, and ranges of those named."""
    for name, hint in _hints(type(what)).items():
        value, kinds = getattr(what, name), _parts(hint)
        if not any(_fits(value, kind) for kind in kinds):
            raise UsageError(f"{type(what).__name__}({name}={value!r}): it must be {' or '.join(map(_named, kinds))}.")
    for names, strict, range_ in ((positive, True, "greater than 0"), (not_negative, False, "0 or more")):
        for name in names:
            value = getattr(what, name)
            if not (math.isfinite(value) and (value > 0 if strict else value >= 0)):
                raise UsageError(f"{type(what).__name__}({name}={value!r}): it must be a finite number, {range_}.")


@final
@dataclass(frozen=True)
class Draw:
    """A named distribution with a given mean.

    What `spread` is, and where it lies, depends on the kind: "uniform": mean (1 - spread) to mean (1 + spread), 0 .. 1;
    "lognormal": the standard deviation of the logarithm, >= 0; "exponential": the share of the mean that is random, 0 .. 1,
    the rest is constant; "pareto": the tail index, > 1 (below 2 the variance is infinite: a heavy-tailed straggler).
    """

    kind: Literal["uniform", "lognormal", "exponential", "pareto"]
    mean: float
    spread: float

    def __post_init__(self) -> None:
        _check(self, positive=("mean",), not_negative=("spread",))
        if self.kind not in _KINDS:
            raise UsageError(f"Draw(kind={self.kind!r}): it is one of {', '.join(_KINDS)}.{did_you_mean(self.kind, _KINDS)}")
        low, high = _KINDS[self.kind]
        if not (low < self.spread if self.kind == "pareto" else low <= self.spread <= high):
            raise UsageError(f"Draw({self.kind!r}, spread={self.spread}): it must lie between {low:g} and {high:g}.")

    def __call__(self, stream: random.Random) -> float:
        """One number, >= 0."""
        if self.kind == "uniform":
            return self.mean * (1 + self.spread * (2 * stream.random() - 1))
        if self.kind == "lognormal":
            return self.mean * math.exp(stream.gauss(0.0, 1.0) * self.spread - self.spread**2 / 2)
        if self.kind == "exponential":
            return self.mean * (1 - self.spread - self.spread * math.log(1 - stream.random()))
        return self.mean * (self.spread - 1) / self.spread * (1 - stream.random()) ** (-1 / self.spread)


@final
@dataclass(frozen=True)
class Slow:
    """From some moment on, a worker computes more slowly (or, below 1, faster)."""

    worker: int
    at_seconds: float
    factor: float
    """Its seconds from then on, over those before, > 0."""

    def __post_init__(self) -> None:
        _check(self, positive=("factor",), not_negative=("worker", "at_seconds"))


@final
@dataclass(frozen=True)
class Compute:
    """Seconds of a local step: `step_seconds` + rows * `row_seconds`, times a draw of `jitter`."""

    row_seconds: float | tuple[float, ...] | Draw = 1e-5
    """Forward and backward pass of a row: for all workers, for each, or drawn once for each."""
    step_seconds: float = 0.0
    """What a step costs whatever its rows: the optimizer, the interpreter."""
    jitter: Draw | None = None
    """Drawn for every step; a mean of 1 leaves the mean as it is."""
    slow: tuple[Slow, ...] = ()

    def __post_init__(self) -> None:
        _check(self, not_negative=("step_seconds",))
        if isinstance(self.row_seconds, tuple):
            for value in self.row_seconds:
                _check(dataclasses.replace(self, row_seconds=value), not_negative=("row_seconds",))
        elif not isinstance(self.row_seconds, Draw):
            _check(self, not_negative=("row_seconds",))


@final
@dataclass(frozen=True)
class Network:
    """Hosts with one card each, in racks. Workers are placed host by host in order of rank."""

    latency_seconds: float = 1e-4
    """One way, between two hosts."""
    bandwidth: float = 125e6
    """Bytes per second of a host's card, in each direction; its workers share it."""
    workers_per_host: int = 1
    local_latency_seconds: float = 2e-5
    """One way, between two workers of a host."""
    local_bandwidth: float = 4e9
    """Bytes per second within a host, shared by its workers."""
    hosts_per_rack: int | None = None
    """None: one switch joins all."""
    oversubscription: float = 1.0
    """The cards of a rack together, over what its uplink carries, >= 1."""

    def __post_init__(self) -> None:
        _check(
            self,
            positive=("bandwidth", "local_bandwidth", "workers_per_host", "oversubscription"),
            not_negative=("latency_seconds", "local_latency_seconds"),
        )
        if self.oversubscription < 1 or (self.hosts_per_rack is not None and self.hosts_per_rack < 1):
            raise UsageError(f"Network needs oversubscription >= 1 and hosts_per_rack >= 1 or None; got {self}.")


@final
@dataclass(frozen=True)
class Merging:
    """What a server of the center costs; how many there are is the run's `Server(shards=...)`."""

    bandwidth: float = 4e9
    """Bytes per second of a merge and the copy that answers it."""
    message_seconds: float = 1e-4
    """What a message costs whatever its size."""
    stream_bandwidth: float = 1e9
    """Bytes per second that one worker's stream carries where the link would carry more."""
    place: Literal["own", "shared", "worker"] = "own"
    """A host for each server, one host for all (Spark's driver), or worker 0's host."""
    card_bandwidth: float | None = None
    """Bytes per second of the card of a host that only serves, in each direction; None: like the workers' hosts'."""

    def __post_init__(self) -> None:
        _check(self, positive=("bandwidth", "stream_bandwidth"), not_negative=("message_seconds",))
        if self.card_bandwidth is not None:
            _check(self, positive=("card_bandwidth",))
        if self.place not in ("own", "shared", "worker"):
            raise UsageError(f"Merging(place={self.place!r}): it is 'own', 'shared' or 'worker'.")


@final
@dataclass(frozen=True)
class Failure:
    """A worker dies, and comes back if `back_seconds` says when.

    With a server the others go on, and the worker that comes back re-enters at its next push. A gang goes back to its last
    publish point and goes on when the worker is back.
    """

    worker: int
    at_seconds: float
    back_seconds: float | None = None

    def __post_init__(self) -> None:
        _check(self, not_negative=("worker", "at_seconds"))
        if self.back_seconds is not None and not self.back_seconds > self.at_seconds:
            raise UsageError(f"{self}: a worker cannot come back before it has gone.")


@final
@dataclass(frozen=True)
class Cluster:
    """Everything that decides how long things take. What is learned depends on it only through orders of arrival.

    >>> Cluster(workers=2).network.bandwidth
    125000000.0
    """

    workers: int
    compute: Compute = Compute()
    network: Network = Network()
    all_reduce: Algorithm = "ring"
    merging: Merging = Merging()
    failures: tuple[Failure, ...] = ()
    about: str = ""
    """What it was measured with, if it was."""

    def __post_init__(self) -> None:
        _check(self)
        if self.workers < 1:
            raise UsageError(f"Cluster(workers={self.workers!r}): a cluster has at least one worker.")
        if self.all_reduce not in ("ring", "tree", "halving_doubling"):
            raise UsageError(f"Cluster(all_reduce={self.all_reduce!r}): it is 'ring', 'tree' or 'halving_doubling'.")
        each = self.compute.row_seconds
        if isinstance(each, tuple) and len(each) != self.workers:
            raise UsageError(f"Compute(row_seconds=...) names {len(each)} workers, the cluster has {self.workers}.")
        for event in self.events:
            if event.worker >= self.workers:
                raise UsageError(f"{event}: the cluster has {self.workers} workers, 0 .. {self.workers - 1}.")
        away: dict[int, Failure] = {}
        for failure in sorted(self.failures, key=lambda f: (f.worker, f.at_seconds)):
            before = away.get(failure.worker)
            if before is not None and (before.back_seconds is None or failure.at_seconds <= before.back_seconds):
                raise UsageError(f"{failure}: that worker is already away, by {before}.")
            away[failure.worker] = failure
        if len(away) == self.workers and all(f.back_seconds is None for f in away.values()):
            raise UsageError(f"all {self.workers} workers fail and none comes back: nothing could end.")

    @property
    def events(self) -> tuple[Slow | Failure, ...]:
        """What befalls its workers."""
        return (*self.compute.slow, *self.failures)

    def row_seconds(self, seed: int) -> list[float]:
        """Of each worker; drawn ones come from the run's seed."""
        each = self.compute.row_seconds
        if isinstance(each, Draw):
            return [each(random.Random(seed_of(seed, "row_seconds", rank))) for rank in range(self.workers)]
        return list(each) if isinstance(each, tuple) else [each] * self.workers

    def resized(self, workers: int) -> Cluster:
        """The same hosts, links and servers with another number of workers; what befalls those that are left still does."""
        each = self.compute.row_seconds
        if isinstance(each, tuple):
            each = tuple(each[rank % len(each)] for rank in range(workers))
        slow = tuple(event for event in self.compute.slow if event.worker < workers)
        failures = tuple(event for event in self.failures if event.worker < workers)
        compute = dataclasses.replace(self.compute, row_seconds=each, slow=slow)
        return dataclasses.replace(self, workers=workers, compute=compute, failures=failures)

    # ---- JSON --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        _ = Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def load(path: str | Path) -> Cluster:
        """Read what `save` wrote, or what was written by hand; what is not named keeps its default.

        Raises:
            UsageError: there is no such file, it is no JSON, or it holds what no cluster has.
        """
        try:
            found = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as a cluster: {error}") from None
        return _made(Cluster, found, str(path))


def _made(kind: Any, found: Any, where: str) -> Any:
    if not isinstance(found, dict):
        raise UsageError(f"{where}: a {kind.__name__} is an object, not {found!r}.")
    names = [f.name for f in dataclasses.fields(kind)]
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name not in names:
            raise UsageError(f"{where}: a {kind.__name__} has no {name!r}.{did_you_mean(name, names)}")
        held = [part for each in _parts(_hints(kind)[name]) for part in (each, *get_args(each))]
        part = next((part for part in held if dataclasses.is_dataclass(part)), None)
        if part is not None and isinstance(value, dict):
            value = _made(part, value, f"{where}: {name}")
        elif isinstance(value, list):
            value = tuple(_made(part, v, f"{where}: {name}") if part and isinstance(v, dict) else v for v in value)
        values[name] = value
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise UsageError(f"{where}: a {kind.__name__} needs {field.name!r}.")
    try:
        return kind(**values)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
