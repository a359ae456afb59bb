"""Closed forms against the simulator: on equal hosts both say the same."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import gang, served

from firesteel import AGN, Cluster, Compute, Downpour, Merging, Network
from firesteel.sim import costs
from firesteel.sim.fabric import Fabric, steps

SIZES = st.integers(1, 40)
BYTES = st.integers(1, 10**7)


def cluster(n: int, **network) -> Cluster:
    return Cluster(n, network=Network(latency_seconds=2e-4, bandwidth=1e8, **network))


@pytest.mark.parametrize("algorithm", ["ring", "tree", "halving_doubling"])
@settings(deadline=None, max_examples=40)
@given(n=SIZES, nbytes=BYTES)
def test_all_reduce(algorithm, n, nbytes):
    fabric = Fabric(Cluster(n, network=Network(latency_seconds=2e-4, bandwidth=1e8), all_reduce=algorithm))
    said = costs.all_reduce(algorithm, n, nbytes, 2e-4, 1e8)
    assert fabric.collective("all_reduce", tuple(range(n)), nbytes) == pytest.approx(said, rel=1e-9)


@pytest.mark.parametrize(
    ("verb", "form"),
    [("all_gather", costs.all_gather), ("reduce_scatter", costs.reduce_scatter), ("broadcast", costs.broadcast)],
)
@settings(deadline=None, max_examples=40)
@given(n=SIZES, nbytes=BYTES)
def test_other_collectives(verb, form, n, nbytes):
    found = Fabric(cluster(n)).collective(verb, tuple(range(n)), nbytes)
    assert found == pytest.approx(form(n, nbytes, 2e-4, 1e8), rel=1e-9)


@pytest.mark.parametrize("algorithm", ["ring", "tree", "halving_doubling"])
@given(n=st.integers(1, 33))
def test_bytes_are_those_that_the_steps_move(algorithm, n):
    sent = [0.0] * n
    for times, flows in steps("all_reduce", algorithm, n):
        for source, _, share in flows:
            sent[source] += times * share
    assert costs.all_reduce_bytes(algorithm, n, 10**9) == pytest.approx(max(sent) * 1e9, abs=2)


@pytest.mark.parametrize("algorithm", ["ring", "tree", "halving_doubling"])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8, 12])
def test_the_steps_really_reduce(algorithm, n):
    """Follow who has heard of whom: after an all-reduce by trees or by halving, everyone has heard of everyone."""
    if algorithm == "ring":  # each step hands on another piece; n - 1 steps bring a piece round
        assert [times for times, _ in steps("all_reduce", "ring", n)] == [2 * (n - 1)]
        return
    knows = [{k} for k in range(n)]
    for _, flows in steps("all_reduce", algorithm, n):
        heard = [set(k) for k in knows]
        for source, target, _ in flows:
            heard[target] |= knows[source]
        knows = heard
    assert all(k == set(range(n)) for k in knows)


def test_workers_of_a_host_share_its_card():
    """Halving and doubling crosses hosts with all workers at once; a ring in order of rank crosses with one."""
    members = tuple(range(8))
    spread, packed = cluster(8), cluster(8, workers_per_host=4)
    ring = [Fabric(c).collective("all_reduce", members, 10**7) for c in (spread, packed)]
    assert ring[1] == pytest.approx(ring[0], rel=0.01)
    far = [
        Fabric(Cluster(8, network=c.network, all_reduce="halving_doubling")).collective("all_reduce", members, 10**7)
        for c in (spread, packed)
    ]
    # At distance 4 four workers of a host share a card (half the bytes each); at 2 and 1 they stay within it.
    wire = 2 * (4 * 0.5) * 1e7 / 1e8
    assert far[1] == pytest.approx(wire + 2 * 4 * (0.25 + 0.125) * 1e7 / 4e9 + 2 * (2e-4 + 2 * 2e-5), rel=1e-6)
    assert far[0] == pytest.approx(2 * 0.875 * 1e7 / 1e8 + 6 * 2e-4, rel=1e-6)


def test_an_oversubscribed_rack_is_a_bottleneck_where_it_is_crossed():
    members = tuple(range(8))
    free = cluster(8, hosts_per_rack=4)
    tight = cluster(8, hosts_per_rack=4, oversubscription=8.0)

    def seconds(c: Cluster, algorithm) -> float:
        return Fabric(Cluster(8, network=c.network, all_reduce=algorithm)).collective("all_reduce", members, 10**7)

    assert seconds(tight, "ring") == pytest.approx(2 * 7 * (2e-4 + 1e7 / 8 / 0.5e8), rel=1e-6)  # one flow, half a card's worth
    assert seconds(tight, "halving_doubling") > 4 * seconds(free, "halving_doubling")


@settings(deadline=None, max_examples=25)
@given(nbytes=st.integers(1, 10**6).map(lambda n: 4 * n), latency=st.floats(1e-6, 1e-2), bandwidth=st.floats(1e5, 1e9))
def test_an_exchange_with_an_idle_server(nbytes, latency, bandwidth):
    imagined = Cluster(
        1,
        network=Network(latency_seconds=latency, bandwidth=bandwidth),
        merging=Merging(bandwidth=3e9, message_seconds=1e-4, stream_bandwidth=1e12),
    )

    async def program(net, member):
        _ = await net.exchange(torch.zeros(nbytes // 4))
        return member.now

    center = served(imagined, program, torch.zeros(nbytes // 4), Downpour())
    (event,) = [e for e in center.table().to_pylist() if e["kind"] == "pull"]
    said = costs.exchange(nbytes, latency, bandwidth, 3e9, 1e-4)
    assert event["seconds"] + latency + nbytes / bandwidth == pytest.approx(said, rel=1e-9)


@pytest.mark.parametrize("workers", [1, 5, 20])
def test_a_saturated_server_serves_each_worker_once_a_round(workers):
    """Workers that compute nothing come round as fast as the server's card and merges allow, and no faster."""
    numel, rounds = 25_000, 40
    imagined = Cluster(workers, network=Network(1e-6, 1e8), merging=Merging(1e9, 1e-4, 1e12))

    async def program(net, member):
        for _ in range(rounds):
            _ = await net.exchange(torch.zeros(numel))

    center = served(imagined, program, torch.zeros(numel), AGN())
    last = max(e["seconds"] for e in center.table().to_pylist() if e["kind"] == "pull")
    bound = costs.busiest_server(workers, 4 * numel, 1e8, 1e9, 1e-4)
    alone = costs.exchange(4 * numel, 1e-6, 1e8, 1e9, 1e-4)
    assert last / rounds == pytest.approx(max(bound, alone), rel=0.05)


