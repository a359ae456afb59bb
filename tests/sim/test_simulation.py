"""The event loop and the nets on it: time, messages, and what is said about strategies that break the rules."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import gang, served

from firesteel import AGN, Cluster, Compute, Downpour, Draw, Merging, Network, StrategyError
from firesteel.net.center import Note
from firesteel.results import ipc

CLUSTERS = st.builds(
    Cluster,
    workers=st.integers(2, 6),
    compute=st.builds(Compute, row_seconds=st.just(1e-4), jitter=st.sampled_from([None, Draw("pareto", 1.0, 1.5)])),
    network=st.builds(
        Network,
        latency_seconds=st.floats(0, 0.1),
        bandwidth=st.floats(1e3, 1e9),
        workers_per_host=st.integers(1, 3),
        local_latency_seconds=st.floats(0, 0.1),
        local_bandwidth=st.floats(1e3, 1e9),
        hosts_per_rack=st.sampled_from([None, 1, 2]),
        oversubscription=st.floats(1, 8),
    ),
    all_reduce=st.sampled_from(["ring", "tree", "halving_doubling"]),
)


# ---- time and messages -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(cluster=CLUSTERS, seed=st.integers(0, 2**32), count=st.integers(1, 25))
def test_no_message_is_lost_doubled_or_overtaken(cluster, seed, count):
    """Random sends between random pairs, known to all beforehand; each receiver gets exactly them, in order of sending."""
    order = random.Random(seed)
    plan = [tuple(order.sample(range(cluster.workers), 2)) for _ in range(count)]

    async def program(net, member):
        got, clock = [], member.now
        for number, (source, target) in enumerate(plan):
            member.meter(order.randrange(5))(1.0)
            if net.rank == source:
                await net.send(torch.tensor([float(number)]), target)
            if net.rank == target:
                got.append((source, float(await net.recv(source))))
            assert member.now >= clock, "a clock ran backwards"
            clock = member.now
        return got

    members = gang(cluster, program)
    for rank, member in enumerate(members):
        assert member.result == [(s, float(n)) for n, (s, t) in enumerate(plan) if t == rank]


@settings(deadline=None, max_examples=40)
@given(cluster=CLUSTERS, seed=st.integers(0, 2**32))
def test_collectives_give_the_same_numbers_whatever_the_clock(cluster, seed):
    generator = torch.Generator().manual_seed(seed)
    xs = torch.randn(cluster.workers, 6, generator=generator)
    weights = torch.rand(cluster.workers, generator=generator)

    async def program(net, member):
        member.meter(3)(1.0)
        mine, rank = xs[net.rank], net.rank
        mean = await net.all_reduce(mine.clone(), weight=float(weights[rank]))
        largest = await net.all_reduce(mine.clone(), "max")
        every = await net.all_gather(mine)
        share = await net.reduce_scatter(mine.clone(), "sum")
        last = await net.broadcast(mine.clone(), net.size - 1)
        return mean, largest, every, share, last, member.now

    found = [m.result for m in gang(cluster, program)]
    n = cluster.workers
    for rank, (mean, largest, every, share, last, _) in enumerate(found):
        torch.testing.assert_close(mean, (xs * weights[:, None]).sum(0) / weights.sum())
        assert torch.equal(largest, xs.amax(0))
        assert torch.equal(every, xs.flatten())
        torch.testing.assert_close(share, xs.sum(0).tensor_split(n)[rank])
        assert torch.equal(last, xs[-1])
        assert torch.equal(mean, found[0][0])
    assert len({now for *_, now in found}) == 1  # the last verb ends at one moment for all


@settings(deadline=None, max_examples=30)
@given(cluster=CLUSTERS, rounds=st.integers(1, 8))
def test_a_server_merges_every_push_once(cluster, rounds):
    async def program(net, member):
        net.note = lambda: Note(1, 0, 1, 1.0, 0.0, 0.0, 0.0, 0.0)
        await net.pull()
        for _ in range(rounds):
            member.meter(2)(1.0)
            await net.exchange(torch.full((3,), 1.0))

    center = served(cluster, program, torch.zeros(3), Downpour())
    pushes = [(e["worker"], e["sequence"]) for e in center.table().to_pylist() if e["kind"] == "push"]
    assert sorted(pushes) == [(w, s) for w in range(cluster.workers) for s in range(1, rounds + 1)]
    assert torch.equal(center.params, torch.full((3,), float(cluster.workers * rounds)))
    seconds = center.table()["seconds"].to_pylist()
    assert seconds == sorted(seconds)


def test_a_program_may_end_with_a_push():
    async def program(net, member):
        member.meter(2)(1.0)
        await net.push(torch.ones(3))

    center = served(Cluster(2), program, torch.zeros(3), Downpour())
    assert [e["kind"] for e in center.table().to_pylist()] == ["join", "join", "push", "leave", "push", "leave"]
    assert torch.equal(center.params, torch.full((3,), 2.0))


def test_what_is_posted_early_overlaps_with_what_is_computed():
    cluster = Cluster(4, Compute(row_seconds=1e-3), Network(latency_seconds=5e-3))

    async def blocking(net, member):
        for _ in range(5):
            member.meter(10)(1.0)
            await net.all_reduce(torch.zeros(4))

    async def overlapped(net, member):
        pending = None
        for _ in range(5):
            member.meter(10)(1.0)
            if pending is not None:
                await pending
            pending = net.all_reduce(torch.zeros(4))
        await pending

    slow, fast = (max(m.now for m in gang(cluster, p)) for p in (blocking, overlapped))
    one = 2 * 3 * (5e-3 + 24 / 4 / 125e6)  # a ring over four workers; two numbers more ride along
    assert slow == pytest.approx(5 * (10e-3 + one))
    assert fast == pytest.approx(10e-3 + 5 * one)  # the wire is the bottleneck and never idle


def test_pushes_to_one_server_queue_for_its_card():
    """Incast: eight workers push at once over cards as fast as the server's own."""
    cluster = Cluster(8, network=Network(0.0, 1e6), merging=Merging(1e12, 0.0, 1e12))

    async def program(net, member):
        await net.exchange(torch.zeros(25_000))

    center = served(cluster, program, torch.zeros(25_000), AGN())
    merged = [e["seconds"] for e in center.table().to_pylist() if e["kind"] == "push"]
    assert merged == pytest.approx([0.1 * k for k in range(1, 9)], rel=1e-5)


