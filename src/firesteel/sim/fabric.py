"""The wires of an imagined cluster: where each worker sits, what a transfer has to pass, and how long a collective takes.

Two models, each the simplest that has the effect in question. A message between two hosts waits in a queue for the card
that sends it and for the card that receives it, so that many pushes to one server pile up (incast); between two racks it
also waits for what earlier messages leave of the uplink out of the one and into the other. A collective is its
algorithm's steps, one after the other; a step lasts as long as the busiest card or uplink in it, so that workers of a host
share their card and an oversubscribed rack is a bottleneck exactly where the algorithm crosses it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import final

from torch import Tensor

from firesteel.sim import costs
from firesteel.sim.cluster import Cluster

Flow = tuple[int, int, float]  # from worker, to worker, share of the collective's bytes
Step = tuple[int, list[Flow]]  # how many times in a row, and what moves at once


@final
class Uplink:
    """One direction of a rack's uplink: who asks first takes what he can use, and leaves the rest to who asks next.

    So a card can be as fast as if the rack were alone as long as the uplink has enough for all of its cards.
    """

    def __init__(self, bandwidth: float) -> None:
        self._bandwidth: float = bandwidth
        self._from: list[float] = [0.0]  # moments, from each of which on ...
        self._left: list[float] = [bandwidth]  # ... so many bytes per second are left

    def carry(self, now: float, begin: float, nbytes: float, most: float) -> float:
        """When a message is through that begins to come at a moment, with at most so many bytes per second.

        No message that asks later will begin before `now`.
        """
        past = bisect_right(self._from, now) - 1
        del self._from[:past], self._left[:past]
        at = self._split(begin)
        while True:
            speed = min(most, self._left[at])
            until = self._from[at + 1] if at + 1 < len(self._from) else float("inf")
            if speed * (until - self._from[at]) >= nbytes:
                break
            nbytes -= speed * (until - self._from[at])
            self._take(at, speed)
            at += 1
        end = self._from[at] + nbytes / speed if nbytes else self._from[at]
        _ = self._split(end)
        if end > self._from[at]:
            self._take(at, speed)
        return end

    def _split(self, moment: float) -> int:
        """The index of what begins at a moment."""
        at = bisect_right(self._from, moment) - 1
        if self._from[at] < moment:
            at += 1
            self._from.insert(at, moment)
            self._left.insert(at, self._left[at - 1])
        return at

    def _take(self, at: int, speed: float) -> None:
        left = self._left[at] - speed
        self._left[at] = left if left > 1e-9 * self._bandwidth else 0.0  # what rounding leaves would last for ever


def stands_in(x: Tensor) -> bool:
    """Whether, in a dry run, a tensor's numbers stand for many each: sums in float64, counts and single numbers do not."""
    return x.ndim > 0 and x.is_floating_point() and x.element_size() < 8