# ---- between racks ---------------------------------------------------------------------------------------------------


def racks(workers: int, hosts: int, oversubscription: float, **more) -> Cluster:
    network = Network(1e-3, 1e6, hosts_per_rack=hosts, oversubscription=oversubscription)
    return Cluster(workers, network=network, merging=Merging(1e9, 0.0, 1e12), **more)


MOMENTS = st.lists(st.tuples(st.floats(0, 3), st.integers(0, 3), st.integers(1, 10**6)), max_size=30)


@settings(deadline=None, max_examples=50)
@given(sent=MOMENTS)
def test_an_uplink_with_enough_for_all_cards_holds_nobody_up(sent):
    """Each of four hosts to a host of its own in the other rack, whenever it likes and as much as it likes."""
    free, joined = Fabric(racks(8, 8, 1.0)), Fabric(racks(8, 4, 1.0))
    for at, source, nbytes in sorted(sent):
        ways = [f.transfer(at, source, source + 4, nbytes) for f in (free, joined)]
        assert ways[1] == pytest.approx(ways[0], rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(sent=MOMENTS, oversubscription=st.sampled_from([2.0, 8.0]))
def test_an_uplink_is_never_idle_while_it_has_something_to_carry(sent, oversubscription):
    """What is posted at once is there as soon as the uplink can have carried it; all of it passes, whoever sent it."""
    fabric = Fabric(racks(8, 4, oversubscription))
    through = [fabric.transfer(0.0, source, source + 4, nbytes)[0] for _, source, nbytes in sent]
    uplink = costs.uplink(1e6, 4, oversubscription)
    each = [sum(n for _, s, n in sent if s == source) / min(1e6, uplink) for source in range(4)]
    whole = sum(nbytes for _, _, nbytes in sent) / uplink
    assert max(whole, *each) <= max(through, default=0.0) * (1 + 1e-9) + 1e-9
    assert max(through, default=0.0) <= whole + max(each) + 1e-9


@pytest.mark.parametrize(("oversubscription", "bandwidth"), [(1.0, 1e6), (2.0, 1e6), (8.0, 0.25e6)])
def test_an_exchange_with_a_server_in_another_rack(oversubscription, bandwidth):
    async def program(net, member):
        if net.rank == 0:
            _ = await net.exchange(torch.zeros(25_000))
            assert member.now == pytest.approx(costs.exchange(100_000, 1e-3, bandwidth, 1e9, 0.0), rel=1e-9)

    _ = served(racks(2, 2, oversubscription), program, torch.zeros(25_000), Downpour())


@pytest.mark.parametrize("oversubscription", [1.0, 4.0, 20.0])
def test_workers_of_many_racks_at_one_busy_server(oversubscription):
    rounds = 20
    imagined = racks(20, 5, oversubscription)

    async def program(net, member):
        for _ in range(rounds):
            _ = await net.exchange(torch.zeros(25_000))

    center = served(imagined, program, torch.zeros(25_000), AGN())
    last = max(e["seconds"] for e in center.table().to_pylist() if e["kind"] == "pull")
    slowest = min(1e6, costs.uplink(1e6, 5, oversubscription))
    assert last / rounds == pytest.approx(costs.busiest_server(20, 100_000, slowest, 1e9, 0.0), rel=0.05)


def test_servers_of_one_rack_share_its_uplink():
    fabric = Fabric(racks(4, 4, 8.0), servers=2)
    there = [fabric.transfer(0.0, worker, host, 50_000)[1] for worker in range(4) for host in fabric.server_host]
    assert max(there) == pytest.approx(1e-3 + costs.crossing(4, 100_000, costs.uplink(1e6, 4, 8.0)))


def test_workers_of_a_rack_share_its_uplink():
    async def program(net, member):
        if net.rank < 2:
            await net.send(torch.zeros(25_000), net.rank + 2)
        else:
            _ = await net.recv(net.rank - 2)

    found = max(m.now for m in gang(racks(4, 2, 4.0), program))
    assert found == pytest.approx(1e-3 + costs.crossing(2, 100_000, costs.uplink(1e6, 2, 4.0)))


WIDTHS = (784, 512, 512, 10)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_steps_of_data_and_model_parallelism(n):
    """The two formulas of the cost analysis, by the collectives that they stand for."""
    rows, flops, latency, beta = 64, 1e10, 1e-4, 4e-8
    weights = sum(a * b for a, b in itertools.pairwise(WIDTHS))
    imagined = Cluster(n, Compute(0.0), Network(latency, 4 / beta))
    compute = 6 * weights * rows / (n * flops)

    async def data(net, member):
        member.now += compute
        _ = await net.all_reduce(torch.zeros(weights), "sum")

    async def model(net, member):
        member.now += compute
        for width in WIDTHS[1:]:
            _ = await net.all_gather(torch.zeros(rows * width // n))
        for width in WIDTHS[1:-1]:
            # By a ring, as the formula has it: n - 1 messages one after the other.
            for _ in range(n - 1):
                sent = net.send(torch.zeros(rows * width // n), (net.rank + 1) % n)
                _ = await net.recv((net.rank - 1) % n)
                await sent

    found = max(m.now for m in gang(imagined, data))
    assert found == pytest.approx(costs.data_parallel(weights, rows, n, flops, latency, beta), rel=2e-3)
    found = max(m.now for m in gang(imagined, model))
    assert found == pytest.approx(costs.model_parallel(WIDTHS, rows, n, flops, latency, beta), rel=0.02)