def test_groups_are_nets_of_their_own():
    async def program(net, member):
        row = net.group([0, 1] if net.rank < 2 else [3, 2])
        total = await row.all_reduce(torch.tensor([float(net.rank)]), "sum")
        return row.rank, row.size, float(total)

    found = [m.result for m in gang(Cluster(4), program)]
    assert found == [(0, 2, 1.0), (1, 2, 1.0), (1, 2, 5.0), (0, 2, 5.0)]


def test_a_bound_on_staleness_holds_back_the_fast():
    cluster = Cluster(3, Compute(row_seconds=(1e-3, 1e-3, 2e-2)))

    async def program(net, member):
        await net.pull()
        for _ in range(10):
            member.meter(1)(1.0)
            await net.exchange(torch.zeros(1))

    free, bound = (served(cluster, program, torch.zeros(1), AGN(), max_ahead=m).table().to_pylist() for m in (None, 1))

    def ahead(log) -> int:
        done, most = [0, 0, 0], 0
        for e in log:
            if e["kind"] == "push":
                done[e["worker"]] += 1
                if done[2] < 10:
                    most = max(most, max(done) - done[2])
        return most

    assert ahead(free) > 5 and ahead(bound) == 2  # one ahead may still push


@pytest.mark.parametrize("workers", [2, 5, 20])
def test_equal_workers_are_n_minus_one_stale(workers):
    cluster = Cluster(workers, Compute(row_seconds=1e-3, jitter=Draw("uniform", 1.0, 0.3)))
    rounds = 60

    async def program(net, member):
        await net.pull()
        for _ in range(rounds):
            member.meter(10)(1.0)
            await net.exchange(torch.zeros(1))

    log = served(cluster, program, torch.zeros(1), AGN()).table().to_pylist()
    stale = [e["staleness"] for e in log if e["kind"] == "push" and 2 < e["sequence"] < rounds - 2]
    assert sum(stale) / len(stale) == pytest.approx(workers - 1, rel=0.02)


def test_what_happens_while_traces_are_paused_is_no_part_of_the_run():
    """All go on together after they have ended at different moments, as an evaluation does."""
    cluster = Cluster(3, Compute(row_seconds=(1e-3, 2e-3, 3e-3)))

    async def program(net, member):
        await net.all_reduce(torch.zeros(4))
        member.meter(10)(1.0)
        member.trace.step(1, 10, 10.0, 0.5)
        return net

    async def evaluation(net, member):
        member.meter(5)(1.0)
        member.trace.step(1, 5, 5.0, 0.25)
        member.trace.mark("publish", 1)
        return float(await net.all_reduce(torch.tensor([float(net.rank)]), "sum"))

    def told(member):
        trace = member.trace
        counts = (trace.bytes_sent, trace.rounds, trace.waited_seconds, trace.samples, trace.loss_sum, trace.weight_sum)
        return ipc(trace.table()), counts

    members = gang(cluster, program)
    before, seconds, ends = ([f(m) for m in members] for f in (told, lambda m: m.trace.clock.now(), lambda m: m.now))
    with contextlib.ExitStack() as stack:
        for member in members:
            stack.enter_context(member.trace.paused())
            member.start(evaluation(member.result, member))
        members[0].simulation.run()
    assert [m.result for m in members] == [3.0] * 3
    assert [told(m) for m in members] == before
    assert [m.trace.clock.now() for m in members] == pytest.approx(seconds, rel=1e-12)
    assert min(m.now for m in members) > max(ends)