@final
class Fabric:
    """The wires of one simulation. `scale` is how many numbers each number of a tensor stands for, in a dry run."""

    def __init__(self, cluster: Cluster, servers: int = 1, scale: float = 1.0) -> None:
        self.cluster: Cluster = cluster
        self._scale: float = scale
        network, merging = cluster.network, cluster.merging
        self.host: list[int] = [rank // network.workers_per_host for rank in range(cluster.workers)]
        hosts = self.host[-1] + 1
        places = {"own": [hosts + s for s in range(servers)], "shared": [hosts] * servers, "worker": [0] * servers}
        self.server_host: list[int] = places[merging.place]
        count = max(hosts, *(h + 1 for h in self.server_host)) if self.server_host else hosts
        served = merging.card_bandwidth or network.bandwidth
        self._card: list[float] = [network.bandwidth if host < hosts else served for host in range(count)]
        self._sent: list[float] = [0.0] * count  # when each card is free again, by direction
        self._received: list[float] = [0.0] * count
        self._within: list[float] = [0.0] * count
        self.card_seconds: list[float] = [0.0] * count  # in which each card was sending or receiving, the longer of the two
        self._used: list[list[float]] = [[0.0, 0.0] for _ in range(count)]
        self._hosts_per_rack: int = network.hosts_per_rack or count
        self._uplink: float = costs.uplink(network.bandwidth, self._hosts_per_rack, network.oversubscription)
        racks = range(-(-count // self._hosts_per_rack))
        self._links: list[tuple[Uplink, Uplink]] = [(Uplink(self._uplink), Uplink(self._uplink)) for _ in racks]  # out, in
        self._costs: dict[tuple[str, tuple[int, ...]], tuple[float, float]] = {}

    def nbytes(self, x: Tensor) -> int:
        """What a tensor weighs on the wire."""
        return round(x.nbytes * self._scale) if stands_in(x) else x.nbytes

    # ---- messages ----------------------------------------------------------------------------------------------------

    def transfer(self, at: float, source: int, target: int, nbytes: int, most: float = float("inf")) -> tuple[float, float]:
        """A message between hosts, posted at a moment; returns when all of it is on its way and when it is there.

        Calls must come in order of time. `most` bounds the bytes per second of this one message.
        """
        network = self.cluster.network
        if source == target:
            begin = max(at, self._within[source])
            self._within[source] = done = begin + nbytes / min(network.local_bandwidth, most)
            return done, done + network.local_latency_seconds
        out, into = self._card[source], self._card[target]
        rate, begin = min(out, into, most), max(at, self._sent[source])
        self._sent[source] = begin + nbytes / out
        through = begin + nbytes / rate
        racks = source // self._hosts_per_rack, target // self._hosts_per_rack
        if racks[0] != racks[1]:
            crossed = self._links[racks[0]][0], self._links[racks[1]][1]
            through = max(through, *(link.carry(at, begin, nbytes, rate) for link in crossed))
        for host, direction, rate in ((source, 0, out), (target, 1, into)):
            self._used[host][direction] += nbytes / rate
            self.card_seconds[host] = max(self._used[host])
        arrived = max(through + network.latency_seconds, self._received[target] + nbytes / into)
        self._received[target] = arrived
        return through, arrived

    def to_caller(self, nbytes: int) -> float:
        """Seconds in which worker 0 sends a model to the caller, on a host of its own where workers have several."""
        network = self.cluster.network
        return network.latency_seconds + nbytes / network.bandwidth if self.host[-1] else 0.0

    # ---- collectives -------------------------------------------------------------------------------------------------

    def collective(self, verb: str, members: tuple[int, ...], nbytes: int) -> float:
        """Seconds of a collective, from the moment when the last member has come."""
        key = (verb, members)
        if key not in self._costs:
            self._costs[key] = self._cost(verb, members)
        latency, per_byte = self._costs[key]
        return latency + nbytes * per_byte

    def _cost(self, verb: str, members: tuple[int, ...]) -> tuple[float, float]:
        latency = per_byte = 0.0
        for times, flows in steps(verb, self.cluster.all_reduce, len(members)):
            one_latency, one_per_byte = self._step([(members[a], members[b], share) for a, b, share in flows])
            latency += times * one_latency
            per_byte += times * one_per_byte
        return latency, per_byte

    def _step(self, flows: list[Flow]) -> tuple[float, float]:
        """Latency and seconds per byte of flows that move at once."""
        network = self.cluster.network
        load: dict[tuple[str, int], float] = {}
        latency = 0.0
        for a, b, share in flows:
            source, target = self.host[a], self.host[b]
            if source == target:
                latency = max(latency, network.local_latency_seconds)
                passed = [(("within", source), network.local_bandwidth)]
            else:
                latency = max(latency, network.latency_seconds)
                passed = [(("out", source), network.bandwidth), (("in", target), network.bandwidth)]
                racks = source // self._hosts_per_rack, target // self._hosts_per_rack
                if racks[0] != racks[1]:
                    passed += [(("up", racks[0]), self._uplink), (("down", racks[1]), self._uplink)]
            for resource, capacity in passed:
                load[resource] = load.get(resource, 0.0) + share / capacity
        return latency, max(load.values(), default=0.0)


# ---- the algorithms --------------------------------------------------------------------------------------------------


def steps(verb: str, algorithm: str, n: int) -> Iterator[Step]:
    """What moves in a collective of n members, as shares of its bytes; see `costs` for the sources."""
    if n == 1:
        return
    ring = [(k, (k + 1) % n) for k in range(n)]
    if verb == "all_gather":
        yield n - 1, [(a, b, 1.0) for a, b in ring]
    elif verb == "reduce_scatter":
        yield 1, [(a, b, 1 / n) for a in range(n) for b in range(n) if a != b]
    elif verb == "broadcast":
        for pairs in _tree(n):
            yield 1, [(a, b, 1.0) for a, b in pairs]
    elif algorithm == "ring":
        yield 2 * (n - 1), [(a, b, 1 / n) for a, b in ring]
    elif algorithm == "tree":
        rounds = list(_tree(n))
        for pairs in reversed(rounds):
            yield 1, [(b, a, 1.0) for a, b in pairs]
        for pairs in rounds:
            yield 1, [(a, b, 1.0) for a, b in pairs]
    else:
        p = 1 << (n.bit_length() - 1)
        extra = [(p + k, k, 1.0) for k in range(n - p)]  # hand their numbers in before, and get the result after
        if extra:
            yield 1, extra
        distance = 1
        while distance < p:
            # Halving begins with the far half and doubling ends with it: the farther the partner, the more bytes.
            yield 2, [(k, k ^ distance, distance / p) for k in range(p)]
            distance *= 2
        if extra:
            yield 1, [(b, a, share) for a, b, share in extra]


def _tree(n: int) -> Iterator[list[tuple[int, int]]]:
    """A binomial tree from member 0: who sends to whom in each round."""
    distance = 1 << max((n - 1).bit_length() - 1, 0)
    while distance:
        yield [(k, k + distance) for k in range(0, n, 2 * distance) if k + distance < n]
        distance //= 2