# ---- plain functions that wait ---------------------------------------------------------------------------------------


def test_a_plain_function_that_waits_is_as_good_as_an_await():
    """The same program, its reductions awaited by itself or inside plain functions, one of them called by another."""

    async def noisy(net, member, x):
        member.meter(3 + net.rank)(1.0)
        return await net.all_reduce(x + torch.randn(4), weight=net.rank + 1.0) + torch.randn(4)

    async def direct(net, member):
        x = torch.zeros(4)
        for _ in range(5):
            early = net.all_reduce(torch.randn(2), "sum")
            x = await noisy(net, member, x)
            x = x + await net.all_gather(torch.randn(2))
            x = await noisy(net, member, x) + (await early).sum() + torch.randn(4)
        return x

    async def waiting(net, member):
        async def inner(x):
            return member.wait(noisy(net, member, x)) + await net.all_gather(torch.randn(2))

        x = torch.zeros(4)
        for _ in range(5):
            early = net.all_reduce(torch.randn(2), "sum")
            x = member.wait(inner(x))
            x = member.wait(noisy(net, member, x)) + (await early).sum() + torch.randn(4)
        return x

    cluster = Cluster(2, Compute(row_seconds=(1e-3, 3e-3), jitter=Draw("pareto", 1.0, 1.5)))
    awaited, waited = gang(cluster, direct, draws=True), gang(cluster, waiting, draws=True)
    assert awaited[0].now > 0 and not torch.equal(awaited[0].result, awaited[1].result)
    for a, b in zip(awaited, waited, strict=True):
        assert a.result.numpy().tobytes() == b.result.numpy().tobytes()
        assert a.now == b.now and ipc(a.trace.table()) == ipc(b.trace.table())


def test_a_thousand_members_wait_in_functions_that_wait():
    async def program(net, member):
        async def one(source):
            return await source

        async def both():
            sent = net.send(torch.tensor([float(net.rank)]), (net.rank + 1) % net.size)
            got = member.wait(one(net.recv((net.rank - 1) % net.size)))
            await sent
            return member.wait(one(net.all_reduce(got.clone(), "sum"))) + got

        return [float(member.wait(both())) for _ in range(2)]

    for rank, member in enumerate(gang(Cluster(1000), program)):
        assert member.result == [499_500.0 + (rank - 1) % 1000] * 2


def test_a_member_that_dies_waiting_is_closed_from_the_inside():
    closed = []

    async def program(net, member):
        async def received():
            try:
                return float(await net.recv((net.rank - 1) % 3))
            finally:
                closed.append((net.rank, "coroutine"))

        def plain():
            try:
                return member.wait(received())
            finally:
                closed.append((net.rank, "function"))
                if net.rank == 1:
                    member.wait(received())  # too late
                    closed.append((net.rank, "never"))

        try:
            if net.rank == 2:
                await net.send(torch.ones(1), 0)
            return plain() if net.rank < 2 else None
        finally:
            closed.append((net.rank, "program"))
            if net.rank == 1:
                await net.recv(0)  # too late
                closed.append((net.rank, "never"))

    members = gang(Cluster(3, network=Network(latency_seconds=1.0)), program, failing=0.5)
    for one in (0, 1):  # one has ended, one was closed
        assert [what for rank, what in closed if rank == one] == ["coroutine", "function", "program"]
    assert [m.result for m in members] == [1.0, None, None] and [m.alive for m in members] == [True, False, True]
    assert members[0].now > 1.0


def test_an_error_in_what_is_waited_for_shows_the_line_that_waited():
    async def program(net, member):
        async def summed():
            total = await net.all_reduce(torch.zeros(1))
            raise KeyError(float(total))

        def plain_function():
            return member.wait(summed())

        return plain_function()

    with pytest.raises(KeyError) as caught:
        gang(Cluster(2), program)
    names = [entry.name for entry in caught.traceback]
    assert names[-1] == "summed" and names.index("program") < names.index("plain_function") < names.index("summed")


def test_ctrl_c_ends_members_that_wait():
    closed = []

    async def program(net, member):
        async def met():
            await net.all_reduce(torch.zeros(1))
            if net.rank == 0:
                raise KeyboardInterrupt
            await net.all_reduce(torch.zeros(1))

        try:
            member.wait(met())
        finally:
            closed.append(net.rank)

    with pytest.raises(KeyboardInterrupt):
        gang(Cluster(3), program)
    assert sorted(closed) == [0, 1, 2]


# ---- strategies that break the rules ---------------------------------------------------------------------------------


def said(program, workers=2, **limits) -> str:
    with pytest.raises(StrategyError) as caught:
        gang(Cluster(workers), program, **limits)
    assert torch.is_grad_enabled()
    return str(caught.value)


def test_unequal_collectives_name_both_calls():
    async def program(net, member):
        await (net.all_reduce(torch.zeros(3)) if net.rank else net.broadcast(torch.zeros(3)))

    text = said(program)
    assert (
        "collective 1" in text and "worker 1 called all_reduce(mean) of [3]" in text and "worker 0 called broadcast(0)" in text
    )


def test_a_worker_that_leaves_early_is_missed_by_name():
    async def program(net, member):
        for _ in range(5 if net.rank != 1 else 4):
            await net.all_reduce(torch.zeros(3))

    text = said(program, 3)
    assert "workers 0, 2 in net.all_reduce of [3] torch.float32, its call 5" in text
    assert "(worker 1 first)" in text and "worker 1 has ended" in text


def test_two_workers_that_wait_for_each_other():
    async def program(net, member):
        await net.recv(1 - net.rank)

    async def waits(net, member):
        member.wait(program(net, member))

    for either in (program, waits):
        assert "worker 0 in net.recv from worker 1; worker 1 in net.recv from worker 0" in said(either)


def test_a_forgotten_await_is_named():
    async def program(net, member):
        if net.rank == 1:
            net.all_reduce(torch.zeros(3))
        else:
            await net.all_reduce(torch.zeros(3))

    async def waits(net, member):
        member.wait(program(net, member))

    for either in (program, waits):
        assert "worker 1 has ended without awaiting net.all_reduce of [3]" in said(either)


def test_an_await_inside_no_grad_is_named():
    async def program(net, member):
        with torch.no_grad():
            await net.all_reduce(torch.zeros(3))

    async def waits(net, member):
        async def met():
            await net.all_reduce(torch.zeros(3))

        with torch.no_grad():
            member.wait(met())

    for either in (program, waits):
        assert "awaits net.all_reduce of [3] torch.float32, its call 1" in said(either)
        assert "inside torch.no_grad()" in said(either)


def test_a_foreign_await_is_refused():
    async def program(net, member):
        await asyncio.sleep(0)

    async def waits(net, member):
        member.wait(program(net, member))

    assert "not a verb of its net" in said(program)
    assert "not a verb of its net" in said(waits)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net: net.send(torch.zeros(1), 7), r"worker 0 called net.send(to=7), but this net has the workers 0 .. 1"),
        (lambda net: net.recv(-1), "worker 0 called net.recv(source=-1)"),
        (lambda net: net.broadcast(torch.zeros(1), root=2), "worker 0 called net.broadcast(root=2)"),
        (lambda net: net.group([0, 1, 9]), "worker 0 asked for the group (0, 1, 9), but this net has the workers 0 .. 1"),
        (lambda net: net.group([0, 0]), "worker 0 asked for the group (0, 0), which names a worker twice"),
        (lambda net: net.group([1 - net.rank]), "worker 0 asked for the group (1,), of which it is no member"),
    ],
)
def test_workers_that_do_not_exist_are_named(call, words):
    async def program(net, member):
        await call(net)

    assert words in said(program)


def test_a_strategy_that_never_ends_runs_out_of_events_or_seconds():
    async def talks(net, member):
        while True:
            await net.all_reduce(torch.zeros(1))

    async def computes(net, member):
        while True:
            member.meter(1000)(1.0)

    assert "within 5,000 events" in said(talks, max_events=5000)
    assert "within 1 virtual seconds" in said(talks, max_virtual_seconds=1.0)
    assert "within 10 virtual seconds" in said(computes, max_virtual_seconds=10.0)


def test_server_verbs_need_a_server_and_gang_verbs_a_gang():
    async def pulls(net, member):
        await net.pull()

    async def reduces(net, member):
        await net.all_reduce(torch.zeros(1))

    assert "net.pull needs a server" in said(pulls)
    with pytest.raises(StrategyError, match=r"net\.all_reduce needs workers that meet"):
        served(Cluster(2), reduces, torch.zeros(1), AGN())
